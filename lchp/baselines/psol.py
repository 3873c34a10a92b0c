"""PSOL: Zhang, Cao and Wu, *Rethinking the Route Towards Weakly Supervised Object Localization*, CVPR 2020.

Pseudo boxes of the training images, without training: DDT on ImageNet features (ddt.py), each computed once on the
whole image and mapped through every view, as in the code. A localizer regresses them; the class comes from a classifier
of its own, trained plainly. So there is no score map. What the boxes come from is open in the paper too (it tries
several): with `method.localizer` any other method's boxes of the training images' own labels serve, and the localizer
is trained the same way (`lchp.training.links`).

The loss is the code's (tzzcl/PSOL, PSOL_training.py): 50 times the mean squared error of x, y, width and height as
shares of the view. It departs in the localizer, which is `lchp.method.networks.Localizer` (`localizer_head = "gap"` and
`box_encoding = "sigmoid"` come closest; the code's head has a hidden layer), in the views, which are stage 1's (the
code crops 8 to 100 % of the image), and in the schedule.
"""

import torch
from torch import Tensor

from lchp.baselines.cam import PLAIN
from lchp.method.definition import Method

WEIGHT = 50.0
"""Of the regression loss."""


def sides(boxes: Tensor) -> Tensor:
    """x1 y1 x2 y2 to x y width height, B x 4 each; x, y is the upper left corner."""
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)


def localizer_loss(box_hat: Tensor, pseudo_box: Tensor, known: Tensor) -> Tensor:
    """The localizer's loss; boxes B x 4, x1 y1 x2 y2 in [0, 1]; known: B, whether an image has a pseudo box."""
    return WEIGHT * (known * (sides(box_hat) - sides(pseudo_box)).square().mean(1)).mean()


METHOD = Method("psol", "PSOL", PLAIN, None)
