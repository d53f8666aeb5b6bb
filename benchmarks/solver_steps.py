"""How many solver steps until the snapped codes of a trained generator stop changing?

    python -m benchmarks.solver_steps --name demo_MARDM --dataset_name demo

Clips are generated with a very fine solver. Whenever tokens are sampled, every solver and number of steps
below runs too, from the same noise and conditions, and its snapped answers are compared with the fine
solver's; so are those of the default solver with products in bfloat16. Prints a table and writes
solver_steps.json into the run's eval/. Without a quantizer only the distance means something.
"""
import torch

from models.AE import AE_models
from models.DiffMLPs import ODE_STEPS, SiTHead
from models.DistilledHead import DistilledHead
from models.MARDM import MARDM_models
from models.pipeline import clip_seed
from models.TextEncoder import load_text_encoder
from sample import load
from utils import options
from utils.clips import read_prompts
from utils.errors import UserError, run
from utils.evaluation.prompts import PROMPTS
from utils.files import RunFolder
from utils.report import format_table, write_results
from utils.training.settings import code_version, machine

CANDIDATES = [(solver, n) for solver in ("adams", "euler")
              for n in (1, 2, 3, 5, 8, 10, 12, 14, 16, 20, 30, 50)] + [
    (solver, n) for solver in ("midpoint", "heun") for n in (2, 3, 4, 5, 6, 7, 8, 10, 15)] + [
    ("dopri5", 0), ("adams bf16", ODE_STEPS)]


def parse_args():
    parser = options.make_parser(__doc__)
    options.add_common(parser, name="MARDM")
    add = parser.add_argument
    add("--model", choices=list(MARDM_models), help="generator of the zoo; default: as trained")
    add("--ae_name", help="the autoencoder's --name; default: the one it was trained on")
    add("--ae_model", choices=list(AE_models), help="the autoencoder's zoo name; default: as trained")
    add("--text_path", help="file with one prompt per line; default: the prompts of the probes")
    add("--motion_length", type=options.positive_int, default=120, help="frames per clip")
    add("--clips", type=options.positive_int, default=32, help="clips, of evenly spread prompts")
    add("--time_steps", type=options.positive_int, default=18, help="iterations of unmasking")
    add("--cfg", type=options.non_negative_float, help="guidance scale; default: the data set's")
    add("--fine_steps", type=options.positive_int, default=200, help="midpoint steps of the fine solver")
    return parser.parse_args()


class Study:
    """Stands in for a SiT head during generation: answers with the fine solver, and compares the others. A
    solver's tally: tokens and coordinates that differ once snapped, sum of squared distances before that."""

    own_cfg, guided_in_part = None, True

    def __init__(self, head, snap, fine_steps, candidates=CANDIDATES):
        self.head, self.snap, self.fine = head, snap, ("midpoint", fine_steps)
        self.tally = {candidate: torch.zeros(3, dtype=torch.float64) for candidate in candidates}
        self.tokens, self.spread = 0, 0.0

    def sampler(self, temperature, _fast, dtype, cache, interval, **_solver_settings):
        cache = {} if cache is None else cache  # the weights do not change here

        def solver(candidate):
            name, low, _ = candidate[0].partition(" bf16")
            return self.head.sampler(temperature, True, torch.bfloat16 if low else dtype, cache, interval,
                                     solver=name, ode_steps=max(candidate[1], 1))

        fine, others = solver(self.fine), {candidate: solver(candidate) for candidate in self.tally}

        def sample(z, z_uncond, draw_noise, cfg, counts):
            noise = draw_noise()
            answer = fine(z, z_uncond, lambda: noise, cfg, counts)
            self.tokens += len(answer)
            self.spread += float(answer.double().square().sum())
            for candidate, run_solver in others.items():
                self._score(self.tally[candidate], run_solver(z, z_uncond, lambda: noise, cfg, counts),
                            answer)
            return answer

        return sample

    def _score(self, tally, found, answer):
        differs = (self.snap(found) - self.snap(answer)).abs() > 1e-4
        tally += torch.tensor([differs.any(1).sum(), differs.float().mean(1).sum(),
                               (found - answer).double().square().sum()]).double()

    def rows(self):
        """[{solver, steps, calls of the network, fractions that differ, relative distance}]."""
        def calls(solver, steps):  # the last step to a predicted x is an Euler step
            twice = solver in ("midpoint", "heun")
            return 2 * steps - (self.head.prediction == "x") if twice else steps or None

        return [{"solver": solver, "steps": steps or None, "calls": calls(solver, steps),
                 "codes_differ": float(tally[0]) / self.tokens,
                 "coordinates_differ": float(tally[1]) / self.tokens,
                 "distance": float(tally[2] / self.spread) ** 0.5}
                for (solver, steps), tally in self.tally.items()]


def table(rows):
    cells = [(row["solver"], row["steps"] or "adaptive", row["calls"] or "-", f"{row['codes_differ']:.2%}",
              f"{row['coordinates_differ']:.2%}", f"{row['distance']:.4f}") for row in rows]
    return format_table(cells, ("solver", "steps", "network calls", "codes that differ", "coordinates",
                                "relative distance"))


def main():
    args = parse_args()
    pipeline, _, spec = load(args)
    folder, generator = RunFolder(args.checkpoints_dir, args.dataset_name, args.name), pipeline.generator
    if not isinstance(generator.DiffMLPs, SiTHead) or isinstance(generator.DiffMLPs, DistilledHead):
        raise UserError(f"{folder.checkpoint()} has no SiT head, so it has no solver")
    prompts = [p for p, _ in (read_prompts(None, args.text_path) if args.text_path else PROMPTS)]
    prompts = [prompts[i * len(prompts) // args.clips] for i in range(args.clips)]
    text = load_text_encoder(spec.text_encoder).encode_words(prompts)
    if options.checked():
        return
    head = generator.DiffMLPs
    study = Study(head, pipeline.ae.snap, args.fine_steps)
    del generator.DiffMLPs  # torch does not let another object replace a module
    generator.DiffMLPs = study
    cfg = spec.cfg if args.cfg is None else args.cfg
    seeds = [clip_seed(args.seed, prompt, row) for row, prompt in enumerate(prompts)]
    pipeline.sample(text, [args.motion_length] * args.clips, seeds, args.clips, cfg=cfg,
                    time_steps=args.time_steps, decode=lambda targets, _frames: targets)
    results = {"kind": "solver_steps", "fine": list(study.fine), "clips": args.clips, "tokens": study.tokens,
               "cfg": cfg, "frames": args.motion_length, "time_steps": args.time_steps, "seed": args.seed,
               "checkpoint": folder.checkpoint().name, "prediction": head.prediction, "machine": machine(),
               "code_version": code_version(), "rows": study.rows()}
    write_results(folder.root / "eval", "solver_steps", results, table(results["rows"]))


if __name__ == "__main__":
    run(main)
