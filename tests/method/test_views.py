"""The views: pixels and boxes move together, and as imgaug moves them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lchp.boxes import order
from lchp.config import RefinementConfig
from lchp.method.views import (
    AxisMap,
    StrongParameters,
    crop,
    general_view,
    imgaug_sequence,
    sample_general,
    sample_strong,
    strong_view,
    warp,
)

SIZE = 64
BLACK = torch.zeros(3)
STRONG = RefinementConfig(translation_probability=1.0)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_boxes(n: int, seed: int = 1, least: float = 0.15) -> Tensor:
    """n boxes on whole pixels of the view."""
    corner = torch.rand(n, 2, generator=rng(seed)) * (1 - least)
    side = least + torch.rand(n, 2, generator=rng(seed + 1)) * (1 - corner - least)
    return (torch.cat([corner, corner + side], 1) * SIZE).round() / SIZE


def paint(boxes: Tensor) -> Tensor:
    """White boxes on black, B x 3 x SIZE x SIZE."""
    images = torch.zeros(len(boxes), 3, SIZE, SIZE)
    for image, (x1, y1, x2, y2) in zip(images, (boxes * SIZE).round().int().tolist(), strict=True):
        image[:, y1:y2, x1:x2] = 1
    return images


def box_of_paint(image: Tensor) -> list[float]:
    ys, xs = np.nonzero(image[0].numpy() > 0.5)
    return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(xs) else []


def smooth_images(n: int, seed: int = 5) -> Tensor:
    """Images without fine detail, so that two ways of resampling agree."""
    coarse = torch.rand(n, 3, 6, 6, generator=rng(seed))
    return torch.nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bicubic", align_corners=False).clamp(0, 1)


@pytest.mark.parametrize("backend", ["tensor", "opencv", "imgaug"])
def test_warped_paint_lies_in_the_warped_box(backend) -> None:
    n = 60 if backend == "imgaug" else 300
    boxes, strong = random_boxes(n), sample_strong(n, STRONG, rng())
    views = strong_view(paint(boxes), strong, BLACK, backend)
    targets = strong.axis_map().boxes(boxes).clamp(0, 1) * SIZE
    compared = 0
    # imgaug crops and pads whole pixels: half a pixel off at either side, twice that where the content doubles
    tolerance = 2.0 if backend == "imgaug" else 1.0
    for view, target, scale in zip(views, targets, strong.scale, strict=True):
        if backend == "imgaug" and scale.max() > 1:
            continue  # what imgaug's scaling moves out of the view does not come back
        if (target[2:] - target[:2]).min() < 2:
            continue
        compared += 1
        np.testing.assert_allclose(box_of_paint(view), target, atol=tolerance)
    assert compared > n / 6


def test_axis_maps_compose_and_invert() -> None:
    boxes = random_boxes(50)
    first, second = (sample_strong(50, STRONG, rng(s)).axis_map() for s in (1, 2))
    torch.testing.assert_close(first.then(second).boxes(boxes), second.boxes(first.boxes(boxes)))
    torch.testing.assert_close(first.inverse().boxes(first.boxes(boxes)), boxes)
    both = first.then(first.inverse())
    torch.testing.assert_close(both.scale, torch.ones(50, 2))
    torch.testing.assert_close(both.shift, torch.zeros(50, 2), atol=1e-6, rtol=0)
    torch.testing.assert_close(first.select(slice(3, 5)).boxes(boxes[3:5]), first.boxes(boxes)[3:5])


@pytest.mark.parametrize("backend", ["tensor", "opencv"])
def test_identity_flip_and_integer_shift_are_exact(backend) -> None:
    images = torch.rand(1, 3, 8, 8, generator=rng())

    def under(scale: tuple[float, float], shift: tuple[float, float]) -> Tensor:
        return warp(images, AxisMap(torch.tensor([scale]), torch.tensor([shift])), torch.full((3,), 0.25), backend)

    torch.testing.assert_close(under((1, 1), (0, 0)), images)
    torch.testing.assert_close(under((-1, 1), (1, 0)), images.flip(3))
    torch.testing.assert_close(under((1, -1), (0, 1)), images.flip(2))
    moved = under((1, 1), (0.25, 0))
    torch.testing.assert_close(moved[..., 2:], images[..., :-2])
    torch.testing.assert_close(moved[..., :2], torch.full((1, 3, 8, 2), 0.25))


def test_order_of_operations() -> None:
    """Scale about the centre, then pad 25 % on the left, then flip: by hand."""
    strong = StrongParameters(
        torch.tensor([[0.8, 1.0]]), torch.tensor([[0.25, 0.0, 0.0, -0.25]]), torch.tensor([[True, False]])
    )
    box = torch.tensor([[0.5, 0.0, 1.0, 0.6]])
    # x: 0.5..1 -> 0.5..0.9 -> (0.75..1.15) / 1.25 = 0.6..0.92 -> 0.08..0.4;  y: / 0.75
    torch.testing.assert_close(strong.axis_map().boxes(box), torch.tensor([[0.08, 0.0, 0.4, 0.8]]))


def imgaug_boxes(strong: StrongParameters, boxes: Tensor) -> Tensor:
    iaa = pytest.importorskip("imgaug.augmenters")
    from imgaug.augmentables.bbs import BoundingBox, BoundingBoxesOnImage

    out = []
    for i, box in enumerate((boxes * SIZE).tolist()):
        there = BoundingBoxesOnImage([BoundingBox(*box)], (SIZE, SIZE, 3))
        moved = imgaug_sequence(strong, i, iaa).augment_bounding_boxes([there])[0].bounding_boxes[0]
        out.append([moved.x1, moved.y1, moved.x2, moved.y2])
    return torch.tensor(out) / SIZE


def whole_pixels(strong: StrongParameters) -> StrongParameters:
    return replace(strong, sides=(strong.sides * SIZE).round() / SIZE)


def test_imgaug_moves_boxes_likewise() -> None:
    """imgaug rounds what it crops and pads to whole pixels; given whole pixels, its boxes are ours."""
    boxes, strong = random_boxes(100), whole_pixels(sample_strong(100, STRONG, rng(7)))
    torch.testing.assert_close(strong.axis_map().boxes(boxes), imgaug_boxes(strong, boxes), atol=1e-4, rtol=0)


def test_imgaug_differs_by_its_rounding_only() -> None:
    """With sides between two pixels its boxes are half a pixel off on either side, doubled where the view is a half."""
    boxes, strong = random_boxes(100), sample_strong(100, STRONG, rng(8))
    ours, theirs = strong.axis_map().boxes(boxes).clamp(0, 1), imgaug_boxes(strong, boxes).clamp(0, 1)
    assert (ours - theirs).abs().max() <= 1.01 / SIZE


@pytest.mark.parametrize("fill", [None, (0.0, 0.0, 0.0), (0.9, 0.4, 0.1)])
def test_opencv_gives_the_same_pixels_up_to_its_rounding(fill) -> None:
    """It rounds positions to 1/32 px: on these images, whose colour changes by less than 0.3 per pixel, below 0.01."""
    images = smooth_images(40)[:, :, :, : SIZE - 7]  # wide and high are not the same
    maps, colour = sample_strong(40, STRONG, rng(2)).axis_map(), None if fill is None else torch.tensor(fill)
    ours, theirs = (warp(images, maps, colour, backend) for backend in ("tensor", "opencv"))
    assert ours.shape == theirs.shape == images.shape
    assert ours.dtype == theirs.dtype
    assert (ours - theirs).abs().max() < 0.03
    assert (ours - theirs).abs().mean() < 0.002
    assert torch.equal(warp(images, maps, colour), theirs)  # what `auto` is on a CPU


@pytest.mark.parametrize("fill", [(0.0, 0.0, 0.0), (0.9, 0.4, 0.1)])
def test_imgaug_gives_nearly_the_same_pixels(fill) -> None:
    pytest.importorskip("imgaug")
    config = replace(STRONG, scale=(0.8, 1.0))  # above 1 imgaug loses what ours keeps, see warp_imgaug
    strong, colour = whole_pixels(sample_strong(24, config, rng(9))), torch.tensor(fill)
    images = smooth_images(24)
    ours, theirs = (strong_view(images, strong, colour, backend) for backend in ("tensor", "imgaug"))
    difference = (ours - theirs).abs()
    assert difference.mean() < 0.01
    assert (difference > 0.1).float().mean() < 0.02  # edges of the padding, which each resamples its own way
    untouched = StrongParameters(torch.ones(24, 2), torch.zeros(24, 4), torch.ones(24, 2, dtype=torch.bool))
    views = strong_view(images, untouched, colour, "imgaug")
    torch.testing.assert_close(views, images.flip(2, 3), atol=0.5 / 255 + 1e-6, rtol=0)


@pytest.mark.parametrize("augmentations", [("scale",), ("translation",), ("flip",), ("scale", "flip")])
def test_subsets_share_their_draws(augmentations) -> None:
    config = RefinementConfig()
    everything = sample_strong(40, config, rng(3))
    some = sample_strong(40, replace(config, augmentations=augmentations), rng(3))
    neutral = StrongParameters(torch.ones(40, 2), torch.zeros(40, 4), torch.zeros(40, 2, dtype=torch.bool))
    for name, field in (("scale", "scale"), ("translation", "sides"), ("flip", "flip")):
        expected = everything if name in augmentations else neutral
        assert torch.equal(getattr(some, field), getattr(expected, field))


def test_draws_keep_their_ranges_and_rates() -> None:
    strong = sample_strong(4000, RefinementConfig(), rng())
    assert 0.8 <= strong.scale.min() < 0.801
    assert 1.199 < strong.scale.max() <= 1.2
    assert strong.sides.abs().max() <= 0.25
    moved = strong.sides.abs().amax(1) > 0
    assert moved.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert strong.sides[moved].min(0).values.max() < -0.24  # all four sides, both ways
    assert strong.sides[moved].max(0).values.min() > 0.24
    assert strong.flip.float().mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.03)
    assert (strong.flip[:, 0] & strong.flip[:, 1]).float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_general_view_is_a_plain_crop_and_flip() -> None:
    images = torch.randint(0, 256, (30, 20, 20, 3), generator=rng(), dtype=torch.uint8)
    offsets, flip = sample_general(30, 20, 15, rng(4))
    views = general_view(images, offsets, flip, 15)
    assert offsets.min() == 0
    assert offsets.max() == 5
    assert 5 < flip.sum() < 25
    for image, view, (x, y), f in zip(images, views, offsets.tolist(), flip.tolist(), strict=True):
        expected = image[y : y + 15, x : x + 15]
        assert torch.equal(view, expected.flip(1) if f else expected)


def test_crop_equals_pillows() -> None:
    """Away from the rim: Pillow sees nothing outside of its box, the crop here interpolates with what is there."""
    images = smooth_images(6)
    boxes = torch.tensor(
        [[8, 16, 40, 56], [0, 0, 64, 64], [30, 2, 62, 30], [10, 10, 26, 26], [0, 32, 32, 64], [5, 9, 60, 14]]
    )
    crops = crop(images, boxes / SIZE)
    for image, box, ours in zip(images, boxes.tolist(), crops, strict=True):
        raw = Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
        theirs = np.asarray(raw.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=tuple(box)), np.float32) / 255
        rim_x, rim_y = SIZE // (box[2] - box[0]) + 1, SIZE // (box[3] - box[1]) + 1
        difference = (ours.permute(1, 2, 0).numpy() - theirs)[rim_y:-rim_y, rim_x:-rim_x]
        assert np.abs(difference).max() < 0.02


def test_crop_of_the_whole_view_and_of_a_line() -> None:
    images = smooth_images(2)
    whole = crop(images, torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(2, 4))
    torch.testing.assert_close(whole, images)
    line = crop(images, torch.tensor([[0.5, 0.0, 0.5, 1.0], [1.0, 1.0, 1.0, 1.0]]))
    assert line.isfinite().all()


def test_targets_that_leave_the_view() -> None:
    """Cropping the left quarter away: a box there vanishes, one across the cut is clipped."""
    sides = torch.tensor([[-0.25, 0.0, 0.0, 0.0]]).expand(2, 4)
    strong = StrongParameters(torch.ones(2, 2), sides, torch.zeros(2, 2, dtype=torch.bool))
    target = strong.axis_map().boxes(torch.tensor([[0.0, 0.0, 0.2, 1.0], [0.1, 0.0, 0.55, 1.0]]))
    torch.testing.assert_close(target[:, [0, 2]], torch.tensor([[-1 / 3, -1 / 15], [-0.2, 0.4]]))
    clipped = target.clamp(0, 1)
    assert torch.equal(order(clipped), clipped)
    torch.testing.assert_close(clipped[:, [0, 2]], torch.tensor([[0.0, 0.0], [0.0, 0.4]]))
