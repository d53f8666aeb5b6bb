"""Sentences as a generator reads them word by word: a pooled feature, and the states of the words.

Shapes: N or B sentences, W words (tokens of the text encoder) of the longest, C width of a pooled feature, E
width of a word's state.
"""
import torch


class TextCondition:
    """pooled (B, C), words (B, W, E), mask (B, W; true = a word). Cut and moved like a tensor."""

    def __init__(self, pooled, words, mask):
        self.parts = pooled, words, mask
        self.pooled, self.words, self.mask = self.parts

    def __len__(self):
        return len(self.pooled)

    def __getitem__(self, rows):
        return TextCondition(*(part[rows] for part in self.parts))

    def to(self, device, non_blocking=False):
        return TextCondition(*(part.to(device, non_blocking=non_blocking) for part in self.parts))

    def pin_memory(self):
        return TextCondition(*(part.pin_memory() for part in self.parts))

    @property
    def device(self):
        return self.pooled.device

    def where(self, kept):
        """With the words that ``kept`` (B, W) bool names alone; the pooled feature stays."""
        return TextCondition(self.pooled, self.words, self.mask & kept)

    @classmethod
    def stack(cls, sentences):
        """Of [(pooled (C,), states (W_i, E))]."""
        pooled, words = zip(*sentences)
        lengths = torch.tensor([len(states) for states in words])
        padded = torch.nn.utils.rnn.pad_sequence([states.float() for states in words], batch_first=True)
        return cls(torch.stack(pooled), padded, torch.arange(padded.shape[1]) < lengths[:, None])


class WordTable:
    """The features of N sentences: pooled (N, C), and the states of all words, one sentence after the other,
    (sum of W, E), which may lie in a file. Sentence i has rows ends[i - 1] : ends[i]; ``rows``: which
    sentences the table shows, in their order."""

    def __init__(self, pooled, states, ends, rows=None):
        self.pooled, self.states, self.ends = pooled, states, [0, *ends]
        self.rows = range(len(pooled)) if rows is None else rows

    @property
    def shape(self):
        return len(self.rows), self.pooled.shape[1]

    @property
    def word_dim(self):
        return self.states.shape[1]

    def __getitem__(self, rows):
        """An int: (pooled (C,), states (W, E)) of a sentence; a list of ints: their TextCondition."""
        if not isinstance(rows, int):
            return TextCondition.stack([self[int(row)] for row in rows])
        row = self.rows[rows]
        return self.pooled[row], torch.as_tensor(self.states[self.ends[row] : self.ends[row + 1]])


def stack_conditions(conditions):
    """Conditions of single clips, tensors (C,) or what a WordTable gives -> those of a batch."""
    return torch.stack(conditions) if torch.is_tensor(conditions[0]) else TextCondition.stack(conditions)


def pooled(cond):
    """The pooled features (B, C) of a condition of either kind."""
    return cond.pooled if isinstance(cond, TextCondition) else cond


def drop(cond, kept):
    """A condition, zeroed where ``kept`` (B, 1) bool is false; of a TextCondition pooled feature and
    words."""
    if torch.is_tensor(cond):
        return cond * kept
    return TextCondition(cond.pooled * kept, cond.words, cond.mask & kept)


def concatenate(one, other):
    """Two conditions of the same kind, one after the other."""
    if torch.is_tensor(one):
        return torch.cat([one, other])
    return TextCondition(*map(torch.cat, zip(one.parts, other.parts)))
