"""The two stages, each one step on one screen, in the order of the paper's equations.

Images I_r are B x 3 x H x W in [0, 1]; boxes are B x 4, x1 y1 x2 y2 in [0, 1] of the view; y is B class ids.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lchp.augment import StrongParameters, crop, strong_view
from lchp.boxes import order
from lchp.config import InitializationConfig, RefinementConfig
from lchp.consistency import SCHEMES, anchored
from lchp.distributed import average_gradients
from lchp.losses import (
    classification_loss,
    confidence,
    initialization_loss,
    is_visible,
    refinement_loss,
    regression_loss,
)
from lchp.networks import Classifier, Localizer
from lchp.pseudo import Pseudo, algorithm_1, update_teacher


@dataclass(frozen=True)
class Networks:
    """theta_1 (classifier), theta_2 (teacher), Loc, and stage 2's labeller where it is not Loc itself."""

    classifier: Classifier
    teacher: Classifier
    localizer: Localizer
    labeller: Localizer | None = None


def pseudo_boxes(teacher: Classifier, images: Tensor, config: InitializationConfig) -> Pseudo:
    """Algorithm 1 by the teacher."""
    return algorithm_1(lambda x: teacher(x).attention(config.attention), images, config, teacher.mean)


def predict_boxes(localizer: nn.Module, images: Tensor) -> Tensor:
    """Loc(I) as boxes: ends in order, clipped to the view. B x 4."""
    return order(localizer(images).float()).clamp(0, 1)


def initialization_step(
    nets: Networks,
    optimizers: tuple[Optimizer, ...],
    i_r: Tensor,
    y: Tensor,
    config: InitializationConfig,
    autocast: AbstractContextManager[None],
    *,
    train_localizer: bool = True,
    chunks: int = 1,
) -> dict[str, Tensor]:
    """One iteration of stage 1 (Algorithm 1, Eq. 1-3, 7), on images B x 3 x H x W in [0, 1] and class ids B.

    chunks: parts of the batch that go through the networks one after the other; BatchNorm sees one at a time.
    Returns scalars: the losses, and in percent the training top-1 and the mean area of the pseudo boxes.
    """
    values: list[dict[str, Tensor]] = []
    for images, labels in zip(i_r.chunk(chunks), y.chunk(chunks), strict=True):
        share = len(images) / len(i_r)
        values.append(_initialization_gradients(nets, images, labels, config, autocast, share, train_localizer))
    average_gradients(optimizers)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    update_teacher(nets.teacher, nets.classifier, config.beta, config.teacher_buffers)  # Eq. 7
    return _weighted(values, i_r.chunk(chunks))


def _initialization_gradients(
    nets: Networks,
    i_r: Tensor,
    y: Tensor,
    config: InitializationConfig,
    autocast: AbstractContextManager[None],
    share: float,
    train_localizer: bool,
) -> dict[str, Tensor]:
    """Adds `share` of L_init's gradients to those of the networks; its scalars."""
    with autocast:
        pseudo = pseudo_boxes(nets.teacher, i_r, config)  # L = L_r merged with L_m; I_m
        # raw and masked in one pass: BatchNorm sees both, as the teacher's inference does
        logits = nets.classifier(torch.cat([i_r, pseudo.masked])).logits.float()  # 2B x classes
        logits_r, logits_m = logits.chunk(2)
        l_cls = classification_loss(logits_r, logits_m, y)  # Eq. 2
        l_reg = torch.zeros_like(l_cls)
        if train_localizer:
            l_reg = regression_loss(nets.localizer(i_r), pseudo.box)  # Eq. 3
        loss = initialization_loss(l_cls, l_reg, config.alpha)
    (share * loss).backward()
    side = (pseudo.box[:, 2:] - pseudo.box[:, :2]).prod(1)
    return {
        "loss": loss.detach(),
        "l_cls": l_cls.detach(),
        "l_reg": l_reg.detach(),
        "top1": 100 * (logits_r.detach().argmax(1) == y).float().mean(),
        "pseudo_area": 100 * side.mean(),
    }


def _weighted(values: Sequence[dict[str, Tensor]], chunks: Sequence[Tensor]) -> dict[str, Tensor]:
    """Scalars of the chunks as those of the batch: means weighted by their images."""
    if len(values) == 1:
        return values[0]
    whole = sum(map(len, chunks))
    return {
        k: torch.stack([v[k] * (len(c) / whole) for v, c in zip(values, chunks, strict=True)]).sum() for k in values[0]
    }


