"""Searching instead of a grid: Optuna asks for configs, refinements that look bad are stopped early (ASHA).

The objective is measured after every epoch of a refinement on training images that `data.validation` holds out, without
any box unless the oracle is asked for. The study lies in STORAGE/optuna.db (Optuna's own SQLite storage), results in
the store: a result that the study did not hear of is told to it at the next occasion, and never lost.
"""

import contextlib
import logging
import math
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.distributions import check_distribution_compatibility
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from lchp.config import PLACES, TrainConfig, plain, to_flat
from lchp.data import load
from lchp.errors import ConfigError, RunError
from lchp.files import runs
from lchp.files.schema import cell_key
from lchp.harness.cells import MAX_CELLS, Cell, Job, Overrides, Sweep, make_cell, pinned
from lchp.harness.database import DATABASE, open_study
from lchp.harness.options import Options, gpus_per_worker
from lchp.harness.places import bring, claimed, require_new
from lchp.harness.plan import Plan, checked_name, look_up, recorded_cells
from lchp.harness.record import outcomes_of, recorded
from lchp.harness.running import Hooks, run_trials
from lchp.harness.schedule import JobSchedule, Progress
from lchp.harness.sweep import SweepResult, clear_work, tracked
from lchp.tracking import required
from lchp.training.chain import KINDS, Kind

Space = Callable[[optuna.Trial], Overrides]
"""Draws a cell from an Optuna trial, by trial.suggest_float and its like."""

log = logging.getLogger(__name__)

OBJECTIVES = {"unboxed": "validation_score", "oracle_gt_known": "validation_oracle_gt_known"}
VALIDATION = 0.2
_OVER = {"done": TrialState.COMPLETE, "failed": TrialState.FAIL, "stopped": TrialState.PRUNED}


@dataclass(frozen=True)
class Search:
    """What a search draws, how often, and by which of OBJECTIVES it chooses (`oracle_gt_known` reads boxes of the
    held-out images, which the method may not: for comparison only)."""

    name: str
    base: TrainConfig
    space: Space
    trials: int = 20
    objective: str = "unboxed"
    early_stopping: bool = True

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ConfigError(f"objective = {self.objective!r}: expected one of {', '.join(OBJECTIVES)}")
        object.__setattr__(self, "trials", plain(self.trials))
        if not isinstance(self.trials, int) or not 1 <= self.trials <= MAX_CELLS:
            raise ConfigError(f"--trials = {self.trials!r}: expected at least 1 and at most {MAX_CELLS}")


def search(spec: Search, options: Options | None = None, *, show_progress: bool = False) -> SweepResult:
    """Runs a search; `resume` goes on with its study until it has `trials` finished trials.

    Raises ConfigError or RunError for a search that cannot start.
    """
    options = options or Options()
    required(options.track)
    base = pinned(_with_validation(spec.base, spec.objective), gpu=gpus_per_worker(options, spec.base) > 0)
    if base.evaluation.oracle and load(base.data).train.boxes is None:
        raise ConfigError("--oracle-gt-known: the training images have no boxes to choose by")
    store = options.store
    folder = store.storage / "sweeps" / checked_name(spec.name)
    # behind a URL a study of its own: a database cannot be written by two machines there
    storage = store.storage if options.remote is None else folder
    with claimed(folder, options.remote, resume=options.resume) as claim:
        plan = Plan(
            Sweep(spec.name, base, []),
            options,
            recorded_cells(folder, base),
            JobSchedule([]),
            store,
            folder,
            claim,
        )
        plan.schedule.add(plan.jobs().values())
        opened = open_study(storage, spec.name, base.seed)
        if opened.trials and not options.resume:
            raise RunError(f"{storage / DATABASE}: has a study {spec.name!r} already; --resume, or take another --name")
        if options.resume and not opened.trials:
            log.warning("%s: holds no study %s to go on with; this is a new one", storage / DATABASE, spec.name)
        objective = opened.user_attrs.get("objective", None if opened.trials else spec.objective)
        if objective != spec.objective:
            raise RunError(f"{spec.name}: its study is of another objective or program; take another --name")
        recipe = runs.digest({k: v for k, v in to_flat(base).items() if k not in PLACES})
        if opened.user_attrs.get("recipe", recipe) != recipe:
            raise RunError(f"{spec.name}: its study was searched with other flags; take another --name")
        require_space(opened, spec, base)
        opened.set_user_attr("objective", spec.objective)
        opened.set_user_attr("recipe", recipe)
        study = Study(plan, opened, spec)
        study.take_up()
        with recorded(plan), tracked(plan) as sent:

            def changed(progress: Progress) -> None:
                study.changed(progress)
                sent(progress)

            hooks = Hooks(
                study.refill,
                changed,
                asha(base.refinement.epochs) if spec.early_stopping else None,
                OBJECTIVES[spec.objective],
                study.best,
                spec.trials,
            )
            run_trials(plan, hooks, show_progress=show_progress)
            study.close()
        shutil.rmtree(folder / "ray", ignore_errors=True)
        clear_work(plan)  # of trials that were stopped, too
        return SweepResult(folder, outcomes_of(plan), plan.timing, options.remote)


