"""The configuration of one run: frozen dataclasses, one per concern, and the paper's recipes as presets.

The section and field names are the command line's flags (``--initialization.delta 0.6``), the axes of a sweep and the
keys of ``config.json``. Every choice that the paper leaves open is a field here, its default first in the list.
"""

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lchp.errors import ConfigError

AUGMENTATIONS = ("scale", "translation", "flip")


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they are read."""

    name: Literal["parts", "cub", "tiny_imagenet", "imagenet", "folder"] = "parts"
    """Data set. `parts` is generated; the others are read from `root` in their original layout."""
    root: str | None = None
    """Folder that holds the data set, e.g. the one that contains images.txt for CUB-200-2011."""
    resize: int = 512
    """Side in px that every image is resized to (both axes), before cropping."""
    image_size: int = 448
    """Side in px of what the networks see: a random crop when training, a centre crop or the whole image in a test."""
    batch_size: int = 32
    """Images per training step, over all workers."""
    workers: int = 0
    """Processes that decode images when `cache` is `off`; threads that fill the cache otherwise (0: one per core)."""
    cache: str = "auto"
    """`auto`: decode once into the user's cache folder; `off`: decode every epoch; or the cache folder's path."""
    validation: float = 0.0
    """Share of the training images that is held out (by a hash of seed and image id) to choose settings on; 0: none."""
    skip_bad: bool = False
    """Drop unreadable images and bad annotations (counted, listed in the run folder) instead of refusing to start."""


@dataclass(frozen=True)
class ModelConfig:
    """Networks. The classifier's trunk and the localizer's backbone are chosen separately."""

    classifier: str = "inception_v3"
    """Trunk of the classifier, cut at stride 16."""
    localizer: str = "inception_v3"
    """Backbone of the localizer."""
    head: Literal["bap", "gap"] = "bap"
    """Classifier head: bilinear attention pooling (WS-DAN), or global average pooling."""
    attention_maps: int = 32
    """M, the number of attention maps of the BAP head."""
    bap_scale: float = 100.0
    """Factor between the L2 normalisation and the linear layer of the BAP head (WS-DAN's 100)."""
    localizer_head: Literal["spatial", "gap"] = "spatial"
    """Head that regresses the box: `spatial` keeps where a feature lies; `gap` averages it away first (PSOL)."""
    box_encoding: Literal["linear", "sigmoid"] = "linear"
    """Last activation of the localizer; boxes are x1 y1 x2 y2 / image_size."""
    pretrained: bool = True
    """Start from ImageNet weights. `False` must be said aloud: missing weights are an error, never a random start."""
    weights_dir: str | None = None
    """Folder of NAME.safetensors in torchvision's parameter names; None: torchvision's own download."""


@dataclass(frozen=True)
class InitializationConfig:
    """Stage 1 (Algorithm 1, Eq. 1-3 and 7)."""

    epochs: int = 40
    delta: float = 0.7
    """Foreground threshold on the normalised attention (Eq. 1)."""
    alpha: float = 20.0
    """Weight of the box regression in L_init (Eq. 3)."""
    beta: float = 0.9
    """Decay of the teacher's moving average (Eq. 7)."""
    lr: float = 2e-3
    """Learning rate of the classifier."""
    localizer_lr: float = 2e-3
    """Learning rate of the localizer."""
    schedule: Literal["exponential", "onecycle", "constant"] = "exponential"
    """Of the classifier's rate: times lr_decay after every epoch (the paper's), one cycle, or constant."""
    lr_decay: float = 0.9
    localizer_schedule: Literal["constant", "onecycle", "exponential"] = "constant"
    """Of the localizer's rate; the paper keeps it constant."""
    momentum: float = 0.9
    weight_decay: float = 1e-5
    attention: Literal["attention_maps", "features"] = "attention_maps"
    """What A averages: the M BAP maps, or the trunk's features."""
    normalization: Literal["max", "minmax"] = "max"
    """A as a fraction of its maximum, or stretched to its range, before it is compared with delta."""
    boxes: Literal["merged", "single"] = "merged"
    """Pseudo box: merge of L_r and L_m (Algorithm 1), or L_r alone (the single-pass ablation)."""
    merge: Literal["enclosing"] = "enclosing"
    """Merge of L_r and L_m: the smallest box around both."""
    second_pass: Literal["own", "raw"] = "own"
    """Range by which A_m is normalised: its own, or A_r's."""
    resolution: Literal["input", "native"] = "input"
    """Threshold the attention upsampled to the input (bilinear), or at the trunk's own resolution."""
    mask: Literal["mean", "black"] = "mean"
    """What fills L_r in I_m: 0 after input normalisation (the mean colour), or raw black."""
    teacher_buffers: Literal["copied", "averaged"] = "copied"
    """BatchNorm buffers of the teacher: the student's, or averaged like the weights."""
    localizer_start: int = 0
    """First epoch in which the localizer trains; before it only the classifier and the teacher learn."""


@dataclass(frozen=True)
class RefinementConfig:
    """Stage 2 (Eq. 4-6)."""

    epochs: int = 40
    tau: float = 0.9
    """Confidence above which a box teaches (Eq. 6)."""
    lr: float = 2e-3
    schedule: Literal["constant", "onecycle", "exponential"] = "constant"
    lr_decay: float = 0.9
    momentum: float = 0.9
    weight_decay: float = 1e-5
    loss_weight: float = 1.0
    """Factor on L_refine; Eq. 6 has none. It scales the step, to study how stability depends on it."""
    augmentations: tuple[Literal["scale", "translation", "flip"], ...] = AUGMENTATIONS
    """Parts of the strong view S."""
    scale: tuple[float, float] = (0.8, 1.2)
    """Range of the scale factor, drawn per axis."""
    translation: float = 0.25
    """Crop or pad each side by up to this share of the size."""
    translation_probability: float = 0.5
    flip_probability: float = 0.5
    """Of the horizontal and of the vertical flip, drawn independently."""
    padding: Literal["black", "mean"] = "black"
    """Colour of what the strong view brings in from outside the image (imgaug pads the raw image with zeros)."""
    labeller: Literal["online", "frozen", "ema"] = "online"
    """Whose box is the target: the current localizer's (FixMatch), LCHP-I's, or a moving average's (decay beta)."""
    scheme: Literal["fixmatch"] = "fixmatch"
    """Weight of each image in L_refine: FixMatch's hard threshold."""
    targets: Literal["clipped", "unclipped"] = "clipped"
    """Box target whose view leaves the image: clipped to the view, or left outside."""
    vanished: Literal["dropped", "kept"] = "dropped"
    """View in which the box is not to be seen any more: dropped from the loss (and counted), or kept."""
    crop_margin: float = 0.0
    """Share of the box's side by which the crop for the confidence grows on each side (WS-DAN pads 5 % in a test)."""
    scorer: Literal["classifier"] = "classifier"
    """Which classifier scores the crop: theta_1, frozen after stage 1."""
    freeze_bn: bool = False
    """Keep the localizer's BatchNorm statistics of stage 1, so that strong views do not shift them."""
    bn_statistics: Literal["general", "strong"] = "general"
    """Views whose BatchNorm statistics LCHP-R is left with: general views, which test images look like, on which they
    are estimated anew after the last epoch; or the strong views it was trained on."""
    augmenter: Literal["auto", "tensor", "opencv", "imgaug"] = "auto"
    """Backend of the strong view and of stage 2's crop (which imgaug has no part in): torch on the batch's own device,
    OpenCV or imgaug on the CPU; `auto` is `opencv` on a CPU and `tensor` on a GPU, the fastest of each."""


@dataclass(frozen=True)
class EvaluationConfig:
    """How the test split is predicted, and what else is measured."""

    batch_size: int = 64
    kept_by_tau: bool = True
    """Score LCHP-I's training boxes after stage 1 (Table 4, left: a diagnostic that reads training boxes)."""
    confidence: float = 0.9
    """Fixed confidence, whatever tau is, above which a held-out image counts as kept (see data.validation)."""
    oracle: bool = False
    """Also write GT-Known of the held-out training images, which reads their boxes (see data.validation)."""
    consistency: bool = False
    """Mean IoU between boxes and those of flipped and scaled views; always computed where test images have no boxes."""


@dataclass(frozen=True)
class TrainConfig:
    """One run of both stages."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    initialization: InitializationConfig = field(default_factory=InitializationConfig)
    refinement: RefinementConfig = field(default_factory=RefinementConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 autocast where the device computes in it, else fp32."""
    threads: int = 0
    """CPU threads of torch; 0 leaves torch's choice (or OMP_NUM_THREADS)."""
    compile: bool = False
    """Run the networks through torch.compile: a minute or more of warm-up per network; analysis/benchmark.py --compile
    measures what it gains on a device."""
    tensorboard: bool = False
    """Also write TensorBoard scalars and sample pictures with boxes into the run folder."""

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class Preset:
    """A recipe and the grid that its sweeps run over."""

    config: TrainConfig
    deltas: tuple[float, ...]
    about: str
    taus: tuple[float, ...] = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9)
    localizers: tuple[str, ...] = ("vgg19_bn", "resnet50", "inception_v3")
    """Backbones of Table 5. The recipe's own delta, tau and localizer are in these lists: tables share cells."""


