"""What a sweep says while none of its trainings begins, and when it ends for that."""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lchp.errors import RunError
from lchp.files.runs import SWEEP
from lchp.harness import stopping
from lchp.harness.plan import Plan

WORD = 60.0
"""After so many seconds in which no training has begun, a line says so; the next line comes after twice the time."""
NEVER = 600.0
"""After so many seconds without a training, a sweep ends, where nobody else can hold what it waits for."""
LISTED = 10.0
"""Seconds between two lists of the trainings that run, where the storage is behind a URL."""


@dataclass
class Patience:
    """Says so while no training runs, as on a cluster that is full with others' work. On a Ray of our own, it ends a
    sweep that would never begin."""

    plan: Plan
    works: stopping.Unfinished
    need: str
    shared: bool
    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    begun: set[str] = field(default_factory=set)
    listed: float = -math.inf

    def __post_init__(self) -> None:
        self.since, self.next = self.clock(), WORD
        self.begin = (self.plan.folder / SWEEP).stat().st_mtime  # by the clock of the storage

    def look(self) -> None:
        """Raises RunError where nothing has begun and nobody else can be the reason."""
        handed_out = [p.job.name for p in self.plan.schedule.jobs.values() if p.state == "running"]
        if not handed_out or any(map(self._has_begun, handed_out)):
            self.since, self.next = self.clock(), WORD
            return
        waited = self.clock() - self.since
        if waited >= NEVER and not self.shared:
            raise RunError(f"no training has begun for {waited:.0f} s, though each needs no more than {self.need}")
        if waited >= self.next:
            why = "; others may hold what the cluster has" if self.shared else ""
            self.say(f"no training has begun for {waited:.0f} s: waiting for {self.need}{why}")
            self.next *= 2

    def _has_begun(self, job: str) -> bool:
        """A training takes the lock of its work folder first of all, or writes an object of that name."""
        if self.works.remote is not None:
            if job not in self.begun and self.clock() >= self.listed + LISTED:
                self.listed = self.clock()
                with contextlib.suppress(RunError):
                    self.begun |= self.works.begun()
            return job in self.begun
        with contextlib.suppress(FileNotFoundError):
            return (self.plan.work / f"{job}.lock").stat().st_mtime >= self.begin
        return False
