"""Boxes that no localizer gives: of LCHP's teacher, of a classifier's score map, or of what a class's images have in
common (DDT); and the foreground that they go around."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lchp.backbones import backbone, build_trunk
from lchp.baselines import Method
from lchp.baselines.ddt import Descriptors, Transform
from lchp.config import InitializationConfig, ModelConfig, TrainConfig
from lchp.data.images import batches as read_batches
from lchp.data.images import in_order
from lchp.errors import DataError, RunError
from lchp.evaluation.frames import Frame
from lchp.evaluation.inference import BoxSource, MapSource, MaskSource
from lchp.files.runs import Kind
from lchp.method.losses import foreground
from lchp.method.pseudo_boxes import attention_masks, enclosing_boxes, upsample
from lchp.method.regions import largest_component_boxes
from lchp.method.steps import pseudo_boxes
from lchp.training.context import Context


@dataclass(frozen=True)
class PseudoSource:
    """What gives boxes without a localizer: one box of an image, and the foreground that it is of. `directions`:
    DDT's, where they are what gives them."""

    boxes: BoxSource
    masks: MaskSource
    directions: "Directions | None" = None


def source_of(
    config: TrainConfig, found: Method, classifier: nn.Module, done: Mapping[Kind, Mapping[str, Any]]
) -> PseudoSource:
    """What made the pseudo boxes of a run, for any images. done: the modules of its links, as their checkpoints hold
    them (kind -> name -> module): LCHP's teacher and choice, DDT's directions; a map needs none. Raises RunError for
    boxes of a file, which holds none of other images."""
    if found.boxes == "file":
        raise RunError(
            f"{found.title}: only the run's own images have some; without --several its localizer answers for any image"
        )
    if found.boxes == "teacher":
        teacher, how = done["classifier"]["teacher"], boxes_config(config, done)
        return PseudoSource(
            lambda images, _labels: pseudo_boxes(teacher, images, how).box.float(),
            lambda images, _labels: attention_masks(
                lambda x: teacher(x).attention(how.attention), images, how, teacher.mean
            ),
        )
    maps = map_source(found, classifier)
    if maps is None:
        directions: Directions = done["boxes"]["directions"]
        return PseudoSource(directions.boxes, directions.masks, directions)
    return PseudoSource(of_map(config, maps), mask_of_map(config, maps))


def boxes_config(config: TrainConfig, done: Mapping[Kind, Mapping[str, Any]]) -> InitializationConfig:
    """How LCHP's teacher makes boxes: as the config says, or as was chosen."""
    return done["choice"]["choice"].config() if "choice" in done else config.initialization


def map_source(found: Method, classifier: nn.Module) -> MapSource | None:
    """The method's score maps by a classifier in inference mode, whatever mode the caller is in; None without any."""
    score_map = found.map
    if score_map is None:
        return None

    def maps(images: Tensor, labels: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():  # Grad-CAM needs gradients
            return score_map(classifier, images.clone(), labels.clone()).detach().float()

    return maps


def mask_of_map(config: TrainConfig, maps: MapSource) -> MaskSource:
    """Where a score map, stretched to [0, 1], is above method.threshold."""
    size, threshold = (config.data.image_size, config.data.image_size), config.method.threshold
    return lambda images, labels: foreground(upsample(maps(images, labels), size), threshold, "minmax")


def of_map(config: TrainConfig, maps: MapSource) -> BoxSource:
    """The box of a score map above method.threshold: around all of it, or around its largest region."""
    masks, component = mask_of_map(config, maps), config.method.component

    def boxes(images: Tensor, labels: Tensor) -> Tensor:
        mask = masks(images, labels)
        return enclosing_boxes(mask)[0] if component == "all" else largest_component_boxes(mask)

    return boxes


class Directions(nn.Module):
    """DDT's `Transform` of a data set as a module, so that it lies in a checkpoint: `mean` and `direction`, classes x
    channels; and the trunk whose features they are of, which is no part of its state."""

    mean: Tensor
    direction: Tensor

    def __init__(self, trunk: nn.Module, image_size: int, classes: int, device: torch.device) -> None:
        super().__init__()
        self.trunk = (trunk.eval(),)  # in a tuple, which torch passes over
        with torch.no_grad():
            channels = trunk(torch.zeros(1, 3, image_size, image_size, device=device)).shape[1]
        self.register_buffer("mean", torch.full((classes, channels), torch.nan))
        self.register_buffer("direction", torch.full((classes, channels), torch.nan))

    @torch.no_grad()
    def boxes(self, images: Tensor, labels: Tensor) -> Tensor:
        """DDT's boxes of images B x 3 x H x W in [0, 1] of known classes (B); a BoxSource."""
        return Transform(self.mean, self.direction).boxes(self.trunk[0](images), labels)

    @torch.no_grad()
    def masks(self, images: Tensor, labels: Tensor) -> Tensor:
        """Where DDT finds what is common to the class, on the features' own grid; a MaskSource."""
        return Transform(self.mean, self.direction).masks(self.trunk[0](images), labels)

    @torch.no_grad()
    def find(self, context: Context) -> None:
        """Computes them from all training images of each class, as a whole; one class in memory at a time."""
        config, images = context.config, context.images
        frame = Frame.of("full_image", config.data)
        found = []
        for label in range(len(context.dataset.class_names)):
            mine = images.select(np.flatnonzero(images.split.labels == label))
            descriptors: Descriptors | None = None
            order = in_order(len(mine), config.evaluation.batch_size)
            for batch in read_batches(mine, order, workers=config.data.workers, pin=context.device.type == "cuda"):
                x = frame.see(batch.images.to(context.device, non_blocking=True))
                with context.autocast:
                    features = self.trunk[0](x)
                descriptors = descriptors or Descriptors(features.shape[1], features.device)
                descriptors.add(features)
            assert descriptors is not None, "require_every_class"
            found.append(descriptors.principal())
        transform = Transform.of(found, context.device)
        self.mean.copy_(transform.mean)
        self.direction.copy_(transform.direction)


def require_every_class(found: Method, labels: np.ndarray, class_names: Sequence[str]) -> None:
    """Raises DataError where a method takes boxes from DDT, and a class has no training image (labels: of these, N)."""
    lacking = (
        [class_names[k] for k in np.setdiff1d(np.arange(len(class_names)), labels)] if found.boxes == "ddt" else []
    )
    if lacking:
        more = f" and {len(lacking) - 1} more classes" if len(lacking) > 1 else ""
        raise DataError(
            f"class {lacking[0]}{more}: no training image, without which DDT (method.name = {found.name!r}) has no box "
            "for it; add some, remove the class, or take another method"
        )


def ddt_trunk(classifier: nn.Module, model: ModelConfig, device: torch.device) -> nn.Module:
    """The trunk whose features DDT goes by: ImageNet's, as PSOL's (without a layer that the backbone adds to what was
    trained there), and where the networks start from random weights that of the trained classifier."""
    if not model.pretrained:
        return classifier.get_submodule("trunk")
    trunk = build_trunk(ddt_backbone(model), "classifier", pretrained=True, weights_dir=model.weights_dir)
    layout: dict[str, Any] = {"device": device, "memory_format": torch.channels_last}
    return trunk.to(**layout).requires_grad_(False)


def ddt_backbone(model: ModelConfig) -> str:
    """The backbone of DDT's trunk, by name, where that is ImageNet's."""
    entry = backbone(model.classifier)
    return entry.file if entry.added and entry.file else model.classifier
