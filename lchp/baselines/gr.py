"""GR: Choe, Park and Shim, *Improved Techniques for Weakly-Supervised Object Localization*, 2018 (arXiv 1802.07888).

GR stands for GoogLeNet resize, the augmentation of Szegedy et al., *Going Deeper with Convolutions*, CVPR 2015, section
6: a crop that holds 8 to 100 % of the image's area at an aspect ratio of 3/4 to 4/3, resized to the input. A crop often
leaves the most discriminative part out, so that the network has to learn the others too. The map is CAM's.

The draws are those of tensorpack's `GoogleNetResize` (ppwwyyxx/tensorpack, the library that the authors' later code is
written with): area and aspect ratio uniform, width and height swapped in half of the cases, a crop that does not fit
drawn again, up to ten times, else the whole image. The paper's text was not at hand when this was written: the name,
the augmentation and its ranges come from tensorpack and from fastai's `googlenet_resize`, which cites the paper for it.

It departs in the network, which is the config's (the paper also tunes its own, for Tiny-ImageNet), and in that it crops
the general view (crop and flip), as every method here gets it, bilinearly.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from lchp.baselines.cam import cam, plain_loss
from lchp.method.definition import Batch, Method, Scheme
from lchp.method.views import crop
from lchp.system.devices import send

AREA = (0.08, 1.0)
"""Least and largest share of the image's area."""
ASPECT = (3 / 4, 4 / 3)
"""Least and largest ratio of width and height, in pixels."""
TRIES = 10


def sample_crops(n: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Crops of n images of `size` (H, W), n x 4 in [0, 1] (x1 y1 x2 y2)."""
    area, aspect, swapped, left, top = torch.rand(5, n, TRIES, generator=generator)
    area = AREA[0] + (AREA[1] - AREA[0]) * area
    aspect = ASPECT[0] + (ASPECT[1] - ASPECT[0]) * aspect
    aspect = torch.where(swapped < 0.5, 1 / aspect, aspect)
    width, height = (area * aspect * size[0] / size[1]).sqrt(), (area / aspect * size[1] / size[0]).sqrt()
    fits = (width <= 1) & (height <= 1)  # n x TRIES
    x1, y1 = left * (1 - width), top * (1 - height)
    boxes = torch.stack([x1, y1, x1 + width, y1 + height], 2)  # n x TRIES x 4
    first = boxes[torch.arange(n), fits.int().argmax(1)]
    return torch.where(fits.any(1)[:, None], first, torch.tensor([0.0, 0.0, 1.0, 1.0]))


def gr_loss(classifier: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy on one crop of each image."""
    boxes = sample_crops(len(batch.images), (batch.images.shape[2], batch.images.shape[3]), batch.draws)
    images = crop(batch.images, send(boxes, batch.images.device))
    return plain_loss(classifier, replace(batch, images=images))


METHOD = Method("gr", "GR", Scheme("gr", gr_loss, sliced=False), cam)
