"""Tables 1 and 2: the recipe's three results beside the compared methods, as re-run and as published."""

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from lchp.config import PRESETS, Preset, override
from lchp.data import DATASETS
from lchp.evaluation.metrics import FRAMES, RESULTS
from lchp.evaluation.predictions import METRICS, TITLES
from lchp.report.dependence import is_from_file, result_of
from lchp.report.paper import Paper
from lchp.report.read import METHOD, Records
from lchp.report.select import FINGERPRINT, LOCALIZER, Group, Selection, canonical, choose, differences, show
from lchp.report.select import rows as rows_of
from lchp.report.tables.grid import (
    DATA,
    NOT_GIVEN,
    PAPER_FRAME,
    Measure,
    Row,
    Section,
    Table,
    TableCell,
    backbone_title,
    caption_of,
    cell_of,
    failed_notes,
    failed_runs,
    finish,
    floor_notes,
    lost_cells,
    lost_notes,
    notes_on,
    other_notes,
    part_of,
    ranked_rows,
)

METRICS_OF = {1: ("top1_loc", "top5_loc", "gt_known"), 2: ("top1_loc", "gt_known")}
"""Columns by the table's number."""

OF_ROW = ("method.name", "method.boxes", "method.localizer", "method.refine", "model.classifier")
"""What tells the rows of compared methods apart."""


@dataclass(frozen=True)
class Line:
    """A row to be. title: the method's; result: of its runs, None where there is nothing of ours; group: the runs, None
    without any; base: the config (by dotted name) of the runs, or of the cells that failed; lost: failed cells without
    a run; first: of the method's rows, beside which the paper's values stand; compared: whether there are runs or
    failed cells of another method than the recipe's in it; others: see `Selection`."""

    title: str
    result: str | None = None
    group: Group | None = None
    base: Mapping[str, Any] | None = None
    lost: pd.DataFrame | None = None
    first: bool = True
    compared: bool = False
    others: str = ""

    @property
    def maps(self) -> bool:
        """Whether the box is that of a compared method's score map (or DDT's): only a classifier was trained."""
        return self.compared and self.result == "pseudo_label"

    @property
    def backbone(self) -> str:
        """Of ours; `-` where there is nothing of ours."""
        if self.base is None or (self.result == "pseudo_label" and is_from_file(self.base)):
            return NOT_GIVEN
        classifier, localizer = (backbone_title(self.base[n]) for n in ("model.classifier", LOCALIZER))
        if self.result == "pseudo_label":
            head = f"-{'GAP' if self.compared else self.base['model.head'].upper()}"
            return classifier.removesuffix(head) + head
        return f"{localizer}, classifier {classifier}" if self.compared and classifier != localizer else localizer


@dataclass(frozen=True)
class Found:
    """What the records hold on one data set. choice: LCHP's runs; lost: its failed cells; compared: the other methods'
    rows; failed: their failed cells without a run; all: the runs of all rows, with LCHP's config or, where LCHP was not
    run, that of the first; elsewhere: how many runs of compared methods are on other images."""

    recipe: Preset
    choice: Selection
    lost: pd.DataFrame
    compared: tuple[Line, ...]
    failed: pd.DataFrame
    all: Group | None
    elsewhere: int


def together(records: Records, groups: Sequence[Group | None]) -> Group | None:
    """The runs of several groups, for a caption that speaks of them all, with the config of the first; None without."""
    there = [group for group in groups if group is not None]
    if not there:
        return None
    index = [i for group in there for i in group.runs.index]
    return Group(None, there[0].base, canonical(records.runs).loc[index])


def find(records: Records, recipe: Preset, where: Mapping[str, Any] | None) -> Found:
    """The runs of the recipe's data set nearest to the recipe: LCHP's, and each compared method's on each backbone of
    the classifier. All are of the same images: LCHP's where it was run, else those that most runs saw."""
    choice = choose(records, recipe, None, where)
    own = recipe.config.model.classifier
    everywhere, lost = (_of_compared(frame, recipe) for frame in (records.runs, records.failures))
    prints = Counter(everywhere[FINGERPRINT])
    most = max(prints, key=lambda f: (prints[f], str(f)), default=None)
    fingerprint = most if choice.group is None else choice.group.base[FINGERPRINT]
    runs = rows_of(everywhere, (f == fingerprint for f in everywhere[FINGERPRINT]))
    named = {row for frame in (runs, lost) for row in _rows(frame) if row[0] is not None}
    lines: list[Line] = []
    for row in sorted(named, key=lambda row: (row[0], row[1] != own, row[1])):
        mine, gone = (rows_of(frame, (r == row for r in _rows(frame))) for frame in (runs, lost))
        line = _line(replace(records, runs=mine), gone, recipe, where)
        if line is not None:
            lines.append(replace(line, first=all(line.title != other.title for other in lines)))
    done = set(records.runs["key"])
    return Found(
        recipe,
        choice,
        lost_cells(records, choice, recipe, None),
        tuple(lines),
        rows_of(lost, (key not in done for key in lost["key"])).drop_duplicates("key"),
        together(records, [choice.group, *(line.group for line in lines)]),
        len(everywhere) - len(runs),
    )


