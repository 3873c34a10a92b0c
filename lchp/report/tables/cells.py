"""The cells of a table of any fields: which runs, each training once, and which settings are in one cell."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pandas as pd

from lchp.config import short_name, values_text
from lchp.errors import ConfigError, RunError
from lchp.evaluation.metrics import FRAMES, METRICS, RESULTS, TITLES
from lchp.report.dependence import counts, is_complete, is_from_file, result_of, results
from lchp.report.read import Records
from lchp.report.select import (
    IDENTITY,
    Group,
    canonical,
    once,
    require,
    require_field,
    rows,
    show,
    sorted_values,
    split,
)
from lchp.report.tables.grid import Measure, TableCell, cell_of

LAST = "last"
"""Of `FieldTable.result`: each run's last, with columns of its own in the runs."""
NO_PART = "no part"
"""Value of a field on which a run's result does not depend."""


@dataclass(frozen=True)
class FieldTable:
    """What a table of one's own shows. rows: fields; columns: `results` (the metric of each result), `metrics` (all of
    METRICS, of the result), or a field; result, metric: of a cell; where: values of fields that the runs must have;
    baseline: a field of the table and its value, from which each cell's difference is shown.

    Raises ConfigError for what is no field, or none of the table's.
    """

    rows: tuple[str, ...]
    columns: str = "results"
    result: str = LAST
    metric: str = "gt_known"
    where: Mapping[str, Any] = field(default_factory=dict)
    baseline: tuple[str, Any] | None = None

    def __post_init__(self) -> None:
        if not self.rows:
            raise ConfigError("--rows: expected at least one field")
        for name in self.rows:
            require_field(name, "--rows")
        require_field(self.columns, "--columns takes results, metrics or a field", ("results", "metrics"))
        if twice := [n for n in self.fields if self.fields.count(n) > 1]:
            raise ConfigError(f"--rows and --columns: {twice[0]} is there twice")
        if self.baseline is not None and self.baseline[0] not in self.fields:
            listed = ", ".join(self.fields)
            raise ConfigError(f"--baseline {self.baseline[0]}: is no field of this table, whose fields are {listed}")

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that tell cells apart."""
        return self.rows if self.columns in ("results", "metrics") else (*self.rows, self.columns)

    @property
    def name(self) -> str:
        """Of its files, `table_NAME.md`."""
        return "_".join([*map(short_name, self.rows), "by", short_name(self.columns)]).replace(".", "_")


@dataclass(frozen=True)
class CellRuns:
    """The runs of one cell. values: of the table's fields; measure: what is shown; settings: those that differ in the
    seed alone together, each training once; lost: failed cells without a result."""

    values: Mapping[str, Any]
    measure: Measure
    settings: tuple[Group, ...]
    lost: pd.DataFrame

    @cached_property
    def runs(self) -> pd.DataFrame | None:
        """All of them."""
        return pd.concat([group.runs for group in self.settings]) if self.settings else None

    def in_frame(self, frame: str) -> TableCell:
        """The figure; where it is of several settings it says so."""
        path = self.measure.path.format(frame=frame)
        cell = cell_of(self.runs, self.lost, path, self.measure, frame, None, trained=not self.maps)
        if cell.mean is None:
            return cell
        there = len(self.figured)
        return replace(cell, ours=f"{cell.ours[:-1]}; {there} settings)") if there > 1 else cell

    @cached_property
    def figured(self) -> tuple[Group, ...]:
        """The settings that have a figure; a cell of several mixes what is not alike."""
        paths = [self.measure.path.format(frame=frame) for frame in FRAMES]
        return tuple(group for group in self.settings if group.runs[paths].notna().to_numpy().any())

    @property
    def label(self) -> str:
        """Its values, for a note."""
        return values_text(self.values)

    @cached_property
    def maps(self) -> bool:
        """Whether all are score maps' boxes or a file's, which no training makes."""
        runs = [] if self.runs is None else self.runs.to_dict("records")
        mapped = (not is_complete(run) and result_of(run) == "pseudo_label" for run in runs)
        given = (_of_file(run, self.measure.result) for run in runs)
        return bool(runs) and all(a or b for a, b in zip(mapped, given, strict=True))


@dataclass(frozen=True)
class FieldCells:
    """A table's cells before they are figures. runs, failures: all that meet the conditions; rows: a row's cells, one
    per measure."""

    runs: pd.DataFrame
    failures: pd.DataFrame
    measures: tuple[Measure, ...]
    rows: tuple[tuple[CellRuns, ...], ...]

    @property
    def all(self) -> Iterator[CellRuns]:
        """Row by row."""
        return (cell for row in self.rows for cell in row)


def find_cells(records: Records, asked: FieldTable) -> FieldCells:
    """The runs of a table. Raises ConfigError for a condition that no run meets, RunError where there is no run."""
    require(records, asked.where)
    frames = [canonical(records.runs), canonical(records.failures)]
    for name, value in asked.where.items():
        frames = [rows(frame, (v == value for v in frame[name])) for frame in frames]
    runs, failures = frames
    if runs.empty:
        raise RunError("; ".join(["no finished run to make a table of", *records.problems[:3]]))
    if asked.baseline is not None:
        require(replace(records, runs=runs), dict([asked.baseline]), "--baseline")
    runs = runs.assign(**_last(runs))
    done = set(records.runs["key"])
    failures = rows(failures, (key not in done for key in failures["key"])).drop_duplicates("key")
    lost = pd.Series([(*gone, LAST) for gone in failures["lost"]], failures.index, dtype=object)
    failures = failures.assign(lost=lost)
    columns = _columns(runs, failures, asked)
    once_each = {result: _distinct(runs, result) for result in dict.fromkeys(m.result for m, _ in columns)}
    found = [
        tuple(_cell({**row, **of}, measure, runs, once_each[measure.result], failures) for measure, of in columns)
        for row in _combinations(runs, failures, asked.rows)
    ]
    return FieldCells(runs, failures, tuple(m for m, _ in columns), tuple(found))


def _last(runs: pd.DataFrame) -> dict[str, list[float]]:
    """Columns of each run's last result."""
    last = [result_of(run) for run in runs.to_dict("records")]
    paths = [f"{frame}/{metric}" for frame in FRAMES for metric in METRICS]
    of = {(r, path): runs[f"results/{r}/{path}"].to_numpy() for r in set(last) for path in paths}
    return {f"results/{LAST}/{path}": [of[r, path][i] for i, r in enumerate(last)] for path in paths}


