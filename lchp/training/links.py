"""The links of a chain as trainings: what each is made of, given the links before it."""

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from lchp.baselines import Method
from lchp.baselines.psol import localizer_loss
from lchp.boxes import area
from lchp.errors import ConfigError, RunError
from lchp.evaluation.inference import Models
from lchp.method.batch import Batch, Step
from lchp.method.choice import spared
from lchp.method.definition import Teaching
from lchp.method.networks import Localizer
from lchp.method.pseudo_boxes import update_teacher
from lchp.method.steps import Labels, freeze_batch_norm, label_views, localizer_step, refinement_step
from lchp.method.view_table import ViewTable
from lchp.system import distributed
from lchp.training.batches import general_batches, strong_batches, taught_batches
from lchp.training.box_links import boxes_of, train_boxes, train_choice
from lchp.training.chain import Chain, Kind, Link, spares
from lchp.training.context import Context
from lchp.training.definition import Metrics, Training, epoch_seed
from lchp.training.measure import validate
from lchp.training.networks import by_rate
from lchp.training.work import Work, epoch_line, noting, sgd_training

log = logging.getLogger(__name__)

STATISTICS_BATCHES = 200
"""At most so many batches give the BatchNorm statistics that LCHP-R is left with; more would change nothing."""
IDLE_EPOCHS = 3
"""A refinement fails after so many epochs in a row in which no box was confident enough to teach."""


def require_whole_batches(chain: Chain) -> None:
    """Raises ConfigError where several workers would share batches that the method's loss needs as a whole."""
    found = chain.method
    if not found.scheme.sliced and distributed.size() > 1:  # a config refuses parts of a batch itself
        raise ConfigError(f"method.name = {found.name!r}: its loss needs a batch as a whole; train it with one worker")


def training_of(work: Work, link: Link) -> Training:
    """A link as a training. Raises ConfigError where the method does not allow it."""
    return _TRAININGS[link.kind](work, link)


def _classifier(work: Work, link: Link) -> Training:
    """theta_1 by its method's loss; LCHP's with its teacher, whose pseudo boxes are noted meanwhile (Eq. 2 and 7)."""
    if spares(work.context.config):
        work = replace(work, context=_without_spared(work.context))
    context, found, classifier = work.context, work.chain.method, work.nets.classifier
    config, first, scheme = context.config, context.config.initialization, found.scheme
    classifier.train().requires_grad_(True)
    modules: dict[str, nn.Module] = {"classifier": classifier}
    teaching = (
        Teaching(_by_loss(found)) if scheme.teach is None else scheme.teach(classifier, config, len(context.images))
    )
    modules |= {name: module.to(context.device) for name, module in teaching.modules.items()}
    if config.compile and "teacher" in modules:
        modules["teacher"].compile()
    training = sgd_training(
        work,
        link,
        "classifier",
        by_rate(classifier, config, found),
        first,
        first.schedule,
        modules,
        teaching.step,
        lambda epoch, generator, start: taught_batches(context, epoch, generator, start, scheme.name),
    )
    return replace(training, updated=teaching.updated, ended=teaching.ended, describe=lambda m: epoch_line(m, link))


def _without_spared(context: Context) -> Context:
    """Without the training images that choose how boxes are made."""
    images = context.images
    return replace(
        context, images=images.select(np.delete(np.arange(len(images)), spared(images.split.labels.tolist())))
    )


def _by_loss(found: Method) -> Step:
    loss = found.scheme.loss
    return lambda net, batch, _epoch: (loss(net, batch), {})


