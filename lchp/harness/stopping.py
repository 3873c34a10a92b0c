"""A sweep that is stopped lets its trainings write a checkpoint first: its driver leaves a mark beside their work
folders, which every trial looks for."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lchp.files.locks import HeldError, locked
from lchp.system.interrupt import Interrupted, Stop

MARK = "STOP"
EVERY = 0.5
"""Seconds between two looks of a trial."""
GRACE = 60.0
"""Seconds that the driver waits: batch systems give two minutes and more."""


@dataclass(frozen=True)
class Told:
    """What a trial knows of it: `stop` is asked once the mark is there."""

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


@contextlib.contextmanager
def told_to_stop(work: Path, *, alone: bool) -> Iterator[Told]:
    """Looks for the driver's mark in `work` while the block runs. A training answers at its step's end; in the midst of
    all else (a prediction, a report) this process ends. alone: there is one worker; several, which would have to agree
    on the step, do not look."""
    told, over = Told(), threading.Event()

    def look() -> None:
        asked = False
        while not over.wait(EVERY):
            try:
                if not asked and (work / MARK).exists():
                    asked = True
                    told.stop.ask()
            except OSError:  # a storage that is away for a while
                continue
            except Interrupted:
                _end()
            if asked and told.resting.is_set():
                _end()

    looking = threading.Thread(target=look, name="told to stop", daemon=True)
    if alone:
        looking.start()
    try:
        yield told
    finally:
        over.set()
        if alone:
            looking.join()


def _end() -> None:
    os._exit(0)


def let_stop(work: Path, jobs: Iterable[str]) -> None:
    """Leaves the mark, and waits until the trials of these jobs have let go of their work folders, GRACE at most. Who
    asks a second time ends that by Interrupted."""
    waiting = [work / f"{job}.lock" for job in jobs]
    if not waiting:
        return
    print("\nstopping: trainings write a checkpoint; a second time stops at once", file=sys.stderr, flush=True)
    with contextlib.suppress(OSError):  # the storage is gone, and the trials with it
        (work / MARK).touch()
        end = time.monotonic() + GRACE
        for path in waiting:
            with contextlib.suppress(HeldError), locked(path, wait=max(0.0, end - time.monotonic())):
                pass


def go_on(work: Path) -> None:
    """Takes away the mark of an earlier start."""
    (work / MARK).unlink(missing_ok=True)
