"""`lchp predict`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lchp.files.schema import FrameName
from lchp.system import streams


@dataclass
class Predict:
    """Name the class and draw the box of any image, by a trained run; also as annotations for a detector."""

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="IMAGE/FOLDER")]
    """An image, or a folder that is searched in full."""
    run_folder: Annotated[Path, tyro.conf.arg(name="run", metavar="DIR")]
    """Run folder; LCHP-R is used, or LCHP-I where stage 2 is not complete."""
    output: Path | None = None
    """New folder to write to; standard output by default."""
    format: Literal["jsonl", "csv", "coco", "yolo"] = "jsonl"
    """JSON lines, CSV, or annotations that a detector can be trained from."""
    frame: FrameName = "full_image"
    """What the networks see: the whole image, or the centre crop of the training recipe."""
    pictures: bool = False
    """Also write copies with class and box drawn, into OUTPUT/pictures."""
    min_confidence: float = 0.0
    """Leave less confident images out of COCO and YOLO."""
    batch_size: int = 32
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] | None = None
    """The run's by default."""
    workers: int = 0
    """Threads that decode images; 0: one per core."""

    def run(self) -> int:
        """Carries the command out; the exit status."""
        from lchp.deploy.predict import load_run, predict_to
        from lchp.evaluation.metrics import TITLES
        from lchp.system.devices import resolve_device
        from lchp.training.chain import label, method_of

        if self.output is not None:
            streams.outlast()
        trained = load_run(self.run_folder, resolve_device(self.device))
        summary = predict_to(
            trained,
            self.source,
            self.output,
            format=self.format,
            frame=self.frame,
            pictures=self.pictures,
            min_confidence=self.min_confidence,
            batch_size=self.batch_size,
            precision=self.precision,
            workers=self.workers,
            show_progress=True,
        )
        speed = f"{summary.seconds:.1f} s, {summary.images / summary.seconds:.1f} images/s"
        of = "" if method_of(trained.config).complete else f" of {label(trained.config)}"
        said = [f"{summary.images} images by {TITLES[trained.result]}{of} ({speed})"]
        if summary.left_out:
            said.append(f"{summary.left_out} left out (confidence below {self.min_confidence:g}, or box under a pixel)")
        if summary.broken:
            said.append(f"{summary.broken} could not be read")
        if self.output is not None:
            said.append(f"written to {self.output}")
        print("; ".join(said), file=sys.stderr)
        return 1 if summary.broken else 0
