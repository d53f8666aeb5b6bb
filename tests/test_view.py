"""The page of scripts/view.py: clips come back from its data, prompts stay text, columns are right, mistakes
are one line; and, where there is a Chromium, it plays, scrubs and turns without an error or a request."""
import base64
import json
import re
import shutil
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import walk

from models.AE import AE_models
from models.pipeline import codes_of
from scripts import view
from utils.demo.dataset import make_clip
from utils.errors import run
from utils.evaluation.metrics import foot_skating
from utils.facts import read_facts, write_facts
from utils.motion.features import features_to_joints, joints_to_features
from utils.motion.feet import foot_contacts
from utils.motion.skeletons import SKELETONS
from utils.viewer.page import encode, read_clip

T2M, KIT = SKELETONS["t2m"], SKELETONS["kit"]
NASTY = "a </script><script>window.hacked=1</script> <!-- \"q\" & 'a' \u2028 \\u003c é 走 ${x} $data \ud800"
TEXT = NASTY.replace("\ud800", "").strip()  # without the half of a character that no browser passes on
SMALL = {"num_codes": 32, "code_dim": 8}
CODES = {"frames": 4, "sizes": [8, 300], "ordered": True, "digits": [[7, 299], [0, 1]],
         "indices": [2**60 + 1, 5]}


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run the script in ``tmp_path`` -> (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["view.py", *map(str, args)])
        try:
            run(view.main)
        except SystemExit as stop:
            return stop.code, *capsys.readouterr()
        return 0, *capsys.readouterr()

    return call


def save(path, joints, **facts):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, joints)
    if facts:
        write_facts(path, facts)
    return path


def acted(action="walk_forward", frames=60, seed=0):
    return make_clip([action], np.random.default_rng(seed))[:frames]


class Elements(HTMLParser):
    """The elements of a page: [(tag, attributes, text)]."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append([tag, dict(attributes), ""])

    def handle_data(self, text):
        if self.found:
            self.found[-1][2] += text


def data_of(path):
    elements = Elements(path.read_text(encoding="utf-8")).found
    scripts = [element for element in elements if element[0] == "script"]
    assert [attributes.get("type") for _, attributes, _ in scripts] == ["application/json", None]
    return json.loads(scripts[0][2])


def unpack(text, kind):
    return np.frombuffer(base64.b64decode(text), kind)


def joints_of(clip, body):
    """Joints (T, J, 3) in metres from a page's data, as docs/viewer.md says."""
    steps = unpack(clip["points"], "<u2").reshape(clip["frames"], body["points"], 3)
    points = steps * clip["step"] + clip["low"]
    return (points[:, : body["joints"]] - [0, clip["shift"], 0]) / clip["scale"]


@pytest.mark.parametrize("joints, skeleton", [
    (acted(), T2M), (acted("jump") + [100, 0.5, -3], T2M), (walk(KIT, 50), KIT), (acted()[:1], T2M),
    (acted()[:2].astype(np.float64), T2M),
])
def test_joints_come_back(call, tmp_path, joints, skeleton):
    save(tmp_path / "clip.npy", joints)
    assert call("clip.npy")[0] == 0
    data = data_of(tmp_path / "view.html")
    clip = data["clips"][0]
    assert (clip["body"], clip["frames"], clip["fps"]) == (skeleton.name, len(joints), skeleton.fps)
    found = joints_of(clip, data["bodies"][skeleton.name])
    extent = np.ptp(joints.reshape(-1, 3), axis=0).max() + 0.5  # the figure reaches beyond its joints
    assert found.shape == joints.shape and np.abs(found - joints).max() <= extent / 131_070 + 1e-7
    standing = (unpack(clip["contacts"], "u1")[:, None] >> np.arange(4) & 1).astype(bool)
    assert len(standing) == len(joints)
    if len(joints) > 1:
        assert np.array_equal(standing[:-1], foot_contacts(joints, skeleton.fps, skeleton)[0])
        assert clip["skating"] == pytest.approx(foot_skating(joints, skeleton.fps, skeleton), nan_ok=True)