def _rows(frame: pd.DataFrame) -> list[tuple[str | None, str]]:
    """Title and classifier of runs or failed cells; an older sweep's failed cells have no title."""
    return list(zip(frame[METHOD], frame["model.classifier"], strict=True))


def _of_compared(frame: pd.DataFrame, recipe: Preset) -> pd.DataFrame:
    """Runs or failed cells of other methods than the recipe's, on its data set."""
    columns = (frame["data.name"], frame["method.name"])
    data, own = recipe.config.data.name, recipe.config.method.name
    return rows_of(frame, (n == data and m != own for n, m in zip(*columns, strict=True)))


def _line(records: Records, gone: pd.DataFrame, recipe: Preset, where: Mapping[str, Any] | None) -> Line | None:
    """Of the runs and failed cells of one row: those nearest to the recipe. None where `where` leaves nothing."""
    any_of = (gone if records.runs.empty else records.runs).iloc[:1].to_dict("records")[0]
    like = replace(recipe, config=override(recipe.config, {n: any_of[n] for n in OF_ROW}))
    result, title = result_of(any_of), any_of[METHOD]
    choice = choose(records, like, None, where)
    if choice.group is not None:
        lost = lost_cells(records, choice, like, None)
        return Line(title, result, choice.group, choice.group.base, lost, compared=True, others=choice.others)
    failed = choose(replace(records, runs=gone), like, None, where).group
    return None if failed is None else Line(title, result, None, failed.base, failed.runs, compared=True)


def recipe_table(
    records: Records, number: int, preset: Preset, paper: Paper, where: Mapping[str, Any] | None = None
) -> Table:
    """Table 1, of CUB and ImageNet (and of the preset's data set, if that is another), or Table 2, of Tiny-ImageNet."""
    own = preset.config.data.name
    names = {1: ["cub", "imagenet"], 2: ["tiny_imagenet"]}[number]
    if number == 1 and not DATASETS[own].published:
        names.insert(0, own)
    measures = tuple(Measure(METRICS[m], f"{{frame}}/{m}", METRICS[m]) for m in METRICS_OF[number])
    found = {name: find(records, preset if name == own else PRESETS[name], where) for name in names}
    # the paper's Table 2 names no backbones; where ours are several, they must
    backbones = number == 1 or any(not line.first for f in found.values() for line in f.compared)
    sections, texts, notes = [], [], []
    for name, of_data in found.items():
        known = number == 2 or DATASETS[name].published
        prefix = {"cub": "CUB ", "imagenet": "ImageNet "}.get(name, "") if number == 1 else ""
        here = tuple(replace(m, paper=prefix + m.paper) for m in measures)
        about = _notes(of_data)
        for frame in FRAMES:
            lines = list(_lines(of_data, paper.rows(number) if known else ()))
            if frame != PAPER_FRAME:  # of which the paper has no figures
                lines = [line for line in lines if line.result is not None]
            rows = []
            for line in lines:
                values = paper if line.first and frame == PAPER_FRAME and known else Paper({})
                cells = tuple(_cell(line, m, frame, values.value(number, line.title, m.paper)) for m in here)
                theirs = paper.value(number, line.title, "backbone") if line.first and known else None
                labels = (line.title, _beside(theirs, line)) if backbones else (line.title,)
                rows.append(Row(labels, cells))
            ranked = ranked_rows(rows, here, paper, number)
            sections.append(Section(DATA[name], frame, ranked, part_of(of_data.all)))
            about += _below_the_floor(lines, rows, METRICS_OF[number].index("gt_known"), frame)
        captioned = Selection(of_data.all, of_data.choice.others)
        texts.append(
            caption_of(records, captioned, of_data.recipe, PRESETS[name] if known else PRESETS["cub"], axis=None)
        )
        notes += [f"{DATA[name]}: {n}" if len(names) > 1 else n for n in about]
    title = f"{', '.join(METRICS[m] for m in METRICS_OF[number])} (%) on {' and '.join(DATA[n] for n in names)}"
    head = ("method", "backbone") if backbones else ("method",)
    columns = tuple(m.title for m in measures)
    return Table(number, title, " ".join(texts), head, columns, tuple(sections), tuple(notes))


def _lines(found: Found, published: Sequence[str]) -> Iterator[Line]:
    """The rows in the paper's order, then what is in the records besides."""
    of_results = {TITLES[r]: r for r in RESULTS}
    group = found.choice.group
    base = None if group is None else group.base
    for title in dict.fromkeys((*published, *of_results, *(line.title for line in found.compared))):
        ours = [line for line in found.compared if line.title == title]
        if title in of_results:
            yield Line(title, of_results[title], group, base, found.lost)
        else:
            yield from [each for line in ours for each in _by_result(line)] or [Line(title)]


