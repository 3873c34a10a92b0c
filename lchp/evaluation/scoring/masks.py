"""PxAP, the pixel average precision of score maps (Choe et al., CVPR 2020), as clovaai/wsolevaluation computes it.

All pixels of all images that are not to be ignored are ranked together by their score, in bins of `interval`; precision
and recall are those of the pixels in a bin or above, and the area is the sum of precision times the step of recall.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lchp.data.base import Problem
from lchp.data.wsol import Masks, read_ids, read_masks
from lchp.errors import ConfigError, DataError
from lchp.evaluation.scoring.scoremaps import FRAME, each_map, refuse, speed, thresholds, warnings_of


@dataclass(frozen=True)
class MaskScores:
    """`pxap` in percent, of the images of a split. `counted`: see `lchp.evaluation.scoring.scoremaps.each_map`."""

    split: str
    images: int
    interval: float
    pxap: float
    counted: dict[str, int]
    seconds: float

    def record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "split": self.split,
            "images": self.images,
            "interval": self.interval,
            "pxap": self.pxap,
            "warnings": self.counted,
        }

    def text(self) -> str:
        """The figure as it is printed; it needs no threshold."""
        return f"PxAP: {self.pxap:.2f} %\n\n{speed(self.images, self.seconds)}"

    def warnings(self) -> list[str]:
        """A line for each kind of map that was counted."""
        return warnings_of(self.counted)


def score_masks(
    maps: Path, split: Path, masks: Path, *, interval: float = 0.001, show_progress: bool = False
) -> MaskScores:
    """PxAP of the score maps `maps`/<image id>.npy of a split's folder, whose localization.txt names files of `masks`.

    Raises DataError, one line, for any fault of the lists, a mask that is missing or cannot be read, no foreground in
    any of them, and a faulty map (see `lchp.evaluation.scoring.scoremaps.read_map`).
    """
    edges = np.append(thresholds(interval), [1.0, 2.0, 3.0])
    if (np.diff(edges) < 0).any():  # arange may step over its end by a rounding error
        raise ConfigError(f"interval = {interval:g}: rounds to a threshold above 1; name one that divides 1")
    problems: list[Problem] = []
    ids = read_ids(split, problems)
    listed = read_masks(split, ids, problems)
    refuse(problems)
    if not masks.is_dir():
        raise DataError(f"{masks}: no such folder of masks")
    inside, outside = np.zeros(len(edges) - 1), np.zeros(len(edges) - 1)

    def accumulate(image_id: str, scoremap: np.ndarray) -> None:
        foreground, counts = read_mask(masks, listed[image_id])
        for histogram, pixels in ((inside, foreground), (outside, counts & ~foreground)):
            histogram[:] += np.histogram(scoremap[pixels], edges)[0]

    counted, seconds = each_map(maps, ids, accumulate, show_progress=show_progress)
    if not inside.any():
        raise DataError(f"{split}: no mask has any foreground, so that there is no recall")
    return MaskScores(split.name, len(ids), interval, average_precision(inside, outside), counted, seconds)


def average_precision(inside: np.ndarray, outside: np.ndarray) -> float:
    """Area under the curve of precision over recall, in percent, of counts of foreground and other pixels by score.

    inside, outside: B, by ascending score.
    """
    true, false = inside[::-1].cumsum(), outside[::-1].cumsum()
    above = true + false
    precision = np.divide(true, above, out=np.zeros_like(true), where=above > 0)
    recall = true / inside.sum()
    # the empty bins are left out before the sum, whose rounding depends on how many terms there are
    return float((precision[1:] * np.diff(recall))[above[1:] > 0].sum() * 100)


def read_mask(folder: Path, masks: Masks) -> tuple[np.ndarray, np.ndarray]:
    """FRAME x FRAME bool: pixels of any object, and pixels that count (not the ignored ones that show no object)."""
    foreground = np.any([_read(folder / name) for name in masks.objects], axis=0)
    return foreground, foreground | ~_read(folder / masks.ignore)


def _read(path: Path) -> np.ndarray:
    if not path.is_file():
        raise DataError(f"{path}: no such mask")
    pixels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if pixels is None:
        raise DataError(f"{path}: the mask cannot be read as an image")
    return cv2.resize(pixels, (FRAME, FRAME), interpolation=cv2.INTER_NEAREST) > 0
