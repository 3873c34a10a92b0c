"""HaS: Singh and Lee, *Hide-and-Seek: Forcing a Network to be Meticulous for Weakly-supervised Object and Action
Localization*, ICCV 2017.

In training each patch of a grid over the image is hidden with probability 0.5, each time anew; hidden pixels take the
data's mean colour, so that an activation's expectation stays what it is at test time (section 3.1). The map is CAM's on
the whole image.

Patches are those of the paper's best GoogLeNet (HaS-32: 32 px of 224, a grid of 7 x 7), as a share of the image, so
that they hide as much at any size; the paper's HaS-Mixed for AlexNet, which draws the grid too, is not built. The mean
colour is the one that input normalisation maps to 0.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lchp.baselines.cam import cam, plain_loss
from lchp.method.definition import Batch, Method, Scheme
from lchp.method.networks import Classifier
from lchp.system.devices import send

GRID = 7
"""Patches along a side."""
HIDE = 0.5
"""Probability that a patch is hidden."""


def hide(images: Tensor, hidden: Tensor, colour: Tensor) -> Tensor:
    """Images B x 3 x H x W with the patches of B x GRID x GRID bool `hidden` in a colour (3 values)."""
    shown = F.interpolate(hidden[:, None].to(images), images.shape[2:], mode="nearest") == 0  # B x 1 x H x W
    return torch.where(shown, images, colour.view(1, 3, 1, 1).to(images))


def has_loss(classifier: nn.Module, batch: Batch, rate: float = HIDE) -> Tensor:
    """Cross-entropy on the images with patches hidden at `rate`."""
    hidden = torch.rand(len(batch.images), GRID, GRID, generator=batch.draws) < rate
    assert isinstance(classifier, Classifier)
    images = hide(batch.images, send(hidden, batch.images.device), classifier.mean)
    return plain_loss(classifier, replace(batch, images=images))


METHOD = Method("has", "HaS", Scheme("has", has_loss, sliced=False), cam)
