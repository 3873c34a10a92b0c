"""The configuration of one run: frozen dataclasses, one per concern, and the paper's recipes as presets.

The section and field names are the command line's flags (``--initialization.delta 0.6``), the axes of a sweep and the
keys of ``config.json``. Every choice that the paper leaves open is a field here, its default first in the list.
"""

import dataclasses
import difflib
import functools
import os
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lchp.errors import ConfigError

AUGMENTATIONS = ("scale", "translation", "flip")
PARTS_SIZE = 72
"""Side in px at which the data set `parts` is generated; the networks see a crop of it."""


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they are read."""

    name: Literal["parts", "cub", "tiny_imagenet", "imagenet", "folder", "wsol", "wsol_fullsup"] = "cub"
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
    """Trunk of the classifier, cut at stride 16: the name of a backbone, or timm:NAME for any model of timm."""
    localizer: str = "inception_v3"
    """Backbone of the localizer, by the same names."""
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
    """Folder of NAME.safetensors in torchvision's (or timm's) parameter names; None: its own download."""


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
    scheme: Literal["fixmatch", "uda", "anchoring"] = "fixmatch"
    """Weight of an image in L_refine: FixMatch's 1[confidence > tau] (the paper's), UDA's softer one, or FixMatch's on
    several strong views of an image (ReMixMatch's anchoring)."""
    temperature: float = 0.4
    """Of UDA's sharpened confidence."""
    views: int = 0
    """Strong views of an image in a step; 0: as many as the scheme has."""
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
class MethodConfig:
    """Whose method it is: LCHP, or one that the paper's tables compare it with."""

    name: str = "lchp"
    """`lchp`, or a file of lchp/methods: cam, grad_cam, acol, psol, ..."""
    threshold: float = 0.2
    """Of a compared method's score map, stretched to [0, 1]: its box is around what is above (CAM's 20 %)."""
    component: Literal["largest", "all"] = "largest"
    """What the box is around: the largest connected component (CAM), or all that is above."""
    localizer: bool = False
    """Also regress a localizer on a compared method's boxes, with stage 1's epochs and rates (LCHP-I's column)."""
    refine: bool = False
    """Also refine that localizer by LCHP's stage 2 (LCHP-R's column)."""
    lr_classifier_ratio: float = 10.0
    """Rate of a compared method's classifier where it starts from random, as a multiple of the rate of what starts from
    ImageNet weights (the name and 10 are wsolevaluation's). Without such weights there is one rate."""


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
    method: MethodConfig = field(default_factory=MethodConfig)
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 autocast where the device computes in it, else fp32."""
    threads: int = 0
    """CPU threads of torch; 0 leaves torch's choice (or OMP_NUM_THREADS)."""
    compile: bool = False
    """Run the networks through torch.compile: a minute or more of warm-up per network; analysis/benchmark.py --compile
    measures what it gains on a device."""
    deterministic: bool = False
    """On a GPU: only kernels that give the same bits every time, at the cost of speed; on a CPU all do."""
    auto_batch: bool = False
    """Where a GPU's memory does not suffice for a batch, take it in two parts, four, ... whose gradients are added up
    (BatchNorm then sees a part at a time; metrics.jsonl says how many)."""
    tensorboard: bool = False
    """Also write TensorBoard scalars and sample pictures with boxes into the run folder."""

    def __post_init__(self) -> None:
        """Lists become tuples and whole numbers floats where a field asks for it (JSON and sweeps hold them so); then
        everything is checked. Raises ConfigError."""
        _tidy(self)
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
    classifiers: tuple[str, ...] = ()
    """More classifiers that the compared methods run on (sweeps/methods.py), beside the recipe's own."""


Rule = tuple[Callable[[Any], bool], str]
"""Whether a value of the field's type is allowed, and what is, in words."""


def _between(low: float, high: float) -> Rule:
    return lambda v: low <= v <= high, f"in {low}..{high}" if isinstance(low, int) else f"in [{low:g}, {high:g}]"


def _up_to(high: float) -> Rule:
    return lambda v: 0 < v <= high, f"in (0, {high:g}]"


def _below(high: float) -> Rule:
    return lambda v: 0 <= v < high, f"in [0, {high:g})"


def _is_path(value: str | None) -> bool:
    if value is None:
        return True
    try:
        return bool(value.strip()) and b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


_PATH = (_is_path, "not empty, of characters that a path may have")
_RATE = _between(0.0, 1.0)
_POSITIVE = (lambda v: v > 0, "greater than 0")
_FLOAT32 = 3e38
"""What networks compute in ends a little above."""

# Checked, after its type, for every config that is built: by the constructor, replace(), override() and from_dict().
# Upper ends are far beyond use; beyond them memory, threads or float32 fail in ways that do not name the field.
_RULES: dict[str, Rule] = {
    "data.root": _PATH,
    "data.resize": _between(8, 4096),
    "data.image_size": _between(8, 4096),
    "data.batch_size": _between(1, 65536),
    "data.workers": _between(0, 1024),
    "data.cache": (
        lambda v: _is_path(v) and (v in ("auto", "off") or v.lower() not in ("auto", "off")),
        "auto, off, or the path of a folder",
    ),
    "data.validation": _between(0.0, 0.5),
    "model.attention_maps": _between(1, 4096),
    "model.bap_scale": _up_to(1e6),
    "model.weights_dir": _PATH,
    "initialization.epochs": _between(1, 1000000),
    "initialization.delta": (lambda v: 0 < v < 1, "in (0, 1)"),
    "initialization.alpha": _between(0.0, 1e6),
    "initialization.beta": _below(1),
    "initialization.lr": _POSITIVE,
    "initialization.localizer_lr": _POSITIVE,
    "initialization.lr_decay": _up_to(1),
    "initialization.momentum": _below(1),
    "initialization.weight_decay": _between(0.0, 1.0),
    "initialization.localizer_start": _between(0, 999999),
    "refinement.epochs": _between(1, 1000000),
    "refinement.tau": _RATE,
    "refinement.lr": _POSITIVE,
    "refinement.lr_decay": _up_to(1),
    "refinement.momentum": _below(1),
    "refinement.weight_decay": _between(0.0, 1.0),
    "refinement.loss_weight": _up_to(1e6),
    "refinement.augmentations": (
        lambda v: len(v) > 0 and len(set(v)) == len(v),
        "one or more of scale, translation, flip, each once",
    ),
    "refinement.scale": (lambda v: 0.1 <= v[0] <= v[1] <= 10, "two factors, 0.1 <= low <= high <= 10"),
    "refinement.crop_margin": _RATE,
    "refinement.temperature": _up_to(100),
    "refinement.views": _between(0, 64),
    "refinement.translation": _below(0.5),
    "refinement.translation_probability": _RATE,
    "refinement.flip_probability": _RATE,
    "evaluation.batch_size": _between(1, 65536),
    "method.name": (lambda v: v.isidentifier(), "lchp, or the name of a file of lchp/methods"),
    "method.threshold": _below(1),
    "method.lr_classifier_ratio": _up_to(1000),
    "evaluation.confidence": _RATE,
    "seed": (lambda v: 0 <= v < 2**31, "in 0..2^31-1"),
    "threads": _between(0, 1024),
}


def allowed(name: str) -> str:
    """What the field of this dotted name takes, in words: `a number, in (0, 1)`."""
    return ", ".join([_describe(field_types()[name]), *([_RULES[name][1]] if name in _RULES else [])])


def validate(config: TrainConfig) -> None:
    """Refuses a config that cannot run, with one line that names field, value and what is allowed."""
    for section, kind in _sections().items():
        if not isinstance(getattr(config, section), kind):
            raise ConfigError(f"{section} = {_said(getattr(config, section))}: expected a {kind.__name__}")
    hints = field_types()
    for name, value in to_flat(config).items():
        if not _fits(value, hints[name]):
            raise ConfigError(f"{name} = {_said(value)}: expected {allowed(name)}")
        if any(isinstance(v, float) and not abs(v) <= _FLOAT32 for v in (value if type(value) is tuple else (value,))):
            raise ConfigError(f"{name} = {_said(value)}: expected a finite number")
        if name in _RULES and not _RULES[name][0](value):
            raise ConfigError(f"{name} = {_said(value)}: expected {_RULES[name][1]}")
    contradiction = next(_contradictions(config), None)
    if contradiction is not None:
        raise ConfigError(contradiction)


def _contradictions(config: TrainConfig) -> Iterator[str]:
    """Fields that do not go together."""
    data, model, stage1 = config.data, config.model, config.initialization
    if data.name == "parts" and data.root is not None:
        yield (
            f"data.root = {_said(data.root)}: expected None, since parts is generated; --data.name says what lies there"
        )
    if data.name == "parts" and data.resize != PARTS_SIZE:
        yield (
            f"data.resize = {data.resize}: expected {PARTS_SIZE}, at which parts is generated (--preset parts goes "
            "with it)"
        )
    if data.image_size > data.resize:
        yield (
            f"data.image_size = {data.image_size}: expected at most data.resize = {data.resize}, "
            "since images are resized first and cropped then"
        )
    if (data.resize - data.image_size) % 2:
        yield (
            f"data.image_size = {data.image_size}: expected an even difference to data.resize = "
            f"{data.resize}, so that the centre crop falls on whole pixels"
        )
    if model.weights_dir is not None and not model.pretrained:
        yield (
            f"model.weights_dir = {_said(model.weights_dir)}: expected None, since model.pretrained = False starts "
            "from random weights; leave one of them out"
        )
    if stage1.localizer_start >= stage1.epochs:
        yield (
            f"initialization.localizer_start = {stage1.localizer_start}: "
            f"expected less than initialization.epochs = {stage1.epochs}"
        )
    method = config.method
    if method.refine and not method.localizer:
        yield "method.refine = True: expected False, or method.localizer True, whose boxes it refines"
    if method.name != "lchp" and config.auto_batch:
        yield f"auto_batch = True: expected False, since the method {_said(method.name)} takes batches whole"
    if method.name == "lchp" and method.localizer:
        yield "method.localizer = True: expected False, since method.name = 'lchp' always has one"
    if method.name == "lchp" and model.head == "gap" and stage1.attention == "attention_maps":
        yield "initialization.attention = 'attention_maps': a GAP head has none; use features, or model.head bap"


def _tidy(config: TrainConfig) -> None:
    """Converts, in place of the frozen config that is being built, what `_coerce` converts."""
    sections = {s: getattr(config, s) for s, kind in _sections().items() if isinstance(getattr(config, s), kind)}
    for section, value in sections.items():
        hints = field_types(type(value))
        leaves = {leaf: _coerce(getattr(value, leaf), hint) for leaf, hint in hints.items()}
        changed = {leaf: v for leaf, v in leaves.items() if v is not getattr(value, leaf)}
        if changed:
            object.__setattr__(config, section, dataclasses.replace(value, **changed))


@functools.cache
def _sections() -> Mapping[str, type]:
    hints: dict[str, Any] = typing.get_type_hints(TrainConfig)
    sections = {n: h for n, h in hints.items() if isinstance(h, type) and dataclasses.is_dataclass(h)}
    return types.MappingProxyType(sections)


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


def from_dict(values: Any) -> TrainConfig:
    """The inverse of `to_dict`; fields that are newer than the record mean what they meant then (`complete`).

    Raises ConfigError for a field that is unknown, missing, wrong or there twice, so that no record is misread.
    """
    return override(_PAPER, complete(flatten(values)))


def flatten(values: Any) -> dict[str, Any]:
    """A nested record, as `to_dict` makes it, by dotted name (which a record may hold as well). Raises ConfigError."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"a config is an object of sections and fields, found {_said(values)}")
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if key in _sections() and not isinstance(value, Mapping):
            raise ConfigError(f"{key} = {_said(value)}: expected an object with the fields of that section")
        for name, v in ((f"{key}.{k}", v) for k, v in value.items()) if key in _sections() else [(key, value)]:
            if name in flat:
                raise ConfigError(f"{_name(name)} = {_said(v)}: is there twice")
            flat[name] = v
    return flat


MEANING_BEFORE: Mapping[str, Any] = types.MappingProxyType(
    {
        "initialization.merge": "enclosing",
        "refinement.vanished": "dropped",
        "refinement.crop_margin": 0.0,
        "refinement.scorer": "classifier",
        "refinement.temperature": 0.4,
        "refinement.views": 0,
        "refinement.bn_statistics": "strong",
        "evaluation.oracle": False,
        "compile": False,
        "deterministic": False,
        # of LCHP's, which go by none of these: no compared method's record is as old
        **{f"method.{k}": v for k, v in dataclasses.asdict(MethodConfig()).items()},
        "auto_batch": False,
    }
)
"""Fields that came after the first records, and what a record without them was made with. A field that is added to the
config is added here too, where older records have a meaning for it; without that they are refused."""


def complete(flat: Mapping[str, Any]) -> dict[str, Any]:
    """A record's fields by dotted name, with MEANING_BEFORE of those that it lacks. Raises ConfigError for one that it
    lacks and that has no such meaning."""
    unread = sorted(field_types().keys() - flat.keys() - MEANING_BEFORE.keys())
    if unread:
        more = f" and {len(unread) - 3} more" if len(unread) > 3 else ""
        raise ConfigError(f"config lacks {', '.join(unread[:3])}{more}; it was written by another version of lchp")
    return {**MEANING_BEFORE, **flat}


def unique_keys(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """An object_pairs_hook for json.loads, which without it takes the last of two values of a key in silence. Raises
    ValueError."""
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise ValueError(f"key {_said(key)} is there twice")
        out[key] = value
    return out


def override(config: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """`config` with fields replaced by dotted name, e.g. ``{"initialization.delta": 0.6}``.

    Raises ConfigError for a name that does not exist or a value that does not fit.
    """
    hints = field_types()
    sections: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if name not in hints:
            raise ConfigError(f"{_name(name)}: no such field{suggest(str(name), [*hints, *_sections()])}")
        section, _, leaf = name.rpartition(".")
        sections.setdefault(section, {})[leaf] = value
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
        "deterministic",
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


def _said(value: Any) -> str:
    """A value for a message: on one line, and not too long."""
    try:
        text = " ".join(repr(value).splitlines())
    except (ValueError, RecursionError):  # Python prints no whole number of thousands of digits
        text = f"a whole number of {value.bit_length()} bits" if isinstance(value, int) else type(value).__name__
    return text if len(text) <= 100 else f"{text[:97]}..."


def _name(name: Any) -> str:
    """A field's name as it was given."""
    return name if isinstance(name, str) and name.isprintable() and 0 < len(name) <= 60 else _said(name)


_parts = functools.cache(lambda hint: (typing.get_origin(hint), typing.get_args(hint)))


def _coerce(value: Any, hint: Any) -> Any:
    if isinstance(value, list):
        value = tuple(value)
    if isinstance(value, tuple) and _parts(hint)[0] is tuple and float in _parts(hint)[1]:
        values = tuple(_coerce(v, float) for v in value)
        return value if all(a is b for a, b in zip(value, values, strict=True)) else values
    if hint is float and type(value) is int and abs(value) <= 2**53:
        return float(value)
    return value


def _fits(value: Any, hint: Any) -> bool:
    origin, args = _parts(hint)
    if origin is Literal:
        return isinstance(value, str) and value in args
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
    origin, args = _parts(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(a) for a in args)
    if origin is tuple:
        return f"a list of {_describe(args[0])}" if args[-1] is Ellipsis else f"{len(args)} values"
    return {float: "a number", int: "a whole number", bool: "True or False", str: "text", type(None): "None"}.get(
        hint, str(hint)
    )


_PAPER = TrainConfig()

PRESETS: dict[str, Preset] = {
    "parts": Preset(
        TrainConfig(
            data=DataConfig(name="parts", resize=PARTS_SIZE, image_size=64, batch_size=32),
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
        classifiers=("tiny_deep",),
        localizers=("tiny", "tiny_deep", "tiny_coarse"),
        about="embedded synthetic data, 64 px, tiny networks from random initialisation; minutes on a laptop CPU",
    ),
    "cub": Preset(
        _PAPER,
        deltas=(0.5, 0.6, 0.7, 0.8),
        classifiers=("vgg16_gap", "resnet50"),
        about="CUB-200-2011, the paper's recipe: InceptionV3 at 448 px, 40 + 40 epochs on one GPU",
    ),
    "tiny_imagenet": Preset(
        override(_PAPER, {"data.name": "tiny_imagenet", "initialization.delta": 0.8}),
        deltas=(0.5, 0.6, 0.7, 0.8),
        classifiers=("vgg16_gap", "resnet50"),
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
        classifiers=("vgg16_gap", "resnet50"),
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
