"""The command line of a search script: the flags of all sweeps, and its own."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import optuna
import tyro

from lchp import streams
from lchp.cli import chosen_preset, guarded, parse
from lchp.config import PRESETS, Preset
from lchp.errors import ConfigError
from lchp.harness.cells import Overrides
from lchp.harness.cli import Flags, described, to_go_on
from lchp.harness.search import DATABASE, VALIDATION, Search, open_study, search
from lchp.harness.tables import timing_line

Space = Callable[[Preset, optuna.Trial], Overrides]


@dataclass
class SearchFlags:
    """Run a search."""

    common: Annotated[Flags, tyro.conf.arg(name="")]
    trials: int = 20
    """Configs to try, those of earlier starts under the same name included."""
    oracle_gt_known: bool = False
    """Choose by GT-Known of the held-out training images. An oracle: it reads boxes; for comparison only."""
    early_stopping: bool = True
    """Stop stage-2 trainings whose objective falls behind (ASHA)."""


def main(name: str, space: Space, *, about: str | None = None, argv: Sequence[str] | None = None) -> int:
    """Runs a search's script; returns the exit status as `lchp.harness.main` does."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def body() -> int:
        default = SearchFlags(Flags(chosen_preset(arguments)))
        flags: SearchFlags = parse(described(SearchFlags, about), arguments, Path(sys.argv[0]).name, default)
        common = flags.common
        if common.limit is not None:
            raise ConfigError("--limit: a search has no list of cells; --trials says how many to try")
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
                f"{flags.trials} trials, each one stage 1 and one stage 2; {100 * share:g} % of the training images "
                f"held out; objective: {spec.objective}"
            )
            return 0
        streams.outlast()
        result = search(spec, common.options, show_progress=True)
        print(f"\n{closing(spec, common.options.storage.absolute())}")
        study = f"sqlite:///{common.options.storage / DATABASE}"
        print(f"\n{timing_line(result)}\nrecords: {result.folder / 'sweep.json'}; study: optuna-dashboard {study}")
        return 1 if result.failed else 0

    return guarded(body, to_go_on(arguments))


def closing(spec: Search, storage: Path) -> str:
    """Counts, and the best trial as flags to run it again."""
    study = open_study(storage, spec.name)
    states = [t.state.name.lower() for t in study.get_trials(deepcopy=False)]
    counts = ", ".join(f"{states.count(s)} {s}" for s in ("complete", "pruned", "fail") if s in states)
    if "complete" not in states:
        return f"trials: {counts or 'none'}"
    best = study.best_trial
    what = "oracle GT-Known of held-out images" if spec.objective == "oracle_gt_known" else "score without boxes"
    values = "\n".join(f"  {k} = {v:.4g}" for k, v in best.params.items())
    run = best.user_attrs["run"]
    return f"trials: {counts}\nbest by {what}: trial {best.number}, {best.value:.2f}\n{values}\n  run: {run}"
