"""What a report page says first: what was run, and how the recipe's own cell stands against floors and paper."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lchp.config import PRESETS, Preset, show
from lchp.data import DATASETS
from lchp.evaluation.metrics import FRAMES
from lchp.evaluation.predictions import METRICS, TITLES
from lchp.report.page.trials import Trials, duration
from lchp.report.read import Records
from lchp.report.select import DELTA, FINGERPRINT, IDENTITY, RECIPE, TAU, Group, canonical, differences, rows
from lchp.report.tables.grid import DATA, NOT_GIVEN, NOT_RUN, PAPER_FRAME, Table, TableCell, part_of
from lchp.report.tables.methods import Found, find

LCHP_R = f"results/lchp_r/{PAPER_FRAME}/gt_known"
FLOORS = {"full_box": "floor: the whole frame", "centre_box": "floor: centred 80 % box"}


@dataclass(frozen=True)
class Fact:
    """One figure of the headline, what it is, and what to know about it."""

    title: str
    figure: str
    about: str


@dataclass(frozen=True)
class Headline:
    """The first screen of the page. rows: label, then a text per `head`: the recipe's own cell in both frames."""

    title: str
    sentences: tuple[str, ...]
    facts: tuple[Fact, ...]
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def make_headline(
    records: Records, name: str, made: Sequence[Table], where: Mapping[str, Any], trials: Trials
) -> Headline:
    """name: of the preset; made: the tables, of which the recipe's is read (Table 2 for Tiny-ImageNet, else 1). Where
    only compared methods were run, their rows stand in the place of LCHP's results."""
    recipe = PRESETS[name]
    data = recipe.config.data.name
    table = next(t for t in made if t.number == (2 if data == "tiny_imagenet" else 1))
    cells = _cells(table, data)
    found = find(records, recipe, where)
    group, floors = found.choice.group, _floors(found.all)
    if group is None and found.compared:
        shown = [row for row in dict.fromkeys(row for _, row in cells) if cells[PAPER_FRAME, row].ours != NOT_RUN]
        count = len({line.title for line in found.compared})
        facts = [Fact("methods", str(count), f"and variants of them, in Table {table.number}; LCHP was not run")]
    else:
        shown = list(TITLES.values())
        facts = _facts(group, data, cells, floors)
    facts.append(Fact("trials", str(trials.count), _states(records, trials)))
    facts.append(Fact("time", duration(trials.seconds), "wall time of all trainings, one after the other"))
    head = ("", *(f"{METRICS['gt_known']}, {frame}" for frame in FRAMES))
    printed = any(cells[PAPER_FRAME, row].paper != NOT_GIVEN for row in shown)
    head += ("paper", "diff.") if printed else ()
    body = []
    for row in shown:
        paper = cells[PAPER_FRAME, row]
        rest = (paper.paper, paper.difference) if printed else ()
        body.append((row, *(cells[frame, row].ours for frame in FRAMES), *rest))
    for key, title in FLOORS.items():
        if not math.isnan(floors[PAPER_FRAME, key]):
            rest = (NOT_GIVEN, NOT_GIVEN) if printed else ()
            body.append((title, *(f"{floors[f, key]:.2f}" for f in FRAMES), *rest))
    sentences = _sentences(records, found, name, where)
    sentences += _highest(records, recipe)
    sentences += _on_compared(records, found, table)
    part = part_of(found.all)
    what = "LCHP" if group is not None or not found.compared else "Methods that LCHP is compared with,"
    title = f"{what} on {DATA[data]}{f' ({part})' if part else ''}"
    return Headline(title, tuple(sentences), tuple(facts), head, tuple(body))


def _cells(table: Table, data: str) -> dict[tuple[str, str], TableCell]:
    """GT-Known on the data set by frame and row; of a method's several rows those after the first have their backbone
    in the name."""
    column = table.columns.index(METRICS["gt_known"])
    found: dict[tuple[str, str], TableCell] = {}
    for section in table.sections:
        for row in section.rows if section.data == DATA[data] else ():
            name = row.labels[0]
            name = f"{name} ({row.labels[-1]})" if (section.frame, name) in found else name
            found[section.frame, name] = row.cells[column]
    return found


def _on_compared(records: Records, found: Found, table: Table) -> list[str]:
    """How much there is of the compared methods."""
    count = sum(m != found.recipe.config.method.name for m in records.runs["method.name"])
    if not found.compared or not count:
        return []
    titles = ", ".join(dict.fromkeys(line.title for line in found.compared))
    trials = f"{count} trial{'s' * (count != 1)}"
    return [f"Compared methods: {trials}; on this data set {titles} (Table {table.number})."]


def _floors(group: Group | None) -> dict[tuple[str, str], float]:
    def floor(frame: str, key: str) -> float:
        return math.nan if group is None else float(group.runs[f"floors/{frame}/{key}"].iloc[0])

    return {(frame, key): floor(frame, key) for frame in FRAMES for key in FLOORS}