def test_a_page_of_100_clips_is_small(tmp_path):
    clip = read_clip(save(tmp_path / "clip.npy", walk(T2M, 200)))
    assert 100 * len(json.dumps(encode(clip))) < 5e6


def test_the_camera_starts_in_front_of_the_body(tmp_path):
    """Whatever the heading, the angle of the camera is relative to it."""
    from utils.motion.features import rotate_y

    joints = acted()
    for degrees in (0, 90, -150):
        turned = rotate_y(joints, np.full(joints.shape[:2], np.radians(degrees)))
        facing = encode(read_clip(save(tmp_path / "clip.npy", turned)))["facing"]
        first = encode(read_clip(save(tmp_path / "clip.npy", joints)))["facing"]
        assert (facing - first - degrees + 180) % 360 - 180 == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("columns, unit, skeleton", [(67, 1.0, T2M), (263, 1.0, T2M), (64, 0.001, KIT)])
def test_features_are_shown_too(call, tmp_path, columns, unit, skeleton):
    features = joints_to_features(walk(skeleton, 41) / unit, skeleton)[:, :columns]
    save(tmp_path / "features.npy", features)
    assert call("features.npy", "--metres_per_unit", unit)[0] == 0
    data = data_of(tmp_path / "view.html")
    wanted = features_to_joints(features.astype(np.float64), skeleton.num_joints) * unit
    assert np.abs(joints_of(data["clips"][0], data["bodies"][skeleton.name]) - wanted).max() < 1e-4


def test_prompts_and_titles_stay_text(call, tmp_path):
    save(tmp_path / "clip.npy", acted(), prompt=NASTY, run=NASTY)
    assert call("clip.npy", "--title", TEXT)[0] == 0
    data = data_of(tmp_path / "view.html")
    assert data["clips"][0]["title"] == NASTY and data["clips"][0]["about"] == [f"run {NASTY}"]
    elements = Elements((tmp_path / "view.html").read_text(encoding="utf-8")).found
    heading, = [text for tag, _, text in elements if tag == "h1"]
    assert heading.strip() == TEXT
    assert [text for tag, _, text in elements if tag == "title"][0].strip() == heading.strip()


def test_the_page_stands_alone(call, tmp_path):
    save(tmp_path / "clip.npy", acted())
    assert call("clip.npy")[0] == 0
    text = (tmp_path / "view.html").read_text(encoding="utf-8")
    assert not re.findall(r"https?://|@import|url\(|\bfetch\(|XMLHttpRequest|\bimport\b|innerHTML", text)
    links = [value for _, attributes, _ in Elements(text).found for name, value in attributes.items()
             if name in ("src", "href")]
    assert links == ["data:,"] and "default-src 'none'" in text
    assert len((Path(view.__file__).parents[1] / "utils/viewer/page.js").read_text().splitlines()) < 600


def test_facts_and_codes(call, tmp_path):
    save(tmp_path / "clip.npy", acted(frames=8), prompt="jump: high?", fps=30.0, codes=CODES, seed=3,
         edited=[[2, 5]])
    assert call("clip.npy")[0] == 0
    clip = data_of(tmp_path / "view.html")["clips"][0]
    assert (clip["title"], clip["fps"], clip["edited"]) == ("jump: high?", 30, [[2, 5]])
    assert clip["about"] == ["seed 3"]
    codes = clip["codes"]
    assert unpack(codes["digits"], "<u4").tolist() == [7, 299, 0, 1] and codes["width"] == 4
    assert codes["indices"] == [str(2**60 + 1), "5"] and (codes["frames"], codes["sizes"]) == (4, [8, 300])
    assert call("clip.npy", "--fps", 12, "--output", "x.html")[0] == 0
    assert data_of(tmp_path / "x.html")["clips"][0]["fps"] == 12
    small = {**CODES, "sizes": [8, 256], "digits": [[7, 255], [0, 1]]}
    del small["indices"]
    write_facts(tmp_path / "clip.npy", {"codes": small})
    codes = encode(read_clip(tmp_path / "clip.npy"))["codes"]
    assert unpack(codes["digits"], "u1").tolist() == [7, 255, 0, 1] and codes["indices"] is None
    write_facts(tmp_path / "clip.npy", {"codes": None})
    assert encode(read_clip(tmp_path / "clip.npy"))["codes"] is None


