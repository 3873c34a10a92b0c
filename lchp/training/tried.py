"""The links of a chain, tried on a few images: what they take, reckoned for all images where it is not by the epoch."""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lchp.evaluation.inference import Models
from lchp.evaluation.predictions import joined
from lchp.method.choice import KEPT, Choice, looked_at, parted, spared
from lchp.method.pseudo_boxes import Snapshots
from lchp.method.view_table import ViewTable
from lchp.training.chain import Chain, Kind, Link
from lchp.training.context import Context
from lchp.training.definition import Metrics, Session, Training
from lchp.training.fit import fit
from lchp.training.links import STATISTICS_BATCHES, settle_statistics, training_of
from lchp.training.map_boxes import map_source
from lchp.training.measure import kept_boxes, predictions_of, stage2_gain, summary_of, validate
from lchp.training.networks import build
from lchp.training.run import models_of
from lchp.training.work import Work

CANDIDATES = 4
"""Candidates of a choice that are tried, of some dozens."""


@dataclass(frozen=True)
class Counts:
    """Images of the whole data set: that are trained on, held out, and predicted; and those of a batch."""

    train: int
    held_out: int
    test: int
    batch: int


@dataclass(frozen=True)
class Tried:
    """A link with a few images: the seconds of an epoch, and of its predictions. Reckoned for all images: the seconds
    of a choice, besides, size (see `LinkForecast`), and the bytes of the teachers that will be kept."""

    seconds: float
    predicting: float
    besides: Mapping[str, float]
    size: int
    teachers: int


def tried_links(chain: Chain, context: Context, classes: int, counts: Counts, whole: Chain) -> dict[Kind, Tried]:
    """Each link of `chain`, tried on the context's images. whole: the chain that they are of."""
    work = Work(context, chain, build(chain, classes, context.device), {})
    took: dict[str, float] = {}
    found: dict[Kind, Tried] = {}
    models = Models(work.nets.classifier, None, {}, context.config.initialization, 0.0)
    table = None

    def record(metrics: Metrics) -> None:  # the last epoch, which has warmed up, is the last to be noted
        took[metrics["stage"]] = metrics["seconds"]

    with tempfile.TemporaryDirectory() as folder:
        for link, full in zip(chain, whole, strict=True):
            path, scale = Path(folder) / f"{link.stage}.pt", 1.0
            if link.kind == "boxes" and chain.method.boxes in ("ddt", "file"):  # DDT needs every class, a file no pass
                modules: dict[str, torch.nn.Module] = {"boxes": _whole_images(context)}
            else:
                training = training_of(work, link)
                if link.kind == "choice":
                    scale = _cut(training, counts)
                session = Session(context.config.seed, record=record, show_progress=False)
                fit(training, session, path, "")
                modules = dict(training.modules)
            work = replace(work, done={**work.done, link.kind: modules})
            predicting, besides = 0.0, dict[str, float]()
            if link.result is not None and len(context.test) and (link.kind != "boxes" or chain.method.boxes != "ddt"):
                own = models_of(work, link)
                models = replace(own, pseudo=own.pseudo or models.pseudo, localizers=models.localizers | own.localizers)
                begin = time.perf_counter()
                table = joined(table, predictions_of(own, context))
                predicting = time.perf_counter() - begin
            if link.kind in ("localizer", "refinement"):
                besides |= _after(full, work, models, counts)
            if link == chain.last and table is not None:
                besides |= _at_the_end(chain, models, table, context, counts, full.epochs)
            more, teachers = _to_come(modules, link, full, counts)
            size = (path.stat().st_size if path.exists() else 0) + more + teachers
            found[link.kind] = Tried(scale * took.get(link.stage, 0.0), predicting, besides, size, teachers)
    return found


def _cut(training: Training, counts: Counts) -> float:
    """Leaves a choice a few of its candidates, neighbours, which share as much of what they see as all do. Returns what
    makes the time of a round of the whole choice, on average, of that of the last round."""
    choice = training.modules["choice"]
    assert isinstance(choice, Choice)
    every, middle = len(choice.configs), len(choice.configs) // 2
    choice.configs = choice.configs[middle : middle + CANDIDATES]
    rounds = parted(spared([0] * counts.train) or looked_at(counts.train))
    whole = sum(len(images) * min(every, kept) for images, kept in zip(rounds, (every, *KEPT), strict=True))
    return whole / len(rounds) / (training.size * len(choice.configs))


def _after(link: Link, work: Work, models: Models, counts: Counts) -> dict[str, float]:
    """Seconds of what follows the training of a localizer."""
    context, seen = work.context, len(work.context.images)
    if link.kind == "refinement":
        batch = context.config.data.batch_size
        few = min(STATISTICS_BATCHES, max(1, seen // batch)) * batch
        images = min(STATISTICS_BATCHES * counts.batch, counts.train)
        times = 1 + (link.epochs if counts.held_out else 0)  # what is held out sees them after every epoch
        settling = _seconds(lambda: settle_statistics(work.nets.localizer, context))
        return {"BatchNorm's statistics": times * images / few * settling}
    if not context.config.evaluation.kept_by_tau or "lchp_i" not in models.localizers:
        return {}
    kept = _seconds(lambda: kept_boxes(models.classifier, models.localizers["lchp_i"], context))
    return {"boxes that tau keeps": counts.train / seen * kept}


def _at_the_end(
    chain: Chain, models: Models, table: Any, context: Context, counts: Counts, epochs: int
) -> dict[str, float]:
    """Seconds of what a run's summary needs beside its predictions. epochs: of its last link."""
    if chain.last.kind == "boxes" and chain.method.boxes != "teacher":
        models = replace(models, score_maps=map_source(chain.method, models.classifier))
    name = "score maps" if models.score_maps is not None else "consistency"
    found = {name: counts.test / len(context.test) * _seconds(lambda: summary_of(table, models, context))}
    if {"lchp_i", "lchp_r"} <= models.localizers.keys():
        share = len(looked_at(counts.train)) / len(looked_at(len(context.images)))
        found["gain of stage 2"] = share * _seconds(lambda: stage2_gain(models, context))
    if counts.held_out:  # after every epoch of stage 2, too
        times = 1 + (epochs if chain.last.kind == "refinement" else 0)
        share = times * counts.held_out / len(context.test)
        found["held-out images"] = share * _seconds(lambda: validate(models, context, context.test))
    return found


def _seconds(body: Callable[[], object]) -> float:
    begin = time.perf_counter()
    body()
    return time.perf_counter() - begin


def _to_come(modules: Mapping[str, torch.nn.Module], link: Link, full: Link, counts: Counts) -> tuple[int, int]:
    """Bytes that a link's tables of views will have beyond those tried, and its teachers."""
    tables = teachers = 0
    for module in modules.values():
        if isinstance(module, ViewTable):
            views, images, numbers = module.values.shape
            epochs = full.epochs if views == link.epochs else views
            tables += (epochs * counts.train - views * images) * numbers * module.values.element_size()
        elif isinstance(module, Snapshots):
            number = min(full.epochs, Snapshots.MOST) - len(module.values)
            teachers += number * module.values[0].nbytes
    return max(0, tables), max(0, teachers)


def _whole_images(context: Context) -> ViewTable:
    table = ViewTable(1, len(context.images), 4).to(context.device)
    table.values.copy_(torch.tensor([0.0, 0.0, 1.0, 1.0]))
    return table
