"""TensorBoard: every metric of every epoch, and sample pictures with boxes after each stage."""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from lchp.backbones.modes import inference_mode_of
from lchp.data.images import Images
from lchp.errors import ConfigError
from lchp.evaluation.frames import Frame
from lchp.evaluation.inference import Models, predict_batch
from lchp.evaluation.metrics import TITLES
from lchp.files.runs import make_folder, unwritable
from lchp.pictures import BLACK, STYLES, WHITE, draw_box

FOLDER = "tensorboard"
SAMPLES = 16
COLUMNS = 4
LEAST_CELL = 192  # px; smaller images are enlarged, so that lines can be told apart
LEGEND = 24  # px


@dataclass(frozen=True)
class Board:
    """A file of events in RUN/tensorboard; `shown`: positions of the test images that it shows, the same every time.

    Written by tensorboardX's plain writer: the thread of its SummaryWriter dies on a full disk, and training then waits
    for it for ever. Both methods raise RunError where the file cannot be written.
    """

    folder: Path
    writer: Any
    images: Images
    shown: np.ndarray
    size: int

    def scalars(self, metrics: Mapping[str, Any]) -> None:
        """Every number of an epoch's metrics as the scalar `stage/name`."""
        from tensorboardX.summary import scalar

        numbers = {
            f"{metrics['stage']}/{name}": value
            for name, value in metrics.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool) and name not in ("epoch", "epochs")
        }
        self._write([scalar(tag, value) for tag, value in numbers.items()], metrics["epoch"])

    def pictures(self, stage: str, epoch: int, models: Models, autocast: AbstractContextManager[None]) -> None:
        """A grid of test images in the frame `full_image`, with the boxes of `models` and the ground truth."""
        from tensorboardX.summary import image

        grid = sample_grid(models, self.images, self.shown, self.size, autocast)
        self._write([image(f"{stage}/boxes", grid, dataformats="HWC")], epoch)

    def _write(self, summaries: Sequence[Any], step: int) -> None:
        from tensorboardX.proto import event_pb2

        made: Any = event_pb2  # its classes are built when it is imported
        try:
            for summary in summaries:
                self.writer.write_event(made.Event(wall_time=time.time(), step=step, summary=summary))
            self.writer.flush()
        except OSError as error:
            raise unwritable(self.folder, error) from None

    def close(self) -> None:
        """Closes the file."""
        self.writer.close()


def open_board(run: Path, images: Images, size: int, seed: int) -> Board:
    """The board of a run folder, over the test images. Raises ConfigError where tensorboardX is missing, and RunError
    where the folder cannot be written."""
    try:
        from tensorboardX.event_file_writer import EventsWriter
    except ImportError:
        raise ConfigError("tensorboard = True needs tensorboardX: pip install tensorboardX") from None
    shown = np.random.default_rng(seed).choice(len(images), min(SAMPLES, len(images)), replace=False)
    folder = run / FOLDER
    make_folder(folder)
    try:
        writer = EventsWriter(str(folder / "events"))
    except OSError as error:
        raise unwritable(folder, error) from None
    return Board(folder, writer, images, np.sort(shown), size)


@torch.inference_mode()
def sample_grid(
    models: Models, images: Images, shown: np.ndarray, size: int, autocast: AbstractContextManager[None]
) -> np.ndarray:
    """Pictures of the test images `shown` with boxes as in the paper's Figure 2, H x W x 3 uint8.

    Yellow Pseudo Label, green LCHP-I, blue LCHP-R, red ground truth (where there is one). Modes of the networks are put
    back as they were.
    """
    nets = [models.classifier, *models.localizers.values()]
    device = next(models.classifier.parameters()).device
    batch = images.batch(shown.tolist())
    frame = Frame("full_image", images.resize, size)
    x = frame.see(batch.images.to(device))
    with inference_mode_of(*nets), autocast:
        found = predict_batch(models, x, batch.labels.to(device)).boxes
    boxes = {name: b.cpu().numpy()[:, None] for name, b in found.items()}
    split = images.split.select(shown)
    layers: dict[str, Sequence[np.ndarray]] = {name: list(b) for name, b in boxes.items()}
    if split.boxes is not None:
        sizes = Images(split, images.resize, None, np.arange(len(split))).sizes()
        layers["ground_truth"] = frame.truth(split.boxes, sizes).each()
    pixels = (x.float().permute(0, 2, 3, 1) * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    return _compose(pixels, layers)


def _compose(pixels: np.ndarray, layers: Mapping[str, Sequence[np.ndarray]]) -> np.ndarray:
    """N x S x S x 3 uint8 and layer -> N times K x 4 boxes (fractions) to one picture with a legend on top."""
    cell = max(LEAST_CELL, pixels.shape[1])
    rows = -(-len(pixels) // COLUMNS)
    layers = {name: layers[name] for name in STYLES if name in layers}
    out = Image.new("RGB", (COLUMNS * cell, LEGEND + rows * cell), WHITE)
    for i, array in enumerate(pixels):
        image = Image.fromarray(array).resize((cell, cell), Image.Resampling.BILINEAR)
        for name, boxes in layers.items():
            for x1, y1, x2, y2 in (boxes[i] * cell).tolist():
                draw_box(image, (x1, y1, x2, y2), STYLES[name])
        out.paste(image, (i % COLUMNS * cell, LEGEND + i // COLUMNS * cell))
    draw = ImageDraw.Draw(out)
    for k, name in enumerate(layers):
        left = 8 + k * (COLUMNS * cell - 16) // len(layers)
        draw_box(out, (left, 5, left + 24, LEGEND - 5), STYLES[name])
        draw.text((left + 32, 6), TITLES.get(name, "ground truth"), fill=BLACK)
    return np.asarray(out)