@pytest.mark.parametrize("name, settings, ordered", [
    ("FSQ_AE_High", {}, True), ("FSQ_AE_iFSQ_64x17", {}, True), ("FSQ_AE_Hybrid", {}, True),
    ("VQ_AE_Model", SMALL, False), ("VQ_AE_RVQ", SMALL, False), ("AE_Model", {}, None),
    ("VQ_AE_Gumbel_Soft", SMALL, None),
])
def test_codes_of_every_kind_of_target(name, settings, ordered):
    torch.manual_seed(0)
    ae = AE_models[name](width=16, latent_dim=16, **settings).eval()
    if ordered is None:
        assert codes_of(ae, torch.zeros(2, 10, ae.target_dim), torch.tensor([10, 3])) == [None, None]
        return
    with torch.no_grad():
        targets = ae.snap(ae.encode_targets(3 * torch.randn(2, 40, 67))[1])
    targets[1, 4:] = 0.123  # padding
    codes, short = codes_of(ae, targets, torch.tensor([10, 4]))
    assert codes["frames"] == 4 and codes["ordered"] is ordered
    assert codes["sizes"] == list(ae.quantizer.axis_sizes)
    indices = torch.tensor(codes.get("indices", codes["digits"]))
    assert torch.allclose(ae.quantizer.decode_indices(indices), targets[0], atol=1e-5)
    short = torch.tensor(short.get("indices", short["digits"]))
    assert torch.allclose(ae.quantizer.decode_indices(short), targets[1, :4], atol=1e-5)
    assert ae.quantizer.to_digits(indices).tolist() == codes["digits"] and len(codes["digits"]) == 10
    targets[0, 9] += 0.01  # targets that were not snapped have no codes
    assert [codes is None for codes in codes_of(ae, targets, torch.tensor([10, 4]))] == [True, False]


@pytest.fixture
def models(tmp_path):
    """Three folders: A and B with the same prompts (one of them twice), C with others and without facts."""
    prompts = ["a person walks: fast?", "jumps", "jumps", "<b>bows</b>"]
    for folder, frames in (("A", 40), ("B", 44)):
        for i, prompt in enumerate(prompts):
            repeat = int(i == 2)
            name = re.sub(r"[^a-z]+", "_", prompt).strip("_")
            save(tmp_path / folder / f"{i - (i > 1):03d}_{name}_{frames}f_r{repeat}.npy",
                 acted(frames=frames, seed=i), prompt=prompt)
    save(tmp_path / "C/000_jumps_36f_r0.npy", acted("jump", 36))
    save(tmp_path / "C/001_sits_36f_r0.npy", acted("bow", 36))
    save(tmp_path / "C/002_a_person_walks_fast_36f_r0.npy", acted(frames=36))
    return tmp_path


def layout(data):
    files = [clip["file"][4:8] + str(clip["frames"]) for clip in data["clips"]]
    return data["columns"], [(row["title"], [None if i is None else files[i] for i in row["clips"]])
                             for row in data["rows"]]


def test_a_row_per_prompt_and_a_column_per_folder(call, models):
    assert call("A", "B")[0] == 0
    columns, rows = layout(data_of(models / "view.html"))
    assert columns == ["A", "B"] and rows == [
        ("a person walks: fast?", ["a_pe40", "a_pe44"]), ("jumps", ["jump40", "jump44"]),
        ("jumps", ["jump40", "jump44"]), ("<b>bows</b>", ["b_bo40", "b_bo44"])]
    assert call("C", "A", "--names", "ours", "x<y", "--output", "two.html")[0] == 0
    columns, rows = layout(data_of(models / "two.html"))
    assert columns == ["ours", "x<y"] and rows == [
        ("jumps", ["jump36", "jump40"]), ("sits", ["sits36", None]),
        ("a person walks: fast?", ["a_pe36", "a_pe40"]), ("jumps", [None, "jump40"]),
        ("<b>bows</b>", [None, "b_bo40"])]


