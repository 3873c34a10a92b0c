"""What the records of runs and sweeps hold, checked where they are read (`lchp.files.runs.read_summary` and its like).

A record may hold more than is named here, and an older one less: what came later is `NotRequired`. Values are returned
as they were read, plain dicts, so that a copy is the same record. The columns of predictions.parquet are in
`lchp.evaluation.predictions`, the fields of config.json in `lchp.config`.
"""

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    JsonValue,
    TypeAdapter,
    ValidationError,
    with_config,
)
from typing_extensions import TypedDict  # typing's tells pydantic enough from Python 3.12 on

from lchp.errors import RunError, printable

SWEEP_VERSIONS = (1, 2)
"""Of sweep.json that are read; the last is written. In 1 a cell's result was its stage 2."""

MODEL_FORMAT, MODEL_VERSION = "lchp model", 1
"""Of lchp.json. The version rises where what a model folder holds is read otherwise."""

ResultName = Literal["pseudo_label", "lchp_i", "lchp_r"]
FrameName = Literal["center_crop", "full_image"]

Text = Annotated[str, Field(max_length=2**16)]
"""Bounded, so that pydantic looks at its characters: lone surrogates, which no file can hold, are refused."""
TypedText = InstanceOf[str]
"""A path or a word of a command: bytes that are no text are in it as Python escapes them."""
Finite = Annotated[float, Field(allow_inf_nan=False)]
Amount = Annotated[Finite, Field(ge=0, le=1e11)]
"""Seconds or megabytes; the sum of two is a date that exists."""
Percent = Annotated[Finite, Field(ge=-1e-3, le=100.001)]
"""Beyond its ends by what rounding does to a mean of float32."""
UnboxedScore = Annotated[Finite, Field(ge=-200.01, le=100.01)]
"""Of `lchp.evaluation.metrics.unboxed`: a percentage less two."""
Share = Annotated[Finite, Field(ge=0, le=1)]
Count = Annotated[Finite, Field(ge=0, lt=2**53, multiple_of=1)]
Index = Annotated[int, Field(ge=0, lt=2**31)]


class Localization(TypedDict):
    """Percent; None where the images have no boxes."""

    gt_known: Percent | None
    top1_loc: Percent | None
    top5_loc: Percent | None
    mean_iou: Percent | None


class LocalizationByFrame(TypedDict):
    """Of one result."""

    center_crop: Localization
    full_image: Localization


class Floors(TypedDict):
    """GT-Known in percent of boxes that are the same in every image."""

    full_box: Percent | None
    centre_box: Percent | None


class FloorsByFrame(TypedDict):
    """Of both frames."""

    center_crop: Floors
    full_image: Floors


class Classification(TypedDict):
    """Percent, in center_crop."""

    top1: Percent
    top5: Percent


class Unboxed(TypedDict):
    """See `lchp.evaluation.metrics.unboxed`."""

    crop: Percent
    masked: Percent
    area: Percent
    score: UnboxedScore


class UnboxedByFrame(TypedDict):
    """Of the last result."""

    center_crop: Unboxed
    full_image: Unboxed


class ScoreMapFields(TypedDict):
    """See `lchp.training.measure.score_maps`."""

    oracle_maxboxacc: Percent
    oracle_maxboxacc_v2: Percent
    oracle_threshold: Share
    threshold: Share
    boxacc: Percent
    boxacc_v2: Percent
    oracle_validation_threshold: NotRequired[Share | None]
    oracle_validation_boxacc: NotRequired[Percent | None]
    oracle_validation_boxacc_v2: NotRequired[Percent | None]


class Validation(TypedDict):
    """See `lchp.training.measure.validate`."""

    images: Amount
    consistency: Percent
    kept: Percent
    score: UnboxedScore
    oracle_gt_known: NotRequired[Percent]


class KeptAt(TypedDict):
    """Boxes of training images kept at one tau; gt_known: None without boxes, and where none was kept."""

    count: Count
    share: NotRequired[Percent]
    gt_known: Percent | None


