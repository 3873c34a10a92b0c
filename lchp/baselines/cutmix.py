"""CutMix: Yun et al., *CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features*, ICCV
2019.

Eq. 1: x = M * x_A + (1 - M) * x_B and y = lambda y_A + (1 - lambda) y_B, where M is 0 in a box of the image's aspect
whose area is 1 - lambda (Eq. 2), about a centre that is uniform over the image; lambda ~ Beta(1, 1), and in the loss it
is the share of x_A that is left once the box is cut off at the image's border. One draw serves a batch, x_B is the
batch in another order, and every batch is mixed, all as in the authors' ImageNet recipe (clovaai/CutMix-PyTorch,
`--beta 1.0 --cutmix_prob 1.0`). The map is CAM's. It departs in the schedule: the paper trains 300 epochs on ImageNet,
this as long as any other method here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lchp.baselines.cam import cam
from lchp.method.definition import Batch, Method, Scheme
from lchp.system.devices import send


def cut_mask(size: tuple[int, int], share: Tensor, centre: Tensor) -> Tensor:
    """Where x_B shows, H x W bool: a box of the area 1 - `share` (lambda, a scalar) about `centre` (y, x in [0, 1))."""

    def inside(n: int, at: Tensor) -> Tensor:
        half = (n * (1 - share).sqrt()).floor() // 2
        middle = (at * n).floor()
        pixels = torch.arange(n, device=at.device)
        return (pixels >= middle - half) & (pixels < middle + half)

    return inside(size[0], centre[0])[:, None] & inside(size[1], centre[1])


def mixed_loss(classifier: nn.Module, batch: Batch, mask: Tensor, order: Tensor) -> Tensor:
    """Cross-entropy of the images with those of `order` (B) in the `mask` (H x W bool), labels weighted by area."""
    logits = classifier(torch.where(mask, batch.images[order], batch.images)).logits.float()
    left = 1 - mask.float().mean()
    return left * F.cross_entropy(logits, batch.labels) + (1 - left) * F.cross_entropy(logits, batch.labels[order])


def cutmix_loss(classifier: nn.Module, batch: Batch) -> Tensor:
    """Eq. 1 with the batch's own draws."""
    share = torch.rand((), generator=batch.draws)  # Beta(1, 1) is uniform
    centre = torch.rand(2, generator=batch.draws)
    order = torch.randperm(len(batch.images), generator=batch.draws)
    size, device = (batch.images.shape[2], batch.images.shape[3]), batch.images.device
    share, centre = send(torch.cat([share[None], centre]), device).tensor_split([1])
    return mixed_loss(classifier, batch, cut_mask(size, share, centre), send(order, device))


METHOD = Method("cutmix", "CutMix", Scheme("cutmix", cutmix_loss, sliced=False), cam)