def test_one_grid_in_the_given_order(call, models):
    assert call("B", models / "A/000_a_person_walks_fast_40f_r0.npy", "--grid")[0] == 0
    data = data_of(models / "view.html")
    assert not data["columns"] and not data["rows"]
    assert [clip["frames"] for clip in data["clips"]] == [44] * 4 + [40]
    code, out, _ = call("A")
    assert code == 0 and out.startswith("A/view.html: 4 clips, ")
    # named twice, shown once
    assert call(*(models / "A").glob("*.npy"), "A", "--output", "once.html")[0] == 0
    assert len(data_of(models / "once.html")["clips"]) == 4


def test_names_of_folders_that_end_alike(tmp_path):
    assert view.names_of([tmp_path / "a/x", tmp_path / "b/x"]) == ["a", "b"]
    assert view.names_of([tmp_path / "a/x", tmp_path / "b/x", tmp_path / "b/y"]) == ["a/x", "b/x", "b/y"]
    assert view.names_of([tmp_path / "x"]) == ["x"]


def test_nothing_is_overwritten(call, models):
    assert call("C")[0] == 0
    first = (models / "C/view.html").read_bytes()
    assert call("C")[1].startswith("C/view.html:")  # the same page
    (models / "C/001_sits_36f_r0.npy").unlink()
    assert call("C")[1].startswith("C/view-2.html:") and (models / "C/view.html").read_bytes() == first
    code, _, err = call("C", "--output", "C/view.html")
    assert code == 2 and "C/view.html exists" in err and (models / "C/view.html").read_bytes() == first
    assert not list(models.rglob(".*"))


MILLIMETRES = 1000 * walk(KIT, 8)
NAN = acted(frames=8)
NAN[3, 2, 1] = np.nan


@pytest.mark.parametrize("source, flags, message", [
    (None, [], "no file or folder clip.npy"),
    (acted(frames=8)[0], [],
     "clip.npy has shape (22, 3); expected joints (frames, 22, 3) or (frames, 21, 3)"),
    (np.zeros((8, 23, 3)), [], "clip.npy has shape (8, 23, 3)"),
    (np.zeros((8, 100)), [], "clip.npy has shape (8, 100)"),
    (NAN, [], "clip.npy: joints are not finite (NaN or infinite) in 1 of 8 frames, first in frame 3"),
    (np.zeros((0, 22, 3)), [], "the motion has no frames"),
    (np.ones((8, 22, 3)), [], "there is no body"),
    (np.full((8, 22, 3), 1e30) * acted(frames=8), [], "joints hold values above"),
    (MILLIMETRES, [], "metres high; if the file is in millimetres, pass --metres_per_unit 0.001"),
    (b"no array", [], "clip.npy cannot be read"),
    ("empty folder", [], "clip.npy holds no .npy file"),
    (acted(frames=8), ["--output", "x.png"], "x.png must end in .html"),
    (acted(frames=8), ["--names", "a"], "--names: 1 for no columns"),
    (acted(frames=8), ["--fps", "0"], "--fps"),
    (acted(frames=8), ["--metres_per_unit", "nan"], "--metres_per_unit"),
])
def test_mistakes_are_one_line(call, tmp_path, source, flags, message):
    path = tmp_path / "clip.npy"
    if isinstance(source, bytes):
        path.write_bytes(source)
    elif isinstance(source, str):
        path.mkdir()
    elif source is not None:
        np.save(path, source)
    code, out, err = call("clip.npy", *flags)
    assert code == 2 and not out and message in err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert not list(tmp_path.rglob("*.html"))


