"""Drawing: what is where in the picture, what the files hold, and what cannot be drawn."""
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from utils import visualize
from utils.errors import UserError
from utils.motion.skeletons import SKELETONS
from utils.visualize import contact_sheet, gallery, render_frames, render_many, render_video, safe_filename

T2M, KIT = SKELETONS["t2m"], SKELETONS["kit"]
FRONT = {"azimuth": 0.0}
BONE = {"leg": 0.42, "arm": 0.27, "trunk": 0.17}


def standing(skeleton, frames=6, unit=1.0):
    """(frames, J, 3): a body at rest with its feet at y = 0, built from the skeleton's own axes.
    t2m faces +Z, kit -Z."""
    joints = np.zeros((skeleton.num_joints, 3))
    for parent, joint in skeleton.bones:
        chain = next(chain for chain in skeleton.chains if joint in chain[1:])
        leg = set(chain) & {*skeleton.left_feet, *skeleton.right_feet}
        length = BONE["leg" if leg else "trunk" if skeleton.side(joint) == "centre" else "arm"]
        sideways = abs(skeleton.raw_offsets[joint][0]) > 0.5
        length = 0.13 if sideways else length
        joints[joint] = joints[parent] + length * np.asarray(skeleton.raw_offsets[joint])
    joints[:, 1] -= joints[:, 1].min()
    return np.repeat(joints[None], frames, axis=0) * unit


def walking(skeleton, frames, unit=1.0, speed=0.06):
    """The same body, gliding along +Z by ``speed`` a frame."""
    joints = standing(skeleton, frames, unit)
    joints[..., 2] += unit * speed * np.arange(frames)[:, None]
    return joints


def coloured(picture, side):
    """Where the picture has about the hue of a side's limbs, (H, W) bool, without the legend."""
    picture = picture.astype(int)
    red, blue = picture[..., 0], picture[..., 2]
    mask = blue - red > 60 if side == "left" else red - blue > 100
    mask[-45:, :120] = False
    return mask


def middle_of(mask):
    assert mask.sum() > 100, "nothing of that colour is drawn"
    rows, columns = np.nonzero(mask)
    return columns.mean(), rows.mean()


@pytest.mark.parametrize("skeleton, unit", [(T2M, 1.0), (KIT, 1.0), (KIT, 1000.0)])
def test_left_limbs_are_blue_and_on_the_viewers_right(skeleton, unit):
    picture = next(render_frames(standing(skeleton, unit=unit), skeleton, 20, size=(320, 320), **FRONT))
    left, right = middle_of(coloured(picture, "left")), middle_of(coloured(picture, "right"))
    assert left[0] > 165 and right[0] < 155
    assert abs(left[1] - right[1]) < 5                                  # a symmetric body
    behind = next(render_frames(standing(skeleton, unit=unit), skeleton, 20, size=(320, 320), azimuth=180.0))
    assert middle_of(coloured(behind, "left"))[0] < middle_of(coloured(behind, "right"))[0]


def test_camera_stands_before_the_character_whatever_its_heading():
    joints = standing(T2M)
    turned = joints[..., [2, 1, 0]] * np.array([1.0, 1.0, -1.0])        # faces +X
    for heading in (joints, turned):
        picture = next(render_frames(heading, T2M, 20, size=(320, 320), **FRONT))
        assert middle_of(coloured(picture, "left"))[0] > middle_of(coloured(picture, "right"))[0]


def test_raised_left_arm_is_drawn_where_it_is():
    joints = standing(T2M)
    joints[:, 18] = joints[:, 16] + [0.05, 0.26, 0.0]
    joints[:, 20] = joints[:, 18] + [0.05, 0.26, 0.0]
    picture = next(render_frames(joints, T2M, 20, size=(320, 320), **FRONT))
    _, top_left = (np.nonzero(coloured(picture, side))[0].min() for side in ("right", "left"))
    top_right = np.nonzero(coloured(picture, "right"))[0].min()
    assert top_left < top_right - 30
    assert np.nonzero(coloured(picture, "left")[:top_right - 5])[1].min() > 160


