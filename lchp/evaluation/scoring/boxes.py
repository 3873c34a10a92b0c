"""Box predictions of any origin against annotations: GT-Known, Top-1/5 Loc, mean IoU, over images and classes."""

import csv
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from tabulate import tabulate
from tqdm import tqdm

from lchp.boxes import area, iou
from lchp.data.annotations import LARGEST, TOLERANCE, checked_box, parse_box, read_bytes, shorten
from lchp.data.base import Problem
from lchp.data.wsol import SIZES, Size, read_boxes, read_ids, read_labels, read_sizes
from lchp.errors import DataError
from lchp.evaluation.metrics import METRICS, gt_known, localization, percent
from lchp.evaluation.scoring.scoremaps import refuse

CORNERS = ["x1", "y1", "x2", "y2"]
TOP = [f"top{k}" for k in range(1, 6)]
ALIASES = {"image": "image_id", "class_id": "top1"}
"""Column names of `lchp predict --format csv` and of the data set `folder`'s boxes.csv -> those meant here."""

INDEX = "__index_level_0__"
"""What pandas calls an index without a name when it writes it as a column."""


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
        head = [f"{self.images} images, %", *(METRICS[name] for name in self.micro)]
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
    table = _read(predictions, show_progress=show_progress)
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
    boxes = _numbers(table)
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
    table = _read(path, show_progress=show_progress)
    corners = _numbers(table)
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


def _read(path: Path, *, show_progress: bool) -> pd.DataFrame:
    """Rows with image_id and x1 y1 x2 y2, all text or numbers as stored, and `where`: file and line, for messages."""
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise DataError(f"{path}: expected a .csv or .parquet file{' or the folder of a split' * (not path.suffix)}")
    content = read_bytes(path)
    if path.suffix.lower() == ".csv":
        table = _read_csv(path, content, show_progress=show_progress)
    else:
        table = _read_parquet(path, content)
        table = table.assign(where=[f"{path}: row {n}" for n in range(1, len(table) + 1)])
    if "frame" in table and "x1" not in table:
        raise DataError(f"{path}: the record of a run; lchp evaluate --run {path.parent} scores it")
    renamed = {old: new for old, new in ALIASES.items() if old in table and new not in table}
    table = table.rename(columns=renamed)
    absent = [c for c in ("image_id", *CORNERS) if c not in table]
    if absent:
        raise DataError(f"{path}: lacks the column{'s' * (len(absent) > 1)} {', '.join(absent)}")
    if table.empty:
        raise DataError(f"{path}: no rows")
    names = [c for c in ("image_id", "label", *TOP) if c in table]
    empty = (table[names].isna().to_numpy() | (table[names].astype(str) == "").to_numpy()).any(axis=1)
    if empty.any():
        raise DataError(f"{table['where'].to_numpy()[empty][0]}: one of {', '.join(names)} is empty")
    return table.astype(dict.fromkeys(names, str))


def _read_parquet(path: Path, content: bytes) -> pd.DataFrame:
    """The columns, and those that pandas took for its index: by their name, or, where the index has none and holds
    texts, as the image ids that no column holds."""
    try:
        table = pd.read_parquet(BytesIO(content))
        named = [name for name in table.index.names if name is not None and name not in table]
        if named:
            table = table.reset_index(level=named)
        elif table.index.nlevels == 1 and INDEX not in table:
            table = table.reset_index(names=INDEX)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:  # also of metadata that do not fit
        raise DataError(f"{path}: not a table ({(str(error).splitlines() or [''])[0][:200]})") from None
    ids = {"image_id", *(old for old, new in ALIASES.items() if new == "image_id")}
    if INDEX in table and not ids & set(table) and pd.api.types.infer_dtype(table[INDEX]) == "string":
        table = table.rename(columns={INDEX: "image_id"})
    return table


def _read_csv(path: Path, content: bytes, *, show_progress: bool) -> pd.DataFrame:
    """All text. Not by pandas, which fills short rows up and takes the first column of long ones for an index."""
    try:
        lines = csv.reader(StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        seen = tqdm(lines, path.name, unit=" rows", leave=False, disable=None if show_progress else True)
        rows = [(lines.line_num, row) for row in seen if "".join(row).strip()]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a table ({error})") from None
    if not rows:
        raise DataError(f"{path}: no rows")
    (_, header), *rest = rows
    columns = [name.strip() for name in header]
    if len(set(columns)) < len(columns):
        raise DataError(f"{path}: a column of {', '.join(columns)} is there twice")
    for line, row in rest:
        if len(row) != len(columns):
            raise DataError(f"{path}:{line}: {len(row)} values; the first line names {len(columns)} columns")
    cells = [[cell.strip() for cell in row] for _, row in rest]
    return pd.DataFrame(cells, columns=columns, dtype=str).assign(where=[f"{path}:{line}" for line, _ in rest])


def _numbers(table: pd.DataFrame) -> np.ndarray:
    """The corners of N rows, N x 4. Raises DataError for the first that are no finite numbers."""
    cells = table[CORNERS].astype(str).to_numpy(object)
    try:
        numbers = cells.astype(np.float64)
    except ValueError:
        numbers = np.full(cells.shape, np.nan)
    if np.isfinite(numbers).all() and "_" not in "".join(cells.ravel()):  # Python reads 1_5 as 15
        return numbers
    for fields, where in zip(cells, table["where"], strict=True):
        try:
            parse_box(fields)
        except ValueError as error:
            raise DataError(f"{where}: {error}") from None
    return numbers


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