@pytest.mark.parametrize("facts", [
    "{", "[]", "[" * 100_000, '{"prompt": 3}', '{"fps": 0}', '{"fps": NaN}', '{"fps": true}',
    '{"edited": [[3, 1]]}', '{"edited": [[0.5, 1]]}', '{"edited": 3}', '{"codes": []}',
    '{"codes": {"frames": 4}}',
    json.dumps({"codes": {**CODES, "digits": [[8, 0], [0, 0]]}}),
    json.dumps({"codes": {**CODES, "digits": [[0, -1], [0, 0]]}}),
    json.dumps({"codes": {**CODES, "digits": [[0], [0, 0]]}}),
    json.dumps({"codes": {**CODES, "indices": [1]}}), json.dumps({"codes": {**CODES, "frames": 0}}),
    json.dumps({"codes": {**CODES, "indices": ["1", "2"]}}),
])
def test_damaged_facts_are_one_line(call, tmp_path, facts):
    save(tmp_path / "clip.npy", acted(frames=8))
    (tmp_path / "clip.json").write_text(facts)
    code, out, err = call("clip.npy")
    assert code == 2 and not out and err.startswith("error: clip.json") and err.count("\n") == 1


def test_too_many_clips_are_refused(call, tmp_path):
    for i in range(4):
        save(tmp_path / f"many/{i}.npy", acted(frames=4))
    code, _, err = call("many", "--most", 3)
    assert code == 2 and "4 clips are more than a page shows (3)" in err
    assert call("many", "--most", 4)[0] == 0


def test_facts_survive_writing(tmp_path):
    facts = {"prompt": NASTY, "fps": 20.0, "codes": CODES}
    write_facts(tmp_path / "clip.npy", facts)
    assert read_facts(tmp_path / "clip.npy") == facts and read_facts(tmp_path / "other.npy") == {}


# In a browser.

def binary(*names):
    return next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """A headless Chromium of a desktop's size."""
    browser, driver = binary("chromium", "chromium-browser", "google-chrome"), binary("chromedriver")
    if not browser or not driver:
        pytest.skip("no Chromium with chromedriver on this machine, so the page is not opened "
                    "(Debian: apt-get install chromium chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1200,900",
                 f"user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()


@pytest.fixture
def opened(chromium):
    """Opens a page; when the test ends, nothing may have been complained about or requested."""
    def opened(path, **screen):
        if screen:
            chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                                     {"deviceScaleFactor": 2, "mobile": True, **screen})
            chromium.execute_cdp_cmd("Emulation.setTouchEmulationEnabled",
                                     {"enabled": True, "maxTouchPoints": 2})
        chromium.get("about:blank")
        for log in ("browser", "performance"):  # what was before: the browser's own first page, other tests
            chromium.get_log(log)
        chromium.get(path.resolve().as_uri())
        wait(lambda: chromium.execute_script("return !!window.viewer") and picture(chromium))
        return chromium

    yield opened
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    chromium.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
    assert chromium.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events
             if event["method"] == "Network.requestWillBeSent"]
    assert asked and not [url for url in asked if not url.startswith(("file:///", "data:"))]
    assert sum(url.startswith("file:///") for url in asked) == 1  # the page itself


def wait(condition, seconds=60):  # a busy machine plays slowly
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)
    return result


def picture(chrome, number=0, kind="figure"):
    """A check sum of the pixels of a canvas, "" where it has none or one colour only."""
    return chrome.execute_script("""
        const canvas = document.querySelectorAll("." + arguments[1])[arguments[0]];
        if (!canvas || !canvas.width || !canvas.height) return "";
        const copy = new OffscreenCanvas(canvas.width, canvas.height)
            .getContext("2d", {willReadFrequently: true});
        copy.drawImage(canvas, 0, 0);
        const pixels = new Uint32Array(copy.getImageData(0, 0, canvas.width, canvas.height).data.buffer);
        let sum = 0;
        for (const pixel of pixels) sum = Math.imul(sum, 31) + pixel | 0;
        return pixels.some(pixel => pixel !== pixels[0]) ? `${pixels.length} ${sum}` : "";""", number, kind)