def test_scale_of_the_joints_does_not_change_the_picture():
    small, large = (next(render_frames(walking(KIT, 5, unit), KIT, 12.5)) for unit in (1.0, 1000.0))
    assert np.abs(small.astype(int) - large).mean() < 0.1


def test_figure_stays_in_view_and_the_floor_scrolls():
    frames = list(render_frames(walking(T2M, 60), T2M, 20, size=(320, 320)))
    x = [middle_of(coloured(frame, "left"))[0] for frame in frames]
    assert np.ptp(x) < 20                                               # 3.5 m of walking
    corner = [frame[-100:-50, -60:].astype(int) for frame in frames[:8]]
    assert all(np.abs(a - b).max() > 10 for a, b in zip(corner[:-1], corner[1:]))


def test_a_motion_that_spreads_out_still_fits():
    joints = standing(T2M)
    joints[:, [18, 20]] += [2.0, 0.3, 0.0]
    joints[:, [19, 21]] -= [2.0, -0.3, 0.0]
    picture = next(render_frames(joints, T2M, 20, size=(320, 320), **FRONT))
    mask = coloured(picture, "left") | coloured(picture, "right")
    assert not mask[:, :3].any() and not mask[:, -3:].any() and mask[:, 3:60].any()


def test_feet_stand_on_the_floor_and_a_floating_clip_floats():
    """The shadow touches the feet of a standing body; one that floats by 0.2 m is higher up."""
    stands, floats = standing(T2M), standing(T2M) + np.array([0.0, 0.2, 0.0])
    far_away = standing(T2M) + np.array([5.0, 7.0, -3.0])
    low, high, far = (next(render_frames(joints, T2M, 20, size=(320, 320), **FRONT))
                      for joints in (stands, floats, far_away))
    lowest = [np.nonzero(coloured(picture, "left"))[0].max() for picture in (low, high)]
    assert lowest[1] < lowest[0] - 10
    assert np.nonzero(coloured(far, "left"))[0].max() == pytest.approx(lowest[0], abs=2)


@pytest.mark.parametrize("caption", [
    "", "a person walks", "walks " * 200, "x" * 500, "\u8d70\u308b \U0001f642 \u00fc \ud800\x00\n\tnext",
    "\u0634\u062e\u0635 \u064a\u0645\u0634\u064a",
])
def test_captions_of_every_kind_keep_the_size(caption):
    frames = list(render_frames(standing(T2M, 2), T2M, 20, caption, size=(240, 300)))
    assert len(frames) == 2 and frames[0].shape == (300, 240, 3) and frames[0].dtype == np.uint8


def test_caption_is_on_top_wrapped_and_inside():
    plain, titled = (next(render_frames(standing(T2M, 1), T2M, 20, caption, size=(320, 400)))
                     for caption in ("", "a person walks ahead slowly and then turns to the left and waves"))
    dark = (titled[:60].max(axis=-1) < 100)
    rows = np.nonzero(dark.any(axis=1))[0]
    assert (plain[:60].max(axis=-1) >= 100).all() and dark.any()
    assert (np.diff(rows) > 3).sum() == 1                               # two lines
    assert not dark[:, :8].any() and not dark[:, -8:].any()


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_video_has_every_frame_at_its_rate(tmp_path, suffix):
    path = tmp_path / f"new folder/walk: 1{suffix}"
    assert render_video(walking(KIT, 25), path, KIT, 12.5, "a walk", size=(241, 260)) == path
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    frames = [np.frombuffer(frame, np.uint8).reshape(260, 242, 3) for frame in reader]
    assert len(frames) == 25 and meta["fps"] == pytest.approx(12.5)
    drawn = list(render_frames(walking(KIT, 25), KIT, 12.5, "a walk", size=(242, 260)))
    assert np.abs(frames[12].astype(int) - drawn[12]).mean() < 6        # lossy, but the same picture
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"old")
    monkeypatch.setitem(visualize._CODECS, ".mp4", ["-c:v", "no_such_codec", "-f", "mp4"])
    with pytest.raises(UserError, match="ffmpeg could not write"):
        render_video(standing(T2M), path, T2M, 20)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_contact_sheet(tmp_path):
    clips = [(walking(T2M, 30), "a walk"), (standing(T2M, 1), "one frame only")]
    path = contact_sheet(clips, tmp_path / "sheet.png", T2M, frames_per_clip=6, fps=20, cell=(130, 160))
    sheet = np.asarray(Image.open(path))
    assert sheet.shape[1] == 6 * 130 and sheet.shape[0] > 2 * 160
    first = sheet[-160 * 2 - 37:][:160]
    assert all(coloured(first[:, 130 * i:130 * (i + 1)], "left").any() for i in range(6))
    assert coloured(sheet[-160:, :130], "left").any() and (sheet[-160:, 130:] == 255).all()


