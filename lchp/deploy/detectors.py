"""A run's whole prediction as one module, of operations alone that an exported file can hold."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lchp.baselines.ddt import Transform
from lchp.deploy.trained import TrainedRun
from lchp.errors import LchpError
from lchp.method.definition import ScoreMap
from lchp.method.losses import confidence, foreground
from lchp.method.networks import Classifier, Localizer
from lchp.method.pseudo_boxes import enclosing_boxes, upsample
from lchp.method.steps import predict_boxes
from lchp.method.views import crop
from lchp.training.chain import method_of
from lchp.training.map_boxes import Directions


class Detector(nn.Module):
    """Images B x 3 x S x S in [0, 1] -> box B x 4 (x1 y1 x2 y2 / S, in order, clipped), class scores B x classes
    (softmax), confidence B (maximum softmax on the crop in the box, Eq. 4)."""

    def __init__(self, classifier: Classifier, localizer: Localizer, crop_margin: float) -> None:
        super().__init__()
        self.classifier, self.localizer, self.crop_margin = classifier, localizer, crop_margin

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images to box, scores, confidence."""
        scores = self.classifier(images).logits.float().softmax(1)
        box = predict_boxes(self.localizer, images)
        return box, scores, confidence(self.classifier(crop(images, box, self.crop_margin, "tensor")).logits)


class MapDetector(nn.Module):
    """As `Detector`, of a method whose box goes around a foreground: that of the class with the highest score."""

    def __init__(self, classifier: nn.Module, masks: nn.Module, *, largest: bool, crop_margin: float) -> None:
        """masks: (images, class ids) to the foreground, B x h x w bool; largest: whether the box goes around its
        largest region, and not around all of it."""
        super().__init__()
        self.classifier, self.masks, self.largest, self.crop_margin = classifier, masks, largest, crop_margin

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images to box, scores, confidence."""
        scores = self.classifier(images).logits.float().softmax(1)
        mask = self.masks(images, scores.argmax(1))
        box, _ = enclosing_boxes(largest_region(mask) if self.largest else mask)
        return box, scores, confidence(self.classifier(crop(images, box, self.crop_margin, "tensor")).logits)


class _OfMap(nn.Module):
    """The foreground of a classifier's score map."""

    def __init__(self, classifier: nn.Module, score_map: ScoreMap, size: int, threshold: float) -> None:
        super().__init__()
        self.classifier, self.score_map, self.size, self.threshold = classifier, score_map, (size, size), threshold

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        maps = self.score_map(self.classifier, images, labels).float()
        return foreground(upsample(maps, self.size), self.threshold, "minmax")


class _OfDirections(nn.Module):
    """DDT's foreground. Its trunk is part of the file."""

    mean: Tensor
    direction: Tensor

    def __init__(self, directions: Directions) -> None:
        super().__init__()
        (self.trunk,) = directions.trunk
        self.register_buffer("mean", directions.mean)
        self.register_buffer("direction", directions.direction)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return Transform(self.mean, self.direction).masks(self.trunk(images), labels)


def detector_of(trained: TrainedRun, format: str) -> nn.Module:
    """A run's prediction as a module, in eval mode. Raises LchpError where its map needs a backward pass."""
    config, margin = trained.config, trained.config.refinement.crop_margin
    if trained.localizer is not None:
        return Detector(trained.classifier, trained.localizer, margin).eval().requires_grad_(False)
    found, size = method_of(config), config.data.image_size
    score_map = found.exported if found.gradients else found.map
    if found.gradients and score_map is None:
        raise LchpError(
            f"export as {format}: the map of {found.title} needs a backward pass, which such a file does not hold; "
            "train a localizer on its boxes with --method.localizer and export that, or take a run of CAM"
        )
    assert trained.source is not None
    masks: nn.Module
    if trained.source.directions is not None:
        masks = _OfDirections(trained.source.directions)
    else:
        assert score_map is not None, "LCHP's run without its localizer"
        masks = _OfMap(trained.classifier, score_map, size, config.method.threshold)
    largest = found.map is None or config.method.component == "largest"
    detector = MapDetector(trained.classifier, masks, largest=largest, crop_margin=margin)
    return detector.eval().requires_grad_(False)


def largest_region(mask: Tensor) -> Tensor:
    """The largest connected region of masks B x h x w (bool): B x h x w bool. The one that
    `lchp.method.regions.largest_component_boxes` takes, by tensor operations.

    Each pixel points to one of its own region that comes no later in reading order, at first to itself. Round by round
    a pixel's pointer and its target's become the least in the neighbourhood, and pointers skip a step, so that the
    length of paths falls by a factor (Zhang, Azad and Hu, *FastSV*, 2020).
    """
    n, h, w = mask.shape
    size = h * w
    inside = mask.flatten(1)
    # the last number is the first pixel's, so that a maximum is the first in reading order; 0: no foreground
    own = torch.arange(size, 0, -1, device=mask.device, dtype=torch.float32).expand(n, size)
    pointer = torch.where(inside, own, 0.0)
    for _ in range(2 * math.ceil(math.log2(max(2, size)))):
        near = F.max_pool2d(pointer.view(n, 1, h, w), 3, 1, 1).flatten(1)
        near = torch.where(inside, near, 0.0)
        at = (size - pointer).long().clamp(0, size - 1)
        pointer = torch.maximum(near, pointer.scatter_reduce(1, at, near, "amax"))
        at = (size - pointer).long().clamp(0, size - 1)
        pointer = torch.where(inside, torch.maximum(pointer, pointer.gather(1, at)), 0.0)
    at = (size - pointer).long().clamp(0, size - 1)
    pixels = torch.zeros_like(pointer).scatter_add(1, at, inside.float())
    first = pixels.argmax(1, keepdim=True)
    return ((at == first) & inside).view(n, h, w)
