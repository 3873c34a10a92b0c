"""What a report page says first: what the records come to, in one sentence; then what they are of."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lchp.config import PRESETS, Preset, show
from lchp.data import DATASETS
from lchp.evaluation.metrics import METRICS, TITLES
from lchp.report.page.trials import Trials, duration
from lchp.report.read import Records
from lchp.report.select import DELTA, FINGERPRINT, IDENTITY, RECIPE, TAU, Group, canonical, differences, rows
from lchp.report.tables.grid import DATA, NOT_GIVEN, PAPER_FRAME, Table, TableCell, part_of
from lchp.report.tables.methods import Found, find

LCHP_R = f"results/lchp_r/{PAPER_FRAME}/gt_known"


@dataclass(frozen=True)
class Headline:
    """title; finding: what the records say, a sentence; about: which records these are, and what else they hold."""

    title: str
    finding: str
    about: tuple[str, ...]


def make_headline(
    records: Records, name: str, made: Sequence[Table], where: Mapping[str, Any], trials: Trials
) -> Headline:
    """name: of the preset; made: the tables, of which the recipe's is read (Table 2 for Tiny-ImageNet, else 1)."""
    recipe = PRESETS[name]
    data = recipe.config.data.name
    table = next(t for t in made if t.number == (2 if data == "tiny_imagenet" else 1))
    found = find(records, recipe, where)
    about = [*_origin(records, trials), *_recipe(found, name, where), *_highest(records, recipe)]
    what = "Methods that LCHP is compared with," if found.choice.group is None and found.compared else "LCHP"
    part = part_of(found.all)
    title = f"{what} on {DATA[data]}{f' ({part})' if part else ''}"
    return Headline(title, _finding(found, table, DATA[data]), tuple(about))


def _finding(found: Found, table: Table, data: str) -> str:
    """LCHP-R's GT-Known in the paper's frame, beside LCHP-I's, the floor and the paper's value; where LCHP was not run,
    that of each compared method."""
    column, cells = table.columns.index(METRICS["gt_known"]), dict[str, TableCell]()
    for section in table.sections:
        for row in section.rows if (section.data, section.frame) == (data, PAPER_FRAME) else ():
            name = row.labels[0]  # further rows of a method have their backbone in the name
            cells[f"{name} ({row.labels[-1]})" if name in cells else name] = row.cells[column]
    group = found.choice.group
    if group is None:
        there = [f"{name} {_figure(c)}" for name, c in cells.items() if c.mean is not None or c.ours.startswith("fail")]
        first = f"No finished trial of LCHP on {data}"
        if not there:
            return f"{first}: the tables show the paper's values only."
        return f"{first}; GT-Known in {PAPER_FRAME} of the compared methods: {', '.join(there)}."
    ours, before = cells[TITLES["lchp_r"]], cells[TITLES["lchp_i"]]
    at = f"at delta {show(group.base[DELTA])} and tau {show(group.base[TAU])}"
    if ours.mean is None:
        return f"LCHP-R has no GT-Known in {PAPER_FRAME} {at}: {ours.ours}."
    text = f"LCHP-R reaches {ours.mean:.2f} % GT-Known ({PAPER_FRAME}, {_seeds(ours)})"
    if before.mean is not None:
        less = ours.mean - before.mean
        text += f", {abs(less):.2f} points {'more' if less >= 0 else 'less'} than LCHP-I,"
    text += f" {at}; a centred 80 % box has {group.runs[f'floors/{PAPER_FRAME}/centre_box'].mean():.2f}"
    return f"{text}{'' if ours.paper == NOT_GIVEN else f', the paper {ours.paper}{_setting(group)}'}."


def _figure(cell: TableCell) -> str:
    return cell.ours if cell.mean is None else f"{cell.mean:.2f} ({_seeds(cell)})"


def _seeds(cell: TableCell) -> str:
    return "one seed" if cell.sd is None else f"{cell.n} seeds, ± {cell.sd:.2f}"


def _setting(group: Group) -> str:
    data = group.base["data.name"]
    whole = int(group.runs["classes"].iloc[0]) == DATASETS[data].classes
    same = whole and not differences(group.base, PRESETS[data].config)
    return " in the same setting" if same else " in another setting"


