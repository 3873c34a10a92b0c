"""Which runs stand in one table: those that differ in its axis and in the seed only."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lchp.config import (
    AUGMENTATIONS,
    FIELDS,
    FILES,
    PRESETS,
    SHAPE,
    Preset,
    TrainConfig,
    counted,
    field_types,
    show,
    suggest,
    to_flat,
)
from lchp.errors import ConfigError
from lchp.report.dependence import WITHOUT_EFFECT, counts
from lchp.report.read import Records

DELTA, TAU = "initialization.delta", "refinement.tau"
LOCALIZER, SUBSET = "model.localizer", "refinement.augmentations"
AXES = (DELTA, TAU, LOCALIZER, SUBSET)
"""Axes of Tables 3, 4, 5 and 6."""

IDENTITY = tuple(name for name in field_types() if name not in WITHOUT_EFFECT and name != "seed")
FINGERPRINT, RECIPE = "data_fingerprint", "recipe"
"""Two more that tell results apart: what the data set holds, and the version of the maths
(`lchp.training.chain.RECIPE_VERSION`; None in records that were written before it was)."""


@dataclass(frozen=True)
class Group:
    """Runs that differ in `axis` (None: in nothing) and seed only. base: what they share, the data's fingerprint
    included; runs: one per axis value and seed; notes: about results that were found twice and differ."""

    axis: str | None
    base: Mapping[str, Any]
    runs: pd.DataFrame
    notes: tuple[str, ...] = ()

    def at(self, value: Any) -> pd.DataFrame:
        """The runs at one value of the axis."""
        return self.runs if self.axis is None else rows(self.runs, (v == value for v in self.runs[self.axis]))

    def values(self) -> list[Any]:
        """Values of the axis, in the order of the runs."""
        return [] if self.axis is None else list(dict.fromkeys(self.runs[self.axis]))


@dataclass(frozen=True)
class Selection:
    """The group of a table, or None; and in words what other runs there are (empty where there are none)."""

    group: Group | None
    others: str


def parse_where(conditions: Sequence[str], option: str = "--where") -> dict[str, Any]:
    """`FIELD=VALUE` as typed to values of the config. Raises ConfigError for a field or a value that does not fit."""
    found: dict[str, Any] = {}
    for text in conditions:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"{option} {text}: expected FIELD=VALUE, e.g. {option} initialization.attention=features")
        require_field(name, f"{option} {text}")
        try:
            read = FIELDS[name].parse(value)
        except ConfigError:
            raise ConfigError(f"{option} {text}: expected {FIELDS[name].allowed}") from None
        # as records have it
        found[name] = _ordered(read) if name == SUBSET else Path(read).name if name in FILES and read else read
    return found


def split_values(text: str) -> list[str]:
    """At the commas, but for those of a list in brackets: `scale,[0.8,1.2]`."""
    return re.split(r",(?![^\[(]*[\])])", text)


def require_field(name: str, said: str, also: Sequence[str] = ()) -> None:
    """Raises ConfigError for what is not the dotted name of a field, nor in `also`; with the nearest."""
    if name not in field_types() and name not in also:
        raise ConfigError(f"{said}: {name} is no field{suggest(name, [*also, *field_types()])}")


def require(records: Records, conditions: Mapping[str, Any], option: str = "--where") -> None:
    """Raises ConfigError for a condition that no run meets, with the values there are."""
    for name, value in conditions.items():
        there = sorted({show(v) for v in canonical(records.runs)[name]})
        if show(value) not in there:
            listed = ", ".join(there[:12]) + (" ..." if len(there) > 12 else "")
            raise ConfigError(f"{option} {name}={show(value)}: no run has it; there are {listed or 'no runs'}")


def of_sweeps(records: Records, names: Sequence[str]) -> Records:
    """The records of these sweeps' cells alone. Raises ConfigError for a sweep that no storage has, with those there
    are."""
    there = list(dict.fromkeys(sweep.name for sweep in records.sweeps))
    for name in names:
        if name not in there:
            listed = f"there are {', '.join(there)}" if there else "the storages have none"
            raise ConfigError(f"--sweep {name}: no such sweep{suggest(name, there)}; {listed}")
    sweeps = tuple(sweep for sweep in records.sweeps if sweep.name in names)
    cells = {(str(sweep.storage), key) for sweep in sweeps for key in sweep.states}
    runs, failures = (
        rows(frame, (cell in cells for cell in zip(frame["storage"], frame["key"], strict=True)))
        for frame in (records.runs, records.failures)
    )
    return replace(records, runs=runs, failures=failures, sweeps=sweeps)


def _ordered(subset: Sequence[str]) -> tuple[str, ...]:
    """Augmentations in one order, so that S+T is T+S."""
    return tuple(a for a in AUGMENTATIONS if a in subset)


def canonical(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs (or failed cells) with what a table compares: the precision as resolved, augmentations in one order."""
    resolved = [p if e is None else e for p, e in zip(runs["precision"], runs["environment/precision"], strict=True)]
    subsets = pd.Series([_ordered(s) for s in runs[SUBSET]], runs.index, dtype=object)
    return runs.assign(**{"precision": pd.Series(resolved, runs.index, dtype=object), SUBSET: subsets})


