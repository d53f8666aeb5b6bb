"""Data sets: how clips and captions are read, and the two views of them that training uses.

A data set is a folder in HumanML3D's layout: new_joint_vecs/, texts/, train.txt, val.txt, test.txt, Mean.npy
and Std.npy. Shapes: T frames, D essential features (67 for 22 joints), B clips.
"""
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from utils.arrays import load_array
from utils.data.packing import open_packed, read_captions_file
from utils.errors import MissingFile, UserError, one_line, say
from utils.files import plain_id, read_json, read_text
from utils.lengths import MAX_LENGTH
from utils.text_condition import stack_conditions
from utils.training import distributed

TAG_RATE = 20  # captions' tags are seconds; the published rule multiplies by 20 whatever the frame rate


class Caption(NamedTuple):
    """A sentence and its ``word/POS`` tokens."""

    text: str
    tokens: tuple


class TextClip(NamedTuple):
    """A text-to-motion clip: frames start..end of the store's motion number ``clip``, with its captions."""

    clip: int
    start: int
    end: int
    captions: tuple


def read_split(spec, split):
    """The ids of a split, in file order. UserError without any, and for ids that lead out of the folder."""
    path = Path(spec.root) / f"{split}.txt"
    if not path.is_file():
        raise MissingFile(f"{path} is missing: it lists the ids of the split '{split}', one per line")
    ids = read_text(path).split()
    if not ids:
        raise UserError(f"{path} is empty")
    for name in ids:
        if not plain_id(name):
            raise UserError(f"{path}: '{name[:60]}' cannot be the id of a clip: an id names files within the "
                            "data set's folders")
    return ids


def load_statistics(spec):
    """Mean and std (D,) float32 of the essential features. UserError if missing, not finite, or too short."""
    out = []
    for file in ("Mean.npy", "Std.npy"):
        path = Path(spec.root) / file
        if not path.is_file():
            raise MissingFile(f"{path} is missing; it has the statistics of the features")
        value = np.atleast_1d(load_array(path).astype(np.float32))[: spec.feature_dim]
        if value.shape != (spec.feature_dim,) or not np.isfinite(value).all():
            raise UserError(f"{path} must have {spec.feature_dim} or more values, all finite")
        out.append(value)
    if (out[1] <= 0).any():
        raise UserError(f"{Path(spec.root) / 'Std.npy'} has values of 0 or less")
    return out[0], out[1]


def short_label(label, separator):
    """A label without what follows ``separator``; all of it, if that is ""."""
    return label.split(separator)[0].strip() if separator else label


def read_labels(spec):
    """{id: [action]} of labels.json ({id: {"actions": [...]}}); None without one, UserError if damaged."""
    path = Path(spec.root) / "labels.json"
    if not path.is_file():
        return None
    labels = read_json(path)
    for name, label in labels.items():
        actions = label.get("actions") if isinstance(label, dict) else None
        if not isinstance(actions, list) or not all(isinstance(action, (str, int)) for action in actions):
            raise UserError(f'{path} is not of the form {{ID: {{"actions": [NAME, ...]}}}}, first at the id '
                            f"'{name[:60]}'")
    return {name: list(map(str, label["actions"])) for name, label in labels.items()}


def statistics_of(checkpoint):
    """Mean and std (D,) that the network of a checkpoint was trained with; None in released files."""
    return tuple(checkpoint[key].numpy() for key in ("mean", "std")) if "mean" in checkpoint else None


