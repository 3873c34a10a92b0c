"""Algorithm 1 on hand-drawn attention maps."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from lchp.config import InitializationConfig
from lchp.method.losses import foreground
from lchp.method.pseudo_boxes import algorithm_1, attention_boxes, enclosing_boxes, mask_out, upsample

MEAN = torch.tensor([0.4, 0.5, 0.6])
NATIVE = InitializationConfig(delta=0.5, resolution="native")


def rectangle(*boxes: tuple[int, int, int, int], size: int = 16, value: float = 1.0) -> Tensor:
    """A size x size map with rectangles x1 y1 x2 y2 (exclusive) of a value."""
    a = torch.zeros(size, size)
    for x1, y1, x2, y2 in boxes:
        a[y1:y2, x1:x2] = value
    return a


def box_of(a: Tensor, config: InitializationConfig = NATIVE, size: int = 16) -> list[float]:
    return attention_boxes(a[None], (size, size), config)[0][0].tolist()


@pytest.mark.parametrize("box", [(2, 3, 7, 11), (0, 0, 16, 16), (15, 0, 16, 1), (0, 15, 1, 16), (4, 4, 5, 5)])
def test_rectangle_is_found_exactly(box) -> None:
    """The ends are exclusive: x2 is the far edge of the last pixel."""
    assert box_of(rectangle(box)) == [v / 16 for v in box]


def test_two_components_give_one_box_around_all_foreground() -> None:
    small, large = (1, 2, 3, 4), (8, 9, 14, 13)
    assert box_of(rectangle(small, large)) == [1 / 16, 2 / 16, 14 / 16, 13 / 16]


def test_height_and_width_are_not_mixed_up() -> None:
    a = torch.zeros(1, 4, 10)
    a[0, 1, 2:5] = 1
    assert attention_boxes(a, (4, 10), NATIVE)[0][0].tolist() == pytest.approx([0.2, 0.25, 0.5, 0.5])


@pytest.mark.parametrize("normalization", ["max", "minmax"])
def test_empty_attention_has_no_foreground_and_gives_the_whole_view(normalization) -> None:
    config = replace(NATIVE, normalization=normalization)
    boxes, found = attention_boxes(torch.zeros(2, 8, 8), (8, 8), config)
    assert boxes.tolist() == [[0, 0, 1, 1]] * 2
    assert found.tolist() == [False, False]


def test_constant_attention() -> None:
    """As a fraction of the maximum all of it is foreground; stretched to its range there is none."""
    a = torch.full((1, 8, 8), 0.3)
    assert attention_boxes(a, (8, 8), NATIVE)[1].item()
    assert not attention_boxes(a, (8, 8), replace(NATIVE, normalization="minmax"))[1].item()


@pytest.mark.parametrize("resolution", ["native", "input"])
@pytest.mark.parametrize("normalization", ["max", "minmax"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_attention_that_is_not_finite_has_no_foreground(value, normalization, resolution) -> None:
    """One such pixel leaves no range to compare with; the other maps of the batch do not mind."""
    a = torch.stack([rectangle((4, 4, 8, 8)), rectangle((4, 4, 8, 8))])
    a[0, 5, 5] = value
    config = InitializationConfig(delta=0.5, normalization=normalization, resolution=resolution)
    boxes, found = attention_boxes(a, (16, 16), config)
    assert found.tolist() == [False, True]
    assert boxes.tolist() == [[0, 0, 1, 1], [0.25, 0.25, 0.5, 0.5]]


@pytest.mark.parametrize("resolution", ["native", "input"])
def test_one_pixel_of_foreground_is_a_box_of_one_pixel(resolution) -> None:
    config = InitializationConfig(delta=0.99, resolution=resolution)
    assert box_of(rectangle((15, 3, 16, 4)), config) == [15 / 16, 3 / 16, 1, 4 / 16]


def test_a_delta_that_float32_rounds_to_one_leaves_no_foreground() -> None:
    boxes, found = attention_boxes(rectangle((4, 4, 8, 8))[None], (16, 16), replace(NATIVE, delta=1 - 2**-53))
    assert (boxes.tolist(), found.tolist()) == ([[0, 0, 1, 1]], [False])


def test_max_and_minmax_differ_by_the_floor() -> None:
    a = rectangle((4, 4, 8, 8)) + rectangle((2, 2, 10, 10), value=0.5) + 0.5  # 0.5 around, 1.0, then 2.0 within
    assert box_of(a, replace(NATIVE, delta=0.4)) == [2 / 16, 2 / 16, 10 / 16, 10 / 16]  # threshold 0.8
    assert box_of(a, replace(NATIVE, delta=0.4, normalization="minmax")) == [4 / 16, 4 / 16, 8 / 16, 8 / 16]  # 1.1
    assert box_of(a, replace(NATIVE, delta=0.2)) == [0, 0, 1, 1]  # 0.4
    assert box_of(a, replace(NATIVE, delta=0.2, normalization="minmax")) == [2 / 16, 2 / 16, 10 / 16, 10 / 16]  # 0.8


def test_foreground_is_strictly_above_delta() -> None:
    a = torch.tensor([[[0.5, 0.25, 1.0]]])
    assert foreground(a, 0.5, "max").tolist() == [[[False, False, True]]]
    assert foreground(a, 0.25, "max").tolist() == [[[True, False, True]]]


def test_boxes_do_not_depend_on_the_scale_of_attention() -> None:
    a = torch.rand(4, 9, 9, generator=torch.Generator().manual_seed(0))
    for normalization in ("max", "minmax"):
        config = replace(NATIVE, normalization=normalization)
        torch.testing.assert_close(attention_boxes(a, (9, 9), config), attention_boxes(a * 64, (9, 9), config))


def test_input_resolution_thresholds_the_upsampled_map() -> None:
    """One hot cell of 4 x 4 in 32 px: bilinear upsampling spreads it beyond its own square."""
    a = rectangle((1, 2, 2, 3), size=4)
    native = attention_boxes(a[None], (32, 32), NATIVE)[0][0]
    assert native.tolist() == [0.25, 0.5, 0.5, 0.75]
    upsampled = upsample(a[None], (32, 32))[0]
    ys, xs = np.nonzero(upsampled.numpy() > 0.5 * upsampled.numpy().max())
    expected = [xs.min() / 32, ys.min() / 32, (xs.max() + 1) / 32, (ys.max() + 1) / 32]
    assert box_of(a, replace(NATIVE, resolution="input"), 32) == pytest.approx(expected)
    low = box_of(a, replace(NATIVE, resolution="input", delta=0.05), 32)
    assert low[0] < 0.25
    assert low[2] > 0.5


def test_mask_out_fills_pixels_whose_centre_is_inside() -> None:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[0.25, 0.5, 0.75, 1.0], [0.0, 0.0, 0.3, 0.05]])
    masked = mask_out(images, boxes, MEAN)
    expected = images.clone()
    expected[0, :, 4:8, 2:6] = MEAN[:, None, None]
    assert torch.equal(masked[0], expected[0])
    assert torch.equal(masked[1], images[1])  # 0.3 of 8 px reaches two centres across, 0.05 none down


def test_a_box_without_area_masks_nothing() -> None:
    images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mask_out(images, torch.tensor([[0.5, 0.5, 0.5, 0.5]]), MEAN), images)


def brightness(images: Tensor) -> Tensor:
    """A stand-in for the teacher: attention is the red channel."""
    return images[:, 0]


def scene(size: int = 16) -> Tensor:
    """A bright part and, below it, a body half as bright, on black: 1 x 3 x size x size."""
    return (rectangle((4, 2, 8, 6), size=size) + rectangle((6, 8, 12, 14), size=size, value=0.5)).expand(1, 3, -1, -1)


PART, BODY = [4 / 16, 2 / 16, 8 / 16, 6 / 16], [6 / 16, 8 / 16, 12 / 16, 14 / 16]
BOTH = [4 / 16, 2 / 16, 12 / 16, 14 / 16]
BLACK = replace(NATIVE, mask="black", delta=0.6)


def test_masking_the_part_reveals_the_body_and_the_merge_holds_both() -> None:
    pseudo = algorithm_1(brightness, scene(), BLACK, MEAN)
    assert pseudo.l_r[0].tolist() == PART
    assert pseudo.l_m[0].tolist() == BODY
    assert pseudo.box[0].tolist() == BOTH
    assert pseudo.masked[0, :, 2:6, 4:8].abs().max() == 0
    assert torch.equal(pseudo.masked[0, :, 6:], scene()[0, :, 6:])
    assert torch.equal(pseudo.attention, brightness(scene()))


def test_single_pass_is_the_first_box_but_still_masks() -> None:
    pseudo = algorithm_1(brightness, scene(), replace(BLACK, boxes="single"), MEAN)
    assert pseudo.box[0].tolist() == pseudo.l_m[0].tolist() == PART
    assert pseudo.masked[0, :, 2:6, 4:8].abs().max() == 0


def test_raw_range_judges_the_second_pass_by_the_first() -> None:
    """The body reaches half of I_r's maximum: below delta 0.6 of the raw range, above 0.4."""
    high = algorithm_1(brightness, scene(), replace(BLACK, second_pass="raw"), MEAN)
    assert high.l_m[0].tolist() == high.box[0].tolist() == PART  # nothing found: the merge is L_r
    low = algorithm_1(brightness, scene(), replace(BLACK, second_pass="raw", delta=0.4), MEAN)
    assert low.box[0].tolist() == BOTH


