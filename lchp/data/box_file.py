"""One box per image that a file of the user's holds (`lchp.data.box_reader` reads it)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lchp.data.base import Problem
from lchp.data.images import Images


@dataclass(frozen=True)
class BoxFile:
    """One box per image, of those that a file holds.

    boxes: image id -> x1 y1 x2 y2, px of the original image (exclusive x2 y2). several: how many of these images have
    more than one box in the file, of which that with the highest score is here. unknown: the rows of images that are
    not in the data set. problems: the faulty rows, which are left out.
    """

    file: Path
    boxes: Mapping[str, np.ndarray]
    several: int
    unknown: tuple[Problem, ...]
    problems: tuple[Problem, ...]

    def of(self, images: Images) -> np.ndarray:
        """N x 4, shares of the whole images; NaN where the file has no box."""
        none = np.full(4, np.nan)
        rows = np.array([self.boxes.get(i, none) for i in images.split.image_ids], np.float64).reshape(-1, 4)
        return rows / np.tile(images.sizes(), 2)

    def count(self, images: Images) -> int:
        """How many of these images have a box."""
        return sum(i in self.boxes for i in images.split.image_ids)
