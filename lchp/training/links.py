"""The links of a chain as trainings: what each is made of, given the links before it."""

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from lchp.backbones import Trunk
from lchp.baselines import Method
from lchp.baselines.psol import localizer_loss
from lchp.boxes import area
from lchp.config import InitializationConfig, RefinementConfig, TrainConfig, show
from lchp.errors import ConfigError, RunError
from lchp.evaluation.inference import BoxSource, Models, predicting
from lchp.method.batch import Batch, Step
from lchp.method.choice import ROUNDS, Choice, known_by_each, looked_at, parted
from lchp.method.definition import Teaching
from lchp.method.networks import Classifier, Localizer
from lchp.method.pseudo_boxes import Snapshots, make_teacher, update_teacher
from lchp.method.steps import Labels, freeze_batch_norm, label_views, localizer_step, pseudo_boxes, refinement_step
from lchp.method.view_table import Boxes, ViewTable
from lchp.system import distributed
from lchp.system.distributed import share_batch_statistics
from lchp.training.batches import epoch_order, general_batches, images_of, plain_batches, strong_batches, taught_batches
from lchp.training.chain import Chain, Kind, Link
from lchp.training.context import Context
from lchp.training.fit import Chunks, Metrics, Training, epoch_seed, make_schedule
from lchp.training.map_boxes import Directions, boxes_config, ddt_trunk, source_of
from lchp.training.measure import validate

log = logging.getLogger(__name__)

STATISTICS_BATCHES = 200
"""At most so many batches give the BatchNorm statistics that LCHP-R is left with; more would change nothing."""
IDLE_EPOCHS = 3
"""A refinement fails after so many epochs in a row in which no box was confident enough to teach."""


@dataclass(frozen=True)
class Networks:
    """The networks of a run: theta_1 and Loc, whose weights the links train one after the other. Loc is built where a
    link of the chain trains it."""

    classifier: Any
    loc: Localizer | None

    @property
    def localizer(self) -> Localizer:
        """Loc of a chain that has one."""
        assert self.loc is not None
        return self.loc


@dataclass(frozen=True)
class Work:
    """What a link's training is made of: the data, the chain, the networks, the modules of the links before it (kind ->
    name -> module, as their checkpoints hold them), and the metrics of an earlier try."""

    context: Context
    chain: Chain
    nets: Networks
    done: Mapping[Kind, Mapping[str, Any]]
    earlier: Sequence[Metrics] = ()


def build_classifier(config: TrainConfig, found: Method, num_classes: int) -> nn.Module:
    """The method's classifier at its start. Raises ConfigError where its trunk leaves nothing of data.image_size."""
    model, size = config.model, config.data.image_size
    if found.head is not None:
        model = replace(model, head=found.head)
    if found.scheme.build is Classifier:
        return Classifier(model, num_classes, size)
    classifier = found.scheme.build(model, num_classes)
    try:
        with torch.no_grad():
            classifier.eval()(torch.zeros(1, 3, size, size))
    except RuntimeError as error:  # a pooling or convolution larger than what is left to it
        reason = str(error).splitlines()[0]
        raise ConfigError(f"data.image_size = {size}: too small for {config.model.classifier} ({reason})") from None
    return classifier.train()


def build(chain: Chain, num_classes: int, device: torch.device) -> Networks:
    """The networks of a chain at their start, drawn from the seed."""
    config = chain.config
    torch.manual_seed(config.seed)
    layout: dict[str, Any] = {"device": device, "memory_format": torch.channels_last}
    classifier = share_batch_statistics(build_classifier(config, chain.method, num_classes).to(**layout))
    if "localizer" not in chain:
        return Networks(classifier, None)
    return Networks(classifier, share_batch_statistics(Localizer(config.model, config.data.image_size).to(**layout)))


def require_whole_batches(chain: Chain) -> None:
    """Raises ConfigError where several workers would share batches that the method's loss needs as a whole."""
    found = chain.method
    if not found.scheme.sliced and distributed.size() > 1:  # a config refuses parts of a batch itself
        raise ConfigError(f"method.name = {found.name!r}: its loss needs a batch as a whole; train it with one worker")