def rows(frame: pd.DataFrame, keep: Iterable[bool]) -> pd.DataFrame:
    """Some rows; a plain list would not do, since pandas takes an empty one for a list of columns."""
    return frame.iloc[np.flatnonzero(np.fromiter(keep, bool))]


def differences(values: Mapping[str, Any], config: TrainConfig, *, besides: Sequence[str] = ()) -> dict[str, Any]:
    """Fields whose value is not the config's, of those that a run of such values depends on; an `auto` of the config
    agrees with anything."""
    flat = to_flat(config)
    shape = {name: values.get(name, flat[name]) for name in SHAPE}
    return {
        name: values[name]
        for name in IDENTITY
        if name in values and name not in besides and flat[name] not in ("auto", values[name]) and counts(name, shape)
    }


def choose(records: Records, preset: Preset, axis: str | None, where: Mapping[str, Any] | None = None) -> Selection:
    """The group whose base is the preset's recipe; where there is none, the one with most values of the axis.

    Of the preset's data set only; `where` demands values of fields, and a run that has them is no less the recipe's.
    """
    runs = _of_preset(records, preset)
    conditions = {name: value for name, value in (where or {}).items() if name != axis}
    wanted = runs
    for name, value in conditions.items():
        wanted = rows(wanted, (v == value for v in wanted[name]))
    free = (*conditions, *([axis] if axis else ()))

    def order(group: Group) -> tuple[Any, ...]:
        away = differences(group.base, preset.config, besides=free)
        newer = -(group.base[RECIPE] or 0)
        return bool(away), -len(group.values()), len(away), newer, -len(group.runs), str(sorted(group.base.items()))

    chosen = min(split(wanted, axis), key=order, default=None)
    return Selection(None if chosen is None else once(chosen), _others(chosen, split(runs, axis)))


def _of_preset(records: Records, preset: Preset) -> pd.DataFrame:
    """Runs on the preset's data by its method: LCHP's tables are of LCHP."""
    runs, config = canonical(records.runs), preset.config
    for name, value in (("data.name", config.data.name), ("method.name", config.method.name)):
        runs = rows(runs, (v == value for v in runs[name]))
    return runs


@dataclass(frozen=True)
class Around:
    """A recipe and what differs from it in one field. recipe: its own runs, of which there may be none; groups: field
    -> these with the runs that differ in that field only; runs: all of them; others: as of `Selection`."""

    recipe: Group
    groups: Mapping[str, Group]
    runs: pd.DataFrame
    others: str


def choose_around(
    records: Records, preset: Preset, fields: Sequence[str], where: Mapping[str, Any] | None = None
) -> Around | None:
    """The recipe as `choose` finds it, and the runs that differ from it in one of `fields`; None without a run.

    Where the nearest run is itself an alternative, since the recipe was not run, it is shown as one.
    """
    choice = choose(records, preset, None, where)
    if choice.group is None:
        return None
    away = [n for n in differences(choice.group.base, preset.config, besides=tuple(where or ())) if n in fields]
    base = dict(choice.group.base)
    if len(away) == 1:
        base[away[0]] = to_flat(preset.config)[away[0]]
    runs = _of_preset(records, preset)
    found: dict[str | None, list[Any]] = {None: [], **{name: [] for name in fields}}
    others = []
    for group in split(runs, None):
        names = [name for name in base if group.base[name] != base[name]]
        field = names[0] if names else None
        if len(names) < 2 and field in found:
            found[field].extend(group.runs.index)
        else:
            others.append(group)
    recipe = once(Group(None, base, runs.loc[found.pop(None)]))
    groups = {
        name: once(Group(name, {n: v for n, v in base.items() if n != name}, runs.loc[[*recipe.runs.index, *index]]))
        for name, index in found.items()
        if name is not None
    }
    shown = runs.loc[sorted({i for group in groups.values() for i in group.runs.index})]
    return Around(recipe, groups, shown, _others(recipe, others))


def split(runs: pd.DataFrame, axis: str | None) -> list[Group]:
    """Groups of runs; `runs` as of `canonical`."""
    shared = [name for name in (*IDENTITY, FINGERPRINT, RECIPE) if name != axis]
    if runs.empty:
        return []
    # lists: a look into the table per group and field takes minutes where there are a thousand groups
    values = {name: runs[name].tolist() for name in shared}
    vary = [name for name, column in values.items() if len(set(column)) > 1]
    parts = [part for _, part in runs.groupby(vary, sort=False, dropna=False)] if vary else [runs]
    firsts = runs.index.get_indexer([part.index[0] for part in parts])
    bases = ({name: column[first] for name, column in values.items()} for first in firsts)
    return [Group(axis, base, part) for base, part in zip(bases, parts, strict=True)]


