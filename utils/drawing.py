"""The painter: a motion (T, J, 3) drawn frame by frame, its text labels, and the checks of what can be drawn.

Every limb is a tapered capsule, drawn anti-aliased from far to near with OpenCV, over a checkered floor that
scrolls because the camera follows the root. All geometry is computed for the whole clip at once; the loop
over the frames only fills polygons, so a clip of 10 s takes about a second.

Shapes: T frames, J joints, P points (joints and a few extras), M capsules. Images are uint8 (H, W, 3), RGB.
Left limbs are blue, right limbs orange; the camera stands in front of the character of frame 0, so that its
left appears on the viewer's right. The view is scaled to the body, so the unit of the joints does not matter.
"""
import functools
import unicodedata
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils import arrays
from utils.errors import UserError

COLOURS = {"left": (38, 122, 214), "right": (240, 120, 38), "centre": (104, 112, 128)}     # colour-blind safe
HIPS, HEAD, NOSE, INK, PAPER = (82, 88, 102), (240, 206, 178), (214, 156, 126), (40, 44, 52), (255, 255, 255)
FLOOR, SKY, TILE_CONTRAST, SHADOW = (222, 226, 232), (246, 248, 251), 24, 0.42
TRAIL_PAST, TRAIL_AHEAD = (112, 122, 140), (184, 190, 200)

SMALLEST, LARGEST = 128, 4096   # edges of a picture in pixels
BODY_HEIGHT = 1.7           # every body is scaled to this height, and all lengths below are in that unit
TILE = 0.5                  # edge of a floor tile
AZIMUTH, ELEVATION, DISTANCE = 32.0, 17.0, 6.0      # of the camera: degrees, degrees, from the body's middle
MIDDLE = 0.85               # height the camera looks at
FOLLOW = 0.35               # seconds of smoothing of the camera's path
ARC, SHIFT = 10, 4          # points of a capsule's half circle; fractional bits of OpenCV's coordinates
LIMB_RADII = {"leg": (0.078, 0.060, 0.044, 0.040), "arm": (0.040, 0.044, 0.056, 0.056)}   # hip down; wrist up
TRUNK_RADIUS, NECK_RADIUS, HEAD_RADIUS, NOSE_RADIUS, HAND_RADIUS = 0.088, 0.052, 0.115, 0.034, 0.052
FINGER_RADIUS = 0.016


def check_size(size):
    if min(size) < SMALLEST or max(size) > LARGEST:
        raise UserError(f"a picture's edges must be {SMALLEST} to {LARGEST} pixels long, "
                        f"got {size[0]} x {size[1]}")


def check_fps(fps):
    if not np.isfinite(fps) or fps <= 0:
        raise UserError(f"fps must be a number above 0, got {fps}")


def check_joints(joints, skeleton):
    """-> float64 (T, J, 3), or a UserError that says what is wrong."""
    try:
        joints = np.array(joints, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"joints must be an array of numbers: {error}") from error
    if joints.ndim != 3 or joints.shape[1:] != (skeleton.num_joints, 3):
        raise UserError(f"joints must have shape (frames, {skeleton.num_joints}, 3) for the {skeleton.name} "
                        f"skeleton, got {joints.shape}")
    if not len(joints):
        raise UserError("the motion has no frames")
    bad = ~np.isfinite(joints).all(axis=(1, 2))
    if bad.any():
        raise UserError(f"joints are not finite (NaN or infinite) in {bad.sum()} of {len(joints)} frames, "
                        f"first in frame {bad.argmax()}")
    if np.abs(joints).max() > arrays.LARGEST:
        raise UserError(f"joints hold values above {arrays.LARGEST:.0e}, so they are no motion")
    return joints


# What is drawn: the body as capsules and hulls, computed for all frames at once.

