"""Running a sweep: what it needs, what the store has, the rest on Ray, and its record.

STORAGE/sweeps/NAME/sweep.json lists the cells with their overrides, keys, states and run folders (relative to STORAGE),
so that whatever reads results needs no Ray. It and the store are all that --resume looks at; Ray's own state is thrown
away, so a grid may change between two starts, and no kill can leave it half-written.
"""

import contextlib
import logging
import math
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import tyro

from lchp import __version__
from lchp.config import FILES, TrainConfig, from_dict, override, short_name, show, to_dict, to_flat
from lchp.errors import ConfigError, RunError
from lchp.evaluation.metrics import Metric
from lchp.files import runs
from lchp.files.locks import Claim
from lchp.files.marks import RemoteClaim
from lchp.files.remote import Remote, as_storage
from lchp.files.runs import SWEEP
from lchp.files.schema import SWEEP_VERSIONS
from lchp.harness import places, stopping
from lchp.harness.cells import Cell, Job, Sweep, expand, jobs_of, make_cell, pinned
from lchp.harness.cluster import Resources, cluster
from lchp.harness.display import Display
from lchp.harness.places import WORK, claimed
from lchp.harness.schedule import JobSchedule, Progress, Reason
from lchp.harness.store import Store
from lchp.harness.tracked import cells_sent
from lchp.harness.trial import Setting
from lchp.tracking import TrackerName, required
from lchp.training.chain import label

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

DRIVER_CPU = 0.01  # a trial that drives Ray Train must ask for little, or drivers starve their own workers
ROUNDS = 3
WORD = 60.0
"""Seconds in which some training should have begun; if none has, a line says so, and again after twice the time."""
NEVER = 600.0
"""Seconds after which a sweep ends in which none has begun, where nobody else can hold what it waits for."""
LISTED = 10.0
"""Seconds between two lists of the trainings that run, where the storage is behind a URL."""
RECORD_EVERY = 20.0
"""Time between two writings of sweep.json, in times of what one takes: with 1,000 cells that is 0.05 s per writing."""


@dataclass(frozen=True)
class Options:
    """How a sweep runs; none of it changes a result."""

    storage: Remote | Path = Path("results")
    """Folder of the store and of the sweeps' records, or its URL (s3://BUCKET/PREFIX), where nodes share no disk."""
    resume: bool = False
    """Go on with the sweep of this name; cells that are new are added."""
    gpus_per_trial: float | None = None
    """GPUs per worker, e.g. 0.5 for two on one; by default 1 where this machine has any, else 0."""
    workers_per_trial: int = 1
    """Workers that share one training (DDP)."""
    max_concurrent: int = 0
    """Trainings at once; 0: as many as fit."""
    max_failures: int = 2
    """Times a training is tried again when its worker dies; counted anew whenever it has finished an epoch."""
    address: str | None = None
    """Ray cluster to run on; $RAY_ADDRESS by default, else this machine."""
    nodes: int = 1
    """Nodes that the cluster must have; the sweep waits for them, five minutes at most."""
    share: bool = True
    """Train each link (classifier, localizer, ...) once for all cells that need the same."""
    track: tyro.conf.UseAppendAction[tuple[TrackerName, ...]] = ()
    """Tracker that gets a run of each cell that is done; may be given several times."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "storage", as_storage(self.storage))  # a text will do
        object.__setattr__(self, "track", tuple(self.track))
        for name, least in (
            ("gpus_per_trial", 0),
            ("workers_per_trial", 1),
            ("max_concurrent", 0),
            ("max_failures", 0),
            ("nodes", 1),
        ):
            value = getattr(self, name)
            if value is not None and (not math.isfinite(value) or value < least):
                raise ConfigError(f"--{name.replace('_', '-')} = {value}: expected at least {least}")
        if self.workers_per_trial > 1 and self.gpus_per_trial is not None and 0 < self.gpus_per_trial < 1:
            raise ConfigError(
                f"--gpus-per-trial = {self.gpus_per_trial}: workers of one training need a GPU each; "
                "leave --workers-per-trial at 1 to share a GPU"
            )
        if self.gpus_per_trial is not None and self.gpus_per_trial > 1 and self.gpus_per_trial % 1:
            raise ConfigError(
                f"--gpus-per-trial = {self.gpus_per_trial}: a share of one GPU, or a whole number of GPUs"
            )

    @property
    def remote(self) -> Remote | None:
        """The storage, where it is behind a URL."""
        return self.storage if isinstance(self.storage, Remote) else None

    @property
    def folder(self) -> Path:
        """The storage's folder, or this machine's mirror of it."""
        return self.storage.mirror("sweeps") if isinstance(self.storage, Remote) else self.storage.absolute()

    @property
    def store(self) -> Store:
        """The store of results, as the program that drives a sweep reads it."""
        return Store(self.folder, self.remote, light=self.remote is not None)


@dataclass(frozen=True)
class Outcome:
    """One cell after a sweep. `run`: its run folder, `summary`: what it measured; None unless `state` is `done`.
    `error`, `reason`: why it failed, for people and for programs."""

    cell: Cell
    state: str
    error: str | None
    reason: Reason | None
    run: Path | None
    summary: dict[str, Any] | None

    @property
    def seed(self) -> int:
        """Of the cell's config."""
        return self.cell.config.seed


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
def recorded(plan: Plan) -> Iterator[None]:
    """Writes sweep.json before and after the block. Of a new sweep that ends before any training began (a cluster that
    cannot be joined, say) none is left, so that the same command can be given again."""
    new = not (plan.folder / SWEEP).exists()
    write_record(plan)
    try:
        yield
    except BaseException:
        if not new or any(p.attempts for p in plan.schedule.jobs.values()):
            write_record(plan)
        else:
            if plan.claim is not None:
                plan.claim.check()
            (plan.folder / SWEEP).unlink(missing_ok=True)
            if plan.store.remote is not None:
                with contextlib.suppress(RunError):  # what ended the sweep is to be said
                    places.send(plan.folder, plan.store.remote)
        raise
    write_record(plan)


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
    """Marks the jobs whose results are in the store. One that no cell waits for is to rest."""
    jobs = list(plan.schedule.jobs.values())
    with ThreadPoolExecutor(4) as pool:  # checksums release the interpreter's lock
        found = list(pool.map(lambda p: plan.store.find(p.job.kind, p.job.key, look_only=look_only), jobs))
    for progress, path in zip(jobs, found, strict=True):
        if path is not None:
            plan.schedule.done(progress.job.name, found=True)
    plan.schedule.rest(map(plan.job_of, plan.cells))