# (field, predicate, what is allowed). Checked for every config that is built, also by replace() and from_dict().
_POSITIVE = (lambda v: v > 0, "greater than 0")
_RATE = (lambda v: 0 <= v <= 1, "in [0, 1]")
_RULES: dict[str, tuple[Any, str]] = {
    "data.resize": (lambda v: 8 <= v <= 4096, "in 8..4096"),
    "data.image_size": (lambda v: 8 <= v <= 4096, "in 8..4096"),
    "data.batch_size": (lambda v: v >= 1, "at least 1"),
    "data.workers": (lambda v: v >= 0, "at least 0"),
    "data.validation": (lambda v: 0 <= v <= 0.5, "in [0, 0.5]"),
    "model.attention_maps": (lambda v: v >= 1, "at least 1"),
    "model.bap_scale": _POSITIVE,
    "initialization.epochs": (lambda v: v >= 1, "at least 1"),
    "initialization.delta": (lambda v: 0 < v < 1, "in (0, 1)"),
    "initialization.alpha": (lambda v: v >= 0, "at least 0"),
    "initialization.beta": (lambda v: 0 <= v < 1, "in [0, 1)"),
    "initialization.lr": _POSITIVE,
    "initialization.localizer_lr": _POSITIVE,
    "initialization.lr_decay": (lambda v: 0 < v <= 1, "in (0, 1]"),
    "initialization.momentum": (lambda v: 0 <= v < 1, "in [0, 1)"),
    "initialization.weight_decay": (lambda v: v >= 0, "at least 0"),
    "initialization.localizer_start": (lambda v: v >= 0, "at least 0"),
    "refinement.epochs": (lambda v: v >= 1, "at least 1"),
    "refinement.tau": _RATE,
    "refinement.lr": _POSITIVE,
    "refinement.lr_decay": (lambda v: 0 < v <= 1, "in (0, 1]"),
    "refinement.momentum": (lambda v: 0 <= v < 1, "in [0, 1)"),
    "refinement.weight_decay": (lambda v: v >= 0, "at least 0"),
    "refinement.loss_weight": _POSITIVE,
    "refinement.augmentations": (
        lambda v: len(v) > 0 and len(set(v)) == len(v),
        "one or more of scale, translation, flip",
    ),
    "refinement.scale": (lambda v: 0.1 <= v[0] <= v[1] <= 10, "two factors, 0.1 <= low <= high <= 10"),
    "refinement.crop_margin": (lambda v: 0 <= v <= 1, "in [0, 1]"),
    "refinement.translation": (lambda v: 0 <= v < 0.5, "in [0, 0.5)"),
    "refinement.translation_probability": _RATE,
    "refinement.flip_probability": _RATE,
    "evaluation.batch_size": (lambda v: v >= 1, "at least 1"),
    "evaluation.confidence": _RATE,
    "seed": (lambda v: 0 <= v < 2**31, "in 0..2^31-1"),
    "threads": (lambda v: v >= 0, "at least 0"),
}


