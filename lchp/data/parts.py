"""The embedded data set `parts`: drawn objects whose small head tells the class best and whose body tells it weakly.

It was built to show one effect, and is no evidence for it: a classifier looks at the most discriminative part, so a box
around its attention misses the body until that part is masked. Each image holds one object - a body, whose tint is
shared by a family of classes, and a small white head with a spot in the class's own hue - over a textured background
with distractors: grey cards, bodies of any tint without a head, spots without a head, and heads without a body. The
last make the classifier surest of a crop that holds the object and little else. The box is exact.

Every image has its own random stream, keyed by seed, split and index, so it does not depend on how many are drawn.
"""

import colorsys
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from lchp.config import PARTS_SIZE
from lchp.data.base import DataSet, Split

IMAGE_SIZE = PARTS_SIZE
"""Side in px. A 64 px crop of it is what the tiny networks see."""
CLASSES = 10
FAMILY = 2
"""Neighbouring classes that share the tint of the body."""
_SHIFT = 4
"""Fractional bits of the coordinates that OpenCV is given."""

Range = tuple[float, float]
FloatColour = tuple[float, float, float]
Pair = np.ndarray | tuple[float, float]
"""x and y, in px."""


@dataclass(frozen=True)
class Design:
    """How hard the images are. Lengths in px, hues in turns; a pair is the range of a uniform draw."""

    length: Range = (15.0, 23.0)
    """Half the body's length."""
    aspect: Range = (0.55, 0.85)
    """The body's width over its length."""
    tilt: float = 0.09
    """Largest rotation either way, in turns."""
    head: Range = (0.42, 0.55)
    """The head's radius over half the body's width."""
    spot: float = 0.55
    """Radius of the coloured spot over the white head's."""
    body_saturation: Range = (0.4, 0.7)
    body_jitter: float = 0.05
    """Largest deviation of a body's hue from its family's; the larger, the weaker the cue."""
    head_jitter: float = 0.02
    bodies: tuple[int, int] = (0, 1)
    """Distractor bodies without a head (least, most)."""
    bits: tuple[int, int] = (0, 3)
    """Distractor bits of one colour (least, most)."""
    decoys: tuple[int, int] = (0, 2)
    """Distractor heads of any class, without a body (least, most)."""
    cards: tuple[int, int] = (1, 3)
    """Plain grey rectangles (least, most): without them the hole of a masked image is a sight of its own."""
    chroma: float = 12.0
    """Largest deviation of the background from grey, in grey levels."""
    texture: float = 0.3
    """Contrast of the texture that lies over everything."""
    noise: float = 0.02
    """Contrast of the pixel noise."""


def load(seed: int = 0, train: int = 3000, test: int = 500, design: Design | None = None) -> DataSet:
    """Draws the data set: `train` and `test` images, 72 x 72 px RGB, one exact box each, classes in equal shares.

    The same set is drawn once per process (two seconds of a sweep's every trial otherwise); its images are read-only.
    """
    return _load(seed, train, test, design or Design())


@lru_cache(maxsize=1)
def _load(seed: int, train: int, test: int, design: Design) -> DataSet:
    names = tuple(f"class_{c}" for c in range(CLASSES))
    return DataSet("parts", names, _split(seed, 0, train, design), _split(seed, 1, test, design))


