"""The content-addressed store of finished trainings, shared by all sweeps of one storage.

STORAGE/store/stage1/KEY and STORAGE/store/stage2/KEY are run folders, each with a DONE file: the checksums of all its
files. A training happens in a work folder beside; DONE is its last file; then one rename publishes it. So a folder of
the store is whole or damaged, never half-written, and two sweeps that finish the same training publish it once.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from lchp.checkpoints import previous
from lchp.filesystem import sync_folder
from lchp.locks import LOCK
from lchp.runs import (
    CHECKPOINTS,
    CONFIG,
    DONE,
    ENVIRONMENT,
    METRICS,
    PREDICTIONS,
    SECOND_CLASSIFIER,
    SUMMARY,
    unwritable,
    write_json,
)

log = logging.getLogger(__name__)

RESULT = (CONFIG, METRICS, PREDICTIONS, SUMMARY, ENVIRONMENT)
"""Files that every finished training has."""


@dataclass(frozen=True)
class Store:
    """The store below `storage`."""

    storage: Path

    def path(self, stage: int, key: str) -> Path:
        """Where a result lives once it is published."""
        return self.storage / "store" / f"stage{stage}" / key

    def find(self, stage: int, key: str, *, look_only: bool = False) -> Path | None:
        """The run folder of a finished training, checksums verified. A damaged one is moved aside, with a warning;
        `look_only` leaves it where it is."""
        folder = self.path(stage, key)
        if not folder.is_dir():
            return None
        fault, added = verify(folder, stage, key)
        if fault is None:
            if added:
                log.warning("%s: %s not listed in %s: no part of the training", folder, ", ".join(added), DONE)
            return folder
        if look_only:
            log.warning("%s is damaged (%s): it would be moved aside and trained again", folder, fault)
            return None
        aside = self.storage / "store" / "damaged" / f"stage{stage}-{key}-{time.time_ns()}"
        try:
            aside.parent.mkdir(exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # another sweep has just moved it
                os.rename(folder, aside)
        except OSError as error:
            raise unwritable(aside, error) from None
        log.warning("%s is damaged (%s): moved to %s, to be trained again", folder, fault, aside)
        return None

    def publish(self, work: Path, stage: int, key: str) -> Path:
        """Moves a finished run folder into the store, without second copies of its checkpoints. Where another sweep was
        first, its copy stays and ours goes. Raises RunError."""
        target = self.path(stage, key)
        try:
            for newest in (work / CHECKPOINTS).glob("*.pt"):
                previous(newest).unlink(missing_ok=True)
            for left in (work / LOCK, *work.glob(f".{DONE}-*")):  # by a process that was killed just here
                left.unlink(missing_ok=True)
            write_json(work / DONE, {"key": key, "files": checksums(work)}, parents=False)
            sync_folder(work)
            for folder in (target.parents[1], target.parent):  # not the storage itself, which may be gone
                folder.mkdir(exist_ok=True)
            try:
                os.rename(work, target)
            except OSError:
                if self.find(stage, key) is None:  # what stood there was damaged, and is out of the way now
                    os.rename(work, target)
                else:
                    shutil.rmtree(work)
            sync_folder(target.parent)
        except OSError as error:
            raise unwritable(target, error) from None
        return target


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by relative path; DONE and unfinished temporary files aside."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != DONE and not path.name.startswith("."):
            with path.open("rb") as file:
                found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def verify(folder: Path, stage: int, key: str) -> tuple[str | None, list[str]]:
    """What is wrong with a folder of the store, or None; and its files that DONE does not list."""
    try:
        done = json.loads((folder / DONE).read_text())
        said, files = done["key"], dict(done["files"])
    except FileNotFoundError:
        return f"no {DONE} file", []
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{DONE} cannot be read: {error}", []
    if said != key:
        return f"{DONE} names the key {said}", []
    if lacking := [name for name in RESULT if name not in files]:
        return f"{DONE} does not list {', '.join(lacking)}", []
    if stage == 1 and not any(name.startswith(f"{CHECKPOINTS}/") for name in files):
        return f"{DONE} lists no checkpoint", []
    try:
        there = checksums(folder)
    except OSError as error:
        return f"cannot be read: {error}", []
    for name, checksum in files.items():
        if name not in there:
            return f"{name} is missing", []
        if there[name] != checksum:
            return f"{name}: checksum differs", []
    return None, [name for name in there if name not in files and name != SECOND_CLASSIFIER]