def _facts(
    group: Group | None, data: str, cells: Mapping[tuple[str, str], TableCell], floors: Mapping[tuple[str, str], float]
) -> list[Fact]:
    ours, first = (cells[PAPER_FRAME, TITLES[r]] for r in ("lchp_r", "lchp_i"))
    if ours.mean is None:
        facts = [Fact("LCHP-R", ours.ours, f"GT-Known, {PAPER_FRAME}")]
    else:
        spread = "" if ours.sd is None else f"± {ours.sd:.2f} over "
        seeds = f"{ours.n} seed{'' if ours.n == 1 else 's'}"
        facts = [Fact("LCHP-R", f"{ours.mean:.2f}", f"% GT-Known, {PAPER_FRAME}; {spread}{seeds}")]
        centre, full = floors[PAPER_FRAME, "centre_box"], floors[PAPER_FRAME, "full_box"]
        about = f"points over this floor's {centre:.2f}; the whole frame has {full:.2f}"
        facts.append(Fact("less the 80 % box", f"{ours.mean - centre:+.2f}", about))
    if ours.mean is not None and first.mean is not None:
        facts.append(
            Fact("less LCHP-I", f"{ours.mean - first.mean:+.2f}", f"points that stage 2 adds to {first.mean:.2f}")
        )
    if ours.paper == NOT_GIVEN:
        facts.append(Fact("less the paper", NOT_GIVEN, "it has no value on this data set"))
    else:
        facts.append(Fact("less the paper", ours.difference, f"points; it has {ours.paper}{_unlike(group, data)}"))
    return facts


def _unlike(group: Group | None, data: str) -> str:
    if group is None:
        return ""
    whole = int(group.runs["classes"].iloc[0]) == DATASETS[data].classes
    same = whole and not differences(group.base, PRESETS[data].config)
    return " in the same setting" if same else " in another setting: see the caption of its table"


def _states(records: Records, trials: Trials) -> str:
    done = set(records.runs["key"])
    failed = {key for key in records.failures["key"] if key not in done}
    to_come = sum(sweep.unfinished for sweep in records.sweeps)
    text = f"finished; {len(failed)} failed, {to_come} to come"
    return f"{text}; {trials.low} results below the floor" if trials.low else text


def _sentences(records: Records, found: Found, name: str, where: Mapping[str, Any]) -> list[str]:
    recipe, group = found.recipe, found.choice.group
    data = DATA[recipe.config.data.name]
    if group is None:
        if found.compared:
            return [f"No finished trial of LCHP on {data} is in the storages: the table is of the compared methods."]
        return [f"No finished trial of {data} is in the storages: the tables show the paper's values only."]
    runs = _own(records, recipe)
    seeds, versions = len(set(runs["seed"])), sorted({str(v) for v in runs["version"]})
    days = sorted({str(d)[:10] for d in runs["date"] if d is not None})
    span = f", trained {' to '.join(dict.fromkeys((days[0], days[-1])))}" if days else ""
    settings = len(_settings(runs))
    sentences = [
        f"{len(runs)} trial{'s' * (len(runs) != 1)} of {settings} setting{'s' * (settings != 1)}, {seeds} "
        f"seed{'s' * (seeds != 1)}, lchp {', '.join(versions)}{span}."
    ]
    counts = {str(n): int(c) for n, c in runs["data.name"].value_counts().items()}
    if len(counts) > 1:
        each = ", ".join(f"{DATA[n]} ({c})" for n, c in sorted(counts.items()))
        sentences.append(f"Data sets: {each}; tables and figures are of {data}, trials of all.")
    base = group.base
    cell = f"{data}, {int(group.runs['classes'].iloc[0])} classes, delta {show(base[DELTA])}, tau {show(base[TAU])}"
    away = {n: v for n, v in differences(base, recipe.config).items() if n not in where}
    held = ", ".join(f"{n} {show(v)}" for n, v in where.items())
    own = f"the recipe{f' with {held}' if held else ' itself'}"
    sentences.append(
        f"The figures above are the cell of {own} (preset {name}; {cell})."
        if not away
        else f"No trial has {own} (preset {name}); the figures above are of the nearest ({cell}), which differs by "
        f"{', '.join(f'{n} {show(v)}' for n, v in away.items())}."
    )
    if DATASETS[recipe.config.data.name].generated:
        sentences.append("The data set is synthetic: its figures are not comparable with the paper's.")
    return sentences


def _own(records: Records, recipe: Preset) -> pd.DataFrame:
    """The runs of the recipe's method."""
    runs = canonical(records.runs)
    return rows(runs, (name == recipe.config.method.name for name in runs["method.name"]))


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
    runs = _own(records, recipe)
    settings = _settings(rows(runs, (n == recipe.config.data.name for n in runs["data.name"])))
    means = {s: math.fsum(v.values()) / len(v) for s, v in settings.items()}
    measured = {s: mean for s, mean in means.items() if not math.isnan(mean)}
    if len(measured) < 2:
        return []
    best = max(measured, key=lambda s: measured[s])
    away = differences(dict(best), recipe.config)
    at = ", ".join(f"{n} {show(v)}" for n, v in away.items()) or "the recipe itself"
    n = len(settings[best])
    return [
        f"Highest GT-Known of LCHP-R in {PAPER_FRAME} over {len(measured)} settings: {measured[best]:.2f} "
        f"({n} seed{'s' * (n != 1)}) at {at}. The test boxes pick it, so it is an oracle's choice and no result of the "
        "method."
    ]