def recorded_cells(folder: Path, now: TrainConfig) -> list[Cell]:
    """The cells of a sweep's record; none where there is none. Data and weights are looked for where `now` has them,
    since they may have moved. Raises RunError for a record that cannot be read."""
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


def write_record(plan: Plan) -> None:
    """Writes sweep.json. Raises RunError, also where the sweep's folder is no longer the one that was claimed."""
    if plan.claim is not None:
        plan.claim.check()
    bases: dict[TrainConfig, int] = {}
    cells = []
    for outcome in outcomes_of(plan, summaries=False):
        cell = outcome.cell
        cells.append(
            {
                "overrides": cell.overrides,
                "seed": cell.config.seed,
                "method": label(cell.config),
                "base": bases.setdefault(cell.base, len(bases)),
                "key": cell.key,
                "links": {cell.chain.last.kind: cell.key, **plan.schedule.jobs[plan.job_of(cell)].job.sources},
                "state": outcome.state,
                "error": outcome.error,
                "reason": outcome.reason,
                "job": plan.job_of(cell),
                "run": str(plan.store.path(cell.chain.last.kind, cell.key).relative_to(plan.store.storage)),
            }
        )
    jobs = {
        name: {
            "state": p.state,
            "found": p.found,
            "error": p.error,
            "reason": p.reason,
            "attempts": p.attempts,
            **p.facts,
        }
        for name, p in plan.schedule.jobs.items()
    }
    record = {
        "version": SWEEP_VERSIONS[-1],
        "lchp": __version__,
        "name": plan.sweep.name,
        "command": sys.argv,
        "created": plan.created,
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "options": {**asdict(plan.options), "storage": str(plan.options.storage)},
        "bases": [to_dict(base) for base in bases],
        "timing": None if plan.timing is None else asdict(plan.timing),
        "cells": cells,
        "jobs": jobs,
    }
    runs.write_json(plan.folder / SWEEP, record, parents=plan.claim is None)
    if plan.store.remote is not None:
        places.send(plan.folder, plan.store.remote)


def outcomes_of(plan: Plan, *, summaries: bool = True) -> list[Outcome]:
    """The cells as they stand."""
    out = []
    for cell in plan.cells:
        progress = plan.schedule.jobs[plan.job_of(cell)]
        path = plan.store.path(cell.chain.last.kind, cell.key) if progress.state == "done" else None
        summary, state, error, reason = None, progress.state, progress.error, progress.reason
        if summaries and path is not None:
            try:
                plan.store.fetched(cell.chain.last.kind, cell.key)
                summary = {**runs.read_summary(path)}
            except RunError as fault:  # damaged since it was published
                path, state, error, reason = None, "failed", str(fault), "error"
        out.append(Outcome(cell, state, error, reason, path, summary))
    return out


