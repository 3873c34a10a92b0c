"""What a table is made of, and Tables 3-6: ours as mean and deviation over seeds, beside the paper's values.

Every table has a section per data set and evaluation frame. The paper's values stand in the sections of its own frame,
center_crop, only. A cell that was not run says so; it is never blank and never a zero.
"""

import math
import re
import shlex
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from lchp.config import AUGMENTATIONS, FIELDS, PRESETS, Preset, counted, to_flat
from lchp.data import DATASETS
from lchp.evaluation.metrics import FRAMES, RESULTS
from lchp.evaluation.predictions import TITLES
from lchp.report.dependence import is_complete
from lchp.report.paired import Difference
from lchp.report.paper import Paper, number
from lchp.report.read import METHOD, Records
from lchp.report.select import (
    DELTA,
    IDENTITY,
    LOCALIZER,
    SUBSET,
    TAU,
    Group,
    Selection,
    canonical,
    choose,
    differences,
    show,
)
from lchp.report.select import rows as rows_of

PAPER_FRAME = "center_crop"
NOT_RUN, FAILED, NO_BOXES, NONE_KEPT, NOT_GIVEN = "not run", "failed", "no boxes", "none kept", "-"
DATA = {name: source.about for name, source in DATASETS.items()}
"""Data sets as tables name them."""
BACKBONES = {
    "inception_v3": "InceptionV3",
    "resnet50": "ResNet50",
    "vgg19_bn": "VGG19-BN",
    "densenet161": "DenseNet161",
    "mobilenet_v2": "MobileNetV2",
    "vgg16": "VGG16",
    "vgg16_gap": "VGG16-GAP",
    "googlenet": "GoogLeNet",
    "googlenet_gap": "GoogLeNet-GAP",
    "se_resnet50": "ResNet50-SE",
}
"""Names as the paper prints them."""


@dataclass(frozen=True)
class TableCell:
    """ours: text, `93.10 ± 0.21 (3)` or why there is no number; mean, sd (sample) and n: over the seeds, None where
    there is no number. paper, difference (ours - paper): text, `-` where there is none. rank, paper_rank: 1 the best of
    its column and section, 2 the second best, 0 neither. less: the difference from a table's baseline."""

    ours: str
    mean: float | None = None
    sd: float | None = None
    n: int = 0
    paper: str = NOT_GIVEN
    difference: str = NOT_GIVEN
    rank: int = 0
    paper_rank: int = 0
    less: Difference | None = None


@dataclass(frozen=True)
class Row:
    """labels: one per `Table.head`; cells: one per `Table.columns`."""

    labels: tuple[str, ...]
    cells: tuple[TableCell, ...]


@dataclass(frozen=True)
class Section:
    """Rows of one data set (as the paper names it) in one evaluation frame. part: which part of it ours are of, where
    it is not the whole."""

    data: str
    frame: str
    rows: tuple[Row, ...]
    part: str = ""

    @property
    def title(self) -> str:
        """Above the rows."""
        return ", ".join(text for text in (self.data, self.part, self.frame) if text)

    @property
    def empty(self) -> bool:
        """Whether nothing of ours is in it."""
        return all(cell.ours in (NOT_RUN, NOT_GIVEN) for row in self.rows for cell in row.cells)


@dataclass(frozen=True)
class Table:
    """One of the paper's tables, or one of the user's own. number: or the name, for that; caption: what was measured,
    how, and where the records come from; notes: below; compared: whether the paper has values to stand beside ours;
    against: what the differences beside ours are from; mixed: fields in which runs of one cell differ."""

    number: int | str
    title: str
    caption: str
    head: tuple[str, ...]
    columns: tuple[str, ...]
    sections: tuple[Section, ...]
    notes: tuple[str, ...]
    compared: bool = True
    against: str | None = None
    mixed: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Before its title."""
        return f"Table {self.number}" if isinstance(self.number, int) else "Table"

    @property
    def beside(self) -> tuple[str, ...]:
        """What stands beside each column of ours."""
        return ("paper", "diff.") if self.compared else () if self.against is None else (self.against,)

    @property
    def empty(self) -> bool:
        """Whether nothing of ours is in it."""
        return all(section.empty for section in self.sections)


@dataclass(frozen=True)
class Measure:
    """A column. path: the figure in a record, with {frame}, or {tau} for what a tau keeps of the training boxes; paper:
    its name in paper.csv; digits: after the point; ranked: whether its best is marked; signed: a difference, with its
    sign."""

    title: str
    path: str
    paper: str
    result: str | None = None
    digits: int = 2
    ranked: bool = True
    signed: bool = False


@dataclass(frozen=True)
class Axis:
    """What Tables 3-6 vary. values: of the preset's grid; label: how a value is written."""

    field: str
    head: str
    title: str
    values: Callable[[Preset], Sequence[Any]]
    label: Callable[[Any], str]
    measures: tuple[Measure, ...]