def changes(chrome, action, number=0):
    """Whether the picture of a figure changes by an action; the next repaints are waited for."""
    before = picture(chrome, number)
    action()
    chrome.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    return picture(chrome, number) != before


def state(chrome):
    return SimpleNamespace(**chrome.execute_script("return viewer.state"))


@pytest.fixture
def page(call, tmp_path):
    """Eight clips of both skeletons, with a nasty prompt, codes and edited frames."""
    for i, action in enumerate(["walk_forward", "jump", "wave_right", "kick_left", "bow", "jumping_jacks"]):
        save(tmp_path / f"clips/{i}.npy", acted(action, 40), prompt=f"{TEXT} {action}", edited=[[4, 9]],
             codes={**CODES, "digits": [[1, i]] * 10, "indices": list(range(2**60, 2**60 + 10))})
    save(tmp_path / "clips/6.npy", walk(KIT, 25))
    save(tmp_path / "clips/7.npy", acted(frames=1))
    assert call("clips", "--output", "page.html")[0] == 0
    return tmp_path / "page.html"


def test_the_page_plays_scrubs_and_turns(opened, page):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    chrome = opened(page)
    find = chrome.find_element
    body = find(By.TAG_NAME, "body")
    assert chrome.execute_script("return window.hacked") is None
    assert find(By.CSS_SELECTOR, ".card h2").text.startswith("a </script><script>window.hacked=1</script>")
    wanted = np.load(page.parent / "clips/6.npy")
    assert np.abs(np.array(chrome.execute_script("return viewer.joints(6)")) - wanted).max() < 1e-4

    # play, pause
    before = picture(chrome)
    find(By.ID, "play").click()
    wait(lambda: state(chrome).tick > 2 and picture(chrome) != before)
    assert find(By.ID, "play").get_attribute("aria-label") == "Pause"
    body.send_keys(" ")
    assert not state(chrome).playing
    held = state(chrome).tick
    assert not changes(chrome, lambda: time.sleep(0.15)) and state(chrome).tick == held

    # scrub: the slider, keys, the strip
    slider = find(By.ID, "time")
    body.send_keys(Keys.HOME)
    assert changes(chrome, lambda: slider.send_keys(Keys.END)) and state(chrome).tick == 39
    assert changes(chrome, lambda: body.send_keys(Keys.HOME)) and state(chrome).tick == 0
    body.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.SHIFT + Keys.ARROW_RIGHT)
    assert state(chrome).tick == 6
    assert find(By.CSS_SELECTOR, ".now").text == "frame 6 of 40 · 0.30 s"
    assert find(By.CSS_SELECTOR, ".code").text == f"code 1: {2**60 + 1} (1 0)"
    strip = find(By.CSS_SELECTOR, ".strip")
    assert changes(chrome, lambda: ActionChains(chrome).move_to_element(strip).click().perform())
    assert state(chrome).tick in (19, 20) and picture(chrome, kind="strip")

    # turn and zoom: the mouse, keys, the wheel with ctrl; all figures alike
    figure = find(By.CSS_SELECTOR, ".figure")
    drag = ActionChains(chrome).move_to_element(figure).click_and_hold().move_by_offset(60, 20).release()
    second = picture(chrome, 1)
    assert changes(chrome, drag.perform) and picture(chrome, 1) != second
    assert state(chrome).yaw == pytest.approx(-36) and state(chrome).pitch == pytest.approx(8)
    assert not chrome.find_elements(By.CSS_SELECTOR, ".large")  # a drag is no click
    assert changes(chrome, lambda: body.send_keys("a")) and changes(chrome, lambda: body.send_keys("w"))
    assert changes(chrome, lambda: body.send_keys("+")) and state(chrome).zoom == pytest.approx(1.15)
    wheel = """arguments[0].dispatchEvent(
        new WheelEvent("wheel", {deltaY: -200, ctrlKey: arguments[1], cancelable: true}))"""
    assert not changes(chrome, lambda: chrome.execute_script(wheel, figure, False))
    assert changes(chrome, lambda: chrome.execute_script(wheel, figure, True)) and state(chrome).zoom > 1.5
    assert changes(chrome, lambda: body.send_keys("0")) and (state(chrome).yaw, state(chrome).zoom) == (0, 1)


