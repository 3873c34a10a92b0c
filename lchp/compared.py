"""The compared methods in the same harness: a classifier by the method's scheme, boxes of its score maps, and, where it
is asked for, a localizer regressed on them (PSOL's second half).

Stage 1 is the classifier, which methods of one scheme share. Stage 2 is the rest: `method.localizer` adds the
regression, `method.refine` LCHP's refinement after it.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lchp import distributed
from lchp.backbones import Trunk, backbone, build_trunk
from lchp.boxes import area
from lchp.config import (
    EvaluationConfig,
    InitializationConfig,
    MethodConfig,
    ModelConfig,
    Preset,
    RefinementConfig,
    TrainConfig,
    to_flat,
)
from lchp.context import Context
from lchp.data.images import batches as read_batches
from lchp.data.images import in_order
from lchp.distributed import average_gradients
from lchp.errors import ConfigError, DataError
from lchp.inference import predicting, see
from lchp.loop import Stage, epoch_seed, fit, make_schedule
from lchp.losses import foreground
from lchp.methods import METHODS, Batch, Method, method
from lchp.methods.ddt import Descriptors, Transform, largest_component_boxes
from lchp.methods.psol import localizer_loss
from lchp.pseudo import enclosing_boxes, upsample
from lchp.stages import Networks
from lchp.views import epoch_order, general_batches, images_of

CLASSIFICATION, REGRESSION = "initialization", "regression"
"""Names of the two stages, and of their checkpoints; the first is where LCHP's stage 1 has its own."""

BoxSource = Callable[[Tensor, Tensor], Tensor]
"""(images B x 3 x H x W in [0, 1], class ids B) to boxes B x 4 in [0, 1] of the view."""
MapSource = Callable[[Tensor, Tensor], Tensor]
"""(images B x 3 x H x W in [0, 1], class ids B) to score maps B x h x w float32, not normalised."""


def chosen(config: TrainConfig) -> Method | None:
    """The compared method that a config asks for; None for LCHP. Raises ConfigError for an unknown one."""
    return None if config.method.name == "lchp" else method(config.method.name)


def label(config: TrainConfig) -> str:
    """The row of a config in the paper's tables."""
    found = chosen(config)
    if found is None:
        return "LCHP"
    if not config.method.localizer:
        return found.title if found.map is not None else "DDT"
    regressed = found.title if found.map is None else f"PSOL on {found.title} boxes"
    return f"{regressed}, refined by LCHP" if config.method.refine else regressed


def cells(preset: Preset) -> list[dict[str, Any]]:
    """A sweep's cells, as overrides: every method as published, on each of the preset's classifiers, those first that
    share a classifier with most others; and on the recipe's own, a localizer regressed on CAM's boxes, and LCHP's
    refinement of PSOL."""
    own = preset.config.model.classifier
    sharing = Counter(m.scheme.name for m in METHODS.values())
    ordered = sorted(METHODS.items(), key=lambda item: -sharing[item[1].scheme.name])
    found = []
    for classifier in dict.fromkeys((own, *preset.classifiers)):
        on = {} if classifier == own else {"model.classifier": classifier}
        found += [{"method.name": n, **({} if m.map else {"method.localizer": True}), **on} for n, m in ordered]
    regressed = {"method.localizer": True}
    return [*found, {"method.name": "cam", **regressed}, {"method.name": "psol", **regressed, "method.refine": True}]


def stage1_of(config: TrainConfig) -> TrainConfig:
    """What stage 1 of a config depends on, as a config: all else is as in every other config. A compared method's is of
    its scheme, named by the first method that has it, and of the classifier alone."""
    found, model, first = chosen(config), config.model, config.initialization
    fields: dict[str, Any] = {"method": MethodConfig()}
    if found is not None:
        fields = {
            "model": ModelConfig(
                model.classifier,
                model.localizer,  # is built, but neither trained nor part of the key
                found.head,
                pretrained=model.pretrained,
                weights_dir=model.weights_dir,
            ),
            "initialization": InitializationConfig(
                first.epochs,
                lr=first.lr,
                schedule=first.schedule,
                lr_decay=first.lr_decay,
                momentum=first.momentum,
                weight_decay=first.weight_decay,
            ),
            "method": MethodConfig(
                next(n for n, m in METHODS.items() if m.scheme.name == found.scheme.name),
                lr_classifier_ratio=config.method.lr_classifier_ratio,
            ),
        }
    evaluation = EvaluationConfig(batch_size=config.evaluation.batch_size)
    return replace(config, refinement=RefinementConfig(), evaluation=evaluation, **fields)


