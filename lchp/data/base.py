"""What a data set is to the rest of the package: images with ids and labels, perhaps boxes, and its faults."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lchp.errors import DataError


@dataclass(frozen=True)
class Problem:
    """One fault of a data set: where it is (file, and line from 1 or None), what it is, which image it spoils."""

    file: str
    line: int | None
    message: str
    image_id: str | None = None

    def __str__(self) -> str:
        return f"{self.file}{'' if self.line is None else f':{self.line}'}: {self.message}"


@dataclass(frozen=True)
class Split:
    """One split, in a fixed order (the annotation file's, or sorted).

    `image_ids` are unique text ids, `labels` N int64 in 0..classes-1, `boxes` per image a K x 4 float32 array of
    x1 y1 x2 y2 in pixels of the original image with exclusive x2 y2 (K >= 1), or None for the whole split where any is
    unknown. Boxes of the training split are for diagnostics only: none decides which images it holds.
    Images are either files (`paths`) or, for generated sets, an N x H x W x 3 uint8 array (`images`).
    `exif`: the files' EXIF orientation is to be applied, and boxes are those of the upright picture. It is off for the
    published sets, whose boxes follow the pixels as stored.
    """

    image_ids: tuple[str, ...]
    labels: np.ndarray
    paths: tuple[Path, ...] | None = None
    images: np.ndarray | None = None
    boxes: tuple[np.ndarray, ...] | None = None
    exif: bool = False

    def __len__(self) -> int:
        return len(self.image_ids)

    def select(self, keep: np.ndarray) -> "Split":
        """The sub-split at the positions `keep` (int array), in that order."""
        return Split(
            tuple(self.image_ids[i] for i in keep),
            self.labels[keep],
            None if self.paths is None else tuple(self.paths[i] for i in keep),
            None if self.images is None else self.images[keep],
            None if self.boxes is None else tuple(self.boxes[i] for i in keep),
            self.exif,
        )


@dataclass(frozen=True)
class DataSet:
    """A training and a test split with their class names. `problems`: what was found wrong and left out."""

    name: str
    class_names: tuple[str, ...]
    train: Split
    test: Split
    problems: tuple[Problem, ...] = field(default=())


Loader = Callable[[Path], DataSet]
"""Reads a data set's lists and boxes from its root (no image is opened), collecting faults instead of raising; raises
DataError only where nothing can be read at all (no such folder, wrong layout)."""


def require_folder(root: str | Path | None, name: str, expected: str) -> Path:
    """`root` as a path; raises DataError, saying what is `expected` there, if it is not set or not a folder."""
    if root is None:
        raise DataError(f"data.root is not set: give the folder of {name} ({expected}) with --data.root DIR")
    path = Path(root).expanduser()
    if not path.is_dir():
        raise DataError(f"data.root = {str(path)!r}: no such folder; expected {expected}")
    return path


def describe(problems: tuple[Problem, ...], most: int = 10) -> str:
    """The first problems and the count, for an error message."""
    rest = f"\n  ... and {len(problems) - most} more" if len(problems) > most else ""
    lines = "".join(f"\n  {p}" for p in problems[:most])
    return (
        f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in the data (lchp data check lists all; "
        f"--data.skip-bad drops what is faulty):{lines}{rest}"
    )
