"""DDT: Wei et al., *Unsupervised Object Discovery and Co-Localization by Deep Descriptor Transforming*, Pattern
Recognition 2019 (arXiv 1707.06397): boxes for the images of one class from what their features have in common.

Every position's features are a descriptor x. With the mean m over all descriptors of all images of the class and the
first principal direction xi of their covariance, P = xi . (x - m) is positive on the common object. The box is that of
the largest connected region of cells with P > 0 on the features' own grid, in which corners connect, each cell enlarged
to the pixels nearest to it, as in PSOL's labelling.

The covariance is added up over batches in float64, so memory is C x C whatever the number of images, and the images are
run through twice. It departs from the paper and from PSOL's code (tzzcl/PSOL, generate_box_imagenet.py) in three
things:

- the sign of xi, which a PCA leaves open (there it is whatever the library returns): xi sums to a positive number, so
  that P grows with the total activation;
- without a positive position the box is the whole view (there, 14 px of 448 by an oversight);
- the features are those of the trunk that is given, at stride 16 (there VGG16's last pooling, stride 32).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lchp.baselines.cam import class_activation_map
from lchp.method.regions import largest_component_boxes


@dataclass(frozen=True)
class Transform:
    """`mean` m and `direction` xi of each class, K x C float32 both; each xi has length 1."""

    mean: Tensor
    direction: Tensor

    @classmethod
    def of(cls, classes: Sequence[tuple[Tensor, Tensor]], device: torch.device) -> "Transform":
        """That of K classes, from the `Descriptors.principal` of each."""
        mean, direction = (torch.stack(part).float() for part in zip(*classes, strict=True))
        return cls(mean.to(device), direction.to(device))

    def project(self, features: Tensor, labels: Tensor) -> Tensor:
        """P of features B x C x h x w, each image's by the transform of its class (labels: B): B x h x w."""
        centred = features.float() - self.mean[labels][:, :, None, None]
        return class_activation_map(centred, self.direction[labels])

    def masks(self, features: Tensor, labels: Tensor) -> Tensor:
        """Where P > 0: B x h x w bool."""
        return self.project(features, labels) > 0

    def boxes(self, features: Tensor, labels: Tensor) -> Tensor:
        """DDT's boxes of images with these features and class ids (B), B x 4 in [0, 1] of their views."""
        return largest_component_boxes(self.masks(features, labels))


class Descriptors:
    """Number, sum and second moments of descriptors, added up over batches."""

    def __init__(self, channels: int, device: torch.device | None = None) -> None:
        self.count = 0
        self.total = torch.zeros(channels, dtype=torch.float64, device=device)
        self.products = torch.zeros(channels, channels, dtype=torch.float64, device=device)

    def add(self, features: Tensor) -> None:
        """Adds the descriptors of features B x C x h x w."""
        x = features.detach().double().transpose(0, 1).flatten(1)  # C x (B h w)
        self.count += x.shape[1]
        self.total += x.sum(1)
        self.products += x @ x.T

    def principal(self) -> tuple[Tensor, Tensor]:
        """m and xi, C values each, of all descriptors so far, in float64 on the CPU. Raises ValueError without any."""
        if not self.count:
            raise ValueError("no descriptors: the class has no image")
        mean = self.total / self.count
        covariance = self.products / self.count - mean.outer(mean)
        direction = torch.linalg.eigh(covariance.cpu()).eigenvectors[:, -1]  # eigenvalues ascend
        return mean.cpu(), direction if direction.sum() >= 0 else -direction
