"""Do joined motions (sample.py --chain, --start_pose) do as they are told, without a jerk where they join?

    python -m benchmarks.chains --name demo_MARDM --dataset_name demo

Chains of prompts that the semantic probes know, drawn by --seed, for each of --contexts; the same parts as
clips of their own ("alone"); and clips that begin in a pose of another clip, its last or one half-way ("start
poses"). Jerk is the largest of any joint in 12 frames around each seam, and in stretches of 12 frames
elsewhere. Prints a table and writes chains.json into the run's eval/. Needs HumanML3D's skeleton and a
generator that reads text.
"""
import numpy as np
import torch
from tqdm import tqdm

import sample
from models.chaining import CONTEXT, WINDOW, Part
from models.pipeline import clip_seed
from models.TextEncoder import load_text_encoder
from utils import options
from utils.data.specs import joints_in_metres
from utils.errors import UserError, run
from utils.evaluation.metrics import differences
from utils.evaluation.probes import check
from utils.evaluation.prompts import PROMPTS
from utils.files import RunFolder
from utils.report import format_table, write_results
from utils.training.settings import code_version, machine

AROUND = 6  # frames on either side of a seam
GROUNDED = {"sit_down", "stand_up", "kneel"}  # what follows these, or comes before them, may be impossible
SINGLES = [(prompt, actions[0]) for prompt, actions in PROMPTS
           if len(actions) == 1 and actions[0] not in GROUNDED]
STARTS = ("a person walks forward", "a person waves with the right hand", "a person squats")
HEADER = ("what", "parts as asked", "peak jerk at seams: mean, largest (m/s^3)", "elsewhere: mean, largest")


def parse_args():
    parser = options.make_parser(__doc__)
    options.add_common(parser, name="MARDM")
    options.add_sampler(parser)
    add = parser.add_argument
    add("--chains", type=options.positive_int, default=5, help="chains of each context")
    add("--parts", type=options.number(int, 2, len(SINGLES)), default=8, help="prompts of each chain")
    add("--part_length", type=options.number(int, 40, 160), default=80, help="frames of each part")
    add("--contexts", type=options.number(int, 1, WINDOW - 1), nargs="+", default=[CONTEXT, 2],
        metavar="TOKENS", help="tokens of the motion so far that each window sees")
    parser.set_defaults(model=None, ae_name=None, ae_model=None)
    return parser.parse_args()


def jerks(joints, fps, seams):
    """(peaks around the seams, peaks of the stretches between them) of joints (T, J, 3), lists."""
    jerk = np.linalg.norm(differences(joints, fps, 3), axis=-1).max(-1)  # jerk[t]: frames t to t + 3
    near = [jerk[max(seam - AROUND, 0) : seam + AROUND] for seam in seams]
    ends = [AROUND, *(edge for seam in seams for edge in (seam - AROUND, seam + AROUND)), len(jerk) - AROUND]
    far = [jerk[start : start + 2 * AROUND] for first, last in zip(ends[::2], ends[1::2])
           for start in range(first, last - 2 * AROUND + 1, 2 * AROUND)]
    return [float(piece.max()) for piece in near], [float(piece.max()) for piece in far]