def _by_result(line: Line) -> Iterator[Line]:
    """The rows of a line: of boxes of a file there is one for these, and one for each of the localizer's results."""
    if line.base is None or not is_from_file(line.base):
        yield line
        return
    yield replace(line, result="pseudo_label")
    for result in ("lchp_i", "lchp_r"):
        yield replace(line, title=f"{line.title}, {TITLES[result]}", result=result)


def _cell(line: Line, measure: Measure, frame: str, printed: str | None) -> TableCell:
    if line.result is None or line.lost is None:
        return finish([], 0, False, measure, printed)
    if line.compared and line.group is None:  # all that was tried of it failed, for whatever reason
        return finish([], len(line.lost), False, measure, printed)
    runs = None if line.group is None else line.group.runs
    path = f"results/{line.result}/{measure.path.format(frame=frame)}"
    if line.maps and line.base is not None and is_from_file(line.base) and (runs is None or _is_absent(runs, path)):
        return TableCell(NOT_GIVEN)  # the file holds no boxes of test images
    measure = replace(measure, result=line.result)
    return cell_of(runs, line.lost, path, measure, frame, printed, trained=not line.maps)


def _is_absent(runs: pd.DataFrame, path: str) -> bool:
    return path not in runs or bool(runs[path].isna().all())


def _beside(printed: str | None, line: Line) -> str:
    """The paper's backbone of a method; ours where it is another or the paper has none."""
    if line.base is None or printed is None:
        return printed or line.backbone
    return printed if printed == line.backbone else f"{printed} (ours: {line.backbone})"


def name_of(line: Line, lines: Sequence[Line]) -> str:
    """A row's title, with the backbone where the method has several rows."""
    several = sum(line.title == other.title for other in lines) > 1
    return f"{line.title} ({line.backbone})" if several else line.title


def _below_the_floor(lines: Sequence[Line], rows: Sequence[Row], column: int, frame: str) -> list[str]:
    """Which rows a centred box is as good as or better than. Those that failed say so themselves."""
    texts: dict[str, list[str]] = {}
    for line, row in zip(lines, rows, strict=True):
        known = row.cells[column].mean
        if line.group is not None and known is not None:
            floor = statistics.fmean(line.group.runs[f"floors/{frame}/centre_box"])
            if known <= floor:
                texts.setdefault(f"{floor:.2f}", []).append(f"{name_of(line, lines)} {known:.2f}")
    return [
        f"no better in {frame} than a centred 80 % box, GT-Known {floor}: {', '.join(rows)}"
        for floor, rows in texts.items()
    ]


def _notes(found: Found) -> list[str]:
    """On LCHP's runs, then on the compared methods'."""
    notes = floor_notes(found.all.runs) if found.choice.group is None and found.all is not None else []
    notes += notes_on(found.choice, found.lost, None)
    notes += notes_of_lines(found.compared, found)
    notes += lost_notes(found.failed, None)
    if found.elsewhere:
        notes.append(f"runs of compared methods on another part of the data set, not in this table: {found.elsewhere}")
    return notes


def notes_of_lines(lines: Sequence[Line], found: Found) -> list[str]:
    """What differs from the recipe in compared methods' rows, runs whose training failed, and other runs; rows of which
    the same is to be said, together."""
    rows: dict[str, list[str]] = {}
    for line in lines:
        for text in _about(line, found):
            rows.setdefault(text, []).append(name_of(line, found.compared))
    return [f"{', '.join(names)}: {text}" for text, names in rows.items()]


def _about(line: Line, found: Found) -> list[str]:
    assert line.base is not None
    like = override(found.recipe.config, {n: line.base[n] for n in OF_ROW})
    away = ", ".join(f"{n} {show(v)}" for n, v in differences(line.base, like).items())
    about = [f"with {away}"] if away else []
    if line.group is not None:
        failed = [] if line.maps or line.result is None else failed_runs(line.group, None, (line.result,))
        if is_from_file(line.base):
            failed = failed_runs(line.group, None, ("lchp_i", "lchp_r"))
            about += _of_training(line.group.runs)
        about += [*failed_notes(failed), *line.group.notes, *other_notes(Selection(None, line.others))]
    return about


def _of_training(runs: pd.DataFrame) -> list[str]:
    """How good a file's boxes of the training images are, on which alone it may have some."""
    if _is_absent(runs, "given/images"):
        return []
    count, boxed = (int(runs[f"given/{name}"].iloc[0]) for name in ("images", "boxed"))
    figures = [
        f"GT-Known {runs[f'given/{frame}/gt_known'].mean():.2f}, mean IoU {runs[f'given/{frame}/mean_iou'].mean():.2f} "
        f"in {frame}"
        for frame in FRAMES
        if not _is_absent(runs, f"given/{frame}/gt_known")
    ]
    known = f": {'; '.join(figures)} (a diagnostic that reads training boxes; an image without one counts as missed)"
    return [f"the file has boxes of {boxed} of {count} training images{known if figures else ''}"]
