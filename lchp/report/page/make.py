"""One HTML file that shows everything of some storages: `make_page` is what `lchp report` does.

The page needs no network and opens from a file. The same records give the same bytes: no clock and no live state of a
sweep is in it. All text from records is escaped, and a content policy lets nothing but the page's own script run.
"""

import base64
import hashlib
import json
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from lchp.config import PATHS, PRESETS, Preset, counted, field_types, show, to_flat
from lchp.errors import RunError
from lchp.files.remote import Remote
from lchp.files.runs import read_environment, write_atomically
from lchp.files.targets import holding, require_file
from lchp.report.dependence import WITHOUT_EFFECT, is_from_file
from lchp.report.figures.make import FigureOptions, NotDrawn, draw
from lchp.report.figures.style import Drawing, rendered
from lchp.report.flags import Recipe, Shown, Source
from lchp.report.page.headline import Headline, make_headline
from lchp.report.page.trials import Trials, read_trials
from lchp.report.paper import Paper, read_paper
from lchp.report.read import Records
from lchp.report.select import differences, preset_of, require, rows
from lchp.report.tables.grid import BY_HAND, DATA, Table, as_typed
from lchp.report.tables.numbers import tables
from lchp.report.tables.render import to_html

NAME = "report.html"
MARK = b"Weakly supervised object localization by LCHP"
"""By which a page is known that may be replaced."""
MOST_VALUES = 12
"""Values of a field that are listed; more are counted."""
MOST_ENVIRONMENTS = 8
MOST_SKIPPED = 50

CONTROL = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), 127) if chr(code) not in "\t\n"}


@dataclass(frozen=True)
class PageOptions:
    """out: file to write, None for report.html in the first storage; figures: whether to draw them; data_root: where
    the data lies now, None for where the runs had it."""

    source: Source
    out: Path | None = None
    figures: bool = True
    data_root: Path | None = None
    recipe: Recipe = field(default_factory=Recipe)


@dataclass(frozen=True)
class FieldRow:
    """A field of the config. preset: its value there; values: what the trials have, with how many; effect: whether a
    result depends on it; away: whether a trial has another value than the preset."""

    name: str
    preset: str
    values: str
    effect: bool
    away: bool


@dataclass(frozen=True)
class Environments:
    """On what the trials were trained. rows: name, then a text per distinct environment, most trials first; more: how
    many environments are not shown; classes: name of the data set -> class names; skipped: faulty records dropped."""

    rows: tuple[tuple[str, ...], ...]
    more: int
    classes: Mapping[str, tuple[str, ...]]
    skipped: tuple[str, ...]
    skipped_count: int


@dataclass(frozen=True)
class Page:
    """All that the template shows. failures: cells that failed, as in `Records.failures`, with `setting` (what differs
    from the preset's recipe) and `since` (whether a result is there by now)."""

    records: Records
    headline: Headline
    about: str
    tables: tuple[Table, ...]
    figures: tuple[Drawing, ...]
    not_drawn: tuple[NotDrawn, ...]
    fields: tuple[FieldRow, ...]
    trials: Trials
    failures: tuple[dict[str, Any], ...]
    environments: Environments
    commands: tuple[str, ...]
    revisions: tuple[str, ...]

    @property
    def from_file(self) -> bool:
        """Whether a row is of a file's boxes, which are no class labels."""
        return any(map(is_from_file, self.records.runs.to_dict("records")))