def _split(seed: int, part: int, count: int, design: Design) -> Split:
    images = np.empty((count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    boxes = np.empty((count, 1, 4), np.float32)
    labels = np.arange(count, dtype=np.int64) % CLASSES
    for i in range(count):
        images[i], boxes[i, 0] = draw(np.random.default_rng((seed, part, i)), int(labels[i]), design)
    ids = tuple(f"{('train', 'test')[part]}/{i:05d}" for i in range(count))
    for array in (images, labels, boxes):
        array.setflags(write=False)
    return Split(ids, labels, images=images, boxes=tuple(boxes))


def draw(rng: np.random.Generator, label: int, design: Design) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """One image (72 x 72 x 3 uint8 RGB) and its object's box x1 y1 x2 y2 in px, x2 and y2 exclusive."""
    canvas = _background(rng, design)
    for _ in range(rng.integers(design.cards[0], design.cards[1] + 1)):
        corner, side = rng.integers(-8, IMAGE_SIZE - 8, 2), rng.integers(8, 29, 2)
        grey = (float(rng.uniform(100, 155)),) * 3
        cv2.rectangle(canvas, corner.tolist(), (corner + side).tolist(), grey, cv2.FILLED)
    for _ in range(rng.integers(design.bodies[0], design.bodies[1] + 1)):
        _ellipse(canvas, _body_colour(rng, int(rng.integers(CLASSES)), design), *_free_body(rng, design))
    for _ in range(rng.integers(design.bits[0], design.bits[1] + 1)):
        colour = _rgb(rng.random(), rng.uniform(0.6, 0.9), rng.uniform(0.6, 0.95))
        centre, radius = rng.uniform(0, IMAGE_SIZE, 2), rng.uniform(2.5, 5)
        _ellipse(canvas, colour, centre, (radius, radius), 0.0)
    for _ in range(rng.integers(design.decoys[0], design.decoys[1] + 1)):
        centre, radius = rng.uniform(0, IMAGE_SIZE, 2), _body(rng, design)[0][1] * rng.uniform(*design.head)
        _head(canvas, rng, int(rng.integers(CLASSES)), centre, radius, design)
    mask = _object(canvas, rng, label, design)
    image = canvas + rng.uniform(-255, 255, canvas.shape) * design.noise
    return np.clip(image, 0, 255).astype(np.uint8), _box(mask)


def _object(canvas: np.ndarray, rng: np.random.Generator, label: int, design: Design) -> np.ndarray:
    """Draws body and head onto the canvas, at a place where both fit. Returns their mask."""
    half, angle = _body(rng, design)
    radius = half[1] * rng.uniform(*design.head)
    # The head sits on the body's end, half a radius up, and looks either way.
    direction = np.array([np.cos(angle), np.sin(angle)]) * rng.choice((-1, 1))
    offset = direction * (half[0] + 0.3 * radius) + (0, -0.5 * radius)
    reach = np.hypot(half * np.abs((np.cos(angle), np.cos(angle))), half[::-1] * abs(np.sin(angle)))
    low = np.minimum(-reach, offset - radius)
    high = np.maximum(reach, offset + radius)
    centre = rng.uniform(1 - low, IMAGE_SIZE - 2 - high)
    mask = np.zeros(canvas.shape[:2], np.uint8)
    for where, colour in ((canvas, _body_colour(rng, label, design)), (mask, 1)):
        _ellipse(where, colour, centre, half, angle)
    _head(canvas, rng, label, centre + offset, radius, design)
    _ellipse(mask, 1, centre + offset, (radius, radius), 0.0)
    return mask


def _head(
    canvas: np.ndarray, rng: np.random.Generator, label: int, centre: Pair, radius: float, design: Design
) -> None:
    """A white disc, the same for all classes, with a spot in the class's own hue."""
    hue = label / CLASSES + rng.uniform(-1, 1) * design.head_jitter
    _ellipse(canvas, (235.0, 235.0, 235.0), centre, (radius, radius), 0.0)
    _ellipse(canvas, _rgb(hue, 0.85, rng.uniform(0.7, 0.95)), centre, (design.spot * radius, design.spot * radius), 0.0)


def _body(rng: np.random.Generator, design: Design) -> tuple[np.ndarray, float]:
    """Half axes in px, rotation in radians."""
    length = rng.uniform(*design.length)
    return np.array([length, length * rng.uniform(*design.aspect)]), 2 * np.pi * rng.uniform(-1, 1) * design.tilt


def _free_body(rng: np.random.Generator, design: Design) -> tuple[np.ndarray, np.ndarray, float]:
    """Centre (anywhere), half axes and rotation of a distractor."""
    half, angle = _body(rng, design)
    return rng.uniform(0, IMAGE_SIZE, 2), half, angle


def _body_colour(rng: np.random.Generator, label: int, design: Design) -> FloatColour:
    hue = (label // FAMILY) * FAMILY / CLASSES + rng.uniform(-1, 1) * design.body_jitter
    return _rgb(hue, rng.uniform(*design.body_saturation), rng.uniform(0.45, 0.9))


def _rgb(hue: float, saturation: float, value: float) -> FloatColour:
    r, g, b = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return 255 * r, 255 * g, 255 * b


def _background(rng: np.random.Generator, design: Design) -> np.ndarray:
    """A smooth field of dull colours, 72 x 72 x 3 float32 in 0..255."""
    grid = rng.uniform(60, 200, (4, 4, 1)) + design.chroma * rng.uniform(-1, 1, (4, 4, 3))
    smooth = cv2.resize(grid.astype(np.float32), (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_LINEAR)
    return smooth * (1 + design.texture * _texture(rng))


def _texture(rng: np.random.Generator) -> np.ndarray:
    """Grey texture of two scales, 72 x 72 x 1 in -1..1."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    fields = [cv2.resize(rng.uniform(-1, 1, (n, n)).astype(np.float32), size) for n in (9, 24)]
    return (0.5 * (fields[0] + fields[1]))[..., None]


def _ellipse(canvas: np.ndarray, colour: FloatColour | int, centre: Pair, half: Pair, angle: float) -> None:
    """A filled ellipse without anti-aliasing, so that its pixels, and hence its box, are exact."""
    fixed = [round(float(v) * (1 << _SHIFT)) for v in (*centre, *half)]
    degrees = round(float(np.degrees(angle)))
    scalar = (colour,) if isinstance(colour, int) else colour
    cv2.ellipse(canvas, fixed[:2], fixed[2:], degrees, 0, 360, scalar, cv2.FILLED, cv2.LINE_8, _SHIFT)


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    x, y, w, h = cv2.boundingRect(mask)
    return x, y, x + w, y + h
