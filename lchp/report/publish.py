"""A copy of records to publish beside the tables made of them: without what is large, and what is of one machine."""

import math
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from lchp.config import PATHS, PLACES, flatten
from lchp.errors import ConfigError, RunError
from lchp.evaluation.predictions import read_predictions, summarize
from lchp.files.filesystem import set_mode
from lchp.files.results import checksums
from lchp.files.runs import (
    CONFIG,
    DONE,
    ENVIRONMENT,
    METRICS,
    PREDICTIONS,
    SUMMARY,
    SWEEP,
    allowed,
    make_folder,
    read_environment,
    read_json,
    read_metrics,
    read_summary,
    read_sweep,
    sync_folder,
    unwritable,
    write_atomically,
    write_json,
)
from lchp.files.targets import require_new_folder
from lchp.report.dependence import kinds
from lchp.report.read import collect

_ABSOLUTE = re.compile(r"(?<![\w.:/-])/(?:[\w.@+-]+/)+[\w.@+-]+")
"""A path from the root, of two parts or more; what follows a name, as in a web address, is none."""


@dataclass(frozen=True)
class Published:
    """runs, sweeps: how many were copied; size: bytes of the copy; problems: what was left out, and why."""

    runs: int
    sweeps: int
    size: int
    problems: tuple[str, ...]


def keep(storages: Sequence[Path], out: Path, *, predictions: bool = True) -> Published:
    """Copies the finished runs and the sweeps of storages to `out`, a storage for every script of analysis/.

    Left behind: checkpoints, and the folders of links that runs began from. Folders of the machine become their last
    name, wherever a record mentions them. Every summary is computed again from its predictions first, and a run whose
    summary does not follow from them is left out. Predictions are the same values, compressed harder; without
    `predictions` they are left behind, which tables can do without.

    Raises ConfigError where `out` is there already, RunError where it cannot be written or there is nothing to keep.
    """
    require_new_folder(out)
    records = collect(storages)
    problems = list(records.problems)
    make_folder(out.parent)
    try:
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise unwritable(out, error) from None
    try:
        kept: dict[str, Path] = {}
        for row in records.runs.to_dict("records"):
            folder = Path(row["folder"])
            name, link = folder.name, folder.parent.name if folder.parent.parent.name == "store" else kinds(row)[-1]
            try:
                if name in kept and _same(folder, kept[name]):  # one result in two storages
                    continue
                while name in kept:  # another run that happens to have the name
                    name = f"{name}-{len(kept)}"
                _keep_run(folder, work / "store" / link / name, storages, predictions=predictions)
            except RunError as error:
                problems.append(str(error))
            else:
                kept[name] = folder
        if not kept:
            raise RunError("; ".join(["no finished run to keep", *problems]))
        names: dict[str, int] = {}
        for sweep in records.sweeps:
            names[sweep.name] = names.get(sweep.name, 0) + 1
            name = sweep.name if names[sweep.name] == 1 else f"{sweep.name}-{names[sweep.name]}"
            try:
                _keep_sweep(sweep.folder, work / "sweeps" / name, sweep.storage)
            except ConfigError as error:
                problems.append(f"{sweep.folder / SWEEP}: {error}")
        set_mode(work, allowed(0o777))
        work.rename(out)
        sync_folder(out.parent)
    except OSError as error:
        raise unwritable(out, error) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return Published(len(kept), len(records.sweeps), size, tuple(problems))


def _same(folder: Path, other: Path) -> bool:
    """Whether two run folders hold the same result, wherever their data lay."""
    configs = [read_json(f / CONFIG) for f in (folder, other)]
    for config, place in product(configs, PLACES):
        section, _, name = place.rpartition(".")
        (config.get(section, {}) if section else config).pop(name, None)
    return configs[0] == configs[1] and read_summary(folder) == read_summary(other)


def _follows(found: Any, computed: Any) -> bool:
    """Whether figures of a summary are those computed from its predictions, up to another machine's rounding."""
    if isinstance(computed, Mapping):
        return isinstance(found, Mapping) and all(_follows(found.get(k), v) for k, v in computed.items())
    if isinstance(computed, float) and isinstance(found, (int, float)):
        return math.isclose(found, computed, rel_tol=1e-9, abs_tol=1e-9)
    return found == computed


def _keep_run(folder: Path, to: Path, storages: Sequence[Path], *, predictions: bool) -> None:
    table, summary = read_predictions(folder), read_summary(folder)
    if not _follows(summary, summarize(table)):
        raise RunError(f"{folder}: {SUMMARY} does not follow from {PREDICTIONS}; left out")
    config, environment, metrics = read_json(folder / CONFIG), read_environment(folder), read_metrics(folder)
    places = _places(config, storages)
    if platform := environment.get("platform"):  # the kernel's build says more of a machine than of a result
        environment["platform"] = re.sub(r"^([^-]+)-.*?(x86_64|aarch64|arm64|AMD64).*$", r"\1-\2", platform)
    if stage1 := environment.get("stage1"):  # KEY/checkpoints/initialization.pt: the storage may have moved since
        stage1["checkpoint"] = str(Path(*Path(stage1["checkpoint"]).parts[-3:]))
    for place in environment.get("links", {}).values():
        place["run"] = None if place["run"] is None else Path(place["run"]).name
    for name, value in ((CONFIG, config), (ENVIRONMENT, environment), (SUMMARY, summary)):
        write_json(to / name, _renamed(value, places))
    if metrics:
        lines = (folder / METRICS).read_bytes()
        write_atomically(to / METRICS, lambda file: file.write(lines))
    if predictions:
        write_atomically(
            to / PREDICTIONS, lambda file: pq.write_table(table, file, compression="zstd", compression_level=19)
        )
    write_json(to / DONE, {"key": to.name, "files": checksums(to)})


def _keep_sweep(folder: Path, to: Path, storage: Path) -> None:
    record: dict[str, Any] = {**read_sweep(folder)}
    script = Path(record["command"][0])
    if script.is_absolute():
        record["command"][0] = str(Path(*script.parts[-2:]))
    for job in record["jobs"].values():  # where and by which process it was trained
        for name in ("node", "pid", "devices"):
            job.pop(name, None)
    (record.get("options") or {}).pop("address", None)
    places = {place for base in record["bases"] for place in _places(base, [storage])}
    write_json(to / SWEEP, _renamed(record, sorted(places, key=len, reverse=True)))


def _places(config: Mapping[str, Any], storages: Sequence[Path]) -> list[str]:
    """Absolute folders that a record may mention, the longest first."""
    flat = flatten(config)
    named = (flat.get(name) for name in PATHS)
    given = [*(Path(p) for p in named if isinstance(p, str) and p and "\0" not in p), *storages]
    each = {str(p) for path in given for p in (path, path.absolute(), path.resolve()) if p.is_absolute()}
    return sorted(each - {"/"}, key=len, reverse=True)


def _renamed(value: Any, places: Sequence[str]) -> Any:
    """Plain values in which every text that names one of the places names its last part instead, as does every other
    absolute path (in an error's text, or a command's argument)."""
    if isinstance(value, str):
        for place in places:
            value = value.replace(place, Path(place).name)
        return _ABSOLUTE.sub(lambda path: Path(path[0]).name, value)
    if isinstance(value, Mapping):
        return {k: _renamed(v, places) for k, v in value.items()}
    return [_renamed(v, places) for v in value] if isinstance(value, list) else value
