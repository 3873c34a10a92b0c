"""Running a sweep: what it needs, what the store has, the rest on Ray, and its record."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from lchp.files.remote import Remote
from lchp.files.runs import SWEEP
from lchp.harness import places
from lchp.harness.cells import Sweep, overrides_text
from lchp.harness.options import Options
from lchp.harness.places import WORK, claimed
from lchp.harness.plan import Plan, Timing, checked_name, make_plan
from lchp.harness.record import Outcome, outcomes_of, recorded
from lchp.harness.running import Hooks, run_trials
from lchp.harness.schedule import Progress
from lchp.harness.tracked import cells_sent
from lchp.tracking import required


@dataclass(frozen=True)
class SweepResult:
    """A sweep's record (`folder`/sweep.json) and its cells, those of earlier starts under the same name included.
    `timing`: of this start, None where nothing was left to train. `remote`: the storage behind a URL, whose mirror
    `folder` lies in."""

    folder: Path
    cells: list[Outcome]
    timing: Timing | None = None
    remote: Remote | None = None

    @property
    def storage(self) -> Path:
        """The storage that the sweep's results are in, or its mirror."""
        return self.folder.parents[1]

    @property
    def record(self) -> str:
        """Where sweep.json lies, for people."""
        here = self.folder / SWEEP
        return str(here) if self.remote is None else self.remote.under(f"{places.name_of(self.folder)}/{SWEEP}")

    @property
    def failed(self) -> list[Outcome]:
        """Cells without a result."""
        return [c for c in self.cells if c.state == "failed"]


def run(sweep: Sweep, options: Options | None = None, *, show_progress: bool = False) -> SweepResult:
    """Runs what the store does not have yet, and returns all cells. Failed cells are reported, not raised.

    Raises ConfigError or RunError for a sweep that cannot start.
    """
    options = options or Options()
    required(options.track)
    folder = options.folder / "sweeps" / checked_name(sweep.name)
    with claimed(folder, options.remote, resume=options.resume) as claim:
        plan = replace(make_plan(sweep, options), claim=claim)
        with recorded(plan), tracked(plan) as sent:
            if plan.schedule.next_exists():
                run_trials(plan, Hooks(changed=sent), show_progress=show_progress)
        shutil.rmtree(folder / "ray", ignore_errors=True)
        outcomes = outcomes_of(plan)
        if not any(o.state == "failed" for o in outcomes):
            clear_work(plan)
        return SweepResult(folder, outcomes, plan.timing, options.remote)


def clear_work(plan: Plan) -> None:
    """Removes unfinished trainings."""
    shutil.rmtree(plan.work, ignore_errors=True)
    if plan.store.remote is not None:
        plan.store.remote.remove(f"{places.name_of(plan.folder)}/{WORK}", folder=True)


@contextlib.contextmanager
def tracked(plan: Plan) -> Iterator[Callable[[Progress], None]]:
    """Within the block, cells go to the trackers that the options name: each when the function that it gives is told
    that its job is done, and at the end those of earlier starts that are not there yet."""
    if not plan.options.track:
        yield lambda _: None
        return
    check = plan.claim.check if plan.claim is not None else lambda: None
    if plan.store.remote is not None:
        places.bring_notes(plan.folder, plan.store.remote)
    with cells_sent(tuple(dict.fromkeys(plan.options.track)), plan.folder, plan.store, check) as sender:

        def send(job: str | None = None) -> None:
            for cell in plan.cells:
                own = plan.job_of(cell)
                if job in (None, own) and plan.schedule.jobs[own].state == "done":
                    sender.send([(cell, f"{overrides_text(cell.overrides)}, seed {cell.config.seed}")])

        def changed(progress: Progress) -> None:
            if progress.state == "done":
                send(progress.job.name)

        yield changed
        send()