class KeptFields(TypedDict, total=False):
    """See `lchp.training.measure.kept_boxes`; empty where they were not asked for."""

    tau: Share
    total: Count
    count: Count
    share: Percent
    gt_known: Percent | None
    mean_confidence: Percent
    by_tau: dict[str, KeptAt]


class TrainingBoxes(TypedDict):
    """Of a file's boxes of the training images, in one frame."""

    gt_known: Percent
    mean_iou: Percent


class GivenFields(TypedDict):
    """See `lchp.training.measure.given_boxes`."""

    images: Count
    boxed: Count
    several: Count
    unknown: Count
    test: Count
    center_crop: NotRequired[TrainingBoxes]
    full_image: NotRequired[TrainingBoxes]


class ChosenSettings(TypedDict):
    """Fields of stage 1 that were `auto`, as they were chosen."""

    delta: NotRequired[Annotated[float, Field(gt=0, lt=1)]]
    attention: NotRequired[Literal["attention_maps", "features"]]
    normalization: NotRequired[Literal["max", "minmax"]]
    second_pass: NotRequired[Literal["own", "raw"]]


class Candidate(ChosenSettings):
    """Some settings, and the parts of their score on some training images."""

    crop: Percent
    masked: Percent
    area: Percent
    score: UnboxedScore
    images: Count


class Chosen(TypedDict):
    """See `lchp.method.choice.Choice.record`."""

    values: ChosenSettings
    after: Count
    candidates: Annotated[list[Candidate], Field(min_length=1)]


class Stage2(TypedDict):
    """See `lchp.training.measure.stage2_gain`."""

    images: Count
    lchp_i: UnboxedScore
    lchp_r: UnboxedScore
    gain: float
    error: Annotated[float, Field(ge=0)]


def _whole(kept: KeptFields) -> KeptFields:
    lacking = [name for name in ("tau", "total", "count") if kept and name not in kept]
    if lacking:
        raise ValueError(f"lacks {', '.join(lacking)}")
    return kept


class SummaryFields(TypedDict):
    """summary.json; every figure in percent."""

    results: Annotated[dict[ResultName, LocalizationByFrame], Field(min_length=1)]
    classification: Classification
    floors: FloorsByFrame
    unboxed: NotRequired[UnboxedByFrame]
    kept: NotRequired[Annotated[KeptFields, AfterValidator(_whole)] | None]
    consistency: NotRequired[dict[ResultName, Percent]]
    score_maps: NotRequired[ScoreMapFields]
    validation: NotRequired[Validation | None]
    chosen: NotRequired[Chosen]
    stage2: NotRequired[Stage2]
    given: NotRequired[GivenFields]


def _boxes_or_none(summary: SummaryFields) -> SummaryFields:
    """Images have boxes, or they have none: figures that need some are there, or not one of them."""
    parts: dict[str, Any] = {f"results/{name}": frames for name, frames in summary["results"].items()}
    parts["floors"] = summary["floors"]
    figures = {
        f"{part}/{frame}/{name}": value
        for part, frames in parts.items()
        for frame, values in frames.items()
        for name, value in values.items()
    }
    nulls = [name for name, value in figures.items() if value is None]
    if 0 < len(nulls) < len(figures):
        raise ValueError(f"{nulls[0]} is null, and other figures are not")
    return summary


def _in_run_folder(path: str) -> str:
    if len(Path(path).parents) < 3 or "\0" in path:
        raise ValueError("expected a path RUN/checkpoints/NAME.pt")
    return path


class Place(TypedDict):
    """A link of a run: the hash of all it depends on, and the run folder that it was taken from, None for its own."""

    key: Text
    run: TypedText | None


class Stage1(TypedDict):
    """The stage 1 that a run of stage 2 alone started from, in records of before there were links."""

    checkpoint: Annotated[TypedText, AfterValidator(_in_run_folder)]
    identity: Text


