"""What a compared method consists of: how its classifier is trained, and the score map that its box is taken from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lchp.config import ModelConfig
from lchp.losses import attention_range
from lchp.networks import Classifier


@dataclass(frozen=True)
class Batch:
    """What a training loss may use: `images` B x 3 x H x W in [0, 1], `labels` B class ids, the `generator` that every
    draw comes from, and `progress`, the share of all training steps that are done (in [0, 1))."""

    images: Tensor
    labels: Tensor
    generator: torch.Generator
    progress: float


Build = Callable[[ModelConfig, int], nn.Module]
"""(config, number of classes) to a classifier: a module whose forward takes images B x 3 x H x W in [0, 1] and returns
`lchp.networks.ClassifierOutput`, and which has `mean` (the colour that its input normalisation maps to 0)."""
Loss = Callable[[nn.Module, Batch], Tensor]
"""The scalar to minimise; the module is in training mode."""
ScoreMap = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(classifier in inference mode, images B x 3 x H x W in [0, 1], class ids B) to score maps B x h x w, larger where the
object of that class is; not normalised."""


@dataclass(frozen=True)
class Scheme:
    """One way to train a classifier from class labels. Methods with the same scheme share its training.

    sliced: whether the loss of a batch is the mean of those of its slices, so that workers may share it; draws for a
    whole batch and means over what a batch holds are not.
    """

    name: str
    loss: Loss
    build: Build = Classifier
    sliced: bool = True


@dataclass(frozen=True)
class Method:
    """A row of the paper's tables. `name`: in configs; `title`: as in the tables; `map`: see ScoreMap, None where the
    boxes do not come from the classifier; head: the classifier's, `gap` where the map needs its linear weights."""

    name: str
    title: str
    scheme: Scheme
    map: ScoreMap | None
    head: Literal["bap", "gap"] = "gap"


def minmax(maps: Tensor) -> Tensor:
    """Score maps B x h x w stretched to [0, 1], each by its own range; one without range becomes 0."""
    low, high = attention_range(maps, "minmax")
    return (maps - low) / torch.where(high > low, high - low, 1)
