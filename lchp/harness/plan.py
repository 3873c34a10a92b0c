"""A sweep's plan: its cells, the trainings that they need, and which of these the store has."""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from lchp.config import FILES, TrainConfig, from_dict, override, to_flat
from lchp.errors import ConfigError, RunError
from lchp.files import runs
from lchp.files.locks import Claim
from lchp.files.marks import RemoteClaim
from lchp.files.runs import SWEEP
from lchp.harness import places
from lchp.harness.cells import Cell, Job, Sweep, expand, jobs_of, make_cell, pinned
from lchp.harness.options import Options, gpus_per_worker
from lchp.harness.places import WORK
from lchp.harness.schedule import JobSchedule
from lchp.harness.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Timing:
    """What a start of a sweep took: wall time from the start of its process's work to the last result, the trainings'
    own time in all, both in seconds, and how many trainings ran at once."""

    wall: float
    training: float
    places: int

    @property
    def overhead(self) -> float | None:
        """Share of wall time, in percent, beyond the trainings' own time divided by the places; None without any."""
        return 100 * (self.wall * self.places / self.training - 1) if self.training else None


@dataclass
class Plan:
    """Cells, trainings, and where they go. `claim`: the lock on `folder`, None for a plan that is only looked at."""

    sweep: Sweep
    options: Options
    cells: list[Cell]
    schedule: JobSchedule
    store: Store
    folder: Path
    claim: Claim | RemoteClaim | None = None
    created: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    timing: Timing | None = None

    def jobs(self, cells: Sequence[Cell] | None = None) -> dict[str, Job]:
        """The jobs that cells need, by default all."""
        cells = self.cells if cells is None else cells
        return jobs_of(cells, share=self.options.share, stored=self.store.holders())

    def job_of(self, cell: Cell) -> str:
        """The name of the job whose result is a cell's."""
        return cell.job_name(self.options.share)

    @property
    def work(self) -> Path:
        """Folder of unfinished trainings."""
        return self.folder / WORK


def make_plan(sweep: Sweep, options: Options, *, look_only: bool = False) -> Plan:
    """Cells (with those of the record under the same name), their trainings, and which of these are in the store.
    look_only: changes nothing in the storage."""
    store = options.store
    base = pinned(sweep.base, gpu=gpus_per_worker(options, sweep.base) > 0)
    folder = store.storage / "sweeps" / checked_name(sweep.name)
    if look_only and store.remote is not None:
        places.bring(folder, store.remote, check=True)
    cells = {c.key: c for c in [*recorded_cells(folder, base), *expand(replace(sweep, base=base))]}
    if not cells:
        raise ConfigError(f"sweep {sweep.name}: has no cells")
    for cell in cells.values():
        if cell.config.data.batch_size % options.workers_per_trial:
            raise ConfigError(
                f"data.batch_size = {cell.config.data.batch_size}: cannot be cut into equal parts for "
                f"{options.workers_per_trial} workers; change it, or --workers-per-trial"
            )
    plan = Plan(replace(sweep, base=base), options, list(cells.values()), JobSchedule([]), store, folder)
    plan.schedule.add(plan.jobs().values())
    look_up(plan, look_only=look_only)
    if (folder / SWEEP).exists():
        plan.created = runs.read_sweep(folder)["created"]
    elif options.resume:
        log.warning("%s: holds no sweep %s to go on with; this is a new one", options.storage, sweep.name)
    return plan


def look_up(plan: Plan, *, look_only: bool = False) -> None:
    """Marks the jobs whose results are in the store; jobs that no cell waits for rest."""
    jobs = list(plan.schedule.jobs.values())
    with ThreadPoolExecutor(4) as pool:  # checksums release the interpreter's lock
        found = list(pool.map(lambda p: plan.store.find(p.job.kind, p.job.key, look_only=look_only), jobs))
    for progress, path in zip(jobs, found, strict=True):
        if path is not None:
            plan.schedule.done(progress.job.name, found=True)
    plan.schedule.rest(map(plan.job_of, plan.cells))


def recorded_cells(folder: Path, now: TrainConfig) -> list[Cell]:
    """The cells of a sweep's record; none where there is none. Data and weights may have moved: their places are those
    of `now`. Raises RunError for a record that cannot be read."""
    path = folder / SWEEP
    if not path.exists():
        return []
    record = runs.read_sweep(folder)
    try:
        bases = [_moved(from_dict(b), now) for b in record["bases"]]
        return [make_cell(bases[c["base"]], c["overrides"]) for c in record["cells"]]
    except ConfigError as error:
        raise RunError(f"{path}: cannot be used ({error}); take another --name") from None


def _moved(base: TrainConfig, now: TrainConfig) -> TrainConfig:
    """`base` with the places of `now`, where both are of one data set."""
    if base.data.name != now.data.name:
        return base
    data = replace(base.data, root=now.data.root, cache=now.data.cache, workers=now.data.workers)
    weights_dir = now.model.weights_dir if base.model.pretrained else None
    there, here = to_flat(base), to_flat(now)
    files = {name: here[name] for name in FILES if None not in (there[name], here[name])}
    return override(replace(base, data=data, model=replace(base.model, weights_dir=weights_dir)), files)


def checked_name(name: str, where: str = "--name") -> str:
    """The name, if a folder can have it. Raises ConfigError, which says where it is from."""
    if not name or name.startswith(".") or any(c in name for c in "/\\\0"):
        raise ConfigError(f"{where} = {name!r}: expected a plain name, without slashes and not starting with a dot")
    return name