class Environment(TypedDict):
    """environment.json; times and memory are there once the run is finished. files: fields that name a file whose
    content a run depends on, and hashes of these contents."""

    class_names: Annotated[list[Text], Field(min_length=1)]
    versions: NotRequired[dict[Text, Text | None] | None]
    git_revision: NotRequired[Text | None]
    platform: NotRequired[Text | None]
    device: NotRequired[Text | None]
    precision: NotRequired[Text | None]
    threads: NotRequired[Count | None]
    cores: NotRequired[Count | None]
    data_fingerprint: NotRequired[Text | None]
    files: NotRequired[dict[Text, Text] | None]
    skipped: NotRequired[list[Text] | None]
    links: NotRequired[dict[Text, Place]]
    stage1: NotRequired[Stage1 | None]
    method: NotRequired[Text | None]
    wall_seconds: NotRequired[dict[Text, Amount] | None]
    peak_memory_mb: NotRequired[dict[Text, Amount] | None]
    recipe: NotRequired[Index | None]
    written: NotRequired[Text | None]


@with_config(ConfigDict(extra="allow"))
class EpochFields(TypedDict):
    """A line of metrics.jsonl; all else in it is a number."""

    stage: Text
    epoch: Annotated[Index, Field(ge=1)]
    epochs: NotRequired[Annotated[Index, Field(ge=1)]]
    seconds: NotRequired[Amount]


def _numbers(line: Mapping[str, Any]) -> Mapping[str, Any]:
    for name, value in line.items():
        if name != "stage" and not is_figure(value):
            raise ValueError(f"{name} = {reprlib.repr(value)}: expected a finite number")
    return line


class SweepCell(TypedDict):
    """One config of a sweep: `overrides` of `bases[base]`. key: hash of its result, in version 1 `stage2`; links: kind
    -> key of each of its links, as other cells share them; job: whose result it is; run: its folder in the storage;
    error: for people; reason: why it failed, in one word."""

    overrides: dict[str, Any]
    seed: Index
    base: Index
    key: NotRequired[Text]
    stage2: NotRequired[Text]
    links: NotRequired[dict[Text, Text]]
    job: NotRequired[Text]
    run: NotRequired[TypedText]
    state: Literal["waiting", "running", "done", "failed", "stopped"]
    error: NotRequired[Text | None]
    reason: NotRequired[Text | None]
    method: NotRequired[Text | None]


class SweepJob(TypedDict):
    """A training of a sweep: when it began (seconds since 1970) and how long it took, where it was trained; state and
    reason as of a cell."""

    begin: NotRequired[Amount]
    seconds: NotRequired[Amount]
    state: NotRequired[Text]
    reason: NotRequired[Text | None]


def cell_key(cell: SweepCell) -> str:
    """The hash of a cell's result."""
    return cell["key"] if "key" in cell else cell["stage2"]  # pyright: ignore[reportTypedDictNotRequiredAccess]


def cell_job(cell: SweepCell) -> str:
    """The name of the job whose result is a cell's."""
    return cell["job"] if "job" in cell else f"stage2-{cell_key(cell)}"


def _known_version(record: Any) -> Any:
    version = record.get("version", SWEEP_VERSIONS[-1]) if isinstance(record, dict) else SWEEP_VERSIONS[-1]
    if version not in SWEEP_VERSIONS:
        raise ValueError(f"version {reprlib.repr(version)}; written by another version of lchp")
    return record


class SweepFields(TypedDict):
    """sweep.json; `jobs` by name, `command` as typed."""

    version: Index
    lchp: Text
    name: Text
    command: Annotated[list[TypedText], Field(min_length=1)]
    created: Text
    bases: list[dict[str, Any]]
    cells: list[SweepCell]
    jobs: dict[Text, SweepJob]
    options: NotRequired[dict[str, Any] | None]


def _bases_there(record: SweepFields) -> SweepFields:
    for i, cell in enumerate(record["cells"]):
        if cell["base"] >= len(record["bases"]):
            raise ValueError(f"cells/{i}/base = {cell['base']}: there are {len(record['bases'])} bases")
        if "key" not in cell and "stage2" not in cell:
            raise ValueError(f"cells/{i}: lacks key")
    return record


class Done(TypedDict):
    """The store's DONE: SHA-256 by file."""

    key: Text
    files: Annotated[dict[Text, Text], Field(min_length=1)]