def after_stage1(config: TrainConfig) -> dict[str, Any]:
    """The fields, by dotted name, that a compared method's results depend on beside its stage 1."""
    found = chosen(config)
    assert found is not None
    # what the recorded scores of a box look at
    names = ["method.name", "method.localizer", "method.refine", "initialization.mask", "refinement.crop_margin"]
    names += ["method.threshold", "method.component"] if found.map is not None else []
    flat = to_flat(config)
    if config.method.localizer:
        names += ["model.localizer", "model.localizer_head", "model.box_encoding", "refinement.tau"]
        names += ["initialization.localizer_lr", "initialization.localizer_schedule"]
    if config.method.refine:
        names += ["initialization.beta", *(name for name in flat if name.startswith("refinement."))]
    return {name: flat[name] for name in sorted(set(names))}


def epochs_after_stage1(config: TrainConfig) -> dict[str, int]:
    """The trainings of a run after its stage 1, in order, and their epochs."""
    epochs: dict[str, int] = {}
    if config.method.localizer:
        epochs[REGRESSION] = config.initialization.epochs
    if config.method.name == "lchp" or config.method.refine:
        epochs["refinement"] = config.refinement.epochs
    return epochs


def build_classifier(config: TrainConfig, found: Method, num_classes: int) -> nn.Module:
    """The method's classifier at its start. Raises ConfigError where its trunk leaves nothing of data.image_size."""
    classifier = found.scheme.build(replace(config.model, head=found.head), num_classes)
    size = config.data.image_size
    try:
        with torch.no_grad():
            classifier.eval()(torch.zeros(1, 3, size, size))
    except RuntimeError as error:  # a pooling or convolution larger than what is left to it
        reason = str(error).splitlines()[0]
        raise ConfigError(f"data.image_size = {size}: too small for {config.model.classifier} ({reason})") from None
    return classifier.train()


