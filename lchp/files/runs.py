"""The run folder: config.json, metrics.jsonl, predictions.parquet, summary.json, environment.json, checkpoints/.

Every file is written beside its place, synced and renamed, so that a reader never sees half of one and a crash of the
machine leaves the old one or the new. What the system refuses to write is a RunError of one line.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, Literal

from lchp.config import TrainConfig, from_dict, to_dict, unique_keys
from lchp.errors import ConfigError, RunError
from lchp.files.filesystem import name_new, set_mode, sync, sync_folder
from lchp.files.schema import (
    DONE_SCHEMA,
    ENVIRONMENT_SCHEMA,
    EPOCH_SCHEMA,
    JSON_SCHEMA,
    SUMMARY_SCHEMA,
    SWEEP_SCHEMA,
    Environment,
    SummaryFields,
    SweepFields,
    checked,
)

CONFIG, METRICS, PREDICTIONS, SUMMARY, ENVIRONMENT = (
    "config.json",
    "metrics.jsonl",
    "predictions.parquet",
    "summary.json",
    "environment.json",
)
CHECKPOINTS = "checkpoints"
SECOND_CLASSIFIER = "second_classifier.json"
TRACKERS = "trackers"
"""Folder of what trackers have of a run or a sweep (see `lchp.tracking.feed`)."""
SWEEP, DONE = "sweep.json", "DONE"
"""Of a sweep's folder, and of a run folder in a sweep's store."""
MODEL = "lchp.json"
"""Of a model folder, see `lchp.deploy.model_folder`."""
DATABASE = "optuna.db"
"""Of a storage that a search was run in."""
Kind = Literal["classifier", "choice", "boxes", "localizer", "labels", "refinement"]
KINDS: tuple[Kind, ...] = ("classifier", "choice", "boxes", "localizer", "labels", "refinement")

STAGES: Mapping[Kind, str] = MappingProxyType(
    {
        "classifier": "initialization",
        "choice": "choice",
        "boxes": "boxes",
        "localizer": "regression",
        "labels": "labels",
        "refinement": "refinement",
    }
)
"""What metrics.jsonl and the checkpoint of a link are called."""

_TEMPORARY = re.compile(r"\..+\.(?:json|jsonl|parquet|pt)-\w{8}")
"""A file of `write_atomically` before it is renamed."""


_AGAIN = "then give the command again (a training, sweep or search with --resume)"
_REMEDIES: Mapping[int | None, str] = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room"),
    errno.EFBIG: "raise the limit on the size of files",
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make the folder writable or name another"),
    **dict.fromkeys(
        (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EIO, errno.ESTALE, errno.ENOTCONN),
        "a folder on the way is missing, is none, or has lost its disk: see to that",
    ),
}


def unwritable(path: Path, error: OSError) -> RunError:
    """The error to raise where the system refuses to write `path`: one line with its reason and what to do."""
    remedy = _REMEDIES.get(error.errno, "see to that")
    return RunError(f"{path}: cannot be written ({error.strerror or error}); {remedy}, {_AGAIN}")


def write_atomically(
    path: Path, write: Callable[[BinaryIO], object], *, parents: bool = True, new: bool = False
) -> None:
    """Calls `write` on a temporary file in the same folder; syncs it, renames it to `path`, and syncs the folder.

    parents: the folder is made if need be; not so for what belongs into a folder that was claimed, which stays away
    when it has lost its disk. new: raises FileExistsError where `path` is there already.
    Raises RunError, see `unwritable`; what stood at `path` is then still there, and the temporary file is gone.
    """
    if parents:
        make_folder(path.parent)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
                file.flush()
                sync(file.fileno())
            set_mode(name, allowed(0o666))  # mkstemp's 0600 would hide results from a group that shares the storage
            (name_new if new else os.replace)(name, path)
        except BaseException:
            with contextlib.suppress(OSError):  # where the folder is gone, so is the file
                os.unlink(name)
            raise
        sync_folder(path.parent)
    except OSError as error:
        if new and isinstance(error, FileExistsError):
            raise
        raise unwritable(path, error) from None
    except RuntimeError as error:  # torch.save's writer raises one over the file's own error
        if not isinstance(error.__context__, OSError):
            raise
        raise unwritable(path, error.__context__) from None


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it, where they are missing, and syncs their names to disk. Raises RunError."""
    try:
        missing = [one for one in (folder, *folder.parents) if not one.is_dir()]
        folder.mkdir(parents=True, exist_ok=True)
        for made in missing:
            sync_folder(made.parent)
    except OSError as error:
        raise unwritable(folder, error) from None


def write_json(path: Path, value: Any, *, parents: bool = True, new: bool = False) -> None:
    """Writes JSON, as `write_atomically`; NaN, which JSON lacks, must have become None before."""
    text = json.dumps(value, indent=2, sort_keys=False, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()), parents=parents, new=new)