class Body:
    """Which capsules and hulls a skeleton has. Points are its joints and five extras: ball of the head, nose,
    base of the neck (the joint where the arms leave, but thinner), and the two hands beyond the wrists.
    Fingers are thin capsules; other chains in the middle than the trunk (jaw, eyes) are not drawn."""

    def __init__(self, skeleton):
        self.skeleton, self.parents = skeleton, skeleton.parents
        toes = {skeleton.left_feet[-1], skeleton.right_feet[-1]}
        self.legs = [chain for chain in skeleton.chains if toes & set(chain[1:])]
        self.arms = [self._arm(shoulder) for shoulder in skeleton.face_joints[2:]]
        middle = [chain for chain in skeleton.chains
                  if chain[0] == 0 and skeleton.side(chain[-1]) == "centre"]
        spine = max(middle, key=len, default=(0, 0))
        before = {joint for chain in self.arms for joint in skeleton.way_to(chain[0])}
        self.branch = max(spine.index(joint) for joint in before & {*spine})    # where the arms leave
        self.trunk = self._up_to_the_head(spine)
        self.wrists = [chain[-1] for chain in self.arms]
        self.head = skeleton.num_joints
        self.radius = self._radii()
        self.capsules = self._capsules()
        self.hulls = self._hulls()

    def _up_to_the_head(self, spine):
        """The chain in the middle, without what hangs on the head: up to where jaw and eyes leave, or to what
        is highest at rest."""
        starts = {chain[0] for chain in self.skeleton.chains}
        head = next((i for i in range(self.branch + 1, len(spine)) if spine[i] in starts), len(spine) - 1)
        if self.skeleton.rest_offsets is not None:
            heights = np.cumsum([self.skeleton.rest_offsets[joint][1] for joint in spine[:head + 1]])
            head -= int(heights[::-1].argmax())
        return spine[:max(head, 1) + 1]

    def _arm(self, shoulder):
        """The chain of a shoulder, up to the wrist: to its end, or to where the fingers leave."""
        chain = max((chain for chain in self.skeleton.chains if shoulder in chain), key=len)
        inner = chain.index(shoulder)
        branches = [other[0] for other in self.skeleton.chains if other != chain]
        end = next((i for i in range(inner + 2, len(chain)) if chain[i] in branches), len(chain) - 1)
        return chain[:end + 1]

    def _radii(self):
        """Radius of each point, (P,)."""
        radius = np.full(self.skeleton.num_joints + 5, TRUNK_RADIUS)
        radius[[joint for joint in range(self.skeleton.num_joints)
                if self.skeleton.side(joint) != "centre"]] = FINGER_RADIUS
        for chain in self.legs:
            limb = [joint for joint in chain if self.skeleton.side(joint) != "centre"]
            hip = next(i for i, joint in enumerate(limb) if joint in self.skeleton.face_joints)
            radius[limb] = [LIMB_RADII["leg"][min(max(i - hip, 0), 3)] for i in range(len(limb))]
        for chain in self.arms:
            limb = [joint for joint in chain if self.skeleton.side(joint) != "centre"]
            radius[limb[::-1]] = [LIMB_RADII["arm"][min(i, 3)] for i in range(len(limb))]
        radius[list(self.trunk[self.branch + 1:])] = NECK_RADIUS
        radius[self.head:] = HEAD_RADIUS, NOSE_RADIUS, NECK_RADIUS, HAND_RADIUS, HAND_RADIUS
        return radius

    def _capsules(self):
        """(point, point, colour) of the limbs, the neck and the head. Bones inside the trunk, and those that
        leave it at hips and collars, are covered by the trunk's hulls."""
        side = self.skeleton.side
        limbs = [(a, b) for a, b in self.skeleton.bones if side(a) == side(b) != "centre"]
        capsules = [(a, b, COLOURS[side(b)]) for a, b in limbs]
        capsules += [(wrist, self.head + 3 + i, COLOURS[side(wrist)]) for i, wrist in enumerate(self.wrists)]
        capsules += [(self.head, self.head, HEAD), (self.head + 1, self.head + 1, NOSE)]
        neck = [self.head, *self.trunk[:self.branch:-1], self.head + 2]
        return capsules + [(a, b, COLOURS["centre"]) for a, b in zip(neck[:-1], neck[1:])]

    def _hulls(self):
        """(joints, colour) of the trunk's two halves, each the convex hull of its joints' discs: hips to
        waist, and waist to shoulders."""
        r_hip, l_hip, r_shoulder, l_shoulder = self.skeleton.face_joints
        waist = max(self.branch - 1, 0)
        return [([r_hip, l_hip, *self.trunk[:waist + 1]], HIPS),
                ([r_shoulder, l_shoulder, *self.trunk[waist:self.branch + 1]], COLOURS["centre"])]

    def points(self, joints):
        """(T, J, 3) -> (T, P, 3), of a body scaled to BODY_HEIGHT."""
        head, neck = joints[:, self.trunk[-1]], joints[:, self.trunk[-2]]
        ball = head + 0.06 * _unit(head - neck)
        upwards = ball - joints[:, self.trunk[self.branch - 1]]
        nose = ball + HEAD_RADIUS * _unit(np.cross(self.across(joints), upwards))
        hands = [joints[:, w] + 0.075 * _unit(joints[:, w] - joints[:, self.parents[w]]) for w in self.wrists]
        extras = [ball, nose, joints[:, self.trunk[self.branch]], *hands]
        return np.concatenate([joints, np.stack(extras, axis=1)], axis=1)

    def across(self, joints):
        """From the body's right to its left, (T, 3), not normalised."""
        r_hip, l_hip, r_shoulder, l_shoulder = self.skeleton.face_joints
        return joints[:, l_hip] - joints[:, r_hip] + joints[:, l_shoulder] - joints[:, r_shoulder]

    def height(self, joints):
        """Height of the upright body: its longest leg and its trunk, bone by bone, the median over the
        frames."""
        def length(chain):
            return np.linalg.norm(np.diff(joints[:, list(chain)], axis=1), axis=-1).sum(-1)
        heights = np.maximum(length(self.legs[0]), length(self.legs[1])) + length(self.trunk)
        return float(np.median(heights))


