"""The model card: what a model is, what it was measured at, and under which terms its data and weights were, made from
the run's record. Its head is YAML as Hugging Face's hub reads it."""

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from tabulate import tabulate

import lchp
from lchp.backbones import weights_terms
from lchp.config import AUTO, TrainConfig, counted, show
from lchp.data import DATASETS
from lchp.errors import printable
from lchp.evaluation.frames import FRAMES
from lchp.evaluation.metrics import FLOORS, METRICS, TITLES, Metric
from lchp.files.schema import Environment
from lchp.training.chain import STAGES, epochs_of, kinds_of, label, method_of

MOST_CLASSES = 50
"""More class names than these are left to lchp.json."""


@dataclass(frozen=True)
class Record:
    """What a card is made from. config: the run's own; result: whose boxes the model gives; images: of the test split;
    licence: of the model, None where its publisher has stated none."""

    config: TrainConfig
    class_names: tuple[str, ...]
    result: str
    summary: Mapping[str, Any]
    environment: Environment
    images: int
    licence: str | None

    @property
    def title(self) -> str:
        """Method and data."""
        return f"{label(self.config)} on {DATASETS[self.config.data.name].title}"

    @property
    def boxed(self) -> bool:
        """Whether test images have ground-truth boxes."""
        return all(value is not None for frame in self.summary["floors"].values() for value in frame.values())


def card(record: Record) -> str:
    """README.md of a model folder."""
    head = yaml.safe_dump(_head(record), sort_keys=False, allow_unicode=True, width=1000)
    parts = [
        f"---\n{head}---",
        f"# {printable(record.title)}",
        _about(record),
        f"## Predict\n\nWith lchp {lchp.__version__} or later:\n\n{_COMMAND}\n\n{_PYTHON}",
        _use(record),
        f"## Figures\n\n{_figures(record)}",
        f"## Data\n\n{_data(record)}",
        f"## Recipe\n\n{_recipe(record)}\n\nAll fields are in `config.json`.",
        f"## Licence\n\n{_licences(record)}",
    ]
    return "\n\n".join(parts) + "\n"


PAPER = (
    "Sun and Zhu, Learning Consistency from High-quality Pseudo-labels for Weakly Supervised Object Localization, IEEE "
    "Access 2023"
)
_COMMAND = """```
lchp predict photos/ --model MODEL --output boxes --pictures
```"""
_PYTHON = """```python
from lchp import Predictor

for found in Predictor.from_folder("MODEL").predict("photos/"):
    print(found.image, found.class_name, found.box, found.confidence)
```"""


def _about(record: Record) -> str:
    learnt = "No ground-truth box took part in its training: it learnt from class labels."
    if method_of(record.config).from_file:
        learnt = "It learnt from class labels and from a file of boxes."
    method = f" The method is LCHP ({PAPER})." if record.config.method.name == "lchp" else ""
    return _paragraph(f"Names the class of an image and draws the box around its object. {learnt}{method}")


def _use(record: Record) -> str:
    size = record.config.data.image_size
    several = "" if method_of(record.config).from_file else "; `--several` gives all objects"
    return _paragraph(
        f"`MODEL` is this folder, or `hf://USER/NAME@REVISION` on the hub. It gives one box per image{several}. "
        f"It looks at the whole image, squeezed to {size} x {size} px. Boxes are in pixels of the upright image. All "
        "files are data (safetensors and JSON), nothing of them is run. `SHA256SUMS` holds their checksums."
    )


def _data(record: Record) -> str:
    about, names = DATASETS[record.config.data.name].about, record.class_names
    listed = ", ".join(f"`{printable(name).replace('`', '')}`" for name in names[:MOST_CLASSES])
    more = f" and {len(names) - MOST_CLASSES} more, which `lchp.json` lists" if len(names) > MOST_CLASSES else ""
    images, classes = counted(record.images, "test image"), counted(len(names), "class")
    return f"{about[:1].upper()}{about[1:]}; {images}. {classes}: {listed}{more}."


def _paragraph(text: str) -> str:
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def _head(record: Record) -> dict[str, Any]:
    data = record.config.data.name
    metrics = [
        {"type": name, "name": f"{METRICS[name]} (%), {frame}", "value": round(value, 2)}
        for frame in FRAMES
        for name in METRICS
        if (value := Metric(record.result, frame, name).of(record.summary)) is not None
    ]
    head = {
        "library_name": "lchp",
        "license": record.licence or "unknown",
        "pipeline_tag": "object-detection",
        "tags": ["lchp", "weakly-supervised-object-localization"],
    }
    if not metrics:
        return head
    task = {"type": "object-detection", "name": "Weakly supervised object localization"}
    dataset = {"type": data, "name": DATASETS[data].title, "split": "test"}
    results = [{"task": task, "dataset": dict(dataset), "metrics": metrics}]
    return head | {"model-index": [{"name": printable(record.title), "results": results}]}


