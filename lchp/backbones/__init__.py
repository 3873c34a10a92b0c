"""Backbones by name: an ImageNet architecture, where it is cut, and how its weights want their input.

Adding one: a `Backbone` with two functions and its line in TORCHVISION or TINY; timm's are all there (`timm:NAME`).
"""

import errno
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn

from lchp.backbones import from_timm
from lchp.backbones.depthwise import speed_up
from lchp.backbones.entry import IMAGENET, SYMMETRIC, Backbone, Normalization, Role
from lchp.backbones.from_torchvision import TORCHVISION
from lchp.backbones.tiny import TINY
from lchp.config import suggest
from lchp.errors import ConfigError, LchpError, WeightsError, reason
from lchp.files.contents import content_hash

__all__ = [
    "BACKBONES",
    "IMAGENET",
    "SYMMETRIC",
    "Backbone",
    "Normalization",
    "Normalize",
    "Role",
    "Trunk",
    "backbone",
    "build_trunk",
    "cut_trunk",
    "fill",
    "head_of",
    "load_weights",
    "read_safetensors",
    "weights_identity",
    "weights_terms",
]

BACKBONES: dict[str, Backbone] = {**TORCHVISION, **from_timm.TIMM, **TINY}
"""The registry; `backbone` adds any model of timm's to it."""


class Normalize(nn.Module):
    """(x - mean) / std of B x 3 x H x W images in [0, 1]. Part of each network: weights differ in what they want."""

    mean: Tensor
    std: Tensor

    def __init__(self, normalization: Normalization) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(normalization[0]), persistent=False)
        self.register_buffer("std", torch.tensor(normalization[1]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images as the weights want them."""
        return (x - self.mean.view(1, 3, 1, 1)) / self.std.view(1, 3, 1, 1)


class Trunk(nn.Sequential):
    """`Normalize` and the cut network. Its state holds its convolutions' strides too: a weight file may have moved them
    (see `_move_strides`), and a network rebuilt without that file must get them from the checkpoint."""

    from_random: tuple[str, ...] = ()
    """Names of the parameters that started from random."""

    def get_extra_state(self) -> Tensor:
        """Strides, convolutions x 2."""
        return torch.tensor([m.stride for m in self.modules() if isinstance(m, nn.Conv2d)])

    def set_extra_state(self, state: Tensor) -> None:
        """Takes the strides of `get_extra_state`."""
        convolutions = [m for m in self.modules() if isinstance(m, nn.Conv2d)]
        for convolution, (vertical, horizontal) in zip(convolutions, state.tolist(), strict=True):
            convolution.stride = (vertical, horizontal)


def backbone(name: str, role: Role | None = None) -> Backbone:
    """The registry's entry, or that of `timm:NAME`. Raises ConfigError for an unknown name; `role` says which field
    gave it."""
    if name.startswith(from_timm.PREFIX):
        return from_timm.timm_entry(name)
    if name not in BACKBONES:
        field = f"model.{role}" if role else "model.classifier or model.localizer"
        raise ConfigError(
            f"{field} = {name!r}: expected one of {', '.join(BACKBONES)}, or {from_timm.PREFIX}NAME"
            f"{suggest(name, BACKBONES)}"
        )
    return BACKBONES[name]


def build_trunk(name: str, role: Role, *, pretrained: bool, weights_dir: str | None) -> nn.Module:
    """Images in [0, 1] (B x 3 x H x W) to features (B x C x h x w), input normalisation included.

    Raises WeightsError where pretrained weights are missing or do not fit; it never starts from random weights instead.
    """
    entry = backbone(name, role)
    if role == "whole":
        head_of(name)
    net = entry.build()
    if pretrained:
        load_weights(net, name, weights_dir)
    random = {id(p) for n, p in net.named_parameters() if not pretrained or n.startswith(entry.added)}
    trunk = cut_trunk(net, entry, role)
    trunk.from_random = tuple(n for n, p in trunk.named_parameters() if id(p) in random)
    return trunk


def cut_trunk(net: nn.Module, entry: Backbone, role: Role) -> Trunk:
    """The trunk of a whole network that an entry has built."""
    speed_up(net)
    return Trunk(Normalize(entry.normalization), entry.cut(net, role))


def head_of(name: str) -> str:
    """The name of the class head's linear layer. Raises ConfigError for a backbone that has none of its own."""
    head = backbone(name, "classifier").head
    if head is None:
        fit = ", ".join(n for n, entry in BACKBONES.items() if entry.head is not None)
        raise ConfigError(
            f"model.classifier = {name!r}: has no class head of one linear layer after global average pooling, as a "
            f"classifier of one's own needs; expected one of {fit}, or {from_timm.PREFIX}NAME"
        )
    return head


def load_weights(net: nn.Module, name: str, weights_dir: str | None) -> None:
    """Loads pretrained weights into the whole network `net` built by the registry entry `name`."""
    entry = backbone(name)
    if weights_dir is None:
        source, state = f"{entry.source}'s {entry.download}", _download(name)
        metadata: dict[str, str] = {}
    else:
        path = _weights_file(name, weights_dir)
        source = str(path)
        state, metadata = read_safetensors(path)
    fill(net, name, source, state, metadata)


def fill(net: nn.Module, name: str, source: str, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Fills the whole network `net`, built by the registry entry `name`, but for its class head. source: for messages.
    Raises WeightsError where the weights do not fit."""
    entry = backbone(name)
    _check_normalization(source, metadata, entry.normalization)
    if metadata.get("stride", "").startswith("conv1"):
        _move_strides(net, source)
    wanted = {k for k in net.state_dict() if not k.startswith((*entry.discard, *entry.added))}
    # num_batches_tracked only counts; files in the wild leave it out
    missing = sorted(k for k in wanted - set(state) if not k.endswith("num_batches_tracked"))
    extra = sorted(k for k in set(state) - wanted if not k.startswith(entry.discard))
    if missing or extra:
        raise WeightsError(
            f"{source}: does not fit {name}: {len(missing)} parameters missing {missing[:3]}, "
            f"{len(extra)} unknown {extra[:3]}; expected {entry.source}'s names"
        )
    try:
        net.load_state_dict(
            {k: v.float() if v.is_floating_point() else v for k, v in state.items() if k in wanted}, False
        )
    except RuntimeError as error:
        shape = next((line.strip() for line in str(error).splitlines()[1:]), str(error))
        raise WeightsError(f"{source}: does not fit {name}: {shape}") from None


def weights_identity(name: str, *, pretrained: bool, weights_dir: str | None) -> str:
    """Which weights a backbone starts from: a hash of the file's content, their name at torchvision or timm (where it
    is the model's and the weights' tag), or `random`.

    Raises WeightsError where the file is missing, ConfigError for an unknown backbone.
    """
    if not pretrained:
        return "random"
    if weights_dir is None:
        entry = backbone(name)
        return f"{entry.source} {entry.download}"
    path = _weights_file(name, weights_dir)
    return content_hash(path)


def weights_terms(name: str, weights_dir: str | None) -> str:
    """Where a backbone's pretrained weights are from and what is known of their licence, for those whom a model is
    handed to."""
    entry = backbone(name)
    if weights_dir is not None:
        return f"{_file_name(name, entry)}, a file whose licence is not recorded"
    if entry.source == "timm":
        licence = from_timm.licence_of(entry.download)
        return f"timm's {entry.download} ({licence or 'no licence is stated'})"
    return (
        f"torchvision's {entry.download} (BSD-3-Clause; torchvision adds that weights may carry the terms of the data "
        "they were trained on: ImageNet's, for non-commercial research)"
    )


def _weights_file(name: str, weights_dir: str) -> Path:
    entry = backbone(name)
    path = Path(os.path.expanduser(weights_dir)) / _file_name(name, entry)
    if not os.path.isfile(path):
        raise WeightsError(
            f"{path}: no such file, so {name} cannot start from ImageNet weights; put it there, leave "
            f"model.weights_dir unset to download {entry.source}'s, or say --model.no-pretrained for a random start"
        )
    return path


def _file_name(name: str, entry: Backbone) -> str:
    """`timm:NAME` as `timm_NAME`, since a colon is no good in a file's name."""
    return f"{entry.file or name.replace(':', '_')}.safetensors"


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors by name, and the metadata. Raises WeightsError where the file cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error})") from None


