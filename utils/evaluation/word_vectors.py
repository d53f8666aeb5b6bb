"""Words as the released evaluators read them: GloVe vectors and part-of-speech classes (Guo et al., CVPR
2022).

A folder holds our_vab_data.npy (N, 300), our_vab_words.pkl (list of N words) and our_vab_idx.pkl (word ->
row). A sentence has 22 tokens: up to 20 words between ``sos`` and ``eos``, and padding.
"""
import pickle
from pathlib import Path

import numpy as np

from utils.arrays import load_array
from utils.errors import MissingFile, UserError
from utils.files import first_line

MAX_WORDS = 20
FILES = ("our_vab_data.npy", "our_vab_words.pkl", "our_vab_idx.pkl")
SOURCE = "glove.zip has them; the README of MARDM (and of MoMask) says where to download it"

POS_ENUMERATOR = {name: i for i, name in enumerate(
    "VERB NOUN DET ADP NUM AUX PRON ADJ ADV Loc_VIP Body_VIP Obj_VIP Act_VIP Desc_VIP OTHER".split())}
# Words that matter for motion have classes of their own, whatever their tag.
VIP_WORDS = {
    "Loc_VIP": "left right clockwise counterclockwise anticlockwise forward back backward up down straight "
               "curve",
    "Body_VIP": "arm chin foot feet face hand mouth leg waist eye knee shoulder thigh",
    "Obj_VIP": "stair dumbbell chair window floor car ball handrail baseball basketball",
    "Act_VIP": "walk run swing pick bring kick put squat throw hop dance jump turn stumble stop sit lift "
               "lower raise wash stand kneel stroll rub bend balance flap jog shuffle lean rotate spin "
               "spread climb",
    "Desc_VIP": "slowly carefully fast careful slow quickly happy angry sad happily angrily sadly",
}
VIP_CLASS = {word: name for name, words in VIP_WORDS.items() for word in words.split()}


class PlainUnpickler(pickle._Unpickler):  # the Python one: on a damaged size the C one takes all memory
    """Reads lists, dicts, strings and numbers, and refuses a file that asks for any class or function."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def load_plain_pickle(path):
    """A pickle of plain containers. UserError for a damaged one, or one that would run code."""
    try:
        with open(path, "rb") as file:
            return PlainUnpickler(file).load()
    except Exception as error:  # a flipped byte may end in any exception
        why = first_line(error)
        raise UserError(f"{path} is not a plain list or dict of words ({why}); {SOURCE}") from error


class WordVectorizer:
    """``vectorizer["walk/VERB"]`` -> vector (300,), one-hot class (15,). Unknown words are ``unk``/OTHER."""

    def __init__(self, folder):
        folder = Path(folder)
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            raise MissingFile(f"no {', '.join(missing)} in {folder}; {SOURCE}")
        self.vectors = read_vectors(folder / FILES[0])
        words, rows = load_plain_pickle(folder / FILES[1]), load_plain_pickle(folder / FILES[2])
        if not isinstance(rows, dict) or not isinstance(words, list) or not all(
                isinstance(word, str) for word in words):
            raise UserError(f"{folder}: {FILES[1]} must be a list of words and {FILES[2]} a dict; {SOURCE}")
        self.rows = {word: rows[word] for word in words if word in rows}
        absent = [word for word in ("unk", "sos", "eos") if word not in self.rows]
        if absent or not all(isinstance(row, int) and 0 <= row < len(self.vectors)
                             for row in self.rows.values()):
            reason = f"lack the word '{absent[0]}'" if absent else "point outside the vectors"
            raise UserError(f"the words in {folder} {reason}; {SOURCE}")

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, token):
        word, _, tag = token.rpartition("/")
        known = word in self.rows
        name = (VIP_CLASS.get(word) or tag) if known else "OTHER"
        one_hot = np.zeros(len(POS_ENUMERATOR), np.float32)
        one_hot[POS_ENUMERATOR.get(name, POS_ENUMERATOR["OTHER"])] = 1
        return self.vectors[self.rows[word if known else "unk"]], one_hot

    def sentence(self, tokens):
        """``word/POS`` tokens -> word_emb (22, 300), pos_onehot (22, 15), number of tokens before padding."""
        tokens = ["sos/OTHER", *list(tokens)[:MAX_WORDS], "eos/OTHER"]
        length = len(tokens)
        tokens += ["unk/OTHER"] * (MAX_WORDS + 2 - length)
        vectors, classes = zip(*(self[token] for token in tokens))
        return np.stack(vectors), np.stack(classes), length


def read_vectors(path):
    """(N, 300) float32. UserError for anything else."""
    try:
        vectors = load_array(path)
    except UserError as error:
        raise UserError(f"{error}; {SOURCE}") from error
    if vectors.ndim != 2 or vectors.shape[1] != 300 or not np.isfinite(vectors).all():
        raise UserError(f"{path} must be finite and of shape (words, 300), it has {vectors.shape}; {SOURCE}")
    return vectors.astype(np.float32)