def _figures(record: Record) -> str:
    """Of every result in both frames, with the floors beside them; without ground-truth boxes what needs none."""
    summary = record.summary
    top1 = f"Top-1 classification in center_crop: {summary['classification']['top1']:.2f} %."
    if not record.boxed:
        return _without_boxes(record, top1)
    rows = [
        [
            TITLES[result],
            frame,
            *(Metric(result, frame, name).of(summary) for name in METRICS),
            *_floors(summary, frame),
        ]
        for result in summary["results"]
        for frame in FRAMES
    ]
    head = ["result", "frame", *METRICS.values(), *(f"floor: {title}" for title in FLOORS.values())]
    table = tabulate(rows, head, tablefmt="github", floatfmt=".2f", missingval="-")
    said = (
        f"Percent, over {record.images} test images. GT-Known: the box has an IoU of 0.5 or more with a ground-truth "
        "box. Top-1, Top-5: its class is right, too. A floor is the GT-Known of a box that is the same in every image. "
        "In `center_crop` the networks see the centre of the image, in `full_image` all of it. The model's boxes are "
        f"those of {TITLES[record.result]}. {top1}"
    )
    return f"{table}\n\n{_paragraph(said)}"


def _floors(summary: Mapping[str, Any], frame: str) -> list[float]:
    return [summary["floors"][frame][name] for name in FLOORS]


def _without_boxes(record: Record, top1: str) -> str:
    unboxed: Mapping[str, Mapping[str, float]] = record.summary.get("unboxed") or {}
    rows = [[frame, *(of[name] for name in ("crop", "masked", "area", "score"))] for frame, of in unboxed.items()]
    table = tabulate(rows, ["frame", "crop", "masked", "area", "score"], tablefmt="github", floatfmt=".2f")
    agreement = (record.summary.get("consistency") or {}).get(record.result)
    consistent = (
        "" if agreement is None else f" Boxes of flipped and scaled views agree by an IoU of {agreement:.2f} %."
    )
    intro = (
        f"Nobody has drawn boxes on the {record.images} test images, so nobody knows how many boxes are right. What "
        "needs none, in percent:"
    )
    said = (
        "crop, masked: the softmax of the class on the inside of the box, and on the image without it. area: the box's "
        f"share of the image. score: crop less masked less area.{consistent} {top1}"
    )
    return f"{_paragraph(intro)}\n\n{table}\n\n{_paragraph(said)}"


def _recipe(record: Record) -> str:
    config, environment = record.config, record.environment
    model, data, first = config.model, config.data, config.initialization
    found, there = method_of(config), environment.get("links")
    kinds = [kind for kind in kinds_of(config) if there is None or kind in there]  # stage 2 may not have run
    epochs = {stage: f"{stage} {count}" for stage, count in epochs_of(config).items()}
    start = "ImageNet weights" if model.pretrained else "random weights"
    rows = [("method", label(config)), ("classifier", f"{model.classifier}, head {found.head or model.head}")]
    if "localizer" in kinds:
        rows.append(("localizer", f"{model.localizer}, head {model.localizer_head}"))
    rows.append(("started from", "a trained classifier" if model.classifier_weights is not None else start))
    rows.append(("images", f"{data.resize} px, of which the networks see {data.image_size}"))
    rows.append(("epochs", ", ".join(epochs[STAGES[kind]] for kind in kinds_of(config) if kind in kinds)))
    if found.boxes == "teacher":
        chosen = (record.summary.get("chosen") or {}).get("values", {})
        said = {name: chosen.get(name, getattr(first, name)) for name in AUTO}
        rows += [(name, f"{show(v)}{' (chosen without a box)' if name in chosen else ''}") for name, v in said.items()]
    if found.boxes == "map":
        rows.append(("threshold of the map", show(config.method.threshold)))
    if "refinement" in kinds:
        rows.append(("tau", show(config.refinement.tau)))
    rows += [("seed", str(config.seed)), ("precision", environment.get("precision") or config.precision)]
    rows += _origin(environment)
    return tabulate(
        [(name, printable(value)) for name, value in rows], ["what", "value"], tablefmt="github", disable_numparse=True
    )


def _origin(environment: Environment) -> Iterator[tuple[str, str]]:
    versions = environment.get("versions") or {}
    made = [f"{name} {versions[name]}" for name in ("lchp", "torch") if versions.get(name)]
    if (recipe := environment.get("recipe")) is not None:
        made.append(f"recipe {recipe}")
    if made:
        yield "trained by", ", ".join(made)
    if written := environment.get("written"):
        yield "finished", written.partition("T")[0]


def _licences(record: Record) -> str:
    config, model, data = record.config, record.config.model, DATASETS[record.config.data.name]
    lines = [
        f"- This model: {record.licence}."
        if record.licence
        else "- This model: its publisher has stated no licence. Ask before you use it.",
        f"- The data it learnt from, {data.title}: {data.terms}.",
    ]
    if model.classifier_weights is not None:
        lines.append("- The weights that the classifier started from: a file whose licence is not recorded.")
    elif model.pretrained:
        lines.append(
            f"- The weights that the classifier started from: {weights_terms(model.classifier, model.weights_dir)}."
        )
    if model.pretrained and "localizer" in kinds_of(config):
        lines.append(
            f"- The weights that the localizer started from: {weights_terms(model.localizer, model.weights_dir)}."
        )
    if not model.pretrained and model.classifier_weights is None:
        lines.append("- Pretrained weights: none.")
    if method_of(config).from_file:
        lines.append("- The boxes that the localizer learnt from: a file whose licence is not recorded.")
    return "\n".join(lines)