class MotionStore:
    """All usable clips of a split in one memory-mapped array (utils/data/packing.py): ``data`` (sum of T, D)
    un-normalised; clip i is rows offsets[i]:offsets[i+1]. ``skipped``: why each other id of the split is not
    in it. ``columns``: features to keep of each frame; None = the essential ones. ``statistics``: mean and
    std (D,) by which a network wants them normalised; None = those of the data set."""

    def __init__(self, spec, split, num_workers=0, columns=None, statistics=None):
        self.spec, self.split, self.columns = spec, split, columns or spec.feature_dim
        self.given, (self.mean, self.std) = statistics, statistics or load_statistics(spec)
        names = read_split(spec, split)
        packed = open_packed(spec.root, split, names, self.columns, num_workers)
        self.skipped = {name: f"{name}.npy {reason}" for name, reason in zip(names, packed.reasons) if reason}
        used = [place for place, reason in enumerate(packed.reasons) if not reason]
        if not used:
            raise UserError(f"no clip of {spec.root}/{split}.txt can be used; the first: "
                            f"{next(iter(self.skipped.values()))}")
        self.ids, self.texts = [names[place] for place in used], [packed.texts[place] for place in used]
        self.lengths = np.array(packed.lengths)[used]
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        self.data = packed.data
        report_skipped(self.skipped, f"{spec.name}/{split}")

    def __reduce__(self):  # workers that are not forked map the file again
        return MotionStore, (self.spec, self.split, 0, self.columns, self.given)

    def captions(self, clip):
        """As ``read_captions``."""
        text, reason = self.texts[clip]
        return ([], reason) if reason else parse_captions(text)

    def frames(self, clip, start, end):
        """Un-normalised features (end - start, D or columns) of a clip."""
        return self.data[self.offsets[clip] + start : self.offsets[clip] + end]

    def normalised(self, clip, start, end):
        return (self.frames(clip, start, end)[:, : len(self.mean)] - self.mean) / self.std


def report_skipped(skipped, what, most=5):
    """Say on stderr which clips are left out, and why."""
    if skipped:
        shown = "; ".join(one_line(f"{name}: {reason}", 150) for name, reason in list(skipped.items())[:most])
        more = f"; and {len(skipped) - most} more" if len(skipped) > most else ""
        say(one_line(f"warning: {len(skipped)} clips of {what} are left out: {shown}{more}"))


def parse_caption(line):
    """``caption#word/POS ...#start#end`` -> Caption, (start, end) in seconds; missing or nan tags are 0.
    ValueError for tags that are no numbers, or infinite."""
    parts = line.strip().split("#")
    tokens = tuple(parts[1].split()) if len(parts) > 1 else ()
    tags = [float(field or 0) for field in (parts[2:4] + ["0", "0"])[:2]]
    if np.isinf(tags).any():
        raise ValueError("it has infinite times")
    return Caption(parts[0].strip(), tokens), tuple(0.0 if np.isnan(value) else value for value in tags)


