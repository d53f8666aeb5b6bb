"""Argument parsers: what several scripts share is said once. Help texts state default and unit."""
import argparse
import math
import sys
from pathlib import Path

from utils.errors import UserError, is_first, only_check, state


def make_parser(doc):
    """A parser whose description is the script's docstring, with defaults shown; a mistake is one line."""
    return _Parser(description=doc, formatter_class=_Formatter)


class _Parser(argparse.ArgumentParser):
    def parse_args(self, *args, **kwargs):
        parsed = super().parse_args(*args, **kwargs)
        state.only_check = vars(parsed).pop("check", False)  # a mode, not a setting that runs record
        return parsed

    def error(self, message):
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action):
        # its text says what None stands for
        return action.help if action.default is None else super()._get_help_string(action)


def number(kind, low, high=math.inf, open_end=False):
    """A ``type=`` of finite numbers from ``low`` (left out, if ``open_end``) to ``high``."""
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


positive_int, non_negative_int = number(int, 1), number(int, 0)
positive_float, non_negative_float = number(float, 0, open_end=True), number(float, 0)
fraction = number(float, 0, 1)


def add_common(parser, name, seed=3407, check=True):
    """Flags of every script that works on a run of a data set; ``check``: it calls ``checked``."""
    parser.add_argument("--name", default=name, help="name of the run: checkpoints/<dataset>/<name>/")
    parser.add_argument("--dataset_name", default="t2m", help="t2m, kit, demo, or a folder made by "
                                                              "scripts.prepare_dataset")
    parser.add_argument("--dataset_dir", default="./datasets", help="folder of the data sets")
    parser.add_argument("--checkpoints_dir", default="./checkpoints", help="folder of the runs")
    parser.add_argument("--seed", type=non_negative_int, default=seed, help="random seed")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N, or auto (CUDA where there is "
                                                         "one)")
    if check:
        parser.add_argument("--check", action="store_true",
                            help="load all that the command needs, say whether it can run, and stop; nothing is "
                                 "written, encoded or downloaded. Reads every clip that is not packed yet; a "
                                 "missing demo set is made in a temporary folder")


def checked():
    """Whether --check was given, so that the script ends here: all that it needs was loaded. Says so."""
    if only_check() and is_first():
        print(f"check: {Path(sys.argv[0]).name} can run")
    return only_check()


def add_workers(parser):
    parser.add_argument("--num_workers", type=non_negative_int, default=4,
                        help="workers that load data; 0 = the main process")


def add_training(parser, batch_size, epoch, lr, weight_decay, warm_up_iter, milestones, log_every):
    """Flags of every training script."""
    parser.add_argument("--batch_size", type=positive_int, default=batch_size,
                        help="samples a step, of each process")
    parser.add_argument("--epoch", type=positive_int, default=epoch, help="epochs in all")
    parser.add_argument("--max_iter", type=non_negative_int, default=0,
                        help="steps in all; 0 = as many as the epochs have")
    parser.add_argument("--lr", type=positive_float, default=lr, help="learning rate after warm-up")
    parser.add_argument("--weight_decay", type=non_negative_float, default=weight_decay,
                        help="AdamW weight decay")
    parser.add_argument("--warm_up_iter", type=non_negative_int, default=warm_up_iter,
                        help="steps of linear warm-up")
    parser.add_argument("--milestones", type=non_negative_int, nargs="+", default=milestones,
                        help="steps at which the lr drops")
    parser.add_argument("--lr_decay", type=positive_float, default=0.1,
                        help="factor of the lr at each milestone")
    parser.add_argument("--log_every", type=positive_int, default=log_every,
                        help="steps between two log entries")
    parser.add_argument("--clip_grad", type=non_negative_float, default=0.0,
                        help="largest norm of a step's gradient; 0 = not clipped")
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16", "auto"], default="fp32",
                        help="of matrix products in training; auto = bf16 where the machine has it; "
                             "quantizers stay fp32")
    parser.add_argument("--is_continue", action="store_true", help="resume the run from its latest.tar")
    add_workers(parser)


