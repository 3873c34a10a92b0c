"""A sweep that is stopped lets its trainings write a checkpoint first: its driver leaves a mark beside their work
folders, which every trial looks for."""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lchp.files.locks import HeldError, locked
from lchp.files.remote import Remote, RemoteError
from lchp.system.interrupt import Interrupted, Stop

MARK = "STOP"
EVERY = 0.5
"""Seconds between two looks of a trial."""
LOOK = 2.0
"""The same of a mark behind a URL."""
GRACE = 60.0
"""Seconds that the driver waits: batch systems give two minutes and more."""


@dataclass(frozen=True)
class StopNotice:
    """What a trial knows of the driver's mark: `stop` is asked once it is there."""

    stop: Stop = field(default_factory=Stop)
    resting: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def at_rest(self) -> Iterator[None]:
        """A block that may wait for the driver for ever: all that was trained is on the disk, so that the process may
        end there. Raises Interrupted where the mark was there before."""
        self.stop.answer()
        self.resting.set()
        try:
            yield
        finally:
            self.resting.clear()


@dataclass(frozen=True)
class Unfinished:
    """The folder of a sweep's unfinished trainings; where the storage is behind a URL, also what the names of its
    objects begin with. Each training holds the lock JOB.lock beside its own folder, or has an object of that name."""

    folder: Path
    remote: Remote | None = None
    name: str = ""

    def is_marked(self) -> bool:
        """Whether the driver has left its mark. Raises OSError, RemoteError."""
        if self.remote is None:
            return (self.folder / MARK).exists()
        return self.remote.read(f"{self.name}/{MARK}", tries=1) is not None

    def begin(self, job: str) -> None:
        """Behind a URL: writes the object that says that a training runs. Raises RemoteError."""
        if self.remote is not None:
            self.remote.write(f"{self.name}/{job}.lock", f"pid {os.getpid()} on {socket.gethostname()}\n".encode())

    def end(self, job: str) -> None:
        """Removes that."""
        if self.remote is not None:
            with contextlib.suppress(RemoteError):
                self.remote.remove(f"{self.name}/{job}.lock", tries=1)

    def begun(self) -> set[str]:
        """Behind a URL: the jobs whose trainings run, or were killed. Raises RemoteError."""
        if self.remote is None:
            return set()
        return {name.removesuffix(".lock") for name in self.remote.list(self.name) if name.endswith(".lock")}


@contextlib.contextmanager
def watch_for_mark(work: Unfinished, job: str, *, first: bool) -> Iterator[StopNotice]:
    """Looks for the driver's mark in `work` while the block runs. A training answers at its step's end; in the midst of
    all else (a prediction, a report) this process ends. first: of several workers the first one looks, and agrees with
    the others on the step; when it ends, nobody waits for the others, which end with the sweep."""
    notice, over = StopNotice(), threading.Event()

    def look() -> None:
        asked = False
        while not over.wait(EVERY if asked or work.remote is None else LOOK):
            try:
                if not asked and work.is_marked():
                    asked = True
                    notice.stop.ask()
            except (OSError, RemoteError):  # a storage that is away for a while
                continue
            except Interrupted:
                work.end(job)
                _end()
            if asked and notice.resting.is_set():
                work.end(job)
                _end()

    looking = threading.Thread(target=look, name="watch for mark", daemon=True)
    if first:
        looking.start()
    try:
        yield notice
    finally:
        over.set()
        if first:
            looking.join()


def _end() -> None:
    os._exit(0)


def let_stop(work: Unfinished, jobs: Iterable[str]) -> None:
    """Leaves the mark, and waits until the trials of these jobs have let go of their work folders, GRACE at most. Who
    asks a second time ends that by Interrupted."""
    waiting = set(jobs)
    if not waiting:
        return
    print("\nstopping: trainings write a checkpoint; a second time stops at once", file=sys.stderr, flush=True)
    end = time.monotonic() + GRACE
    with contextlib.suppress(OSError, RemoteError):  # the storage is gone, and the trials with it
        if work.remote is not None:
            work.remote.write(f"{work.name}/{MARK}", b"stop\n", tries=1)
            while work.begun() & waiting and time.monotonic() < end:
                time.sleep(EVERY)
            return
        (work.folder / MARK).touch()
        for job in sorted(waiting):
            path = work.folder / f"{job}.lock"
            with contextlib.suppress(HeldError), locked(path, wait=max(0.0, end - time.monotonic())):
                pass


def go_on(work: Unfinished) -> None:
    """Takes away the mark of an earlier start, and what those of its trainings that were killed have left."""
    (work.folder / MARK).unlink(missing_ok=True)
    if work.remote is not None:
        work.remote.remove(f"{work.name}/{MARK}")
        for job in work.begun():
            work.end(job)
