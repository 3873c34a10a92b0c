"""Every trial of a report page: setting, figures, time, and its training as two small drawings."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from lchp.config import Preset, show, to_flat
from lchp.errors import RunError
from lchp.evaluation.metrics import RESULTS
from lchp.evaluation.predictions import TITLES
from lchp.files.runs import STAGES, link_folders, read_environment
from lchp.report.dependence import is_complete, kinds, result_of, stage1
from lchp.report.figures.run_files import metrics_of
from lchp.report.read import METHOD, OF_COMPARED, Records
from lchp.report.select import AXES, DELTA, IDENTITY, TAU, canonical, place, rows
from lchp.report.tables.grid import DATA, NO_BOXES, NOT_GIVEN, diverged

MOST_CURVES = 500
"""Trials whose curves are drawn: a page of thousands would not open on a phone."""
MOST_FIELDS = 6
"""Fields with a column of their own; further ones share a column."""
MOST_POINTS = 60

OF_METHOD = ("method.name", "method.localizer", "method.refine")
"""What a method's title says: without columns of their own where there is one of titles."""

STYLES = {"stage 1": "s1", "stage 2": "s2", "regression": "s3"}
"""Of curves, in report.css."""
WIDTH, HEIGHT, MARGIN = 116.0, 28.0, 2.5
"""Of a small drawing, in px."""


@dataclass(frozen=True)
class Head:
    """Of a column. about: smaller, below the title; hint: what the title is short for; text: whether it holds words,
    which stand on the left."""

    title: str
    about: str = ""
    hint: str = ""
    text: bool = False


@dataclass(frozen=True)
class Value:
    """A cell. order: what it is sorted by, None for its text; flag: a warning behind the text; hint: what it is short
    for; drawing: stands in the text's place."""

    text: str
    order: float | None = None
    flag: str = ""
    hint: str = ""
    drawing: Markup | None = None


@dataclass(frozen=True)
class TrialTable:
    """The trials on one data set, a row each; fields that no two of them differ in have no column."""

    data: str
    name: str
    head: tuple[Head, ...]
    trials: tuple[tuple[Value, ...], ...]


@dataclass(frozen=True)
class Trials:
    """tables: the preset's data set first; seconds: wall time of all trainings, a shared link once; low: results
    (trial and frame) of a training below the box over the whole frame; notes: what is not shown, and why."""

    tables: tuple[TrialTable, ...]
    seconds: float
    low: int
    notes: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many trials there are."""
        return sum(len(t.trials) for t in self.tables)


def read_trials(records: Records, preset: Preset) -> Trials:
    """All runs, by setting and seed. A trial whose metrics cannot be read has no curves, and a note says so."""
    reader, tables = _TrialReader(), []
    runs = canonical(records.runs)
    own = preset.config.data.name
    for name in sorted(set(runs["data.name"]), key=lambda n: (n != own, n)):
        of_data = rows(runs, (n == name for n in runs["data.name"]))
        tables.append(_table(name, of_data, to_flat(preset.config), reader))
    words = f"Of a compared method {', '.join(OF_COMPARED.values())}; the last of them is its result."
    notes = [] if all(map(is_complete, runs.to_dict("records"))) else [words]
    if reader.left_out:
        total = sum(len(t.trials) for t in tables)
        notes.append(
            f"Curves are drawn for the first {MOST_CURVES} of {total} trials, so that the page stays small; those of "
            "the others are in their run folders, metrics.jsonl."
        )
    if reader.without_curves:
        more = f" (and {len(reader.without_curves) - 1} more)" if len(reader.without_curves) > 1 else ""
        notes.append(f"No curves where there are no metrics: {reader.without_curves[0]}{more}.")
    notes += [f"No time of stage 1: {line}." for line in reader.without_times]
    if reader.without_stage1:
        notes.append(
            f"{reader.without_stage1} of the trials: the run folder of their stage 1 is not in the storage, so its "
            "time and curves are missing."
        )
    seconds = sum(v for v in reader.totals.values() if not math.isnan(v))
    return Trials(tuple(tables), seconds, reader.low, tuple(notes))


def duration(seconds: float) -> str:
    """As one reads it: `22 s`, `12.3 min`, `5.2 h`; - for NaN."""
    if math.isnan(seconds):
        return "-"
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


class _TrialReader:
    """What is read beside the records' table: times of earlier links, and the metrics of the first trials. totals:
    seconds of every run folder that has a part in a trial."""

    def __init__(self) -> None:
        self.totals: dict[Path, float] = {}
        self.low = self.drawn = self.left_out = self.without_stage1 = 0
        self.without_curves: list[str] = []
        self.without_times: list[str] = []

    def times(self, row: Mapping[str, Any]) -> tuple[float, float]:
        """Seconds of both stages, evaluation included; NaN where not recorded."""
        run, first = Path(row["folder"]), stage1(row)
        total = self.totals[run] = float(row.get("wall_seconds/total", math.nan))
        places = link_folders(run, kinds(row))
        own = [float(row.get(f"wall_seconds/{STAGES[kind]}", math.nan)) for kind in first if places[kind] == run]
        there = [seconds for seconds in own if not math.isnan(seconds)]
        earlier = dict.fromkeys(folder for kind in first if (folder := places[kind]) != run)
        later = dict.fromkeys(f for f in places.values() if f != run and f not in earlier)
        self.without_stage1 += not all(folder.is_dir() for folder in earlier)
        before = [self._total(folder) for folder in earlier]
        rest = total - sum(there) + sum(map(self._total, later))
        return (sum(there) + sum(before) if there or before else math.nan), rest

    def _total(self, folder: Path) -> float:
        """Seconds of an earlier link's run folder."""
        if folder not in self.totals:
            try:
                spent = (read_environment(folder).get("wall_seconds") or {}).get("total", math.nan)
            except RunError as error:
                spent = math.nan
                if folder.is_dir():
                    self.without_times.append(str(error))
            self.totals[folder] = float(spent)
        return self.totals[folder]

    def curves(self, run: Path) -> tuple[Value, Value]:
        if self.drawn == MOST_CURVES:
            self.left_out += 1
            return Value("-"), Value("-")
        self.drawn += 1
        try:
            return loss_and_shares(metrics_of(run))
        except RunError as error:
            self.without_curves.append(str(error))
            return Value("-"), Value("-")


