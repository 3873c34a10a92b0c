"""A table of any fields over any records, and what its runs differ in besides; with a baseline, the differences."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from lchp.config import PRESETS, short_name
from lchp.data import DATASETS
from lchp.errors import RunError
from lchp.evaluation.metrics import FRAMES, METRICS, TITLES
from lchp.report.compare import PairReader
from lchp.report.paired import holm
from lchp.report.paper import Paper
from lchp.report.read import Records
from lchp.report.select import FINGERPRINT, IDENTITY, RECIPE, Group, show, sorted_values
from lchp.report.tables.cells import NO_PART, CellRuns, FieldCells, FieldTable, find_cells
from lchp.report.tables.grid import (
    DATA,
    NO_BOXES,
    Row,
    Section,
    Table,
    TableCell,
    failed_notes,
    failed_runs,
    floor_notes,
    lost_notes,
    origin_of,
    part_of,
    ranked_rows,
    shortened,
    unlike_paper,
)

DIFFER = "cells differ too"
CHOOSE = "--where FIELD=VALUE or --sweep NAME chooses among the runs"
UNBOXED = f"{NO_BOXES}: python analysis/rank_unboxed.py ranks LCHP's settings without any (docs/measuring.md)"
"""Notes, or how they begin."""


def field_table(records: Records, asked: FieldTable) -> Table:
    """The table, with both frames. Raises as `find_cells`."""
    found = find_cells(records, asked)
    part = part_of(_of_one_data(found.runs))
    body = {frame: [[cell.in_frame(frame) for cell in row] for row in found.rows] for frame in FRAMES}
    notes, mixed = _differing(found, asked)
    measures = [
        replace(measure, ranked=all(len(cell.figured) < 2 for cell in column))
        for measure, column in zip(found.measures, zip(*found.rows, strict=True), strict=True)
    ]
    if asked.baseline is not None:
        notes += add_differences(found, asked.baseline, body)
    sections = []
    for frame, cells in body.items():
        labels = [tuple(show(row[0].values[name]) for name in asked.rows) for row in found.rows]
        shown = [Row(label, tuple(of_row)) for label, of_row in zip(labels, cells, strict=True)]
        data = ", ".join(DATA[name] for name in sorted(set(found.runs["data.name"])))
        sections.append(Section(data, frame, ranked_rows(shown, measures, Paper({}), 0), part))
    if len(set(found.runs[FINGERPRINT])) == 1:
        notes += floor_notes(found.runs)
    if any(cell.ours == NO_BOXES for section in sections for row in section.rows for cell in row.cells):
        notes.append(UNBOXED)
    notes += failed_notes(_failed(found))
    notes += dict.fromkeys(note for cell in found.all for group in cell.settings for note in group.notes)
    notes += lost_notes(found.failures, None)
    caption = f"Data: {', '.join(dict.fromkeys(section.title.rpartition(', ')[0] for section in sections))}. "
    caption += f"{origin_of(records, found.runs)}."
    if (group := _of_one_data(found.runs)) is not None:
        first, name = group.runs.iloc[0].to_dict(), group.base["data.name"]
        differing = [n for n in IDENTITY if len(set(group.runs[n])) > 1]
        paper = PRESETS[name if DATASETS[name].published else "cub"]
        caption += f" {unlike_paper(first, int(first['classes']), paper, differing)}."
    measured = "" if asked.columns == "metrics" else f"{METRICS[asked.metric]} (%)"
    whose = "" if asked.columns == "results" else f" of {TITLES.get(asked.result, 'the last result')}"
    title = f"{measured or 'Metrics (%)'}{whose} by {' and '.join(asked.fields)}"
    head, columns = tuple(map(short_name, asked.rows)), tuple(m.title for m in found.measures)
    against = None if asked.baseline is None else f"less {short_name(asked.baseline[0])} {show(asked.baseline[1])}"
    return Table(
        asked.name,
        title,
        caption,
        head,
        columns,
        tuple(sections),
        tuple(notes),
        compared=False,
        against=against,
        mixed=mixed,
    )


def _failed(found: FieldCells) -> list[str]:
    """A line for each run, result and frame whose training failed."""
    lines = dict.fromkeys(
        f"{cell.label}, {line}"
        for cell in found.all
        if cell.measure.result and not cell.maps
        for group in cell.settings
        for line in failed_runs(group, None, [cell.measure.result])
    )
    return [*lines]


def _of_one_data(runs: pd.DataFrame) -> Group | None:
    """All runs, where they are on one data set with one number of classes."""
    one = len(set(zip(runs["data.name"], runs["classes"], strict=True))) == 1
    return Group(None, {"data.name": runs["data.name"].iloc[0]}, runs) if one else None


def _differing(found: FieldCells, asked: FieldTable) -> tuple[list[str], tuple[str, ...]]:
    """What the runs with a figure differ in beside the table's fields and the seed, within cells and from cell to cell:
    in words; and the fields of which a cell mixes values."""
    notes, mixed = [], []
    for name in (n for n in (*IDENTITY, FINGERPRINT, RECIPE) if n not in asked.fields):
        cells: dict[tuple[str, ...], dict[str, None]] = {}
        for cell in found.all:
            values = sorted_values(v for group in cell.figured if (v := group.base[name]) != NO_PART)
            if values:
                cells.setdefault(tuple(map(show, values)), {})[cell.label] = None
        if len(cells) < 2 and all(len(values) == 1 for values in cells):
            continue
        *few, most = sorted(cells, key=lambda values: (len(cells[values]), -len(values)))
        each = [f"{'; '.join(shortened(list(cells[values])))}: {_listed(values)}" for values in few]
        rest = "all" if not few else "the others" if len(cells[most]) > 1 else next(iter(cells[most]))
        each.append(f"{rest}: {_listed(most)}")
        if any(len(values) > 1 for values in cells):
            mixed.append(name)
        what = "cells mix runs that differ in" if name in mixed else f"{DIFFER} in"
        notes.append(f"{what} {name} ({'; '.join(each)})")
    if notes:
        notes.append(CHOOSE + "; a column in which a cell mixes runs has no best" * bool(mixed))
    return notes, tuple(mixed)


def _listed(values: Sequence[str]) -> str:
    """`0.5, 0.6 and 0.7`."""
    return " and ".join(text for text in (", ".join(values[:-1]), values[-1]) if text)


def add_differences(
    found: FieldCells, baseline: tuple[str, Any], body: Mapping[str, list[list[TableCell]]]
) -> list[str]:
    """Puts into each cell of `body` (frame -> rows) its difference from the cell that has the baseline's value, with
    p-values after Holm's correction over the whole table. Returns what is to be said of them."""
    name, value = baseline
    places = {(*cell.values.items(), cell.measure): cell for cell in found.all}
    in_column = {(*cell.values.items(),): cell for cell in found.all}  # a column's field has a measure per value
    reader, notes, seeds = PairReader(), dict[str, None](), set[int]()
    made: list[tuple[list[TableCell], int]] = []
    for frame, cells in body.items():
        for row, shown in zip(found.rows, cells, strict=True):
            for i, cell in enumerate(row):
                own = ({**cell.values, name: value}).items()
                other = places.get((*own, cell.measure), in_column.get((*own,)))
                if cell.values[name] == value or shown[i].mean is None:
                    continue
                try:
                    (a, b), also = _settings_of(cell, other)
                    if a.base.get(name) == b.base.get(name) == NO_PART:  # the same training: nothing to test
                        continue
                    less = reader.difference(a.runs, b.runs, cell.measure.path.format(frame=frame))
                except RunError as error:
                    notes[f"no difference of {cell.label}: {error}"] = None
                    continue
                notes |= dict.fromkeys(also)
                seeds.add(less.seeds)
                shown[i] = replace(shown[i], less=less)
                made.append((shown, i))
    there = [(shown, i, less) for shown, i in made if (less := shown[i].less) is not None]
    for (shown, i, less), p in zip(there, holm([less.p for _, _, less in there]), strict=True):
        shown[i] = replace(shown[i], less=replace(less, adjusted=p))
    return [*_about(there[0][2].images, seeds, len(there)), *notes] if there else [*notes]


