"""Run folders to one pandas table. Reads config.json, summary.json, environment.json and sweep.json; predictions never.

A storage is a sweep's (STORAGE/store/KIND/KEY), a folder of run folders, or a run folder itself. What cannot be read is
named in `problems` and left out; nothing is guessed.
"""

import math
import os
import reprlib
import socket
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from lchp.config import FILES, MEANING_BEFORE, counted, field_types, flatten, from_dict, shown_choice, suggest, to_flat
from lchp.errors import ConfigError, RunError
from lchp.evaluation.predictions import TITLES
from lchp.files.remote import Storage
from lchp.files.runs import (
    CONFIG,
    KINDS,
    MODEL,
    PREDICTIONS,
    SUMMARY,
    SWEEP,
    Kind,
    digest,
    read_done,
    read_environment,
    read_json,
    read_summary,
    read_sweep,
)
from lchp.files.schema import Environment, SummaryFields, SweepCell, SweepFields, cell_job, cell_key, is_figure
from lchp.report.dependence import counts, is_from_file, kinds, result_of, results, title
from lchp.report.mirrors import as_named, local

OF_LINKS = ("boxes", "localizer", "refinement", "stage2")
"""Folders of a store that hold runs: those of links with a result of their own, and what older stores have."""

_MADE = ("version", "date", "git_revision", "data_fingerprint", "recipe")
ORIGIN = ("folder", "storage", "key", *_MADE, "classes", "chosen")
"""Columns of `Records.runs` that are neither config nor figures. date: ISO 8601, UTC; None where nothing recorded it.
classes: their number. chosen: what `auto` took for the config's fields, as text; None where nothing was `auto`."""

METHOD = "environment/method"
"""Column of the row that a run is of in Tables 1 and 2."""
RESOLVED = ("environment/precision", "environment/device", METHOD)
"""Columns of what `auto` became on the machine, and the method's name as the tables have it. Failed cells have the
latter alone, and None where an older sweep did not write it."""

OF_COMPARED = {
    "pseudo_label": f"{TITLES['pseudo_label']} is the box of its score map, of DDT, or of a file",
    "lchp_i": f"{TITLES['lchp_i']} the localizer regressed on such boxes",
    "lchp_r": f"{TITLES['lchp_r']} that localizer after LCHP's stage 2",
}
"""What the results of a compared method are, in words that follow each other."""

MOST = 4
"""Fields that a note names."""


def title_of(environment: Environment) -> str:
    """The row of a run in Tables 1 and 2, of its environment.json; older ones, which do not say, are all LCHP's."""
    return _text(environment.get("method")) or "LCHP"


@dataclass(frozen=True)
class SweepRecord:
    """One sweep.json. command: as typed; states: key of a cell's result -> waiting, running, done, failed or stopped;
    made: keys of all results that it asked for, those of its cells' links included."""

    name: str
    folder: Path
    storage: Path
    command: tuple[str, ...]
    created: str
    version: str
    states: Mapping[str, str]
    made: frozenset[str]

    @property
    def unfinished(self) -> int:
        """Cells that wait or run."""
        return sum(state in ("waiting", "running") for state in self.states.values())

    def running(self) -> bool:
        """Whether the process that its lock names is alive; another machine's, which cannot be seen, is taken to be."""
        try:
            words = (self.folder / "lock").read_text().split()
            pid, host = int(words[1]), words[3]
        except (OSError, ValueError, IndexError):
            return False
        if host != socket.gethostname():
            return True
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:  # alive, and another user's
            return True
        return True


@dataclass(frozen=True)
class Records:
    """What some storages hold.

    runs: a row per finished run, sorted by folder: ORIGIN, the config by dotted name (`initialization.delta`, `seed`),
    what the environment resolved (`environment/precision`, `environment/device`), the summary's figures by slash path
    (`results/lchp_r/center_crop/gt_known`, percent; NaN where there are no boxes), `wall_seconds/...`.
    failures: a row per cell of a sweep that failed: storage, key, the config, `error`, `diverged` (bool: whether a
    training did), and `lost` (the results that it lacks for that).
    problems: a line per folder or file that could not be read. notes: lines about what was read all the same.
    storages: the folders that were read; places: theirs and the others', with the storage that each is of.
    """

    runs: pd.DataFrame
    problems: tuple[str, ...]
    storages: tuple[Path, ...]
    failures: pd.DataFrame = field(default_factory=pd.DataFrame)
    sweeps: tuple[SweepRecord, ...] = ()
    notes: tuple[str, ...] = ()
    places: Mapping[Path, Storage] = field(default_factory=dict)

    def said(self, text: str) -> str:
        """A message about what was read, on one line; a storage behind a URL has its URL."""
        return clean(as_named(text, self.places))


