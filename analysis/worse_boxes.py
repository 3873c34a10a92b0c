"""Worse boxes of a known kind, made from the ground truth of a data set's TRAINING images: an oracle's, for one test.

What do the localizer and stage 2 mend of the boxes that they learn from? That needs boxes whose faults are known. No
other use of ground truth in training is meant: whoever has such boxes trains a detector.

python analysis/worse_boxes.py --kind shifted --output oracle_shifted.csv
python analysis/worse_boxes.py --data.name cub --data.root CUB_200_2011 --kind head --output oracle_head.csv
lchp train --preset parts --method.name boxes --method.boxes oracle_shifted.csv
"""

import csv
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from lchp.boxes import iou
from lchp.config import DataConfig
from lchp.console import guarded, parse
from lchp.data import load
from lchp.data.images import Images
from lchp.errors import ConfigError, DataError
from lchp.files.runs import write_atomically
from lchp.files.targets import require_file

HEADER = ["image_id", "x1", "y1", "x2", "y2", "oracle"]
KINDS = {"shifted": 0.3, "head": 0.45, "jittered": 0.2}
"""And by how much, where that is not said."""


@dataclass
class Flags:
    """Make worse boxes out of the ground truth of training images (an oracle, for tests of what mends them)."""

    output: Path
    """File to write, .csv; an earlier one of this script is replaced."""
    kind: Literal["shifted", "head", "jittered"] = "shifted"
    """shifted: by a share of its sides, in a direction drawn anew for each image. head: the upper part of it, as a
    classifier that looks at heads has it. jittered: each edge by a normal draw."""
    by: float | None = None
    """The share of a side: of the shift, of the height that is left, of the draw's deviation; 0.3, 0.45 and 0.2 by
    default."""
    seed: int = 0
    """Of the draws."""
    data: DataConfig = field(default_factory=lambda: DataConfig(name="parts", resize=72, image_size=64))
    """Which images."""


def worse(boxes: np.ndarray, sizes: np.ndarray, kind: str, by: float, seed: int) -> np.ndarray:
    """N x 4 boxes in px (x1 y1 x2 y2) made worse, each within its image and at least a pixel wide and high. sizes: N x
    2, width and height in px."""
    rng = np.random.default_rng(seed)
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)  # w h w h
    if kind == "shifted":
        angle = rng.uniform(0, 2 * np.pi, len(boxes))
        moved = boxes + by * sides * np.tile(np.stack([np.cos(angle), np.sin(angle)], 1), 2)
    elif kind == "head":
        moved = np.concatenate([boxes[:, :3], boxes[:, 1:2] + by * sides[:, 1:2]], 1)
    else:
        moved = boxes + by * sides * rng.standard_normal(boxes.shape)
        moved = np.concatenate([np.minimum(moved[:, :2], moved[:, 2:]), np.maximum(moved[:, :2], moved[:, 2:])], 1)
    first = np.clip(moved[:, :2], 0, sizes - 1)
    return np.concatenate([first, np.clip(moved[:, 2:], first + 1, sizes)], 1)


def run(flags: Flags) -> int:
    """Writes the file; prints how good its boxes are."""
    by = KINDS[flags.kind] if flags.by is None else flags.by
    if not 0 < by <= 1:
        raise ConfigError(f"--by {by:g}: expected a share in (0, 1]")
    require_file(flags.output, "output", _is_own, "file of worse_boxes.py")
    split = load(flags.data).train
    if split.boxes is None:
        raise DataError(f"{flags.data.name}: its training images have no boxes to make worse")
    sizes = Images(split, flags.data.resize, None, np.arange(len(split))).sizes()
    truth = np.array([boxes[0] for boxes in split.boxes], np.float64)
    found = worse(truth, sizes, flags.kind, by, flags.seed)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(HEADER)
    for image_id, box in zip(split.image_ids, found, strict=True):
        rows.writerow([image_id, *(f"{v:.2f}" for v in box), flags.kind])
    write_atomically(flags.output, lambda file: file.write(text.getvalue().encode()))
    ious = iou(found, truth)
    print(
        f"{len(found)} training boxes of {flags.data.name}, {flags.kind} by {by:g} (oracle): mean IoU "
        f"{100 * ious.mean():.2f} %, {100 * (ious >= 0.5).mean():.2f} % at IoU 0.5; {flags.output}"
    )
    return 0


def _is_own(path: Path) -> bool:
    with path.open(encoding="utf-8", newline="") as file:
        return next(csv.reader(file), None) == HEADER


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: run(parse(Flags, arguments, "worse_boxes.py")))


if __name__ == "__main__":
    raise SystemExit(main())