def refinement_step(
    nets: Networks,
    optimizer: Optimizer,
    i_r: Tensor,
    strong: StrongParameters,
    config: RefinementConfig,
    beta: float,
    autocast: AbstractContextManager[None],
    *,
    chunks: int = 1,
) -> dict[str, Tensor]:
    """One iteration of stage 2 (Eq. 4-6), on images B x 3 x H x W in [0, 1] and the draws of their strong views (those
    of one image one after the other, see `views_of`).

    chunks: as in stage 1. Returns scalars: the loss, and in percent the mean confidence, the share above tau, the share
    of views in which the box vanished, and the mean area of b.
    """
    values: list[dict[str, Tensor]] = []
    begin, views = 0, views_of(config)
    for images in i_r.chunk(chunks):
        part = strong if chunks == 1 else strong.select(slice(begin * views, (begin + len(images)) * views))
        share = len(images) / len(i_r)
        values.append(_refinement_gradients(nets, images, part, config, autocast, share))
        begin += len(images)
    average_gradients([optimizer])
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if config.labeller == "ema" and nets.labeller is not None:
        update_teacher(nets.labeller, nets.localizer, beta)
    return _weighted(values, i_r.chunk(chunks))


def _refinement_gradients(
    nets: Networks,
    i_r: Tensor,
    strong: StrongParameters,
    config: RefinementConfig,
    autocast: AbstractContextManager[None],
    share: float,
) -> dict[str, Tensor]:
    """Adds `share` of L_refine's gradients to Loc's; its scalars."""
    with torch.no_grad(), autocast:
        b = label_boxes(nets, i_r)  # B x 4
        cropped = crop(i_r, b, config.crop_margin, config.augmenter)
        logits = nets.classifier(cropped).logits
        p = confidence(logits)  # Eq. 4: B
        weight = SCHEMES[config.scheme].weight(logits, config.tau, config.temperature)  # 1[confidence > tau], B
        # each image as often as it has strong views, from here on B for short
        i_r, teaching, weight = anchored(views_of(config), i_r, b, weight)
        target = strong.axis_map().to(i_r.device).boxes(teaching)  # S(b), B x 4
        clipped = target.clamp(0, 1)
        visible = is_visible(clipped)  # B
        if config.vanished == "dropped":
            weight = weight * visible
        view = strong_view(i_r, strong, padding(nets.localizer, config), config.augmenter)  # S(I_r), B x 3 x H x W
    # a second context: autocast caches the weights it casts, and those cast above carry no gradient
    with autocast:
        box_hat = nets.localizer(view)  # Loc(S(I_r)), B x 4
        loss = refinement_loss(box_hat, clipped if config.targets == "clipped" else target, weight)  # Eq. 6
    (config.loss_weight * share * loss).backward()
    return {
        "loss": loss.detach(),
        "confidence": 100 * p.mean(),
        "kept": 100 * (p > config.tau).float().mean(),
        "vanished": 100 * (~visible).float().mean(),
        "box_area": 100 * (b[:, 2:] - b[:, :2]).prod(1).mean(),
    }


def views_of(config: RefinementConfig) -> int:
    """Strong views of an image in a step."""
    return config.views or SCHEMES[config.scheme].views


def label_boxes(nets: Networks, i_r: Tensor) -> Tensor:
    """The boxes b that teach: by Loc itself (online) or the labeller, in inference mode, whatever mode Loc is in."""
    source = nets.localizer if nets.labeller is None else nets.labeller
    modes = [(m, m.training) for m in source.modules()]
    source.eval()
    b = predict_boxes(source, i_r)
    for module, training in modes:
        module.training = training
    return b


def padding(localizer: Localizer, config: RefinementConfig) -> Tensor:
    """The colour (3 values in [0, 1]) of what S brings in from outside the image."""
    mean = localizer.mean
    return torch.zeros_like(mean) if config.padding == "black" else mean


def freeze_batch_norm(module: nn.Module) -> None:
    """Puts every BatchNorm in inference mode: running statistics are used and not updated."""
    for m in module.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.eval()
