"""`lchp boxes`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lchp.cli.predict import outcome
from lchp.system import streams


@dataclass
class OwnBoxes:
    """Draw boxes by a classifier of your own: nothing is trained. Formats and pictures are those of lchp predict."""

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="IMAGE/FOLDER")]
    """An image, or a folder that is searched in full."""
    weights: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """The classifier with its class head, in torchvision's or timm's parameter names: .safetensors, or torch weights
    (read as data)."""
    backbone: Annotated[str, tyro.conf.arg(metavar="NAME")]
    """Whose weights they are: resnet50, mobilenet_v2, ..., or timm:NAME."""
    method: str = "layer_cam"
    """What makes a map of an image: layer_cam, grad_cam, cam, ..."""
    classes: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Names of the head's classes, a line each, in its order; by default the folders in FOLDER, where they are as
    many."""
    labels: Annotated[Path | None, tyro.conf.arg(metavar="CSV")] = None
    """Classes of the images, with the header image,label: the map is of that class, and not of the one that the image
    is taken for."""
    size: int = 224
    """Side in px of what the network sees."""
    threshold: float = 0.2
    """Of the map, stretched to [0, 1]: the box is around what is above."""
    component: Literal["largest", "all"] = "largest"
    """What the box is around: the largest connected component, or all that is above."""
    output: Path | None = None
    """New folder to write to; standard output by default."""
    format: Literal["jsonl", "csv", "coco", "yolo", "labelstudio"] = "jsonl"
    """JSON lines, CSV, annotations that a detector can be trained from, or tasks to review in Label Studio."""
    pictures: bool = False
    """Also write copies with class and box drawn, into OUTPUT/pictures."""
    several: bool = False
    """All objects of an image, in place of one box: each region where the map is above its threshold."""
    least_area: float = 0.01
    """With --several: the share of the image that an object's region covers at least."""
    least_confidence: float = 0.0
    """An image whose box is less confident is written without a box."""
    min_confidence: float = 0.0
    """Leave less confident images out of annotations (COCO, YOLO, Label Studio)."""
    batch_size: int = 32
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    workers: int = 0
    """Threads that decode images; 0: one per core."""

    def run(self) -> int:
        """Carries the command out; the exit status."""
        from lchp.deploy.own_classifier import OwnFlags, load_own
        from lchp.deploy.predict import find_images, predict_to
        from lchp.system.devices import resolve_device
        from lchp.training.chain import label

        if self.output is not None:
            streams.outlast()
        own = OwnFlags(
            self.weights, self.backbone, self.method, self.classes, self.size, self.threshold, self.component
        )
        trained = load_own(own, self.source, resolve_device(self.device))
        labels: dict[str, int] = {}
        if self.labels is not None:
            from lchp.data.label_file import read_label_file

            names = (name for name, _ in find_images(self.source, self.output))
            labels = read_label_file(self.labels, names, trained.class_names)
        summary = predict_to(
            trained,
            self.source,
            self.output,
            format=self.format,
            pictures=self.pictures,
            several=self.several,
            least_area=self.least_area,
            least_confidence=self.least_confidence,
            min_confidence=self.min_confidence,
            labels=labels,
            batch_size=self.batch_size,
            precision=self.precision,
            workers=self.workers,
            show_progress=True,
        )
        of_class = f", of the class that {self.labels.name} has for {len(labels)}" if self.labels is not None else ""
        by = f"{label(trained.config)} of {self.weights.name}{of_class}"
        print(outcome(summary, by, self.min_confidence, self.several, self.output), file=sys.stderr)
        return 1 if summary.broken else 0