def _download(name: str) -> dict[str, Tensor]:
    from torchvision.models import get_weight

    entry = backbone(name)
    if entry.download is None:
        raise WeightsError(f"{name} has no ImageNet weights; say --model.no-pretrained for a random start")
    try:
        if entry.source == "timm":
            return from_timm.download(entry.download)
        return dict(get_weight(entry.download).get_state_dict(progress=True, check_hash=True))
    except LchpError:
        raise
    # URLError is an OSError; a wrong hash raises RuntimeError; timm's download has the exceptions of two more libraries
    except Exception as error:
        what = _what_failed(error)
        raise WeightsError(
            f"{entry.source}'s weights of {name} could not be {what} ({reason(error)}); give a folder with "
            f"{_file_name(name, entry)} by --model.weights-dir DIR, or say --model.no-pretrained for a random start"
        ) from None


def _what_failed(error: Exception) -> str:
    """Of fetching weights: the way over the network, or this machine's own part, with the place."""
    place = os.path.join(torch.hub.get_dir(), "checkpoints")
    disk = (errno.EACCES, errno.EDQUOT, errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS)
    if isinstance(error, OSError) and not isinstance(error, URLError) and error.errno in disk:
        return f"stored in {error.filename or place}"
    if isinstance(error, (pickle.UnpicklingError, EOFError)) or "PytorchStreamReader" in str(error):
        return f"read from {place}, where the file is damaged: delete it"
    return "downloaded"


def _check_normalization(source: str, metadata: Mapping[str, str], ours: Normalization) -> None:
    said = metadata.get("input")
    mean, std = ours
    expected = {SYMMETRIC: "[-1,1]", IMAGENET: "imagenet mean/std"}.get(ours, f"mean {mean}, std {std}")
    if said is not None and said.replace(" ", "") != expected.replace(" ", ""):
        raise WeightsError(f"{source}: its metadata asks for input {said!r}, but this backbone is fed {expected!r}")


def _move_strides(net: nn.Module, source: str) -> None:
    """ResNet v1 as published strides in conv1 of a block, torchvision's (v1.5) in conv2; a file's metadata says."""
    for layer in ("layer2", "layer3", "layer4"):
        try:
            pair = [net.get_submodule(f"{layer}.0.{name}") for name in ("conv1", "conv2")]
        except AttributeError:
            raise WeightsError(f"{source}: its metadata speaks of ResNet strides, but the network is none") from None
        for conv, stride in zip(pair, ((2, 2), (1, 1)), strict=True):
            assert isinstance(conv, nn.Conv2d)
            conv.stride = stride
