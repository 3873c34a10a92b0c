"""ACoL: adversarial complementary learning (Zhang et al., CVPR 2018, arXiv 1804.06962).

Two classifiers share the trunk, each two 3x3 convolutions, one convolution to class maps, and their mean over the
pixels. A's map M_A of the image's class, stretched to [0, 1], says where the features S are set to zero for B, which so
has to find other parts of the object:

    S~ = S where M_A <= delta, else 0;    L = CE(A(S), y) + CE(B(S~), y);    M = max(M_A, M_B), both stretched to [0, 1]

The class maps are the convolution's output itself (section 3.1), which is CAM. delta, the branches and their start are
those of the authors' code (github.com/xiaomengyc/ACoL, models/vgg/vgg_v1.py); class scores are A's, as there.

Departures: the trunk is cut where every method's is, and its features are not smoothed by the code's 3x3 mean; the
branches are narrower where the trunk has fewer than 512 channels, as on the embedded data set's networks.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lchp.config import ModelConfig
from lchp.method.definition import Batch, Method, Scheme, minmax
from lchp.method.losses import foreground
from lchp.method.networks import Classifier, ClassifierOutput, Fp32Conv2d

DELTA = 0.6
"""Share of M_A's range above which features are erased: the code's, for ImageNet and CUB."""
WIDTH = 1024
"""Channels of the branches, at most twice the trunk's (VGG's 512)."""


class Maps(NamedTuple):
    """The class maps of both branches, B x classes x h x w; their means over the pixels are the logits."""

    a: Tensor
    b: Tensor


class Acol(nn.Module):
    """The trunk with branches A and B; images B x 3 x H x W in [0, 1] to `ClassifierOutput`, whose logits are A's."""

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        super().__init__()
        self.classifier = Classifier(replace(config, head="gap"), num_classes)
        channels = self.classifier.linear.in_features
        self.classifier.set_submodule("linear", nn.Identity())  # the branches classify
        self.branch_a = _branch(channels, num_classes)
        self.branch_b = _branch(channels, num_classes)

    @property
    def mean(self) -> Tensor:
        """The colour that input normalisation maps to 0 (3 values in [0, 1])."""
        return self.classifier.mean

    def forward(self, x: Tensor) -> ClassifierOutput:
        """Branch A's logits, and the trunk's features."""
        features = self.classifier.trunk(x)  # B x C x h x w
        return ClassifierOutput(self.branch_a(features).mean((2, 3)), features[:, :0], features)

    def maps(self, x: Tensor, labels: Tensor) -> Maps:
        """Both branches' class maps of images B x 3 x H x W; `labels` (B class ids): whose map erases."""
        features = self.classifier.trunk(x)  # S: B x C x h x w
        a = self.branch_a(features)  # B x classes x h x w
        return Maps(a, self.branch_b(erase(features, _of(a, labels))))


def erase(features: Tensor, attention: Tensor) -> Tensor:
    """S~: features B x C x h x w, zero where the attention B x h x w is above DELTA of its range."""
    return features * ~foreground(attention.detach(), DELTA, "minmax")[:, None]


def _branch(channels: int, num_classes: int) -> nn.Module:
    width = min(WIDTH, 2 * channels)
    branch = nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        Fp32Conv2d(width, num_classes, 1),
    )
    return start(branch)


def start(branch: nn.Module) -> nn.Module:
    """Glorot's uniform start with biases of 0, for the convolutions of ACoL and SPG (the authors' code of both)."""
    for module in branch.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return branch


def _of(maps: Tensor, labels: Tensor) -> Tensor:
    """The maps of one class per image: B x classes x h x w to B x h x w."""
    # no position in the batch, whose size an exported file would freeze
    return maps.gather(1, labels[:, None, None, None].expand(-1, 1, *maps.shape[2:]))[:, 0]


def acol_loss(model: nn.Module, batch: Batch) -> Tensor:
    """CE(A(S), y) + CE(B(S~), y)."""
    assert isinstance(model, Acol)
    a, b = (m.mean((2, 3)).float() for m in model.maps(batch.images, batch.labels))
    return F.cross_entropy(a, batch.labels) + F.cross_entropy(b, batch.labels)


@torch.no_grad()
def acol_map(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The larger of M_A and M_B, each stretched to [0, 1]; a ScoreMap."""
    assert isinstance(model, Acol)
    a, b = (minmax(_of(m, labels).float()) for m in model.maps(images, labels))
    return torch.maximum(a, b)


METHOD = Method("acol", "ACoL", Scheme("acol", acol_loss, Acol), acol_map)