def collect(storages: Sequence[Storage]) -> Records:
    """Reads storages; one named twice is read once. Raises RunError where none of them exists, and ConfigError for a
    URL that cannot be read."""
    places, problems = local(storages)
    there: list[Path] = []
    for storage in places:
        if not storage.is_dir():
            problems.append(f"{storage}: no such folder; name the storage of a sweep or a run folder by --storage")
        elif not any(storage.resolve() == other.resolve() for other in there):
            there.append(storage)
    if not there:
        raise RunError("; ".join(problems) or "no storage was named")
    sweeps, failed, dates = _read_sweeps(there, problems)
    reader = _Reader()
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for storage in there:
        before, first_stage = len(rows), 0
        for folder, stored in _run_folders(storage):
            try:
                row = reader.run(folder, stored=stored)
            except RunError as error:
                problems.append(str(error))
                continue
            if row is None:
                first_stage += not stored
                continue
            row |= {"folder": str(folder), "storage": str(storage)}
            row["date"] = row["date"] or dates.get((storage, folder.name) if stored else None)
            rows.append(row)
        alone = f"{counted(first_stage, 'run folder')} with stage 1 alone"
        if len(rows) == before:
            problems.append(f"{storage}: no finished run{f', but {alone}' if first_stage else ''}")
        elif first_stage:
            notes.append(f"{storage}: {alone}, left out")
    rows.sort(key=lambda row: row["folder"])
    failures = []
    for cell in failed:
        try:
            values = reader.flat(cell.pop("config"), cell.pop("source"), cell.pop("overrides"))
            failures.append(_with_lost(cell, values) | values)
        except RunError as error:
            problems.append(str(error))
    _name_files(rows, failures)
    notes += reader.notes()
    problems = sorted({clean(as_named(line, places)) for line in problems})
    return Records(
        _frame(rows),
        tuple(problems),
        tuple(there),
        _frame(failures, ("error", "diverged", "lost")),
        tuple(sweeps),
        tuple(clean(as_named(line, places)) for line in notes),
        places,
    )


def _name_files(rows: Sequence[dict[str, Any]], failures: Sequence[dict[str, Any]]) -> None:
    """Puts a name in place of the path of each file whose content a run depends on, and takes out `files`. Files of one
    content have one name, wherever they lay; where others have that name, something of the content stands beside it.
    What held no hash of a file, as older records and failed cells, goes by the path."""
    cells = [(row, row.pop("files")) for row in rows] + [(cell, {}) for cell in failures]
    for name in FILES:
        parts = (name, "model.classifier_classes") if name == "model.classifier_weights" else (name,)
        given, of_paths, names = [], dict[tuple[str, ...], str](), dict[str, str]()
        for cell, held in cells:
            if cell[name] is None:
                continue
            paths = tuple(str(cell[part]) for part in parts)
            content = str([held.get(part) for part in parts]) if name in held else of_paths.get(paths, str(paths))
            of_paths.setdefault(paths, content)
            names[content] = min(names.get(content, "\U0010ffff"), clean(Path(cell[name]).name))
            given.append((cell, content))
        twice = Counter(names.values())
        for cell, content in given:
            cell[name] = names[content]
            if twice[names[content]] > 1:
                cell[name] += f" ({digest(content)[:8]})"
    for cell, _ in cells:
        if cell[METHOD] is not None and is_from_file(cell):
            cell[METHOD] = title(cell)


def _run_folders(storage: Path) -> Iterator[tuple[Path, bool]]:
    """Run folders, and whether they are the store's (which holds checksums of their files)."""
    if (storage / CONFIG).is_file():
        yield storage, False
        return
    for parent, stored in (*((storage / "store" / kind, True) for kind in OF_LINKS), (storage, False)):
        if parent.is_dir():
            for folder in sorted(parent.iterdir()):
                if stored and folder.is_dir() and not folder.name.startswith("."):
                    yield folder, True
                elif not stored and (folder / CONFIG).is_file() and not (folder / MODEL).is_file():
                    yield folder, False


