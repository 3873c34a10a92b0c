"""What a backbone's entry in the registry says."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

Role = Literal["classifier", "localizer", "whole"]
"""What a trunk is for; `whole`: all of the network before its own class head, which follows it."""
Normalization = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and standard deviation per channel, for images in [0, 1]."""

IMAGENET: Normalization = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SYMMETRIC: Normalization = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # [0, 1] to [-1, 1]


@dataclass(frozen=True)
class Backbone:
    """`build` makes the whole network in its source's parameter names; `cut` keeps the trunk for a role.

    The classifier's trunk ends at stride 16, where attention is still fine enough to localize; the localizer's is the
    whole feature extractor unless the entry says otherwise. `discard`: parameter prefixes that the trunk never uses
    (classification layers), which a weight file may hold or lack. `download`: the name of `source`'s weights, None
    without any. `added`: prefixes of parameters that no ImageNet weights hold, since the entry adds them to the network
    that was trained there; they start from random. `file`: stem of the weight file, where it is another entry's.
    `head`: the class head, where that is one linear layer after global average pooling.
    """

    build: Callable[[], nn.Module]
    cut: Callable[[nn.Module, Role], nn.Module]
    normalization: Normalization
    discard: tuple[str, ...] = ()
    download: str | None = None
    source: Literal["torchvision", "timm"] = "torchvision"
    added: tuple[str, ...] = ()
    file: str | None = None
    head: str | None = None
