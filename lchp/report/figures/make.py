"""What `lchp figures` does: chooses runs, draws, writes. It names what cannot be drawn, and makes the rest."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import get_args

import pandas as pd

from lchp.config import PRESETS, Preset, TrainConfig, as_chosen, counted, override, suggest
from lchp.data import DataSet, load
from lchp.errors import ConfigError, DataError, LchpError, RunError
from lchp.evaluation.metrics import FRAMES
from lchp.files.runs import read_summary
from lchp.report.dependence import is_complete, results
from lchp.report.figures.curves import against_iou, over_delta, over_tau, over_threshold, training
from lchp.report.figures.fields import field_figures
from lchp.report.figures.grids import grid, pick_images
from lchp.report.figures.images import Predicted, read_frame, read_pixels
from lchp.report.figures.panel import follow, panel
from lchp.report.figures.run_files import config_of, metrics_of
from lchp.report.figures.searches import read_studies, search_figure
from lchp.report.figures.style import Drawing, save
from lchp.report.flags import FigureName, Pick, Recipe, Shown, Source
from lchp.report.paper import Paper, read_paper
from lchp.report.read import METHOD, OF_COMPARED, Records, collect
from lchp.report.select import choose, differences, place, preset_of, show
from lchp.report.tables.grid import DATA, chosen_in

NAMES: tuple[FigureName, ...] = get_args(FigureName)
OF_SWEEPS: tuple[FigureName, ...] = ("delta", "tau", "fields", "search")
"""Figures of many runs; the others show one run, or the seeds of one setting."""


@dataclass(frozen=True)
class FigureOptions:
    """What to draw, from what. Raises ConfigError for what does not fit.

    figures: by name, empty for all; run: the run folder of the figures that show one, None for the recipe's lowest
    seed; shown: what these show.
    """

    source: Source
    figures: tuple[FigureName, ...] = ()
    run: Path | None = None
    shown: Shown = field(default_factory=Shown)
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        if self.run is not None and set(self.figures) & set(OF_SWEEPS):
            raise ConfigError(f"--run: figures {' and '.join(OF_SWEEPS)} show many runs; name their --storage instead")

    @property
    def names(self) -> tuple[FigureName, ...]:
        """The figures to draw, once each."""
        if self.figures:
            return tuple(dict.fromkeys(self.figures))
        return tuple(n for n in NAMES if self.run is None or n not in OF_SWEEPS)


@dataclass(frozen=True)
class Material:
    """What figures are drawn from; read when the first figure asks for it."""

    wanted: FigureOptions
    records: Records
    recipe: Preset
    paper: Paper

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The runs of one setting, a row per seed in ascending order: the recipe's, or where there is none the nearest
        to it; or the run that was named. Raises RunError where there is no run."""
        if self.wanted.run is not None:
            return self.records.runs
        group = choose(self.records, self.recipe, None, self.wanted.source.conditions).group
        if group is None:
            source = self.wanted.source
            that = " that --where and --sweep let through" if source.where or source.sweep else ""
            raise RunError(f"no finished run of LCHP on {self.recipe.config.data.name}{that} in the storages")
        return group.runs.sort_values("seed", kind="stable")

    @property
    def run(self) -> Path:
        """The folder of the run that is shown: the lowest seed's."""
        return Path(self.rows["folder"].iloc[0])

    @cached_property
    def config(self) -> TrainConfig:
        """The shown run's, with the data where it lies now. Faults of images that are not shown do not matter."""
        root = {} if self.wanted.shown.data_root is None else {"data.root": str(self.wanted.shown.data_root)}
        return override(config_of(self.rows.iloc[0]), {"data.skip_bad": True, **root})

    @cached_property
    def dataset(self) -> DataSet:
        """The shown run's data set. Raises DataError where it is missing."""
        try:
            return load(self.config.data)
        except DataError as error:
            line = " ".join(str(error).split())
            raise DataError(f"{line} (--data-root names another folder)") from None

    @cached_property
    def predicted(self) -> Mapping[str, Predicted]:
        """Frame -> what the shown run predicted."""
        return {frame: read_frame(self.run, frame) for frame in FRAMES}

    @property
    def about(self) -> str:
        """A sentence on the shown run."""
        return f"Run {place(self.rows.iloc[0])}, seed {self.rows['seed'].iloc[0]}: {self.setting}"

    @property
    def setting(self) -> str:
        """A sentence on the setting of all `rows`."""
        row = self.rows.iloc[0]
        versions = ", ".join(sorted({str(v) for v in self.rows["version"]}))
        method = f"delta {show(row['initialization.delta'])}, tau {show(row['refinement.tau'])}"
        if not is_complete(row):
            method = f"{row[METHOD]} ({', '.join(OF_COMPARED[r] for r in results(row))})"
        away = differences(row, self.recipe.config) if self.wanted.run is None else {}
        other = "; ".join(
            f"{name} {show(value)}" for name, value in away.items() if name not in self.wanted.source.conditions
        )
        text = f"{DATA[row['data.name']]}, {counted(row['classes'], 'class')}, {method}, lchp {versions}."
        chosen = chosen_in(self.rows)
        text += f" {chosen[:1].upper()}{chosen[1:]}." if chosen else ""
        return text + (f" No run of the recipe itself was there; this one differs by {other}." if other else "")