def _table(name: str, runs: pd.DataFrame, recipe: Mapping[str, Any], reader: _TrialReader) -> TrialTable:
    mixed = any(name != recipe["method.name"] for name in runs["method.name"])
    named = (*AXES, *(n for n in IDENTITY if n not in AXES and not (mixed and n in OF_METHOD)))
    fields = [f for f in named if f in (DELTA, TAU) or len(set(runs[f])) > 1]
    shown, rest = fields[:MOST_FIELDS], fields[MOST_FIELDS:]
    short = [f.rpartition(".")[2] for f in shown]
    titles = [s if short.count(s) == 1 else f for f, s in zip(shown, short, strict=True)]
    words = [not any(isinstance(v, (int, float)) for v in runs[f]) for f in shown]
    head = [Head("method", text=True)] if mixed else []
    head += [Head(t, hint=f, text=w) for t, f, w in zip(titles, shown, words, strict=True)]
    head += [Head("other fields", hint="where they are not the preset's", text=True)] if rest else []
    head += [Head("seed"), *(Head(TITLES[r], "GT-Known\ncenter_crop") for r in RESULTS)]
    last = "result" if mixed else TITLES["lchp_r"]
    head += [Head(last, text=True)] if mixed else []
    head += [Head(last, "Top-1\ncenter_crop"), Head(last, "GT-Known\nfull_image")]
    head += [Head("classifier", "top-1"), Head("kept", "% of boxes", "LCHP-I's training boxes with confidence > tau")]
    measured = [runs[c] for r in RESULTS if (c := f"consistency/{r}") in runs]
    consistent = any(not math.isnan(v) for column in measured for v in column)
    head += [Head("consistency", f"{last}, %")] if consistent else []
    head += [Head("loss", hint="sorted by the last epoch's"), Head("top-1, kept", "%", "sorted by the last epoch's")]
    head += [Head("stage 1", "time"), Head("stage 2", "time"), Head("ended", "UTC"), Head("run", text=True)]
    trials = []
    for row in sorted(runs.to_dict("records"), key=lambda r: _place_in_order(r, fields, recipe)):
        result = result_of(row)
        values = [Value(row[METHOD])] if mixed else []
        values += [Value(show(row[f]), *_order(row[f])) for f in shown]
        if rest:
            away = [f"{f} {show(row[f])}" for f in rest if row[f] != recipe[f]]
            values.append(Value(", ".join(away) or "-"))
        values.append(Value(str(row["seed"]), row["seed"]))
        values += [_known(row, r, "center_crop", reader) for r in RESULTS]
        boxless = math.isnan(float(row["floors/center_crop/full_box"]))
        values += [Value(TITLES[result])] if mixed else []
        values += [_percent(row, f"results/{result}/center_crop/top1_loc", NO_BOXES if boxless else NOT_GIVEN)]
        values += [_known(row, result, "full_image", reader)]
        values += [_percent(row, "classification/top1"), _percent(row, "kept/share")]
        values += [_percent(row, f"consistency/{result}")] if consistent else []
        values += reader.curves(Path(row["folder"]))
        values += [Value(duration(s), _finite(s)) for s in reader.times(row)]
        date = str(row["date"])[:16].replace("T", " ") if row["date"] is not None else "-"
        values += [Value(date), Value(str(row["key"]), hint=place(pd.Series(row)))]
        trials.append(tuple(values))
    return TrialTable(DATA[name], name, tuple(head), tuple(trials))