def _settings_of(cell: CellRuns, other: CellRuns | None) -> tuple[tuple[Group, Group], list[str]]:
    """A setting of each: the one pair that differs in the table's fields alone, else the only ones; and what is to be
    said of these. Raises RunError where there is no such pair, or both saw other images."""

    def away(a: Group, b: Group) -> list[str]:
        pairs = ((n, a.base[n], b.base[n]) for n in a.base if n not in cell.values)
        return [n for n, x, y in pairs if NO_PART not in (x, y) and x != y]

    if other is None or not other.settings:
        raise RunError("the baseline was not run there")
    pairs = [(a, b) for a in cell.settings for b in other.settings]
    alike = [(a, b) for a, b in pairs if not away(a, b)]
    if len(alike) != 1 and len(pairs) != 1:
        raise RunError(f"{len(alike) or 'no'} settings of both differ in the table's fields alone; {CHOOSE}")
    a, b = (alike or pairs)[0]
    names = away(a, b)
    if FINGERPRINT in names:
        raise RunError("its runs and the baseline's have different test images")
    each = ", ".join(f"{n} {show(a.base[n])} ({show(b.base[n])})" for n in names)
    said = [f"{cell.label} differs from the baseline, in brackets, also in {each}"] if each else []
    return (a, b), said + [f"the difference of {cell.label} is of the one setting that both have"] * (len(pairs) > 1)


def _about(images: int, seeds: set[int], count: int) -> list[str]:
    one = ", ".join(map(str, sorted(seeds)))
    how = (
        f"differences: over the {one} seed{'s' * (seeds != {1})} that both have and {images} test images, in points; "
        f"95 % interval by a paired hierarchical bootstrap; p after Holm's correction over {count} differences"
    )
    alone = "where there is one common seed, seeds are not in the interval and p: they are of the test images alone"
    return [how, alone] if 1 in seeds else [how]