def validate(config: TrainConfig) -> None:
    """Refuses a config that cannot run, with one line that names field, value and what is allowed."""
    flat = to_flat(config)
    hints = field_types()
    for name, value in flat.items():
        if not _fits(value, hints[name]):
            raise ConfigError(f"{name} = {value!r}: expected {_describe(hints[name])}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{name} = {value!r}: expected a finite number")
        if name in _RULES and not _RULES[name][0](value):
            raise ConfigError(f"{name} = {value!r}: expected {_RULES[name][1]}")
    if config.data.image_size > config.data.resize:
        raise ConfigError(
            f"data.image_size = {config.data.image_size}: expected at most data.resize = {config.data.resize}, "
            "since images are resized first and cropped then"
        )
    if (config.data.resize - config.data.image_size) % 2:
        raise ConfigError(
            f"data.image_size = {config.data.image_size}: expected an even difference to data.resize = "
            f"{config.data.resize}, so that the centre crop falls on whole pixels"
        )
    if config.initialization.localizer_start >= config.initialization.epochs:
        raise ConfigError(
            f"initialization.localizer_start = {config.initialization.localizer_start}: "
            f"expected less than initialization.epochs = {config.initialization.epochs}"
        )
    if config.model.head == "gap" and config.initialization.attention == "attention_maps":
        raise ConfigError(
            "initialization.attention = 'attention_maps': a GAP head has none; use features, or model.head bap"
        )


