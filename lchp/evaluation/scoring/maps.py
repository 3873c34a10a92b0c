"""MaxBoxAcc and MaxBoxAccV2 of score maps (Choe et al., CVPR 2020), in every digit as clovaai/wsolevaluation has them.

Its conventions: maps and boxes in a frame of 224 px, ground truth in whole px (truncated); a map times 255 truncated
to uint8, foreground where that is above int(t * its maximum), for t = 0, interval, ... below 1; contours of OpenCV's
RETR_TREE (holes have one too), the first of largest contour area, or all of them with `multi_contour`; the box x, y,
min(x + w, 223), min(y + h, 223) of a contour, and 0 0 0 0 where there is none; IoU in inclusive px (+1); a map is right
where its best box reaches the IoU with any ground truth. Every IoU has the threshold that is right for most maps.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from tabulate import tabulate

from lchp.boxes import iou
from lchp.data.base import Problem
from lchp.data.wsol import SPLITS, read_boxes, read_ids, read_sizes
from lchp.errors import ConfigError
from lchp.evaluation.scoring.scoremaps import FRAME, each_map, refuse, speed, thresholds, warnings_of

IOUS = (30, 50, 70)
"""IoU in percent from which on a box is right: 50 is MaxBoxAcc, the mean of all MaxBoxAccV2."""


@dataclass(frozen=True)
class MapScores:
    """Accuracies in percent by IoU ("30", "50", "70"), of the images of a split.

    `best_threshold` is the one (the lowest, of several) at which `maxboxacc` was reached: chosen on the boxes of the
    very images it is scored on, an oracle. `accuracy`: at the `threshold` given, or None. `counted`: see `each_map`.
    """

    split: str
    images: int
    multi_contour: bool
    interval: float
    maxboxacc: dict[str, float]
    mean: float
    best_threshold: dict[str, float]
    threshold: float | None
    accuracy: dict[str, float] | None
    counted: dict[str, int]
    seconds: float

    def record(self) -> dict[str, Any]:
        """Plain values for JSON; `at_threshold` holds accuracies and their mean at the given threshold, or None."""
        fixed = None
        if self.accuracy is not None:
            fixed = {"threshold": self.threshold, **self.accuracy, "mean": _mean(self.accuracy)}
        return {
            "split": self.split,
            "images": self.images,
            "multi_contour": self.multi_contour,
            "interval": self.interval,
            "maxboxacc": self.maxboxacc,
            "mean": self.mean,
            "best_threshold": self.best_threshold,
            "best_threshold_is": self._chosen(),
            "at_threshold": fixed,
            "warnings": self.counted,
        }

    def text(self) -> str:
        """The table that is printed, and what chose its thresholds."""
        head = ["IoU", "MaxBoxAcc, % (oracle)", "best threshold (oracle)"]
        rows = [[name, value, f"{self.best_threshold[name]:.6g}"] for name, value in self.maxboxacc.items()]
        rows.append(["mean", self.mean, ""])
        if self.accuracy is not None:
            head.append(f"at threshold {self.threshold:g}, %")
            for row, value in zip(rows, (*self.accuracy.values(), _mean(self.accuracy)), strict=True):
                row.append(value)
        table = tabulate(rows, head, tablefmt="simple", floatfmt=".2f", disable_numparse=[0, 2])
        return f"{table}\n\nbest threshold: {self._chosen()}\n{speed(self.images, self.seconds)}"

    def warnings(self) -> list[str]:
        """A line for each kind of map that was counted."""
        return warnings_of(self.counted)

    def _chosen(self) -> str:
        return f"an oracle, chosen on the boxes of the split it is scored on ({SPLITS.get(self.split, self.split)})" + (
            "; on test it is a choice by boxes of other images: --split test --threshold T"
            if self.split == "val"
            else ""
        )


def score_maps(
    maps: Path,
    split: Path,
    *,
    multi_contour: bool = False,
    interval: float = 0.001,
    threshold: float | None = None,
    show_progress: bool = False,
) -> MapScores:
    """MaxBoxAcc of the score maps `maps`/<image id>.npy of the images that a split's folder lists.

    The folder holds image_ids.txt, image_sizes.txt and localization.txt. Raises DataError, one line, for any fault of
    these (unknown or duplicate id, no box, a box outside of its image) or of a map (see `read_map`), ConfigError for
    an interval or a threshold out of range.
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise ConfigError(f"threshold = {threshold:g}: expected a share of the map's maximum, from 0 to 1")
    grid = thresholds(interval)
    wanted = grid if threshold is None else np.append(grid, threshold)
    problems: list[Problem] = []
    ids = read_ids(split, problems)
    sizes = read_sizes(split, ids, problems)
    boxes = read_boxes(split, ids, sizes, problems)
    refuse(problems)
    evaluator = MapEvaluator.at(wanted)

    def accumulate(image_id: str, scoremap: np.ndarray) -> None:
        evaluator.accumulate(scoremap, boxes[image_id].corners, sizes[image_id])

    counted, seconds = each_map(maps, ids, accumulate, show_progress=show_progress)
    percent = evaluator.compute(len(ids))[int(multi_contour)]
    curves = dict(zip(map(str, IOUS), percent[:, : len(grid)], strict=True))
    maxboxacc = {name: float(curve.max()) for name, curve in curves.items()}
    return MapScores(
        split=split.name,
        images=len(ids),
        multi_contour=multi_contour,
        interval=interval,
        maxboxacc=maxboxacc,
        mean=_mean(maxboxacc),
        best_threshold={name: float(grid[curve.argmax()]) for name, curve in curves.items()},
        threshold=threshold,
        accuracy=None if threshold is None else dict(zip(curves, percent[:, -1].tolist(), strict=True)),
        counted=counted,
        seconds=seconds,
    )