def test_what_is_shown_can_be_chosen(opened, page):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    chrome = opened(page)
    find = chrome.find_element
    find(By.TAG_NAME, "summary").click()
    for box in ("path", "feet", "follow"):
        assert changes(chrome, lambda box=box: find(By.ID, box).click()), box
        assert not getattr(state(chrome), box)
    figures = chrome.find_elements(By.CSS_SELECTOR, ".figure")
    light = picture(chrome)
    find(By.ID, "theme").click()
    wait(lambda: picture(chrome) != light)
    assert chrome.execute_script("return document.documentElement.dataset.theme") == "dark"
    find(By.ID, "find").send_keys("KICK nothing")  # letters and spaces there are no keys of the player
    assert find(By.ID, "nothing").is_displayed() and not state(chrome).playing and state(chrome).yaw == 0
    find(By.ID, "find").send_keys(Keys.BACKSPACE * 7)
    assert [figure.is_displayed() for figure in figures] == [i == 3 for i in range(8)]
    width = figures[3].size["width"]
    figures[3].click()
    wait(lambda: figures[3].size["width"] > 2 * width)
    figures[3].send_keys(Keys.ENTER)
    wait(lambda: figures[3].size["width"] == width)
    for element in (find(By.ID, "play"), find(By.ID, "time"), figures[3], find(By.ID, "in")):
        assert element.get_attribute("aria-label")


def test_figures_off_the_screen_have_no_pixels(opened, call, tmp_path):
    save(tmp_path / "one.npy", acted(frames=20))
    for i in range(40):
        shutil.copy(tmp_path / "one.npy", tmp_path / f"{i:02d}.npy")
    assert call(".", "--output", "page.html")[0] == 0
    chrome = opened(tmp_path / "page.html")
    assert picture(chrome, 0) and not picture(chrome, 40)
    chrome.execute_script("window.scrollTo(0, document.body.scrollHeight)")
    wait(lambda: picture(chrome, 40) and not picture(chrome, 0))


def test_columns_on_a_phone_with_fingers(opened, call, models):
    assert call("A", "B", "C", "--output", "page.html")[0] == 0
    chrome = opened(models / "page.html", width=390, height=844)
    boxes = chrome.execute_script("""return [...document.querySelectorAll(".row")].map(row =>
        [row.querySelector("h2").textContent, ...[...row.querySelectorAll(".card")].map(card =>
            [card.querySelector("h2")?.textContent ?? card.textContent, card.getBoundingClientRect().left,
             card.getBoundingClientRect().right])])""")
    assert [row[0] for row in boxes] == ["a person walks: fast?", "jumps", "jumps", "<b>bows</b>", "sits"]
    assert [cell[0] for cell in boxes[0][1:]] == ["A", "B", "C"]
    assert [cell[0] for cell in boxes[4][1:]] == ["A: no clip", "B: no clip", "C"]
    assert all(0 <= left < right <= 390 for row in boxes for _, left, right in row[1:])
    assert chrome.execute_script("return document.documentElement.scrollWidth") <= 390

    def touch(kind, *points):
        chrome.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [
            {"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]})

    x, y = chrome.execute_script("""const box = document.querySelector(".figure").getBoundingClientRect();
        return [box.left + box.width / 2, box.top + box.height / 2]""")

    def swipe():
        touch("touchStart", (x - 20, y))
        for step in (10, 20, 40):
            touch("touchMove", (x - 20 + step, y))
        touch("touchEnd")

    def pinch():
        touch("touchStart", (x - 10, y), (x + 10, y))
        for step in (15, 25, 35):
            touch("touchMove", (x - step, y), (x + step, y))
        touch("touchEnd")

    assert changes(chrome, swipe) and state(chrome).yaw < -5
    assert changes(chrome, pinch) and state(chrome).zoom > 1.5