def add_trained(parser, zoo, what):
    """Flags of every script that looks at a trained model; the zoo is a table by name."""
    parser.add_argument("--model", choices=list(zoo), default=None,
                        help=f"{what} of the zoo; default: as trained")
    parser.add_argument("--which", choices=["best", "latest"], default="best",
                        help="checkpoint: net_best_fid.tar or latest.tar")


def add_split(parser):
    parser.add_argument("--split", choices=["train", "val", "test"], default="test",
                        help="split that is looked at")


def add_large_models(parser):
    """Flags of the scripts that train the two large models."""
    parser.add_argument("--accumulate", type=positive_int, default=1,
                        help="parts into which a step's batch is split to save memory; their gradients are "
                             "added up (what an "
                             "autoencoder's quantizer averages by itself follows every part)")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network (needs a C++ "
                                                               "compiler on a CPU)")


def add_generator(parser, ae_models, generators):
    """Flags of every script that makes clips from prompts. The zoos are tables by name."""
    parser.add_argument("--ae_name", default=None, help="the autoencoder's --name; default: the one the "
                                                        "generator was trained on")
    parser.add_argument("--ae_model", choices=list(ae_models), default=None,
                        help="its zoo name; default: as trained")
    parser.add_argument("--model", choices=list(generators), default=None,
                        help="the generator's zoo name; default: as trained")
    parser.add_argument("--text_prompt", default=None, help="one prompt")
    parser.add_argument("--text_path", default=None, help="file with a prompt a line, optionally "
                                                          "prompt#frames or prompt#NA")
    parser.add_argument("--action", nargs="+", default=None, metavar="NAME",
                        help="for a generator trained with --cond_mode action: what to show, or all")
    parser.add_argument("--repeat_times", type=positive_int, default=1,
                        help="clips a prompt or action; in all, for a generator without conditions")
    parser.add_argument("--output_dir", default="./generation", help="folder of the results")
    parser.add_argument("--no_video", action="store_true", help="write the .npy files only")


def add_sampler(parser, time_steps=18):
    """Flags of every script that generates."""
    parser.add_argument("--time_steps", type=positive_int, default=time_steps, help="iterations of unmasking")
    parser.add_argument("--cfg", type=non_negative_float, default=None,
                        help="guidance scale; 1 = none; default: what the data set recommends (t2m 4.5, kit "
                             "2.5, demo 3)")
    parser.add_argument("--temperature", type=non_negative_float, default=1.0,
                        help="factor of the starting noise (SiT head) or of every step's noise (DDPM head)")
    parser.add_argument("--solver", choices=["adams", "euler", "midpoint", "heun", "dopri5"], default="adams",
                        help="ODE solver of the SiT head; midpoint and heun ask the network twice a step; "
                             "dopri5, which chooses "
                        "its steps itself, is the published one")
    parser.add_argument("--ode_steps", type=positive_int, default=16, help="steps of the other solvers")
    parser.add_argument("--sampler", choices=["fast", "reference"], default="fast",
                        help="fast: the head runs for a token when it leaves the mask; reference: for all "
                             "masked tokens")
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16"], default="fp32",
                        help="of matrix products (tf32: CUDA; bf16: fast sampler; snapping stays fp32)")
    parser.add_argument("--hard_pseudo_reorder", action="store_true",
                        help="put known tokens before masked ones inside the transformer (changes rounding "
                             "only)")


def sampler_settings(args, spec, cond_mode="text"):
    """The generator's keyword arguments of a parsed command line; ``spec``: the DatasetSpec, for what was
    left open. UserError for guidance of a generator that has no conditions."""
    names = ("time_steps", "cfg", "temperature", "solver", "ode_steps", "sampler", "precision",
             "hard_pseudo_reorder")
    settings = {name: getattr(args, name) for name in names}
    if cond_mode == "uncond":
        if args.cfg not in (None, 1):
            raise UserError(f"--cfg {args.cfg:g}: guidance needs conditions, this generator was trained "
                            "without; leave it out")
        return settings | {"cfg": 1.0}
    return settings | {"cfg": spec.cfg if args.cfg is None else args.cfg}