def test_own_range_stretches_what_noise_a_fully_masked_object_leaves() -> None:
    image = scene()
    image = torch.where(image == 0.5, 0.001, image)
    image[:, :, 0, 0] = image[:, :, 15, 15] = 0.001
    assert algorithm_1(brightness, image, BLACK, MEAN).box[0].tolist() == [0, 0, 1, 1]
    assert algorithm_1(brightness, image, replace(BLACK, second_pass="raw"), MEAN).box[0].tolist() == PART


def test_mean_and_black_masks() -> None:
    mean = algorithm_1(brightness, scene(), replace(BLACK, mask="mean"), MEAN)
    torch.testing.assert_close(mean.masked[0, :, 3, 5], MEAN)
    # the mean's red, 0.4, is above 0.6 of the body's 0.5: with this teacher the hole itself is attended
    assert mean.l_m[0].tolist() == BOTH
    assert algorithm_1(brightness, scene(), BLACK, MEAN).masked[0, :, 3, 5].tolist() == [0, 0, 0]


@pytest.mark.parametrize("second_pass", ["own", "raw"])
def test_a_fully_masked_image_keeps_the_whole_view(second_pass) -> None:
    ones = torch.ones(1, 3, 8, 8)
    pseudo = algorithm_1(brightness, ones, replace(BLACK, second_pass=second_pass), MEAN)
    assert pseudo.masked.abs().max() == 0
    assert pseudo.box[0].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("second_pass", ["own", "raw"])
