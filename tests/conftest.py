"""For all tests: where the golden data lies, and the rule that fills weights for it."""
import os
import shutil
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
# The second folder, beside the repository, has what must not be part of it (tests/golden/README.md).
GOLDEN = (ROOT / "tests" / "golden", ROOT.parent / "shared" / "golden")
for folder in (ROOT, ROOT / "tests"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

torch.set_num_threads(1)  # small models: more threads only wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")  # in the scripts that tests start, too


@pytest.fixture(autouse=True)
def a_test_stands_for_a_process():
    """Its locks end with it."""
    yield
    from utils.locks import release_all  # once the root is on the path

    release_all()


@pytest.fixture(scope="module", autouse=True)
def folders_of_a_module_go_with_it(request, tmp_path_factory):
    """What its fixtures wrote is removed with the module, unless a test of it failed: pytest itself would
    keep everything until the end, some GB of it."""
    root, failed = tmp_path_factory.getbasetemp(), request.session.testsfailed
    before = set(root.iterdir())
    yield
    if request.session.testsfailed == failed:
        for folder in set(root.iterdir()) - before:
            shutil.rmtree(folder, ignore_errors=True)


def golden(name):
    """Path, or opened .npz, of a file of golden data; skips the test, loudly, where no folder has it."""
    path = next((folder / name for folder in GOLDEN if (folder / name).exists()), None)
    if path is None:
        pytest.skip(f"golden data absent: {name} is in none of {', '.join(map(str, GOLDEN))}")
    return np.load(path, allow_pickle=False) if path.suffix == ".npz" else path


def name_fill(module):
    """Fill every parameter from a generator seeded with the CRC of its name (the rule of the golden
    README)."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            rng = np.random.RandomState(zlib.crc32(name.encode()) & 0xFFFFFFFF)
            value = rng.standard_normal(tuple(parameter.shape)).astype(np.float32)
            if parameter.dim() == 1:
                value = 1 + 0.1 * value if name.endswith("weight") else 0.1 * value
            elif parameter.dim() > 1:
                value = value / np.sqrt(np.prod(parameter.shape[1:]))
            parameter.copy_(torch.as_tensor(value))
    return module.eval()


def relative_error(ours, reference):
    """Largest absolute difference over the largest absolute value of the reference."""
    ours, reference = (np.asarray(a.detach() if torch.is_tensor(a) else a, dtype=np.float64)
                       for a in (ours, reference))
    assert ours.shape == reference.shape, (ours.shape, reference.shape)
    return np.abs(ours - reference).max() / np.abs(reference).max()


class FakeEncoder:
    """Stands in for a text encoder: features by ``encode`` (list of str -> (N, C)), and words that say
    nothing."""

    dim = 4

    def __init__(self, encode):
        self.encode = encode

    def word_states(self, texts):
        return [torch.zeros(1, self.dim).half() for _ in texts]

    def encode_words(self, texts):
        from utils.text_condition import WordTable  # once the root is on the path

        return WordTable(self.encode(texts), torch.cat(self.word_states(texts)), range(1, len(texts) + 1))
