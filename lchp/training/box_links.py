"""The links that make the pseudo boxes: how LCHP's teacher is to make them, and the boxes of training images."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from lchp.boxes import area
from lchp.config import shown_choice
from lchp.evaluation.inference import BoxSource, predicting
from lchp.method.batch import Batch
from lchp.method.choice import ROUNDS, Choice, known_by_each, looked_at, parted, spared
from lchp.method.pseudo_boxes import Snapshots, make_teacher
from lchp.method.steps import pseudo_boxes
from lchp.method.view_table import Boxes, ViewTable
from lchp.training.batches import general_batches, plain_batches
from lchp.training.chain import Link
from lchp.training.definition import Metrics, Training
from lchp.training.map_boxes import Directions, boxes_config, ddt_trunk, source_of
from lchp.training.work import Work, epoch_line, noting


def boxes_of(work: Work) -> Boxes:
    """The pseudo boxes of the training images, wherever they come from."""
    made_by = "boxes" if "boxes" in work.chain else "classifier"
    return Boxes(work.done[made_by]["boxes"], whole=work.chain.method.boxes != "teacher")


def pseudo_source(work: Work) -> BoxSource:
    """The boxes of any images by what made the pseudo boxes: images, class ids -> B x 4."""
    return source_of(work.context.config, work.chain.method, work.nets.classifier, work.done).boxes


def train_choice(work: Work, link: Link) -> Training:
    """How LCHP's teacher is to make boxes: candidates scored on the training images that the classifier was spared
    (`lchp.method.choice`), or where it was spared none, on those that it learnt."""
    context, teacher = work.context, work.done["classifier"]["teacher"]
    config, first = context.config, context.config.initialization
    choice = Choice(first, config.model.head).to(context.device)
    kept: Snapshots = work.done["classifier"]["teachers"]
    scorer = make_teacher(teacher)
    rounds = parted(spared(context.images.split.labels.tolist()) or looked_at(len(context.images)))

    def batches(epoch: int, _generator: torch.Generator, start: int) -> Iterator[Batch]:
        kept.load(scorer, choice.after)
        return plain_batches(context, "center_crop", rounds[epoch], start)

    def step(_net: None, batch: Batch, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        running, x = choice.running(epoch), batch.images
        with predicting(len(x)):
            configs = [choice.configs[n] for n in running]
            for n, known in zip(running, known_by_each(scorer, x, batch.labels, configs), strict=True):
                choice.note(epoch, n, *known)
        score = choice.scores(epoch)[running].max()
        return score, {"score": score}

    def describe(metrics: Metrics) -> str:
        of_round = metrics["epoch"] - 1
        if of_round + 1 < len(ROUNDS):
            return f"{epoch_line(metrics, link)}  {len(choice.running(of_round))} candidates for the boxes"
        score, images = float(choice.scores(of_round)[choice.best()]), sum(map(len, rounds))
        return f"boxes by {shown_choice(choice.record())}: score {score:.1f} on {images} training images, no box read"

    return Training(
        link.stage,
        link.epochs,
        max(map(len, rounds)),
        {"choice": choice},
        step,
        batches,
        autocast=lambda: context.autocast,
        ended=choice.exchange,
        describe=describe,
    )


def train_boxes(work: Work, link: Link) -> Training:
    """The boxes of the training images, where no classifier's training notes them."""
    by_source = {"teacher": _teacher_boxes, "file": _boxes_of_file}
    return by_source.get(work.chain.method.boxes, _whole_boxes)(work, link)


def _teacher_boxes(work: Work, link: Link) -> Training:
    """Boxes of the views of each epoch by LCHP's teacher as it was after that epoch, or of more than 8 epochs after the
    next at whose end it was kept (see `Snapshots`)."""
    context, how = work.context, boxes_config(work.context.config, work.done)
    first = context.config.initialization
    kept: Snapshots = work.done["classifier"]["teachers"]
    teacher = make_teacher(work.done["classifier"]["teacher"])
    table = ViewTable(link.epochs, len(context.images), 4).to(context.device)
    # boxes of before a choice teach nobody
    least = (first.auto_after or first.epochs) if first.auto_fields else 0

    def batches(epoch: int, generator: torch.Generator, start: int) -> Iterator[Batch]:
        kept.load(teacher, kept.after(max(epoch + 1, least)))
        return general_batches(context, generator, start)

    def step(_net: None, batch: Batch, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        boxes = pseudo_boxes(teacher, batch.images, how).box
        table.note(epoch, batch.index, boxes)
        mean = 100 * area(boxes).mean()
        return mean, {"pseudo_area": mean}

    return noting(work, link, table, step, batches, draws="initialization")  # the localizer's views


def _whole_boxes(work: Work, link: Link) -> Training:
    """Boxes of whole training images by a map of the classifier, or by DDT: computed once."""
    context, classifier = work.context, work.nets.classifier
    classifier.eval()
    table = ViewTable(1, len(context.images), 4).to(context.device)
    modules: dict[str, nn.Module] = {"boxes": table}
    directions: Directions | None = None
    if work.chain.method.boxes == "ddt":
        model, size = context.config.model, context.config.data.image_size
        trunk = ddt_trunk(classifier, model, context.device)
        directions = Directions(trunk, size, len(context.dataset.class_names), context.device).to(context.device)
        modules["directions"] = directions
    source = pseudo_source(replace(work, done={**work.done, "boxes": modules}))
    at_a_time = context.config.evaluation.batch_size

    def batches(_epoch: int, _generator: torch.Generator, start: int) -> Iterator[Batch]:
        if directions is not None:  # every worker, also one that no batch is left for
            with predicting(at_a_time):
                directions.find(context)
        return plain_batches(context, "full_image", range(len(context.images)), start)

    def step(_net: None, batch: Batch, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        with predicting(at_a_time):
            boxes = source(batch.images, batch.labels)
        table.note(epoch, batch.index, boxes)
        mean = 100 * area(boxes).mean()
        return mean, {"pseudo_area": mean}

    return noting(work, link, table, step, batches, modules)


def _boxes_of_file(work: Work, link: Link) -> Training:
    """Boxes of whole training images that a file holds; no image is looked at."""
    context = work.context
    table = ViewTable(1, len(context.images), 4).to(context.device)
    assert context.box_file is not None
    table.values[0] = torch.from_numpy(context.box_file.of(context.images))
    known = int((~table.values[0].isnan().any(1)).sum())
    return Training(
        link.stage,
        link.epochs,
        0,
        {"boxes": table},
        lambda *_: (torch.zeros(()), {}),
        lambda *_: (),
        describe=lambda _: f"boxes of {known} of {len(context.images)} training images",
    )
