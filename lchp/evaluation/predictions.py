"""predictions.parquet and what follows from it: the summary, and the table that a run prints. No torch here."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tabulate import tabulate

from lchp.config import counted, shown_choice
from lchp.errors import RunError, printable
from lchp.evaluation.frames import FRAMES, GroundTruth
from lchp.evaluation.metrics import (
    FLOORS,
    METRICS,
    RESULTS,
    TITLES,
    Metric,
    best_iou,
    classification,
    floors,
    localization,
    macro_average,
    unboxed,
)
from lchp.files.runs import ENVIRONMENT, PREDICTIONS, SUMMARY, read_environment, write_atomically
from lchp.files.schema import SecondClassifier


def frame_table(
    image_ids: tuple[str, ...],
    frame: str,
    labels: np.ndarray,
    top5: np.ndarray,
    top5_score: np.ndarray,
    boxes: dict[str, np.ndarray],
    scores: Mapping[str, np.ndarray],
    truth: GroundTruth | None,
) -> pa.Table:
    """One frame's rows of predictions.parquet.

    top5, top5_score: N x k; boxes: result -> N x 4 fractions of the frame; scores: of the last localizer's boxes, each
    N, `confidence`, `crop_score`, `masked_score` (see `lchp.evaluation.inference.Predictions`); truth: the frame's
    ground truth, or None where there is none (the columns `<result>_iou` and `ground_truth` are then null).
    """
    n = len(image_ids)
    columns: dict[str, pa.Array] = {
        "image_id": pa.array(image_ids, pa.string()),
        "frame": pa.array([frame] * n, pa.string()),
        "label": pa.array(labels, pa.int32()),
        "top5": pa.array(list(top5.astype(np.int32)), pa.list_(pa.int32())),
        "top5_score": pa.array(list(top5_score.astype(np.float32)), pa.list_(pa.float32())),
    }
    for name, b in boxes.items():
        b = b.astype(np.float32)
        columns[f"{name}_box"] = pa.array(list(b), pa.list_(pa.float32()))
        ious = pa.nulls(n, pa.float64()) if truth is None else pa.array(best_iou(b, truth), pa.float64())
        columns[f"{name}_iou"] = ious
    columns |= {name: pa.array(values.astype(np.float32), pa.float32()) for name, values in scores.items()}
    columns["ground_truth"] = pa.array(
        [None] * n if truth is None else [b.tolist() for b in truth.each()],
        pa.list_(pa.list_(pa.float64())),
    )
    return pa.table(columns)


def joined(earlier: pa.Table | None, own: pa.Table) -> pa.Table:
    """A link's own predictions with the boxes of the results before it; the scores are those of its own boxes. Both are
    of the same images, in the same order."""
    if earlier is None:
        return own
    before = [name for r in RESULTS for name in (f"{r}_box", f"{r}_iou") if name in earlier.column_names]
    names = [name for name in before if name not in own.column_names]
    at = own.column_names.index("top5_score") + 1
    for name in reversed(names):
        own = own.add_column(at, name, earlier[name])
    return own


def write_predictions(run: Path, table: pa.Table) -> None:
    """Writes predictions.parquet into a run folder that is there."""
    write_atomically(run / PREDICTIONS, lambda file: pq.write_table(table, file), parents=False)


_INTS, _FLOATS = pa.list_(pa.int32()), pa.list_(pa.float32())
_SCORES = ("confidence", "crop_score", "masked_score")
_TYPES: Mapping[str, pa.DataType] = {
    "image_id": pa.string(),
    "frame": pa.string(),
    "label": pa.int32(),
    "top5": _INTS,
    "top5_score": _FLOATS,
    **{f"{name}_box": _FLOATS for name in RESULTS},
    **{f"{name}_iou": pa.float64() for name in RESULTS},
    **dict.fromkeys(_SCORES, pa.float32()),
    "ground_truth": pa.list_(pa.list_(pa.float64())),
}
"""Of the columns that `frame_table` makes."""
_ALWAYS = ("image_id", "frame", "label", "top5", "ground_truth")


def read_predictions(run: Path) -> pa.Table:
    """predictions.parquet, as `frame_table` made it. Raises RunError where the file is missing, damaged, or holds other
    columns, types or values (it names the column and the first image)."""
    path = run / PREDICTIONS
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
        table.validate(full=True)
    except FileNotFoundError:
        if not run.is_dir():
            raise RunError(f"{run}: no such run folder") from None
        kept = (run / SUMMARY).exists()
        why = "this record was kept without predictions" if kept else "has this run finished?"
        raise RunError(f"{path}: no such file; {why}") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise RunError(f"{path}: damaged or not a parquet file ({printable(reason)})") from None
    classes = len(read_environment(run)["class_names"]) if (run / ENVIRONMENT).exists() else None
    try:
        table = _typed(table)
        _check(table, classes)
    except ValueError as error:  # pyarrow's errors are among these
        raise RunError(f"{path}: {printable(str(error).splitlines()[0])}") from None
    return table


def _typed(table: pa.Table) -> pa.Table:
    """The table with its columns in `_TYPES`. Raises ValueError for one that is missing, twice there, or no such."""
    names = table.column_names
    if twice := [name for name in _TYPES if names.count(name) > 1]:
        raise ValueError(f"the column {twice[0]} is there twice")
    results = [name for name in RESULTS if {f"{name}_box", f"{name}_iou"} & set(names)] or RESULTS[:1]
    needed = [*_ALWAYS, *(f"{name}_{what}" for name in results for what in ("box", "iou"))]
    needed += _SCORES[1:] if set(_SCORES[1:]) & set(names) else ()
    if missing := sorted(set(needed) - set(names)):
        raise ValueError(f"lacks {', '.join(missing)}; was it written by another version of lchp?")
    for i, name in enumerate(names):
        if name not in _TYPES:
            continue
        found, expected = table[name], _TYPES[name]
        if not _fits(found.type, expected):
            raise ValueError(f"column {name}: {found.type}, expected {expected}")
        try:
            table = table.set_column(i, name, found.cast(expected))
        except pa.ArrowException as error:
            raise ValueError(f"column {name}: {error}") from None
    return table.combine_chunks()


def _fits(found: pa.DataType, expected: pa.DataType) -> bool:
    """Whether another program may have written `expected` so: wider numbers, other lists, null where all is null."""
    if pa.types.is_dictionary(found):
        return _fits(found.value_type, expected)
    if pa.types.is_list(expected) and isinstance(found, (pa.ListType, pa.LargeListType, pa.FixedSizeListType)):
        return _fits(found.value_type, expected.value_type)
    integer = pa.types.is_integer(found)
    return (
        pa.types.is_null(found)
        or (pa.types.is_string(expected) and (pa.types.is_string(found) or pa.types.is_large_string(found)))
        or (pa.types.is_integer(expected) and integer)
        or (pa.types.is_floating(expected) and (pa.types.is_floating(found) or integer))
    )


def _check(table: pa.Table, classes: int | None) -> None:
    """Raises ValueError for values that no run predicts. classes: their number, None where it is not known."""
    if not table.num_rows:
        raise ValueError("no rows")
    ids, frames = (np.array(table[name].to_pylist(), object) for name in ("image_id", "frame"))
    arrays = {name: table[name].combine_chunks() for name in table.column_names if name in _TYPES}

    def refuse(name: str, wrong: np.ndarray, what: str) -> None:
        if wrong.any():
            n, first = int(wrong.sum()), int(wrong.argmax())
            raise ValueError(f"column {name}: {what} in {n} of {len(ids)} rows, first image {ids[first]}")

    def refuse_values(name: str, values: pa.Array, rows: np.ndarray, least: float, most: float) -> None:
        """values: N numbers, of these rows."""
        found = values.cast(pa.float64()).to_numpy(zero_copy_only=False)  # null becomes NaN
        wrong = np.zeros(len(ids), bool)
        wrong[rows[~(np.isfinite(found) & (found >= least) & (found <= most))]] = True
        bounds = f"{least:g} to {most:g}" if np.isfinite(most) else "a finite number"
        refuse(name, wrong, f"expected {bounds}, found another value")

    known = arrays["ground_truth"].is_valid().to_numpy(zero_copy_only=False)
    if known.any():
        refuse("ground_truth", ~known, "null")
    for name, array in arrays.items():
        if known.any() or not (name == "ground_truth" or name.endswith("_iou")):
            refuse(name, array.is_null().to_numpy(zero_copy_only=False), "null")
    refuse("frame", ~np.isin(frames, FRAMES), f"expected {' or '.join(FRAMES)}, found another")
    seen = Counter(zip(frames, ids, strict=True))
    refuse("image_id", np.array([seen[pair] > 1 for pair in zip(frames, ids, strict=True)], bool), "twice in a frame")
    both = Counter(ids)
    refuse("image_id", np.array([both[i] < len(FRAMES) for i in ids], bool), "in one frame only")
    every, last = np.arange(len(ids)), float(2**31 - 1 if classes is None else classes - 1)
    refuse_values("label", arrays["label"], every, 0, last)
    top = _lengths(arrays["top5"])
    refuse("top5", (top < 1) | (top != top[:1]), "no class, or not as many as elsewhere,")
    for name, array in arrays.items():
        if name in ("top5", "top5_score") or name.endswith("_box"):
            refuse(name, _lengths(array) != (4 if name.endswith("_box") else top), "another number of values than due")
            bounds = (0, last) if name == "top5" else (0, 1.001) if name == "top5_score" else (-np.inf, np.inf)
            refuse_values(name, array.flatten(), array.value_parent_indices().to_numpy(), *bounds)
        elif name in _SCORES or (name.endswith("_iou") and known.any()):
            refuse_values(name, array, every, 0, 1.001)
    boxes = arrays["ground_truth"].flatten()
    rows = arrays["ground_truth"].value_parent_indices().to_numpy()
    wrong = np.zeros(len(ids), bool)
    wrong[rows[_lengths(boxes) != 4]] = True
    refuse("ground_truth", wrong, "a box of another number of values than four")
    refuse_values("ground_truth", boxes.flatten(), rows[boxes.value_parent_indices().to_numpy()], 0, 1)


def _lengths(lists: pa.Array) -> np.ndarray:
    """Of each list; -1 of null."""
    return lists.value_lengths().fill_null(-1).to_numpy(zero_copy_only=False)


def results_in(table: pa.Table) -> list[str]:
    """The results that predictions hold, in order."""
    return [name for name in RESULTS if f"{name}_iou" in table.column_names]


def rows_in(table: pa.Table, frame: str) -> pa.Table:
    """The predictions in one frame. Raises RunError where there are none."""
    rows = table.filter(pa.array([f == frame for f in table["frame"].to_pylist()]))
    if not rows.num_rows:
        raise RunError(f"{PREDICTIONS}: no rows for frame {frame}")
    return rows


def summarize(table: pa.Table) -> dict[str, Any]:
    """`results`, `classification` (in center_crop), `floors` and `unboxed` (of the last localizer; see
    `lchp.evaluation.metrics.unboxed`) of predictions, every figure in percent.

    Without ground-truth boxes `results` and `floors` hold None.
    """
    names = results_in(table)
    out: dict[str, Any] = {"results": {n: {} for n in names}, "classification": {}, "floors": {}}
    for frame in FRAMES:
        rows = rows_in(table, frame)
        labels = rows["label"].to_numpy()
        top5 = np.array(rows["top5"].to_pylist())
        known = not rows["ground_truth"].null_count
        truth = _truth(rows) if known else None
        for name in names:
            ious = _checked_ious(rows, name, truth)
            out["results"][name][frame] = localization(ious, top5, labels) if known else dict.fromkeys(METRICS)
        out["floors"][frame] = floors(truth) if truth is not None else dict.fromkeys(FLOORS)
        if frame == "center_crop":
            out["classification"] = classification(top5, labels)
        if "masked_score" in rows.column_names:  # records from before it have none
            boxes = np.array(rows[f"{names[-1]}_box"].to_pylist())
            scores = (rows[name].to_numpy().astype(float) for name in ("crop_score", "masked_score"))
            out.setdefault("unboxed", {})[frame] = unboxed(boxes, *scores)
    return out


def _checked_ious(rows: pa.Table, name: str, truth: GroundTruth | None) -> np.ndarray:
    """IoU of a result's boxes with the ground truth, computed again; RunError if the file says otherwise."""
    if truth is None:
        return np.zeros(0)
    ious = best_iou(np.array(rows[f"{name}_box"].to_pylist(), np.float32), truth)
    off = np.flatnonzero(~np.isclose(ious, rows[f"{name}_iou"].to_numpy(), atol=1e-9))
    if len(off):
        image = rows["image_id"][int(off[0])].as_py()
        raise RunError(
            f"{PREDICTIONS}: {name}_iou does not follow from {name}_box and ground_truth in {len(off)} rows, "
            f"first image {image}; the file was changed"
        )
    return ious