class _Reader:
    """Reads run folders, and notes which are of older versions."""

    def __init__(self) -> None:
        self.hints = field_types()
        self.older: dict[tuple[str, ...], list[Path]] = {}

    def run(self, folder: Path, *, stored: bool) -> dict[str, Any] | None:
        """A row; None for stage 1 alone, and for a link of LCHP's before the last. Raises RunError."""
        if stored:
            checksums = _checksums(folder)
        else:
            checksums = None
            if not (folder / SUMMARY).exists():
                raise RunError(f"{folder}: no {SUMMARY}; not finished, or half-written")
        flat = self.flat(read_json(folder / CONFIG, checksums), folder / CONFIG)
        if stored and folder.parent.name == "boxes" and is_from_file(flat):
            return None  # a link without a result of its own
        summary = read_summary(folder, checksums)
        if result_of(flat) not in summary["results"]:
            return None
        if absent := [r for r in results(flat) if r not in summary["results"]]:
            raise RunError(f"{folder / SUMMARY}: lacks results/{absent[0]}; was it written by another version of lchp?")
        environment = read_environment(folder, checksums)
        row: dict[str, Any] = {
            "key": folder.name,
            "version": _text((environment.get("versions") or {}).get("lchp")),
            "date": _text(environment.get("written")),
            "git_revision": _text(environment.get("git_revision")),
            "data_fingerprint": environment.get("data_fingerprint"),
            "files": environment.get("files") or {},
            "recipe": environment.get("recipe"),
            "classes": len(environment["class_names"]),
            "chosen": _chosen(summary),
            **flat,
            "environment/precision": environment.get("precision"),
            "environment/device": environment.get("device"),
            METHOD: title_of(environment),
        }
        for section in SummaryFields.__annotations__.keys() - {"chosen"}:
            _figures(summary.get(section) or {}, f"{section}/", row, folder / SUMMARY)
        row |= {f"wall_seconds/{name}": float(v) for name, v in (environment.get("wall_seconds") or {}).items()}
        return row

    def flat(self, config: Any, path: Path, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """A config by dotted name. RunError for a field that is unknown, wrong, or missing without a meaning."""
        try:
            values = {**flatten(config), **(overrides or {})}
            for name in values:
                if name not in self.hints:
                    raise ConfigError(
                        f"{name} is a field this version of lchp does not know{suggest(name, self.hints)}; "
                        "read it with the version that wrote it"
                    )
            config = from_dict(values)
            kinds(to_flat(config))  # an unknown method is refused
            flat = to_flat(config)
        except ConfigError as error:
            raise RunError(f"{path}: {error}") from None
        missing = tuple(name for name in self.hints if name not in values and counts(name, flat))
        if missing:
            self.older.setdefault(missing, []).append(path.parent)
        return flat

    def notes(self) -> list[str]:
        """About records of older versions."""
        return [
            f"{folders[0]}{f' and {len(folders) - 1} more' if len(folders) > 1 else ''}: older than some fields, which "
            "are read as what the code did then: "
            + ", ".join(f"{n} {MEANING_BEFORE[n]}" for n in names[:MOST])
            + (f" and {len(names) - MOST} more (see UPGRADING)" if len(names) > MOST else "")
            for names, folders in self.older.items()
        ]


def clean(text: str) -> str:
    """A text from outside on one line, without control characters, so that it cannot break a table or a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))


def _text(value: Any) -> str | None:
    return None if value is None else clean(str(value))


def _checksums(folder: Path) -> dict[str, str]:
    files = read_done(folder)
    if PREDICTIONS in files and not _whole(folder / PREDICTIONS):
        raise RunError(f"{folder / PREDICTIONS}: missing or cut off; the folder is damaged")
    return files


def _whole(path: Path) -> bool:
    """Whether a parquet file is there and has its end; its content is another matter."""
    try:
        with path.open("rb") as file:
            file.seek(-4, os.SEEK_END)
            return file.read() == b"PAR1"
    except OSError:
        return False


def _chosen(summary: Mapping[str, Any]) -> str | None:
    return shown_choice(summary["chosen"]) if summary.get("chosen") else None


def _figures(values: Mapping[str, Any], prefix: str, row: dict[str, Any], path: Path) -> None:
    for key, value in values.items():
        if isinstance(value, dict):
            _figures(value, f"{prefix}{key}/", row, path)
        elif value is None:
            row[prefix + key] = math.nan
        elif is_figure(value):
            row[prefix + key] = float(value)
        else:
            raise RunError(f"{path}: {prefix}{key} = {reprlib.repr(value)}: expected a number")


def _frame(rows: list[dict[str, Any]], more: Sequence[str] = ()) -> pd.DataFrame:
    """Numbers as numbers; texts and values that may be None stay as they are."""
    hints = field_types()
    columns = dict.fromkeys((*ORIGIN, *hints, *RESOLVED, *more))
    for row in rows:
        columns |= dict.fromkeys(row)
    data: dict[str, pd.Series] = {}
    index = pd.RangeIndex(len(rows))  # one for all, so that pandas need not align them
    for name in columns:
        hint: Any = float if "/" in name and not name.startswith("environment/") else hints.get(name, object)
        dtype = hint if hint in (float, int, bool) else object
        default = math.nan if hint is float else None
        data[name] = pd.Series([row.get(name, default) for row in rows], index, dtype)
    return pd.DataFrame(data, index)


def _read_sweeps(
    storages: Sequence[Path], problems: list[str]
) -> tuple[list[SweepRecord], list[dict[str, Any]], dict[Any, str]]:
    """Sweeps by date; their failed cells; when the trainings ended, by storage and key (UTC)."""
    sweeps: list[SweepRecord] = []
    failed: list[dict[str, Any]] = []
    dates: dict[Any, str] = {}
    for storage in storages:
        for path in sorted(storage.glob(f"sweeps/*/{SWEEP}")):
            try:
                record = read_sweep(path.parent)
            except RunError as error:
                problems.append(str(error))
                continue
            states = {cell_key(cell): cell["state"] for cell in record["cells"]}
            made = frozenset(
                key for cell in record["cells"] for key in (cell_key(cell), *cell.get("links", {}).values())
            )
            command = tuple(clean(word) for word in record["command"])
            name, version = clean(record["name"]), record["lchp"]
            sweeps.append(SweepRecord(name, path.parent, storage, command, record["created"], version, states, made))
            for cell in record["cells"]:
                if cell["state"] == "failed":
                    failed.append(_failed(cell, record, storage, path))
                job = record["jobs"].get(cell_job(cell), {})
                if "begin" in job and "seconds" in job:
                    ended = datetime.fromtimestamp(job["begin"] + job["seconds"], UTC)
                    dates[storage, cell_key(cell)] = ended.isoformat(timespec="seconds")
    return sorted(sweeps, key=lambda s: (s.created, str(s.folder))), failed, dates


def _failed(cell: SweepCell, record: SweepFields, storage: Path, path: Path) -> dict[str, Any]:
    error = clean(cell.get("error") or "no error was recorded")
    reason, kind = _reason_of_old(error) if record["version"] == 1 else _reason(cell, record)
    row = {"storage": str(storage), "key": cell_key(cell), "error": error, "diverged": reason == "diverged"}
    row |= {METHOD: _text(cell.get("method")), "link": kind, "config": record["bases"][cell["base"]]}
    return row | {"overrides": {**cell["overrides"], "seed": cell["seed"]}, "source": path}


def _reason(cell: SweepCell, record: SweepFields) -> tuple[str | None, Kind | None]:
    """Why a cell failed, and at which link: that of the first link that failed by itself, where it was another's job;
    None for the cell's own job."""
    reason, links = cell.get("reason"), cell.get("links", {})
    for kind in KINDS if reason == "source_failed" else ():
        job = record["jobs"].get(f"{kind}-{links.get(kind)}", {})
        if job.get("state") == "failed" and job.get("reason") != "source_failed":
            return job.get("reason"), kind
    return reason, None


def _reason_of_old(error: str) -> tuple[str | None, Kind | None]:
    """As `_reason`, of sweep.json's version 1, which has an error in words only."""
    return (
        "diverged" if "training diverged" in error else None,
        "classifier" if error.startswith("its stage 1") else None,
    )


def _with_lost(cell: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A failed cell with the results that it lacks: of the link that failed and of those after it."""
    kind = cell.pop("link")
    return cell | {"lost": (result_of(values),) if kind is None else results(values, kind)}
