"""Motions to files: joints (T, J, 3) -> mp4, gif, a png contact sheet, or a gallery of several clips.

The frames come from utils/drawing.py; here they are laid out, encoded and written as files.
"""
import multiprocessing
import re
import subprocess
import unicodedata
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np
from PIL import Image
from tqdm import tqdm

from utils.drawing import (
    AZIMUTH,
    LARGEST,
    PAPER,
    Scene,
    check_fps,
    check_joints,
    check_size,
    draw_label,
    draw_legend,
    draw_title,
    stamp,
)
from utils.errors import UserError
from utils.files import atomic_write

FOOTER, GAP = 28, 3             # of a gallery: pixels of its legend, and of a cell's edge
PAUSE, STRETCH = 0.3, 4 / 3     # seconds of rest after each clip; how far a gallery may outlast its longest


def render_video(joints, path, skeleton, fps, caption="", size=(480, 540), azimuth=AZIMUTH):
    """Draw a clip into an ``.mp4`` (H.264) or ``.gif`` file and return its path.

    joints: (T, J, 3), Y up. skeleton: a ``Skeleton`` with J joints. fps: frames per second. caption: text on
    top. size: (width, height) in pixels, made even for H.264. azimuth: degrees by which the camera stands to
    the left of straight ahead of the character of frame 0. The file appears only once it is complete. Raises
    UserError for joints, fps or a suffix that cannot be drawn, and where the file cannot be written."""
    path = Path(path)
    if path.suffix.lower() not in _CODECS:
        raise UserError(f"cannot write {path}: a video's name must end in .mp4 or .gif")
    size = _even(size)
    frames = render_frames(joints, skeleton, fps, caption, size, azimuth)
    with atomic_write(path) as temporary:
        _encode(frames, temporary, size, fps, _CODECS[path.suffix.lower()])
    return path


def _even(size):
    return tuple(int(side) + int(side) % 2 for side in size)


