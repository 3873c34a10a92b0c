"""What a method consists of: how its classifier is trained, where its boxes come from, and its localizer's loss."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from lchp.config import ModelConfig, TrainConfig
from lchp.method.batch import Batch, Step, nothing
from lchp.method.losses import attention_range
from lchp.method.networks import Classifier

Build = Callable[[ModelConfig, int], nn.Module]
"""(config, number of classes) to a classifier: a module whose forward takes images B x 3 x H x W in [0, 1] and returns
`lchp.method.networks.ClassifierOutput`, and which has `mean` (the colour that its input normalisation maps to 0)."""
Loss = Callable[[nn.Module, Batch], Tensor]
"""The scalar to minimise; the module is in training mode."""
ScoreMap = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(classifier in inference mode, images B x 3 x H x W in [0, 1], class ids B) to score maps B x h x w, larger where the
object of that class is; not normalised."""


@dataclass(frozen=True)
class Teaching:
    """A classifier's training that has more than a loss: its step, what follows the optimizer's step (Eq. 7) and an
    epoch, and the modules that are kept beside the classifier, by name."""

    step: Step
    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    updated: Callable[[], object] = nothing
    ended: Callable[[int], object] = nothing


Teach = Callable[[nn.Module, TrainConfig, int], Teaching]
"""(classifier, config, number of training images) to its training."""


def _no_loss_alone(_classifier: nn.Module, _batch: Batch) -> Tensor:
    raise TypeError("this classifier is not trained by a loss alone: see Scheme.teach")


@dataclass(frozen=True)
class Scheme:
    """One way to train a classifier from class labels. Methods with the same scheme share its training.

    loss: of a classifier that is trained by a loss alone; teach: the training of one that makes boxes meanwhile.
    sliced: whether the loss of a batch is the mean of those of its slices, so that workers may share it; draws for a
    whole batch and means over what a batch holds are not.
    """

    name: str
    loss: Loss = _no_loss_alone
    build: Build = Classifier
    sliced: bool = True
    teach: Teach | None = None


@dataclass(frozen=True)
class Method:
    """A row of the paper's tables. `name`: in configs; `title`: as in the tables; `map`: see ScoreMap, None where the
    boxes do not come from the classifier's map; head: the classifier's, `gap` where the map needs its linear weights,
    None for the config's; complete: whether a localizer and its refinement belong to the method, and need not be asked
    for; from_file: whether the boxes are those of a file (`method.boxes`); gradients: whether the map needs a backward
    pass; exported: then the same map without one, which an exported file can hold."""

    name: str
    title: str
    scheme: Scheme
    map: ScoreMap | None
    head: Literal["bap", "gap"] | None = "gap"
    complete: bool = False
    from_file: bool = False
    gradients: bool = False
    exported: ScoreMap | None = None

    @property
    def boxes(self) -> Literal["teacher", "map", "ddt", "file"]:
        """Where the boxes of images come from."""
        if self.from_file:
            return "file"
        return "teacher" if self.scheme.teach is not None else "ddt" if self.map is None else "map"


def minmax(maps: Tensor) -> Tensor:
    """Score maps B x h x w stretched to [0, 1], each by its own range; one without range becomes 0."""
    low, high = attention_range(maps, "minmax")
    return (maps - low) / torch.where(high > low, high - low, 1)
