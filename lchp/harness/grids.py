"""The sweeps of the paper's tables, by name: what `lchp sweep NAME` and sweeps/NAME.py vary."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import getdoc
from typing import TYPE_CHECKING

from lchp.baselines import METHODS
from lchp.config import Preset, alternatives
from lchp.harness.cells import Overrides, grid
from lchp.harness.script import Cells, Program, main, paper_tables
from lchp.report.tables.grid import AXES
from lchp.training.chain import method_of

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class PaperSweep:
    """`cells`: what it varies; its docstring is the sweep's --help. `tables`: those printed at its end. `then`: what to
    start next."""

    cells: Cells
    tables: tuple[int, ...]
    then: str | None = None


def delta_tau(preset: Preset) -> list[Overrides]:
    """The delta x tau grid: Tables 3 and 4. Classifier and localizer are trained once per delta, for all taus."""
    cells = grid({"initialization.delta": preset.deltas, "refinement.tau": preset.taus})
    delta, tau = preset.config.initialization.delta, preset.config.refinement.tau
    # first those with the recipe's delta or tau, which make the tables
    return sorted(cells, key=lambda c: c["initialization.delta"] != delta and c["refinement.tau"] != tau)


def backbones(preset: Preset) -> list[Overrides]:
    """Backbones of the localizer: Table 5 (on the embedded data set, three small stand-ins)."""
    return grid({"model.localizer": preset.localizers})


def augmentations(preset: Preset) -> list[Overrides]:
    """The seven non-empty subsets of {scale, translation, flip} as strong view: Table 6."""
    return [{"refinement.augmentations": list(s)} for s in AXES[6].values(preset)]


def all_tables(preset: Preset) -> list[Overrides]:
    """Exactly the cells of Tables 3-6, in one sweep: per seed 4 classifiers, 6 localizers, 17 refinements.

    The recipe's own setting is a cell of all four tables, and trained once.
    """
    deltas = grid({"initialization.delta": preset.deltas})
    taus = grid({"refinement.tau": preset.taus})
    return [*deltas, *taus, *backbones(preset), *augmentations(preset)]


def open_choices(preset: Preset) -> list[Overrides]:
    """Each choice the paper leaves open, one factor at a time around the recipe: Table 7."""
    # the recipe, then every other value of every choice, those expected to matter most first
    return [{}, *({name: value} for name, value in alternatives(preset.config, method_of))]


def methods(preset: Preset) -> list[Overrides]:
    """The methods that the paper compares LCHP with, beside LCHP itself: Tables 1, 2 and 8.

    Every compared method as published, on each of the preset's classifiers, those first that share a classifier with
    most others; on the recipe's own, a localizer regressed on CAM's boxes, and LCHP's refinement of PSOL; and LCHP
    itself, which other sweeps train too.
    """
    compared = {name: method for name, method in METHODS.items() if not method.complete}
    sharing = Counter(method.scheme.name for method in compared.values())
    ordered = sorted(compared.items(), key=lambda item: -sharing[item[1].scheme.name])
    own, found = preset.config.model.classifier, list[Overrides]()
    for classifier in dict.fromkeys((own, *preset.classifiers)):
        on = {} if classifier == own else {"model.classifier": classifier}
        found += [{"method.name": n, **({} if m.map else {"method.localizer": True}), **on} for n, m in ordered]
    regressed = {"method.localizer": True}
    refined = {"method.name": "psol", **regressed, "method.refine": True}
    return [*found, {"method.name": "cam", **regressed}, refined, {"method.name": "lchp"}]


def search_space(preset: Preset, trial: "optuna.Trial") -> Overrides:
    """Optuna's TPE over delta, tau, alpha, beta, learning rates and augmentation ranges; ASHA stops refinements that
    fall behind.

    Settings are chosen on a fifth of the training images, held out, by a criterion that reads no box: whether the
    classifier finds its class in the box and not outside, and how small the box is.
    optuna-dashboard sqlite:///results/optuna.db
    """
    first, second = preset.config.initialization, preset.config.refinement
    low, high = min(preset.deltas), max(preset.deltas)
    scale = trial.suggest_float("scale", 0.0, 0.4)
    cell: Overrides = {
        "initialization.delta": trial.suggest_float(
            "initialization.delta", max(low - 0.05, 0.01), min(high + 0.05, 0.99)
        ),
        "initialization.alpha": trial.suggest_float("initialization.alpha", 5.0, 80.0, log=True),
        "initialization.beta": trial.suggest_float("initialization.beta", 0.5, 0.99),
        "refinement.tau": trial.suggest_float("refinement.tau", 0.3, 0.95),
        "refinement.scale": [1 - scale, 1 + scale],
        "refinement.translation": trial.suggest_float("refinement.translation", 0.05, 0.4),
    }
    rates = {  # within a factor of 4 of the recipe's
        "initialization.lr": first.lr,
        "initialization.localizer_lr": first.localizer_lr,
        "refinement.lr": second.lr,
    }
    return cell | {name: trial.suggest_float(name, lr / 4, lr * 4, log=True) for name, lr in rates.items()}


SWEEPS: dict[str, PaperSweep] = {
    "delta_tau": PaperSweep(
        delta_tau, (3, 4), "lchp sweep all_tables  (the other cells of Tables 3-6; what is trained already is taken)"
    ),
    "augmentations": PaperSweep(augmentations, (6,)),
    "backbones": PaperSweep(backbones, (5,)),
    "methods": PaperSweep(methods, (1, 2, 8)),
    "open_choices": PaperSweep(open_choices, (7,)),
    "all_tables": PaperSweep(all_tables, (3, 4, 5, 6), "lchp report  (one page with all tables, figures and trials)"),
}
SEARCH = "search"
NAMES = (*SWEEPS, SEARCH)


def run_named(name: str, argv: Sequence[str] | None = None, program: Program | None = None) -> int:
    """Runs a sweep of NAMES as a program; the exit status, as `lchp.harness.main` has it."""
    if name == SEARCH:
        from lchp.harness import search_script  # Optuna takes a second to import

        return search_script.main(name, search_space, about=getdoc(search_space), argv=argv, program=program)
    asked = SWEEPS[name]
    closing = paper_tables(asked.tables, asked.then)
    return main(name, asked.cells, about=getdoc(asked.cells), closing=closing, argv=argv, program=program)