def _columns(runs: pd.DataFrame, failures: pd.DataFrame, asked: FieldTable) -> list[tuple[Measure, dict[str, Any]]]:
    """Each column's measure, and the values of fields that its cells have."""
    path = "results/{result}/{{frame}}/{metric}"
    if asked.columns == "results":
        there = [r for r in RESULTS if f"results/{r}/{FRAMES[0]}/{asked.metric}" in runs]
        named = [(TITLES[r], r, asked.metric, {}) for r in there]
    elif asked.columns == "metrics":
        named = [(title, asked.result, metric, {}) for metric, title in METRICS.items()]
    else:
        each = _combinations(runs, failures, (asked.columns,))
        named = [(show(values[asked.columns]), asked.result, asked.metric, values) for values in each]
    return [(Measure(t, path.format(result=r, metric=m), "", r), values) for t, r, m, values in named]


def _combinations(runs: pd.DataFrame, failures: pd.DataFrame, names: Sequence[str]) -> list[dict[str, Any]]:
    """The values of some fields that occur together, in order."""
    pairs = {row for frame in (runs, failures) for row in zip(*(frame[n] for n in names), strict=True)}
    order = [sorted_values(column) for column in zip(*pairs, strict=True)]
    keyed = sorted(pairs, key=lambda row: [values.index(v) for values, v in zip(order, row, strict=True)])
    return [dict(zip(names, row, strict=True)) for row in keyed]


def _distinct(runs: pd.DataFrame, result: str | None) -> pd.DataFrame:
    """The runs that have a result, without the values of fields on which it does not depend: what one training gave
    many runs is one."""
    records = runs.to_dict("records")
    whose = [result_of(run) if result == LAST else result for run in records]
    there = [i for i, run in enumerate(records) if whose[i] in results(run) or _of_file(run, whose[i])]
    values = {
        name: pd.Series(
            [records[i][name] if counts(name, records[i], whose[i]) else NO_PART for i in there], dtype=object
        ).set_axis(runs.index[there])
        for name in IDENTITY
    }
    return runs.iloc[there].assign(**values)


def _of_file(run: Mapping[str, Any], result: str | None) -> bool:
    """Whether a result is boxes of test images that a file holds, which no link made."""
    known = run.get(f"results/pseudo_label/{FRAMES[0]}/gt_known", math.nan)
    return result == "pseudo_label" and is_from_file(run) and not math.isnan(known)


def _cell(
    values: Mapping[str, Any], measure: Measure, runs: pd.DataFrame, distinct: pd.DataFrame, failures: pd.DataFrame
) -> CellRuns:
    def having(frame: pd.DataFrame) -> pd.DataFrame:
        return rows(frame, (row == tuple(values.values()) for row in zip(*(frame[n] for n in values), strict=True)))

    mine = distinct.loc[[i for i in having(runs).index if i in distinct.index]]
    groups = [once(group, (f"results/{measure.result}/",)) for group in split(mine, None)]
    # as they were, for what asks of their methods
    groups = [replace(group, runs=runs.loc[group.runs.index]) for group in groups]
    return CellRuns(values, measure, tuple(groups), having(failures))