def macro_gt_known(table: pa.Table) -> dict[str, dict[str, float]]:
    """Result -> frame -> GT-Known averaged over classes instead of images (PSOL's habit), in percent."""
    out: dict[str, dict[str, float]] = {}
    for name in results_in(table) if not table["ground_truth"].null_count else ():
        for frame in FRAMES:
            rows = rows_in(table, frame)
            labels = rows["label"].to_numpy()
            out.setdefault(name, {})[frame] = macro_average(rows[f"{name}_iou"].to_numpy(), labels)
    return out


def _truth(rows: pa.Table) -> GroundTruth:
    return GroundTruth.of([np.array(b, np.float64).reshape(-1, 4) for b in rows["ground_truth"].to_pylist()])


def _results_table(record: Mapping[str, Any], *more: list[Any]) -> str:
    """Results x metrics x frames of a summary or of a second classifier's record; more: rows below."""
    columns = [(frame, name) for frame in FRAMES for name in METRICS]
    rows = [[TITLES[r], *(Metric(r, *column).of(record) for column in columns)] for r in record["results"]]
    head = ["", *(f"{METRICS[name]}\n{frame}" for frame, name in columns)]
    return tabulate([*rows, *more], head, tablefmt="simple", floatfmt=".2f", missingval="")


def summary_table(summary: dict[str, Any]) -> str:
    """The closing table: results x metrics x frames, with the floors; what needs no boxes where there are none."""
    if any(v is None for f in summary["floors"].values() for v in f.values()):
        return _table_without_boxes(summary)
    beside = [None] * (len(METRICS) - 1)
    rows = [
        [f"floor: {title}", *(v for f in FRAMES for v in (summary["floors"][f][key], *beside))]
        for key, title in FLOORS.items()
    ]
    top = summary["classification"]
    lines = [
        _results_table(summary, *rows),
        f"\nclassification (center_crop): top-1 {top['top1']:.2f} %, top-5 {top['top5']:.2f} %",
    ]
    lines += _selection_lines(summary)
    lines += [*_below_floor(summary), *_score_map_lines(summary), *_given_lines(summary)]
    kept = summary.get("kept") or {}
    if kept.get("share") is not None:
        share = f"boxes of LCHP-I kept at tau {kept['tau']:g}: {kept['count']} of {kept['total']} training images"
        known = kept.get("gt_known")
        lines.append(
            share + ("" if known is None else f", their GT-Known {known:.2f} % (diagnostic, reads training boxes)")
        )
    return "\n".join(lines)