def render_frames(joints, skeleton, fps, caption="", size=(480, 540), azimuth=AZIMUTH):
    """Iterator over the T frames of a clip, uint8 (H, W, 3), RGB. Arguments as for ``render_video``. Faults
    in the joints are raised at the call, not at the first frame."""
    joints = check_joints(joints, skeleton)
    check_fps(fps)
    width, height = size
    check_size(size)
    title = draw_title(caption, width, height // 3)
    scene = Scene(joints, skeleton, fps, (width, height - len(title)), azimuth)
    legend = draw_legend()

    def draw(t):
        picture = scene.draw(t)
        if width >= 240:                                    # a thumbnail has no room for both
            stamp(picture, legend, 10, -10)
            stamp(picture, draw_label(f"{t / fps:.1f} s"), -10, -10)
        return np.concatenate([title, picture]) if len(title) else picture

    return map(draw, range(len(joints)))


def contact_sheet(clips, path, skeleton, frames_per_clip=7, fps=None, cell=(200, 250), azimuth=AZIMUTH):
    """A png with one row per clip: its caption, and below it the figure at evenly spaced times, side by side.

    clips: list of (joints (T, J, 3), caption). fps, where given, turns frame numbers into seconds. cell:
    (width, height) of one figure in pixels. Raises UserError as ``render_video`` does, and for an empty
    list."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise UserError(f"cannot write {path}: a contact sheet's name must end in .png")
    if not clips or frames_per_clip < 1:
        raise UserError("a contact sheet needs at least one clip and one frame per clip")
    check_size(cell)
    width = frames_per_clip * cell[0]
    rows = [np.full((34, width, 3), PAPER, np.uint8)]
    stamp(rows[0], draw_legend(), 12, 6)
    for joints, caption in clips:
        rows += [draw_title(caption, width, 4 * 22, align="left"),
                 _strip(check_joints(joints, skeleton), skeleton, frames_per_clip, fps, cell, azimuth)]
    with atomic_write(path) as temporary:
        Image.fromarray(np.concatenate(rows)).save(temporary, format="png")
    return path


def _strip(joints, skeleton, count, fps, cell, azimuth):
    """One row of a contact sheet, (cell height, count * cell width, 3). A clip of fewer frames leaves cells
    empty."""
    scene = Scene(joints, skeleton, fps or 20, cell, azimuth)
    cells = []
    for t in np.unique(np.linspace(0, len(joints) - 1, count).round().astype(int)):
        picture = scene.draw(t)
        stamp(picture, draw_label(f"{t / fps:.1f} s" if fps else f"frame {t}"), -8, -6)
        picture[:, -1] = PAPER
        cells.append(picture)
    cells += [np.full_like(cells[0], PAPER)] * (count - len(cells))
    return np.concatenate(cells, axis=1)


def gallery(clips, path, skeleton, fps, columns=3, size=(240, 280), seconds=8.0, rate=10):
    """Several clips side by side, each under its caption, in one ``.gif``, ``.webp`` or ``.mp4``, whose path
    is returned.

    clips: list of (joints (T, J, 3), caption), drawn row by row. fps: frames per second of the clips; rate:
    of the picture. size: (width, height) of a cell with its caption, in pixels. seconds: the rest of longer
    clips is left out.

    The picture lasts as long as the longest clip and a short pause, or up to a third longer where that leaves
    less standing still. Shorter clips are repeated as often as they fit, whole each time, and hold their last
    frame in between, so that all start again together. Raises UserError as ``render_video`` does, and for an
    empty list or a picture that gets too large."""
    path = Path(path)
    if path.suffix.lower() not in _GALLERY_WRITERS:
        raise UserError(f"cannot write {path}: a gallery's name must end in {', '.join(_GALLERY_WRITERS)}")
    if not clips or columns < 1:
        raise UserError("a gallery needs at least one clip and one column")
    for number in (fps, rate):
        check_fps(number)
    size = _even(size)
    check_size(size)
    columns = min(columns, len(clips))
    shape = (columns * size[0], -(-len(clips) // columns) * size[1] + FOOTER)
    if max(shape) > LARGEST:
        raise UserError(f"{len(clips)} clips in {columns} columns make a picture of {shape[0]} x {shape[1]} "
                        f"pixels; {LARGEST} is the most, so choose fewer clips or another number of columns")
    motions = [_resample(check_joints(joints, skeleton), fps, rate, seconds) for joints, _ in clips]
    frames = _gallery_frames(motions, [caption for _, caption in clips], skeleton, rate, columns, size)
    with atomic_write(path) as temporary:
        _GALLERY_WRITERS[path.suffix.lower()](frames, temporary, shape, rate)
    return path


def _resample(joints, fps, rate, seconds):
    """The first ``seconds`` of a clip at another frame rate, linear between its frames."""
    count = min(int((len(joints) - 1) * rate / fps + 1e-6) + 1, max(round(seconds * rate), 1))
    times = np.minimum(np.arange(count) * fps / rate, len(joints) - 1)
    before = np.minimum(times.astype(int), max(len(joints) - 2, 0))
    share = (times - before)[:, None, None]
    return joints[before] * (1 - share) + joints[np.minimum(before + 1, len(joints) - 1)] * share


def _period(lengths, pause):
    """How many frames a gallery of clips of these lengths has: the number that leaves the least standing
    still."""
    least = max(lengths) + pause

    def moving(period):
        return sum(frames * (period // (frames + pause)) for frames in lengths) / period

    return max(range(least, int(least * STRETCH) + 1), key=moving)


def _schedule(frames, period, pause):
    """Which frame of a clip each of the ``period`` pictures shows: as many whole showings as fit."""
    showings = period // (frames + pause)
    now = np.arange(period)
    start = -(-(now * showings // period) * period // showings)         # of this showing, rounded up
    return np.minimum(now - start, frames - 1)


def _gallery_frames(motions, captions, skeleton, rate, columns, size):
    """Iterator over the pictures, uint8 (H, W, 3). All captions get the height of the highest one, so that
    the cells line up."""
    width, height = size
    titles = [draw_title(caption, width, height // 3) for caption in captions]
    highest = max(len(title) for title in titles)
    titles = [_pad(title, highest) for title in titles]
    scenes = [Scene(joints, skeleton, rate, (width, height - highest), AZIMUTH) for joints in motions]
    pause = round(PAUSE * rate)
    period = _period([len(joints) for joints in motions], pause)
    schedules = [_schedule(len(joints), period, pause) for joints in motions]
    footer = np.full((FOOTER, columns * width, 3), PAPER, np.uint8)
    legend = draw_legend()
    stamp(footer, legend, (footer.shape[1] - legend.shape[1]) // 2, 5)
    empty = np.full((height, width, 3), PAPER, np.uint8)

    def draw(now):
        pictures = [_edged(scene.draw(schedule[now])) for scene, schedule in zip(scenes, schedules)]
        cells = [np.concatenate(parts) for parts in zip(titles, pictures)]
        cells += [empty] * (-len(cells) % columns)
        rows = [np.concatenate(cells[i:i + columns], axis=1) for i in range(0, len(cells), columns)]
        return np.concatenate([*rows, footer])

    return map(draw, range(period))


def _pad(title, height):
    """White rows above and below, (height, W, 3)."""
    above = (height - len(title)) // 2
    return np.pad(title, ((above, height - len(title) - above), (0, 0), (0, 0)), constant_values=255)


def _edged(picture):
    """The picture with a white edge, in place."""
    picture[:GAP] = picture[-GAP:] = picture[:, :GAP] = picture[:, -GAP:] = PAPER
    return picture


def render_many(jobs, workers=1):
    """Draw several clips, ``workers`` at a time in processes of their own, and return their paths in order.

    jobs: list of dicts, the keyword arguments of ``render_video``. With one worker or one job everything
    happens in this process, which is the better choice on two cores: ffmpeg already runs beside it. The
    processes are spawned, so a script that calls this needs its ``if __name__ == "__main__"``, and each of
    them imports that script anew. The first fault of a job is raised after the jobs that have started are
    finished."""
    workers = min(workers, len(jobs))
    if workers <= 1:
        return [render_video(**job) for job in tqdm(jobs, desc="videos", disable=len(jobs) < 2)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, cv2.setNumThreads, initargs=(1,)) as pool:
        futures = [pool.submit(_render_job, job) for job in jobs]
        try:
            for future in tqdm(as_completed(futures), total=len(futures), desc="videos"):
                future.result()
        except BrokenProcessPool as error:
            raise UserError("a process that draws videos was killed, perhaps since memory ran out; the clips "
                            "are there: --no_video leaves out their videos") from error
        finally:
            for future in futures:
                future.cancel()
    return [future.result() for future in futures]


def _render_job(job):
    return render_video(**job)


_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(10))}


def safe_filename(text, max_length=60):
    """A file name (without suffix) that every file system takes: lower case a-z, 0-9, ``_`` and ``-``, no
    dots, at most max_length characters, none of Windows' device names, never empty. Accents are dropped;
    different texts may get the same name, so number the files of a series."""
    ascii_text = unicodedata.normalize("NFKD", str(text)).encode("ascii", "ignore").decode().lower()
    name = re.sub(r"[^a-z0-9-]+", "_", ascii_text).strip("_-")[:max_length].strip("_-")
    name = name or "motion"[:max_length]
    return f"{name}_"[-max_length:] if name in _RESERVED else name


# Files.

_CODECS = {
    ".mp4": ["-c:v", "libx264", "-preset", "veryfast", "-crf", "20", "-pix_fmt", "yuv420p",
             "-movflags", "+faststart", "-f", "mp4"],
    ".gif": ["-vf", "split[a][b];[a]palettegen=stats_mode=diff[p];[b][p]paletteuse=dither=none", "-f", "gif"],
}


def _encode(frames, path, size, fps, codec):
    """Pipe raw frames into the ffmpeg that imageio-ffmpeg carries."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", "-f", "rawvideo",
               "-pix_fmt", "rgb24", "-s", f"{size[0]}x{size[1]}", "-r", f"{fps:g}", "-i", "-", *codec,
               f"file:{path}"]
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=pipe, stdout=nowhere, stderr=pipe)
    try:
        for frame in frames:
            process.stdin.write(frame.tobytes())
    except BrokenPipeError:
        pass                                    # ffmpeg has stopped; what it says on stderr is raised below
    except BaseException:
        process.kill()
        process.communicate()
        raise
    message = process.communicate()[1].decode(errors="replace").strip()
    if process.returncode:
        reason = message.splitlines()[-1] if message else "it gave no reason"
        raise UserError(f"ffmpeg could not write {path.name}: {reason}")


def _ffmpeg_writer(codec):
    return lambda frames, path, size, fps: _encode(frames, path, size, fps, codec)


def _write_webp(frames, path, size, fps):
    first, *others = map(Image.fromarray, frames)
    first.save(path, format="webp", save_all=True, append_images=others, duration=round(1000 / fps), loop=0,
               quality=60, method=4)


_GALLERY_WRITERS = {
    ".gif": _ffmpeg_writer(["-vf", "split[a][b];[a]palettegen=max_colors=64[p];[b][p]paletteuse=dither=none",
                            "-f", "gif"]),
    ".webp": _write_webp,
    ".mp4": _ffmpeg_writer(_CODECS[".mp4"]),
}
