"""Figures of any field: lines with bands over one, a heatmap over two; of the tables of `lchp.report.tables.fields`."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lchp.config import Preset, short_name
from lchp.errors import RunError
from lchp.report.figures.style import (
    BLUE,
    COLUMN,
    CURVES,
    DASHES,
    GREEN,
    ORANGE,
    SMALL,
    VERMILLION,
    Drawing,
    Mark,
    style,
)
from lchp.report.read import Records
from lchp.report.select import DELTA, FINGERPRINT, IDENTITY, RECIPE, TAU, canonical, choose, rows
from lchp.report.tables.cells import FieldTable
from lchp.report.tables.fields import CHOOSE, DIFFER, field_table
from lchp.report.tables.grid import Section, Table

MOST = 4
"""Heatmaps on one page; further ones are drawn by lchp table --figure."""
_NUMBER = re.compile(r"[-+]?[\d.]+(?:e[-+]?\d+)?")
_SLANTED: Mapping[str, Any] = {"rotation": 20, "ha": "right", "rotation_mode": "anchor"}
"""Words along an axis, which would run into each other."""
_MARKS: Mapping[str, Mark] = dict(zip(("LCHP-R", "LCHP-I", "Pseudo Label"), reversed(CURVES.values()), strict=True))
_OTHERS = (Mark(BLUE, "-", "^"), Mark(ORANGE, "-", "o"), Mark(GREEN, DASHES["dashed"], "s"), Mark(VERMILLION, "-", "D"))


def figure_of(made: Table, asked: FieldTable) -> Drawing:
    """A field table as lines, or where its columns are a field as a heatmap; in both frames. Raises RunError where it
    has several fields of rows, no figure, or a cell that mixes runs."""
    if len(asked.rows) > 1:
        raise RunError(f"a figure shows one field of rows, not {', '.join(asked.rows)}")
    if all(cell.mean is None for section in made.sections for row in section.rows for cell in row.cells):
        raise RunError(f"no figure of {' and '.join(asked.fields)} to draw")
    if made.mixed:
        raise RunError(f"no figure of cells that mix runs; they differ in {', '.join(made.mixed)}: {CHOOSE}")
    paint, wide = (_lines, 1.9) if asked.fields == asked.rows else (_heat, 0.6 + 0.28 * len(made.sections[0].rows))
    with style():
        size = (COLUMN, len(made.sections) * wide + 0.35)
        figure = Figure(figsize=size, layout="constrained")
        for ax, section in zip(figure.subplots(len(made.sections), 1), made.sections, strict=True):
            paint(ax, section, made)
            if paint is _heat:
                ax.set_xlabel(short_name(asked.columns))
            ax.set_title(section.frame, fontsize=SMALL)
        if paint is _lines:
            handles, labels = figure.axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    spread = "mean and standard deviation over seeds" if paint is _lines else "mean over seeds"
    besides = " ".join(f"{note}." for note in made.notes if note.startswith(DIFFER))
    return Drawing(asked.name, f"{made.title}: {spread}, in both frames. {made.caption} {besides}", figure)


def _lines(ax: Axes, section: Section, made: Table) -> None:
    """A line per column over the rows' value; of words, which have no order, points with bars."""
    labels = [row.labels[0] for row in section.rows]
    words = _are_words(labels)
    x = np.arange(len(labels), dtype=float) if words else np.array(list(map(float, labels)))
    if words:
        ax.set_xticks(x, labels, **_SLANTED)
    for i, column in enumerate(made.columns):
        cells = [row.cells[i] for row in section.rows]
        mean = np.array([np.nan if c.mean is None else c.mean for c in cells])
        sd = np.array([np.nan if c.sd is None else c.sd for c in cells])
        mark = _MARKS.get(column, _OTHERS[i % len(_OTHERS)])
        look: dict[str, Any] = {"color": mark.colour, "marker": mark.marker, "label": column}
        if column not in _MARKS:  # of lines that coincide, such as GT-Known and Top-5, the lower one looks out
            under = len(made.columns) - 1 - i
            look |= {"markerfacecolor": "none", "markersize": 4 + 1.2 * under, "linewidth": 1.3 + 0.35 * under}
        if words:
            ax.errorbar(x, mean, sd, linestyle="none", capsize=2, **look)
            continue
        ax.plot(x, mean, linestyle=mark.line, **look)
        if np.isfinite(sd).any():
            ax.fill_between(x, mean - sd, mean + sd, color=mark.colour, alpha=0.22, linewidth=0)
    ax.set(xlabel=made.head[0], ylabel="%")


def _are_words(labels: Iterable[str]) -> bool:
    return not all(map(_NUMBER.fullmatch, labels))


def _heat(ax: Axes, section: Section, made: Table) -> None:
    """A square per cell, with its figure; what has none is left out."""
    means = np.array([[np.nan if c.mean is None else c.mean for c in row.cells] for row in section.rows], float)
    ax.imshow(means, cmap="viridis", aspect="auto")
    ax.grid(visible=False)
    ax.set_xticks(range(len(made.columns)), made.columns, **(_SLANTED if _are_words(made.columns) else {}))
    ax.set_yticks(range(len(means)), [row.labels[0] for row in section.rows])
    middle = (np.nanmin(means) + np.nanmax(means)) / 2 if np.isfinite(means).any() else 0.0
    for (i, j), value in np.ndenumerate(means):
        if np.isfinite(value):
            colour = "black" if value > middle else "white"
            ax.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=SMALL, color=colour)
    ax.set_ylabel(made.head[0])


def field_figures(
    records: Records, recipe: Preset, where: Mapping[str, Any]
) -> Iterator[tuple[str, Callable[[], Drawing]]]:
    """Name and drawing of what was varied around the recipe: a field alone (delta and tau have figures of their own),
    and two fields of which both were changed at once."""
    centre = choose(records, recipe, None, where).group
    if centre is None:
        return
    runs = canonical(records.runs)
    same = (*IDENTITY, FINGERPRINT, RECIPE)
    agree = {n: np.fromiter((v == centre.base[n] for v in runs[n]), bool) for n in same}
    off = np.sum([~a for a in agree.values()], axis=0)
    varied = [n for n in same[:-2] if n not in where and ((off == 1) & ~agree[n]).any()]

    def drawn(names: tuple[str, ...], keep: np.ndarray) -> Callable[[], Drawing]:
        asked = FieldTable(names[:1], names[1] if len(names) > 1 else "results")
        mine = replace(records, runs=rows(records.runs, keep), failures=records.failures.iloc[:0])
        return lambda: figure_of(field_table(mine, asked), asked)

    for name in varied:
        if name not in (DELTA, TAU):
            yield name, drawn((name,), off == (~agree[name]).astype(int))
    pairs = [(a, b) for a, b in combinations(varied, 2) if ((off == 2) & ~agree[a] & ~agree[b]).any()]
    for a, b in pairs[:MOST]:
        yield f"{a}, {b}", drawn((a, b), off == (~agree[a]).astype(int) + (~agree[b]).astype(int))
