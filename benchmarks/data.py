"""Time and memory of opening a data set: synthetic clips of HumanML3D's shape in a temporary folder.

    python -m benchmarks.data                  # 24,000 clips, 3.4 GB on the disk
    python -m benchmarks.data --clips 2000

The first opening packs the clips (utils/data/packing.py), the second maps the packed file. Every opening is a
process of its own.
"""
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from utils.data.datasets import MotionStore, WindowDataset, make_loader, text_clips
from utils.data.specs import DatasetSpec
from utils.errors import run
from utils.options import make_parser, non_negative_int, positive_int

CAPTION = "a person walks forward and then turns to the left slowly"
LINE = f"{CAPTION}#{' '.join(f'{word}/NOUN' for word in CAPTION.split())}#0.0#0.0"


def make_clips(root, clips, columns=263, seed=0):
    """A data set of ``clips`` clips of 40 to 199 frames, three captions each. Returns its DatasetSpec."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((400, columns)).astype(np.float32)
    for folder in ("new_joint_vecs", "texts"):
        (root / folder).mkdir(parents=True)
    for clip in range(clips):
        start, frames = rng.integers(200), rng.integers(40, 200)
        np.save(root / "new_joint_vecs" / f"{clip:06d}.npy", noise[start : start + frames])
        (root / "texts" / f"{clip:06d}.txt").write_text("".join(f"{number} {LINE}\n" for number in range(3)))
    (root / "train.txt").write_text("\n".join(f"{clip:06d}" for clip in range(clips)))
    np.save(root / "Mean.npy", np.zeros(columns, np.float32))
    np.save(root / "Std.npy", np.ones(columns, np.float32))
    return spec_of(root)


def spec_of(root):
    return DatasetSpec("synthetic", str(root), "t2m", fps=20.0, min_frames=40, max_frames=199,
                       text_encoder="minilm")


def memory_mb(process="self"):
    """{"private", "shared"}: MB of a process that belong to it alone, and pages of files, which all share.
    None but on Linux."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return None
    values = {line.split(":")[0]: line.split()[1] for line in lines
              if line.startswith(("RssAnon", "RssFile"))}
    return {"private": int(values["RssAnon"]) / 1024, "shared": int(values["RssFile"]) / 1024}


def clocks():
    return time.perf_counter(), time.process_time()


def opening(root, workers=2):
    """Seconds until the clips of a data set are there, then until their captions are (on the clock, and of
    the processor, which other work on the machine does not change), and the memory of this process before and
    after; ``workers``: memory of each loader's worker after 200 batches of windows."""
    before, times = memory_mb(), [clocks()]
    store = MotionStore(spec_of(root), "train", num_workers=4)
    times.append(clocks())
    entries, _ = text_clips(store)
    times.append(clocks())
    (clips, clips_cpu), (captions, captions_cpu) = np.diff(times, axis=0).tolist()
    result = {"clips": len(store.ids), "entries": len(entries), "clips_s": clips, "clips_cpu_s": clips_cpu,
              "captions_s": captions, "captions_cpu_s": captions_cpu, "memory_before_mb": before,
              "memory_mb": memory_mb()}
    if workers:
        loader = make_loader(WindowDataset(store, 40), 256, 0, workers)
        batches = iter(loader)
        for _, _ in zip(range(200), batches):
            pass
        result["worker_memory_mb"] = [memory_mb(worker.pid) for worker in batches._workers]
    return result


def in_a_process(root, workers):
    """``opening`` in a process of its own."""
    command = [sys.executable, __file__, "--root", str(root), "--workers", str(workers)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(clips=24_000, folder=None):
    """{"clips", "packed_mb", "first", "second"}: ``opening`` of a synthetic data set twice; it is made in
    ``folder``."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        root = Path(temporary) / "synthetic"
        make_clips(root, clips)
        first, second = in_a_process(root, 0), in_a_process(root, 2)
        size = sum(path.stat().st_size for path in (root / "packed").iterdir()) / 1e6
    return {"clips": clips, "packed_mb": size, "first": first, "second": second}


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--clips", type=positive_int, default=24_000, help="clips of the data set")
    parser.add_argument("--root", default=None, help="open the data set that lies there, once, instead of "
                                                     "making one")
    parser.add_argument("--workers", type=non_negative_int, default=0,
                        help="with --root: workers of a loader to look at")
    args = parser.parse_args()
    print(json.dumps(opening(args.root, args.workers) if args.root else measure(args.clips),
                     indent=None if args.root else 1))


if __name__ == "__main__":
    run(main)
