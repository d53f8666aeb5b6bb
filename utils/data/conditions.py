"""What a generator is told about a clip (``--cond_mode``): a sentence, one of the data set's actions, or
nothing.

Actions come from the data set's labels.json, {id: {"actions": [NAME, ...]}}. A class is one action, so clips
of several actions take no part in a training by actions. Without a text there is no sentence to estimate a
length from: such generators keep how long the training clips were (``length_counts``), for each action.
Shapes: N conditions, C width of a condition, A actions.
"""
import torch

from utils.data.datasets import MAX_LENGTH, all_captions, read_labels, read_split
from utils.errors import UserError

COND_MODES = ("text", "action", "uncond")
LENGTH_CLASSES = MAX_LENGTH // 4 + 1  # lengths of 0 .. 49 tokens of 4 frames


class Conditions:
    """The conditions of a data set's clips.

    Args:
        mode: one of COND_MODES.
        encode: list of str -> (N, C); for "text".
        labels: {id: [action]}, and actions: the names of the classes, in their order; for "action".
    """

    def __init__(self, mode="text", encode=None, labels=None, actions=()):
        self.mode, self.encode, self.actions = mode, encode, tuple(actions)
        known = set(self.actions)
        self.action_of = {name: shown[0] for name, shown in (labels or {}).items() if len(shown) == 1
                          and shown[0] in known}

    def select(self, store, entries, dropped):
        """Of text-to-motion clips and {id: why left out} of others, those that have a condition, and all
        others."""
        if self.mode != "action":
            return entries, dropped
        kept = [entry for entry in entries if store.ids[entry.clip] in self.action_of]
        others = {store.ids[entry.clip] for entry in entries} - set(self.action_of)
        if not kept:
            raise UserError(f"no clip of {store.spec.name}/{store.split} shows exactly one of the "
                            "generator's actions "
                            f"({', '.join(self.actions[:5])} ...), by its labels.json")
        return kept, dropped | {name: "labels.json gives it not exactly one of the generator's actions"
                                for name in others}

    def features(self, store, entries):
        """A condition for every caption of the entries: (N, C), in the order of TextMotionDataset's rows."""
        if self.mode == "text":
            return self.encode([caption.text for caption in all_captions(entries)])
        rows = [entry for entry in entries for _ in entry.captions]
        return torch.zeros(len(rows), 0) if self.mode == "uncond" else self.of_actions(self._shown(store,
                                                                                                   rows))

    def of_actions(self, names):
        """One-hot (N, A)."""
        return torch.eye(len(self.actions))[[self.actions.index(name) for name in names]]

    def lookup(self, store, entries):
        """A function (numbers of entries, a caption for each) -> conditions (N, C); None for an unconditional
        generator."""
        if self.mode == "uncond":
            return lambda numbers, captions: None
        if self.mode == "action":
            table = self.of_actions(self._shown(store, entries))
            return lambda numbers, captions: table[list(numbers)]
        texts = sorted({caption.text for caption in all_captions(entries)})
        table, rows = self.encode(texts), {text: row for row, text in enumerate(texts)}
        return lambda numbers, captions: table[[rows[caption.text] for caption in captions]]

    def length_counts(self, store, entries, longest=MAX_LENGTH):
        """How many clips of each action (one row without actions) have each length in tokens: (A,
        LENGTH_CLASSES)."""
        counts = torch.zeros(max(1, len(self.actions)), LENGTH_CLASSES)
        for entry in entries:
            row = self.actions.index(self.action_of[store.ids[entry.clip]]) if self.mode == "action" else 0
            counts[row, min(entry.end - entry.start, longest, MAX_LENGTH) // 4] += 1
        return counts

    def describe(self, store, entries, longest=MAX_LENGTH):
        """What a checkpoint keeps; nothing for text, whose lengths the length estimator knows."""
        if self.mode == "text":
            return {}
        return {"actions": list(self.actions), "length_counts": self.length_counts(store, entries, longest)}

    def _shown(self, store, entries):
        return [self.action_of[store.ids[entry.clip]] for entry in entries]


def load_conditions(mode, spec, encode, actions=None):
    """The Conditions of a data set; ``actions``: those of a trained generator, None = all that the training
    split shows alone.
    Raises UserError where the data set has no labels for "action"."""
    if mode != "action":
        return Conditions(mode, encode)
    labels = read_labels(spec)
    if labels is None:
        raise UserError(f'{spec.root} has no labels.json ({{ID: {{"actions": '
                        f'[NAME]}}}}), which --cond_mode action needs')
    if actions is None:
        shown = [labels[name] for name in read_split(spec, "train") if name in labels]
        actions = sorted({names[0] for names in shown if len(names) == 1})
    if not actions:
        raise UserError(f"no training clip of {spec.root} shows exactly one action, by its labels.json")
    return Conditions(mode, encode, labels, actions)