def _unit(vectors):
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


def normalise(joints, body):
    """Joints (T, J, 3) with the floor at y = 0 and the body scaled to BODY_HEIGHT, and the factor.
    The floor is the data's own y = 0 where the clip stands near it, so that floating and sinking show;
    otherwise (data with another origin) its lowest feet. UserError where the joints are no body."""
    height = body.height(joints)
    if height < 1e-9:
        raise UserError("the joints lie all in one point: there is no body to draw")
    joints = joints * (BODY_HEIGHT / height)
    lowest = np.percentile(joints[..., 1].min(axis=1), 5)
    joints[..., 1] += 0.02 - (lowest if abs(lowest) > 0.25 else 0)      # 0.02: feet have thickness
    return joints, BODY_HEIGHT / height


class _Camera:
    """A pin-hole camera that keeps its direction and follows the root over the ground.

    ``middle`` (T, 3) is where it looks; ``focal`` is in pixels, chosen so that all points of all frames are
    inside."""

    def __init__(self, points, radius, fps, size, azimuth):
        self.width, self.height = size
        a, e = np.radians([azimuth, ELEVATION])
        back = np.array([np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)])      # from middle to eye
        right = np.array([np.cos(a), 0.0, -np.sin(a)])
        self.axes = np.stack([right, np.cross(right, back), -back])              # rows: right, down, ahead
        self.middle = _follow(points[:, 0], fps)
        self.focal = 1.0
        self.centre = np.array([self.width / 2, self.height * 0.52])
        across = np.abs(self._flat(points)) + radius[:, None] / DISTANCE
        room = np.array([self.width * 0.46, self.height * 0.44])
        widest = max(across[..., 0].max() / room[0], across[..., 1].max() / room[1])
        usual = 1.75 / DISTANCE / (0.68 * self.height)
        self.focal = 1 / min(max(widest, usual), 4 * usual)    # a clip that explodes must not shrink to a dot

    def _flat(self, points):
        local = (points - self.middle[:, None]) @ self.axes.T
        return local[..., :2] / np.maximum(local[..., 2:] + DISTANCE, 0.5)

    def project(self, points):
        """(T, P, 3) -> pixels (T, P, 2) and distances from the eye (T, P)."""
        pixels = self._flat(points) * self.focal + self.centre
        depth = (points - self.middle[:, None]) @ self.axes[2] + DISTANCE
        return np.clip(pixels, -8000, 8000), depth              # OpenCV takes small integers

    def ground(self):
        """Where each pixel's ray meets the floor, relative to ``middle``: x and z, each (H, W), NaN in the
        sky."""
        u, v = np.meshgrid(np.arange(self.width) + 0.5, np.arange(self.height) + 0.5)
        flat = np.stack([u - self.centre[0], v - self.centre[1]], axis=-1) / self.focal
        ray = flat @ self.axes[:2] + self.axes[2]
        eye = -DISTANCE * self.axes[2]
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = np.where(ray[..., 1] < -1e-3, (MIDDLE + eye[1]) / -ray[..., 1], np.nan)
        return eye[0] + scale * ray[..., 0], eye[2] + scale * ray[..., 2]