def _origin(records: Records, trials: Trials) -> list[str]:
    """How many trials of what there are, by which version, and when."""
    runs = canonical(records.runs)
    done = set(runs["key"])
    failed = {key for key in records.failures["key"] if key not in done}
    to_come = sum(sweep.unfinished for sweep in records.sweeps)
    low = f", {trials.low} result{'s' * (trials.low != 1)} below the floor" if trials.low else ""
    states = f"{trials.count} trial{'s' * (trials.count != 1)} finished, {len(failed)} failed, {to_come} to come{low}; "
    settings, seeds = len(_settings(runs)), len(set(runs["seed"]))
    states += f"{settings} setting{'s' * (settings != 1)}, {seeds} seed{'s' * (seeds != 1)}, "
    states += f"{duration(trials.seconds)} of training"
    versions = sorted({str(v) for v in runs["version"]})
    days = sorted({str(d)[:10] for d in runs["date"] if d is not None})
    span = f"; trained {' to '.join(dict.fromkeys((days[0], days[-1])))}" if days else ""
    counts = {str(n): int(c) for n, c in runs["data.name"].value_counts().items()}
    each = ", ".join(f"{DATA[n]} ({c})" for n, c in sorted(counts.items()))
    methods = dict.fromkeys(m for m in runs["environment/method"] if m is not None)
    more = [f"data sets: {each}"] * (len(counts) > 1) + [f"methods: {', '.join(methods)}"] * (len(methods) > 1)
    return [f"{'; '.join([states, *[f'lchp {v}' for v in versions], *more])}{span}."]


def _recipe(found: Found, name: str, where: Mapping[str, Any]) -> list[str]:
    """Whether the sentence above is of the preset's recipe, or what differs."""
    group = found.choice.group
    if group is None:
        return []
    away = {n: v for n, v in differences(group.base, found.recipe.config).items() if n not in where}
    held = ", ".join(f"{n} {show(v)}" for n, v in where.items())
    own = f"the recipe{f' with {held}' if held else ' itself'}"
    if not away:
        return [f"The sentence above is of {own} (preset {name})."]
    other = ", ".join(f"{n} {show(v)}" for n, v in away.items())
    return [f"No trial has {own} (preset {name}); the sentence above is of the nearest, which differs by {other}."]


def _settings(runs: pd.DataFrame) -> dict[tuple[Any, ...], dict[int, float]]:
    """Setting (values of the fields that vary) -> seed -> LCHP-R's GT-Known in the paper's frame."""
    vary = [n for n in (*IDENTITY, FINGERPRINT, RECIPE) if len(set(runs[n])) > 1]
    known = runs[LCHP_R] if LCHP_R in runs else [math.nan] * len(runs)
    found: dict[tuple[Any, ...], dict[int, float]] = {}
    for *setting, seed, value in zip(*(runs[n] for n in vary), runs["seed"], known, strict=True):
        found.setdefault(tuple(zip(vary, setting, strict=True)), {}).setdefault(int(seed), float(value))
    return found


def _highest(records: Records, recipe: Preset) -> list[str]:
    """The best of all settings, called what it is."""
    runs, own = canonical(records.runs), (recipe.config.data.name, recipe.config.method.name)
    mine = rows(runs, (pair == own for pair in zip(runs["data.name"], runs["method.name"], strict=True)))
    settings = _settings(mine)
    means = {s: math.fsum(v.values()) / len(v) for s, v in settings.items()}
    measured = {s: mean for s, mean in means.items() if not math.isnan(mean)}
    if len(measured) < 2:
        return []
    best = max(measured, key=lambda s: measured[s])
    at = ", ".join(f"{n} {show(v)}" for n, v in differences(dict(best), recipe.config).items()) or "the recipe itself"
    n = len(settings[best])
    return [
        f"Highest GT-Known of LCHP-R in {PAPER_FRAME} over {len(measured)} settings: {measured[best]:.2f} "
        f"({n} seed{'s' * (n != 1)}) at {at}. The test boxes pick it, so it is an oracle's choice and no result of the "
        "method."
    ]