def _order(value: Any) -> tuple[float | None]:
    return (float(value) if isinstance(value, (int, float)) else None,)


def _place_in_order(row: Mapping[str, Any], fields: Sequence[str], recipe: Mapping[str, Any]) -> tuple[Any, ...]:
    each = [(0, row[f], "") if isinstance(row[f], (int, float)) else (1, 0, show(row[f])) for f in fields]
    method = (row["method.name"] != recipe["method.name"], row[METHOD])  # the recipe's own first
    return *method, *each, row["seed"], row["folder"]


def _percent(row: Mapping[str, Any], path: str, absent: str = "-") -> Value:
    value = float(row.get(path, math.nan))
    return Value(absent) if math.isnan(value) else Value(f"{value:.2f}", value)


def _known(row: Mapping[str, Any], result: str, frame: str, reader: _TrialReader) -> Value:
    floor = float(row[f"floors/{frame}/full_box"])
    # where the images have boxes, a result that is not there is one that the method has not
    found = _percent(row, f"results/{result}/{frame}/gt_known", NO_BOXES if math.isnan(floor) else NOT_GIVEN)
    if found.order is None or not diverged(found.order, floor):
        return found
    reader.low += result != "pseudo_label" or is_complete(row)  # a score map's box is no training's
    return Value(found.text, found.order, "below floor", f"the box over the whole frame has {floor:.2f}")


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else value


def loss_and_shares(metrics: Sequence[Any]) -> tuple[Value, Value]:
    """Two small drawings of a run's lines of metrics.jsonl, stage 1 on the left, with the localizer's regression behind
    it where that was a training of its own: the losses, each over its own range; and in percent the training accuracy
    of the classifier (stage 1) and the share of boxes kept (stage 2).
    """
    first, middle, second = (
        [m for m in metrics if m["stage"] == stage] for stage in ("initialization", "regression", "refinement")
    )
    between = {"regression, loss": _numbers(middle, "loss")} if middle else {}
    losses = {"stage 1, loss": _numbers(first, "loss"), **between, "stage 2, loss": _numbers(second, "loss")}
    shares = {"stage 1, top-1 %": _numbers(first, "top1"), "stage 2, kept %": _numbers(second, "kept")}
    return _drawn(losses, None), _drawn(shares, (0.0, 100.0))


def _drawn(parts: Mapping[str, Sequence[float]], limits: tuple[float, float] | None) -> Value:
    last = [values[-1] for values in parts.values() if values]
    return Value("-", last[-1], drawing=sparkline(parts, limits)) if last else Value("-")


def _numbers(lines: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    values = (m.get(key) for m in lines)
    return [float(v) for v in values if isinstance(v, (int, float)) and math.isfinite(v)]


def sparkline(parts: Mapping[str, Sequence[float]], limits: tuple[float, float] | None = None) -> Markup:
    """Curves side by side in one small SVG, each as wide as it has points, and in words for who cannot see them.

    parts: name -> values; limits: the values at the bottom and at the top, None for each part's own range.
    """
    total = sum(map(len, parts.values()))
    out, words, left = [], [], 0.0
    for name, values in parts.items():
        if not values:
            continue
        width, n = WIDTH * len(values) / total, len(values)
        low, high = limits or (min(values), max(values))
        kept = [i for i in range(n) if i % math.ceil(n / MOST_POINTS) == 0 or i == n - 1]
        step = (width - 2 * MARGIN) / max(1, n - 1)
        xs = [left + MARGIN + step * i if n > 1 else left + width / 2 for i in kept]
        share = [(values[i] - low) / (high - low) if high > low else 0.5 for i in kept]
        ys = [HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * min(1.0, max(0.0, s)) for s in share]
        if left:
            out.append(f'<path class="rule" d="M{left:.1f} 0V{HEIGHT:g}"/>')
        style = STYLES.get(name.partition(",")[0], "s1")
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
        out.append(f'<polyline class="{style}" points="{points}"/>' if n > 1 else "")
        out.append(f'<circle class="{style}" cx="{xs[-1]:.1f}" cy="{ys[-1]:.1f}" r="1.8"/>')
        words.append(f"{name}: {values[0]:.4g} to {values[-1]:.4g} in {n} epoch{'s' * (n > 1)}")
        left += width
    svg = Markup('<svg class="spark" viewBox="0 0 {:g} {:g}" role="img"><title>{}</title>{}</svg>')
    return svg.format(WIDTH, HEIGHT, "; ".join(words), Markup("".join(out)))  # numbers only: nothing to escape