def read_json(path: Path, checksums: Mapping[str, str] | None = None) -> Any:
    """Reads JSON. Raises RunError naming the file: missing, none, nested too deeply, or not as `checksums` (SHA-256 by
    name) say."""
    try:
        data = path.read_bytes()
        value = json.loads(data, object_pairs_hook=unique_keys)
    except FileNotFoundError:
        raise RunError(f"{path}: no such file; is {path.parent} a run folder?") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path}: cannot be read ({error})") from None
    if checksums is not None and checksums.get(path.name) != hashlib.sha256(data).hexdigest():
        raise RunError(f"{path}: checksum differs from {DONE}'s; it was changed or damaged")
    return checked(JSON_SCHEMA, value, path)


def read_summary(run: Path, checksums: Mapping[str, str] | None = None) -> SummaryFields:
    """summary.json. Raises RunError, as `read_json`, and where it is not as `lchp.files.schema` says."""
    return checked(SUMMARY_SCHEMA, read_json(run / SUMMARY, checksums), run / SUMMARY)


def read_environment(run: Path, checksums: Mapping[str, str] | None = None) -> Environment:
    """environment.json; errors as in `read_summary`."""
    return checked(ENVIRONMENT_SCHEMA, read_json(run / ENVIRONMENT, checksums), run / ENVIRONMENT)


def read_sweep(folder: Path) -> SweepFields:
    """sweep.json of a sweep's folder; errors as in `read_summary`."""
    return checked(SWEEP_SCHEMA, read_json(folder / SWEEP), folder / SWEEP)


def read_done(run: Path) -> dict[str, str]:
    """The checksums of a run folder in the store, by file; errors as in `read_summary`."""
    if not (run / DONE).exists():
        raise RunError(f"{run}: no {DONE} file; half-written, or damaged")
    return checked(DONE_SCHEMA, read_json(run / DONE), run / DONE)["files"]


def write_config(run: Path, config: TrainConfig, *, new: bool = False) -> None:
    """Writes config.json, complete, so that it round-trips; by this a training makes the run folder its own.

    Temporary files that a killed one left there are removed. new: raises FileExistsError where there is one already.
    """
    write_json(run / CONFIG, to_dict(config), parents=False, new=new)
    for left in (*run.glob(".*"), *(run / CHECKPOINTS).glob(".*")):
        if _TEMPORARY.fullmatch(left.name):
            left.unlink(missing_ok=True)


def read_config(run: Path) -> TrainConfig:
    """The config a run received. Raises RunError where there is none or it does not fit this version."""
    values = read_json(run / CONFIG)
    try:
        return from_dict(values)
    except (ConfigError, TypeError, AttributeError) as error:
        raise RunError(f"{run / CONFIG}: {error}") from None


def append_metrics(run: Path, line: Mapping[str, Any]) -> None:
    """Adds one line (an epoch of a stage) in place of a line of the same epoch that an earlier, cut-off try left.

    Raises RunError where the run folder is no longer there or cannot be written.
    """
    path = run / METRICS
    kept = [old for old in read_metrics(run) if (old["stage"], old["epoch"]) != (line["stage"], line["epoch"])]
    text = "".join(json.dumps(entry) + "\n" for entry in [*kept, line])
    write_atomically(path, lambda file: file.write(text.encode()), parents=False)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All lines of metrics.jsonl, oldest first; none if the file is not there. Raises RunError naming file and line."""
    path, lines = run / METRICS, list[dict[str, Any]]()
    try:
        for number, text in enumerate(path.read_bytes().splitlines(), 1):
            lines.append(json.loads(text, object_pairs_hook=unique_keys))
            checked(EPOCH_SCHEMA, lines[-1], f"{path}:{number}")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path}:{len(lines) + 1}: cannot be read ({error})") from None
    return lines


def link_folder(run: Path, kind: str) -> Path:
    """The run folder that holds a link of a run (see `lchp.training.chain`): its own, or the one it was taken from.

    environment.json names that by the path it had. A sweep's storage may have been moved since: the folder of that name
    in the same storage comes first.
    """
    return link_folders(run, (kind,))[kind]


def link_folders(run: Path, kinds: Sequence[str]) -> dict[str, Path]:
    """As `link_folder`, of several links."""
    environment = read_environment(run)
    if "links" not in environment:  # a record of before there were links
        stage1 = environment.get("stage1")
        first = run if stage1 is None else _moved(run, Path(stage1["checkpoint"]).parents[1], "stage1")
        return {kind: first if kind in ("classifier", "localizer") else run for kind in kinds}
    places = {kind: environment["links"].get(kind) for kind in kinds}
    return {
        kind: run if place is None or place["run"] is None else _moved(run, Path(place["run"]), kind)
        for kind, place in places.items()
    }


def _moved(run: Path, there: Path, kind: str) -> Path:
    beside = run.absolute().parent.parent / kind / there.name
    return beside if beside.is_dir() else there


def digest(value: Any) -> str:
    """Short hash of plain values, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def allowed(mode: int) -> int:
    """The mode that the system would give a new file (0o666) or folder (0o777): without what the user's umask takes."""
    mask = os.umask(0o077)  # which cannot be read without being set
    os.umask(mask)
    return mode & ~mask
