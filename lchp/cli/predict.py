"""`lchp predict`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lchp.files.schema import FrameName
from lchp.system import streams


@dataclass
class Predict:
    """Name the class and draw the box of any image, by a run or a model; also as annotations for a detector."""

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="IMAGE/FOLDER")]
    """An image, or a folder that is searched in full."""
    run_folder: Annotated[Path | None, tyro.conf.arg(name="run", metavar="DIR")] = None
    """Run folder; LCHP-R is used, or LCHP-I where stage 2 is not complete; of a method without a localizer, its map."""
    model: Annotated[str | None, tyro.conf.arg(metavar="MODEL")] = None
    """In place of --run: a folder that lchp publish wrote, or hf://USER/NAME[@REVISION] of Hugging Face's hub."""
    output: Path | None = None
    """New folder to write to; standard output by default."""
    format: Literal["jsonl", "csv", "coco", "yolo", "labelstudio"] = "jsonl"
    """JSON lines, CSV, annotations that a detector can be trained from, or tasks to review in Label Studio."""
    frame: FrameName = "full_image"
    """What the networks see: the whole image, or the centre crop of the training recipe."""
    pictures: bool = False
    """Also write copies with class and box drawn, into OUTPUT/pictures."""
    several: bool = False
    """All objects of an image, in place of one box: each region where the map is above its threshold. A run with a
    localizer uses what made its pseudo boxes; LCHP uses its teacher's attention."""
    least_area: float = 0.01
    """With --several: the share of the image that an object's region covers at least."""
    least_confidence: float = 0.0
    """An image whose box is less confident is written without a box."""
    min_confidence: float = 0.0
    """Leave less confident images out of annotations (COCO, YOLO, Label Studio)."""
    batch_size: int = 32
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] | None = None
    """The run's by default."""
    workers: int = 0
    """Threads that decode images; 0: one per core."""

    def run(self) -> int:
        """Carries the command out; the exit status."""
        from lchp.deploy.predict import predict_to
        from lchp.deploy.predictor import load
        from lchp.evaluation.metrics import TITLES
        from lchp.system.devices import resolve_device
        from lchp.training.chain import label, method_of

        if self.output is not None:
            streams.outlast()
        trained = load(self.run_folder, self.model, resolve_device(self.device), several=self.several)
        summary = predict_to(
            trained,
            self.source,
            self.output,
            format=self.format,
            frame=self.frame,
            pictures=self.pictures,
            several=self.several,
            least_area=self.least_area,
            least_confidence=self.least_confidence,
            min_confidence=self.min_confidence,
            batch_size=self.batch_size,
            precision=self.precision,
            workers=self.workers,
            show_progress=True,
        )
        of = "" if method_of(trained.config).complete else f" of {label(trained.config)}"
        by = f"{TITLES[trained.result]}{of}"
        print(outcome(summary, by, self.min_confidence, self.several, self.output), file=sys.stderr)
        return 1 if summary.broken else 0


def outcome(summary: Any, by: str, min_confidence: float, several: bool, output: Path | None) -> str:
    """What `predict_to` did, on one line; by: whose boxes they are."""
    speed = f"{summary.seconds:.1f} s, {summary.images / summary.seconds:.1f} images/s"
    said = [f"{summary.images} images by {by} ({speed})"]
    if several:
        said.append(f"{summary.objects} objects")
    if summary.empty:
        said.append(f"{summary.empty} with nothing there")
    if summary.left_out:
        said.append(f"{summary.left_out} left out (confidence below {min_confidence:g}, or box under a pixel)")
    if summary.broken:
        said.append(f"{summary.broken} could not be read")
    if output is not None:
        said.append(f"written to {output}")
    return "; ".join(said)