def training_of(work: Work, link: Link) -> Training:
    """A link as a training. Raises ConfigError where the method does not allow it."""
    return _TRAININGS[link.kind](work, link)


def boxes_of(work: Work) -> Boxes:
    """The pseudo boxes of the training images, wherever they come from."""
    made_by = "boxes" if "boxes" in work.chain else "classifier"
    return Boxes(work.done[made_by]["boxes"], whole=work.chain.method.boxes != "teacher")


def pseudo_source(work: Work) -> BoxSource:
    """The boxes of any images by what made the pseudo boxes: images, class ids -> B x 4."""
    return source_of(work.context.config, work.chain.method, work.nets.classifier, work.done).boxes


def _classifier(work: Work, link: Link) -> Training:
    """theta_1 by its method's loss; LCHP's with its teacher, whose pseudo boxes are noted meanwhile (Eq. 2 and 7)."""
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
    training = _training(
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
    return replace(training, updated=teaching.updated, ended=teaching.ended, describe=lambda m: _said(m, link))


def _by_loss(found: Method) -> Step:
    loss = found.scheme.loss
    return lambda net, batch, _epoch: (loss(net, batch), {})


def _choice(work: Work, link: Link) -> Training:
    """How LCHP's teacher is to make boxes: candidates scored on some hundred training images (`lchp.method.choice`)."""
    context, teacher = work.context, work.done["classifier"]["teacher"]
    config, first = context.config, context.config.initialization
    choice = Choice(first, config.model.head).to(context.device)
    kept: Snapshots = work.done["classifier"]["teachers"]
    scorer = make_teacher(teacher)
    fill = teacher.mean if first.mask == "mean" else torch.zeros_like(teacher.mean)
    rounds = parted(looked_at(len(context.images)))

    def batches(epoch: int, _generator: torch.Generator, start: int) -> Iterator[Batch]:
        kept.load(scorer, kept.after(first.auto_after or first.epochs))
        return plain_batches(context, "center_crop", rounds[epoch], start)

    def step(_net: None, batch: Batch, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        running, x = choice.running(epoch), batch.images
        with predicting(len(x)):
            configs, margin = [choice.configs[n] for n in running], config.refinement.crop_margin
            for n, known in zip(running, known_by_each(scorer, x, batch.labels, configs, fill, margin), strict=True):
                choice.note(epoch, n, *known)
        score = choice.scores(epoch)[running].max()
        return score, {"score": score}

    def describe(metrics: Metrics) -> str:
        n, of_round = choice.best(), metrics["epoch"] - 1
        if of_round + 1 < len(ROUNDS):
            return f"{_said(metrics, link)}  {len(choice.running(of_round))} candidates for the boxes"
        values = ", ".join(f"{name} {show(getattr(choice.configs[n], name))}" for name in first.auto_fields)
        score, images = float(choice.scores(of_round)[n]), sum(map(len, rounds))
        return f"boxes by {values}: score {score:.1f} on {images} training images, no box read"

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


def _boxes(work: Work, link: Link) -> Training:
    """The boxes of the training images, where no classifier's training notes them."""
    by_source = {"teacher": _teacher_boxes, "file": _boxes_of_file}
    return by_source.get(work.chain.method.boxes, _whole_boxes)(work, link)


def _teacher_boxes(work: Work, link: Link) -> Training:
    """Boxes of the views of each epoch by LCHP's teacher as it was after that epoch."""
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

    return Training(
        link.stage,
        link.epochs,
        len(epoch_order(context, torch.Generator())) * min(context.config.data.batch_size, len(context.images)),
        {"boxes": table},
        step,
        batches,
        draws="initialization",  # the localizer's views
        autocast=lambda: context.autocast,
        ended=table.exchange,
        describe=lambda m: _said(m, link),
        chunks=_chunks(context.config),
    )


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

    return Training(
        link.stage,
        link.epochs,
        len(context.images),
        modules,
        step,
        batches,
        autocast=lambda: context.autocast,
        ended=table.exchange,
        describe=lambda m: _said(m, link),
    )


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

    training = _training(
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
    return replace(training, first=link.first, describe=lambda m: _said(m, link))


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

    return Training(
        link.stage,
        link.epochs,
        len(epoch_order(context, torch.Generator())) * min(config.data.batch_size, len(context.images)),
        {"labels": table},
        step,
        lambda _epoch, generator, start: strong_batches(context, generator, start),
        draws="refinement",
        autocast=lambda: context.autocast,
        ended=table.exchange,
        describe=lambda m: _said(m, link),
        chunks=_chunks(config),
    )


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

    training = _training(
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
        describe=lambda m: _said(m, link),
    )


_TRAININGS: Mapping[Kind, Callable[[Work, Link], Training]] = MappingProxyType(
    {
        "classifier": _classifier,
        "choice": _choice,
        "boxes": _boxes,
        "localizer": _localizer,
        "labels": _labels,
        "refinement": _refinement,
    }
)


def _training(
    work: Work,
    link: Link,
    network: str,
    groups: list[dict[str, Any]],
    rates: InitializationConfig | RefinementConfig,
    schedule: str,
    modules: Mapping[str, nn.Module],
    step: Step,
    batches: Callable[[int, torch.Generator, int], Iterator[Batch]],
    draws: str | None = None,
) -> Training:
    """A training of one network by SGD. groups: its parameters, each with its `lr`; draws: see `Training`."""
    context, config = work.context, work.context.config
    optimizer = torch.optim.SGD(
        groups, momentum=rates.momentum, weight_decay=rates.weight_decay, fused=context.device.type == "cuda" or None
    )
    steps = len(epoch_order(context, torch.Generator()))
    return Training(
        link.stage,
        link.epochs,
        steps * min(config.data.batch_size, len(context.images)),
        modules,
        step,
        batches,
        network,
        optimizer,
        make_schedule(optimizer, schedule, decay=rates.lr_decay, epochs=max(link.epochs, 1), steps_per_epoch=steps),
        steps_per_epoch=steps,
        draws=draws,
        autocast=lambda: context.autocast,
        images=lambda epoch, step: images_of(context, draws or link.stage, epoch, step),
        chunks=_chunks(config),
    )


def _chunks(config: TrainConfig) -> Chunks:
    return Chunks(batch=config.data.batch_size if config.auto_batch else None)


def by_rate(classifier: nn.Module, config: TrainConfig, found: Method) -> list[dict[str, Any]]:
    """A classifier's parameters with the rates they learn at: first those that ImageNet weights hold, then the others,
    faster; one rate where there are no such weights, or those of a trained classifier, and where the method has one."""
    parameters, lr = list(classifier.parameters()), config.initialization.lr
    if config.model.classifier_weights is not None:
        return [{"params": parameters, "lr": lr}]
    trunk = next(m for m in classifier.modules() if isinstance(m, Trunk))
    held = {id(p) for n, p in trunk.named_parameters() if n not in trunk.from_random}
    if not held or found.scheme.teach is not None:
        return [{"params": parameters, "lr": lr}]
    faster = lr * config.method.lr_classifier_ratio
    return [
        {"params": [p for p in parameters if id(p) in held], "lr": lr},
        {"params": [p for p in parameters if id(p) not in held], "lr": faster},
    ]


def _said(metrics: Metrics, link: Link) -> str:
    """An epoch on one line: its scalars, its rate and its speed."""
    names = {"l_cls": "L_cls {:.4f}", "loss": "loss {:.4f}", "l_reg": "L_reg {:.5f}", "top1": "train top-1 {:.1f} %"}
    names |= {"confidence": "confidence {:.1f} %", "pseudo_area": "pseudo box area {:.1f} %", "score": "score {:.1f}"}
    if link.kind == "refinement":
        names |= {"loss": "L_refine {:.5f}", "kept": "kept {:.1f} %", "vanished": "vanished {:.2f} %"}
    if "l_cls" in metrics or "l_reg" in metrics:
        del names["loss"]
    said = [text.format(metrics[name]) for name, text in names.items() if name in metrics]
    said += [f"lr {value:.2e}" for name, value in metrics.items() if name.startswith("lr_")]
    at = f"{link.kind} epoch {metrics['epoch']}/{metrics['epochs']}"
    return "  ".join([at, *said, f"{metrics['images_per_second']:.0f} images/s"])


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