def parse_captions(text):
    """[(Caption, (start, end))] in the content of a text file, and None; or an empty list and the reason."""
    try:
        captions = [parse_caption(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        return [], f"has a text file that cannot be read ({error})"
    captions = [item for item in captions if item[0].text]
    return captions, None if captions else "has no caption"


def read_captions(path):
    """[(Caption, (start, end))] of a text file, and None; or an empty list and the reason."""
    text, reason = read_captions_file(path)
    return ([], reason) if reason else parse_captions(text)


def text_clips(store):
    """The text-to-motion clips of a store, [TextClip], and {id: why left out}, by the published rules: clips
    of min..max frames; a caption with start and end tags is a clip of its own, under the same length rule."""
    spec, entries, dropped = store.spec, [], {}
    for clip, name in enumerate(store.ids):
        length = int(store.lengths[clip])
        if not spec.min_frames <= length <= spec.max_frames:
            dropped[name] = f"{length} frames, outside {spec.min_frames}..{spec.max_frames}"
            continue
        captions, reason = store.captions(clip)
        found = _clips_of(clip, length, captions, spec)
        if not found:
            dropped[name] = reason or "its tagged segments are outside the length rule"
        entries += found
    if not entries:
        name, reason = next(iter(dropped.items()))
        raise UserError(f"{spec.name}/{store.split} has no clip for text-to-motion; the first left out, "
                        f"{name}: {reason}")
    return entries, dropped


def _clips_of(clip, length, captions, spec):
    segments, whole = [], []
    for caption, (start, end) in captions:
        if start == 0 and end == 0:
            whole.append(caption)
            continue
        first, last = int(start * TAG_RATE), min(int(end * TAG_RATE), length)
        if first >= 0 and spec.min_frames <= last - first <= spec.max_frames:
            segments.append(TextClip(clip, first, last, (caption,)))
    return segments + ([TextClip(clip, 0, length, tuple(whole))] if whole else [])


def by_length(entries):
    """TextClips sorted by length (a stable sort): the order of the published evaluation."""
    return sorted(entries, key=lambda entry: entry.end - entry.start)


def all_captions(entries):
    """The captions of all entries, in the order of TextMotionDataset's rows."""
    return [caption for entry in entries for caption in entry.captions]


def caption_groups(entries):
    """A group number per entry: entries that share a caption, directly or through others, are one group."""
    owner, parent = {}, list(range(len(entries)))

    def find(i):
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    for i, entry in enumerate(entries):
        for caption in entry.captions:
            parent[find(i)] = find(owner.setdefault(caption.text.lower(), i))
    return np.array([find(i) for i in range(len(entries))])


class WindowDataset(Dataset):
    """Every window of ``window`` frames of every clip that is long enough, once: normalised (window, D).
    (The published index arithmetic yields one window twice, and the last one of each clip never.)"""

    def __init__(self, store, window):
        self.store, self.window = store, window
        self.counts = np.maximum(store.lengths - window + 1, 0)
        self.ends = np.cumsum(self.counts)
        if self.ends[-1] == 0:
            raise UserError(f"no clip of {store.spec.name}/{store.split} has {window} frames; pass a smaller "
                            "--window_size")

    def __len__(self):
        return int(self.ends[-1])

    def locate(self, index):
        """(clip, first frame) of a window."""
        clip = int(np.searchsorted(self.ends, index, side="right"))
        return clip, int(index - self.ends[clip] + self.counts[clip])

    def clip_id(self, index):
        return self.store.ids[self.locate(index)[0]]

    def __getitem__(self, key):
        clip, start = self.locate(key[0])
        return torch.from_numpy(self.store.normalised(clip, start, start + self.window))


class TextMotionDataset(Dataset):
    """Clips with text. ``self[index, seed]`` draws a caption and a crop by the published rule: the length is
    rounded down to tokens, with probability 1/3 one token less, and the crop starts anywhere.

    features: conditions (number of captions, C), text features as a rule; ``caption_rows[i]``: rows of entry
    i.
    """

    def __init__(self, store, entries, features, max_length=MAX_LENGTH):
        self.store, self.entries, self.features = store, entries, features
        self.unit, self.max_length = store.spec.unit_length, max_length
        ends = np.cumsum([len(entry.captions) for entry in entries])
        self.caption_rows = [range(end - len(entry.captions), end) for entry, end in zip(entries, ends)]
        self.lengths = np.array([entry.end - entry.start for entry in entries])

    def __len__(self):
        return len(self.entries)

    def clip_id(self, index):
        return self.store.ids[self.entries[index].clip]

    def draw(self, index, seed):
        """(caption row, first frame, length in frames) of a draw."""
        rng = np.random.default_rng(seed)
        total = int(self.lengths[index])
        units = min(total, self.max_length) // self.unit
        if units > 1 and rng.integers(3) == 0:
            units -= 1
        length = units * self.unit
        start = self.entries[index].start + int(rng.integers(total - length + 1))
        return self.caption_rows[index][rng.integers(len(self.caption_rows[index]))], start, length

    def __getitem__(self, key):
        row, start, length = self.draw(*key)
        clip = self.entries[key[0]].clip
        motion = torch.from_numpy(self.store.normalised(clip, start, start + length))
        return {"motion": motion, "length": length, "cond": self.features[row], "index": key[0],
                "key": (clip, start, length)}


def load_text_motion(spec, split, conditions, num_workers=0, max_length=MAX_LENGTH, statistics=None):
    """The TextMotionDataset of a split, of the clips that ``conditions`` selects; ``statistics`` as for
    MotionStore."""
    store = MotionStore(spec, split, num_workers, statistics=statistics)
    entries, dropped = conditions.select(store, *text_clips(store))
    report_skipped(dropped, f"{spec.name}/{split} (text-to-motion)")
    return TextMotionDataset(store, entries, conditions.features(store, entries), max_length)


def collate_clips(samples):
    """motion (B, T, D), zero-padded; lengths (B,) in frames; cond (B, C); index (B,) of the entries; keys:
    [(clip, start, length)] of the crops."""
    motion = torch.nn.utils.rnn.pad_sequence([sample["motion"] for sample in samples], batch_first=True)
    lengths, index = (torch.tensor([sample[name] for sample in samples]) for name in ("length", "index"))
    return {"motion": motion, "lengths": lengths, "index": index,
            "cond": stack_conditions([sample["cond"] for sample in samples]),
            "keys": [sample["key"] for sample in samples]}


class SeededBatches(Sampler):
    """Batches of (index, seed) pairs, a pure function of (seed, epoch): a run can be repeated, and resumed at
    batch ``start``.

    lengths: batches have clips of similar length, for less padding (shuffled, then sorted within chunks).
    part: (rank, n) yields the rank-th of n equal parts of each batch. The batch size is cut to the number of
    samples, and to a multiple of n.
    """

    def __init__(self, size, batch_size, seed, lengths=None, chunk=8, part=(0, 1)):
        rank, parts = part
        if size < parts or batch_size < parts:
            raise UserError(f"cannot make batches of {batch_size} from {size} samples for {parts} "
                            "process(es)")
        own = min(batch_size, size) // parts
        self.batch_size, self.rows = own * parts, slice(own * rank, own * (rank + 1))
        self.size, self.seed, self.lengths, self.chunk = size, seed, lengths, chunk
        self.epoch = self.start = 0

    def __len__(self):
        return self.size // self.batch_size - self.start

    def batches(self, epoch):
        """[(index, ...)] of all batches of an epoch, of all processes, and the seed of each sample."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(self.size)
        seeds = rng.integers(2**62, size=self.size)
        if self.lengths is not None:
            chunk = self.chunk * self.batch_size
            order = np.concatenate([part[np.argsort(self.lengths[part], kind="stable")]
                                    for part in np.split(order, range(chunk, self.size, chunk))])
        batches = [order[i : i + self.batch_size]
                   for i in range(0, self.size - self.batch_size + 1, self.batch_size)]
        if self.lengths is not None:
            rng.shuffle(batches)
        return batches, seeds

    def clips(self, dataset, epoch, batch):
        """Ids of the clips in a batch, of all processes; those that it has several times once."""
        rows = self.batches(epoch)[0][batch]
        name = getattr(dataset, "clip_id", lambda row: f"sample {row}")
        return list(dict.fromkeys(map(name, rows)))

    def __iter__(self):
        batches, seeds = self.batches(self.epoch)
        for batch in batches[self.start :]:
            yield [(int(index), int(seeds[index])) for index in batch[self.rows]]


def make_loader(dataset, batch_size, seed, num_workers=0, lengths=None, collate_fn=None, whole=False):
    """A DataLoader over SeededBatches (``loader.batch_sampler``). Each process gets its own ``batch_size``
    samples of every batch, or, with ``whole``, the same batches as all others."""
    part = (0, 1) if whole else (distributed.rank(), distributed.size())
    sampler = SeededBatches(len(dataset), batch_size * part[1], seed, lengths, part=part)
    return DataLoader(dataset, batch_sampler=sampler, num_workers=num_workers, collate_fn=collate_fn,
                      persistent_workers=num_workers > 0, pin_memory=torch.cuda.is_available())