CELL = (160, 200)


def read_gif(path):
    """The frames of a .gif, (N, H, W, 3), and how long each is shown, in milliseconds."""
    frames, durations = [], []
    with Image.open(path) as gif:
        assert gif.info["loop"] == 0                                    # for ever
        for number in range(gif.n_frames):
            gif.seek(number)
            frames.append(np.asarray(gif.convert("RGB")).astype(int))
            durations.append(gif.info["duration"])
    return np.stack(frames), durations


def cell(frames, row, column):
    """One cell of a gallery in all its frames, with the caption."""
    return frames[:, row * CELL[1]:(row + 1) * CELL[1], column * CELL[0]:(column + 1) * CELL[0]]


def test_gallery_is_a_grid_of_captioned_clips_that_all_move(tmp_path):
    captions = ["a walk", "a long caption that needs more than one line", "third", "fourth", "fifth"]
    clips = [(walking(T2M, 20), caption) for caption in captions]
    path = gallery(clips, tmp_path / "new" / "five.gif", T2M, 20, columns=3, size=CELL)
    assert [file.name for file in path.parent.iterdir()] == ["five.gif"]
    frames, _ = read_gif(path)
    assert frames.shape[1:] == (2 * CELL[1] + visualize.FOOTER, 3 * CELL[0], 3)
    ink = []
    for number in range(5):
        clip = cell(frames, *divmod(number, 3))
        title, figure = clip[:, :66], clip[:, 66:]                      # a third of the cell at most
        dark = title[0].max(axis=-1) < 100
        ink.append(dark.sum())
        assert dark.any() and not dark[:, :6].any() and not dark[:, -6:].any()
        assert coloured(figure[0], "left").any() and coloured(figure[0], "right").any()
        assert (np.abs(np.diff(figure[:8], axis=0)).max(axis=(1, 2, 3)) > 40).all()
        assert (title == title[0]).all()
    assert ink[1] == max(ink) and len(set(ink)) == 5                    # each its own caption
    assert (cell(frames, 1, 2) > 250).all()                             # the sixth cell is empty
    footer = frames[0][-visualize.FOOTER:]
    blue, orange = footer[..., 2] - footer[..., 0] > 60, footer[..., 0] - footer[..., 2] > 100
    assert middle_of(blue)[0] < middle_of(orange)[0]                    # the legend: left, right


@pytest.mark.parametrize("fps, frames, pictures", [(20, 41, 21), (12.5, 26, 21), (10, 21, 21), (5, 11, 21)])
def test_gallery_keeps_the_speed_of_the_clips(tmp_path, fps, frames, pictures):
    path = gallery([(walking(T2M, frames), "two seconds")], tmp_path / "one.gif", T2M, fps, size=CELL)
    shown, durations = read_gif(path)
    assert len(shown) == pictures + 3 and set(durations) == {100}       # 0.3 s of rest


