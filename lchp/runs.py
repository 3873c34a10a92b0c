"""The run folder: config.json, metrics.jsonl, predictions.parquet, summary.json, environment.json, checkpoints/.

Every file is written beside its place and renamed, so that a reader never sees half of one.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from lchp.config import TrainConfig, from_dict, to_dict
from lchp.errors import ConfigError, RunError

CONFIG, METRICS, PREDICTIONS, SUMMARY, ENVIRONMENT = (
    "config.json",
    "metrics.jsonl",
    "predictions.parquet",
    "summary.json",
    "environment.json",
)
CHECKPOINTS = "checkpoints"


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Calls `write` on a temporary file in the same folder, syncs it to disk, and renames it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp's 0600 would hide results from a group that shares the storage
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes JSON; NaN, which JSON lacks, must have become None before."""
    text = json.dumps(value, indent=2, sort_keys=False, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> Any:
    """Reads JSON; raises RunError naming the file."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise RunError(f"{path}: no such file; is {path.parent} a run folder?") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error})") from None


def write_config(run: Path, config: TrainConfig) -> None:
    """Writes config.json, complete, so that it round-trips."""
    write_json(run / CONFIG, to_dict(config))


def read_config(run: Path) -> TrainConfig:
    """The config a run received. Raises RunError where there is none or it does not fit this version."""
    values = read_json(run / CONFIG)
    try:
        return from_dict(values)
    except (ConfigError, TypeError, AttributeError) as error:
        raise RunError(f"{run / CONFIG}: {error}") from None


def append_metrics(run: Path, line: Mapping[str, Any]) -> None:
    """Adds one line (an epoch of a stage) in place of a line of the same epoch that an earlier, cut-off try left."""
    path = run / METRICS
    kept = [old for old in read_metrics(run) if (old["stage"], old["epoch"]) != (line["stage"], line["epoch"])]
    text = "".join(json.dumps(entry) + "\n" for entry in [*kept, line])
    write_atomically(path, lambda file: file.write(text.encode()))


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All lines of metrics.jsonl, oldest first; none if the file is not there."""
    path = run / METRICS
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except ValueError as error:
        raise RunError(f"{path}: cannot be read ({error})") from None


def stage1_folder(run: Path) -> Path:
    """The run folder of a run's stage 1: its own, or the one that a run of stage 2 alone started from.

    environment.json names that by the path it had. A sweep's storage may have been moved since: the stage 1 in the same
    storage comes first.
    """
    stage1 = read_json(run / ENVIRONMENT).get("stage1")
    if stage1 is None:
        return run
    there = Path(stage1["checkpoint"]).parents[1]
    beside = run.absolute().parents[1] / "stage1" / there.name
    return beside if beside.is_dir() else there


def digest(value: Any) -> str:
    """Short hash of plain values, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
