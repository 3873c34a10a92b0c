"""The command line of a search script: the flags of all sweeps, and its own."""

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import optuna
import tyro
from optuna.trial import TrialState

from lchp.config import PRESETS, Preset, show
from lchp.console import guarded, parse, preset_config
from lchp.errors import ConfigError
from lchp.harness.cells import Overrides
from lchp.harness.database import DATABASE, Database, open_study
from lchp.harness.printout import cost, counts, estimate, timing_line
from lchp.harness.script import Flags, Program
from lchp.harness.search import VALIDATION, Search, draft, measured, search, trials_of
from lchp.harness.sweep import SweepResult
from lchp.system import streams

PresetSpace = Callable[[Preset, optuna.Trial], Overrides]


@dataclass
class SearchFlags:
    """Run a search."""

    common: Annotated[Flags, tyro.conf.arg(name="")]
    trials: int = 20
    """Configs to try, those of earlier starts under the same name included."""
    oracle_gt_known: bool = False
    """Choose by GT-Known of the held-out training images. An oracle: it reads boxes; for comparison only."""
    early_stopping: bool = True
    """Stop refinements whose objective falls behind (ASHA)."""


def main(
    name: str,
    space: PresetSpace,
    *,
    about: str | None = None,
    argv: Sequence[str] | None = None,
    program: Program | None = None,
) -> int:
    """Runs a search's script; returns the exit status as `lchp.harness.main` does."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    program = program or Program()

    def body() -> int:
        default = SearchFlags(Flags(preset_config(arguments)))
        flags: SearchFlags = parse(SearchFlags, arguments, program.name, default, about=about)
        common = flags.common
        if common.limit is not None:
            raise ConfigError("--limit: a search has no list of cells; --trials says how many to try")
        common.check_price()
        if common.seeds != 1:
            raise ConfigError(f"--seeds = {common.seeds}: a search takes one seed, --seed; run its best cell with more")
        preset = replace(PRESETS[common.preset], config=common.config)
        spec = Search(
            common.name or name,
            common.config,
            lambda trial: space(preset, trial),
            flags.trials,
            "oracle_gt_known" if flags.oracle_gt_known else "unboxed",
            flags.early_stopping,
        )
        if common.dry_run:
            share = common.config.data.validation or VALIDATION
            print(
                f"{flags.trials} trials, which share the links that they have in common; {100 * share:g} % of the "
                f"training images held out; objective: {spec.objective}"
            )
            plan = draft(spec, common.options)
            print(f"{len(plan.cells)} trials to come; their values are not known yet. For as many drawn at random:")
            print(f"{counts(plan)}\n{cost(plan)}\n{estimate(plan, common.price_per_hour, len(plan.cells))}")
            return 0
        streams.outlast()
        result = search(spec, common.options, show_progress=True)
        print(f"\n{closing(spec, result)}")
        study = shlex.quote(Database(studies(result) / DATABASE).url)
        print(f"\n{timing_line(result)}\nrecords: {result.record}; study: optuna-dashboard {study}")
        return 1 if result.failed else 0

    return guarded(body, program.to_go_on(arguments), error=program.error)


def studies(result: SweepResult) -> Path:
    """The folder of the database of a search's study."""
    return result.storage if result.remote is None else result.folder


def closing(spec: Search, result: SweepResult) -> str:
    """Counts, and the values of the best trial. The records say which is best, not the study."""
    study = open_study(studies(result), spec.name)
    trials = trials_of(study, *TrialState)
    states = [t.state.name.lower() for _, t in trials]
    counts = ", ".join(f"{states.count(s)} {s}" for s in ("complete", "pruned", "fail") if s in states)
    ended = [(v, o) for o in result.cells if o.summary and (v := measured(o.summary, spec.objective)) is not None]
    if not ended:
        return f"trials: {counts or 'none'}"
    value, best = max(ended, key=lambda e: e[0])
    number, drawn = "", best.cell.overrides
    for key, trial in trials:
        if key == best.cell.key and trial.state == TrialState.COMPLETE:
            number, drawn = f"trial {trial.number}, ", trial.params
            break
    what = "oracle GT-Known of held-out images" if spec.objective == "oracle_gt_known" else "score without boxes"
    values = "\n".join(f"  {k} = {f'{v:.4g}' if isinstance(v, float) else show(v)}" for k, v in drawn.items())
    return f"trials: {counts}\nbest by {what}: {number}{value:.2f}\n{values}\n  run: {best.run}"