@dataclass(frozen=True)
class Hooks:
    """What a search adds to a sweep: `refill` gives more jobs, `changed` hears of each job with news, `scheduler` (one
    of Tune's) stops trials by `objective`, a name among an epoch's metrics; for the display, `best` says how good the
    best is (by default GT-Known) and `total` how many cells there will be at least."""

    refill: Callable[[], list[Job]] = list
    changed: Callable[[Progress], None] = lambda _: None
    scheduler: Any = None
    objective: str | None = None
    best: Callable[[], str] | None = None
    total: int = 0


def run_trials(plan: Plan, hooks: Hooks | None = None, *, show_progress: bool) -> None:
    """Runs the waiting jobs on Ray until none is left."""
    options, hooks = plan.options, hooks or Hooks()
    gpus = gpus_per_worker(options, plan.sweep.base)
    setting = Setting(
        str(plan.store.storage),
        str(plan.work),
        options.workers_per_trial,
        float(plan.sweep.base.threads),
        gpus,
        hooks.objective,
        None if plan.claim is None else plan.claim.mark,
        None if options.remote is None else options.remote.url,
    )
    works = setting.works
    runs.make_folder(plan.work)
    begin = time.perf_counter()
    display = Display(
        plan.schedule,
        lambda: _count_cells(plan, hooks.total),
        hooks.best or (lambda: _best(plan)),
        lambda p: _job_text(plan, p),
        show_progress,
    )
    stopping.go_on(works)
    with cluster(
        options.address,
        nodes=options.nodes,
        dashboard=setting.wrapper == "ray_train" and hooks.scheduler is not None,
        before_leaving=lambda: stopping.let_stop(works, _training(plan)),
    ) as resources:
        at_once = places_for(setting, options, resources)
        display.open()
        try:
            for _ in range(ROUNDS):
                _tune(plan, setting, at_once, display, hooks, resources)
                if not any(p.state in ("waiting", "running") for p in plan.schedule.jobs.values()):
                    break
                for progress in plan.schedule.jobs.values():  # Tune ended without telling of them: again
                    progress.state = "waiting" if progress.state == "running" else progress.state
            for progress in list(plan.schedule.jobs.values()):
                if progress.state == "waiting":
                    plan.schedule.failed(progress.job.name, "was started and never came back")
        finally:
            display.close()
            own = sum(p.facts.get("train_seconds", 0.0) for p in plan.schedule.jobs.values())
            plan.timing = Timing(time.perf_counter() - begin, own, at_once)


def _training(plan: Plan) -> list[str]:
    return [name for name, progress in plan.schedule.jobs.items() if progress.state == "running"]


def places_for(setting: Setting, options: Options, resources: Resources) -> int:
    """How many trials run at once. Raises ConfigError where not even one fits."""
    cpus = resources.cpus / (setting.cpus * setting.workers)
    gpus = math.inf
    if setting.gpus:
        # a share of a GPU cannot be put together from two GPUs
        per_gpu = math.floor(1 / setting.gpus + 1e-6) if setting.gpus <= 1 else 1 / setting.gpus
        gpus = resources.gpus * per_gpu / setting.workers
    places = math.floor(min(cpus, gpus) + 1e-6)
    if places < 1:
        need = f"{setting.workers} x ({setting.cpus:g} CPUs, {setting.gpus:g} GPUs)"
        raise ConfigError(
            f"a trial needs {need}, but Ray has {resources.cpus:g} CPUs and {resources.gpus:g} GPUs; "
            "lower --workers-per-trial, --gpus-per-trial or --threads"
        )
    return min(places, options.max_concurrent) if options.max_concurrent else places


@dataclass
class Patience:
    """Says so while no training runs, which may be the cluster's being full with others' work; on a Ray of our own,
    ends what would never begin."""

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


