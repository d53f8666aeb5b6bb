"""Beginning a run with the weights of another one (--finetune).

Optimiser, steps and seeds begin anew. The features stay normalised by the mean and std of the other run,
since its weights mean nothing else. Its name and hash are kept under ``finetuned_from``, so that a resumed
run is known to be the same.
"""
from utils.errors import UserError
from utils.files import RunFolder, file_hash, read_newest
from utils.weights import complete

# Settings of a model that shape its training, not its weights.
FREE_SETTINGS = {"dropout", "cond_drop_prob", "word_drop_prob", "diffmlps_batch_mul", "target_scale"}
WHAT = {"ae": "autoencoder", "mardm": "generator", "estimator": "length estimator", "evaluator": "evaluator"}
FINETUNE = {"finetune": "finetuned_from"}


class Parent:
    """The run named by a --finetune flag. content: dict of its checkpoint; ``record``: what a checkpoint
    keeps of it. UserError where there is none, or it lacks the weights ``key``."""

    def __init__(self, text, key, args, dataset):
        self.content, self.path = read_newest(RunFolder.find(text, args.checkpoints_dir, dataset))
        self.state = self.content.get(f"ema_{key}", self.content.get(key))
        if self.state is None:
            raise UserError(f"{self.path} holds no {WHAT[key]} (keys: {', '.join(map(str, self.content))})")
        self.record = {"finetuned_from": {"name": text, "hash": file_hash(self.path)}}

    def hand_over(self, model, described):
        """Load the weights into a model that checkpoints will describe as ``described``. UserError names the
        first setting or tensor that differs."""
        self._check_settings(described)
        own = model.state_dict()
        there = complete(self.state, own)
        for name in dict.fromkeys([*own, *there]):
            shapes = [tuple(state[name].shape) if name in state else None for state in (there, own)]
            if shapes[0] != shapes[1]:
                old, new = ("no such tensor" if shape is None else shape for shape in shapes)
                raise UserError(f"--finetune: {self.path} is of another architecture; the first tensor that "
                                f"differs is {name}: there {old}, here {new}")
        model.load_state_dict(there)

    def _check_settings(self, described):
        trained, wanted = self.content.get("model_name"), described.get("model_name")
        if trained and trained != wanted:
            raise UserError(f"--finetune: {self.path} is a {trained}, not a {wanted}; pass --model {trained}")
        there, here = self.content.get("model_kwargs") or {}, described.get("model_kwargs", {})
        for name in dict.fromkeys([*here, *there]) if there else ():
            if name not in FREE_SETTINGS and there.get(name) != here.get(name):
                raise UserError(f"--finetune: {self.path} has other settings; the first that differs is "
                                f"{name}: there {there.get(name)}, here {here.get(name)}")


def find_parent(args, key, dataset):
    """The Parent of --finetune, or None without the flag."""
    return None if args.finetune is None else Parent(args.finetune, key, args, dataset)


def check_beginning(args, began, path, flags=FINETUNE):
    """UserError if the run to be resumed, whose latest checkpoint is ``began`` ({}: a new run), began with,
    or without, another value of one of the ``flags`` {name: key of the checkpoint}."""
    for flag, key in flags.items():
        first, now = (began.get(key) or {}).get("name"), getattr(args, flag)
        if began and first != now:
            how = f"with --{flag} {first}" if first else f"without --{flag}"
            raise UserError(f"{path} began {how}; resume with the same")
