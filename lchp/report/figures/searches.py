"""What a search found: the objective from trial to trial, and how much each field matters to it, by Optuna."""

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lchp.config import show
from lchp.errors import RunError
from lchp.files.runs import DATABASE
from lchp.report.figures.style import BLUE, COLUMN, GREY, ORANGE, Drawing, style


def read_studies(storage: Path) -> list[Any]:
    """The studies (`optuna.Study`) of a storage, by name; nothing is written. Behind a URL each search has a database
    of its own. Raises RunError for a database that cannot be read."""
    paths = [storage / DATABASE, *sorted(storage.glob(f"sweeps/*/{DATABASE}"))]
    return [study for path in paths if path.is_file() for study in _read(path)]


def _read(path: Path) -> list[Any]:
    import optuna  # two seconds, which storages without a search need not wait for

    uri = f"{path.absolute().as_uri()}?mode=ro"
    own = {"creator": lambda: sqlite3.connect(uri, uri=True, timeout=5, check_same_thread=False)}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        database = optuna.storages.RDBStorage("sqlite:///optuna.db", own, skip_table_creation=True)
        names = sorted(optuna.get_all_study_names(database))
        studies = [optuna.load_study(study_name=name, storage=database) for name in names]
        for study in studies:
            study.get_trials(deepcopy=False)
        return studies
    except Exception as error:  # whatever the reading of a damaged record comes to
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise RunError(f"{path}: its studies cannot be read ({reason})") from None


def search_figure(study: Any) -> Drawing:
    """History and importance of one study. Raises RunError where no trial has come to its end."""
    import optuna
    from optuna.trial import TrialState

    trials = [t for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if t.values is not None]
    if not trials:
        raise RunError(f"the search {study.study_name} has no finished trial")
    numbers, values = np.array([t.number for t in trials]), np.array([t.values[0] for t in trials])
    try:
        shares = optuna.importance.get_param_importances(study) if len(trials) > 1 else {}
    except (ValueError, RuntimeError):  # too few trials, or all of one value
        shares = {}
    objective = study.user_attrs.get("objective", "objective")
    best = trials[int(values.argmax())]
    with style():
        heights = [1.9, 0.5 + 0.22 * len(shares)] if shares else [1.9]
        figure = Figure(figsize=(COLUMN, sum(heights)), layout="constrained")
        axes: Any = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        axes[0].plot(numbers, values, "o", color=ORANGE, label="trial")
        axes[0].plot(numbers, np.maximum.accumulate(values), color=BLUE, drawstyle="steps-post", label="best so far")
        axes[0].set(xlabel="trial", ylabel=objective)
        axes[0].legend(loc="lower right")
        if shares:
            axes[1].barh(list(shares)[::-1], list(shares.values())[::-1], color=GREY)
            axes[1].set(xlabel="importance (sums to 1)", xlim=(0, 1))
    others = len(study.get_trials(deepcopy=False)) - len(trials)
    at = ", ".join(f"{name} {show(value)}" for name, value in best.params.items())
    why = "importance by Optuna's PED-ANOVA" if shares else "too few different trials to tell a field's importance"
    caption = (
        f"Search {study.study_name}: its objective ({objective}, of held-out images; higher is better) over "
        f"{len(trials)} finished trials{f', without {others} others' if others else ''}. The best, {values.max():.2f}, "
        f"is trial {best.number}, at {at}; {why}."
    )
    return Drawing(f"search_{study.study_name}", caption, figure)
