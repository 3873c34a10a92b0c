"""Backbones by name: an ImageNet architecture, where it is cut, and how its weights want their input.

Adding one: a `Backbone` with two functions and its line in BACKBONES.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from lchp.config import suggest
from lchp.depthwise import speed_up
from lchp.errors import ConfigError, WeightsError

Role = Literal["classifier", "localizer"]
Normalization = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and standard deviation per channel, for images in [0, 1]."""

IMAGENET: Normalization = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SYMMETRIC: Normalization = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # [0, 1] to [-1, 1]


@dataclass(frozen=True)
class Backbone:
    """`build` makes the whole network in torchvision's parameter names; `cut` keeps the trunk for a role.

    The classifier's trunk ends at stride 16, where attention is still fine enough to localize; the localizer's is the
    whole feature extractor unless the entry says otherwise. `discard`: parameter prefixes that the trunk never uses
    (classification layers), which a weight file may hold or lack. `download`: torchvision's weights, None without any.
    """

    build: Callable[[], nn.Module]
    cut: Callable[[nn.Module, Role], nn.Module]
    normalization: Normalization
    discard: tuple[str, ...] = ()
    download: str | None = None


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

    def get_extra_state(self) -> Tensor:
        """Strides, convolutions x 2."""
        return torch.tensor([m.stride for m in self.modules() if isinstance(m, nn.Conv2d)])

    def set_extra_state(self, state: Tensor) -> None:
        """Takes the strides of `get_extra_state`."""
        convolutions = [m for m in self.modules() if isinstance(m, nn.Conv2d)]
        for convolution, (vertical, horizontal) in zip(convolutions, state.tolist(), strict=True):
            convolution.stride = (vertical, horizontal)


def _inception_v3() -> nn.Module:
    from torchvision.models import inception_v3

    return inception_v3(weights=None, aux_logits=False, transform_input=False, init_weights=True)


