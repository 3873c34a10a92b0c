"""Eq. 1-6 against numbers computed by hand."""

import math

import pytest
import torch

from lchp.method.losses import classification_loss, confidence, is_visible, refinement_loss, regression_loss

BOXES = torch.tensor([[0.1, 0.1, 0.5, 0.5], [0.2, 0.2, 0.8, 0.8]])
TARGETS = torch.tensor([[0.2, 0.1, 0.5, 0.3], [0.2, 0.2, 0.8, 0.7]])  # squared errors 0.01 + 0.04, 0.01


def test_classification_loss_is_the_mean_of_two_cross_entropies() -> None:
    raw = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])  # softmax 3/4 1/4, 1/2 1/2
    masked = torch.tensor([[0.0, 0.0], [0.0, math.log(4.0)]])  # 1/2 1/2, 1/5 4/5
    y = torch.tensor([0, 1])
    ce_raw, ce_masked = (math.log(4 / 3) + math.log(2)) / 2, (math.log(2) + math.log(5 / 4)) / 2
    assert classification_loss(raw, masked, y).item() == pytest.approx((ce_raw + ce_masked) / 2)


def test_regression_loss_sums_coordinates_and_averages_images() -> None:
    known = torch.tensor([True, True])
    assert regression_loss(BOXES, TARGETS, known).item() == pytest.approx((0.05 + 0.01) / 2)
    assert regression_loss(BOXES, TARGETS, torch.tensor([True, False])).item() == pytest.approx(0.05 / 2)


def test_refinement_loss_is_averaged_over_the_whole_batch() -> None:
    assert refinement_loss(BOXES, TARGETS, torch.tensor([1.0, 0.0])).item() == pytest.approx(0.05 / 2)
    assert refinement_loss(BOXES, TARGETS, torch.tensor([1.0, 1.0])).item() == pytest.approx(0.06 / 2)


def test_refinement_loss_is_zero_without_gradient_when_all_is_masked() -> None:
    box_hat = BOXES.clone().requires_grad_()
    target, weight = TARGETS.clone().requires_grad_(), torch.zeros(2, requires_grad=True)
    loss = refinement_loss(box_hat, target, weight)
    loss.backward()
    assert loss.item() == 0
    assert box_hat.grad is not None
    assert box_hat.grad.abs().max() == 0
    assert target.grad is None
    assert weight.grad is None


def test_refinement_gradient() -> None:
    box_hat = BOXES.clone().requires_grad_()
    refinement_loss(box_hat, TARGETS, torch.tensor([1.0, 0.0])).backward()
    assert box_hat.grad is not None
    torch.testing.assert_close(box_hat.grad[0], 2 * (BOXES - TARGETS)[0] / 2)
    assert box_hat.grad[1].abs().max() == 0


def test_confidence_is_the_maximum_softmax() -> None:
    logits = torch.tensor([[math.log(6.0), math.log(3.0), 0.0], [0.0, 0.0, 0.0], [1000.0, 0.0, 0.0]])
    assert confidence(logits).tolist() == pytest.approx([0.6, 1 / 3, 1.0])
    assert confidence(logits.bfloat16()).dtype == torch.float32


def test_visible_boxes_have_an_area() -> None:
    boxes = torch.tensor([[0.0, 0.0, 0.1, 0.1], [1.0, 0.2, 1.0, 0.5], [0.3, 0.0, 0.5, 0.0]])
    assert is_visible(boxes).tolist() == [True, False, False]
