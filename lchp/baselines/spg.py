"""SPG: self-produced guidance (Zhang et al., ECCV 2018, arXiv 1807.08902).

Next to the classifier A, small branches learn which pixels are foreground, each from masks that another part produced:
pixels above delta_h are foreground (1), those below delta_l background (0), the others are ignored:

    B2 (on the trunk's last features)  from A's map of the image's class, stretched to [0, 1]
    B1 (on the last features of the resolution before)  from sigmoid(B2)
    C  (on the classifier's features)  from the mean of sigmoid(B1) and sigmoid(B2)

    L = CE(A, y) + BCE(B2) + BCE(B1) + BCE(C)

Each BCE is the mean over the pixels that its mask names, at the image's size. B1 and B2 share their last two layers.
No gradient flows through a mask. The score map is A's class map, which is CAM.
Thresholds, branches and their start are those of the authors' code (github.com/xiaomengyc/SPG, inception3_spg.py).

Departures: A's class map comes right after the trunk, as in wsolevaluation's ResNet50, without the code's two further
convolutions and their dropout; so B2, which the code hangs one unit earlier, and C see the same features. Branches are
narrower where the trunk has fewer than 512 channels, as on the embedded data set's networks.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lchp.backbones.spine import outputs, resolutions
from lchp.baselines.acol import start
from lchp.baselines.cam import class_activation_map, inner_cam
from lchp.config import ModelConfig
from lchp.method.definition import Batch, Method, Scheme, minmax
from lchp.method.networks import Classifier, ClassifierOutput, Fp32Conv2d
from lchp.method.pseudo_boxes import upsample

FROM_A, FROM_B2, FROM_BOTH = (0.7, 0.05), (0.5, 0.05), (0.7, 0.1)
"""(delta_h, delta_l) of the masks for B2, B1 and C."""
LEAST_FOREGROUND, RELATIVE = 30 / 224**2, 0.7
"""Where a smaller share of the pixels is foreground, those above this share of the map's maximum are (the code's)."""
WIDTH = 512
"""Channels of the branches, at most the trunk's."""


class Outputs(NamedTuple):
    """The classifier's output, and the foreground logits of the branches, B x h x w each at its own resolution."""

    a: ClassifierOutput
    b1: Tensor
    b2: Tensor
    c: Tensor


class Spg(nn.Module):
    """A classifier with the branches B1, B2 and C; images B x 3 x H x W in [0, 1] to the classifier's output."""

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        super().__init__()
        self.classifier = Classifier(replace(config, head="gap"), num_classes)
        last_two = resolutions(self.classifier.trunk)[-2:]
        self.units = (last_two[0][-1], last_two[-1][-1])
        width = min(WIDTH, self.units[1].channels)
        self.b1, self.b2 = (_convolution(unit.channels, width) for unit in self.units)
        self.shared = nn.Sequential(_convolution(width, width), Fp32Conv2d(width, 1, 1))
        self.c = nn.Sequential(_convolution(self.units[1].channels, width), Fp32Conv2d(width, 1, 1))
        for branch in (self.b1, self.b2, self.shared, self.c):
            start(branch)

    @property
    def mean(self) -> Tensor:
        """The colour that input normalisation maps to 0 (3 values in [0, 1])."""
        return self.classifier.mean

    def forward(self, x: Tensor) -> ClassifierOutput:
        """Logits and features of B x 3 x H x W images in [0, 1]."""
        return self.classifier(x)

    def branches(self, x: Tensor) -> Outputs:
        """What all parts say of images B x 3 x H x W."""
        with outputs(self.classifier.trunk, self.units) as features:
            a = self.classifier(x)
        b1 = self.shared(self.b1(features[self.units[0]]))[:, 0].float()
        b2 = self.shared(self.b2(features[self.units[1]]))[:, 0].float()
        return Outputs(a, b1, b2, self.c(a.features)[:, 0].float())


def _convolution(c_in: int, c_out: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1), nn.ReLU())


class Mask(NamedTuple):
    """Which pixels are foreground and which are background, B x H x W bool; the others are neither."""

    foreground: Tensor
    background: Tensor


def guidance(scores: Tensor, delta_h: float, delta_l: float) -> Mask:
    """The mask that scores B x H x W in [0, 1] produce: above delta_h, below delta_l. Where too little is above delta_h
    (LEAST_FOREGROUND), the foreground is what is above RELATIVE of the map's maximum; background goes first."""
    scores = scores.detach()
    foreground = scores > delta_h
    too_little = foreground.float().mean((1, 2), keepdim=True) < LEAST_FOREGROUND
    highest = scores.amax((1, 2), keepdim=True)
    background = scores < delta_l
    return Mask(torch.where(too_little, scores > RELATIVE * highest, foreground) & ~background, background)


def guided(logits: Tensor, mask: Mask) -> Tensor:
    """Binary cross-entropy of foreground logits B x h x w, upsampled to the mask's size, over the pixels that the mask
    names; 0 where it names none."""
    height, width = mask.foreground.shape[1:]
    loss = F.binary_cross_entropy_with_logits(
        upsample(logits, (height, width)), mask.foreground.float(), reduction="none"
    )
    named = mask.foreground | mask.background
    return (loss * named).sum() / named.sum().clamp(min=1)


def spg_loss(model: nn.Module, batch: Batch) -> Tensor:
    """CE(A, y) + BCE(B2) + BCE(B1) + BCE(C)."""
    assert isinstance(model, Spg)
    size = (batch.images.shape[2], batch.images.shape[3])
    a, b1, b2, c = model.branches(batch.images)
    weights = model.classifier.linear.weight[batch.labels]
    attention = minmax(upsample(class_activation_map(a.features, weights), size))  # B x H x W
    s1, s2 = (upsample(b, size).sigmoid() for b in (b1, b2))
    return (
        F.cross_entropy(a.logits.float(), batch.labels)
        + guided(b2, guidance(attention, *FROM_A))
        + guided(b1, guidance(s2, *FROM_B2))
        + guided(c, guidance((s1 + s2) / 2, *FROM_BOTH))
    )


METHOD = Method("spg", "SPG", Scheme("spg", spg_loss, Spg, sliced=False), inner_cam)
