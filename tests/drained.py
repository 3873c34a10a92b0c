"""Sweeps without Ray: the jobs of a plan one after the other in this process, as trials would run them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lchp.config import TrainConfig
from lchp.files import runs
from lchp.harness import Options, Sweep
from lchp.harness.cells import Job, Overrides
from lchp.harness.plan import Plan, make_plan
from lchp.harness.record import write_record
from lchp.harness.trial import Setting, run_job
from lchp.harness.tune import facts
from lchp.training.chain import Kind, chain_of
from lchp.training.forecast import Forecast, LinkForecast


def drain(
    plan: Plan, report: Callable[[Job, dict[str, Any]], None] = lambda _job, _result: None, objective: str | None = None
) -> list[str]:
    """Runs what is waiting; the names of the jobs, in the order in which they ran."""
    runs.make_folder(plan.work)
    schedule, setting, names = plan.schedule, Setting(str(plan.store.storage), str(plan.work), objective=objective), []
    while isinstance(job := schedule.next(), Job):
        names.append(job.name)
        said: list[dict[str, Any]] = []

        def tell(result: dict[str, Any], job: Job = job, said: list[dict[str, Any]] = said) -> None:
            report(job, result)
            said.append(result)

        run_job(job, setting, tell)
        last = said[-1]
        schedule.jobs[job.name].facts |= facts(last)
        if last["state"] == "failed":
            schedule.failed(job.name, last["error"], last["reason"])
        elif last["state"] == "lost_source":
            schedule.lost_source(job.name, last["lost"].split(","))
        else:
            schedule.done(job.name)
    write_record(plan)
    return names


def planned(
    storage: Path, base: TrainConfig, cells: Sequence[Overrides], name: str = "s", *, share: bool = True
) -> Plan:
    """The plan of a sweep, which goes on with one of its name."""
    return make_plan(Sweep(name, base, cells), Options(storage, share=share, resume=True))


def three_seconds_an_epoch(config: TrainConfig, last: Kind) -> Forecast:
    """In place of what a few batches tell: 3 s an epoch, 1 MB of checkpoints."""
    chain = chain_of(config, "", last=last)
    links = [
        LinkForecast(link.kind, link.stage, link.epochs - link.first, 10, 3.0, 0.0, {}, 1_000_000) for link in chain
    ]
    return Forecast(tuple(links), {"process": 500.0}, config.data.batch_size, 0)