@dataclass(frozen=True)
class MapEvaluator:
    """How many images' maps are right at each of T thresholds: `right` 2 x len(IOUS) x T, by the box of the largest
    contour, and by the best of all contours' boxes."""

    grid: np.ndarray
    right: np.ndarray

    @classmethod
    def at(cls, grid: np.ndarray) -> "MapEvaluator":
        """Of no image yet, at T thresholds."""
        return cls(grid, np.zeros((2, len(IOUS), len(grid)), np.int64))

    def accumulate(self, scoremap: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> None:
        """An image's map, FRAME x FRAME in [0, 1]; boxes: K x 4 inclusive px of the image; size: its width, height."""
        found = ious_of(scoremap, self.grid, in_frame(boxes, size))
        self.right[:] += np.stack([reached(found.largest), reached(found.best)])

    def compute(self, images: int) -> np.ndarray:
        """Percent of so many images."""
        return self.right * 100.0 / images


def in_frame(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Ground truth, K x 4 px of an image of `size` (width, height), in whole px of the frame; K x 4 int64."""
    return (boxes * float(FRAME) / np.tile(np.array(size, np.float64), 2)).astype(np.int64)


class Ious(NamedTuple):
    """IoU of a map with the best of its ground truth at each of T thresholds, T values each: of the box of the largest
    contour, and of the best of all contours' boxes."""

    largest: np.ndarray
    best: np.ndarray


def ious_of(scoremap: np.ndarray, grid: np.ndarray, truth: np.ndarray) -> Ious:
    """At every threshold of `grid`; scoremap: H x W in [0, 1]; truth: K x 4 int px of its frame.

    At most 256 of the thresholds differ in what they leave of the uint8 map, and only those are drawn.
    """
    image = (scoremap * 255).astype(np.uint8)
    levels = (grid * float(image.max())).astype(np.int64)
    below = np.searchsorted(np.unique(image), levels, side="right")
    _, first, which = np.unique(below, return_index=True, return_inverse=True)
    found = [contour_boxes(image > levels[i]) for i in first]
    starts = np.cumsum([0, *(len(boxes) for boxes, _ in found[:-1])])
    each = iou(np.concatenate([boxes for boxes, _ in found])[:, None], truth, inclusive=True).max(1)
    largest = each[starts + [i for _, i in found]]
    return Ious(largest[which], np.maximum.reduceat(each, starts)[which])


def reached(ious: np.ndarray) -> np.ndarray:
    """Which of IOUS is reached by the IoU at each of T thresholds: len(IOUS) x T bool."""
    return ious >= np.array(IOUS)[:, None] / 100


def contour_boxes(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Boxes, K x 4 int, of the contours of a mask (H x W bool), and which is the largest contour's; 0 0 0 0 where there
    is none."""
    contours, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return np.zeros((1, 4), np.int64), 0
    boxes = np.array([cv2.boundingRect(contour) for contour in contours], np.int64)  # x y width height
    height, width = mask.shape
    boxes[:, 2:] = np.minimum(boxes[:, :2] + boxes[:, 2:], (width - 1, height - 1))
    # the first of the largest
    return boxes, int(np.argmax([cv2.contourArea(contour) for contour in contours])) if len(contours) > 1 else 0


def _mean(by_iou: dict[str, float]) -> float:
    return float(np.mean(list(by_iou.values())))