def test_gallery_resamples_between_frames():
    joints = walking(T2M, 11)
    assert np.allclose(visualize._resample(joints, 10, 10, 8), joints)
    assert np.allclose(visualize._resample(joints, 20, 10, 8), joints[::2])
    finer = visualize._resample(joints, 10, 20, 8)
    assert np.allclose(finer[::2], joints) and np.allclose(finer[1::2], (joints[:-1] + joints[1:]) / 2)
    assert len(visualize._resample(joints, 10, 10, 0.5)) == 5
    assert np.allclose(visualize._resample(joints[:1], 20, 10, 8), joints[:1])


@pytest.mark.parametrize("frames, period, showings", [
    (20, 26, 1), (20, 51, 1), (20, 52, 2), (1, 70, 10), (23, 88, 3),
])
def test_shorter_clips_are_repeated_whole(frames, period, showings):
    shown = visualize._schedule(frames, period, 6)
    starts = np.flatnonzero(np.diff(shown, prepend=1) < 0) if frames > 1 else np.arange(0, period, 7)
    assert len(shown) == period and len(starts) == showings and starts[0] == 0
    for part in np.split(shown, starts[1:]):
        assert len(part) >= frames + 6 and (part == np.minimum(np.arange(len(part)), frames - 1)).all()


@pytest.mark.parametrize("lengths, period", [
    ([64], 67), ([64, 64], 67), ([64, 40, 40], 86), ([64, 64, 64, 40], 67), ([1], 4), ([60, 30], 66),
])
def test_length_of_a_gallery(lengths, period):
    assert visualize._period(lengths, 3) == period


def test_gallery_of_different_lengths_starts_again_together(tmp_path):
    clips = [(walking(T2M, 60), "long"), (walking(T2M, 20), "short")]
    frames, _ = read_gif(gallery(clips, tmp_path / "two.gif", T2M, 20, columns=2, size=CELL))
    long, short = cell(frames, 0, 0), cell(frames, 0, 1)
    assert len(frames) == 3 * (10 + 3)                                  # rather than 30 + 3
    again = [t for t in range(1, 39) if np.abs(short[t] - short[0]).mean() < 1]
    assert again == [13, 26] and all(np.abs(frame - long[0]).max() > 40 for frame in long[1:])
    assert all(np.abs(frame - short[-1]).mean() < 1 for frame in short[-4:])


def test_gallery_cuts_long_clips(tmp_path):
    clips = [(walking(T2M, 60), "")]
    frames, _ = read_gif(gallery(clips, tmp_path / "x.gif", T2M, 20, size=CELL, seconds=1.5))
    assert len(frames) == 15 + 3


