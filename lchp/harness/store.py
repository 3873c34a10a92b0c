"""The content-addressed store of finished trainings, shared by all sweeps of one storage.

STORAGE/store/KIND/KEY is the run folder of a link (see `lchp.training.chain`), to which the predictions of the links
before it are joined, with a DONE file: the checksums of all its files. A training happens in a work folder beside; DONE
is its last file; then one rename publishes it. So a folder of the store is whole or damaged, never half-written, and
two sweeps that finish the same training publish it once.

Where the storage is behind a URL (`lchp.files.remote`), all of this happens in a mirror. A result is uploaded once it
is published there, and fetched where the mirror lacks it (`lchp.files.results`).
"""

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from lchp.errors import LchpError, RunError
from lchp.files import runs
from lchp.files.filesystem import sync_folder
from lchp.files.locks import LOCK
from lchp.files.remote import Remote
from lchp.files.results import DamagedError, checksums, fetch, is_read, is_whole, put
from lchp.files.runs import (
    CHECKPOINTS,
    CONFIG,
    DONE,
    ENVIRONMENT,
    PREDICTIONS,
    SECOND_CLASSIFIER,
    SUMMARY,
    unwritable,
    write_json,
)
from lchp.training.chain import STAGES, Chain, Kind, chain_of
from lchp.training.checkpoints import previous

log = logging.getLogger(__name__)

MAX_RESULTS = 100_000
"""How many results are remembered with what they hold."""
RESULT, PREDICTED = (CONFIG, ENVIRONMENT), (PREDICTIONS, SUMMARY)
"""Files that every finished link has, and those of one with a result."""