def _selection_lines(summary: dict[str, Any]) -> list[str]:
    """What was chosen and on which images; and whether stage 2 helped, as far as that can be said without a box."""
    lines, chosen = [], summary.get("chosen")
    if chosen is None:
        lines.append("selection: none; thresholds are the config's, and the last epoch counts (no box chose anything)")
    else:
        of, images = len(chosen["candidates"]), max(c["images"] for c in chosen["candidates"])
        lines.append(
            f"selection: {shown_choice(chosen)}, of {of} candidates by class labels of {images} training "
            "images; the last epoch counts (no box chose anything)"
        )
    if stage2 := summary.get("stage2"):
        gain, error = stage2["gain"], stage2["error"]
        least = max(2 * error, 0.05)  # less is printed as 0
        word = "helped" if gain > least else "made the boxes worse" if gain < -least else "changed little"
        lines.append(
            f"stage 2 {word}, by a score that reads no box, on {stage2['images']} training images: LCHP-I "
            f"{stage2['lchp_i']:z.1f}, LCHP-R {stage2['lchp_r']:z.1f} ({gain:+z.1f}, standard error {error:.1f})"
        )
    return lines


def _below_floor(summary: dict[str, Any]) -> list[str]:
    """A line for each result that does not beat the centred box."""
    return [
        f"{metric.title} ({value:.2f} %) is not above that of the 80 % box ({floor:.2f} %)"
        for metric in (Metric(result, frame) for result in summary["results"] for frame in FRAMES)
        if (value := metric.of(summary)) is not None
        and value <= (floor := summary["floors"][metric.frame]["centre_box"])
    ]


