"""The options that `lchp predict` and `lchp boxes` share: what is asked of an image, and where the answers go."""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lchp.config import counted
from lchp.system import streams

if TYPE_CHECKING:
    import torch

    from lchp.deploy.predict import PredictSummary
    from lchp.deploy.trained import TrainedRun


@dataclass
class Answers:
    """What is asked of an image, and where the answers go."""

    output: Path | None = None
    """New folder to write to; standard output by default."""
    format: Literal["jsonl", "csv", "coco", "yolo", "labelstudio"] = "jsonl"
    """JSON lines, CSV, annotations that a detector can be trained from, or tasks to review in Label Studio."""
    pictures: bool = False
    """Also write copies with class and box drawn, into OUTPUT/pictures."""
    several: bool = False
    """Find all objects of an image, not one box: each region where the map is above its threshold. A run with a
    localizer uses what made its pseudo boxes; LCHP uses its teacher's attention."""
    least_area: float = 0.01
    """With --several: the least share of the image that an object's region covers."""
    least_confidence: float = 0.0
    """Write an image without a box where the box is less confident."""
    min_confidence: float = 0.0
    """Leave less confident images out of annotations (COCO, YOLO, Label Studio)."""
    batch_size: int = 32
    """Images that go through the networks at a time."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the networks run; auto: a GPU if there is one, else the CPU."""
    precision: Literal["auto", "fp32", "bf16"] | None = None
    """By default the run's; without a run, auto."""
    workers: int = 0
    """Threads that decode images; 0: one per core."""

    def check(self, source: Path) -> None:
        """Raises an LchpError for answers that cannot be, before torch is imported, which takes seconds."""
        from lchp.deploy.formats import check_options

        shares = {name: getattr(self, name) for name in ("min_confidence", "least_confidence", "least_area")}
        check_options(source, self.output, self.format, shares, pictures=self.pictures, several=self.several)

    def begin(self) -> "torch.device":
        """Where the networks run. What is written to a folder goes on when the terminal closes."""
        from lchp.system.devices import resolve_device

        if self.output is not None:
            streams.outlast()
        return resolve_device(self.device)

    def write(self, trained: "TrainedRun", source: Path, by: str, **more: Any) -> int:
        """Writes the answers; the exit status. by: whose boxes they are; more: of `lchp.deploy.predict.predict_to`."""
        from lchp.deploy.predict import predict_to

        asked = asdict(self)
        del asked["device"]
        summary = predict_to(trained, source, **asked, **more, show_progress=True)
        print(self._outcome(summary, by), file=sys.stderr)
        return 1 if summary.broken else 0

    def _outcome(self, summary: "PredictSummary", by: str) -> str:
        """What was done, on one line."""
        speed = f"{summary.seconds:.1f} s, {summary.images / summary.seconds:.1f} images/s"
        said = [f"{counted(summary.images, 'image')} by {by} ({speed})"]
        if self.several:
            said.append(counted(summary.objects, "object"))
        if summary.empty:
            said.append(f"{summary.empty} with nothing there")
        if summary.thin:
            said.append(f"{counted(summary.thin, 'object')} thinner than a pixel left out")
        if summary.left_out:
            below = f"confidence below {self.min_confidence:g}, or " if self.min_confidence else ""
            said.append(f"{summary.left_out} left out ({below}box under a pixel)")
        if summary.broken:
            said.append(f"{summary.broken} could not be read")
        if self.output is not None:
            said.append(f"written to {self.output}")
        return "; ".join(said)
