"""CSoA: auto-adapted segmentation and co-supervised augmentation (Kou et al., WACV 2021, arXiv 1911.07160).

Built from the paper's abstract, which says what the two modules do but not by which formulas; the paper's equations and
a code of the authors were not at hand. So a figure of this file is one of the method's idea, not of its recipe.

Published: ConfSeg gives each pixel of the CAM a confidence without further hyper-parameters; the resulting mask of each
image supervises an additional CAM grown from internal feature maps. CoAug takes features of the CAM's foreground and
background apart, and applies a metric loss to them over the batch.

Chosen here, with A the CAM of the image's class, stretched to [0, 1], and t its mean over the pixels:

    foreground M = 1[A > t];    confidence K = (A - t) / (1 - t) where A > t, else (t - A) / t
    L_seg = CE(A', y) + sum K BCE(A'_y, M) / sum K
    f, b = means of the features, weighted by K M and by K (1 - M), of length 1;    p = mean of the f of one's class
    L_aug = mean over i, j of [margin + f_i . b_j - f_i . p_i]_+
    L = CE(A, y) + L_seg + L_aug

A' are class maps by a 3x3 convolution, ReLU and a 1x1 convolution, on the trunk's last features one resolution before
its own. No gradient flows into A through M and K, and the score map is A. In a batch where an image is alone of its
class, p is its own f.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lchp.backbones.spine import outputs, resolutions
from lchp.baselines.cam import class_activation_map, inner_cam
from lchp.config import ModelConfig
from lchp.method.definition import Batch, Method, Scheme, minmax
from lchp.method.networks import Classifier, ClassifierOutput, Fp32Conv2d

MARGIN = 0.5
"""By how much the cosine to one's class is to exceed that to any background (chosen here)."""


class Csoa(nn.Module):
    """A classifier and the additional CAM's layers; images B x 3 x H x W in [0, 1] to the classifier's output."""

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        super().__init__()
        self.classifier = Classifier(replace(config, head="gap"), num_classes)
        self.unit = resolutions(self.classifier.trunk)[-2:][0][-1]
        channels = self.unit.channels
        self.internal = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), Fp32Conv2d(channels, num_classes, 1)
        )

    @property
    def mean(self) -> Tensor:
        """The colour that input normalisation maps to 0 (3 values in [0, 1])."""
        return self.classifier.mean

    def forward(self, x: Tensor) -> ClassifierOutput:
        """Logits and features of B x 3 x H x W images in [0, 1]."""
        return self.classifier(x)

    def both(self, x: Tensor) -> tuple[ClassifierOutput, Tensor]:
        """The classifier's output, and the class maps A' (B x classes x h' x w') of images B x 3 x H x W."""
        with outputs(self.classifier.trunk, [self.unit]) as features:
            out = self.classifier(x)
        return out, self.internal(features[self.unit])


def confidence_segmentation(cam: Tensor) -> tuple[Tensor, Tensor]:
    """M (bool) and K (in [0, 1], 0 at the threshold and 1 at both ends of the range) of CAMs B x h x w. A map without
    range has no foreground and no confidence."""
    a = minmax(cam.detach().float())
    t = a.mean((1, 2), keepdim=True)
    m = a > t
    return m, torch.where(m, (a - t) / (1 - t), (t - a) / t).nan_to_num()


def segmentation_loss(internal: Tensor, m: Tensor, k: Tensor) -> Tensor:
    """BCE of the additional CAM (B x h' x w') against M (B x h x w), weighted by K, at the CAM's resolution."""
    internal = F.interpolate(internal[:, None], m.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    each = F.binary_cross_entropy_with_logits(internal, m.float(), reduction="none")
    return (k * each).sum() / k.sum().clamp(min=torch.finfo(k.dtype).tiny)


def augmentation_loss(features: Tensor, m: Tensor, k: Tensor, labels: Tensor) -> Tensor:
    """L_aug of features B x C x h x w, with M and K at their resolution and class ids B."""
    f, b = (
        F.normalize(torch.einsum("bchw,bhw->bc", features.float(), k * part), dim=1) for part in (m, ~m)
    )  # both B x C
    same = (labels[:, None] == labels[None]).float()  # B x B
    p = F.normalize(same @ f, dim=1)
    return (MARGIN + f @ b.T - (f * p).sum(1, keepdim=True)).relu().mean()


def csoa_loss(model: nn.Module, batch: Batch) -> Tensor:
    """CE(A, y) + L_seg + L_aug."""
    assert isinstance(model, Csoa)
    out, internal = model.both(batch.images)
    weights = model.classifier.linear.weight[batch.labels]
    m, k = confidence_segmentation(class_activation_map(out.features, weights))
    of_class = internal[torch.arange(len(internal), device=internal.device), batch.labels].float()
    return (
        F.cross_entropy(out.logits.float(), batch.labels)
        + F.cross_entropy(internal.mean((2, 3)).float(), batch.labels)
        + segmentation_loss(of_class, m, k)
        + augmentation_loss(out.features, m, k, batch.labels)
    )


METHOD = Method("csoa", "CSoA", Scheme("csoa", csoa_loss, Csoa, sliced=False), inner_cam)