def _follow(root, fps):
    """Path of the camera's aim (T, 3): the root's, smoothed; its height is fixed so that jumps remain
    visible."""
    reach = max(int(3 * FOLLOW * fps), 1)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / (FOLLOW * fps)) ** 2)
    padded = np.pad(root, ((reach, reach), (0, 0)), mode="reflect", reflect_type="odd")     # keeps its speed
    kernel /= kernel.sum()
    path = np.stack([np.convolve(column, kernel, mode="valid") for column in padded.T], axis=-1)
    path[:, 1] = MIDDLE
    return path


class _Floor:
    """A checkered floor that fades into the background with distance. Its pattern is computed from the floor
    point under each pixel and softened by the pixel's footprint, so it neither flickers nor shows moire when
    it scrolls.

    A pixel's place within the pattern's period is a 16-bit number, which wraps around as the pattern does;
    read as a signed number its size is a triangle wave. Places are odd and shifts even, so the one number
    without an opposite is never met."""

    def __init__(self, camera):
        x, z = (np.nan_to_num(a, nan=1e3) for a in camera.ground())
        fade = np.clip((7.0 - np.hypot(x, z)) / 5.0, 0, 1)
        fade = (fade * fade * (3 - 2 * fade))[..., None]
        self.base = np.rint(fade * FLOOR + (1 - fade) * SKY).astype(np.uint8)
        self.top = int((fade > 0).any((1, 2)).argmax())         # above this row there is no pattern
        x, z, contrast = x[self.top:], z[self.top:], fade[self.top:, :, 0] * TILE_CONTRAST
        self.places = [(np.floor(a / (2 * TILE) % 1 * 65536).astype(np.uint16) | 1) for a in (x, z)]
        footprints = [np.abs(np.gradient(a / (2 * TILE))).sum(axis=0) for a in (x, z)]
        self.sharpness = [(1 / 65536 / np.maximum(a, 1e-6)).astype(np.float32) for a in footprints]
        self.scale, self.middle = (2 * contrast).astype(np.float32), (contrast / 2).astype(np.float32)

    def draw(self, x, z):
        """The floor as seen when the camera aims at (x, z), (H, W, 3)."""
        waves = []
        for place, offset, sharpness in zip(self.places, (x, z), self.sharpness):
            shift = np.uint16(int(offset / (2 * TILE) % 1 * 65536) & 65534)
            wave = np.abs((place + shift).view(np.int16))
            wave -= 16384
            wave = np.multiply(wave, sharpness, dtype=np.float32)
            waves.append(np.clip(wave, -0.5, 0.5, out=wave))
        tiles = np.multiply(*waves, out=waves[0])
        tiles *= self.scale
        tiles += self.middle
        tiles = tiles.astype(np.uint8)
        picture = self.base.copy()
        cv2.subtract(self.base[self.top:], cv2.merge([tiles, tiles, tiles]), dst=picture[self.top:])
        return picture