def known_of(result: str) -> Measure:
    """GT-Known of a result."""
    return Measure(TITLES[result], f"results/{result}/{{frame}}/gt_known", TITLES[result], result)


def _letters(subset: Iterable[str]) -> str:
    return "+".join(a[0].upper() for a in subset)


def _subsets(_: Preset) -> list[tuple[str, ...]]:
    return [s for size in (1, 2, 3) for s in combinations(AUGMENTATIONS, size)]


def backbone_title(name: str) -> str:
    """A backbone as the paper prints it."""
    return BACKBONES.get(name, name)


AXES: Mapping[int, Axis] = {
    3: Axis(
        DELTA,
        "delta",
        "GT-Known (%) over the foreground threshold delta",
        lambda preset: preset.deltas,
        show,
        tuple(map(known_of, RESULTS)),
    ),
    4: Axis(
        TAU,
        "tau",
        "What the confidence threshold tau keeps of the training boxes, and GT-Known (%) of LCHP-R on the test images",
        lambda preset: preset.taus,
        show,
        (
            Measure("kept training boxes", "kept/by_tau/{tau}/count", "kept training boxes", None, 0, False),
            Measure("GT-Known of the kept", "kept/by_tau/{tau}/gt_known", "GT-Known of the kept"),
            known_of("lchp_r"),
        ),
    ),
    5: Axis(
        LOCALIZER,
        "localizer",
        "GT-Known (%) over the localizer's backbone",
        lambda preset: preset.localizers,
        backbone_title,
        (known_of("lchp_i"), known_of("lchp_r")),
    ),
    6: Axis(
        SUBSET,
        "strong view",
        "GT-Known (%) of LCHP-R over the parts of the strong view (S scale, T translation, F flip)",
        _subsets,
        _letters,
        (known_of("lchp_r"),),
    ),
}


def axis_table(records: Records, number: int, preset: Preset, paper: Paper, where: Mapping[str, Any] | None) -> Table:
    """One of Tables 3-6 (the keys of AXES), of the preset's data set and grid."""
    axis = AXES[number]
    choice = choose(records, preset, axis.field, where)
    group, lost = choice.group, lost_cells(records, choice, preset, axis.field)
    seen = [] if group is None else group.values()
    values = _ordered([*axis.values(preset), *seen, *lost[axis.field]], axis, preset)
    sections = []
    for frame in FRAMES:
        rows = []
        for value in values:
            runs = None if group is None else group.at(value)
            gone = rows_of(lost, (v == value for v in lost[axis.field]))
            cells = []
            for measure in axis.measures:
                printed = _printed(paper, number, axis, value, measure) if frame == PAPER_FRAME else None
                if measure.result is None:
                    cells.append(_kept_cell(group, value, measure, printed, frame))
                else:
                    cells.append(cell_of(runs, gone, measure.path.format(frame=frame), measure, frame, printed))
            rows.append(Row((axis.label(value),), tuple(cells)))
        data, ranked = DATA[preset.config.data.name], ranked_rows(rows, axis.measures, paper, number)
        sections.append(Section(data, frame, ranked, part_of(group)))
    notes = []
    if number == 4:
        notes.append(
            "kept training boxes and their GT-Known: a diagnostic that reads training boxes, of LCHP-I and in "
            "center_crop; nothing is chosen by it"
        )
    notes += notes_on(choice, lost, axis)
    shown = {v if axis.field in (DELTA, TAU) else axis.label(v) for v in values}
    hidden = [r for r in paper.rows(number) if (float(r) if axis.field in (DELTA, TAU) else r) not in shown]
    if hidden:
        each = [
            f"{row}: " + ", ".join(f"{m.title} {paper.value(number, row, m.paper) or NOT_GIVEN}" for m in axis.measures)
            for row in hidden
        ]
        notes.append(f"the paper's other rows ({PAPER_FRAME}, CUB-200-2011): {'; '.join(each)}")
    text = caption_of(records, choice, preset, PRESETS["cub"], axis=axis.field)
    columns = tuple(m.title for m in axis.measures)
    return Table(number, axis.title, text, (axis.head,), columns, tuple(sections), tuple(notes))


