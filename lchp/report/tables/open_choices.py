"""Table 7, which the paper does not have: each choice that it leaves open, one factor at a time around the recipe."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from lchp.config import OPEN_CHOICES, PRESETS, Preset, alternatives, override, short_name, show, to_flat
from lchp.evaluation.metrics import FRAMES, RESULTS
from lchp.evaluation.predictions import TITLES
from lchp.report.dependence import require_method
from lchp.report.paper import Paper
from lchp.report.read import Records
from lchp.report.select import IDENTITY, Around, Group, Selection, choose_around, rows
from lchp.report.tables.grid import (
    DATA,
    NOT_GIVEN,
    NOT_RUN,
    Axis,
    Measure,
    Row,
    Section,
    Table,
    TableCell,
    caption_of,
    cell_of,
    diverged,
    diverged_cells,
    failed_notes,
    failed_runs,
    finish,
    floor_notes,
    judged,
    known_of,
    lost_cells,
    lost_notes,
    other_notes,
    part_of,
    ranked_rows,
)

NUMBER = 7
TITLE = "Choices the paper leaves open, one factor at a time: GT-Known (%)"
HEAD = ("choice", "value")
RECIPE = ("recipe", "-")
NO_PAIR = "no common seed"
_KNOWN = tuple(map(known_of, RESULTS))
_LESS_RECIPE = Measure(f"{TITLES['lchp_r']} - recipe", "", "", "lchp_r", ranked=False, signed=True)
_ABOUT = (
    f"Each row differs from the recipe in one field; {_LESS_RECIPE.title} is the mean over the seeds that both have. "
    "The paper gives no values."
)


def choices_table(records: Records, preset: Preset, where: Mapping[str, Any] | None = None) -> Table:
    """Table 7, of the preset's data set: the recipe, then each value of each choice that is not the recipe's own.
    `where`: values of fields that the recipe's runs must have."""
    around = choose_around(records, preset, tuple(OPEN_CHOICES), where)
    choice = Selection(None if around is None else replace(around.recipe, runs=around.runs), "")
    base = to_flat(preset.config) | dict(where or {}) if around is None else around.recipe.base
    lost = {name: _lost(records, around, preset, name) for name in OPEN_CHOICES}
    lost_recipe = lost_cells(records, Selection(None if around is None else around.recipe, ""), preset, None)
    listed = _values(preset, base, around, lost)
    sections = []
    for frame in FRAMES:
        own = None if around is None else around.recipe.runs
        of_recipe = _by_seed(own, lost_recipe, frame)
        shown = [Row(RECIPE, (*_cells(own, lost_recipe, frame), TableCell(NOT_GIVEN)))]
        for name, values in listed.items():
            for value in values:
                runs = None if around is None else around.groups[name].at(value)
                gone = rows(lost[name], (v == value for v in lost[name][name]))
                less = _less(_by_seed(runs, gone, frame), of_recipe)
                shown.append(Row((name, show(value)), (*_cells(runs, gone, frame), less)))
        measures = (*_KNOWN, _LESS_RECIPE)
        ranked, part = ranked_rows(shown, measures, Paper({}), NUMBER), part_of(choice.group)
        sections.append(Section(DATA[preset.config.data.name], frame, ranked, part))
    notes = [f"the recipe's own: {', '.join(f'{name} {show(base[name])}' for name in OPEN_CHOICES)}"]
    if around is not None:
        notes += [*floor_notes(around.runs), *_failed(around), *around.recipe.notes]
        notes += [note for group in around.groups.values() for note in group.notes]
    notes += lost_notes(lost_recipe, None)
    notes += [note for name in OPEN_CHOICES for note in lost_notes(lost[name], _axis(name))]
    notes += other_notes(Selection(None, "" if around is None else around.others))
    text = f"{caption_of(records, choice, preset, PRESETS['cub'], axis=None)} {_ABOUT}"
    columns = tuple(m.title for m in (*_KNOWN, _LESS_RECIPE))
    return Table(NUMBER, TITLE, text, HEAD, columns, tuple(sections), tuple(notes), compared=False)


def _values(
    preset: Preset, base: Mapping[str, Any], around: Around | None, lost: Mapping[str, pd.DataFrame]
) -> dict[str, list[Any]]:
    """Field -> its rows: the values to compare, then others that were run."""
    config = override(preset.config, {name: base[name] for name in IDENTITY})
    found: dict[str, list[Any]] = {name: [] for name in OPEN_CHOICES}
    for name, value in alternatives(config, require_method):
        found[name].append(value)
    for name, values in found.items():
        seen = [] if around is None else around.groups[name].values()
        more = {v for v in (*seen, *lost[name][name]) if v != base[name] and v not in values}
        values += sorted(more, key=show)
    return found


def _lost(records: Records, around: Around | None, preset: Preset, name: str) -> pd.DataFrame:
    """Failed cells that differ from the recipe in one field."""
    group = None if around is None else around.groups[name]
    own = to_flat(preset.config)[name] if around is None else around.recipe.base[name]
    lost = lost_cells(records, Selection(group, ""), preset, name)
    return rows(lost, (value != own for value in lost[name]))


def _cells(runs: pd.DataFrame | None, lost: pd.DataFrame, frame: str) -> list[TableCell]:
    return [cell_of(runs, lost, m.path.format(frame=frame), m, frame, None) for m in _KNOWN]


def _by_seed(runs: pd.DataFrame | None, lost: pd.DataFrame, frame: str) -> dict[int, float | None]:
    """LCHP-R's GT-Known per seed; None where training failed, NaN without boxes."""
    found: dict[int, float | None] = {int(seed): None for seed in diverged_cells(lost, "lchp_r")["seed"]}
    if runs is not None:
        for seed, known, floor in zip(runs["seed"], *judged(runs, "lchp_r", frame), strict=True):
            found[int(seed)] = None if diverged(known, floor) else known
    return found


def _less(ours: Mapping[int, float | None], recipe: Mapping[int, float | None]) -> TableCell:
    """The difference over the seeds of both; a seed in which either failed has none."""
    if not ours or not recipe:
        return TableCell(NOT_RUN)
    pairs = [(ours[seed], recipe[seed]) for seed in ours if seed in recipe]
    if not pairs:
        return TableCell(NO_PAIR)
    there = [a - b for a, b in pairs if a is not None and b is not None]
    return finish([d for d in there if not math.isnan(d)], len(pairs) - len(there), True, _LESS_RECIPE, None)


def _failed(around: Around) -> list[str]:
    """Notes about runs whose training failed, the recipe's first."""
    lines = failed_runs(around.recipe, None)
    for name, group in around.groups.items():
        others = (value != around.recipe.base[name] for value in group.runs[name])
        lines += failed_runs(Group(name, group.base, rows(group.runs, others)), _axis(name))
    return failed_notes(lines)


def _axis(name: str) -> Axis:
    """For the words of a note."""
    return Axis(name, short_name(name), TITLE, lambda _: (), show, _KNOWN)
