"""Checkpoints: written atomically, the last two kept, verified by checksum, read as data so that no code in them runs.

The file is torch's own zip archive, whose every record carries a CRC-32 that torch writes and never looks at again.
"""

import logging
import os
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lchp.errors import RunError
from lchp.files.filesystem import sync
from lchp.files.runs import DONE, ENVIRONMENT, SUMMARY, write_atomically
from lchp.training.definition import PartialEpoch, Training

log = logging.getLogger(__name__)


def previous(path: Path) -> Path:
    """Where the checkpoint before the newest is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes `state` to `path`, in a folder that is there; the one before becomes `previous(path)`, once the new one is
    written whole."""

    def write(file: Any) -> None:
        torch.save(state, file)
        if path.exists():
            file.flush()
            sync(file.fileno())  # a disk that fills up shows it here, at the latest
            _keep(path)

    write_atomically(path, write, parents=False)


def _keep(path: Path) -> None:
    second = previous(path)
    if second.exists() and second.samefile(path):
        return  # a kill came between the two names last time; renaming one file's link to another does nothing
    beside = second.with_name(f".{second.name}-previous")  # a name by which lchp.files.runs knows a temporary file
    beside.unlink(missing_ok=True)
    try:
        os.link(path, beside)
    except OSError:  # a file system without hard links
        os.replace(path, second)
    else:
        os.replace(beside, second)


class _DamagedError(RunError):
    """A checkpoint that cannot be read as one."""


def load_checkpoint(path: Path, identity: str | None = None) -> dict[str, Any]:
    """The checkpoint `path` and no other. Raises RunError if it is missing, damaged or another config's."""
    try:
        return _loaded(path, identity)
    except _DamagedError as error:
        if previous(path).exists():
            advice = f"lchp train --output {path.parents[1]} --resume goes on from the one before it"
        else:
            advice = "bring it back from a copy, or train the run again in another --output"
        raise RunError(f"{error}; {advice}") from None


def _loaded(path: Path, identity: str | None = None) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
        if bad is not None:
            raise ValueError(f"the checksum of its record {bad} differs")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        run = path.parents[1]
        if (run / ENVIRONMENT).exists() and not any((run / name).exists() for name in (SUMMARY, DONE)):
            raise RunError(
                f"{run}: the run is not finished, it has no {path.name} yet; lchp train --output {run} --resume, with "
                "the flags that it was begun with, goes on"
            ) from None
        raise RunError(f"{path}: no such checkpoint; has this link been trained in this run folder?") from None
    except MemoryError:
        raise
    except Exception as error:  # zipfile and torch raise whatever their parsing trips over in a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _DamagedError(f"{path}: damaged or not a checkpoint of lchp ({reason[:200]})") from None
    if not isinstance(state, dict) or "identity" not in state or "modules" not in state:
        raise _DamagedError(f"{path}: not a checkpoint of lchp")
    if identity is not None and state["identity"] != identity:
        raise RunError(
            f"{path}: was written by another config (or data); use a new --output, or the config it was made with"
        )
    return state


def newest_checkpoint(path: Path, identity: str) -> dict[str, Any] | None:
    """The newest intact one of `path` and the one before it, or None where there is neither.

    A damaged one is reported and passed over. Raises RunError where none is intact, or it is another config's.
    """
    there = [p for p in (path, previous(path)) if p.exists()]
    faults = []
    for candidate in there:
        try:
            state = _loaded(candidate)
        except RunError as error:
            faults.append(str(error))
            continue
        for fault in faults:
            log.warning("%s: going on from the checkpoint before it, %s", fault, candidate.name)
        return load_checkpoint(candidate, identity) if state["identity"] != identity else state
    if faults:
        raise RunError(f"{'; '.join(faults)}; no checkpoint of this link is intact: start anew in another --output")
    return None


def fill(training: Training, path: Path, identity: str) -> None:
    """Loads the modules of a training that is finished. Raises RunError where it is missing, unfinished, damaged or
    another config's."""
    state = load_checkpoint(path, identity)
    if state["epoch"] < training.epochs:
        raise RunError(
            f"{path}: stopped after {state['epoch']} of {training.epochs} epochs; finish it with --resume first"
        )
    _fill_modules(training, state, path)


def save(training: Training, path: Path, identity: str, epoch: int, within: PartialEpoch | None = None) -> None:
    """Writes the state after `epoch` whole epochs, and how far the next one has come, if it has begun."""
    state = {
        "identity": identity,
        "stage": training.name,
        "epoch": epoch,
        "modules": {k: m.state_dict() for k, m in training.modules.items()},
        "optimizer": None if training.optimizer is None else training.optimizer.state_dict(),
        "schedule": None if training.schedule is None else training.schedule.scheduler.state_dict(),
        "chunks": training.chunks.number,
        "within": None if within is None else asdict(within),
    }
    save_checkpoint(path, state)


def restore(training: Training, path: Path, identity: str) -> tuple[int, PartialEpoch | None]:
    """Loads the newest intact checkpoint into the training; the number of whole epochs, and how far the next one has
    come (0 and None where there is no checkpoint). Raises RunError."""
    state = newest_checkpoint(path, identity)
    if state is None:
        return 0, None
    _fill_modules(training, state, path)
    try:
        if training.optimizer is not None:
            training.optimizer.load_state_dict(state["optimizer"])
        if training.schedule is not None:
            training.schedule.scheduler.load_state_dict(state["schedule"])
        training.chunks.number = max(int(state["chunks"]), training.chunks.number)
        return int(state["epoch"]), None if state["within"] is None else PartialEpoch(**state["within"]).own()
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise _unfit(path, error) from None


def _fill_modules(training: Training, state: dict[str, Any], path: Path) -> None:
    try:
        for name, module in training.modules.items():
            module.load_state_dict(state["modules"][name])
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise _unfit(path, error) from None


def _unfit(path: Path, error: Exception) -> RunError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return RunError(f"{path}: does not fit this training ({reason[:200]})")