def map_source(found: Method, classifier: nn.Module) -> MapSource | None:
    """The method's score maps by a classifier in inference mode, whatever mode the caller is in; None without any."""
    score_map = found.map
    if score_map is None:
        return None

    def maps(images: Tensor, labels: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():  # Grad-CAM needs gradients
            return score_map(classifier, images.clone(), labels.clone()).detach().float()

    return maps


def box_source(config: TrainConfig, maps: MapSource | None, classifier: nn.Module, context: Context) -> BoxSource:
    """The method's box of a view and a class: of its score map, or DDT's."""
    return _of_map(config, maps) if maps is not None else _of_transforms(classifier, context)


def _of_map(config: TrainConfig, maps: MapSource) -> BoxSource:
    size, method_ = (config.data.image_size, config.data.image_size), config.method

    def boxes(images: Tensor, labels: Tensor) -> Tensor:
        mask = foreground(upsample(maps(images, labels), size), method_.threshold, "minmax")
        return enclosing_boxes(mask)[0] if method_.component == "all" else largest_component_boxes(mask)

    return boxes


def _of_transforms(classifier: nn.Module, context: Context) -> BoxSource:
    """DDT's boxes of views, by directions that follow from all training images of a class in center_crop.

    The features are ImageNet's, as PSOL's (without a layer that the backbone adds to what was trained there), and where
    the networks start from random weights those of the classifier that stage 1 trained. A training view's box is that
    of the view itself; PSOL maps the whole image's.
    """
    model = context.config.model
    if model.pretrained:
        entry = backbone(model.classifier)
        name = entry.file if entry.added and entry.file else model.classifier
        trunk = build_trunk(name, "classifier", pretrained=True, weights_dir=model.weights_dir)
        layout: dict[str, Any] = {"device": context.device, "memory_format": torch.channels_last}
        trunk = trunk.to(**layout)
    else:
        trunk = classifier.get_submodule("trunk")
    trunk.eval().requires_grad_(False)
    transform = _transform(trunk, context)

    @torch.no_grad()
    def boxes(images: Tensor, labels: Tensor) -> Tensor:
        return transform.boxes(trunk(images), labels)

    return boxes


@torch.no_grad()
def _transform(trunk: nn.Module, context: Context) -> Transform:
    """That of every class; one class in memory at a time."""
    config, images = context.config, context.images
    found = []
    for label in range(len(context.dataset.class_names)):
        mine = images.select(np.flatnonzero(images.split.labels == label))
        descriptors: Descriptors | None = None
        order = in_order(len(mine), config.evaluation.batch_size)
        for batch in read_batches(mine, order, workers=config.data.workers, pin=context.device.type == "cuda"):
            x = see(batch.images.to(context.device, non_blocking=True), "center_crop", config.data.image_size)
            with predicting(len(x)), context.autocast:
                features = trunk(x)
            descriptors = descriptors or Descriptors(features.shape[1], features.device)
            descriptors.add(features)
        if descriptors is None:
            raise DataError(f"class {context.dataset.class_names[label]}: no training image is left for DDT")
        found.append(descriptors.principal())
    return Transform.of(found, context.device)


def train_classifier(
    nets: Networks, context: Context, checkpoint: Path, identity: str, found: Method, **options: Any
) -> None:
    """Trains the classifier in place by the method's loss, with stage 1's rates and epochs."""
    config, first = context.config, context.config.initialization
    if distributed.size() > 1 and not found.scheme.sliced:
        raise ConfigError(f"method.name = {found.name!r}: its loss needs a batch as a whole; train it with one worker")
    steps = len(epoch_order(context, torch.Generator()))
    nets.classifier.train()

    def batches(epoch: int, generator: torch.Generator, start: int) -> Iterator[Batch]:
        for n, (images, labels, _) in enumerate(general_batches(context, generator, start), start):
            # a generator of its own, so that an epoch gone on with draws what it would have
            draws = torch.Generator().manual_seed(epoch_seed(config.seed, f"{found.scheme.name} {epoch}", n))
            yield Batch(images, labels, draws, (epoch + n / steps) / first.epochs)

    def values(batch: Batch) -> dict[str, Tensor]:
        return {"loss": found.scheme.loss(nets.classifier, batch)}

    _fit_one(
        context,
        (CLASSIFICATION, "classifier", nets.classifier),
        (by_rate(nets.classifier, config), first.schedule),
        batches,
        values,
        count=lambda batch: len(batch.images),
        checkpoint=checkpoint,
        identity=identity,
        **options,
    )


def by_rate(classifier: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """A classifier's parameters with the rates they learn at: first those that ImageNet weights hold, then the others,
    faster; one rate where there are no such weights."""
    trunk = next(m for m in classifier.modules() if isinstance(m, Trunk))
    held = {id(p) for n, p in trunk.named_parameters() if n not in trunk.from_random}
    parameters, lr = list(classifier.parameters()), config.initialization.lr
    if not held:
        return [{"params": parameters, "lr": lr}]
    faster = lr * config.method.lr_classifier_ratio
    return [
        {"params": [p for p in parameters if id(p) in held], "lr": lr},
        {"params": [p for p in parameters if id(p) not in held], "lr": faster},
    ]


def regress(
    nets: Networks, context: Context, checkpoint: Path, identity: str, source: BoxSource, **options: Any
) -> None:
    """Trains the localizer in place on the method's boxes of the training views, each of the image's own class: PSOL's
    second half, by its loss."""
    first = context.config.initialization
    nets.classifier.eval()
    nets.localizer.train()

    def values(batch: tuple[Tensor, Tensor, None]) -> dict[str, Tensor]:
        images, labels, _ = batch
        box = source(images, labels)
        return {"loss": localizer_loss(nets.localizer(images), box), "pseudo_area": 100 * area(box).mean()}

    _fit_one(
        context,
        (REGRESSION, "localizer", nets.localizer),
        ([{"params": list(nets.localizer.parameters()), "lr": first.localizer_lr}], first.localizer_schedule),
        lambda _epoch, generator, start: general_batches(context, generator, start),
        values,
        count=lambda batch: len(batch[0]),
        checkpoint=checkpoint,
        identity=identity,
        **options,
    )


def _fit_one(
    context: Context,
    what: tuple[str, str, nn.Module],
    rates: tuple[Sequence[dict[str, Any]], str],
    batches: Callable[[int, torch.Generator, int], Iterable[Any]],
    values: Callable[[Any], dict[str, Tensor]],
    *,
    count: Callable[[Any], int],
    **options: Any,
) -> None:
    """`fit` of one network by the `loss` among the scalars that `values` gives for a batch, with stage 1's epochs.

    what: the stage's name, the network's, and the network; rates: its parameters in groups with the `lr` of each, and
    the name of their schedule.
    """
    config, first = context.config, context.config.initialization
    (stage, name, net), (groups, schedule) = what, rates
    optimizer = torch.optim.SGD(groups, momentum=first.momentum, weight_decay=first.weight_decay)
    steps = len(epoch_order(context, torch.Generator()))

    def step(batch: Any, _epoch: int) -> dict[str, Tensor]:
        with context.autocast:
            found = values(batch)
        found["loss"].backward()
        average_gradients([optimizer])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {k: v.detach() for k, v in found.items()}

    scheduled = make_schedule(optimizer, schedule, decay=first.lr_decay, epochs=first.epochs, steps_per_epoch=steps)
    fit(
        Stage(
            stage,
            first.epochs,
            steps * min(config.data.batch_size, len(context.images)),
            {name: net},
            {name: optimizer},
            {name: scheduled},
            batches,
            step,
            count=count,
            images=lambda epoch, step: images_of(context, stage, epoch, step),
            describe=lambda m: (
                f"{name} epoch {m['epoch']}/{m['epochs']}  loss {m['loss']:.4f}  lr {m[f'lr_{name}']:.2e}  "
                f"{m['images_per_second']:.0f} images/s"
            ),
        ),
        seed=config.seed,
        **options,
    )