class Scene:
    """A clip, ready to be drawn frame by frame."""

    def __init__(self, joints, skeleton, fps, size, azimuth):
        body = Body(skeleton)
        joints, _ = normalise(joints, body)
        points = body.points(joints)
        self.body = body
        left_x, _, left_z = body.across(joints[:1])[0]
        azimuth = azimuth + np.degrees(np.arctan2(-left_z, left_x))     # relative to where frame 0 faces
        self.camera = camera = _Camera(points, body.radius, fps, size, azimuth)
        self.floor = _Floor(camera)
        pixels, self.depth = camera.project(points)
        radius = body.radius * camera.focal / np.maximum(self.depth, 0.5)
        self.pixels, self.radius = pixels, radius
        first, second = (np.array(ends) for ends in list(zip(*body.capsules))[:2])
        self.layers = self._layers(pixels[:, first], radius[:, first], pixels[:, second], radius[:, second])
        near = np.concatenate([(self.depth[:, first] + self.depth[:, second]) / 2,
                               np.stack([self.depth[:, hull].mean(1) for hull, _ in body.hulls], 1)], axis=1)
        neck, chest = len(first) - 1, near.shape[1] - 1
        near[:, neck] = np.maximum(near[:, neck], near[:, chest] + 1e-3)    # the neck grows out of the chest
        self.near = near
        self.colours = [part[-1] for part in (*body.capsules, *body.hulls)]
        self._prepare_floor_marks(points, first, second)

    @staticmethod
    def _layers(c1, r1, c2, r2):
        """Outline, body and highlight of each capsule: three polygons (T, M, 2 * ARC, 2) in OpenCV's fixed
        point. The highlight is thinner and lies towards the light, up and to the left."""
        lift = -0.30 * np.stack([r1, r1], -1), -0.30 * np.stack([r2, r2], -1)
        return [_capsules(c1, r1 + 1.4, c2, r2 + 1.4), _capsules(c1, r1, c2, r2),
                _capsules(c1 + lift[0], 0.42 * r1, c2 + lift[1], 0.42 * r2)]

    def _prepare_floor_marks(self, points, first, second):
        """Shadow (points dropped along a slanted light) and the root's path on the floor."""
        camera = self.camera
        drop = points.copy()
        drop[..., 0] -= 0.18 * points[..., 1]
        drop[..., 2] -= 0.12 * points[..., 1]
        drop[..., 1] = 0.0
        pixels, depth = camera.project(drop)
        pixels = pixels / 2                                     # the shadow is drawn at half size
        radius = self.body.radius * camera.focal / np.maximum(depth, 0.5) / 2
        self.shadows = _capsules(pixels[:, first], radius[:, first], pixels[:, second], radius[:, second])
        self.trail = points[:, 0] * np.array([1.0, 0.0, 1.0])

    def draw(self, t):
        """Frame t, (H, W, 3)."""
        x, _, z = self.camera.middle[t]
        picture = self.floor.draw(x, z)
        self._draw_trail(picture, t)
        self._draw_shadow(picture, t)
        for item in np.argsort(-self.near[t]):
            self._draw_item(picture, t, item)
        return picture

    def _draw_trail(self, picture, t):
        camera = self.camera
        local = self.trail - camera.middle[t]
        depth = local @ camera.axes[2] + DISTANCE
        flat = local @ camera.axes[:2].T / np.maximum(depth, 0.5)[:, None]
        pixels = _fixed(np.clip(flat * camera.focal + camera.centre, -8000, 8000))
        segments = np.stack([pixels[:-1], pixels[1:]], axis=1)
        visible = (depth[:-1] > 0.5) & (depth[1:] > 0.5)
        for part, colour in ((slice(t, None), TRAIL_AHEAD), (slice(0, t), TRAIL_PAST)):
            chosen = segments[part][visible[part]]
            if len(chosen):
                cv2.polylines(picture, list(chosen), False, colour, 2, cv2.LINE_AA, SHIFT)

    def _draw_shadow(self, picture, t):
        height, width = picture.shape[:2]
        mask = np.zeros(((height + 1) // 2, (width + 1) // 2), np.uint8)
        for polygon in self.shadows[t]:
            cv2.fillConvexPoly(mask, polygon, 255, cv2.LINE_8, SHIFT)
        left, top, wide, high = cv2.boundingRect(mask)
        if not wide:
            return
        reach = max(height // 60, 3)
        rows = slice(max(top - reach, 0), top + high + reach)
        columns = slice(max(left - reach, 0), left + wide + reach)
        soft = cv2.GaussianBlur(mask[rows, columns], (0, 0), reach / 2.5, borderType=cv2.BORDER_REPLICATE)
        target = picture[2 * rows.start:2 * rows.stop, 2 * columns.start:2 * columns.stop]
        soft = cv2.resize(soft, None, fx=2, fy=2)[:target.shape[0], :target.shape[1]]
        dark = cv2.multiply(target, cv2.merge([soft, soft, soft]), scale=SHADOW / 255)
        cv2.subtract(target, dark, dst=target)

    def _draw_item(self, picture, t, item):
        """One capsule or hull; what is farther away than the body's middle is a little darker."""
        shade = 1 - 0.30 * float(np.clip((self.near[t, item] - self.depth[t, 0]) / 0.5, -0.2, 1))
        body = tuple(min(channel * shade, 255.0) for channel in self.colours[item])
        if item < len(self.body.capsules):
            polygons = [layer[t, item] for layer in self.layers]
        else:
            polygons = self._hull(t, item)
        outline, light = tuple(0.55 * c for c in body), tuple(c + 0.28 * (255 - c) for c in body)
        for polygon, colour in zip(polygons, (outline, body, light)):
            cv2.fillConvexPoly(picture, polygon, colour, cv2.LINE_AA, SHIFT)

    def _hull(self, t, item):
        """Outline and body of a half of the trunk: the convex hulls of its joints' discs."""
        joints = self.body.hulls[item - len(self.body.capsules)][0]
        centres, radii = self.pixels[t, joints][:, None], self.radius[t, joints][:, None, None]
        discs = [_fixed(centres + (radii + edge) * _CIRCLE).reshape(-1, 2) for edge in (1.4, 0.0)]
        return [cv2.convexHull(points) for points in discs]


_TURN = np.linspace(0, 2 * np.pi, 2 * ARC, endpoint=False)
_CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=-1)


def _fixed(pixels):
    return np.rint(pixels * (1 << SHIFT)).astype(np.int32)


def _capsules(c1, r1, c2, r2):
    """Outlines of tapered capsules: the two arcs between the outer tangents of two discs. c1, c2: centres (T,
    M, 2); r1, r2: radii (T, M); returns (T, M, 2 * ARC, 2) int32 in OpenCV's fixed point."""
    along = c2 - c1
    distance = np.linalg.norm(along, axis=-1)
    heading = np.arctan2(along[..., 1], along[..., 0])
    tangent = np.arccos(np.clip((r1 - r2) / np.maximum(distance, 1e-6), -1, 1))     # 0, pi: one inside
    sweep = np.linspace(-1, 1, ARC)
    end = heading[..., None] + tangent[..., None] * sweep
    start = heading[..., None] + np.pi + (np.pi - tangent)[..., None] * sweep

    def arc(centre, radius, angle):
        offset = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        return centre[..., None, :] + radius[..., None, None] * offset

    return _fixed(np.concatenate([arc(c2, r2, end), arc(c1, r1, start)], axis=-2))


# Text: matplotlib carries a font (DejaVu Sans), so no picture depends on what a machine has installed.

@functools.cache
def _font(size):
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def _clean(text):
    """One line of drawable characters: white space joined, control characters and broken surrogates dropped.
    No picture has room for more than 2,000."""
    text = " ".join(str(text)[:2000].split())
    return "".join(c for c in text if unicodedata.category(c) not in ("Cc", "Cs", "Cf"))


def _wrap(text, font, width):
    """Lines of at most ``width`` pixels, broken at spaces, and inside words that are wider than a line."""
    lines = [""]
    for word in text.split(" "):
        while word:
            joined = f"{lines[-1]} {word}".strip()
            if font.getlength(joined) <= width:
                lines[-1], word = joined, ""
            elif lines[-1]:
                lines.append("")
            else:
                fits = 1
                while fits < len(word) and font.getlength(word[:fits + 1]) <= width:
                    fits += 1
                lines[-1], word = word[:fits], word[fits:]
                if word:
                    lines.append("")
    return lines


def draw_title(caption, width, max_height, align="center"):
    """The caption on white, (height, width, 3); no rows where there is no caption. Long captions get smaller
    letters, and the longest end in an ellipsis."""
    caption = _clean(caption)
    if not caption:
        return np.zeros((0, width, 3), np.uint8)
    for size in (17, 15, 13, 11):
        font, step = _font(size), int(size * 1.35)
        lines = _wrap(caption, font, width - 24)
        if len(lines) * step + 14 <= max_height and len(lines) <= 4:
            break
    fitting = max(min(4, (max_height - 14) // step), 1)
    if len(lines) > fitting:
        lines = lines[:fitting]
        while lines[-1] and font.getlength(lines[-1] + "\u2026") > width - 24:
            lines[-1] = lines[-1][:-1]
        lines[-1] = lines[-1].rstrip(" .\u2026") + "\u2026"
    image = Image.new("RGB", (width, len(lines) * step + 14), PAPER)
    x, anchor = (width / 2, "ma") if align == "center" else (12, "la")
    for i, line in enumerate(lines):
        ImageDraw.Draw(image).text((x, 7 + i * step), line, fill=INK, font=font, anchor=anchor)
    return np.asarray(image)


@functools.lru_cache(maxsize=512)
def draw_label(text):
    """A small dark text, as RGBA (h, w, 4)."""
    font = _font(13)
    image = Image.new("RGBA", (int(font.getlength(text)) + 2, 18), (*INK, 0))
    ImageDraw.Draw(image).text((1, 1), text, fill=(*INK, 255), font=font)
    return np.asarray(image)


@functools.cache
def draw_legend():
    """Which colour is left and which is right, as RGBA (h, w, 4)."""
    parts = []
    for side in ("left", "right"):
        dot = Image.new("RGBA", (72, 72), (*COLOURS[side], 0))
        ImageDraw.Draw(dot).ellipse((6, 10, 58, 62), fill=(*COLOURS[side], 255))
        dot = np.asarray(dot.resize((18, 18), Image.LANCZOS))
        parts += [dot, draw_label(side), np.zeros((18, 12, 4), np.uint8)]
    return np.concatenate(parts[:-1], axis=1)


def stamp(picture, label, x, y):
    """Lay an RGBA label onto a picture, in place; negative x and y count from the right and the bottom
    edge."""
    height, width = label.shape[:2]
    top = y if y >= 0 else picture.shape[0] + y - height
    left = x if x >= 0 else picture.shape[1] + x - width
    area = picture[top:top + height, left:left + width]
    alpha = label[..., 3:] / np.float32(255)
    area[:] = label[..., :3] * alpha + area * (1 - alpha) + 0.5