class Bench:
    """Makes and measures; the rows of the table are dicts."""

    def __init__(self, args):
        self.args = args
        self.pipeline, _, self.spec = sample.load(args, args.precision)
        if self.spec.layout.name != "t2m" or self.pipeline.generator.cond_mode != "text":
            raise UserError(f"--name {args.name}: the prompts are for text and the 22 joints of t2m")
        self.settings = options.sampler_settings(args, self.spec, self.pipeline.generator)
        self.encoder = load_text_encoder(self.spec.text_encoder)
        rng = np.random.default_rng(args.seed)
        self.drawn = [[SINGLES[i] for i in rng.choice(len(SINGLES), args.parts, replace=False)]
                      for _ in range(args.chains)]

    def seeds(self, chain):
        return [clip_seed(self.args.seed, prompt, chain) for prompt, _ in self.drawn[chain]]

    def cond(self, rows):
        return self.encoder.encode_words([prompt for prompt, _ in rows])[list(range(len(rows)))]

    def joined(self, context):
        """The row of chains with a context."""
        args, length, passed, near, far = self.args, self.args.part_length // 4 * 4, 0, [], []
        for chain, rows in enumerate(tqdm(self.drawn, desc=f"context {context}", unit="chain")):
            cond = self.cond(rows)
            parts = [Part(cond[[i]], length, seed) for i, seed in enumerate(self.seeds(chain))]
            joints = np.concatenate(list(sample.chain_joints(self.pipeline, parts, context, self.spec,
                                                             self.settings)))
            passed += sum(check(action, joints[i * length : (i + 1) * length], self.spec.fps)
                          for i, (_, action) in enumerate(rows))
            peaks = jerks(joints, self.spec.fps, range(length, len(joints), length))
            near, far = near + peaks[0], far + peaks[1]
        return {"what": f"{args.chains} chains of {args.parts}, --context {context}", "passed": passed,
                "parts": args.chains * args.parts, "seams": near, "elsewhere": far}

    def alone(self):
        """The row of the same parts as clips of their own, and these clips: [(joints, features)]."""
        length, clips = self.args.part_length // 4 * 4, []
        rows = [row for chain in self.drawn for row in chain]
        seeds = [seed for chain in range(self.args.chains) for seed in self.seeds(chain)]
        with tqdm(total=len(rows), desc="alone", unit="clip") as progress:
            clips = self.pipeline.sample(self.cond(rows), [length] * len(rows), seeds, progress=progress,
                                         **self.settings)
        clips = [(joints_in_metres(clip, self.spec), clip.numpy()) for clip in clips]
        far = [peak for joints, _ in clips for peak in jerks(joints, self.spec.fps, ())[1]]
        return {"what": "alone", "parts": len(rows), "seams": [], "elsewhere": far,
                "passed": sum(check(action, joints, self.spec.fps)
                              for (_, action), (joints, _) in zip(rows, clips))}, clips

    def from_poses(self, clips):
        """The row of clips that begin in the last pose of a clip, or in the one in its middle, in turn."""
        rows = [row for row in SINGLES if row[0] in STARTS]
        length, passed, near, far = self.args.part_length // 4 * 4, 0, [], []
        for number, (joints, features) in enumerate(clips[: self.args.chains]):
            stop = len(joints) if number % 2 == 0 else len(joints) // 2
            seeds = [clip_seed(self.args.seed, number, *row) for row in rows]
            made = sample.from_pose(self.pipeline, (joints[:stop], features[:stop]), self.cond(rows),
                                    [length] * len(rows), seeds, self.settings, self.spec)
            for (_, action), (clip, _) in zip(rows, made):
                passed += check(action, clip, self.spec.fps)
                whole = np.concatenate([joints[: stop - 1], clip])  # its first frame is the pose
                peaks = jerks(whole[max(stop - 30, 0) :], self.spec.fps, [min(stop, 30) - 1])
                near, far = near + peaks[0], far + peaks[1]
        return {"what": "start poses", "passed": passed, "parts": len(near), "seams": near, "elsewhere": far}


def table(rows):
    def peaks(values):
        return f"{np.mean(values):.0f}, {np.max(values):.0f}" if values else "-"

    return format_table([(row["what"], f"{row['passed']} of {row['parts']}", peaks(row["seams"]),
                          peaks(row["elsewhere"])) for row in rows], HEADER)


def main():
    args = parse_args()
    bench = Bench(args)
    if options.checked():
        return
    alone, clips = bench.alone()
    rows = [alone, *map(bench.joined, args.contexts), bench.from_poses(clips)]
    folder = RunFolder(args.checkpoints_dir, args.dataset_name, args.name)
    write_results(folder.root / "eval", "chains", {
        "kind": "chains", "seed": args.seed, "part_length": args.part_length, "cfg": bench.settings["cfg"],
        "threads": torch.get_num_threads(), "machine": machine(), "code_version": code_version(),
        "rows": rows}, table(rows))


if __name__ == "__main__":
    run(main)