def _cut_inception_v3(net: nn.Module, role: Role) -> nn.Module:
    stem = ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2"]
    fine = [f"Mixed_{n}" for n in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e")]
    coarse = [] if role == "classifier" else [f"Mixed_{n}" for n in ("7a", "7b", "7c")]
    return nn.Sequential(*(net.get_submodule(n) for n in (*stem, *fine, *coarse)))


def _resnet50() -> nn.Module:
    from torchvision.models import resnet50

    return resnet50(weights=None)


def _cut_resnet50(net: nn.Module, role: Role) -> nn.Module:
    names = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"]
    return nn.Sequential(*(net.get_submodule(n) for n in (names[:7] if role == "classifier" else names)))


def _vgg19_bn() -> nn.Module:
    from torchvision.models import vgg19_bn

    return vgg19_bn(weights=None)


def _cut_vgg19_bn(net: nn.Module, role: Role) -> nn.Module:
    layers = net.get_submodule("features")
    assert isinstance(layers, nn.Sequential)
    return layers[:-1] if role == "classifier" else layers  # the last pooling would make stride 32


def _densenet161() -> nn.Module:
    from torchvision.models import densenet161

    return densenet161(weights=None)


def _cut_densenet161(net: nn.Module, role: Role) -> nn.Module:
    layers = net.get_submodule("features")
    assert isinstance(layers, nn.Sequential)
    if role == "localizer":
        return nn.Sequential(layers, nn.ReLU(inplace=True))
    # up to denseblock3, then transition3's norm and ReLU, which close that block's pre-activation features
    names = [n for n, _ in layers.named_children()]
    kept = [layers.get_submodule(n) for n in names[: names.index("transition3")]]
    return nn.Sequential(*kept, layers.get_submodule("transition3.norm"), nn.ReLU(inplace=True))


def _mobilenet_v2() -> nn.Module:
    from torchvision.models import mobilenet_v2

    return mobilenet_v2(weights=None)


def _cut_mobilenet_v2(net: nn.Module, _role: Role) -> nn.Module:
    """Both roles: features up to the ReLU6 expansion of block 14, stride 16, 576 channels."""
    layers = net.get_submodule("features")
    assert isinstance(layers, nn.Sequential)
    return nn.Sequential(*layers[:14], layers.get_submodule("14.conv.0"))


def _tiny(*widths: int, halvings: int = 2) -> Callable[[], nn.Module]:
    """3x3 convolutions of the given widths with BatchNorm and ReLU, the first `halvings` of them 4x4 with stride 2.

    Even kernels keep a feature centred on its pixels; 3x3 ones with stride 2 shift the upsampled attention by 1.5 px,
    which on 64 px images leaves a good part of a small object outside its box.
    """

    def build() -> nn.Module:
        layers: list[nn.Module] = []
        for i, (c_in, c_out) in enumerate(zip((3, *widths[:-1]), widths, strict=True)):
            stride = 2 if i < halvings else 1
            conv = nn.Conv2d(c_in, c_out, 4 if stride == 2 else 3, stride, padding=1, bias=False)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            layers += [conv, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers)

    return build


def _whole(net: nn.Module, _role: Role) -> nn.Module:
    return net


BACKBONES: dict[str, Backbone] = {
    "inception_v3": Backbone(
        _inception_v3, _cut_inception_v3, SYMMETRIC, ("fc.", "AuxLogits."), "Inception_V3_Weights.IMAGENET1K_V1"
    ),
    "resnet50": Backbone(_resnet50, _cut_resnet50, IMAGENET, ("fc.",), "ResNet50_Weights.IMAGENET1K_V1"),
    "vgg19_bn": Backbone(_vgg19_bn, _cut_vgg19_bn, IMAGENET, ("classifier.",), "VGG19_BN_Weights.IMAGENET1K_V1"),
    "densenet161": Backbone(
        _densenet161, _cut_densenet161, IMAGENET, ("classifier.",), "DenseNet161_Weights.IMAGENET1K_V1"
    ),
    "mobilenet_v2": Backbone(
        _mobilenet_v2, _cut_mobilenet_v2, IMAGENET, ("classifier.",), "MobileNet_V2_Weights.IMAGENET1K_V1"
    ),
    "tiny": Backbone(_tiny(16, 32, 48), _whole, SYMMETRIC),
    "tiny_wide": Backbone(_tiny(24, 48, 72), _whole, SYMMETRIC),
    "tiny_coarse": Backbone(_tiny(16, 32, 64, 64, halvings=3), _whole, SYMMETRIC),
    "tiny_deep": Backbone(_tiny(16, 32, 48, 48, 48), _whole, SYMMETRIC),
}


def backbone(name: str) -> Backbone:
    """The registry's entry. Raises ConfigError for an unknown name."""
    if name not in BACKBONES:
        raise ConfigError(f"backbone {name!r}: expected one of {', '.join(BACKBONES)}{suggest(name, BACKBONES)}")
    return BACKBONES[name]


def build_trunk(name: str, role: Role, *, pretrained: bool, weights_dir: str | None) -> nn.Module:
    """Images in [0, 1] (B x 3 x H x W) to features (B x C x h x w), input normalisation included.

    Raises WeightsError where pretrained weights are missing or do not fit; it never starts from random weights instead.
    """
    entry = backbone(name)
    net = entry.build()
    if pretrained:
        load_weights(net, name, weights_dir)
    speed_up(net)
    return Trunk(Normalize(entry.normalization), entry.cut(net, role))


def load_weights(net: nn.Module, name: str, weights_dir: str | None) -> None:
    """Loads pretrained weights into the whole network `net` built by the registry entry `name`."""
    entry = backbone(name)
    if weights_dir is None:
        source, state = f"torchvision's {entry.download}", _download(name)
        metadata: dict[str, str] = {}
    else:
        path = _weights_file(name, weights_dir)
        source = str(path)
        state, metadata = _read(path)
        _check_normalization(source, metadata, entry.normalization)
    if metadata.get("stride", "").startswith("conv1"):
        _move_strides(net, source)
    wanted = {k for k in net.state_dict() if not k.startswith(entry.discard or ("\0",))}
    # num_batches_tracked only counts; files in the wild leave it out
    missing = sorted(k for k in wanted - set(state) if not k.endswith("num_batches_tracked"))
    extra = sorted(k for k in set(state) - wanted if not k.startswith(entry.discard or ("\0",)))
    if missing or extra:
        raise WeightsError(
            f"{source}: does not fit {name}: {len(missing)} parameters missing {missing[:3]}, "
            f"{len(extra)} unknown {extra[:3]}; expected torchvision's names"
        )
    try:
        net.load_state_dict(
            {k: v.float() if v.is_floating_point() else v for k, v in state.items() if k in wanted}, False
        )
    except RuntimeError as error:
        shape = next((line.strip() for line in str(error).splitlines()[1:]), str(error))
        raise WeightsError(f"{source}: does not fit {name}: {shape}") from None


def weights_identity(name: str, *, pretrained: bool, weights_dir: str | None) -> str:
    """Which weights a backbone starts from: a hash of the file's content, torchvision's name for them, or `random`.

    Raises WeightsError where the file is missing.
    """
    if not pretrained:
        return "random"
    if weights_dir is None:
        return f"torchvision {backbone(name).download}"
    path = _weights_file(name, weights_dir)
    stat = path.stat()
    return _hash_file(path, stat.st_size, stat.st_mtime_ns)


@lru_cache
def _hash_file(path: Path, _size: int, _changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _weights_file(name: str, weights_dir: str) -> Path:
    path = Path(weights_dir).expanduser() / f"{name}.safetensors"
    if not path.is_file():
        raise WeightsError(
            f"{path}: no such file, so {name} cannot start from ImageNet weights; put it there, leave "
            "model.weights_dir unset to download torchvision's, or say --model.no-pretrained for a random start"
        )
    return path


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
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
        return dict(get_weight(entry.download).get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash raises RuntimeError
        raise WeightsError(
            f"torchvision's weights of {name} could not be downloaded ({error}); give a folder with {name}.safetensors "
            "by --model.weights-dir DIR, or say --model.no-pretrained for a random start"
        ) from None


def _check_normalization(source: str, metadata: dict[str, str], ours: Normalization) -> None:
    said = metadata.get("input")
    expected = "[-1,1]" if ours == SYMMETRIC else "imagenet mean/std"
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
