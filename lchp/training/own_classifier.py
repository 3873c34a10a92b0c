"""A run's classifier started from one of the user's own (`model.classifier_weights`)."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from lchp.backbones.own import OwnClassifier, read_own
from lchp.config import ModelConfig
from lchp.data.annotations import read_lines, same_looking, shorten
from lchp.data.base import Problem, listing
from lchp.errors import DataError, WeightsError
from lchp.method.networks import Classifier

log = logging.getLogger(__name__)


def start_from(classifier: Classifier, model: ModelConfig, class_names: Sequence[str]) -> None:
    """Fills a classifier, built for these classes, from the file that a config names. Classes of the file's head that
    are not among them are left out. Raises WeightsError or DataError, one line, for what does not fit."""
    path = Path(os.path.expanduser(model.classifier_weights or ""))
    own = read_own(path, model.classifier)
    count, names = len(own.weight), model.classifier_classes
    if names is not None:
        rows = _rows(read_classes(Path(os.path.expanduser(names)), path, count), class_names, names)
        if len(rows) < count:
            log.info("%s: of its %d classes the data has %d; the others are left out", path, count, len(rows))
    elif count == len(class_names):
        rows = list(range(count))
    else:
        raise WeightsError(
            f"{path}: its head has {count} classes, the data {len(class_names)}; name the head's, in its order, by "
            "model.classifier_classes"
        )
    fill_classifier(classifier, own, rows)


def fill_classifier(classifier: Classifier, own: OwnClassifier, rows: Sequence[int]) -> None:
    """Gives a classifier the weights of another, of whose head the classes `rows`."""
    classifier.trunk.load_state_dict(own.trunk.state_dict())
    with torch.no_grad():
        classifier.linear.weight.copy_(own.weight[list(rows)])
        classifier.linear.bias.copy_(own.bias[list(rows)])


def read_classes(file: Path, weights: Path, count: int) -> list[str]:
    """The names of a head's classes, a line each. Raises DataError where they are not as many as the head of the file
    `weights` has (`count`), or one is there twice."""
    problems: list[Problem] = []
    lines = list(read_lines(file, problems))
    first: dict[str, int] = {}
    for number, name in lines:
        if (before := first.setdefault(same_looking(name), number)) != number:
            problems.append(Problem(str(file), number, f"class {shorten(name)} is on line {before} already"))
    if problems:
        raise DataError(listing(tuple(problems), f"in the classes of {weights}"))
    if len(lines) != count:
        raise DataError(f"{file}: names {len(lines)} classes, a line each; the head of {weights} has {count}")
    return [name for _, name in lines]


def _rows(names: Sequence[str], class_names: Sequence[str], file: str) -> list[int]:
    of_names = {same_looking(name): n for n, name in enumerate(names)}
    lacking = [name for name in class_names if same_looking(name) not in of_names]
    if lacking:
        more = f" and {len(lacking) - 1} more of the data's classes" if len(lacking) > 1 else ""
        raise DataError(f"{file}: lacks class {shorten(lacking[0])}{more}; it begins with {shorten(names[0])}")
    return [of_names[same_looking(name)] for name in class_names]