def draft(spec: Search, options: Options) -> Plan:
    """As many cells as a search has trials to come, drawn at random, and which of their links are in the store: what a
    search will take, as far as it can be known. Changes nothing in the storage. Raises as `search`."""
    base = pinned(_with_validation(spec.base, spec.objective), gpu=gpus_per_worker(options, spec.base) > 0)
    store = options.store
    folder, done = store.storage / "sweeps" / checked_name(spec.name), 0
    if store.remote is not None:
        bring(folder, store.remote, check=True)
    if options.resume and (folder / runs.SWEEP).exists():
        done = sum(cell["state"] in ("done", "stopped") for cell in runs.read_sweep(folder)["cells"])
    else:
        require_new(folder, store.remote)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(base.seed))
    cells = [make_cell(base, spec.space(study.ask())) for _ in range(spec.trials - done)]
    plan = Plan(Sweep(spec.name, base, []), options, cells, JobSchedule([]), store, folder)
    plan.schedule.add(plan.jobs().values())
    look_up(plan, look_only=True)
    return plan


def require_space(study: optuna.Study, spec: Search, base: TrainConfig) -> None:
    """Draws a cell that nobody trains. Raises ConfigError where it is none, RunError where the study has a field of the
    same name in another kind of space, which Optuna cannot go on with."""
    probe = optuna.create_study().ask()
    make_cell(base, spec.space(probe))
    now = probe.distributions
    for trial in study.get_trials(deepcopy=False):
        for name, before in trial.distributions.items():
            try:
                check_distribution_compatibility(before, now.get(name, before))
            except ValueError:
                raise RunError(
                    f"{spec.name}: its study has drawn {name} from {before}, this space has {now[name]}; "
                    "give it the same kind of space, or take another --name"
                ) from None


def trials_of(study: optuna.Study, *states: TrialState) -> list[tuple[str, FrozenTrial]]:
    """The trials of a study in these states that are a search's (a study may hold another program's, too), each with
    the key of its cell."""
    found = study.get_trials(deepcopy=False, states=states)
    keyed = [(str(t.user_attrs.get("run", "")).rpartition("/")[2], t) for t in found]
    return [(key, trial) for key, trial in keyed if re.fullmatch("[0-9a-f]{16}", key)]


