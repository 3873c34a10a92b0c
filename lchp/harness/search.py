"""Searching instead of a grid: Optuna asks for configs, stage-2 trials that look bad are stopped early (ASHA).

The objective is measured after every epoch of stage 2 on training images that `data.validation` holds out, without any
box unless the oracle is asked for. The study lives in STORAGE/optuna.db (Optuna's own SQLite storage).
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from lchp import runs
from lchp.config import PLACES, TrainConfig, to_flat
from lchp.data import load
from lchp.errors import ConfigError, RunError
from lchp.harness.cells import Job, Overrides, Sweep, jobs_of, make_cell, pinned
from lchp.harness.schedule import Progress, Schedule
from lchp.harness.storage import Store, locked
from lchp.harness.sweep import (
    WORK,
    Options,
    Plan,
    SweepResult,
    checked_name,
    gpus_per_worker,
    outcomes_of,
    recorded,
    recorded_cells,
    require_new,
    run_trials,
)

Space = Callable[[optuna.Trial], Overrides]
"""Draws a cell from an Optuna trial, by trial.suggest_float and its like."""

OBJECTIVES = {"unboxed": "validation_score", "oracle_gt_known": "validation_oracle_gt_known"}
VALIDATION = 0.2
DATABASE = "optuna.db"


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


def search(spec: Search, options: Options | None = None, *, show_progress: bool = False) -> SweepResult:
    """Runs a search; `resume` goes on with its study until it has `trials` finished trials.

    Raises ConfigError or RunError for a search that cannot start.
    """
    options = options or Options()
    if spec.objective not in OBJECTIVES:
        raise ConfigError(f"objective = {spec.objective!r}: expected one of {', '.join(OBJECTIVES)}")
    if spec.trials < 1:
        raise ConfigError(f"--trials = {spec.trials}: expected at least 1")
    base = pinned(_with_validation(spec.base, spec.objective), gpu=gpus_per_worker(options, spec.base) > 0)
    if base.evaluation.oracle and load(base.data).train.boxes is None:
        raise ConfigError("--oracle-gt-known: the training images have no boxes to choose by")
    storage = options.storage.absolute()
    folder = storage / "sweeps" / checked_name(spec.name)
    with locked(folder / "lock"):
        if not options.resume:
            require_new(folder)
        plan = Plan(
            Sweep(spec.name, base, []), options, recorded_cells(folder, base), Schedule([]), Store(storage), folder
        )
        plan.schedule.add(jobs_of(plan.cells, share=options.share).values())
        opened = open_study(storage, spec.name, base.seed)
        if opened.trials and not options.resume:
            raise RunError(f"{storage / DATABASE}: has a study {spec.name!r} already; --resume, or take another --name")
        if opened.user_attrs.get("objective", spec.objective) != spec.objective:
            raise RunError(f"{spec.name}: its study was searched by another objective; take another --name")
        recipe = runs.digest({k: v for k, v in to_flat(base).items() if k not in PLACES})
        if opened.user_attrs.get("recipe", recipe) != recipe:
            raise RunError(f"{spec.name}: its study was searched with other flags; take another --name")
        opened.set_user_attr("objective", spec.objective)
        opened.set_user_attr("recipe", recipe)
        study = Study(plan, opened, spec)
        study.take_up()
        with recorded(plan):
            run_trials(
                plan,
                show_progress=show_progress,
                refill=study.refill,
                changed=study.changed,
                objective=OBJECTIVES[spec.objective],
                total=spec.trials,
                best=study.best,
                **({"scheduler": asha(base.refinement.epochs)} if spec.early_stopping else {}),
            )
        for rest in ("ray", WORK):  # of trials that were stopped, too
            shutil.rmtree(folder / rest, ignore_errors=True)
        return SweepResult(folder, outcomes_of(plan), plan.timing)


def open_study(storage: Path, name: str, seed: int = 0) -> optuna.Study:
    """The study of a search, made if it is not there yet: maximises, samples by TPE."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=f"sqlite:///{storage / DATABASE}", study_name=name, direction="maximize", load_if_exists=True
    )
    # trials run at the same time; and a search that goes on must not draw its first random settings again
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials), constant_liar=True)
    return study