def _score_map_lines(summary: dict[str, Any]) -> list[str]:
    """MaxBoxAcc of a compared method's score maps, and which of it an oracle chose."""
    maps = summary.get("score_maps")
    if not maps:
        return []
    lines = [
        f"its score maps (wsolevaluation's frame): BoxAcc {maps['boxacc']:.2f} %, V2 {maps['boxacc_v2']:.2f} % at "
        f"threshold {maps['threshold']:g}; MaxBoxAcc {maps['oracle_maxboxacc']:.2f} % (oracle, at "
        f"{maps['oracle_threshold']:.3g}), V2 {maps['oracle_maxboxacc_v2']:.2f} % (oracle)"
    ]
    if maps.get("oracle_validation_threshold") is not None:
        lines.append(
            f"  at {maps['oracle_validation_threshold']:.3g}, chosen on the boxes of held-out training images: BoxAcc "
            f"{maps['oracle_validation_boxacc']:.2f} %, V2 {maps['oracle_validation_boxacc_v2']:.2f} %"
        )
    return lines


def _given_lines(summary: dict[str, Any]) -> list[str]:
    """What the file of the method `boxes` holds, and how good its training boxes are."""
    given = summary.get("given")
    if not given:
        return []
    of_test = f"of {given['test']} test images" if given["test"] else "of no test image"
    lines = [f"the file has boxes of {given['boxed']} of {given['images']} training images, and {of_test}"]
    for frame in FRAMES:
        if known := given.get(frame):
            figures = f"GT-Known {known['gt_known']:.2f} %, mean IoU {known['mean_iou']:.2f} %"
            lines.append(
                f"  its training boxes in {frame}: {figures} (diagnostic, reads training boxes; an image without one "
                "counts as missed)"
            )
    return lines