def measured(summary: Mapping[str, Any], objective: str) -> float | None:
    """The value of an objective in a run's summary.json."""
    value = (summary.get("validation") or {}).get(OBJECTIVES[objective].removeprefix("validation_"))
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def asha(epochs: int) -> Any:
    """Tune's ASHA over the epochs of refinements; other links report no objective and are left alone."""
    from ray.tune.schedulers import ASHAScheduler

    grace = min(max(1, epochs // 9), epochs)
    return ASHAScheduler(
        time_attr="train_epoch",
        metric="objective",
        mode="max",
        max_t=epochs + 1,
        grace_period=grace,
        reduction_factor=3,
    )


@dataclass
class Study:
    """Between an Optuna study and a sweep's schedule.

    Tune calls it, and would die of what it raises. So it keeps the first `fault`, and asks for no more trials; those
    that run come to their end, and `close` raises it.
    """

    plan: Plan
    study: optuna.Study
    spec: Search
    trials: dict[str, list[optuna.Trial]] = field(default_factory=dict)  # job -> its trials, untold of its end
    reported: dict[str, int] = field(default_factory=dict)
    over: int = 0
    failures: int = 0
    fault: Exception | None = None

    def take_up(self) -> None:
        """Takes up what an earlier start left. The study hears of trials whose results came too late for it, and of
        those that the scheduler had stopped when the study could not hear of it. The others that were left running are
        drawn again, with the same values, so that they go on."""
        store, cells, stopped = self.plan.store, {c.key: c for c in self.plan.cells}, _recorded_as_stopped(self.plan)
        for key, trial in trials_of(self.study, TrialState.RUNNING):
            kind = Path(trial.user_attrs["run"]).parent.name
            there_is = kind in KINDS and store.find(cast("Kind", kind), key) is not None
            value = self._recorded_objective(cast("Kind", kind), key) if there_is else None
            if value is None and key in stopped:
                self.study.tell(trial.number, state=TrialState.PRUNED)
                continue
            if value is None:
                values = trial.system_attrs.get("fixed_params", {}) | trial.params
                attrs = {k: v for k, v in trial.user_attrs.items() if k in ("run", "overrides")}
                self.study.enqueue_trial(values, user_attrs=attrs)
            self.study.tell(trial.number, value, state=TrialState.FAIL if value is None else TrialState.COMPLETE)
        over = trials_of(self.study, TrialState.COMPLETE, TrialState.PRUNED)
        complete = {key for key, trial in over if trial.state == TrialState.COMPLETE}
        pruned = {key for key, _ in over} - complete
        self.over = len(over)
        for key, trial in over:
            if key not in cells and "overrides" in trial.user_attrs:  # their record was lost
                cells[key] = make_cell(self.plan.sweep.base, trial.user_attrs["overrides"])
        there = {key for key, c in cells.items() if store.find(c.chain.last.kind, key) is not None}
        # other cells without a result belong to the trials above, which ask for them, or failed
        self.plan.cells[:] = [c for key, c in cells.items() if key == c.key and key in there | pruned | complete]
        self.plan.schedule.jobs.clear()
        self.plan.schedule.add(self.plan.jobs().values())
        for cell in self.plan.cells:
            if cell.key in pruned - there:
                self.plan.schedule.stopped(self.plan.job_of(cell))
        look_up(self.plan)  # a complete trial whose result is damaged is trained again
        for cell in self.plan.cells:
            if cell.key in there:
                facts = self.plan.schedule.jobs[self.plan.job_of(cell)].facts
                facts["objective"] = self._recorded_objective(cell.chain.last.kind, cell.key)

    def refill(self) -> list[Job]:
        """The jobs of the next trial; none when enough trials have been asked."""
        if self.fault is None:
            try:
                return self._draw()
            except Exception as error:
                self._stop(error)
        return []

    def changed(self, progress: Progress) -> None:
        """Tells the study of epochs and ends."""
        if self.fault is None:
            try:
                self._report(progress)
                self._settle()
            except Exception as error:
                self._stop(error)

    def close(self) -> None:
        """Tells the study what it could not be told before. Raises RunError where that fails again, and `fault`."""
        self._settle()
        if self.fault is not None:
            raise self.fault

    def best(self) -> str:
        """For the display: the best objective so far. Never a figure of the test images, by which nothing is chosen."""
        ended = [p for p in self.plan.schedule.jobs.values() if p.state == "done"]
        values = [v for p in ended if (v := p.facts.get("objective")) is not None]
        return f"objective {max(values):.2f}" if values else ""

    def _stop(self, fault: Exception) -> None:
        self.fault = fault
        if any(p.state in ("waiting", "running") for p in self.plan.schedule.jobs.values()):
            log.warning("no more trials are drawn, those begun are trained to their end: %s", fault)

    def _draw(self) -> list[Job]:
        while self._asked() < self.spec.trials:
            trial = self.study.ask()
            cell = self._cell(trial)
            name = self.plan.job_of(cell)
            flat = to_flat(cell.config)
            trial.set_user_attr("run", str(self.plan.store.path(cell.chain.last.kind, cell.key)))
            trial.set_user_attr("overrides", {n: flat[n] for n in cell.overrides})
            self.trials.setdefault(name, []).append(trial)
            if name not in self.plan.schedule.jobs:
                self.plan.cells.append(cell)
                return list(self.plan.jobs([cell]).values())
            self._settle()  # the same config again
        return []

    def _cell(self, trial: optuna.Trial) -> Cell:
        try:
            return make_cell(self.plan.sweep.base, self.spec.space(trial))
        except RunError:  # of the database
            raise
        except Exception as error:
            self.study.tell(trial, state=TrialState.FAIL)
            if isinstance(error, ValueError):  # Optuna's, of a space that is another one than before
                raise ConfigError(f"{self.spec.name}: trial {trial.number} cannot be drawn: {error}") from None
            raise

    def _report(self, progress: Progress) -> None:
        name, facts = progress.job.name, progress.facts
        value, epoch = facts.get("objective"), facts.get("train_epoch")
        if name in self.trials and value is not None and epoch is not None and self.reported.get(name, 0) < epoch:
            self.reported[name] = epoch
            with contextlib.suppress(UpdateFinishedTrialError):  # by another program
                self.trials[name][0].report(value, epoch)

    def _settle(self) -> None:
        """Tells the study of the trials that are over."""
        for name in list(self.trials):
            progress = self.plan.schedule.jobs[name]
            if progress.state == "done":
                lacking = f"its {runs.SUMMARY} has no {OBJECTIVES[self.spec.objective]}"
                try:
                    progress.facts["objective"] = self._recorded_objective(progress.job.kind, progress.job.key)
                except RunError as error:
                    progress.facts["objective"], lacking = None, str(error)
                if progress.facts["objective"] is None:
                    self.plan.schedule.failed(name, lacking)
            state = _OVER.get(progress.state)
            if state is None:
                continue
            value = progress.facts["objective"] if state == TrialState.COMPLETE else None
            for trial in self.trials[name]:
                self.study.tell(trial, value, state=state, skip_if_finished=True)
            told = len(self.trials.pop(name))
            self.failures += told if state == TrialState.FAIL else 0
            self.over += 0 if state == TrialState.FAIL else told

    def _asked(self) -> int:
        """Failures of this start count, so that a space in which everything fails comes to an end."""
        return self.over + sum(map(len, self.trials.values())) + self.failures

    def _recorded_objective(self, kind: Kind, key: str) -> float | None:
        return measured(runs.read_summary(self.plan.store.fetched(kind, key)), self.spec.objective)


def _recorded_as_stopped(plan: Plan) -> set[str]:
    """The keys of the cells whose trial a scheduler had stopped when sweep.json was written."""
    if not (plan.folder / runs.SWEEP).exists():
        return set()
    return {cell_key(cell) for cell in runs.read_sweep(plan.folder)["cells"] if cell["state"] == "stopped"}


def _with_validation(base: TrainConfig, objective: str) -> TrainConfig:
    """The base config with images held out to choose on; their boxes are read under the oracle's name only."""
    base = replace(base, evaluation=replace(base.evaluation, oracle=objective == "oracle_gt_known"))
    if base.data.validation:
        return base
    return replace(base, data=replace(base.data, validation=VALIDATION))
