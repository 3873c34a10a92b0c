"""The recipes: the paper's, and those for the embedded set, a CPU and one's own images."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from lchp.config.about import suggest
from lchp.config.fields import (
    AUTO,
    OPEN_CHOICES,
    PARTS_SIZE,
    DataConfig,
    EvaluationConfig,
    InitializationConfig,
    ModelConfig,
    RefinementConfig,
    TrainConfig,
    to_flat,
)
from lchp.config.stored import override
from lchp.errors import ConfigError


@dataclass(frozen=True)
class Preset:
    """A recipe and the grid that its sweeps run over."""

    config: TrainConfig
    about: str
    deltas: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8)
    taus: tuple[float, ...] = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9)
    localizers: tuple[str, ...] = ("vgg19_bn", "resnet50", "inception_v3")
    """Backbones of Table 5. The recipe's own delta, tau and localizer are in these lists: tables share cells."""
    classifiers: tuple[str, ...] = ()
    """More classifiers that the compared methods run on (`lchp sweep methods`), beside the recipe's own."""


_CPU = TrainConfig(
    data=DataConfig(name="cub", resize=192, image_size=160),
    model=ModelConfig(classifier="mobilenet_v2", localizer="mobilenet_v2"),
    initialization=InitializationConfig(
        epochs=8,
        delta=0.4,
        lr=4e-3,
        localizer_lr=5e-3,
        localizer_schedule="onecycle",
        attention="features",
        normalization="minmax",
        second_pass="raw",
    ),
    # frozen: online labels drift on these images. loss_weight: alpha, so that the step is stage 1's; in these
    # few epochs Eq. 6's own, a twentieth of it, hardly moves the localizer (analysis/FINDINGS.md)
    refinement=RefinementConfig(4, lr=5e-3, schedule="onecycle", loss_weight=20.0, labeller="frozen", padding="mean"),
    precision="bf16",
)
"""MobileNetV2 at 160 px, for a CPU."""


def _auto(config: InitializationConfig) -> InitializationConfig:
    """How the boxes are made is chosen; the masks stay as they are."""
    masks = {mask: getattr(config, name) for name, mask in AUTO.items() if mask is not None}
    return replace(config, **dict.fromkeys(AUTO, "auto"), **masks)


PRESETS: dict[str, Preset] = {
    "parts": Preset(
        TrainConfig(
            data=DataConfig(name="parts", resize=PARTS_SIZE, image_size=64, batch_size=32),
            model=ModelConfig("tiny", "tiny_coarse", attention_maps=8, bap_scale=10.0, pretrained=False),
            initialization=InitializationConfig(epochs=4, delta=0.5, lr=0.1, schedule="onecycle", localizer_lr=5e-3),
            refinement=RefinementConfig(epochs=4, lr=1e-3, padding="mean"),
            evaluation=EvaluationConfig(batch_size=100, confidence=0.5),
            precision="fp32",
            threads=1,  # so that figures do not depend on the number of cores, by the order of sums
        ),
        deltas=(0.1, 0.3, 0.5, 0.7),
        classifiers=("tiny_deep",),
        localizers=("tiny", "tiny_deep", "tiny_coarse"),
        about="embedded synthetic data, 64 px, tiny networks from random initialisation; minutes on a laptop CPU",
    ),
    "cub": Preset(
        TrainConfig(),
        classifiers=("vgg16_gap", "resnet50"),
        about="CUB-200-2011, the paper's recipe: InceptionV3 at 448 px, 40 + 40 epochs on one GPU",
    ),
    "tiny_imagenet": Preset(
        TrainConfig(DataConfig(name="tiny_imagenet"), initialization=InitializationConfig(delta=0.8)),
        classifiers=("vgg16_gap", "resnet50"),
        about="Tiny-ImageNet, the paper's recipe: InceptionV3 at 448 px, 40 + 40 epochs on one GPU",
    ),
    "imagenet": Preset(
        TrainConfig(
            data=DataConfig(name="imagenet", cache="off", workers=8),
            initialization=InitializationConfig(epochs=10),
            refinement=RefinementConfig(epochs=5, lr=2e-4),
        ),
        classifiers=("vgg16_gap", "resnet50"),
        about="ImageNet-1k, the paper's recipe: InceptionV3 at 448 px, 10 + 5 epochs on one GPU",
    ),
    "folder": Preset(
        TrainConfig(DataConfig(name="folder"), initialization=_auto(TrainConfig().initialization)),
        about="your own images, one sub-folder per class, with the paper's CUB recipe; how boxes are made is chosen",
    ),
    "folder_cpu": Preset(
        replace(_CPU, data=replace(_CPU.data, name="folder"), initialization=_auto(_CPU.initialization)),
        deltas=(0.2, 0.3, 0.4, 0.5),
        localizers=("vgg19_bn", "resnet50", "mobilenet_v2"),
        about="your own images, MobileNetV2 at 160 px; 6 minutes on two idle CPU cores for 300 images",
    ),
    "cub50_cpu": Preset(
        _CPU,
        deltas=(0.2, 0.3, 0.4, 0.5),
        localizers=("vgg19_bn", "resnet50", "mobilenet_v2"),
        about="CUB-200-2011 or a part of it, MobileNetV2 at 160 px; half an hour on one CPU core for 50 classes",
    ),
}


def preset(name: str) -> TrainConfig:
    """The config of a preset. Raises ConfigError for an unknown name."""
    if name not in PRESETS:
        raise ConfigError(f"preset = {name!r}: expected one of {', '.join(PRESETS)}{suggest(name, PRESETS)}")
    return PRESETS[name].config


def alternatives(
    config: TrainConfig, require: Callable[[TrainConfig], object] = lambda _config: None
) -> list[tuple[str, Any]]:
    """Every open choice with each of its values that is not the config's own and can stand in its place. require: what
    raises ConfigError where a config contradicts its method (`lchp.training.chain.method_of`, which needs torch)."""
    flat, out = to_flat(config), []
    for name, value in ((n, v) for n, values in OPEN_CHOICES.items() for v in values if v != flat[n]):
        with contextlib.suppress(ConfigError):  # contradicts another field
            require(override(config, {name: value}))
            out.append((name, value))
    return out
