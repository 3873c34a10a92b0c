"""Eq. 1-6 as pure functions, in the paper's symbols."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lchp.boxes import area


def classification_loss(logits_r: Tensor, logits_m: Tensor, y: Tensor) -> Tensor:
    """L_cls = 1/2 [CE(classifier(I_r), y) + CE(classifier(I_m), y)] (Eq. 2). logits B x classes, y B."""
    return 0.5 * (F.cross_entropy(logits_r, y) + F.cross_entropy(logits_m, y))


def regression_loss(box_hat: Tensor, pseudo_box: Tensor, known: Tensor) -> Tensor:
    """L_reg: squared error summed over the 4 coordinates, mean over the batch (Eq. 3). Boxes B x 4; known: B, whether
    an image has a pseudo box."""
    return (known * (box_hat - pseudo_box).square().sum(1)).mean()


def refinement_loss(box_hat: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """L_refine = 1/N sum_i weight_i * ||Loc(S(I_r))_i - S(b)_i||^2, N the whole batch (Eq. 6).

    box_hat, target: B x 4; weight: B, FixMatch's 1[confidence > tau]. No gradient flows into target and weight.
    """
    return (weight.detach() * (box_hat - target.detach()).square().sum(1)).mean()


def confidence(logits: Tensor) -> Tensor:
    """Maximum softmax of B x classes logits: B values in (0, 1] (Eq. 4)."""
    return logits.float().softmax(1).amax(1)


def is_visible(boxes: Tensor) -> Tensor:
    """B bool: whether a box (B x 4, clipped to its view) still has an area. One that vanished teaches nothing."""
    return area(boxes) > 0


def attention_range(attention: Tensor, normalization: str) -> tuple[Tensor, Tensor]:
    """What normalisation takes for 0 and for 1 of B x H x W maps: (low, high), both B x 1 x 1."""
    high = attention.amax((1, 2), keepdim=True)
    low = attention.amin((1, 2), keepdim=True) if normalization == "minmax" else torch.zeros_like(high)
    return low, high


def above(attention: Tensor, delta: float, low: Tensor, high: Tensor) -> Tensor:
    """Normalised A > delta (Eq. 1): bool, as attention B x H x W. A map without range (constant under `minmax`, nowhere
    positive under `max`) has no foreground."""
    # interpolating a constant map leaves a range of rounding errors
    return (attention - low > delta * (high - low)) & (high - low > 1e-6 * high.abs())


def foreground(attention: Tensor, delta: float, normalization: str, reference: Tensor | None = None) -> Tensor:
    """Foreground (Eq. 1) of B x H x W attention, B x H x W bool. `reference` (B x h x w) is the map whose range counts,
    A_r for a second pass in `raw` range; the map itself by default."""
    return above(attention, delta, *attention_range(attention if reference is None else reference, normalization))
