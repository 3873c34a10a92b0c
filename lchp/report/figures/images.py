"""The test images behind predictions.parquet: boxes of one frame, and the pixels they lie on. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from lchp.config import TrainConfig
from lchp.data import DataSet
from lchp.data.decode import decode, image_size
from lchp.errors import DataError, RunError
from lchp.evaluation.frames import Frame
from lchp.evaluation.metrics import RESULTS
from lchp.evaluation.predictions import read_predictions
from lchp.files.runs import PREDICTIONS


@dataclass(frozen=True)
class Predicted:
    """A run's N test images in one frame. boxes: result -> N x 4 fractions of the frame, of the results that the run
    has, in their order; ious: result -> N (NaN where the image has no ground truth); truth: per image K x 4, or None
    for a set without boxes; confidence: N, of the crop in the last result's box."""

    run: Path
    frame: str
    image_ids: tuple[str, ...]
    boxes: dict[str, np.ndarray]
    ious: dict[str, np.ndarray]
    truth: tuple[np.ndarray, ...] | None
    confidence: np.ndarray

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def last(self) -> str:
        """The result that the run is about."""
        return next(reversed(self.boxes))


def read_frame(run: Path, frame: str) -> Predicted:
    """One frame of predictions.parquet. Raises RunError for a file that is missing, damaged or of another version."""
    table = read_predictions(run)
    needed = {"image_id", "frame", "confidence", "ground_truth"}
    # a compared method's run, or one of stage 1 alone, has not all of them
    results = [name for name in RESULTS if f"{name}_box" in table.column_names] or RESULTS
    needed |= {f"{name}_{what}" for name in results for what in ("box", "iou")}
    missing = sorted(needed - set(table.column_names))
    if missing:
        raise RunError(f"{run / PREDICTIONS}: lacks {', '.join(missing)}; written by another version of lchp?")
    rows = table.filter(pc.equal(table["frame"], frame))  # pyright: ignore[reportAttributeAccessIssue]
    if not rows.num_rows:
        raise RunError(f"{run / PREDICTIONS}: no rows for frame {frame}")
    truth = None
    if not rows["ground_truth"].null_count:
        truth = tuple(np.array(b, np.float64).reshape(-1, 4) for b in rows["ground_truth"].to_pylist())
    return Predicted(
        run,
        frame,
        tuple(rows["image_id"].to_pylist()),
        {name: np.array(rows[f"{name}_box"].to_pylist(), np.float64).reshape(-1, 4) for name in results},
        {name: rows[f"{name}_iou"].to_numpy().astype(np.float64) for name in results},
        truth,
        rows["confidence"].to_numpy().astype(np.float64),
    )


def read_pixels(
    dataset: DataSet, config: TrainConfig, predicted: Predicted, positions: Sequence[int]
) -> list[np.ndarray]:
    """The images at `positions` as the frame shows them, S x S x 3 uint8 for `center_crop` and R x R x 3 for
    `full_image` (R = data.resize, S = data.image_size): the whole array is the frame.

    Raises DataError where an image is not in the test split or cannot be read, or has other boxes there than in the
    run's predictions, since its boxes would then lie on other pixels than they were made for.
    """
    split, data = dataset.test, config.data
    frame = Frame.of(predicted.frame, data)
    where = {image_id: i for i, image_id in enumerate(split.image_ids)}
    root = f"data.root = {data.root!r}" if data.root else f"data set {data.name}"
    made = f"{predicted.run} was made from other data; name its folder by --data-root"
    out = []
    for position in positions:
        image_id = predicted.image_ids[position]
        i = where.get(image_id)
        if i is None:
            raise DataError(f"{root}: has no test image {image_id}; {made}")
        if split.images is not None:
            pixels = split.images[i]
            size = (pixels.shape[1], pixels.shape[0])
            if pixels.shape[:2] != (data.resize, data.resize):
                raise DataError(f"{root}: images of {size[0]} px, and data.resize = {data.resize}; {made}")
        else:
            assert split.paths is not None
            pixels = decode(split.paths[i], data.resize, exif=split.exif)
            size = image_size(split.paths[i], exif=split.exif)
        if predicted.truth is not None:
            own = () if split.boxes is None else (split.boxes[i],)
            expected = predicted.truth[position]
            there = np.concatenate(frame.truth(own, np.array([size])).each() or [np.zeros((0, 4))])
            if there.shape != expected.shape or not np.allclose(there, expected, atol=1e-6):
                raise DataError(f"{root}: image {image_id} has another box there than in {PREDICTIONS}; {made}")
        out.append(frame.part(pixels[None])[0])
    return out
