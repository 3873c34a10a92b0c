"""Running a plan's jobs on Ray, until none is left."""

import contextlib
import math
import shutil
import textwrap
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, ParamSpec, TypeVar

from lchp.errors import ConfigError, RunError
from lchp.evaluation.metrics import Metric
from lchp.files import runs
from lchp.harness import stopping
from lchp.harness.cells import Job, overrides_text
from lchp.harness.cluster import Resources, cluster
from lchp.harness.display import Display
from lchp.harness.options import Options, gpus_per_worker
from lchp.harness.patience import Patience
from lchp.harness.plan import Plan, Timing
from lchp.harness.record import write_record
from lchp.harness.schedule import Progress
from lchp.harness.trial import Setting

P = ParamSpec("P")
T = TypeVar("T")

DRIVER_CPU = 0.01  # a trial that drives Ray Train must ask for little, or drivers starve their own workers
ROUNDS = 3
RECORD_EVERY = 20.0
"""Time between two writings of sweep.json, as a multiple of what one takes: with 1,000 cells 0.05 s."""


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


def _job_text(plan: Plan, progress: Progress) -> str:
    job = progress.job
    of = [c for c in plan.cells if job.name in (plan.job_of(c), *plan.schedule.jobs[plan.job_of(c)].job.needs)]
    text = textwrap.shorten(overrides_text(of[0].overrides), 60, placeholder=" ...") if of else job.key
    more = f" and {len(of) - 1} more" if len(of) > 1 else ""
    return f"{'all links' if job.alone else job.kind} of {text}{more}, seed {job.config.seed}"