@pytest.mark.parametrize("normalization", ["max", "minmax"])
def test_a_constant_image_is_one_box_and_fully_masked(normalization, second_pass) -> None:
    """With foreground everywhere or nowhere, L_r is the whole view, and nothing that L_m could be changes the merge."""
    config = replace(NATIVE, normalization=normalization, second_pass=second_pass)
    pseudo = algorithm_1(brightness, torch.full((1, 3, 8, 8), 0.25), config, MEAN)
    assert torch.equal(pseudo.masked, MEAN.view(1, 3, 1, 1).expand(1, 3, 8, 8))
    assert pseudo.l_r[0].tolist() == pseudo.box[0].tolist() == [0, 0, 1, 1]


def test_a_second_pass_that_is_not_finite_leaves_the_first_box() -> None:
    def attend(images: Tensor) -> Tensor:  # the masked image, whose part is black, gives no number
        whole = images[:, :1, 2:6, 4:8].amax((1, 2, 3)) > 0
        return torch.where(whole[:, None, None], images[:, 0], torch.nan)

    pseudo = algorithm_1(attend, scene(), BLACK, MEAN)
    assert pseudo.l_m[0].tolist() == pseudo.box[0].tolist() == PART


def test_no_gradient_reaches_the_teacher() -> None:
    weight = torch.ones(1, requires_grad=True)
    pseudo = algorithm_1(lambda x: x[:, 0] * weight, scene(), BLACK, MEAN)
    assert not any(t.requires_grad for t in (pseudo.box, pseudo.masked, pseudo.attention))


