"""Which training may start next: the logic of a sweep, without Ray."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from lchp.harness.cells import Job

State = Literal["waiting", "running", "done", "failed", "stopped"]
FINISHED = "finished"


@dataclass
class Progress:
    """What is known of one job: `found` in the store without training; `deaths`: how often its worker has died since it
    last finished an epoch; facts are what its trial reported last."""

    job: Job
    state: State = "waiting"
    found: bool = False
    error: str | None = None
    attempts: int = 0
    deaths: int = 0
    epoch: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


class Schedule:
    """Jobs and their states. A stage-2 job is released only when its stage-1 result is there; stage 1 goes first, since
    it is what others wait for. Nothing here waits, so no job holds a device while it waits for another."""

    MAX_LOST = 3
    """Times a stage-1 result may turn out damaged before its stage-2 job gives up."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self.jobs: dict[str, Progress] = {}
        self.add(jobs)

    def add(self, jobs: Iterable[Job]) -> None:
        """Adds jobs that are not known yet."""
        for job in jobs:
            self.jobs.setdefault(job.name, Progress(job))

    def next(self) -> Job | Literal["finished"] | None:
        """A job to start now; None: later; FINISHED: there is nothing left to start, nor will there be."""
        waiting = [p for p in self.jobs.values() if p.state == "waiting"]
        ready = [p for p in waiting if self._source_state(p.job) in (None, "done")]
        if ready:
            chosen = min(ready, key=lambda p: p.job.stage)
            chosen.state = "running"
            return chosen.job
        if waiting or any(p.state == "running" for p in self.jobs.values()):
            return None
        return FINISHED

    def next_exists(self) -> bool:
        """Whether any job is still to be run."""
        return any(p.state == "waiting" for p in self.jobs.values())

    def done(self, name: str, facts: dict[str, Any] | None = None, *, found: bool = False) -> None:
        """A job's result is in the store."""
        progress = self.jobs[name]
        progress.state, progress.found, progress.error = "done", found, None
        progress.epoch = progress.job.epochs
        progress.facts |= facts or {}

    def finished_epoch(self, name: str, epoch: int) -> None:
        """A job reports so many finished epochs. One that gets on may lose a worker as often as it likes."""
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
        self.failed(name, f"its worker died{times}: {error}")

    def stopped(self, name: str, facts: dict[str, Any] | None = None) -> None:
        """A scheduler ended a job early; it has no record."""
        progress = self.jobs[name]
        progress.state = "stopped"
        progress.facts |= facts or {}

    def failed(self, name: str, error: str) -> None:
        """A job failed for good. What needs its result fails with it."""
        progress = self.jobs[name]
        progress.state, progress.error = "failed", error
        for other in self.jobs.values():
            if progress.job.stage == 1 and other.job.source == progress.job.key and other.state == "waiting":
                other.state, other.error = "failed", f"its stage 1 ({progress.job.key}) failed: {error}"

    def lost_source(self, name: str) -> None:
        """A stage-2 job found its stage-1 result damaged: both are to be run again, a few times at most."""
        progress = self.jobs[name]
        source = self.jobs[f"stage1-{progress.job.source}"]
        progress.facts["lost"] = progress.facts.get("lost", 0) + 1
        if progress.facts["lost"] >= self.MAX_LOST:
            self.failed(name, f"its stage-1 result ({progress.job.source}) was damaged again and again")
            return
        if source.state in ("failed", "stopped"):
            self.failed(name, f"its stage 1 ({progress.job.source}) failed: {source.error}")
            return
        progress.state = "waiting"
        if source.state == "done":
            source.state, source.found, source.epoch = "waiting", False, 0

    def count(self, stage: int, *states: State) -> int:
        """How many jobs of a stage are in one of these states."""
        return sum(p.job.stage == stage and p.state in states for p in self.jobs.values())

    def _source_state(self, job: Job) -> State | None:
        return None if job.source is None else self.jobs[f"stage1-{job.source}"].state