def _ordered(values: Iterable[Any], axis: Axis, preset: Preset) -> list[Any]:
    """Numbers by size; names in the grid's order, then as they come by name."""
    distinct = list(dict.fromkeys(values))
    if axis.field in (DELTA, TAU):
        return sorted(distinct, key=lambda v: (isinstance(v, str), v))  # `auto` last
    grid = list(dict.fromkeys(axis.values(preset)))
    return grid + sorted((v for v in distinct if v not in grid), key=str)


def _printed(paper: Paper, number: int, axis: Axis, value: Any, measure: Measure) -> str | None:
    if axis.field in (DELTA, TAU):
        return paper.at(number, value, measure.paper)
    return paper.value(number, axis.label(value), measure.paper)


def cell_of(
    runs: pd.DataFrame | None,
    lost: pd.DataFrame,
    path: str,
    measure: Measure,
    frame: str,
    printed: str | None,
    *,
    trained: bool = True,
) -> TableCell:
    """A figure over the seeds of some runs. A run failed where its GT-Known is below the box over the whole image in
    the same frame, or not finite; and where its sweep says that it diverged. trained: whether the boxes were; a poor
    score map is no failed training, and its figure is shown whatever it is."""
    if measure.result is None:
        return finish([], 0, False, measure, printed)
    values, failed, boxless = [], 0, False
    if runs is not None and path in runs:
        for value, known, floor in zip(runs[path], *judged(runs, measure.result, frame), strict=True):
            boxless |= math.isnan(floor)
            if diverged(known, floor if trained else 0.0 * floor):  # without boxes NaN either way
                failed += 1
            elif not math.isnan(floor):
                values.append(value)
    failed += len(diverged_cells(lost, measure.result))
    return finish(values, failed, boxless, measure, printed)


def judged(runs: pd.DataFrame, result: str, frame: str) -> tuple[list[float], list[float]]:
    """GT-Known of some runs, and the floor under it."""
    return list(runs[f"results/{result}/{frame}/gt_known"]), list(runs[f"floors/{frame}/full_box"])


def diverged(known: float, floor: float) -> bool:
    """Whether a GT-Known means that training failed: below the box over the whole frame, or not finite. Without boxes
    there is no floor (NaN), and nothing to judge."""
    return not math.isnan(floor) and not (math.isfinite(known) and known >= floor)


def diverged_cells(lost: pd.DataFrame, result: str) -> pd.DataFrame:
    """Of failed cells, those that have no `result` since a training diverged: that link's, or one before it."""
    if lost.empty:  # as it mostly is, and pandas takes milliseconds to list no rows of so many columns
        return lost
    return rows_of(lost, (d and result in gone for d, gone in zip(lost["diverged"], lost["lost"], strict=True)))


def _kept_cell(group: Group | None, tau: float, measure: Measure, printed: str | None, frame: str) -> TableCell:
    """Of stage 1's training boxes: any run of a seed knows what each tau keeps."""
    if frame != PAPER_FRAME:
        return TableCell(NOT_GIVEN)
    count, path = f"kept/by_tau/{tau:g}/count", measure.path.format(tau=f"{tau:g}")
    if group is None or count not in group.runs:
        return finish([], 0, False, measure, printed)
    of_seed: dict[int, tuple[float, float]] = {}
    for seed, kept, value in zip(group.runs["seed"], group.runs[count], group.runs[path], strict=True):
        if not math.isnan(kept):
            of_seed.setdefault(int(seed), (kept, value))
    values = [value for _, value in of_seed.values() if not math.isnan(value)]
    if of_seed and not values:
        reason = NO_BOXES if any(kept for kept, _ in of_seed.values()) else NONE_KEPT
        return replace(finish([], 0, False, measure, printed), ours=reason)
    return finish(values, 0, False, measure, printed)