def reference_box(a: np.ndarray, config: InitializationConfig, of: np.ndarray) -> tuple[list[float], bool]:
    """Eq. 1 in plain numpy, one map at a time."""
    low = of.min() if config.normalization == "minmax" else 0.0
    high = of.max()
    if high <= low:
        return [0, 0, 1, 1], False
    ys, xs = np.nonzero((a - low) / (high - low) > config.delta)
    if not len(xs):
        return [0, 0, 1, 1], False
    h, w = a.shape
    return [xs.min() / w, ys.min() / h, (xs.max() + 1) / w, (ys.max() + 1) / h], True


@pytest.mark.parametrize("normalization", ["max", "minmax"])
@pytest.mark.parametrize("second_pass", ["own", "raw"])
def test_batch_equals_a_plain_loop_over_images(normalization, second_pass) -> None:
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(24, 3, 12, 20, generator=generator) ** 8
    images[0] = 0
    images[1] = 0.25
    config = InitializationConfig(
        delta=0.63, resolution="native", normalization=normalization, second_pass=second_pass, mask="black"
    )
    boxes = algorithm_1(brightness, images, config, MEAN).box
    for image, box in zip(images.numpy().astype(np.float64), boxes, strict=True):
        a_r = image[0]
        l_r, _ = reference_box(a_r, config, a_r)
        a_m = a_r.copy()
        h, w = a_r.shape
        a_m[round(l_r[1] * h) : round(l_r[3] * h), round(l_r[0] * w) : round(l_r[2] * w)] = 0
        l_m, found = reference_box(a_m, config, a_r if second_pass == "raw" else a_m)
        merged = [*np.minimum(l_r, l_m)[:2], *np.maximum(l_r, l_m)[2:]] if found else l_r
        np.testing.assert_allclose(box, merged, atol=1e-6)


def test_enclosing_boxes_of_a_batch() -> None:
    masks = torch.zeros(3, 5, 7, dtype=torch.bool)
    masks[0, 2, 3] = True
    masks[2, 0, 0] = masks[2, 4, 6] = True
    boxes, found = enclosing_boxes(masks)
    torch.testing.assert_close(boxes[0], torch.tensor([3 / 7, 2 / 5, 4 / 7, 3 / 5]))
    assert boxes[1:].tolist() == [[0, 0, 1, 1]] * 2
    assert found.tolist() == [True, False, True]


@pytest.mark.parametrize("normalization", ["max", "minmax"])
@pytest.mark.parametrize(
    ("maps", "small", "size"),
    [
        (4, (28, 28), (448, 448)),
        (16, (5, 5), (160, 160)),
        (16, (7, 9), (50, 77)),
        (16, (9, 9), (12, 10)),
        (16, (8, 8), (8, 8)),
    ],
)
def test_boxes_of_the_upsampled_map_without_building_it(maps, small, size, normalization) -> None:
    rng = torch.Generator().manual_seed(len(normalization) + size[0])
    config = InitializationConfig(normalization=normalization)
    for delta in (0.1, 0.3, 0.5, 0.7, 0.9):
        a, reference = (torch.rand(maps, *small, generator=rng) ** power for power in (4, 2))
        for of in (None, reference):
            boxes, found = attention_boxes(a, size, replace(config, delta=delta), of)
            range_of = None if of is None else upsample(of, size)
            plain, any_of = enclosing_boxes(foreground(upsample(a, size), delta, normalization, range_of))
            assert torch.equal(found, any_of)
            torch.testing.assert_close(boxes[found], plain[found], atol=1e-6, rtol=0)


def test_a_constant_map_stays_constant_when_it_is_upsampled() -> None:
    a = torch.full((1, 3, 3), 0.1)
    assert not attention_boxes(a, (17, 31), InitializationConfig(normalization="minmax"))[1].item()
    assert attention_boxes(a, (17, 31), InitializationConfig())[1].item()