def make_page(wanted: PageOptions) -> int:
    """Writes the page. Returns the exit status: 1 where a record could not be read (it is named on the page and on
    standard error, and the page is made without it), else 0.

    Raises an LchpError for a user's mistake, and where there is nothing to report.
    """
    out = require_file(wanted.out or wanted.source.beside / NAME, "output", holding(MARK), "report of lchp")
    paper = read_paper()
    records = wanted.source.read()
    require(records, wanted.source.conditions)
    if records.runs.empty and records.failures.empty and not records.sweeps:
        more = f"; and {len(records.problems) - 3} more problems" if len(records.problems) > 3 else ""
        raise RunError(f"nothing to report: {'; '.join(records.problems[:3])}{more}")
    page = gather(records, wanted, paper)
    text = render(page)
    write_atomically(out, lambda file: file.write(text))
    undrawn = (f"figure {n.name} not drawn: {n.reason}" for n in page.not_drawn)
    for line in (*records.problems, *undrawn, *records.notes):
        print(line, file=sys.stderr)
    print(page.about)
    print(
        f"written to {out}: {counted(page.trials.count, 'trial')}, {counted(len(page.tables), 'table')}, "
        f"{counted(len(page.figures), 'figure')}, {counted(len(page.failures), 'failed cell')} "
        f"({len(text) / 1e6:.1f} MB)"
    )
    return 1 if records.problems else 0


def gather(records: Records, wanted: PageOptions, paper: Paper) -> Page:
    """Everything on the page. Raises ConfigError for a mistake in what was asked for."""
    name, why = _preset(records, wanted)
    recipe = PRESETS[name]
    made = tables(records, recipe, paper, where=wanted.source.conditions)
    drawn = _draw(records, wanted, recipe, paper)
    trials = read_trials(records, recipe)
    return Page(
        records,
        make_headline(records, name, made, wanted.source.conditions, trials),
        why,
        made,
        tuple(d for d in drawn if isinstance(d, Drawing)),
        tuple(d for d in drawn if isinstance(d, NotDrawn)),
        _fields(records, recipe),
        trials,
        _failures(records, recipe),
        _environments(records),
        _commands(records, wanted),
        tuple(sorted({r for r in records.runs["git_revision"] if r is not None})),
    )


def _preset(records: Records, wanted: PageOptions) -> tuple[str, str]:
    """Its name, and a sentence that says why."""
    if records.runs.empty and len(records.failures) and wanted.recipe.preset is None:
        name, _ = preset_of(replace(records, runs=records.failures))
        return name, f"preset {name}: no finished run; its recipe is the nearest to the failed cells'"
    return preset_of(records, wanted.recipe.preset)


