"""The embedded data set: sizes, exact boxes, determinism, and the cue that only the head gives."""

import hashlib

import numpy as np
import pytest

from lchp.data import parts
from lchp.data.base import DataSet, Split

PLAIN = parts.Design(bodies=(0, 0), bits=(0, 0), decoys=(0, 0), cards=(0, 0), chroma=0, texture=0, noise=0)
"""Nothing but the object over a smooth grey background."""


@pytest.fixture(scope="module")
def small() -> DataSet:
    return parts.load(0, 60, 40)


def _images(split: Split) -> np.ndarray:
    assert split.images is not None
    return split.images


def test_sizes_and_shares(small: DataSet) -> None:
    assert small.name == "parts"
    assert len(small.class_names) == parts.CLASSES >= 8
    for split, count in ((small.train, 60), (small.test, 40)):
        assert split.boxes is not None
        assert split.paths is None
        assert _images(split).shape == (count, 72, 72, 3)
        assert _images(split).dtype == np.uint8
        assert split.labels.dtype == np.int64
        assert np.bincount(split.labels).tolist() == [count // parts.CLASSES] * parts.CLASSES
        assert len(set(split.image_ids)) == len(split.boxes) == count
        assert all(b.shape == (1, 4) and b.dtype == np.float32 for b in split.boxes)
    assert not set(small.train.image_ids) & set(small.test.image_ids)


def test_defaults_are_the_announced_sizes() -> None:
    assert parts.load.__defaults__ is not None
    assert parts.load.__defaults__[:3] == (0, 3000, 500)


def test_boxes_lie_inside(small: DataSet) -> None:
    assert small.train.boxes is not None
    boxes = np.concatenate(small.train.boxes)
    assert (boxes >= 0).all()
    assert (boxes <= parts.IMAGE_SIZE).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= 12).all()


@pytest.mark.parametrize("label", range(parts.CLASSES))
@pytest.mark.parametrize("seed", range(4))
def test_box_is_exact(label: int, seed: int) -> None:
    image, box = parts.draw(np.random.default_rng(seed), label, PLAIN)
    # Without colour in the background, the object's pixels are those with colour, and the white of the head.
    spread = image.max(2).astype(int) - image.min(2)
    drawn = (spread > 8) | (image == 235).all(2)
    ys, xs = np.nonzero(drawn)
    assert box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)


def test_same_seed_same_pixels(small: DataSet) -> None:
    again, other = parts.load(0, 60, 40), parts.load(1, 60, 40)
    assert np.array_equal(_images(small.train), _images(again.train))
    assert np.array_equal(np.concatenate(small.test.boxes or ()), np.concatenate(again.test.boxes or ()))
    assert not np.array_equal(_images(small.train), _images(other.train))
    assert not np.array_equal(_images(small.train)[:40], _images(small.test))


def test_an_image_does_not_depend_on_how_many_there_are(small: DataSet) -> None:
    assert np.array_equal(_images(parts.load(0, 20, 10).train), _images(small.train)[:20])


def test_boxes_are_pinned(small: DataSet) -> None:
    # Boxes, not pixels: rounding in the last bit of a colour may differ between processors.
    boxes = np.concatenate(small.train.boxes or ()).astype("<i2")
    assert hashlib.sha256(boxes.tobytes()).hexdigest()[:16] == "e3d59bb100131b8d"


def test_spot_tells_the_class_and_body_its_family() -> None:
    """Two classes of a family differ in the spot alone, as drawn from the same stream."""
    a, box_a = parts.draw(np.random.default_rng(3), 0, PLAIN)
    b, box_b = parts.draw(np.random.default_rng(3), 1, PLAIN)
    c, _ = parts.draw(np.random.default_rng(3), parts.FAMILY, PLAIN)
    assert box_a == box_b
    spot, other = (a != b).any(2).sum(), (a != c).any(2).sum()
    assert 0 < 5 * spot < other