def _grid(material: Material, pick: Pick) -> Drawing:
    wanted = material.wanted.shown
    predicted = material.predicted[wanted.frame]
    picked = pick_images(predicted, pick, wanted.images, wanted.seed, wanted.against)
    versus = f"_{wanted.against}" if pick in ("gained", "lost") else ""
    name = f"grid_{pick}{versus}_{wanted.frame}"
    return grid(material.dataset, material.config, predicted, picked, name, material.about)


def _panel(material: Material) -> Drawing:
    if not is_complete(material.rows.iloc[0]):
        raise RunError(f"{material.run}: is of {material.rows[METHOD].iloc[0]}; the panel shows LCHP's own stages")
    wanted = material.wanted.shown
    predicted = material.predicted[wanted.frame]
    if wanted.image is None:
        picked = pick_images(predicted, wanted.pick[0], wanted.images, wanted.seed, wanted.against)
        position = int(picked.positions[0])
    elif wanted.image in predicted.image_ids:
        position = predicted.image_ids.index(wanted.image)
    else:
        close = suggest(wanted.image, predicted.image_ids)
        raise ConfigError(f"--image {wanted.image}: no test image of {material.run}{close}")
    pixels = read_pixels(material.dataset, material.config, predicted, [position])[0]
    config = as_chosen(material.config, read_summary(material.run).get("chosen"))
    steps = follow(material.run, config, pixels, wanted.seed)
    return panel(steps, config, predicted, position, f"panel_{wanted.frame}", material.about)


def _iou(material: Material) -> Drawing:
    folders = [Path(folder) for folder in material.rows["folder"]]
    runs = [{frame: read_frame(folder, frame) for frame in FRAMES} for folder in folders]
    return over_threshold(runs, material.setting)


FIGURES: Mapping[FigureName, Callable[[Material], Drawing]] = {
    "delta": lambda m: over_delta(m.records, m.recipe, m.paper, m.wanted.source.conditions),
    "tau": lambda m: over_tau(m.records, m.recipe, m.paper, m.wanted.source.conditions),
    "iou": _iou,
    "confidence": lambda m: against_iou(m.predicted, m.config.refinement.tau, m.about),
    "training": lambda m: training(metrics_of(m.run), m.about),
    "panel": _panel,
}
"""One drawing each; `grid` makes one per pick, `fields` and `search` one per field and study that there is."""


@dataclass(frozen=True)
class NotDrawn:
    """A figure that could not be drawn, and why, in a line."""

    name: str
    reason: str


def draw(wanted: FigureOptions, records: Records, recipe: Preset, paper: Paper) -> Iterator[Drawing | NotDrawn]:
    """The figures in order. Raises ConfigError for a mistake in what was asked for."""
    material = Material(wanted, records, recipe, paper)
    for name in wanted.names:
        if name == "panel" and not wanted.figures and wanted.run and not is_complete(material.rows.iloc[0]):
            continue
        try:
            tasks = _tasks(material, name)
        except RunError as error:
            yield NotDrawn(name, records.said(str(error)))
            continue
        if not tasks and wanted.figures:
            yield NotDrawn(name, "no run differs from the recipe in it" if name == "fields" else "no search was run")
        for title, task in tasks.items():
            try:
                yield task()
            except ConfigError:
                raise
            except LchpError as error:
                yield NotDrawn(title, records.said(str(error)))


def _tasks(material: Material, name: FigureName) -> dict[str, Callable[[], Drawing]]:
    """What draws the figures of a name. Raises RunError for a search's database that cannot be read."""
    if name == "fields":
        there = field_figures(material.records, material.recipe, material.wanted.source.conditions)
        return {f"fields, {title}": task for title, task in there}
    if name == "search":
        studies = [study for storage in material.records.storages for study in read_studies(storage)]
        asked = material.wanted.source.sweep
        mine = [study for study in studies if not asked or study.study_name in asked]
        return {f"search, {study.study_name}": lambda study=study: search_figure(study) for study in mine}
    if name == "grid":
        return {f"grid, {p}": lambda p=p: _grid(material, p) for p in dict.fromkeys(material.wanted.shown.pick)}
    return {name: lambda: FIGURES[name](material)}


def make_figures(wanted: FigureOptions, out: Path) -> int:
    """Writes NAME.png, NAME.pdf and the caption NAME.txt of each figure to `out`.

    Returns the exit status: 1 where a record could not be read or a figure not be drawn (each is named on standard
    error, and the others are made), else 0. Raises an LchpError for a user's mistake.
    """
    paper = read_paper()
    if wanted.run is not None and not wanted.run.is_dir():
        raise RunError(f"--run {wanted.run}: no such run folder")
    records = wanted.source.read() if wanted.run is None else collect((wanted.run,))
    if wanted.run is not None and len(records.runs) != 1:
        raise RunError(
            "; ".join(records.problems) or f"{wanted.run}: holds {len(records.runs)} runs; name one by --run"
        )
    name, why = preset_of(records, wanted.recipe.preset)
    print(why)
    _say(records.problems)
    _say(records.notes)
    bad = bool(records.problems)
    for made in draw(wanted, records, PRESETS[name], paper):
        if isinstance(made, Drawing):
            save(made, out)
            print(f"{out / made.name}.png, .pdf: {made.caption}", flush=True)
        else:
            bad = True
            _say([f"{made.name}: not drawn: {made.reason}"])
    return 1 if bad else 0


def _say(lines: Sequence[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr, flush=True)