def _tune(plan: Plan, setting: Setting, places: int, display: Display, hooks: Hooks, resources: Resources) -> None:
    from ray import tune

    from lchp.harness.trial import plain_trial, ray_train_trial
    from lchp.harness.tune import Faulty, LinkSearcher, Tracker

    news, due = False, 0.0  # of sweep.json: whether it is behind, and when it may be written again
    faults: list[Exception] = []  # raised inside Tune, they would come with its traceback: they end it, then are raised

    def kept(hook: Callable[P, T], otherwise: T) -> Callable[P, T]:
        def call(*args: P.args, **more: P.kwargs) -> T:
            try:
                return otherwise if faults else hook(*args, **more)
            except Exception as error:
                faults.append(error)
                return otherwise

        return call

    need = f"{setting.workers} x ({setting.cpus:g} CPUs, {setting.gpus:g} GPUs)"
    patience = Patience(plan, setting.works, need, resources.shared, display.say)

    def look() -> None:
        kept(patience.look, None)()
        if faults:
            raise KeyboardInterrupt  # of anything else Tune prints a traceback

    def changed(progress: Progress) -> None:
        nonlocal news, due
        hooks.changed(progress)
        news |= progress.state in ("done", "failed", "stopped")
        begin = time.monotonic()
        if news and begin >= due:
            write_record(plan)
            news, due = False, time.monotonic() + RECORD_EVERY * (time.monotonic() - begin)
        display.changed(progress)

    if setting.wrapper == "plain":
        trainable = tune.with_resources(plain_trial, {"CPU": setting.cpus})
    else:
        # so that drivers and workers together fit on the cores
        setting = replace(setting, cpus=setting.cpus - 2 * DRIVER_CPU)
        trainable = tune.with_resources(ray_train_trial, {"CPU": DRIVER_CPU})
    name = f"{time.time_ns()}"
    searcher = LinkSearcher(plan.schedule, asdict(setting), kept(hooks.refill, []))
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=hooks.scheduler,
            num_samples=-1,
            max_concurrent_trials=places,
            reuse_actors=setting.wrapper == "plain",  # saves the import of torch
            trial_name_creator=lambda trial: trial.trial_id,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(plan.folder / "ray"),
            callbacks=[Tracker(plan.schedule, plan.options.max_failures, kept(changed, None), look)],
            stop=Faulty(faults),
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    except (KeyboardInterrupt, Exception):
        if not faults:
            raise
    if faults:
        # Tune writes its state at the end, and makes folders for it where the storage is gone
        shutil.rmtree(plan.folder / "ray" / name, ignore_errors=True)
        for empty in (plan.folder / "ray", plan.folder, plan.folder.parent):
            with contextlib.suppress(OSError):
                empty.rmdir()
        raise faults[0]


def gpus_per_worker(options: Options, base: TrainConfig) -> float:
    """GPUs per worker: what was asked for, or one where this machine has any and the config does not say cpu."""
    if options.gpus_per_trial is not None:
        return float(options.gpus_per_trial)
    if base.device == "cpu":
        return 0.0
    import torch

    return 1.0 if torch.cuda.is_available() else 0.0


def checked_name(name: str) -> str:
    if not name or name.startswith(".") or any(c in name for c in "/\\\0"):
        raise ConfigError(f"--name = {name!r}: expected a plain name, without slashes and not starting with a dot")
    return name


def _count_cells(plan: Plan, total: int = 0) -> tuple[int, int, int]:
    states = [plan.schedule.jobs[plan.job_of(c)].state for c in plan.cells]
    return states.count("done"), states.count("failed"), max(total, len(states))


def _best(plan: Plan) -> str:
    best: tuple[float, str] | None = None
    for cell in plan.cells:
        progress = plan.schedule.jobs[plan.job_of(cell)]
        if progress.state != "done":
            continue
        if "score" not in progress.facts:  # read once
            progress.facts["score"] = None
            with contextlib.suppress(RunError):  # damaged meanwhile: said at the end
                folder = plan.store.fetched(cell.chain.last.kind, cell.key)
                progress.facts["score"] = headline({**runs.read_summary(folder)})
        score = progress.facts["score"]
        if score is not None and (best is None or score > best[0]):
            best = score, textwrap.shorten(overrides_text(cell.overrides), 60, placeholder=" ...")
    return "" if best is None else f"{best[0]:.2f} ({best[1]})"


def headline(summary: dict[str, Any]) -> float | None:
    """The one figure of a progress display: GT-Known of the last result (LCHP-R's, or a compared method's) in
    center_crop; without boxes, its score (`unboxed`)."""
    known = Metric(next(reversed(summary["results"])), "center_crop").of(summary)
    return known if known is not None else summary.get("unboxed", {}).get("center_crop", {}).get("score")


def overrides_text(overrides: dict[str, Any]) -> str:
    """Overrides as text: `delta 0.6, tau 0.9`."""
    return ", ".join(f"{short_name(k)} {show(v)}" for k, v in overrides.items()) or "base"


def _job_text(plan: Plan, progress: Progress) -> str:
    job = progress.job
    of = [c for c in plan.cells if job.name in (plan.job_of(c), *plan.schedule.jobs[plan.job_of(c)].job.needs)]
    text = textwrap.shorten(overrides_text(of[0].overrides), 60, placeholder=" ...") if of else job.key
    more = f" and {len(of) - 1} more" if len(of) > 1 else ""
    return f"{'all links' if job.alone else job.kind} of {text}{more}, seed {job.config.seed}"


__all__ = ["Job", "Options", "Outcome", "Plan", "SweepResult", "make_plan", "run"]
