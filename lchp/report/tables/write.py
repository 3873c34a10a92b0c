"""What `lchp tables` does: writes and prints the tables, once or while sweeps run."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lchp.config import PRESETS, Preset, counted
from lchp.errors import ConfigError, RunError
from lchp.files.remote import Remote, Storage
from lchp.files.runs import write_atomically
from lchp.files.targets import holding, require_file
from lchp.report.flags import Recipe, Source
from lchp.report.paper import Paper, read_paper
from lchp.report.read import Records, SweepRecord, collect
from lchp.report.select import preset_of, require
from lchp.report.tables.grid import Table
from lchp.report.tables.numbers import check, tables
from lchp.report.tables.render import DOCUMENT_MARK, FORMATS, MARKS, latex_document, to_text

DOCUMENT = "tables.tex"


@dataclass(frozen=True)
class TableOptions:
    """out: folder to write to; numbers: of the tables, None for 1-6 and, where the records hold runs for them, 7 and 8;
    watch: seconds between two looks at sweeps that run, None for once."""

    source: Source
    out: Path
    numbers: tuple[int, ...] | None = None
    watch: float | None = None
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        for number in self.numbers or ():
            check(number)
        if self.watch is not None and not 0 < self.watch <= 86400:
            raise ConfigError(f"--watch {self.watch:g}: expected seconds, more than 0 and a day at most")


def make_tables(wanted: TableOptions, *, sleep: Callable[[float], None] = time.sleep) -> int:
    """Writes the tables and prints them, once or until the sweeps are done. Returns the exit status: 1 where something
    could not be read (it is named on standard error, and the tables are made without it), else 0.

    Raises an LchpError for a user's mistake.
    """
    paper = read_paper()
    shown: tuple[str, list[str]] | None = None
    while True:
        try:
            records = wanted.source.read()
        except RunError:
            if wanted.watch is None or any(isinstance(s, Remote) or s.is_dir() for s in wanted.source.storage):
                raise
            print("waiting: for a sweep to start", file=sys.stderr, flush=True)
            sleep(wanted.watch)
            continue
        made = _made(records, wanted, paper)
        if made != shown:
            text, said = shown = made
            print(text, flush=True)
            for line in said:
                print(line, file=sys.stderr, flush=True)
        if wanted.watch is None:
            return 1 if records.problems else 0
        waiting = [state for sweep in records.sweeps if (state := _waiting(sweep))]
        if records.sweeps and not waiting:
            print("the sweeps are finished", file=sys.stderr)
            return 1 if records.problems else 0
        print(f"waiting: {'; '.join(waiting) or 'for a sweep to start'}", file=sys.stderr, flush=True)
        sleep(wanted.watch)


def _made(records: Records, wanted: TableOptions, paper: Paper) -> tuple[str, list[str]]:
    """Writes the tables; what is to be printed, and what is to be said of the records."""
    if wanted.watch is None:
        require(records, wanted.source.conditions)
    name, why = preset_of(records, wanted.recipe.preset)
    made = tables(records, PRESETS[name], paper, wanted.numbers, wanted.source.conditions)
    write_tables(made, wanted.out)
    said = [*records.problems, *_other_data(records, PRESETS[name]), *records.notes]
    formats = ", ".join(f".{suffix}" for suffix in FORMATS)
    last = f"written to {wanted.out}: table_N ({formats}) and tables.tex"
    return "\n".join([*map(to_text, made), why, last]), said


def write_tables(made: Sequence[Table], out: Path) -> None:
    """table_N.md, .tex, .csv and .html of each table, and tables.tex, a LaTeX document that holds them all
    where they have numbers.

    Earlier ones are replaced; ConfigError, and nothing is written, where a file of such a name is none."""
    texts = {f"table_{table.number}.{suffix}": render(table) for table in made for suffix, render in FORMATS.items()}
    if all(isinstance(table.number, int) for table in made):
        texts[DOCUMENT] = latex_document([f"table_{table.number}" for table in made])
    marks = {name: (DOCUMENT_MARK,) if name == DOCUMENT else MARKS[name.rpartition(".")[2]] for name in texts}
    what = "table of lchp"
    for path in [require_file(out / name, "output", holding(*marks[name]), what) for name in texts]:
        _write(path, texts[path.name])


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


def _other_data(records: Records, preset: Preset) -> list[str]:
    """Runs of data sets that Tables 3-6 leave out, since they are of one."""
    counts = records.runs["data.name"].value_counts(sort=False).to_dict()
    counts.pop(preset.config.data.name, None)
    return [
        f"{counted(count, 'run')} on {name}: not in Tables 3-6, which are of {preset.config.data.name}; "
        + (f"--preset {own} makes theirs" if (own := _preset_on(name)) else f"no preset is of {name}")
        for name, count in sorted(counts.items())
    ]


def _preset_on(data: str) -> str | None:
    return next((name for name, preset in PRESETS.items() if preset.config.data.name == data), None)


def _waiting(sweep: SweepRecord) -> str:
    """Why a sweep is not finished; empty where it is."""
    if not sweep.unfinished:
        return ""
    text = f"{sweep.name}: {sweep.unfinished} of {len(sweep.states)} cells to come"
    return text if sweep.running() else f"{text}, but nothing runs it here (start it again with --resume)"


def render_tables(storage: Storage, preset: Preset, numbers: Sequence[int]) -> str:
    """Tables of one storage as text, for a sweep that has ended: of those with a figure of ours the sections that have
    one, or all as they are where there is none."""
    made = tables(collect([storage]), preset, read_paper(), numbers)
    ours = [replace(table, sections=tuple(s for s in table.sections if not s.empty)) for table in made]
    return "\n".join(map(to_text, [table for table in ours if table.sections] or made))