def _known_model(record: Any) -> Any:
    if not isinstance(record, dict) or record.get("format") != MODEL_FORMAT:
        raise ValueError("is of no model of lchp's; name a folder that lchp publish wrote")
    version = record.get("version")
    if type(version) is int and version > MODEL_VERSION:
        raise ValueError(f"version {version}, and this lchp reads {MODEL_VERSION}; update lchp")
    if version != MODEL_VERSION:
        raise ValueError(
            f"version = {reprlib.repr(version)}: expected {MODEL_VERSION}; copy or download the model again"
        )
    return record


class ModelFields(TypedDict):
    """lchp.json of a model folder. lchp: the version that wrote it; result: whose boxes its localizer gives, or
    `pseudo_label`; recipe: of the training."""

    format: Text
    version: Index
    lchp: Text
    recipe: Index | None
    result: ResultName
    class_names: Annotated[list[Text], Field(min_length=1)]


class Classes(TypedDict):
    """Whose classifier named the classes."""

    run: str
    backbone: str
    method: str


class SecondClassifier(TypedDict):
    """second_classifier.json, see `lchp.deploy.second_classifier`."""

    classifier: Classes
    crops: int
    classification: Classification
    results: dict[str, dict[str, Localization]]


SUMMARY_SCHEMA: TypeAdapter[SummaryFields] = TypeAdapter(Annotated[SummaryFields, AfterValidator(_boxes_or_none)])
ENVIRONMENT_SCHEMA = TypeAdapter(Environment)
EPOCH_SCHEMA: TypeAdapter[EpochFields] = TypeAdapter(Annotated[EpochFields, AfterValidator(_numbers)])
SWEEP_SCHEMA: TypeAdapter[SweepFields] = TypeAdapter(
    Annotated[SweepFields, BeforeValidator(_known_version), AfterValidator(_bases_there)]
)
DONE_SCHEMA = TypeAdapter(Done)
MODEL_SCHEMA: TypeAdapter[ModelFields] = TypeAdapter(Annotated[ModelFields, BeforeValidator(_known_model)])
JSON_SCHEMA: TypeAdapter[Any] = TypeAdapter(JsonValue, config=ConfigDict(allow_inf_nan=False))
"""What can be written as JSON again: numbers are finite, nesting ends after pydantic's 255 levels."""

Record = TypeVar("Record")


def checked(schema: TypeAdapter[Record], value: Any, where: object) -> Record:
    """`value` as it is. Raises RunError, `where` and the first field that does not fit, in one line."""
    try:
        schema.validate_python(value, strict=True)
    except ValidationError as error:
        raise RunError(f"{where}: {printable(_fault(error, types=schema is JSON_SCHEMA))}") from None
    return value


def is_figure(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e300 < value < 1e300


_WORDS = {
    "Input should be": "expected",
    "Input should have": "expected",
    "List should have": "expected",
    "Dictionary should have": "expected",
    " after validation": "",
    "a valid integer": "a whole number",
    "a valid string, unable to parse raw data as a unicode string": "text that can be encoded",
    "a valid string": "text",
    "a valid ": "a ",
    "an instance of str": "text",
}
"""What pydantic says -> what is said here."""


def _fault(error: ValidationError, *, types: bool) -> str:
    """In words. types: whether the path to the field names the type of each value on the way, too."""
    fault, *more = error.errors(include_url=False)
    if fault["type"] == "recursion_depth_exceeded":
        return "nested too deeply"
    path = fault["loc"][1::2] if types else fault["loc"]
    field = "/".join(str(part) for part in path if part != "[key]")
    others = f" (and {len(more)} more)" if more else ""
    if fault["type"] == "missing":
        return f"lacks {field}; was it written by another version of lchp?{others}"
    if fault["type"] == "value_error":
        said = fault["msg"].removeprefix("Value error, ")
        return (f"{field}: {said}" if field else said) + others
    expected = fault["msg"]
    for pydantics, ours in _WORDS.items():
        expected = expected.replace(pydantics, ours)
    value = fault["input"]
    shown = "" if isinstance(value, (dict, list)) and not value else f" = {reprlib.repr(value)}"
    return f"{field or 'record'}{shown}: {expected}{others}"