def render(page: Page) -> bytes:
    """The page as HTML: plain ASCII, one file."""
    env = jinja2.Environment(
        loader=jinja2.PackageLoader("lchp.report.page", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    env.filters |= {
        "as_typed": as_typed,
        "figure": lambda table: Markup(to_html(table)),
        "png": lambda drawing: base64.b64encode(rendered(drawing, "png")).decode(),
        "tally": lambda states: sorted(Counter(states.values()).items()),
    }
    script, sheet = (Markup(_asset(env, name)) for name in ("report.js", "report.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = env.get_template("report.html.j2").render(page=page, script=script, sheet=sheet, script_hash=digest)
    return text.translate(CONTROL).encode("ascii", "xmlcharrefreplace")


def _asset(env: jinja2.Environment, name: str) -> str:
    assert env.loader is not None
    return env.loader.get_source(env, name)[0]


def _draw(records: Records, wanted: PageOptions, recipe: Preset, paper: Paper) -> Sequence[Drawing | NotDrawn]:
    if not wanted.figures:
        return []
    asked = FigureOptions(wanted.source, shown=Shown(data_root=wanted.data_root), recipe=wanted.recipe)
    return list(draw(asked, records, recipe, paper))


def _fields(records: Records, recipe: Preset) -> tuple[FieldRow, ...]:
    """The complete config, of the trials on the preset's data set."""
    runs = rows(records.runs, (n == recipe.config.data.name for n in records.runs["data.name"]))
    flat, out = to_flat(recipe.config), []
    for name in field_types():
        counts: dict[Any, int] = {}
        for value in runs[name]:
            counts[value] = counts.get(value, 0) + 1
        ordered = sorted(counts, key=lambda v: (isinstance(v, str), v if isinstance(v, (int, float)) else 0, str(v)))
        texts = [f"{_portable(name, v)} ({counts[v]})" if len(counts) > 1 else _portable(name, v) for v in ordered]
        more = f", and {len(texts) - MOST_VALUES} more" if len(texts) > MOST_VALUES else ""
        values = ", ".join(texts[:MOST_VALUES]) + more
        away = any(v != flat[name] for v in counts)
        out.append(FieldRow(name, _portable(name, flat[name]), values or "-", name not in WITHOUT_EFFECT, away))
    return tuple(out)


def _portable(name: str, value: Any) -> str:
    text = show(value)
    return f".../{Path(text).name}" if name in PATHS and text.startswith(("/", "~")) else text


def _failures(records: Records, recipe: Preset) -> tuple[dict[str, Any], ...]:
    done = set(records.runs["key"])
    cells = records.failures.drop_duplicates(["key", "error"]).sort_values(["seed", "key"], kind="stable")
    settings = (differences(cell, recipe.config).items() for cell in cells.to_dict("records"))
    texts = (", ".join(f"{n} {show(v)}" for n, v in away) or "the preset's recipe" for away in settings)
    each = zip(cells.to_dict("records"), texts, strict=True)
    return tuple({**cell, "setting": text, "since": cell["key"] in done} for cell, text in each)


def _commands(records: Records, wanted: PageOptions) -> tuple[str, ...]:
    """What to type to get the records and this page, without the machine's paths."""
    held = {(str(sweep.storage), key) for sweep in records.sweeps for key in sweep.made}
    places = zip(records.runs["storage"], records.runs["key"], strict=True)
    alone = rows(records.runs, (place not in held for place in places))
    typed = [as_typed(sweep.command) for sweep in records.sweeps]
    typed += [BY_HAND] if len(alone) else []
    named = (str(s) if isinstance(s, Remote) else s.name or str(s) for s in wanted.source.storage)
    words = ["lchp", "report", "--storage", *named]
    words += ["--preset", wanted.recipe.preset] if wanted.recipe.preset else []
    words += [w for condition in wanted.source.where for w in ("--where", condition)]
    words += [w for name in wanted.source.sweep for w in ("--sweep", name)]
    return *dict.fromkeys(typed), shlex.join(words)


def _environments(records: Records) -> Environments:
    kinds: dict[str, tuple[dict[str, Any], list[Mapping[str, float]]]] = {}
    classes: dict[str, tuple[str, ...]] = {}
    skipped: dict[str, None] = {}
    for folder, name in zip(records.runs["folder"], records.runs["data.name"], strict=True):
        env: Mapping[str, Any] = {**read_environment(Path(folder))}
        one = {k: env.get(k) for k in ("device", "precision", "threads", "cores", "platform", "git_revision")}
        one |= env.get("versions") or {}
        kinds.setdefault(json.dumps(one, sort_keys=True), (one, []))[1].append(env.get("peak_memory_mb") or {})
        names = tuple(map(str, env.get("class_names") or ()))
        classes.setdefault(f"{DATA[name]}, {counted(len(names), 'class')}", names)
        skipped |= dict.fromkeys(str(line) for line in env.get("skipped") or ())
    ordered = sorted(kinds.items(), key=lambda item: (-len(item[1][1]), item[0]))
    shown = [value for _, value in ordered[:MOST_ENVIRONMENTS]]
    lines = [("trials", *(str(len(peaks)) for _, peaks in shown))] if shown else []
    for name in dict.fromkeys(name for env, _ in shown for name in env):
        lines.append((name, *("-" if env.get(name) is None else str(env[name]) for env, _ in shown)))
    for part in dict.fromkeys(part for _, peaks in shown for peak in peaks for part in peak):
        highest = [max((peak.get(part, 0.0) for peak in peaks), default=0.0) for _, peaks in shown]
        lines.append((f"peak memory, {part}", *(f"{peak:.0f} MB" if peak else "-" for peak in highest)))
    return Environments(tuple(lines), len(kinds) - len(shown), classes, tuple(skipped)[:MOST_SKIPPED], len(skipped))