def finish(values: Sequence[float], failed: int, boxless: bool, measure: Measure, printed: str | None) -> TableCell:
    """The cell of one value per seed; of why there is none, where a seed failed or there is no value."""
    paper = NOT_GIVEN if printed is None else printed
    if failed:
        of = f" ({failed} of {failed + len(values)})" if values else ""
        return TableCell(FAILED + of, paper=paper)
    if not values:
        return TableCell(NO_BOXES if boxless else NOT_RUN, paper=paper)
    mean, target, digits = statistics.fmean(values), number(printed), measure.digits
    difference = NOT_GIVEN if target is None else f"{round(mean - target, digits) + 0.0:+.{digits}f}"
    sd = statistics.stdev(values) if len(values) > 1 else None
    return TableCell(mean_text(values, digits, signed=measure.signed), mean, sd, len(values), paper, difference)


def mean_text(values: Sequence[float], digits: int = 2, *, signed: bool = False) -> str:
    """Mean of one value per seed, standard deviation where there are several, and their number: `61.25 ± 0.35 (2)`."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    mean = round(statistics.fmean(values), digits) + 0.0
    return f"{mean:{'+' if signed else ''}.{digits}f}{spread} ({len(values)})"


def ranked_rows(rows: Sequence[Row], measures: Sequence[Measure], paper: Paper, table: int) -> tuple[Row, ...]:
    """Marks the best and the second best of every column, as printed; a value that stands alone is neither. The paper's
    values have the ranks of its own table, whose rows need not all be among ours."""
    columns = [list(column) for column in zip(*(row.cells for row in rows), strict=True)]
    for column, measure in zip(columns, measures, strict=True):
        if not measure.ranked:
            continue
        ours = _ranks([None if c.mean is None else round(c.mean, 2) for c in column])
        all_of_paper = [number(paper.value(table, row, measure.paper)) for row in paper.rows(table)]
        best = [v for v, rank in zip(all_of_paper, _ranks(all_of_paper), strict=True) if rank == 1]
        second = [v for v, rank in zip(all_of_paper, _ranks(all_of_paper), strict=True) if rank == 2]
        printed = [1 if number(c.paper) in best else 2 if number(c.paper) in second else 0 for c in column]
        column[:] = [replace(c, rank=a, paper_rank=b) for c, a, b in zip(column, ours, printed, strict=True)]
    return tuple(Row(row.labels, cells) for row, cells in zip(rows, zip(*columns, strict=True), strict=True))


def _ranks(values: Sequence[float | None]) -> list[int]:
    there = sorted({v for v in values if v is not None}, reverse=True)
    if sum(v is not None for v in values) < 2:
        return [0] * len(values)
    return [there.index(v) + 1 if v is not None and v in there[:2] else 0 for v in values]


def lost_cells(records: Records, choice: Selection, preset: Preset, axis: str | None) -> pd.DataFrame:
    """Failed cells of the sweeps that belong to a group and have no result in it."""
    failures, group = canonical(records.failures), choice.group
    base = to_flat(preset.config) if group is None else group.base
    same = [name for name in IDENTITY if name != axis and base[name] != "auto"]
    mine = rows_of(failures, (all(row[name] == base[name] for name in same) for _, row in failures.iterrows()))
    if group is not None:
        cell = [*([axis] if axis else []), "seed"]
        done = set(group.runs[cell].itertuples(index=False, name=None))
        mine = rows_of(mine, (c not in done for c in mine[cell].itertuples(index=False, name=None)))
    return mine.drop_duplicates("key")


def notes_on(choice: Selection, lost: pd.DataFrame, axis: Axis | None) -> list[str]:
    """Of a table's group: floors, runs whose training failed, results found twice; failed cells; other runs."""
    notes, group = [], choice.group
    if group is not None:
        notes += floor_notes(group.runs)
        notes += failed_notes(failed_runs(group, axis))
        notes += group.notes
    return [*notes, *lost_notes(lost, axis), *other_notes(choice)]