def _localizer(work: Work, link: Link) -> Training:
    """Loc on the pseudo boxes of the training images: Eq. 3's L_reg, or PSOL's loss."""
    context, localizer = work.context, work.nets.localizer
    first, found = context.config.initialization, work.chain.method
    boxes = boxes_of(work)
    localizer.train().requires_grad_(True)

    def step(net: nn.Module, batch: Batch, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.index is not None
        assert batch.frame is not None
        pseudo_box, known = boxes.of(batch.index, epoch, batch.frame)
        if found.complete:
            return localizer_step(net, batch, pseudo_box, known, first.alpha)
        loss = localizer_loss(net(batch.images), pseudo_box, known)
        return loss, {"pseudo_area": 100 * area(pseudo_box).mean()}

    training = sgd_training(
        work,
        link,
        "localizer",
        [{"params": list(localizer.parameters()), "lr": first.localizer_lr}],
        first,
        first.localizer_schedule,
        {"localizer": localizer},
        step,
        lambda _epoch, generator, start: general_batches(context, generator, start),
        draws="initialization",  # the very views whose boxes were noted
    )
    return replace(training, first=link.first, describe=lambda m: epoch_line(m, link))


def _labels(work: Work, link: Link) -> Training:
    """b and its confidence (Eq. 4) for every view of stage 2, by a labeller that does not change."""
    context, nets = work.context, work.nets
    config = context.config
    table = ViewTable(link.epochs, len(context.images), 6).to(context.device)
    for net in (nets.classifier, nets.localizer):
        net.eval().requires_grad_(False)

    def step(_net: None, batch: Batch, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        labels = label_views(nets.localizer, nets.classifier, batch.images, config.refinement)
        rows = torch.cat([labels.b, labels.confidence[:, None], labels.sharpened[:, None]], 1)
        table.note(epoch, batch.index, rows)
        mean = 100 * labels.confidence.mean()
        return mean, {"confidence": mean, "box_area": 100 * area(labels.b).mean()}

    def batches(_epoch: int, generator: torch.Generator, start: int) -> Iterator[Batch]:
        return strong_batches(context, generator, start)

    return noting(work, link, table, step, batches, draws="refinement")


def _refinement(work: Work, link: Link) -> Training:
    """Loc by consistency with its own confident boxes (Eq. 6); the classifier is frozen."""
    context, classifier, localizer = work.context, work.nets.classifier, work.nets.localizer
    config, second = context.config, context.config.refinement
    classifier.eval().requires_grad_(False)
    modules: dict[str, nn.Module] = {"localizer": localizer}
    updated: Callable[[], object] = lambda: None  # noqa: E731
    labeller: nn.Module = localizer
    if second.labeller == "ema":
        labeller = copy.deepcopy(localizer).requires_grad_(False).eval()
        if config.compile:  # a copy is not compiled
            labeller.compile()
        modules["labeller"] = labeller
        updated = lambda: update_teacher(labeller, localizer, config.initialization.beta)  # noqa: E731
    localizer.train().requires_grad_(True)
    if second.freeze_bn:
        freeze_batch_norm(localizer)
    known: ViewTable | None = work.done["labels"]["labels"] if "labels" in work.chain else None

    def step(net: nn.Module, batch: Batch, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        def label(batch: Batch) -> Labels:
            if known is None:
                return label_views(labeller, classifier, batch.images, second)
            assert batch.index is not None
            rows = known.at(epoch, batch.index)
            return Labels(rows[:, :4], rows[:, 4], rows[:, 5])

        return refinement_step(net, batch, label, second, localizer.mean)

    def evaluate() -> dict[str, float]:
        if context.held_out is None:
            return {}
        lchp_r = copy.deepcopy(localizer)  # as it would be, if this epoch were the last
        settle_statistics(lchp_r, context)
        models = Models(classifier, None, {"lchp_r": lchp_r}, config.initialization, second.crop_margin)
        return {f"validation_{k}": v for k, v in validate(models, context, context.held_out).items()}

    training = sgd_training(
        work,
        link,
        "localizer",
        [{"params": list(localizer.parameters()), "lr": second.lr}],
        second,
        second.schedule,
        modules,
        step,
        lambda _epoch, generator, start: strong_batches(context, generator, start),
    )
    return replace(
        training,
        updated=updated,
        evaluate=evaluate,
        judge=_refuse_idle(second.tau, work.earlier),
        finish=lambda: settle_statistics(localizer, context),
        describe=lambda m: epoch_line(m, link),
    )


_TRAININGS: Mapping[Kind, Callable[[Work, Link], Training]] = MappingProxyType(
    {
        "classifier": _classifier,
        "choice": train_choice,
        "boxes": train_boxes,
        "localizer": _localizer,
        "labels": _labels,
        "refinement": _refinement,
    }
)


def _refuse_idle(tau: float, earlier: Sequence[Metrics]) -> Callable[[Metrics], None]:
    """Warns of an epoch in which tau rejected every box, and raises RunError after `IDLE_EPOCHS` of them in a row,
    those of a training that is gone on with (`earlier`, its metrics) included."""
    idle, judged = 0, set[int]()

    def judge(metrics: Metrics) -> None:
        nonlocal idle
        if metrics["epoch"] in judged:  # its line was written, its checkpoint was not: trained again
            return
        judged.add(metrics["epoch"])
        idle = 0 if metrics["kept"] > 0 else idle + 1
        if not idle:
            return
        said = (
            f"refinement, epoch {metrics['epoch']}: no box was more confident than refinement.tau = {tau:g} (mean "
            f"confidence {metrics['confidence']:.1f} %), so the localizer learnt nothing"
        )
        if idle == IDLE_EPOCHS:
            raise RunError(f"{said} for {idle} epochs; lower --refinement.tau, or train stage 1 for longer")
        log.warning("%s", said)

    for line in earlier:
        if line["stage"] == "refinement":
            judge(line)
    return judge


def settle_statistics(localizer: Localizer, context: Context) -> None:
    """Estimates the localizer's BatchNorm statistics anew, on general views, if the config asks for it.

    Strong views show borders, and objects at other scales; test images do not. With the statistics of the former, boxes
    on the latter come out too large (Wu and Johnson, arXiv 2105.07576, on such shifts and this remedy).
    """
    config = context.config
    if config.refinement.bn_statistics == "strong" or config.refinement.freeze_bn:
        return
    generator = torch.Generator().manual_seed(epoch_seed(config.seed, "statistics", 0))
    views = (batch.images for batch in islice(general_batches(context, generator), STATISTICS_BATCHES))
    training = localizer.training
    # uncompiled: what it changes of the BatchNorms would have all of it compiled anew
    with context.autocast, torch.compiler.set_stance("force_eager"):
        update_bn(views, localizer)
    localizer.train(training)