def once(group: Group, figures_of: tuple[str, ...] = ("results/", "kept/")) -> Group:
    """One run per axis value and seed. Results found twice count once; where their figures (columns that begin so)
    differ, a note says so."""
    cell = [*([group.axis] if group.axis else []), "seed"]
    figures = [name for name in group.runs.columns if name.startswith(figures_of)]
    each = list(zip(*(group.runs[name].tolist() for name in cell), strict=True))
    often = Counter(each)
    twice = np.array([often[values] > 1 for values in each], bool)
    kept, notes = list(group.runs.index[~twice]), []
    for _, same in rows(group.runs, twice).groupby(cell, sort=False) if twice.any() else ():
        values = same[figures].to_numpy(float)
        used = same.index[int(np.isfinite(values).sum(axis=1).argmax())]
        kept.append(used)
        if any(len(set(column[np.isfinite(column)])) > 1 for column in values.T):
            several = len(set(same["storage"])) > 1
            at = f"{group.axis.rpartition('.')[2]} {show(same[group.axis].iloc[0])}, " if group.axis else ""
            notes.append(
                f"{at}seed {same['seed'].iloc[0]}: {len(same)} records of the same setting with other figures "
                f"({', '.join(place(run, several) for _, run in same.iterrows())}); "
                f"{place(same.loc[used], several)} is used"
            )
    return Group(group.axis, group.base, group.runs.loc[sorted(kept)], tuple(notes))


def sorted_values(values: Iterable[Any]) -> list[Any]:
    """Distinct values of a field: numbers by size, then words."""
    return sorted(dict.fromkeys(values), key=lambda v: (0, v, "") if isinstance(v, (int, float)) else (1, 0, show(v)))


def place(run: pd.Series, several: bool = False) -> str:
    """A run folder as seen from its storage, so that no table names a machine's paths; of several storages with theirs
    name before it."""
    folder, storage = str(run["folder"]), str(run["storage"])
    inside = folder.removeprefix(storage).strip("/") or str(run["key"])
    return f"{Path(storage).name}: {inside}" if several else inside


def _others(chosen: Group | None, groups: Sequence[Group]) -> str:
    if chosen is None:
        return ""
    kinds: dict[tuple[str, ...], list[Group]] = {}
    for group in groups:
        names = tuple(n for n in group.base if group.base[n] != chosen.base[n])
        if names:
            kinds.setdefault(names, []).append(group)
    texts = []
    for names, others in sorted(kinds.items(), key=lambda kind: (len(kind[0]), kind[0])):
        runs = sum(len(g.runs) for g in others)
        count = counted(runs, "run")
        shown = [n for n in names if n != FINGERPRINT]
        if len(shown) == 1:
            values = sorted({show(g.base[shown[0]]) for g in others})
            texts.append(f"{shown[0]} {', '.join(values[:8])}{' ...' if len(values) > 8 else ''} ({count})")
        elif not shown:
            texts.append(f"another part of the data set ({count})")
        else:
            texts.append(f"{' and '.join(shown[:3])}{' and more' if len(shown) > 3 else ''} ({count})")
    more = f"; {len(texts) - 6} more kinds" if len(texts) > 6 else ""
    return "; ".join(texts[:6]) + more


def preset_of(records: Records, asked: str | None = None) -> tuple[str, str]:
    """The preset that was asked for, or the one whose recipe most runs follow, the tables' axes aside, and a sentence
    that says so; without such runs the nearest one, and without any run the paper's `cub`."""
    if asked is not None:
        return asked, f"preset {asked}"
    runs = canonical(records.runs)
    if runs.empty:
        return "cub", "no finished run: the rows are those of the preset cub"
    away: dict[str, list[int]] = {}
    for name, preset in PRESETS.items():
        flat = to_flat(preset.config)
        # a compared method's run in the recipe's setting follows the recipe too
        of_recipe = [f for f in IDENTITY if f not in AXES and not f.startswith("method.") and flat[f] != "auto"]
        other_data = [1000 * (d != preset.config.data.name) for d in runs["data.name"]]
        each = [[v != flat[f] for v in runs[f]] for f in of_recipe]
        away[name] = [sum(column) for column in zip(other_data, *each, strict=True)]
    exact = {name: counts.count(0) for name, counts in away.items()}
    total = len(runs)
    best = max(exact, key=lambda name: exact[name])
    if exact[best]:
        return best, f"preset {best}: the recipe of {exact[best]} of {counted(total, 'run')} (--preset names another)"
    best = min(away, key=lambda name: (sum(count >= 1000 for count in away[name]), min(away[name])))
    what = "run, which follows" if total == 1 else f"{total} runs, which follow"
    return best, f"preset {best}: the nearest to the {what} no preset (--preset names another)"
