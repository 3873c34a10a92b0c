"""The configuration of one run: frozen dataclasses, one per concern.

The section and field names are the command line's flags (``--initialization.delta 0.6``), the axes of a sweep and the
keys of ``config.json``. A field says all about itself, once: its type and what of it is allowed, what it changes, since
when it is there, whether the paper leaves it open (`lchp.config.about`), its default, and its meaning: the flag's help.
"""

import dataclasses
import functools
import operator
import typing
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Literal

from lchp.config.about import (
    CACHE,
    PATH,
    POSITIVE,
    Field,
    Open,
    Part,
    Rule,
    Since,
    changes,
    field_of,
    quoted,
    show,
    within,
)
from lchp.errors import ConfigError

AUGMENTATIONS = ("scale", "translation", "flip")
AUTO: Mapping[str, str | None] = MappingProxyType(
    {
        "delta": "mask_delta",
        "attention": "mask_attention",
        "normalization": "mask_normalization",
        "second_pass": None,
    }
)
"""Fields of stage 1 that can be `auto`, and those that say the same of the masks."""
PARTS_SIZE = 72
"""Side in px at which the data set `parts` is generated; the networks see a crop of it."""


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they are read."""

    name: Annotated[
        Literal["parts", "cub", "tiny_imagenet", "imagenet", "folder", "wsol", "wsol_fullsup"], changes("images")
    ] = "cub"
    """Data set. `parts` is generated; the others are read from `root` in their original layout."""
    root: Annotated[str | None, changes(), PATH] = None
    """Folder that holds the data set, e.g. the one that contains images.txt for CUB-200-2011."""
    resize: Annotated[int, changes("views"), within("8..4096")] = 512
    """Side in px that every image is resized to (both axes), before cropping."""
    image_size: Annotated[int, changes("views"), within("8..4096")] = 448
    """Side in px of what the networks see: a random crop when training, a centre crop or the whole image in a test."""
    batch_size: Annotated[int, changes("views"), within("1..65536")] = 32
    """Images per training step, over all workers."""
    workers: Annotated[int, changes(), within("0..1024")] = 0
    """Processes that decode images when `cache` is `off`; threads that fill the cache otherwise (0: one per core)."""
    cache: Annotated[str, changes(), CACHE] = "auto"
    """`auto`: decode once into the user's cache folder; `off`: decode every epoch; or the cache folder's path."""
    validation: Annotated[float, changes("views"), within("[0, 0.5]")] = 0.0
    """Share of the training images that is held out (by a hash of seed and image id) to choose settings on; 0: none."""
    skip_bad: Annotated[bool, changes()] = False
    """Drop unreadable images and bad annotations (counted, listed in the run folder) instead of refusing to start."""


@dataclass(frozen=True)
class ModelConfig:
    """Networks. The classifier's trunk and the localizer's backbone are chosen separately."""

    classifier: Annotated[str, changes("trunk")] = "inception_v3"
    """Trunk of the classifier, cut at stride 16: the name of a backbone, or timm:NAME for any model of timm."""
    localizer: Annotated[str, changes("localizer")] = "inception_v3"
    """Backbone of the localizer, by the same names."""
    head: Annotated[Literal["bap", "gap"], changes("head")] = "bap"
    """Classifier head: bilinear attention pooling (WS-DAN), or global average pooling."""
    attention_maps: Annotated[int, changes("head"), within("1..4096")] = 32
    """M, the number of attention maps of the BAP head."""
    bap_scale: Annotated[float, changes("head"), within("(0, 1e+06]")] = 100.0
    """Factor between the L2 normalisation and the linear layer of the BAP head (WS-DAN's 100)."""
    localizer_head: Annotated[Literal["spatial", "gap"], changes("localizer"), Open(16)] = "spatial"
    """Head that regresses the box: `spatial` keeps where a feature lies; `gap` averages it away first (PSOL)."""
    box_encoding: Annotated[Literal["linear", "sigmoid"], changes("localizer"), Open(5)] = "linear"
    """Last activation of the localizer; boxes are x1 y1 x2 y2 / image_size."""
    pretrained: Annotated[bool, changes("trunk", "localizer")] = True
    """Start from ImageNet weights. `False` must be said aloud: missing weights are an error, never a random start."""
    weights_dir: Annotated[str | None, changes(), PATH] = None
    """Folder of NAME.safetensors in torchvision's (or timm's) parameter names; None: its own download."""
    classifier_weights: Annotated[str | None, changes(), PATH, Since(4, None)] = None
    """File of a classifier that is trained already, to start from: its whole network with its class head, in
    torchvision's (or timm's) parameter names, .safetensors or torch weights (read as data). For the methods of a map;
    with initialization.epochs 0 nothing is trained."""
    classifier_classes: Annotated[str | None, changes(), PATH, Since(4, None)] = None
    """File of that head's class names, a line each, in its order; None: they are the data's, in the order of theirs."""


@dataclass(frozen=True)
class InitializationConfig:
    """Stage 1 (Algorithm 1, Eq. 1-3 and 7)."""

    epochs: Annotated[int, changes("classifier", "localizer"), within("0..1000000")] = 40
    """Epochs of the classifier, and of the localizer on its boxes; 0 goes with model.classifier_weights alone."""
    delta: Annotated[Literal["auto"] | float, changes("teacher", "teacher_boxes"), within("(0, 1)", "auto")] = 0.7
    """Foreground threshold on the normalised attention (Eq. 1), of the boxes; and of the masks, unless mask_delta is
    given. `auto`: chosen on training images by a score that reads class labels and no box (see auto_after)."""
    mask_delta: Annotated[float | None, changes("masks"), within("(0, 1)", None), Since(4, None)] = None
    """Threshold of the masks that the classifier learns on (Eq. 2), apart from that of the boxes; None: delta, as in
    the paper. Where it is given, a link of its own makes the boxes, by the teachers as they were after the classifier's
    epochs (8 of them at most, at equal distances)."""
    alpha: Annotated[float, changes("l_reg"), within("[0, 1e+06]")] = 20.0
    """Weight of the box regression in L_init (Eq. 3)."""
    beta: Annotated[float, changes("teacher", "masks", "refinement"), within("[0, 1)")] = 0.9
    """Decay of the teacher's moving average (Eq. 7)."""
    lr: Annotated[float, changes("classifier"), POSITIVE] = 2e-3
    """Learning rate of the classifier."""
    localizer_lr: Annotated[float, changes("localizer"), POSITIVE] = 2e-3
    """Learning rate of the localizer."""
    schedule: Annotated[Literal["exponential", "onecycle", "constant"], changes("classifier")] = "exponential"
    """Of the classifier's rate: times lr_decay after every epoch (the paper's), one cycle, or constant."""
    lr_decay: Annotated[float, changes("classifier", "localizer"), within("(0, 1]")] = 0.9
    """Factor on a rate after every epoch, where its schedule is exponential."""
    localizer_schedule: Annotated[Literal["constant", "onecycle", "exponential"], changes("localizer")] = "constant"
    """Of the localizer's rate; the paper keeps it constant."""
    momentum: Annotated[float, changes("classifier", "localizer"), within("[0, 1)")] = 0.9
    """Momentum of SGD, for both networks."""
    weight_decay: Annotated[float, changes("classifier", "localizer"), within("[0, 1]")] = 1e-5
    """Weight decay of SGD (its L2 penalty), for both networks."""
    attention: Annotated[
        Literal["attention_maps", "features", "auto"],
        changes("teacher", "teacher_boxes"),
        Open(2, ("attention_maps", "features")),
    ] = "attention_maps"
    """What A averages: the M BAP maps, or the trunk's features; `auto` as for delta."""
    mask_attention: Annotated[Literal["attention_maps", "features"] | None, changes("masks"), Since(4, None)] = None
    """The same of the masks; None: attention."""
    normalization: Annotated[
        Literal["max", "minmax", "auto"], changes("teacher", "teacher_boxes"), Open(1, ("max", "minmax"))
    ] = "max"
    """A as a fraction of its maximum, or stretched to its range, before it is compared with delta; `auto` likewise."""
    mask_normalization: Annotated[Literal["max", "minmax"] | None, changes("masks"), Since(4, None)] = None
    """The same of the masks; None: normalization."""
    boxes: Annotated[Literal["merged", "single"], changes("teacher", "teacher_boxes"), Open(6)] = "merged"
    """Pseudo box: the smallest box around L_r and L_m (Algorithm 1), or L_r alone (the single-pass ablation)."""
    second_pass: Annotated[
        Literal["own", "raw", "auto"], changes("teacher", "teacher_boxes"), Open(4, ("own", "raw"))
    ] = "own"
    """Range by which A_m is normalised: its own, or A_r's; `auto` likewise."""
    auto_after: Annotated[int, changes("teacher_boxes"), within("0..1000000"), Since(4, 0)] = 0
    """Epochs of the classifier after which `auto` chooses, by the teacher of then, which also makes the boxes of the
    epochs before; 0: after the last. (Up to 8 teachers are kept, so of many epochs the next that is.)"""
    resolution: Annotated[Literal["input", "native"], changes("teacher", "masks", "teacher_boxes"), Open(14)] = "input"
    """Threshold the attention upsampled to the input (bilinear), or at the trunk's own resolution."""
    mask: Annotated[Literal["mean", "black"], changes("teacher", "masks", "teacher_boxes", "predictions"), Open(13)] = (
        "mean"
    )
    """What fills L_r in I_m: 0 after input normalisation (the mean colour), or raw black."""
    teacher_buffers: Annotated[Literal["copied", "averaged"], changes("teacher", "masks"), Open(15)] = "copied"
    """BatchNorm buffers of the teacher: the student's, or averaged like the weights."""
    localizer_start: Annotated[int, changes("l_reg"), within("0..999999")] = 0
    """First epoch in which the localizer trains; before it only the classifier and the teacher learn."""

    @property
    def threshold(self) -> float:
        """delta, of a config in which it is a number: its own, or what `auto` became (see `lchp.method.choice`)."""
        if isinstance(self.delta, str):
            raise ValueError("initialization.delta = 'auto' has not been chosen yet")
        return self.delta

    @property
    def auto_fields(self) -> tuple[str, ...]:
        """The fields that are `auto`."""
        return tuple(name for name in AUTO if getattr(self, name) == "auto")


@dataclass(frozen=True)
class RefinementConfig:
    """Stage 2 (Eq. 4-6)."""

    epochs: Annotated[int, changes("labels", "refinement"), within("1..1000000")] = 40
    """Epochs of the localizer's refinement."""
    tau: Annotated[float, changes("refinement", "kept"), within("[0, 1]")] = 0.9
    """Confidence above which a box teaches (Eq. 6)."""
    lr: Annotated[float, changes("refinement"), POSITIVE] = 2e-3
    """Learning rate of the localizer in stage 2."""
    schedule: Annotated[Literal["constant", "onecycle", "exponential"], changes("refinement")] = "constant"
    """Of that rate: constant (the paper's), one cycle, or times lr_decay after every epoch."""
    lr_decay: Annotated[float, changes("refinement"), within("(0, 1]")] = 0.9
    """Factor on the rate after every epoch, where the schedule is exponential."""
    momentum: Annotated[float, changes("refinement"), within("[0, 1)")] = 0.9
    """Momentum of SGD."""
    weight_decay: Annotated[float, changes("refinement"), within("[0, 1]")] = 1e-5
    """Weight decay of SGD (its L2 penalty)."""
    loss_weight: Annotated[float, changes("refinement"), within("(0, 1e+06]")] = 1.0
    """Factor on L_refine; Eq. 6 has none. It scales the step, to study how stability depends on it."""
    augmentations: Annotated[
        tuple[Literal["scale", "translation", "flip"], ...],
        changes("refinement"),
        Rule(lambda v: len(v) == len(set(v)) > 0, "one or more of scale, translation, flip, each once"),
    ] = AUGMENTATIONS
    """Parts of the strong view S."""
    scale: Annotated[
        tuple[float, float],
        changes("refinement"),
        Rule(lambda v: 0.1 <= v[0] <= v[1] <= 10, "two factors, 0.1 <= low <= high <= 10"),
    ] = (0.8, 1.2)
    """Range of the scale factor, drawn per axis."""
    translation: Annotated[float, changes("refinement"), within("[0, 0.5)")] = 0.25
    """Crop or pad each side by up to this share of the size."""
    translation_probability: Annotated[float, changes("refinement"), within("[0, 1]")] = 0.5
    """Probability of the translation, drawn per view."""
    flip_probability: Annotated[float, changes("refinement"), within("[0, 1]")] = 0.5
    """Of the horizontal and of the vertical flip, drawn independently."""
    padding: Annotated[Literal["black", "mean"], changes("refinement"), Open(7)] = "black"
    """Colour of what the strong view brings in from outside the image (imgaug pads the raw image with zeros)."""
    labeller: Annotated[Literal["online", "frozen", "ema"], changes("refinement"), Open(3)] = "online"
    """Whose box is the target: the current localizer's (FixMatch), LCHP-I's, or a moving average's (decay beta)."""
    scheme: Annotated[Literal["fixmatch", "uda", "anchoring"], changes("refinement")] = "fixmatch"
    """Weight of an image in L_refine: FixMatch's 1[confidence > tau] (the paper's), UDA's softer one, or FixMatch's on
    several strong views of an image (ReMixMatch's anchoring)."""
    temperature: Annotated[float, changes("refinement"), within("(0, 100]"), Since(3, 0.4)] = 0.4
    """Of UDA's sharpened confidence."""
    views: Annotated[int, changes("refinement"), within("0..64"), Since(3, 0)] = 0
    """Strong views of an image in a step; 0: as many as the scheme has."""
    targets: Annotated[Literal["clipped", "unclipped"], changes("refinement"), Open(8)] = "clipped"
    """Box target whose view leaves the image: clipped to the view, or left outside."""
    vanished: Annotated[Literal["dropped", "kept"], changes("refinement"), Since(2, "dropped"), Open(9)] = "dropped"
    """View in which the box is not to be seen any more: dropped from the loss (and counted), or kept."""
    crop_margin: Annotated[
        float, changes("labels", "refinement", "predictions"), within("[0, 1]"), Since(2, 0.0), Open(12, (0.0, 0.05))
    ] = 0.0
    """Share of the box's side by which the crop for the confidence grows on each side (WS-DAN pads 5 % in a test)."""
    freeze_bn: Annotated[bool, changes("refinement"), Open(11, (False, True))] = False
    """Keep the localizer's BatchNorm statistics of stage 1, so that strong views do not shift them."""
    bn_statistics: Annotated[Literal["general", "strong"], changes("refinement"), Since(2, "strong"), Open(10)] = (
        "general"
    )
    """Views whose BatchNorm statistics LCHP-R is left with: general views, which test images look like, on which they
    are estimated anew after the last epoch; or the strong views it was trained on."""
    augmenter: Annotated[Literal["auto", "tensor", "opencv", "imgaug"], changes("labels", "refinement")] = "auto"
    """Backend of the strong view and of stage 2's crop (which imgaug has no part in): torch on the batch's own device,
    OpenCV or imgaug on the CPU; `auto` is `opencv` on a CPU and `tensor` on a GPU, the fastest of each."""


@dataclass(frozen=True)
class MethodConfig:
    """Whose method it is: LCHP, or one that the paper's tables compare it with."""

    # records from before these fields are all of LCHP's runs, which go by none of them

    name: Annotated[
        str, changes(), Rule(str.isidentifier, "lchp, or the name of a file of lchp/baselines"), Since(3, "lchp")
    ] = "lchp"
    """`lchp`, or a file of lchp/baselines: cam, grad_cam, acol, psol, ..."""
    boxes: Annotated[str | None, changes(), PATH, Since(4, None)] = None
    """File of the pseudo boxes of the method `boxes`: .csv or .parquet (image, x1, y1, x2, y2 in px of the original
    image, score where an image has several), or COCO's .json."""
    threshold: Annotated[float, changes("map"), within("[0, 1)"), Since(3, 0.2)] = 0.2
    """Of a compared method's score map, stretched to [0, 1]: its box is around what is above (CAM's 20 %)."""
    component: Annotated[Literal["largest", "all"], changes("map"), Since(3, "largest")] = "largest"
    """What the box is around: the largest connected component (CAM), or all that is above."""
    localizer: Annotated[bool, changes(), Since(3, False)] = False
    """Also regress a localizer on a compared method's boxes, with stage 1's epochs and rates (LCHP-I's column)."""
    refine: Annotated[bool, changes(), Since(3, False)] = False
    """Also refine that localizer by LCHP's stage 2 (LCHP-R's column)."""
    lr_classifier_ratio: Annotated[float, changes("ratio"), within("(0, 1000]"), Since(3, 10.0)] = 10.0
    """Rate of a compared method's classifier where it starts from random, as a multiple of the rate of what starts from
    ImageNet weights (the name and 10 are wsolevaluation's). Without such weights there is one rate."""


@dataclass(frozen=True)
class EvaluationConfig:
    """How the test split is predicted, and what else is measured."""

    batch_size: Annotated[int, changes(), within("1..65536")] = 64
    """Images that are predicted at a time."""
    kept_by_tau: Annotated[bool, changes("measures")] = True
    """Score LCHP-I's training boxes after stage 1 (Table 4, left: a diagnostic that reads training boxes)."""
    confidence: Annotated[float, changes("measures"), within("[0, 1]")] = 0.9
    """Fixed confidence, whatever tau is, above which a held-out image counts as kept (see data.validation)."""
    oracle: Annotated[bool, changes("measures"), Since(2, False)] = False
    """Also write GT-Known of the held-out training images, which reads their boxes (see data.validation)."""
    consistency: Annotated[bool, changes("measures")] = False
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
    seed: Annotated[int, changes("views"), Rule(lambda v: 0 <= v < 2**31, "in 0..2^31-1")] = 0
    """Of every random number: order, crops, flips, strong views, and new layers' weights."""
    device: Annotated[Literal["auto", "cpu", "cuda"], changes()] = "auto"
    """Where the networks run; `auto`: a GPU if there is one, else the CPU."""
    precision: Annotated[Literal["auto", "fp32", "bf16"], changes("views")] = "auto"
    """`auto`: bf16 autocast where the device computes in it, else fp32 (in full: a GPU's TF32 is off)."""
    threads: Annotated[int, changes(), within("0..1024")] = 0
    """CPU threads of torch; 0 leaves torch's choice (or OMP_NUM_THREADS)."""
    compile: Annotated[bool, changes(), Since(3, False)] = False
    """Run the networks through torch.compile: a minute or more of warm-up per network; analysis/benchmark.py --compile
    measures what it gains on a device."""
    deterministic: Annotated[bool, changes(), Since(3, False)] = False
    """On a GPU: only kernels that give the same bits every time, at the cost of speed; on a CPU all do."""
    auto_batch: Annotated[bool, changes("views"), Since(3, False)] = False
    """Where a GPU's memory does not suffice for a batch, take it in two parts, four, ... whose gradients are added up
    (BatchNorm then sees a part at a time; metrics.jsonl says how many)."""
    tensorboard: Annotated[bool, changes()] = False
    """The same as --track tensorboard, which is for new use."""

    def __post_init__(self) -> None:
        """Reads every field as its type. Raises ConfigError, one line, for a value or values that cannot run."""
        for name, kind in SECTIONS.items():
            if not isinstance(section := getattr(self, name), kind):
                raise ConfigError(f"{name} = {quoted(section)}: expected a {kind.__name__}")
        given = to_flat(self)
        read = {name: value for name, f in FIELDS.items() if (value := f.read(given[name])) is not given[name]}
        for name, value in changed(self, read).items():
            object.__setattr__(self, name, value)
        if contradiction := next(_contradictions(self), None):
            raise ConfigError(contradiction)


def changed(config: TrainConfig, values: Mapping[str, Any]) -> dict[str, Any]:
    """The sections and top fields of a config that these values, by dotted name, change; unchecked."""
    top: dict[str, Any] = {}
    sections: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, _, leaf = name.rpartition(".")
        (sections.setdefault(section, {}) if section else top)[leaf] = value
    return top | {s: dataclasses.replace(getattr(config, s), **leaves) for s, leaves in sections.items()}


def _contradictions(config: TrainConfig) -> Iterator[str]:
    """Fields that do not go together."""
    data, model, stage1 = config.data, config.model, config.initialization
    size, resize, start = data.image_size, data.resize, stage1.localizer_start
    if data.name == "parts" and data.root is not None:
        yield f"data.root = {quoted(data.root)}: expected None, since parts is generated; name the data by --data.name"
    if data.name == "parts" and resize != PARTS_SIZE:
        yield f"data.resize = {resize}: expected {PARTS_SIZE}, at which parts is generated (see --preset parts)"
    if size > resize:
        yield f"data.image_size = {size}: expected at most data.resize = {resize}, since it is a crop of that"
    if (resize - size) % 2:
        yield f"data.image_size = {size}: expected an even difference to data.resize = {resize}, for a centred crop"
    if model.weights_dir is not None and not model.pretrained:
        given = f"model.weights_dir = {quoted(model.weights_dir)}"
        yield f"{given}: expected None, since model.pretrained = False starts from random weights"
    if model.classifier_classes is not None and model.classifier_weights is None:
        given = f"model.classifier_classes = {quoted(model.classifier_classes)}"
        yield f"{given}: expected None, or model.classifier_weights, whose classes they are"
    if stage1.epochs == 0 and model.classifier_weights is None:
        yield (
            "initialization.epochs = 0: expected at least 1, or model.classifier_weights, a classifier that is trained "
            "already"
        )
    if start >= max(stage1.epochs, 1):
        yield f"initialization.localizer_start = {start}: expected less than initialization.epochs = {stage1.epochs}"
    if stage1.auto_after > stage1.epochs:
        after = f"initialization.auto_after = {stage1.auto_after}"
        yield f"{after}: expected at most initialization.epochs = {stage1.epochs}"


def _fields(kind: type, prefix: str = "") -> Iterator[Field]:
    for name, annotation in typing.get_type_hints(kind, include_extras=True).items():
        if prefix + name in SECTIONS:
            yield from _fields(annotation, f"{name}.")
        else:
            yield field_of(prefix + name, annotation)


SECTIONS: Mapping[str, type] = {f.name: f.type for f in dataclasses.fields(TrainConfig) if isinstance(f.type, type)}
FIELDS: Mapping[str, Field] = {f.name: f for f in _fields(TrainConfig)}
"""Every field by dotted name, in order."""

MEANING_BEFORE: Mapping[str, Any] = {name: f.since.meant for name, f in FIELDS.items() if f.since}
"""Fields that came after the first records, and what a record without them was made with."""

GONE: Mapping[str, Any] = MappingProxyType({"initialization.merge": "enclosing", "refinement.scorer": "classifier"})
"""Fields of older records that had one value ever, which still stands in the keys of links."""

_OPEN = sorted(((n, f.open) for n, f in FIELDS.items() if f.open), key=lambda item: item[1].place)
OPEN_CHOICES: Mapping[str, tuple[Any, ...]] = {n: o.values or typing.get_args(FIELDS[n].type) for n, o in _OPEN}
"""Choices that the paper leaves open and that have an alternative, those expected to matter most first, with the values
to compare."""

PATHS = tuple(n for n, f in FIELDS.items() if f.rule and f.rule.is_path)
"""Fields that may hold a path of the machine."""
FILES = ("method.boxes", "model.classifier_weights", "model.classifier_classes")
"""Fields that name a file whose content, wherever it lies, a run depends on."""

MEASURED: tuple[Part, ...] = ("measures", "predictions")
"""The parts that change what is recorded of a result, and not the result."""

SHAPE = (
    "method.name",
    "method.boxes",
    "method.localizer",
    "method.refine",
    "refinement.labeller",
    "model.pretrained",
    "model.classifier_weights",
    "initialization.mask_delta",
)
"""The fields that decide which links a run has, and which other fields these depend on."""

PLACES = frozenset(
    n
    for n, f in FIELDS.items()
    if not f.changes and n not in (*SHAPE, "device") and not n.startswith(("method.", "evaluation."))
)
"""Fields that say where a run finds things and how it goes about them, but not what it trains. (Like the device and
what `auto` becomes on it, `compile` changes results by rounding alone.)"""

_values = operator.attrgetter(*FIELDS)


@functools.cache
def fields_of(*parts: Part) -> tuple[str, ...]:
    """Dotted names of the fields that enter any of these parts of the method."""
    return tuple(name for name, f in FIELDS.items() if not set(parts).isdisjoint(f.changes))


@functools.cache
def field_types() -> Mapping[str, Any]:
    """Dotted field name -> its type, over all sections."""
    return {name: f.type for name, f in FIELDS.items()}


_LAST = Counter(name.rpartition(".")[2] for name in FIELDS)


def short_name(name: str) -> str:
    """The last part of a field's name, `delta`; the whole, `refinement.lr`, where other fields have the same."""
    last = name.rpartition(".")[2]
    return last if _LAST[last] == 1 else name


def values_text(values: Mapping[str, Any]) -> str:
    """Values of fields, by dotted name, as text: `delta 0.6, tau 0.9`."""
    return ", ".join(f"{short_name(name)} {show(value)}" for name, value in values.items())


def to_flat(config: TrainConfig) -> dict[str, Any]:
    """Dotted field name -> value."""
    return dict(zip(FIELDS, _values(config), strict=True))
