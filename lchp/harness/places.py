"""Where a sweep's record lies and who may write it: a folder, or this machine's mirror of a storage behind a URL."""

import contextlib
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lchp.errors import RunError
from lchp.files import runs
from lchp.files.locks import LOCK, Claim, locked
from lchp.files.marks import RemoteClaim, marked
from lchp.files.remote import Remote
from lchp.files.results import AT_ONCE, bring_all
from lchp.files.runs import DATABASE, SWEEP, TRACKERS

WORK = "work"


@contextlib.contextmanager
def claimed(folder: Path, remote: Remote | None, *, resume: bool) -> Iterator[Claim | RemoteClaim]:
    """Makes the folder of a sweep's record and locks it, behind a URL for all machines, with all that this one needs of
    the storage. resume: the sweep may have been started before. Raises HeldError where another runs it, RunError where
    it is there already, ConfigError for a storage that cannot be used."""
    if remote is not None:
        remote.check(write=True)
    runs.make_folder(folder)
    with contextlib.ExitStack() as held:
        mark = f"{name_of(folder)}/{LOCK}"
        shown = None if remote is None else remote.under(mark)
        claim = held.enter_context(locked(folder / LOCK, name=shown, other="take another --name"))
        if remote is not None:
            claim = held.enter_context(marked(remote, mark, claim))
            bring(folder, remote)
        if not resume:
            require_new(folder, remote)
        yield claim


def bring(folder: Path, remote: Remote, *, check: bool = False) -> None:
    """Brings a sweep's record, and what reports read of all results, from the storage into its mirror. check: whether
    the storage can be read was not looked at yet. Raises ConfigError, RemoteError."""
    if check:
        remote.check(write=False)
    for file in (SWEEP, DATABASE):
        remote.bring(f"{name_of(folder)}/{file}", folder / file)
    if not (folder / SWEEP).exists():  # notes of another sweep, then, which is gone
        shutil.rmtree(folder / TRACKERS, ignore_errors=True)
    bring_all(remote, folder.parents[1])


def send(folder: Path, remote: Remote) -> None:
    """Uploads a sweep's record, and the study of a search. Raises RemoteError."""
    for file in (SWEEP, DATABASE):
        if (folder / file).is_file():
            remote.upload(folder / file, f"{name_of(folder)}/{file}")
        else:
            remote.remove(f"{name_of(folder)}/{file}")


def bring_notes(folder: Path, remote: Remote) -> None:
    """Makes a mirror hold what trackers have of a sweep. Notes that could not be uploaded stay. Raises RemoteError."""
    name = f"{name_of(folder)}/{TRACKERS}"
    there = [file for file in remote.list(name) if "/" not in file and file.endswith(".json")]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda file: remote.bring(f"{name}/{file}", folder / TRACKERS / file), there))


def send_notes(folder: Path, remote: Remote, notes: Path) -> None:
    """Uploads what a tracker has of a cell, so that another machine goes on with its run; of a cell that is done, first
    what it wrote into the sweep's folder (TensorBoard's events). Raises RemoteError, RunError."""
    sent = runs.read_json(notes)
    written = folder / sent["run"]
    if sent["done"] and written.is_dir():
        for file in sorted(written.iterdir()):
            remote.upload(file, f"{name_of(folder)}/{file.relative_to(folder).as_posix()}")
    remote.upload(notes, f"{name_of(folder)}/{TRACKERS}/{notes.name}")


def name_of(folder: Path) -> str:
    """What the names of a sweep's objects begin with."""
    return f"{folder.parent.name}/{folder.name}"


def require_new(folder: Path, remote: Remote | None) -> None:
    """Raises RunError where a sweep's folder holds a record, or unfinished trainings whose record is gone."""
    if remote is None:
        unfinished = any((folder / WORK).glob("*/"))
    else:
        unfinished = any("/" in name for name in remote.list(f"{name_of(folder)}/{WORK}"))
    for there, what in (((folder / SWEEP).is_file(), "a sweep"), (unfinished, "unfinished trainings of a sweep")):
        if there:
            place = folder if remote is None else remote.under(name_of(folder))
            raise RunError(
                f"{place}: holds {what} already; go on with it or add to it by --resume, or take another --name"
            )