@dataclass(frozen=True)
class Store:
    """The store below `storage`, or the one behind a URL whose mirror that is. light: of a mirror that holds what
    reports read, without checkpoints."""

    storage: Path
    remote: Remote | None = None
    light: bool = False

    def path(self, kind: Kind, key: str) -> Path:
        """Where a result lives once it is published."""
        return self.storage / "store" / kind / key

    def find(self, kind: Kind, key: str, *, look_only: bool = False, mistrust: bool = False) -> Path | None:
        """The run folder of a finished training, checksums verified. A damaged one is moved aside, with a warning;
        `look_only` leaves it where it is. One behind a URL is fetched; a damaged one stays until it is replaced.
        mistrust: others may have found it damaged there, so that even checkpoints are compared."""
        found = self._find(kind, key, look_only=look_only)
        if self.remote is None:
            return found
        return self._agreed(self.remote, kind, key, found, look_only=look_only, mistrust=mistrust)

    def _agreed(
        self, remote: Remote, kind: Kind, key: str, found: Path | None, *, look_only: bool, mistrust: bool
    ) -> Path | None:
        """What the mirror has (`found`) and what the storage has, made one. Raises RemoteError."""
        name = f"store/{kind}/{key}"
        if found is not None and self.light:
            if remote.read(f"{name}/{DONE}") is not None:
                return found
            shutil.rmtree(found, ignore_errors=True)  # removed from the storage
            return None
        if found is not None:
            # an upload failed, or what is there is damaged
            if not look_only and not is_whole(remote, name, found, checkpoints=mistrust):
                put(remote, name, found)
            return found
        try:
            there = fetch(remote, name, self.path(kind, key), light=self.light)
        except DamagedError as error:
            log.warning("%s is damaged (%s); it will be trained again", remote.under(name), error)
            return None
        return self._find(kind, key, look_only=look_only) if there else None

    def _find(self, kind: Kind, key: str, *, look_only: bool) -> Path | None:
        folder = self.path(kind, key)
        if not folder.is_dir():
            return None
        fault, added = verify(folder, kind, key, light=self.light)
        if fault is None:
            if added:
                log.warning("%s: %s not listed in %s: no part of the training", folder, ", ".join(added), DONE)
            return folder
        if look_only:
            log.warning("%s is damaged (%s); it would be moved aside and trained again", folder, fault)
            return None
        aside = self.storage / "store" / "damaged" / f"{kind}-{key}-{time.time_ns()}"
        try:
            aside.parent.mkdir(exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # another sweep has just moved it
                os.rename(folder, aside)
        except OSError as error:
            raise unwritable(aside, error) from None
        log.warning("%s is damaged (%s); it was moved to %s, and will be trained again", folder, fault, aside)
        return None

    def fetched(self, kind: Kind, key: str) -> Path:
        """Where a result lies that was published: behind a URL by another machine, so that it is fetched first.
        Raises RemoteError."""
        path = self.path(kind, key)
        if self.remote is not None and not path.is_dir():
            self.find(kind, key)
        return path

    def holders(self) -> Callable[[Chain], Chain | None]:
        """Looks up the chain of a result, damaged or not, that has the last link of a chain: its own, or one of which
        other things are recorded. For a few look-ups at a time: the results of a kind are listed once, at the first."""

        @cache
        def made(kind: Kind) -> dict[str, Chain]:
            chains = ((folder, _made(folder, kind)) for folder in sorted(self.path(kind, "").glob("*"), reverse=True))
            return {c.last.key: c for folder, c in chains if c is not None and c.record == folder.name}

        def holder(chain: Chain) -> Chain | None:
            kind = chain.last.kind
            own = self.path(kind, chain.record)
            if own.is_dir() and _trained(own, kind):
                return chain
            other = made(kind).get(chain.last.key)
            if other is not None:
                return chain.recorded_as(other.config)
            return chain if own.is_dir() else None

        return holder

    def publish(self, work: Path, kind: Kind, key: str) -> Path:
        """Moves a finished run folder into the store, without second copies of its checkpoints. Where another sweep was
        first, its copy stays and ours goes. Then uploads it, where the storage is behind a URL. Raises RunError."""
        target = self.path(kind, key)
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
                if (
                    self._find(kind, key, look_only=False) is None
                ):  # what stood there was damaged, and is out of the way now
                    os.rename(work, target)
                else:
                    shutil.rmtree(work)
            sync_folder(target.parent)
        except OSError as error:
            raise unwritable(target, error) from None
        if self.remote is not None:
            put(self.remote, f"store/{kind}/{key}", target)
        return target


@lru_cache(MAX_RESULTS)
def _made(folder: Path, kind: Kind) -> Chain | None:
    """The chain whose last link was trained in a folder of the store; None where it was taken from another folder."""
    if not _trained(folder, kind):
        return None
    try:
        return chain_of(
            runs.read_config(folder), runs.read_environment(folder).get("data_fingerprint") or "", last=kind
        )
    except LchpError:
        return None


def _trained(folder: Path, kind: Kind) -> bool:
    """Whether a link was trained in a folder of the store, which has its checkpoint then."""
    try:
        return runs.read_environment(folder).get("links", {})[kind]["run"] is None
    except (RunError, KeyError):
        return False


def verify(folder: Path, kind: Kind, key: str, *, light: bool = False) -> tuple[str | None, list[str]]:
    """What is wrong with a folder of the store, or None; and its files that DONE does not list. light: its checkpoints
    lie elsewhere."""
    try:
        done = json.loads((folder / DONE).read_text())
        said, files = done["key"], dict(done["files"])
    except FileNotFoundError:
        return f"no {DONE} file", []
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{DONE} cannot be read: {error}", []
    if said != key:
        return f"{DONE} names the key {said}", []
    predicted = PREDICTIONS in files or SUMMARY in files  # a link without a result of its own has neither
    if lacking := [name for name in (*RESULT, *(PREDICTED if predicted else ())) if name not in files]:
        return f"{DONE} does not list {', '.join(lacking)}", []
    trained = not predicted or _trained(folder, kind)
    if trained and f"{CHECKPOINTS}/{STAGES[kind]}.pt" not in files:
        return f"{DONE} lists no checkpoint", []
    try:
        there = checksums(folder)
    except OSError as error:
        return f"cannot be read: {error}", []
    for name, checksum in files.items():
        if light and not is_read(name):
            continue
        if name not in there:
            return f"{name} is missing", []
        if there[name] != checksum:
            return f"{name}: checksum differs", []
    return None, [name for name in there if name not in files and name != SECOND_CLASSIFIER]