def failed_notes(lines: list[str]) -> list[str]:
    """Of runs whose training failed, a few at most."""
    return [f"{FAILED}: {line}" for line in shortened(lines)]


def lost_notes(lost: pd.DataFrame, axis: Axis | None) -> list[str]:
    """Of cells without a result, with their errors."""
    if lost.empty:
        return []
    notes = []
    for cell in lost.sort_values(["seed", "key"]).to_dict("records"):
        at = f"{axis.head} {axis.label(cell[axis.field])}, " if axis else ""
        if not is_complete(cell):
            at = f"{cell[METHOD] or cell['method.name']} on {backbone_title(cell['model.classifier'])}, {at}"
        notes.append(f"{at}seed {cell['seed']} failed in its sweep: {cell['error']}")
    return notes


def other_notes(choice: Selection) -> list[str]:
    """What other runs there are."""
    if not choice.others:
        return []
    return [f"other runs, not in this table (--where FIELD=VALUE chooses): {choice.others}"]


def floor_notes(runs: pd.DataFrame) -> list[str]:
    """The two floors in both frames; nothing where there are no boxes."""
    texts = []
    for frame in FRAMES:
        full, centre = runs[f"floors/{frame}/full_box"].iloc[0], runs[f"floors/{frame}/centre_box"].iloc[0]
        if not math.isnan(full):
            texts.append(f"{frame} {full:.2f} and {centre:.2f}")
    head = "floors, GT-Known of a box over the whole frame and of a centred 80 % box"
    return [f"{head}: {'; '.join(texts)}"] if texts else []


def failed_runs(group: Group, axis: Axis | None, results: Sequence[str] = RESULTS) -> list[str]:
    """A line per result (those of the axis's measures, without an axis `results`) and frame of a run that diverged."""
    lines = []
    results = [m.result for m in axis.measures if m.result] if axis else results
    labels = [""] * len(group.runs) if axis is None else [axis.label(v) for v in group.runs[axis.field]]
    for result in results:
        for frame in FRAMES:
            figures = judged(group.runs, result, frame)
            for label, seed, known, floor in zip(labels, group.runs["seed"], *figures, strict=True):
                if diverged(known, floor):
                    at = f"{axis.head} {label}, " if axis else ""
                    lines.append(
                        f"{at}seed {seed}, {TITLES.get(result, 'the last result')} in {frame}: GT-Known {known:.2f}, "
                        + (f"below the whole frame's {floor:.2f}" if math.isfinite(known) else "not finite")
                    )
    return sorted(lines)


def shortened(lines: list[str], most: int = 8) -> list[str]:
    """Some of the lines, and how many more there are."""
    return lines if len(lines) <= most else [*lines[:most], f"and {len(lines) - most} more"]


def caption_of(records: Records, choice: Selection, preset: Preset, paper_preset: Preset, axis: str | None) -> str:
    """Data set, seeds, version, date and command; and the fields that differ from the paper."""
    group = choice.group
    if group is None:
        return f"No record of {DATA[preset.config.data.name]} belongs here: nothing of ours was run."
    base, runs = group.base, group.runs
    classes, total = int(runs["classes"].iloc[0]), runs["kept/total"].iloc[0] if "kept/total" in runs else math.nan
    data = [DATA[base["data.name"]], _classes(base["data.name"], classes)]
    data += [] if math.isnan(total) else [counted(int(total), "training image")]
    own = (axis,) if axis else ()
    return f"Data: {', '.join(data)}. {origin_of(records, runs)}. {unlike_paper(base, classes, paper_preset, own)}."


def origin_of(records: Records, runs: pd.DataFrame) -> str:
    """Seeds, versions, dates and commands of some runs, and what `auto` chose in them."""
    versions = sorted({str(version) for version in runs["version"]})
    text = f"{_seeds(runs['seed'])}; lchp {', '.join(versions)}; {_dates(runs)}; {commands(records, runs)}"
    chosen = chosen_in(runs)
    return f"{text}; {chosen}" if chosen else text


