"""Refinement schemes against numbers computed by hand."""

import math
from itertools import pairwise

import pytest
import torch

from lchp.method.consistency import SCHEMES, Weight, anchored, fixmatch, uda
from lchp.method.losses import confidence, refinement_loss

LOGITS = torch.tensor([[math.log(9.0), 0.0], [math.log(4.0), 0.0], [0.0, 0.0]])  # confidence 0.9, 0.8, 0.5


def weighed(scheme: Weight, tau: float, temperature: float) -> torch.Tensor:
    """The weights of LOGITS under a scheme."""
    return scheme(confidence(LOGITS), confidence(LOGITS / temperature), tau)


def test_fixmatch_is_eq_6() -> None:
    assert weighed(fixmatch, 0.8, 0.4).tolist() == [1, 0, 0]  # above tau, not at it
    assert weighed(fixmatch, 0.7, 0.4).tolist() == [1, 1, 0]
    assert weighed(fixmatch, 0.0, 0.4).tolist() == [1, 1, 1]


def test_uda_weighs_what_it_keeps_by_the_sharpened_confidence() -> None:
    # at temperature 1/2 the odds are squared: 81 to 1, 16 to 1
    assert weighed(uda, 0.7, 0.5).tolist() == pytest.approx([81 / 82, 16 / 17, 0])
    assert weighed(uda, 0.7, 1.0).tolist() == pytest.approx([0.9, 0.8, 0])


def test_uda_is_fixmatch_as_the_temperature_goes_to_0() -> None:
    weights = [weighed(uda, 0.7, t) for t in (1.0, 0.3, 0.1, 0.01)]
    assert all((after >= before).all() for before, after in pairwise(weights))
    assert torch.equal(weights[-1], weighed(fixmatch, 0.7, 0.01))


def test_anchoring_repeats_the_anchor_for_each_view() -> None:
    boxes, weight = torch.arange(8.0).view(2, 4), torch.tensor([1.0, 0.0])
    several_boxes, several_weights = anchored(3, boxes, weight)
    assert several_boxes.tolist() == 3 * [[0, 1, 2, 3]] + 3 * [[4, 5, 6, 7]]
    assert several_weights.tolist() == [1, 1, 1, 0, 0, 0]
    once = anchored(1, boxes, weight)
    assert torch.equal(once[0], boxes)
    assert torch.equal(once[1], weight)


def test_the_loss_of_several_views_is_the_mean_of_theirs() -> None:
    generator = torch.Generator().manual_seed(0)
    target, weight = torch.rand(2, 4, generator=generator), torch.tensor([1.0, 0.5])
    views = torch.rand(3, 2, 4, generator=generator)
    each = [refinement_loss(view, target, weight).item() for view in views]
    whole = refinement_loss(views.transpose(0, 1).flatten(0, 1), *anchored(3, target, weight))
    assert whole.item() == pytest.approx(sum(each) / 3)


def test_the_schemes_of_the_related_work() -> None:
    assert {name: (s.weight, s.views) for name, s in SCHEMES.items()} == {
        "fixmatch": (fixmatch, 1),
        "uda": (uda, 1),
        "anchoring": (fixmatch, 4),
    }
