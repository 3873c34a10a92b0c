"""LCHP's links, each one step on one screen, in the order of the paper's equations.

Images I_r are B x 3 x H x W in [0, 1]; boxes are B x 4, x1 y1 x2 y2 in [0, 1] of the view; y is B class ids. A step
returns the loss that is minimised, and scalars for the record; it runs under the trainer's autocast.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lchp.backbones.modes import inference_mode_of
from lchp.boxes import area, order
from lchp.config import InitializationConfig, RefinementConfig
from lchp.method.batch import Batch
from lchp.method.consistency import SCHEMES, anchored
from lchp.method.losses import classification_loss, confidence, is_visible, refinement_loss, regression_loss
from lchp.method.networks import Classifier
from lchp.method.pseudo_boxes import Pseudo, algorithm_1
from lchp.method.view_table import ViewTable
from lchp.method.views import crop, strong_view

Scalars = dict[str, Tensor]


def pseudo_boxes(teacher: Classifier, images: Tensor, config: InitializationConfig) -> Pseudo:
    """Algorithm 1 by the teacher."""
    return algorithm_1(lambda x: teacher(x).attention(config.attention), images, config, teacher.mean)


def predict_boxes(localizer: nn.Module, images: Tensor) -> Tensor:
    """Loc(I) as boxes: ends in order, clipped to the view. B x 4."""
    return order(localizer(images).float()).clamp(0, 1)


def classifier_step(
    classifier: nn.Module,
    teacher: Classifier,
    boxes: ViewTable | None,
    batch: Batch,
    epoch: int,
    config: InitializationConfig,
) -> tuple[Tensor, Scalars]:
    """theta_1 on a batch (Algorithm 1, Eq. 1-2); the teacher's pseudo boxes are noted in `boxes`, where there are."""
    i_r, y = batch.images, batch.labels
    pseudo = pseudo_boxes(teacher, i_r, config)  # L = L_r merged with L_m; I_m
    if boxes is not None:
        boxes.note(epoch, batch.index, pseudo.box)
    # raw and masked in one pass: BatchNorm sees both, as the teacher's inference does
    logits = classifier(torch.cat([i_r, pseudo.masked])).logits.float()  # 2B x classes
    logits_r, logits_m = logits.chunk(2)
    l_cls = classification_loss(logits_r, logits_m, y)  # Eq. 2
    top1 = (logits_r.detach().argmax(1) == y).float().mean()
    return l_cls, {"l_cls": l_cls, "top1": 100 * top1, "pseudo_area": 100 * area(pseudo.box).mean()}


def localizer_step(
    localizer: nn.Module, batch: Batch, pseudo_box: Tensor, known: Tensor, alpha: float
) -> tuple[Tensor, Scalars]:
    """Loc on a batch with its pseudo boxes (B x 4), of which those that are `known` (B bool) teach: alpha L_reg, Eq. 3.

    No gradient of L_reg reaches the classifier, so Eq. 3's sum is minimised by two trainings, one after the other.
    """
    l_reg = regression_loss(localizer(batch.images), pseudo_box, known)
    return alpha * l_reg, {"l_reg": l_reg}


@dataclass(frozen=True)
class Labels:
    """What teaches B views in stage 2: the box b, B x 4; the classifier's confidence on the crop in it (Eq. 4), B; and
    the confidence of its sharpened softmax, B, which the scheme `uda` weighs by."""

    b: Tensor
    confidence: Tensor
    sharpened: Tensor


def label_views(labeller: nn.Module, classifier: nn.Module, i_r: Tensor, config: RefinementConfig) -> Labels:
    """b = Loc(I_r) and its confidence (Eq. 4); the labeller is in inference mode meanwhile, whatever mode it is in."""
    with torch.no_grad():
        b = label_boxes(labeller, i_r)
        logits = classifier(crop(i_r, b, config.crop_margin, config.augmenter)).logits
        torch.clear_autocast_cache()  # the weights that were cast here carry no gradient, and Loc's may be among them
        return Labels(b, confidence(logits), confidence(logits.float() / config.temperature))


def refinement_step(
    localizer: nn.Module,
    batch: Batch,
    label: Callable[[Batch], Labels],
    config: RefinementConfig,
    mean: Tensor,
) -> tuple[Tensor, Scalars]:
    """Loc on the strong views of a batch (Eq. 4-6). mean: the colour that its input normalisation maps to 0.

    Scalars: the loss, and in percent the mean confidence, the share above tau, the share of views in which the box
    vanished, and the mean area of b.
    """
    assert batch.strong is not None
    labels = label(batch)
    with torch.no_grad():
        weight = SCHEMES[config.scheme].weight(labels.confidence, labels.sharpened, config.tau)  # 1[conf. > tau], B
        # each image as often as it has strong views, from here on B for short
        i_r, teaching, weight = anchored(views_of(config), batch.images, labels.b, weight)
        target = batch.strong.axis_map().to(i_r.device).boxes(teaching)  # S(b), B x 4
        clipped = target.clamp(0, 1)
        visible = is_visible(clipped)  # B
        if config.vanished == "dropped":
            weight = weight * visible
        view = strong_view(i_r, batch.strong, padding(mean, config), config.augmenter)  # S(I_r), B x 3 x H x W
    box_hat = localizer(view)  # Loc(S(I_r)), B x 4
    loss = refinement_loss(box_hat, clipped if config.targets == "clipped" else target, weight)  # Eq. 6
    return config.loss_weight * loss, {
        "loss": loss,
        "confidence": 100 * labels.confidence.mean(),
        "kept": 100 * (labels.confidence > config.tau).float().mean(),
        "vanished": 100 * (~visible).float().mean(),
        "box_area": 100 * area(labels.b).mean(),
    }


def views_of(config: RefinementConfig) -> int:
    """Strong views of an image in a step."""
    return config.views or SCHEMES[config.scheme].views


def label_boxes(labeller: nn.Module, i_r: Tensor) -> Tensor:
    """The boxes b that teach, by the labeller in inference mode; its modes are put back."""
    with inference_mode_of(labeller):
        return predict_boxes(labeller, i_r)


def padding(mean: Tensor, config: RefinementConfig) -> Tensor:
    """The colour (3 values in [0, 1]) of what S brings in from outside the image, `mean` or black."""
    return torch.zeros_like(mean) if config.padding == "black" else mean


def freeze_batch_norm(module: nn.Module) -> None:
    """Puts every BatchNorm in inference mode: running statistics are used and not updated."""
    for m in module.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.eval()