@pytest.mark.parametrize("suffix", [".mp4", ".webp"])
def test_gallery_in_other_formats(tmp_path, suffix):
    clips = [(walking(T2M, 20), "one"), (walking(T2M, 20), "two")]
    path = gallery(clips, tmp_path / f"two{suffix}", T2M, 20, columns=2, size=CELL)
    frames, _ = read_gif(gallery(clips, tmp_path / "two.gif", T2M, 20, columns=2, size=CELL))
    height, width = frames.shape[1:3]
    if suffix == ".mp4":
        reader = imageio_ffmpeg.read_frames(str(path))
        assert next(reader)["fps"] == pytest.approx(10)
        same = [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]
    else:
        with Image.open(path) as picture:
            same = []
            for number in range(picture.n_frames):
                picture.seek(number)
                shown = np.asarray(picture.convert("RGB"))
                same += [shown] * (picture.info["duration"] // 100)     # equal frames are joined
            assert picture.info["loop"] == 0
    assert len(same) == len(frames) and np.abs(same[5].astype(int) - frames[5]).mean() < 6


MANY = [(standing(T2M), "")] * 30


@pytest.mark.parametrize("change, message", [
    ({"clips": []}, "at least one clip and one column"),
    ({"columns": 0}, "at least one clip and one column"),
    ({"clips": [(standing(T2M), "good"), (np.full((5, 22, 3), np.nan), "bad")]}, "not finite"),
    ({"skeleton": KIT}, r"must have shape \(frames, 21, 3\)"),
    ({"fps": 0}, "fps must be"),
    ({"path": "gallery.png"}, "must end in .gif, .webp, .mp4"),
    ({"size": (20, 200)}, "128 to 4096 pixels"),
    ({"clips": MANY, "columns": 30}, "30 clips in 30 columns make a picture of 7200 x 308"),
    ({"clips": MANY, "columns": 1}, "make a picture of 240 x 8428 pixels; 4096 is the most"),
])
def test_what_makes_no_gallery_is_one_line(tmp_path, change, message):
    arguments = {"clips": [(standing(T2M), "stands")], "path": "x.gif", "skeleton": T2M, "fps": 20} | change
    with pytest.raises(UserError, match=message) as caught:
        gallery(**arguments | {"path": tmp_path / arguments["path"]})
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_many_in_processes_of_their_own(tmp_path):
    shared = {"skeleton": T2M, "fps": 20, "size": (128, 128)}
    jobs = [{"joints": standing(T2M, 3), "path": tmp_path / f"{i}.mp4", **shared} for i in range(2)]
    assert render_many(jobs) == [tmp_path / "0.mp4", tmp_path / "1.mp4"] and render_many([], workers=4) == []
    alone = jobs[0]["path"].read_bytes()
    jobs[0]["path"].unlink()
    jobs[1]["joints"] = np.full((3, 22, 3), np.nan)
    with pytest.raises(UserError, match="not finite"):
        render_many(jobs, workers=2)
    assert jobs[0]["path"].read_bytes() == alone                # the fault of one does not spoil the other


@pytest.mark.parametrize("change, message", [
    ({"joints": np.zeros((0, 22, 3))}, "no frames"),
    ({"joints": np.zeros((5, 21, 3))},
     r"must have shape \(frames, 22, 3\) for the t2m skeleton, got \(5, 21, 3\)"),
    ({"joints": np.zeros((22, 3))}, "must have shape"),
    ({"joints": "walk"}, "must be an array of numbers"),
    ({"joints": np.zeros((5, 22, 3))}, "no body to draw"),
    ({"joints": np.insert(standing(T2M, 4), 3, np.inf, axis=0)}, "in 1 of 5 frames, first in frame 3"),
    ({"fps": 0}, "fps must be"),
    ({"fps": float("nan")}, "fps must be"),
    ({"path": "clip.avi"}, "must end in .mp4 or .gif"),
    ({"size": (20, 20)}, "128 to 4096 pixels"),
])
def test_what_cannot_be_drawn_is_one_line(tmp_path, change, message):
    arguments = {"joints": standing(T2M, 5), "path": "clip.mp4", "skeleton": T2M, "fps": 20} | change
    with pytest.raises(UserError, match=message) as caught:
        render_video(**arguments | {"path": tmp_path / arguments["path"]})
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        render_video(standing(T2M), tmp_path / "file" / "clip.mp4", T2M, 20)


@pytest.mark.parametrize("text, name", [
    ("A person walks.", "a_person_walks"), ("a/b\\c:d*e?f\"g<h>i|j", "a_b_c_d_e_f_g_h_i_j"),
    ("\u00dcber caf\u00e9", "uber_cafe"), ("CON", "con_"), ("nul.txt", "nul_txt"), ("COM1", "com1_"),
    ("com\u00b9", "com1_"), ("console", "console"), ("", "motion"), ("...", "motion"),
    ("\u8d70\u308b", "motion"),
    ("../../etc", "etc"), ("-rf", "rf"), ("trailing. ", "trailing"),
])
def test_safe_filename(text, name):
    assert safe_filename(text) == name


@pytest.mark.parametrize("length", [3, 8, 60])
def test_safe_filename_is_never_too_long_or_open_ended(length):
    for text in ("walk forward " * 20, "x" * 300, "con", "aux " * 9, ""):
        name = safe_filename(text, length)
        assert 0 < len(name) <= length and name.isascii() and name == name.lower()
        assert not name.startswith(("-", ".")) and not name.endswith(("-", ".", " "))
        assert name not in visualize._RESERVED
