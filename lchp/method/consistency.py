"""Refinement schemes: which weight an image has in L_refine (Eq. 6), and how many strong views it is held against.

The paper's own is FixMatch's; its related work names the other two. They predict classes, and L_refine boxes: what each
does to a class target is done here to the weight of a box target, whose confidence is the classifier's on the crop in
it (Eq. 4).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

Weight = Callable[[Tensor, Tensor, float], Tensor]
"""(confidence of the crop B, that of its sharpened softmax B, tau) to weights B in [0, 1]."""


@dataclass(frozen=True)
class Consistency:
    """A scheme: the weight of an image, and the number of its strong views."""

    weight: Weight
    views: int = 1


def fixmatch(confidence: Tensor, _sharpened: Tensor, tau: float) -> Tensor:
    """1[confidence > tau] (Eq. 6; Sohn et al. 2020, arXiv 2001.07685)."""
    return (confidence > tau).float()


def uda(confidence: Tensor, sharpened: Tensor, tau: float) -> Tensor:
    """1[confidence > tau] times the confidence of the sharpened softmax, softmax(logits / temperature).

    UDA (Xie et al. 2020, arXiv 1904.12848) drops examples below a confidence and sharpens the class target of the
    others. A box cannot be sharpened, so the sharpened confidence is its weight, a choice made here. As the temperature
    goes to 0 the weight goes to FixMatch's. The authors' CIFAR-10 script: tau 0.8, temperature 0.4.
    """
    return fixmatch(confidence, sharpened, tau) * sharpened


SCHEMES: Mapping[str, Consistency] = {
    "fixmatch": Consistency(fixmatch),
    "uda": Consistency(uda),
    # ReMixMatch (Berthelot et al. 2020, arXiv 1911.09785) anchors several strong views (4 in the authors' example
    # command) to the guess on a weak one, without a threshold; FixMatch's is kept, so that only the views differ
    "anchoring": Consistency(fixmatch, views=4),
}


def anchored(views: int, *anchors: Tensor) -> tuple[Tensor, ...]:
    """What is known of B images (each tensor B x ...), once for each of their strong views, an image's side by side:
    (B * views) x ... The mean over all of them, which L_refine takes, is the mean over the views of Eq. 6."""
    return anchors if views == 1 else tuple(anchor.repeat_interleave(views, 0) for anchor in anchors)
