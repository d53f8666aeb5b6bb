"""Time and memory of opening a data set: synthetic clips of HumanML3D's shape in a temporary folder.

    python -m benchmarks.data                  # 24,000 clips, 3.4 GB on the disk
    python -m benchmarks.data --clips 2000

The first opening packs the clips (utils/data/packing.py), the second maps the packed file. Each has a process
of its own.
"""
import json
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from utils.data.datasets import MotionStore, WindowDataset, make_loader, text_clips
from utils.data.specs import DatasetSpec
from utils.errors import run
from utils.options import make_parser, non_negative_int, positive_int

CAPTION = "a person walks forward and then turns to the left slowly"
LINE = f"{CAPTION}#{' '.join(f'{word}/NOUN' for word in CAPTION.split())}#0.0#0.0"


def make_clips(root, clips, columns=263, seed=0):
    """Write a data set of ``clips`` clips of 40 to 199 frames, three captions per clip."""
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


def memory_mb(process="self"):
    """{"private", "shared"}: MB of a process' own memory, and of file pages, which processes share; None
    except on Linux."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return None
    values = dict(line.split(":") for line in lines if line.startswith("Rss"))
    return {name: int(values[key].split()[0]) / 1024
            for name, key in (("private", "RssAnon"), ("shared", "RssFile"))}


def opening(root, workers=2):
    """Seconds until the clips of a data set are open, then until its captions are (wall time, and CPU time,
    which other work on the machine does not change), and the memory of this process before and after;
    ``workers``: also the memory of each loader worker after 200 batches of windows."""
    before, times = memory_mb(), [(time.perf_counter(), time.process_time())]
    spec = DatasetSpec("synthetic", str(root), "t2m", fps=20.0, min_frames=40, max_frames=199,
                       text_encoder="minilm")
    store = MotionStore(spec, "train", num_workers=4)
    times.append((time.perf_counter(), time.process_time()))
    entries, _ = text_clips(store)
    times.append((time.perf_counter(), time.process_time()))
    (clips, clips_cpu), (captions, captions_cpu) = np.diff(times, axis=0).tolist()
    result = {"clips": len(store.ids), "entries": len(entries), "clips_s": clips, "clips_cpu_s": clips_cpu,
              "captions_s": captions, "captions_cpu_s": captions_cpu, "memory_before_mb": before,
              "memory_mb": memory_mb()}
    if workers:
        batches = iter(make_loader(WindowDataset(store, 40), 256, 0, workers))
        for _, _ in zip(range(200), batches):
            pass
        result["worker_memory_mb"] = [memory_mb(worker.pid) for worker in batches._workers]
    return result


def measure(clips=24_000):
    """{"clips", "packed_mb", "first", "second"}: ``opening`` of a synthetic data set, twice."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "synthetic"
        make_clips(root, clips)
        results = []
        for workers in (0, 2):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                results.append(process.submit(opening, root, workers).result())
        size = sum(path.stat().st_size for path in (root / "packed").iterdir()) / 1e6
    return {"clips": clips, "packed_mb": size, "first": results[0], "second": results[1]}


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--clips", type=positive_int, default=24_000, help="clips of the data set")
    parser.add_argument("--root", help="open the data set in this folder, once, instead of making one")
    parser.add_argument("--workers", type=non_negative_int, default=0,
                        help="with --root: loader workers whose memory is measured")
    args = parser.parse_args()
    print(json.dumps(opening(args.root, args.workers) if args.root else measure(args.clips),
                     indent=None if args.root else 1))


if __name__ == "__main__":
    run(main)
