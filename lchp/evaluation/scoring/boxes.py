"""Box predictions of any origin against annotations: GT-Known, Top-1/5 Loc, mean IoU, over images and classes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from lchp.boxes import area, iou
from lchp.config import counted
from lchp.data.annotations import LARGEST, TOLERANCE, checked_box, shorten
from lchp.data.base import Problem
from lchp.data.box_tables import TOP, corners_of, read_table
from lchp.data.wsol import SIZES, Size, read_boxes, read_ids, read_labels, read_sizes
from lchp.errors import DataError
from lchp.evaluation.metrics import METRICS, gt_known, localization, percent
from lchp.evaluation.scoring.scoremaps import refuse

TEXTS = ("label", *TOP)
"""Columns of classes, which are never empty."""


@dataclass(frozen=True)
class BoxScores:
    """Metrics in percent, `micro` over images and `macro` over classes (None without labels; PSOL's habit).

    Each holds gt_known and mean_iou, top1_loc where classes were predicted, top5_loc where five were. `counted`: boxes
    that reach `outside` of their image (scored as they are), `empty` ones (IoU 0), and predictions of `unknown` images.
    """

    images: int
    micro: dict[str, float]
    macro: dict[str, float] | None
    counted: dict[str, int]

    def record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"images": self.images, "micro": self.micro, "macro": self.macro, "warnings": self.counted}

    def text(self) -> str:
        """The table that is printed."""
        rows = [["over images (micro)", *self.micro.values()]]
        if self.macro is not None:
            rows.append(["over classes (macro)", *self.macro.values()])
        head = [f"{counted(self.images, 'image')}, %", *(METRICS[name] for name in self.micro)]
        return tabulate(rows, head, tablefmt="simple", floatfmt=".2f")

    def warnings(self) -> list[str]:
        """A line for each kind of box that was counted, and for metrics that could not be computed."""
        lines = {
            "outside": "boxes reach out of their image; they are scored as they are",
            "empty": "boxes have no area, so that they are wrong",
            "unknown": "boxes are of images without annotations; they are passed over",
        }
        found = [f"{self.counted[name]} {line}" for name, line in lines.items() if self.counted[name]]
        if self.macro is None:
            found.append("the annotations have no column label: no Top-1 and Top-5 Loc, no means over classes")
        return found


@dataclass(frozen=True)
class Annotations:
    """Ground truth of N images with M boxes. boxes: M x 4 in px (exclusive x2 y2), image by image; counts: N, how many
    are each image's; labels: N classes, and sizes: px by image id, where known."""

    ids: list[str]
    boxes: np.ndarray
    counts: np.ndarray
    labels: list[str] | None
    sizes: dict[str, Size]


def score_boxes(predictions: Path, annotations: Path, *, show_progress: bool = False) -> BoxScores:
    """Scores one box per image against any number of ground-truth boxes, of which the best counts.

    predictions: .csv or .parquet with the columns image_id, x1, y1, x2, y2 (px of the original image, exclusive x2 y2)
    and, for Top-1 and Top-5 Loc, the classes top1 to top5, best first, written as the annotations write theirs. The
    names image and class_id (= top1) of `lchp predict --format csv` are understood too; other columns are passed over.
    annotations: such a file with a row per box and a column label (optional), or a split's folder of wsolevaluation,
    whose inclusive boxes are made exclusive.

    Raises DataError, one line, for a missing column or prediction of an annotated image, a duplicate id, a coordinate
    that is no finite number, a faulty ground-truth box, predictions in fractions, classes that are no image's label.
    """
    truth = read_annotations(annotations, show_progress=show_progress)
    table = read_table(predictions, TEXTS, show_progress=show_progress)
    duplicate = table["image_id"].duplicated()
    if duplicate.any():
        row = table[duplicate].iloc[0]
        raise DataError(f"{row['where']}: image {shorten(row['image_id'])} has a box already; expected one per image")
    rows = pd.Index(table["image_id"]).get_indexer(pd.Index(truth.ids))
    if (rows < 0).any():
        count = f"{(rows < 0).sum()} of {len(rows)} annotated images"
        raise DataError(f"{predictions}: no box for image {shorten(truth.ids[rows.argmin()])}; {count} have none")
    unknown = len(table) - len(rows)
    table = table.iloc[rows]
    boxes = corners_of(table)
    if boxes.max() <= 1 and truth.boxes.max() > 2:
        raise DataError(f"{predictions}: no coordinate is above 1; expected px of the original image, not fractions")
    each = iou(boxes.repeat(truth.counts, 0), truth.boxes)
    ious = np.maximum.reduceat(each, truth.counts.cumsum() - truth.counts)
    limits = np.array([truth.sizes.get(i, (np.inf, np.inf)) for i in truth.ids], np.float64)
    counted = {
        "outside": int(((boxes < -TOLERANCE) | (boxes > np.tile(limits, 2) + TOLERANCE)).any(1).sum()),
        "empty": int((area(boxes) <= 0).sum()),
        "unknown": unknown,
    }
    if truth.labels is None:
        return BoxScores(len(ious), _metrics(ious, None, None), None, counted)
    labels, names = pd.factorize(np.array(truth.labels, object), sort=True)
    top = _top(table, pd.Index(names), predictions)
    classes = [labels == c for c in range(len(names))]
    each = [_metrics(ious[of], None if top is None else top[of], labels[of]) for of in classes]
    macro = {name: float(np.mean([m[name] for m in each])) for name in each[0]}
    return BoxScores(len(ious), _metrics(ious, top, labels), macro, counted)


def read_annotations(path: Path, *, show_progress: bool = False) -> Annotations:
    """A file or a split's folder, see `score_boxes`. Raises DataError, one line, for any fault in it."""
    problems: list[Problem] = []
    if path.is_dir():
        ids = read_ids(path, problems)
        sizes = read_sizes(path, ids, problems) if (path / SIZES).is_file() else {}
        listed = read_boxes(path, ids, sizes, problems)
        labels = read_labels(path, ids, problems)
        refuse(problems)
        each = [listed[i].exclusive() for i in ids]
        counts = np.array([len(boxes) for boxes in each])
        return Annotations(list(ids), np.concatenate(each), counts, [labels[i] for i in ids], sizes)
    table = read_table(path, TEXTS, show_progress=show_progress)
    corners = corners_of(table)
    boxes = corners.clip(0, LARGEST).astype(np.float32)
    off = (corners.min(1) < -TOLERANCE) | (corners.max(1) > LARGEST + TOLERANCE)
    for row in np.flatnonzero(off | (corners[:, 2:] <= corners[:, :2]).any(1) | (boxes[:, 2:] <= boxes[:, :2]).any(1)):
        try:
            checked_box(*corners[row].tolist())
        except ValueError as error:
            raise DataError(f"{table['where'].iloc[row]}: {error}") from None
    images, ids = pd.factorize(table["image_id"])
    order = images.argsort(kind="stable")
    counts = np.bincount(images)
    if "label" not in table:
        return Annotations(list(ids), boxes[order], counts, None, {})
    labels = table["label"].to_numpy(object)
    first = order[counts.cumsum() - counts]
    other = labels != labels[first][images]
    if other.any():
        row, above = table[other].iloc[0], labels[first][images][other][0]
        raise DataError(f"{row['where']}: image {shorten(row['image_id'])} has another label above: {shorten(above)}")
    return Annotations(list(ids), boxes[order], counts, labels[first].tolist(), {})


def _top(table: pd.DataFrame, names: pd.Index, path: Path) -> np.ndarray | None:
    """N x k classes, best first, by their place in `names`, -1 for one that is none; None where none were predicted."""
    columns = [c for c in TOP if c in table]
    if columns != TOP[: len(columns)]:
        raise DataError(
            f"{path}: has the column {columns[-1]}, but not all of {', '.join(TOP[: TOP.index(columns[-1])])}"
        )
    if not columns:
        return None
    top = np.stack([names.get_indexer(pd.Index(table[c])) for c in columns], 1)
    if (top < 0).all():
        seen = f"{shorten(table[columns[0]].iloc[0])}, ... and {shorten(names[0])}, ..."
        raise DataError(f"{path}: no predicted class is the label of any image ({seen}); are both written alike?")
    return top


def _metrics(ious: np.ndarray, top: np.ndarray | None, labels: np.ndarray | None) -> dict[str, float]:
    if top is None or labels is None:
        return {"gt_known": gt_known(ious), "mean_iou": percent(ious)}
    every = localization(ious, top, labels)
    return {name: value for name, value in every.items() if name != "top5_loc" or top.shape[1] == len(TOP)}
