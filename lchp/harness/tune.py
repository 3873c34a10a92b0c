"""The Ray Tune side of a `JobSchedule`: it hands out jobs as trials, and hears what became of them."""

import json
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ray.tune.callback import Callback
from ray.tune.experiment import Trial
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from lchp.errors import reason
from lchp.harness.cells import Job
from lchp.harness.schedule import FINISHED, JobSchedule, Progress

log = logging.getLogger(__name__)

Refill = Callable[[], list[Job]]
"""More jobs, asked for when a place is free and no job is ready; none: there will be no more."""


class LinkSearcher(Searcher):
    """Releases a job only when what it needs is there; says "later" otherwise, and never waits."""

    def __init__(self, schedule: JobSchedule, setting: dict[str, Any], refill: Refill = list) -> None:
        super().__init__()
        self.schedule, self.setting, self.refill = schedule, setting, refill
        self.names: dict[str, str] = {}  # trial id -> job

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """A trial's config, None for later, or FINISHED."""
        job = self.schedule.next()
        if job is None or job == FINISHED:
            self.schedule.add(self.refill())
            job = self.schedule.next()
        if job is None:
            return None
        if not isinstance(job, Job):
            return Searcher.FINISHED
        self.names[trial_id] = job.name
        # the job as text: Tune copies, flattens and keeps all fields of a config, once per report and trial
        return {"name": job.name, "job": json.dumps(job.to_dict()), "setting": self.setting}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Moves the job to its last state; where it ended by an error, `Tracker` moves it, which sees the trial."""
        name = self.names.pop(trial_id, None)
        if name is None or error:
            return
        result = result or {}
        state = result.get("state")
        if state == "failed":
            self.schedule.failed(name, result["error"], result["reason"])
        elif state == "lost_source":
            lost = result["lost"].split(",")
            log.warning("the result of %s is damaged or gone; it will be made again", " and ".join(lost))
            self.schedule.lost_source(name, lost)
        elif state == "done":
            self.schedule.done(name, facts(result))
        else:
            self.schedule.stopped(name, facts(result))

    def save(self, checkpoint_path: str) -> None:
        """Tune's hook, called every few seconds. What a resumed sweep needs is in the store and the schedule is the
        sweep's own; this keeps Tune's snapshots whole."""
        Path(checkpoint_path).write_text(json.dumps(self.names))

    def restore(self, checkpoint_path: str) -> None:
        """The inverse of `save`."""
        self.names = json.loads(Path(checkpoint_path).read_text())


class Tracker(Callback):
    """Notes what trials report in the schedule, and calls `changed` with each job that has news.

    Whether a job is tried again the schedule decides, not Tune (its max_failures is 0), which gives up a trial whose
    worker dies just before it begins, and counts failures over all its time."""

    def __init__(
        self,
        schedule: JobSchedule,
        max_failures: int,
        changed: Callable[[Progress], None],
        stepped: Callable[[], None] = lambda: None,
    ) -> None:
        self.schedule, self.max_failures, self.changed, self.stepped = schedule, max_failures, changed, stepped

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles what it is given, threads and locks of trackers with it, and reads none of it again."""
        return {}

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:  # noqa: ARG002
        """Tune has looked for news, whether there was any or not."""
        self.stepped()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ARG002
        """A start of a job, which may be its second."""
        progress = self._of(trial)
        progress.attempts += 1
        self.changed(progress)

    def on_trial_result(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Trial],  # noqa: ARG002
        trial: Trial,
        result: dict[str, Any],
        **info: Any,  # noqa: ARG002
    ) -> None:
        """An epoch, or the end."""
        progress = self._of(trial)
        self.schedule.finished_epoch(progress.job.name, result.get("done_epochs", 0))
        progress.facts |= facts(result)
        self.changed(progress)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ARG002
        """The searcher has moved the job to its last state before this is called."""
        self.changed(self._of(trial))
        _release(trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ARG002
        """A trial whose worker died."""
        progress = self._of(trial)
        self.schedule.died(progress.job.name, describe_error(trial), self.max_failures)
        self.changed(progress)
        _release(trial)

    def _of(self, trial: Trial) -> Progress:
        return self.schedule.jobs[trial.config["name"]]


class Faulty(Stopper):
    """Ends everything once a hook of ours has failed."""

    def __init__(self, faults: Sequence[Exception]) -> None:
        self.faults = faults

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002
        """No trial ends alone."""
        return False

    def stop_all(self) -> bool:
        """Whether one has."""
        return bool(self.faults)


def _release(trial: Trial) -> None:
    """Tune keeps every trial to the end, with statistics of each number it reported: 30 KB that nobody asks for."""
    trial.run_metadata.metric_analysis.clear()
    trial.run_metadata.metric_n_steps.clear()


def facts(result: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a trial's report."""
    names = ("node", "pid", "devices", "begin", "seconds", "train_seconds", "objective", "train_epoch")
    return {n: result[n] for n in names if n in result}


def describe_error(trial: Trial) -> str:
    """Why a trial died, in one line."""
    # beside the driver; Trial.get_error looks in the storage, where the file comes only later
    file = trial.error_file
    text = Path(file).read_text(errors="replace") if file and Path(file).exists() else ""
    if not text.strip() or "worker process has died" in text:  # Ray lists what may have been, at length
        return "its process was killed or crashed, as it is where memory runs out"
    said = reason(text)
    if re.fullmatch(r"OSError: \[Errno \d+\] [^'\"/]*", said):  # of a file that is open already
        return f"{said}, in {trial.config['setting']['work']}"
    return said
