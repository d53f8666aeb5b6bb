"""The condition of each clip (``--cond_mode``): a sentence, an action, or none.

Actions come from the data set's labels.json, {id: {"actions": [NAME, ...]}}. A class is a single action:
clips of several actions are left out of training by action. Length estimation needs a sentence, so generators
without text store the lengths of their training clips (``length_counts``), per action. Shapes: N conditions,
C width of a condition, A actions.
"""
import torch

from utils.arrays import one_hot
from utils.data.datasets import all_captions, read_labels, read_split
from utils.errors import UserError
from utils.lengths import MAX_LENGTH

COND_MODES = ("text", "action", "uncond")
LENGTH_CLASSES = MAX_LENGTH // 4 + 1  # lengths of 0 .. 49 tokens of 4 frames


class Conditions:
    """The conditions of a data set's clips.

    mode: one of COND_MODES; encode: list of str -> (N, C), for "text"; labels: {id: [action]} and actions:
    names of the classes, in order, for "action".
    """

    def __init__(self, mode="text", encode=None, labels=None, actions=()):
        self.mode, self.encode, self.actions = mode, encode, tuple(actions)
        self.action_of = {name: shown[0] for name, shown in (labels or {}).items()
                          if len(shown) == 1 and shown[0] in self.actions}

    def select(self, store, entries, dropped):
        """Filter text-to-motion clips, and {id: why left out} of the others, by who has a condition."""
        if self.mode != "action":
            return entries, dropped
        kept = [entry for entry in entries if store.ids[entry.clip] in self.action_of]
        others = {store.ids[entry.clip] for entry in entries} - set(self.action_of)
        if not kept:
            raise UserError(f"no clip of {store.spec.name}/{store.split} shows exactly one of the "
                            f"generator's actions ({', '.join(self.actions[:5])} ...), by its labels.json")
        why = "labels.json does not give it exactly one of the generator's actions"
        return kept, dropped | dict.fromkeys(others, why)

    def features(self, store, entries):
        """The condition of every caption of the entries: (N, C), in the order of TextMotionDataset's rows."""
        if self.mode == "text":
            return self.encode([caption.text for caption in all_captions(entries)])
        rows = [entry for entry in entries for _ in entry.captions]
        return torch.zeros(len(rows), 0) if self.mode == "uncond" else self._one_hot(store, rows)

    def lookup(self, store, entries):
        """A function (indices of entries, a caption for each) -> conditions (N, C) or None."""
        if self.mode == "uncond":
            return lambda indices, captions: None
        if self.mode == "action":
            table = self._one_hot(store, entries)
            return lambda indices, captions: table[list(indices)]
        texts = sorted({caption.text for caption in all_captions(entries)})
        table, rows = self.encode(texts), {text: row for row, text in enumerate(texts)}
        return lambda indices, captions: table[[rows[caption.text] for caption in captions]]

    def of_actions(self, names):
        """One-hot (N, A)."""
        return one_hot(names, self.actions)

    def _one_hot(self, store, entries):
        return self.of_actions([self.action_of[store.ids[entry.clip]] for entry in entries])

    def length_counts(self, store, entries, longest=MAX_LENGTH):
        """Histogram of lengths in tokens, a row per action (one row without actions): (A, LENGTH_CLASSES)."""
        counts = torch.zeros(max(1, len(self.actions)), LENGTH_CLASSES)
        for entry in entries:
            row = self.actions.index(self.action_of[store.ids[entry.clip]]) if self.mode == "action" else 0
            counts[row, min(entry.end - entry.start, longest, MAX_LENGTH) // 4] += 1
        return counts

    def describe(self, store, entries, longest=MAX_LENGTH):
        """What a checkpoint keeps; nothing for text, where the length estimator is used."""
        if self.mode == "text":
            return {}
        return {"actions": list(self.actions), "length_counts": self.length_counts(store, entries, longest)}


def load_conditions(mode, spec, encode, actions=None):
    """The Conditions of a data set. ``actions``: of a trained generator; None: all that a training clip shows
    alone. UserError if "action" lacks labels."""
    if mode != "action":
        return Conditions(mode, encode)
    labels = read_labels(spec)
    if labels is None:
        raise UserError(f'{spec.root} has no labels.json ({{ID: {{"actions": [NAME]}}}}), which --cond_mode '
                        "action needs")
    if actions is None:
        shown = [labels[name] for name in read_split(spec, "train") if name in labels]
        actions = sorted({names[0] for names in shown if len(names) == 1})
    if not actions:
        raise UserError(f"no training clip of {spec.root} shows exactly one action, by its labels.json")
    return Conditions(mode, encode, labels, actions)
