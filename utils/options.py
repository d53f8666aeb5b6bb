"""Argument parsers: the flags that several scripts share. Help texts state defaults and units."""
import argparse
import math
import sys
from difflib import get_close_matches
from pathlib import Path

from utils.errors import UserError, is_first, only_check, state

CHECKPOINTS = "./checkpoints"  # where runs are, unless the command line says otherwise


def make_parser(doc):
    """A parser with the script's docstring as description, defaults in the help, and one-line errors."""
    return _Parser(description=doc, formatter_class=_Formatter)


class _Parser(argparse.ArgumentParser):
    def __init__(self, *args, **kwargs):
        # an abbreviated flag would not be known to those who look for it by name
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def parse_args(self, *args, **kwargs):
        parsed = super().parse_args(*args, **kwargs)
        state.only_check = vars(parsed).pop("check", False)  # a mode, not a setting that runs record
        return parsed

    def error(self, message):
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action):  # where the default is None, the text says what that means
        return action.help if action.default is None else super()._get_help_string(action)


def number(kind, low, high=math.inf, open_end=False):
    """A ``type=`` for finite numbers from ``low`` (excluded, if ``open_end``) to ``high``."""
    words = f"a {'whole ' if kind is int else ''}number" + (
        f" in {low}..{high}" if high < math.inf else f" above {low}" if open_end else f" of {low} or more")

    def read(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not low <= value <= high or (open_end and value == low):
            raise argparse.ArgumentTypeError(f"must be {words}, got '{text}'")
        return value

    return read


def plain_name(text):
    """A ``type=`` for a name without folders."""
    if text in ("", ".", "..") or Path(text).name != text:
        raise argparse.ArgumentTypeError(f"must be a plain name, without folders, got '{text}'")
    return text


def row_of(zoo):
    """A ``type=`` for a name in the table of models ``zoo``. A wrong one is answered with the nearest: all of
    them would fill a screen."""
    lower = {name.lower(): name for name in zoo}

    def read(text):
        if text not in zoo:
            near = " or ".join(lower[name] for name in get_close_matches(text.lower(), lower))
            raise argparse.ArgumentTypeError(f"no model is called '{text}'; "
                                             + f"did you mean {near}? " * bool(near) + "docs/zoo.md has all")
        return text

    return read


positive_int, non_negative_int = number(int, 1), number(int, 0)
positive_float, non_negative_float = number(float, 0, open_end=True), number(float, 0)
fraction = number(float, 0, 1)


def add_common(parser, name, seed=3407, check=True, pretrained=False):
    """Flags of every script that works on a run of a data set; ``check``: it calls ``checked``;
    ``pretrained``: it calls ``utils.clips.choose_run``."""
    parser.add_argument("--name", default=None if pretrained else name,
                        help="name of the run: checkpoints/<dataset>/<name>/"
                             + "; default: the weights that come with the code, in pretrained/" * pretrained)
    parser.add_argument("--dataset_name", default=None if pretrained else "t2m",
                        help="t2m, kit, demo, or a folder made by scripts.prepare_dataset"
                             + "; default: t2m, without --name realmotion" * pretrained)
    parser.add_argument("--dataset_dir", default="./datasets", help="folder of the data sets")
    parser.add_argument("--checkpoints_dir", default=CHECKPOINTS, help="folder of the runs")
    parser.add_argument("--seed", type=non_negative_int, default=seed, help="random seed")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N, or auto (CUDA if available)")
    if check:
        parser.add_argument("--check", action="store_true",
                            help="load all that the command needs, say whether it can run, and stop; "
                                 "nothing is written, encoded or downloaded. Reads every clip that is not "
                                 "packed yet; a missing demo set is made in a temporary folder")


def checked():
    """Says that the command can run, if --check was given. Returns whether it was: the script ends here."""
    if only_check() and is_first():
        print(f"check: {Path(sys.argv[0]).name} can run")
    return only_check()


def add_workers(parser):
    parser.add_argument("--num_workers", type=non_negative_int, default=4,
                        help="data loading workers; 0 = load in the main process")


def add_training(parser, batch_size, epoch, lr, weight_decay, warm_up_iter, milestones, log_every):
    """Flags of every training script."""
    add = parser.add_argument
    add("--batch_size", type=positive_int, default=batch_size, help="samples per step and process")
    add("--epoch", type=positive_int, default=epoch, help="number of epochs")
    add("--max_iter", type=non_negative_int, default=0, help="most training steps; 0 = no limit but --epoch")
    add("--lr", type=positive_float, default=lr, help="learning rate after warm-up")
    add("--weight_decay", type=non_negative_float, default=weight_decay, help="AdamW weight decay")
    add("--warm_up_iter", type=non_negative_int, default=warm_up_iter, help="steps of linear warm-up")
    add("--milestones", type=non_negative_int, nargs="+", default=milestones, help="steps where the lr drops")
    add("--lr_decay", type=positive_float, default=0.1, help="factor of the lr at each milestone")
    add("--log_every", type=positive_int, default=log_every, help="steps between two log entries")
    add("--clip_grad", type=non_negative_float, default=0.0, help="largest gradient norm; 0 = no clipping")
    add("--precision", choices=["fp32", "tf32", "bf16", "auto"], default="fp32",
        help="of matrix products; auto = bf16 where the hardware has it, else fp32 (quantizers: always fp32)")
    add("--is_continue", action="store_true", help="resume the run from its latest.tar")
    add("--save_minutes", type=non_negative_float, default=10.0,
        help="minutes between two saves, which is the most that a crash loses; 0 = save after every step")
    add("--keep_last", type=positive_int, default=2,
        help="saved states to keep: latest.tar and the ones before it, previous_1.tar ...")
    add("--on_nan", choices=["stop", "skip", "rollback"], default="stop",
        help="when a loss or gradient is not finite: stop; skip the step (the optimizer does not see it); or "
             "roll back to the last saved state and go on with other random numbers, 3 times at most")
    add_workers(parser)


def add_trained(parser, zoo, what):
    """Flags of scripts that analyse a trained model of the table ``zoo``, an "autoencoder" or "generator"."""
    parser.add_argument("--model", type=row_of(zoo), default=None, help=f"{what}; default: as trained")
    metric = f"FID, or {'MPJPE' if what == 'autoencoder' else 'loss'} if trained without --need_evaluation"
    parser.add_argument("--which", choices=["best", "latest"], default="best",
                        help=f"best.tar (lowest validation {metric}) or latest.tar")


def add_skeleton(parser, default=None, otherwise="as their .json files say, else by the number of joints"):
    """The flag that ``skeleton_files.read_description`` reads; ``otherwise``: what holds without it."""
    parser.add_argument("--skeleton", default=default,
                        help="skeleton of the clips: t2m, kit, or the skeleton file, dataset.json or "
                             f"checkpoint that has it; default: {default or otherwise}")


def add_finetune(parser):
    """The flag that utils/training/finetuning.py reads."""
    parser.add_argument("--finetune", default=None, metavar="RUN",
                        help="begin with the weights of another run of the same architecture, and go on with "
                             "its mean and std of the features: its --name, its folder, or a checkpoint")


def add_split(parser):
    parser.add_argument("--split", choices=["train", "val", "test"], default="test", help="split to use")


def add_virtual_sensors(parser, defaults, places):
    """Flags of every script that trains on virtual sensors; a set of recordings has no use for them."""
    add = parser.add_argument
    add("--places", nargs="+", choices=list(places), default=None,
        help=f"virtual sensors: where; default: {' '.join(defaults['places'])}")
    add("--min_clips", type=positive_int, default=None,
        help="virtual sensors: labels that fewer training clips show are left out; default: "
             f"{defaults['min_clips']}")
    add_label_separator(parser)


def add_label_separator(parser):
    parser.add_argument("--label_separator", default="", metavar="TEXT",
                        help="of a motion data set's labels, leave out what follows such a text: with ',' "
                             "'walk, elderly' is 'walk'; default: labels as they are")


def add_large_models(parser):
    """Flags of the scripts that train the autoencoder and the generator."""
    parser.add_argument("--accumulate", type=positive_int, default=1,
                        help="split each batch into this many parts, to save memory, and add up their "
                             "gradients (running averages of a quantizer are updated once per part)")
    parser.add_argument("--compile", action="store_true",
                        help="torch.compile the network (on a CPU this needs a C++ compiler)")


def add_generator(parser, ae_models, generators):
    """Flags of every script that makes clips from prompts; the zoos are tables of models."""
    add = parser.add_argument
    add("--ae_name", default=None, help="--name of the autoencoder; default: the one used in training")
    add("--ae_model", type=row_of(ae_models), default=None, help="autoencoder; default: as trained")
    add("--model", type=row_of(generators), default=None, help="generator; default: as trained")
    add("--text_prompt", nargs="+", default=None, metavar="PROMPT",
        help="prompts, each in quotation marks: a clip for each")
    add("--text_path", default=None,
        help="file with one prompt per line: prompt, prompt#frames or prompt#NA (NA = estimate the length)")
    add("--action", nargs="+", default=None, metavar="NAME",
        help="actions to show, or all; for a generator trained with --cond_mode action")
    add("--repeat_times", type=positive_int, default=1,
        help="clips per prompt or action (in total, for an unconditional generator)")
    add("--output_dir", default="./generation", help="folder of the results")
    add("--no_video", action="store_true", help="draw no videos")
    add("--view", action="store_true",
        help="also write view.html: a page that plays the clips side by side in a browser (docs/viewer.md)")
    add("--clean_feet", action="store_true",
        help="keep feet that stand in place, as scripts.clean_feet does, and say what that did to skating")


def add_sampler(parser, time_steps=18):
    """Flags of every script that generates."""
    add = parser.add_argument
    add("--time_steps", type=positive_int, default=time_steps, help="unmasking iterations")
    add("--cfg", type=non_negative_float, default=None,
        help="guidance scale; 1 = none; default: the data set's (t2m 4.5, kit 2.5, demo 2; the weights that "
             "come with the code: 2.5)")
    add("--temperature", type=non_negative_float, default=1.0,
        help="factor of the initial noise (SiT head) or of every step's noise (DDPM head)")
    add("--cfg_schedule", choices=["constant", "linear"], default="constant",
        help="linear: guidance grows from 1 to --cfg with the fraction of tokens that are unmasked")
    add("--cfg_interval", type=fraction, nargs=2, default=(0.0, 1.0), metavar=("FROM", "TO"),
        help="guide the head only on this part of its way from noise (0) to data (1)")
    add("--snap", choices=["every", "end", "none"], default="every",
        help="move targets to the autoencoder's grid: each when it is sampled, all at the end, or never")
    add("--solver", choices=["adams", "euler", "midpoint", "heun", "dopri5"], default=None,
        help="ODE solver of the SiT heads, default: adams; midpoint and heun evaluate it twice per step; "
             "dopri5, which chooses its own steps, is the published one")
    add("--ode_steps", type=positive_int, default=None,
        help="steps of the other solvers, default: 16; of a distilled head 1, 2 or 4, default: 4")
    add("--sampler", choices=["fast", "reference"], default="fast",
        help="fast: the head runs for a token when it is unmasked; reference: for all masked tokens")
    add("--precision", choices=["fp32", "tf32", "bf16"], default="fp32",
        help="of matrix products (tf32: CUDA; bf16: fast sampler; snapping always computes in fp32)")
    add("--hard_pseudo_reorder", action="store_true",
        help="put known tokens before masked ones in the transformer (changes rounding only)")


def sampler_settings(args, spec, generator):
    """The keyword arguments of ``generator.generate`` from parsed flags; ``spec``: DatasetSpec with the
    default guidance. UserError for guidance of an unconditional generator."""
    names = ("time_steps", "cfg", "cfg_schedule", "cfg_interval", "snap", "temperature", "solver",
             "ode_steps", "sampler", "precision", "hard_pseudo_reorder")
    settings = {name: getattr(args, name) for name in names}
    own = generator.DiffMLPs.own_cfg
    if own is not None:
        return settings | {"cfg": own if args.cfg is None else args.cfg}
    if generator.cond_mode == "uncond":
        if args.cfg not in (None, 1):
            raise UserError(f"--cfg {args.cfg:g}: guidance needs conditions, but this generator was trained "
                            "without; leave it out")
        return settings | {"cfg": 1.0}
    return settings | {"cfg": spec.cfg if args.cfg is None else args.cfg}