@functools.cache
def field_types(cls: type = TrainConfig) -> Mapping[str, Any]:
    """Dotted field name -> its type, over all sections."""
    hints = typing.get_type_hints(cls)
    out: dict[str, Any] = {}
    for f in dataclasses.fields(cls):
        hint = hints[f.name]
        if dataclasses.is_dataclass(hint):
            out |= {f"{f.name}.{k}": v for k, v in field_types(typing.cast(type, hint)).items()}
        else:
            out[f.name] = hint
    return types.MappingProxyType(out)


def to_flat(config: TrainConfig) -> dict[str, Any]:
    """Dotted field name -> value."""
    flat: dict[str, Any] = {}
    for name in field_types():
        section, _, leaf = name.rpartition(".")
        flat[name] = getattr(getattr(config, section) if section else config, leaf)
    return flat


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Nested plain values, as written to config.json."""
    return dataclasses.asdict(config)


def from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """The inverse of `to_dict`. Raises ConfigError for a missing or unknown field, so that no record is misread."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, Mapping) else {key: value}
    missing = sorted(set(field_types()) - set(flat))
    if missing:
        raise ConfigError(f"config lacks {', '.join(missing)}; it was written by another version of lchp")
    return override(TrainConfig(), flat)


def override(config: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """`config` with fields replaced by dotted name, e.g. ``{"initialization.delta": 0.6}``.

    Lists become tuples and whole numbers become floats where the field asks for it; nothing else is converted.
    Raises ConfigError for a name that does not exist or a value that does not fit.
    """
    hints = field_types()
    sections: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if name not in hints:
            raise ConfigError(f"{name}: no such field{suggest(name, hints)}")
        section, _, leaf = name.rpartition(".")
        sections.setdefault(section, {})[leaf] = _coerce(value, hints[name])
    top = sections.pop("", {})
    return dataclasses.replace(
        config, **{s: dataclasses.replace(getattr(config, s), **leaves) for s, leaves in sections.items()}, **top
    )


PLACES = frozenset(
    {
        "data.root",
        "data.workers",
        "data.cache",
        "data.skip_bad",
        "model.weights_dir",
        "threads",
        "compile",
        "tensorboard",
    }
)
"""Fields that say where a run finds things and how it goes about them, but not what it trains. (Like the device and
what `auto` becomes on it, `compile` changes results by rounding alone.)"""


OPEN_CHOICES: Mapping[str, tuple[Any, ...] | None] = types.MappingProxyType(
    {
        "initialization.normalization": None,
        "initialization.attention": None,
        "refinement.labeller": None,
        "initialization.second_pass": None,
        "model.box_encoding": None,
        "initialization.boxes": None,
        "refinement.padding": None,
        "refinement.targets": None,
        "refinement.vanished": None,
        "refinement.bn_statistics": None,
        "refinement.freeze_bn": None,
        "refinement.crop_margin": (0.0, 0.05),
        "initialization.mask": None,
        "initialization.resolution": None,
        "initialization.teacher_buffers": None,
        "model.localizer_head": None,
    }
)
"""Choices that the paper leaves open and that have an alternative, those expected to matter most first: field -> the
values to compare; None: every value of its type."""


def alternatives(config: TrainConfig) -> list[tuple[str, Any]]:
    """Every open choice with each of its values that is not the config's own and can stand in its place."""
    flat, out = to_flat(config), []
    for name, values in OPEN_CHOICES.items():
        hint = field_types()[name]
        for value in values or ((False, True) if hint is bool else typing.get_args(hint)):
            if value == flat[name]:
                continue
            try:
                override(config, {name: value})
            except ConfigError:  # contradicts another field
                continue
            out.append((name, value))
    return out


def show(value: Any) -> str:
    """A field's value as text for a table: `0.7`, `scale+flip`."""
    if isinstance(value, (tuple, list)):
        return "+".join(map(show, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def suggest(name: str, known: typing.Iterable[str]) -> str:
    """` (did you mean ...?)` for a mistyped name, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def _coerce(value: Any, hint: Any) -> Any:
    if isinstance(value, list):
        value = tuple(value)
    if typing.get_origin(hint) is tuple and isinstance(value, tuple) and float in typing.get_args(hint):
        return tuple(_coerce(v, float) for v in value)
    if hint is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    return value


def _fits(value: Any, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in args and not isinstance(value, bool)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, a) for a in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(args) == 2 and args[1] is Ellipsis:
            return all(_fits(v, args[0]) for v in value)
        return len(value) == len(args) and all(_fits(v, a) for v, a in zip(value, args, strict=True))
    if hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, float)
    return type(value) is hint


def _describe(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(a) for a in args)
    if origin is tuple:
        return f"a list of {_describe(args[0])}" if args[-1] is Ellipsis else f"{len(args)} values"
    return {float: "a number", int: "a whole number", bool: "True or False", str: "text", type(None): "None"}.get(
        hint, str(hint)
    )


_PAPER = TrainConfig(data=DataConfig(name="cub"))

PRESETS: dict[str, Preset] = {
    "parts": Preset(
        TrainConfig(
            data=DataConfig(name="parts", resize=72, image_size=64, batch_size=32),
            model=ModelConfig(
                classifier="tiny", localizer="tiny_coarse", attention_maps=8, bap_scale=10.0, pretrained=False
            ),
            initialization=InitializationConfig(epochs=4, delta=0.5, lr=0.1, schedule="onecycle", localizer_lr=5e-3),
            refinement=RefinementConfig(epochs=4, lr=1e-3, padding="mean"),
            evaluation=EvaluationConfig(batch_size=100, confidence=0.5),
            precision="fp32",
            threads=1,  # so that figures do not depend on the number of cores, by the order of sums
        ),
        deltas=(0.1, 0.3, 0.5, 0.7),
        localizers=("tiny", "tiny_deep", "tiny_coarse"),
        about="embedded synthetic data, 64 px, tiny networks from random initialisation; minutes on a laptop CPU",
    ),
    "cub": Preset(
        _PAPER,
        deltas=(0.5, 0.6, 0.7, 0.8),
        about="CUB-200-2011, the paper's recipe: InceptionV3 at 448 px, 40 + 40 epochs on one GPU",
    ),
    "tiny_imagenet": Preset(
        override(_PAPER, {"data.name": "tiny_imagenet", "initialization.delta": 0.8}),
        deltas=(0.5, 0.6, 0.7, 0.8),
        about="Tiny-ImageNet, the paper's recipe: InceptionV3 at 448 px, 40 + 40 epochs on one GPU",
    ),
    "imagenet": Preset(
        override(
            _PAPER,
            {
                "data.name": "imagenet",
                "data.cache": "off",
                "data.workers": 8,
                "initialization.epochs": 10,
                "refinement.epochs": 5,
                "refinement.lr": 2e-4,
            },
        ),
        deltas=(0.5, 0.6, 0.7, 0.8),
        about="ImageNet-1k, the paper's recipe: InceptionV3 at 448 px, 10 + 5 epochs on one GPU",
    ),
    "folder": Preset(
        override(_PAPER, {"data.name": "folder"}),
        deltas=(0.5, 0.6, 0.7, 0.8),
        about="your own images, one sub-folder per class, with the paper's CUB recipe",
    ),
    "cub50_cpu": Preset(
        TrainConfig(
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
            refinement=RefinementConfig(
                epochs=4, tau=0.9, lr=5e-3, schedule="onecycle", loss_weight=20.0, labeller="frozen", padding="mean"
            ),
            precision="bf16",
        ),
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
