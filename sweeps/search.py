"""Optuna's TPE over delta, tau, alpha, beta, learning rates and augmentation ranges; ASHA stops bad stage-2 trainings.

Settings are chosen on a fifth of the training images, held out, by a criterion that reads no box: whether the
classifier finds its class in the box and not outside, and how small the box is.
optuna-dashboard sqlite:///results/optuna.db
"""

from typing import TYPE_CHECKING

from lchp.config import Preset
from lchp.harness import Overrides, exit_program
from lchp.harness.search_script import main

if TYPE_CHECKING:
    import optuna


def space(preset: Preset, trial: "optuna.Trial") -> Overrides:
    """One cell; learning rates within a factor of 4 of the recipe's."""
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
    rates = {
        "initialization.lr": first.lr,
        "initialization.localizer_lr": first.localizer_lr,
        "refinement.lr": second.lr,
    }
    return cell | {name: trial.suggest_float(name, lr / 4, lr * 4, log=True) for name, lr in rates.items()}


if __name__ == "__main__":
    exit_program(main("search", space, about=__doc__))
