"""Box geometry against closed forms, on numpy and torch alike."""

import numpy as np
import pytest
import torch

from lchp.boxes import apply_map, area, iou, merge, order

# a, b, IoU with exclusive ends, IoU with inclusive ends (each side one pixel longer)
PAIRS = [
    ((0, 0, 10, 10), (0, 0, 10, 10), 1.0, 1.0),
    ((0, 0, 10, 10), (5, 0, 15, 10), 50 / 150, 66 / 176),
    ((0, 0, 10, 10), (5, 5, 15, 15), 25 / 175, 36 / 206),
    ((0, 0, 10, 10), (2, 2, 4, 4), 4 / 100, 9 / 121),
    ((0, 0, 10, 10), (20, 20, 30, 30), 0.0, 0.0),
    ((0, 0, 10, 10), (10, 0, 20, 10), 0.0, 11 / 231),  # touching: with inclusive ends they share a column
    ((0, 0, 10, 10), (5, 5, 5, 5), 0.0, 1 / 121),  # without area, or one pixel
    ((5, 5, 5, 5), (5, 5, 5, 5), 0.0, 1.0),
    ((8, 8, 2, 2), (0, 0, 10, 10), 0.0, 0.0),  # crossed ends hold nothing
]


@pytest.mark.parametrize(("a", "b", "exclusive", "inclusive"), PAIRS)
def test_iou_closed_forms(a, b, exclusive, inclusive) -> None:
    for make in (lambda x: np.array(x, np.float64), lambda x: torch.tensor(x, dtype=torch.float64)):
        assert float(iou(make(a), make(b))) == pytest.approx(exclusive)
        assert float(iou(make(b), make(a))) == pytest.approx(exclusive)
        assert float(iou(make(a), make(b), inclusive=True)) == pytest.approx(inclusive)


def test_area_of_empty_boxes() -> None:
    boxes = np.array([[0, 0, 2, 3], [1, 1, 1, 4], [3, 3, 2, 2], [4, 4, 0, 9]], float)
    assert area(boxes).tolist() == [6, 0, 0, 0]
    assert area(boxes, inclusive=True).tolist() == [12, 4, 0, 0]


def test_numpy_and_torch_agree() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.uniform(-1, 2, (2, 200, 4))
    scale, shift = rng.uniform(-2, 2, (2, 200, 2))
    ta, tb = torch.from_numpy(a), torch.from_numpy(b)
    for inclusive in (False, True):
        np.testing.assert_allclose(iou(ta, tb, inclusive=inclusive), iou(a, b, inclusive=inclusive), atol=1e-12)
    np.testing.assert_array_equal(merge(ta, tb), merge(a, b))
    np.testing.assert_array_equal(order(ta), order(a))
    np.testing.assert_array_equal(
        apply_map(ta, torch.from_numpy(scale), torch.from_numpy(shift)), apply_map(a, scale, shift)
    )


def test_iou_broadcasts_over_leading_axes() -> None:
    rng = np.random.default_rng(1)
    a, b = order(rng.uniform(0, 1, (5, 4))), order(rng.uniform(0, 1, (5, 3, 4)))
    each = iou(a[:, None], b)
    assert each.shape == (5, 3)
    assert each[2, 1] == pytest.approx(float(iou(a[2], b[2, 1])))


def test_merge_is_the_smallest_box_around_both() -> None:
    a, b = torch.tensor([[0.1, 0.4, 0.3, 0.6]]), torch.tensor([[0.2, 0.1, 0.5, 0.5]])
    torch.testing.assert_close(merge(a, b), torch.tensor([[0.1, 0.1, 0.5, 0.6]]))
    assert torch.equal(merge(a, a), a)


def test_map_with_a_flip_keeps_ends_in_order() -> None:
    boxes = torch.tensor([[0.1, 0.2, 0.4, 0.9]])
    flipped = apply_map(boxes, torch.tensor([[-1.0, 1.0]]), torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(flipped, torch.tensor([[0.6, 0.2, 0.9, 0.9]]))
    grown = apply_map(boxes, torch.tensor([[2.0, -0.5]]), torch.tensor([[-0.1, 1.0]]))
    torch.testing.assert_close(grown, torch.tensor([[0.1, 0.55, 0.7, 0.9]]))