def second_classifier_table(record: SecondClassifier) -> str:
    """What `lchp.deploy.second_classifier` found, as a table that says whose classes they are."""
    about, top = record["classifier"], record["classification"]
    said = f"{about['backbone']} ({about['method']}) of run {about['run']}, {counted(record['crops'], 'crop')}"
    return _results_table(record) + f"\n\nclasses by {said}: top-1 {top['top1']:.2f} %, top-5 {top['top5']:.2f} %"


def _table_without_boxes(summary: dict[str, Any]) -> str:
    consistency = summary.get("consistency") or {}
    rows = [[TITLES[n], consistency.get(n)] for n in summary["results"]]
    kept = summary.get("kept") or {}
    lines = [
        "No ground-truth boxes: only what needs none.",
        tabulate(rows, ["", "consistency (mean IoU with flipped and scaled views, %)"], floatfmt=".2f"),
        f"\nclassification (center_crop): top-1 {summary['classification']['top1']:.2f} %",
        *_selection_lines(summary),
        *_given_lines(summary),
    ]
    if kept.get("share") is not None:
        mean = kept.get("mean_confidence")
        lines.append(
            f"boxes of LCHP-I kept at tau {kept['tau']:g}: {kept['share']:.2f} % of {kept['total']} training images"
            + ("" if mean is None else f", mean confidence {mean:.2f} %")
        )
    return "\n".join(lines)
