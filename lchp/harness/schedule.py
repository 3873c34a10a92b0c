"""Which training may start next: the logic of a sweep, without Ray."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from lchp.harness.cells import Job

State = Literal["waiting", "running", "done", "failed", "stopped", "idle"]
"""`idle`: its result is not there, and nothing that is still to be run needs it."""
Reason = Literal["diverged", "source_failed", "source_damaged", "worker_died", "error"]
"""Why a job failed, for programs; `error` is everything that its text alone tells."""
FINISHED = "finished"


@dataclass
class Progress:
    """What is known of one job: `found` in the store without training; `error`, `reason`: why it failed, for people and
    for programs; `deaths`: how often its worker has died since it last finished an epoch; facts are what its trial
    reported last."""

    job: Job
    state: State = "waiting"
    found: bool = False
    error: str | None = None
    reason: Reason | None = None
    attempts: int = 0
    deaths: int = 0
    epoch: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


class JobSchedule:
    """Jobs and their states. A job is released only when what it needs is there, what others need first. Nothing here
    waits, so no job holds a device while it waits for another."""

    MAX_LOST = 3
    """A job fails after it has found damaged results so many times."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self.jobs: dict[str, Progress] = {}
        self.add(jobs)

    def add(self, jobs: Iterable[Job]) -> None:
        """Adds jobs that are not known yet; those that rest are needed now."""
        for job in jobs:
            progress = self.jobs.setdefault(job.name, Progress(job))
            if progress.state == "idle":
                progress.state = "waiting"

    def next(self) -> Job | Literal["finished"] | None:
        """A job to start now; None: later; FINISHED: there is nothing left to start, nor will there be."""
        waiting = [p for p in self.jobs.values() if p.state == "waiting"]
        ready = [p for p in waiting if all(self.jobs[name].state == "done" for name in p.job.needs)]
        if ready:
            first = min(ready, key=lambda p: len(p.job.needs))
            first.state = "running"
            return first.job
        if waiting or any(p.state == "running" for p in self.jobs.values()):
            return None
        return FINISHED

    def next_exists(self) -> bool:
        """Whether a job waits to be run."""
        return any(p.state == "waiting" for p in self.jobs.values())

    def done(self, name: str, facts: dict[str, Any] | None = None, *, found: bool = False) -> None:
        """A job's result is in the store."""
        progress = self.jobs[name]
        progress.state, progress.found, progress.error, progress.reason = "done", found, None, None
        progress.epoch = progress.job.epochs
        progress.facts |= facts or {}

    def rest(self, wanted: Iterable[str]) -> None:
        """Lets jobs rest that nothing of what is still to be run needs, the jobs `wanted` aside."""
        needed = set(wanted)
        for name in reversed(list(self.jobs)):  # what a job needs stands before it
            progress = self.jobs[name]
            if progress.state == "waiting" and name not in needed:
                progress.state = "idle"
            elif progress.state == "waiting":
                needed.update(progress.job.needs)

    def finished_epoch(self, name: str, epoch: int) -> None:
        """Notes how many epochs a job has finished. Deaths of its worker are counted from the last one on."""
        progress = self.jobs[name]
        if epoch > progress.epoch:
            progress.epoch, progress.deaths = epoch, 0

    def died(self, name: str, error: str, max_failures: int) -> None:
        """A job's worker died, or raised what is no user's mistake. The job is to be run again, unless that has
        happened more than `max_failures` times since it last finished an epoch."""
        progress = self.jobs[name]
        progress.deaths += 1
        if progress.deaths <= max_failures:
            progress.state = "waiting"
            return
        times = "" if progress.deaths == 1 else f" {progress.deaths} times without finishing an epoch in between"
        self.failed(name, f"its worker died{times}: {error}", "worker_died")

    def stopped(self, name: str, facts: dict[str, Any] | None = None) -> None:
        """A scheduler ended a job early; it has no record."""
        progress = self.jobs[name]
        progress.state = "stopped"
        progress.facts |= facts or {}

    def failed(self, name: str, error: str, reason: Reason = "error") -> None:
        """A job failed for good. What needs its result fails with it, by the error of the first that failed."""
        progress = self.jobs[name]
        progress.state, progress.error, progress.reason = "failed", error, reason
        for other in self.jobs.values():
            if name in other.job.needs and other.state == "waiting":
                own = f"its {progress.job.kind} ({progress.job.key}) failed: {error}"
                said = error if reason == "source_failed" else own
                self.failed(other.job.name, said, "source_failed")

    def lost_source(self, name: str, lost: Iterable[str]) -> None:
        """A job found results that it needs (by the names of their jobs) damaged: they are to be made again, and then
        it, a few times at most."""
        progress = self.jobs[name]
        lost = [other for other in lost if other in progress.job.needs]
        progress.facts["lost"] = progress.facts.get("lost", 0) + 1
        if progress.facts["lost"] >= self.MAX_LOST:
            self.failed(
                name, f"a result that it needs ({', '.join(lost)}) was damaged again and again", "source_damaged"
            )
            return
        progress.state = "waiting"
        for other in lost:
            self._again(other)
        broken = next((self.jobs[n] for n in progress.job.needs if self.jobs[n].state in ("failed", "stopped")), None)
        if broken is not None:
            said = f"its {broken.job.kind} ({broken.job.key}) failed: {broken.error}"
            self.failed(name, said, "source_failed")

    def _again(self, name: str) -> None:
        """A job whose result is lost is to be run again, and with it what that needs and nobody needed any more."""
        progress = self.jobs[name]
        if progress.state in ("done", "idle"):
            progress.state, progress.found, progress.epoch = "waiting", False, 0
            for other in progress.job.needs:
                if self.jobs[other].state == "idle":
                    self._again(other)