def asha(epochs: int) -> Any:
    """Tune's ASHA over the epochs of stage 2; stage-1 trials report no objective and are left alone."""
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
    """Between an Optuna study and a sweep's schedule."""

    plan: Plan
    study: optuna.Study
    spec: Search
    trials: dict[str, optuna.Trial] = field(default_factory=dict)  # stage-2 job -> its trial
    reported: dict[str, int] = field(default_factory=dict)
    failures: int = 0

    def take_up(self) -> None:
        """Trials that an earlier start left running are asked again with the same values, so that they go on."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self.study.enqueue_trial(trial.params, skip_if_exists=False)
            self.study.tell(trial.number, state=TrialState.FAIL)
        pruned, complete = self._keys(TrialState.PRUNED), self._keys(TrialState.COMPLETE)
        there = {c.stage2 for c in self.plan.cells if self.plan.store.find(2, c.stage2) is not None}
        # other cells without a result belong to the trials above, which ask for them, or failed
        self.plan.cells[:] = [c for c in self.plan.cells if c.stage2 in there | pruned | complete]
        again = {c.stage1 for c in self.plan.cells if c.stage2 in complete - there}  # damaged: to be trained again
        self.plan.schedule.jobs.clear()
        for job in jobs_of(self.plan.cells, share=self.plan.options.share).values():
            self.plan.schedule.add([job])
            if job.key in there or (job.stage == 1 and (job.key not in again or self.plan.store.find(1, job.key))):
                self.plan.schedule.done(job.name, found=True)
            elif job.key in pruned:
                self.plan.schedule.stopped(job.name)

    def _keys(self, state: TrialState) -> set[str]:
        """Stage-2 keys of the trials in a state."""
        return {Path(t.user_attrs["run"]).name for t in self.study.get_trials(deepcopy=False, states=(state,))}

    def refill(self) -> list[Job]:
        """The jobs of the next trial; none when enough trials have been asked."""
        while self._asked() < self.spec.trials:
            trial = self.study.ask()
            cell = make_cell(self.plan.sweep.base, self.spec.space(trial))
            name = f"stage2-{cell.stage2}"
            known = self.plan.schedule.jobs.get(name)
            trial.set_user_attr("run", str(self.plan.store.path(2, cell.stage2)))
            if known is not None:  # the same config again
                value = self._recorded_objective(known) if known.state == "done" else None
                self.failures += value is None
                self.study.tell(trial, value, state=TrialState.FAIL if value is None else TrialState.COMPLETE)
                continue
            self.trials[name] = trial
            self.plan.cells.append(cell)
            return list(jobs_of([cell], share=self.plan.options.share).values())
        return []

    def best(self) -> str:
        """For the display: the best objective so far. Never a figure of the test images, by which nothing is chosen."""
        values = [v for t in self.study.get_trials(deepcopy=False) if (v := t.value) is not None]
        return f"objective {max(values):.2f}" if values else ""

    def changed(self, progress: Progress) -> None:
        """Tells the study of epochs and ends."""
        for other in [n for n in self.trials if self.plan.schedule.jobs[n].state == "failed"]:
            self._tell(other, None, TrialState.FAIL)  # it, or its stage 1, failed
        name = progress.job.name
        trial = self.trials.get(name)
        if trial is None:
            return
        value, epoch = progress.facts.get("objective"), progress.facts.get("train_epoch")
        if value is not None and epoch is not None and self.reported.get(name, 0) < epoch:
            self.reported[name] = epoch
            trial.report(value, epoch)
        if progress.state == "done":
            value = self._recorded_objective(progress)
            progress.facts["objective"] = value
            self._tell(name, value, TrialState.FAIL if value is None else TrialState.COMPLETE)
        elif progress.state == "stopped":
            self._tell(name, None, TrialState.PRUNED)

    def _tell(self, name: str, value: float | None, state: TrialState) -> None:
        self.failures += state == TrialState.FAIL
        self.study.tell(self.trials.pop(name), value, state=state)

    def _asked(self) -> int:
        """Failures of this start count, so that a space in which everything fails comes to an end."""
        over = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        return len(over) + len(self.trials) + self.failures

    def _recorded_objective(self, progress: Progress) -> float | None:
        summary = runs.read_json(self.plan.store.path(2, progress.job.key) / runs.SUMMARY)
        key = OBJECTIVES[self.spec.objective].removeprefix("validation_")
        return (summary.get("validation") or {}).get(key)


def _with_validation(base: TrainConfig, objective: str) -> TrainConfig:
    """The base config with images held out to choose on; their boxes are read under the oracle's name only."""
    base = replace(base, evaluation=replace(base.evaluation, oracle=objective == "oracle_gt_known"))
    if base.data.validation:
        return base
    return replace(base, data=replace(base.data, validation=VALIDATION))