def chosen_in(runs: pd.DataFrame) -> str:
    """What `auto` chose in some runs; empty where nothing was `auto`."""
    chosen = {str(c): f" ({_seeds(found['seed']).lower()})" for c, found in runs.groupby("chosen")}
    of = [f"{c}{seeds if len(chosen) > 1 else ''}" for c, seeds in chosen.items()]
    return f"auto chose {'; '.join(of)}" if of else ""


def unlike_paper(base: Mapping[str, Any], classes: int, paper: Preset, besides: Sequence[str]) -> str:
    """What keeps a comparison with the paper's values from being one: the fields that differ, those apart in which it
    leaves the choice open. base: all fields of a run; besides: those that are not asked about."""
    name, theirs, flat = base["data.name"], paper.config.data.name, to_flat(paper.config)
    besides = ("data.name", *(n for n in IDENTITY if n.startswith("method.")), *besides)
    part = _classes(name, classes) if name == theirs and classes != DATASETS[name].classes else ""
    texts = {False: [part] if part else [] if name == theirs else [f"data.name {name} ({theirs})"], True: []}
    for field, value in differences(base, paper.config, besides=besides).items():
        texts[FIELDS[field].open is not None].append(f"{field} {show(value)} ({show(flat[field])})")
    given = f"Differs from the paper in {', '.join(texts[False]) or 'nothing that it gives'}"
    return f"{given}; where it leaves the choice open, in {', '.join(texts[True])}" if texts[True] else given


def _seeds(of: Iterable[int]) -> str:
    seeds = sorted({int(seed) for seed in of})
    if len(seeds) > 4 and seeds[-1] - seeds[0] == len(seeds) - 1:
        return f"Seeds {seeds[0]} to {seeds[-1]}"
    return f"Seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def part_of(group: Group | None) -> str:
    """`50 of 200 classes`, where a group's runs saw a part of their data set; else empty."""
    if group is None:
        return ""
    name, classes = group.base["data.name"], int(group.runs["classes"].iloc[0])
    return _classes(name, classes) if classes < (DATASETS[name].classes or classes) else ""


def _classes(name: str, classes: int) -> str:
    whole = DATASETS[name].classes or classes
    return counted(classes, "class") if classes == whole else f"{classes} of {whole} classes"


def _dates(runs: pd.DataFrame) -> str:
    days = sorted(str(date)[:10] for date in runs["date"] if date is not None)
    if not days:
        return "date of the records not recorded"
    span = days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
    without = len(runs) - len(days)
    return f"records of {span}" + (f" ({without} of {len(runs)} without a date)" if without else "")


BY_HAND = "lchp train (its options are in each run's config.json)"


def commands(records: Records, runs: pd.DataFrame) -> str:
    """What was typed to make some runs, without the machine's paths: of sweeps, the earliest that hold them all."""
    wanted = {(str(s), str(k)) for s, k in zip(runs["storage"], runs["key"], strict=True)}
    typed = []
    for sweep in records.sweeps:
        held = {(str(sweep.storage), key) for key in sweep.made} & wanted
        if held:
            typed.append(as_typed(sweep.command))
            wanted -= held
    if wanted:
        typed.append(BY_HAND)
    return f"made by {'; '.join(dict.fromkeys(typed))}"


WHERE = {"--address", "--nodes"}


def as_typed(command: Sequence[str]) -> str:
    """A sweep's command line, without the machine's paths and the cluster's hosts."""
    script = Path(command[0])
    name = f"{script.parent.name}/{script.name}" if script.parent.name in ("sweeps", "analysis") else script.name
    if script.name == "__main__.py":  # python -m lchp
        name = script.parent.name
    words = ["python", name] if name.endswith(".py") else [name]
    for before, word in pairwise(command):
        flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if word == "--resume" or {before, word, flag} & WHERE:  # how it went on, and where it ran
            continue
        # of several values, as an axis has them, each
        value = re.sub(r"(?<=[=,])[/~][^,]*", lambda path: Path(path[0]).name, value)
        words.append(flag + equals + (Path(value).name if value.startswith(("/", "~")) else value))
    return shlex.join(words)
