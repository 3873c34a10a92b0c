"""What a data set is to the rest of the package: images with ids and labels, perhaps boxes, and its faults."""

import errno
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lchp.errors import DataError, printable


@dataclass(frozen=True)
class Problem:
    """One fault of a data set: where it is (file, and line from 1 or None), what it is, which image it spoils."""

    file: str
    line: int | None
    message: str
    image_id: str | None = None

    def __str__(self) -> str:
        return printable(f"{self.file}{'' if self.line is None else f':{self.line}'}: {self.message}")


class WrittenSize(NamedTuple):
    """An image's width and height in px, and the place where a data set's lists say so."""

    file: str
    line: int | None
    width: int
    height: int


class WrittenBox(NamedTuple):
    """A box x1 y1 x2 y2 (px, exclusive ends) and the place where a data set's lists say so."""

    file: str
    line: int | None
    corners: tuple[float, float, float, float]


@dataclass(frozen=True)
class Split:
    """One split, in a fixed order (the annotation file's, or sorted).

    `image_ids` are unique text ids, `labels` N int64 in 0..classes-1, `boxes` per image a K x 4 float32 array of
    x1 y1 x2 y2 in pixels of the original image with exclusive x2 y2 (K >= 1), or None for the whole split where any is
    unknown. Boxes of the training split are for diagnostics only: none decides which images it holds.
    Images are either files (`paths`) or, for generated sets, an N x H x W x 3 uint8 array (`images`).
    `exif`: the files' EXIF orientation is to be applied, and boxes are those of the upright picture. It is off for the
    published sets, whose boxes follow the pixels as stored.
    `digests`: N x 16 uint8, what stands for the files' contents (`lchp.data.content`), where they have been read.
    """

    image_ids: tuple[str, ...]
    labels: np.ndarray
    paths: tuple[Path, ...] | None = None
    images: np.ndarray | None = None
    boxes: tuple[np.ndarray, ...] | None = None
    exif: bool = False
    digests: np.ndarray | None = None

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
            None if self.digests is None else self.digests[keep],
        )


@dataclass(frozen=True)
class DataSet:
    """A training and a test split with their class names; either may be empty where all of it was left out.

    `problems`: what was found wrong. For finding the rest of what is wrong: `written`, the boxes that the lists give
    for an image file, also where its split has no boxes because another image lacks one; `sizes`, those that the lists
    give; and `left_out`, the image files that are in neither split because of a problem. `notes`: what is no fault but
    should be known, such as files that were passed over, a line each.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    test: Split
    problems: tuple[Problem, ...] = field(default=())
    written: Mapping[Path, tuple[WrittenBox, ...]] = field(default_factory=dict, repr=False, compare=False)
    left_out: tuple[Path, ...] = field(default=(), repr=False, compare=False)
    sizes: Mapping[Path, WrittenSize] = field(default_factory=dict, repr=False, compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)


def stem(name: str) -> str:
    """A file's name without its last ending: the image's id."""
    return name.rpartition(".")[0] or name


def require_regular(path: Path) -> None:
    """Raises OSError for what is no regular file (or a link to one): a pipe, for one, is opened for ever."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def require_folder(root: str | Path | None, name: str, expected: str) -> Path:
    """`root` as a path; raises DataError, saying what is `expected` there, if it is not set or not a folder."""
    if root is None:
        raise DataError(f"data.root is not set: give the folder of {name} ({expected}) with --data.root DIR")
    path = Path(os.path.expanduser(root))  # which, unlike Path's, leaves the ~ of an unknown user
    if not os.path.isdir(path):
        found = "not a folder" if os.path.exists(path) else "no such folder"
        raise DataError(f"data.root = {str(path)!r}: {found}; expected {expected}")
    return path


def require_sound(dataset: DataSet, *, skip_bad: bool) -> None:
    """Raises DataError for a data set with problems, unless `skip_bad`, and for one without training or test images."""
    if dataset.problems and not skip_bad:
        raise DataError(problems_text(dataset.problems))
    if not len(dataset.train) or not len(dataset.test):
        first = f"; first of {len(dataset.problems)} problems: {dataset.problems[0]}" if dataset.problems else ""
        raise DataError(
            f"{dataset.name}: {len(dataset.train)} training and {len(dataset.test)} test images; both need some{first}"
        )


def lone_class(dataset: DataSet) -> Problem | None:
    """What is to be said of a data set whose training images are all of one class, which nothing can be trained on."""
    present = np.unique(dataset.train.labels)
    if len(present) != 1:
        return None
    name = dataset.class_names[present[0]]
    said = (
        f"all {len(dataset.train)} training images are of one class ({name}); training needs two or more, since it "
        "learns where an object is by telling classes apart: add images of another class"
    )
    return Problem(dataset.name, None, said)


def require_classes(dataset: DataSet) -> None:
    """Raises DataError for training images of one class."""
    if (problem := lone_class(dataset)) is not None:
        raise DataError(str(problem))


def problems_text(problems: tuple[Problem, ...]) -> str:
    """The first problems of a data set and the count, for an error message."""
    advice = "lchp data check lists all; --data.skip-bad drops what is faulty"
    return listing(problems, f"in the data ({advice})")


def listing(problems: tuple[Problem, ...], where: str, most: int = 10) -> str:
    """The first problems and the count, for an error message; where: in words."""
    rest = f"\n  ... and {len(problems) - most} more" if len(problems) > most else ""
    lines = "".join(f"\n  {p}" for p in problems[:most])
    return f"{len(problems)} problem{'s' if len(problems) > 1 else ''} {where}:{lines}{rest}"
