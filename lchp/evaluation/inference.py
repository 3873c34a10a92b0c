"""Networks over a split: boxes, classes and confidence, image by image, in each evaluation frame."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lchp.config import InitializationConfig
from lchp.data.images import Images, batches, in_order
from lchp.errors import enough_memory
from lchp.evaluation.frames import Frame
from lchp.method.losses import confidence
from lchp.method.networks import Classifier, Localizer
from lchp.method.pseudo_boxes import mask_fill, mask_out
from lchp.method.regions import object_boxes
from lchp.method.steps import predict_boxes
from lchp.method.views import AxisMap, crop, warp
from lchp.system.distributed import collected, dealt
from lchp.system.distributed import size as size_of_team
from lchp.system.progress import tqdm

BoxSource = Callable[[Tensor, Tensor], Tensor]
"""(images B x 3 x H x W in [0, 1], class ids B) to boxes B x 4 in [0, 1] of the view."""
MaskSource = Callable[[Tensor, Tensor], Tensor]
"""(images B x 3 x H x W in [0, 1], class ids B) to their foreground, B x h x w bool."""
MapSource = Callable[[Tensor, Tensor], Tensor]
"""(images B x 3 x H x W in [0, 1], class ids B) to score maps B x h x w float32, not normalised."""


@dataclass(frozen=True)
class Models:
    """What predicts: `classifier` names the class and scores the crop; the result `pseudo_label` is that of `pseudo`,
    the others those of `localizers`, by name."""

    classifier: Classifier
    pseudo: BoxSource | None
    localizers: dict[str, Localizer]
    config: InitializationConfig
    crop_margin: float = 0.0
    score_maps: MapSource | None = None
    """A compared method's score maps, where they are its result."""

    @property
    def results(self) -> tuple[str, ...]:
        """The names of what is predicted, in order."""
        return (*(("pseudo_label",) if self.pseudo is not None else ()), *self.localizers)

    def eval(self) -> None:
        """Puts every network in inference mode."""
        for net in (self.classifier, *self.localizers.values()):
            net.eval()


class Seen(NamedTuple):
    """Of B images: `scores` B x classes, the softmax; `top5` B x k class ids, best first, and `top5_score` their
    softmax; `boxes`: result -> B x 4 fractions of the view; `confidence`: maximum softmax on the crop in the last
    localizer's box (Eq. 4); `crop_score`: softmax there of the class that the whole view is taken for."""

    scores: Tensor
    top5: Tensor
    top5_score: Tensor
    boxes: dict[str, Tensor]
    confidence: Tensor
    crop_score: Tensor


@dataclass(frozen=True)
class Predictions:
    """Of N images in one frame, as in `Seen`; and `masked_score`, the softmax of the class that the whole view is taken
    for, on the view with the last localizer's box masked out as in stage 1."""

    top5: np.ndarray
    top5_score: np.ndarray
    boxes: dict[str, np.ndarray]
    confidence: np.ndarray
    crop_score: np.ndarray
    masked_score: np.ndarray


def predicting(batch_size: int) -> AbstractContextManager[None]:
    """The context in which a split is gone over: memory that runs out becomes a RunError."""
    advice = "lower --evaluation.batch-size (for lchp predict: --batch-size)"
    return enough_memory(f"predictions of {batch_size} images at a time", advice)


def ranked(scores: Tensor, most: int = 5) -> tuple[Tensor, Tensor]:
    """The highest `most` of scores B x classes and their class ids, both B x k, best first; of equal scores the lowest
    id first, which `topk` leaves open."""
    score, ids = scores.sort(dim=1, descending=True, stable=True)
    return score[:, :most], ids[:, :most]


@torch.inference_mode()
def predict(
    models: Models,
    images: Images,
    frames: Sequence[str],
    size: int,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    autocast: AbstractContextManager[None],
    show_progress: bool = True,
) -> dict[str, Predictions]:
    """Everything about a split by frame, in one pass over its images."""
    models.eval()
    in_frames = [Frame(name, images.resize, size) for name in frames]
    rows = {frame.name: Rows() for frame in in_frames}
    title = f"predict {' and '.join(rows)}"
    bar = tqdm(total=len(images), desc=title, unit="img", leave=False, disable=None if show_progress else True)
    with predicting(batch_size), bar:
        for _, pixels, labels in _on_device(images, batch_size, workers, device):
            for frame in in_frames:
                with autocast:
                    x = frame.see(pixels)
                    seen = predict_batch(models, x, labels)
                    masked = masked_score(models, x, seen)
                boxes = {f"box {name}": b for name, b in seen.boxes.items()}
                scores = {name: v for name, v in seen._asdict().items() if name not in ("scores", "boxes")}
                rows[frame.name].accumulate(boxes | scores | {"masked_score": masked})
            bar.update(len(pixels))
    return {name: _predictions(found.compute()) for name, found in rows.items()}


def _predictions(rows: dict[str, np.ndarray]) -> Predictions:
    boxes = {name.removeprefix("box "): v for name, v in rows.items() if name.startswith("box ")}
    return Predictions(boxes=boxes, **{name: v for name, v in rows.items() if not name.startswith("box ")})


def _on_device(
    images: Images, batch_size: int, workers: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """This worker's batches of a split: their positions in it, pixels B x R x R x 3 uint8, and class ids."""
    order = dealt(in_order(len(images), batch_size))
    for batch in batches(images, order, workers=workers, pin=device.type == "cuda"):
        yield batch.index, batch.images.to(device, non_blocking=True), batch.labels.to(device)


@dataclass(frozen=True)
class Rows:
    """Values of images: each worker accumulates those of its batches, and computes those of all images, in order."""

    batches: list[Mapping[str, Tensor]] = field(default_factory=list)

    def accumulate(self, values: Mapping[str, Tensor]) -> None:
        """Of a batch, B x ... each."""
        self.batches.append(values)

    def compute(self) -> dict[str, np.ndarray]:
        """Of all, N x ... each."""
        parts = self.batches
        if size_of_team() > 1:
            parts = collected([{name: v.cpu() for name, v in part.items()} for part in parts])
        return {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in parts[0]}


def predict_batch(models: Models, x: Tensor, labels: Tensor | None = None) -> Seen:
    """What the networks say of images B x 3 x H x W in [0, 1].

    labels: B class ids, whose boxes a compared method's map is asked for: GT-Known's class is known, and where the
    class that the image is taken for is right, it is the same. None, and -1 of an image: of the class that the image is
    taken for.
    """
    scores = models.classifier(x).logits.float().softmax(1)
    score, top = ranked(scores)
    boxes: dict[str, Tensor] = {}
    if models.pseudo is not None:
        boxes["pseudo_label"] = models.pseudo(x, known_or_first(labels, top))
    for name, localizer in models.localizers.items():
        boxes[name] = predict_boxes(localizer, x)
    logits = models.classifier(crop(x, last_box(boxes), models.crop_margin)).logits
    of_class = logits.float().softmax(1).gather(1, top[:, :1])[:, 0]
    return Seen(scores, top, score, boxes, confidence(logits), of_class)


class Objects(NamedTuple):
    """Of B images: `scores` B x classes, the softmax; `of_class`: B class ids, whose objects these are; `boxes`: of an
    image K x 4 fractions of the view, and `confidence`: K, the maximum softmax on the crops in them (Eq. 4), the most
    confident first; K from 0 up."""

    scores: Tensor
    of_class: Tensor
    boxes: list[Tensor]
    confidence: list[Tensor]


def predict_objects(models: Models, masks: MaskSource, x: Tensor, labels: Tensor, least_area: float) -> Objects:
    """All objects in images B x 3 x H x W in [0, 1], of one class per image (labels: B, as in `predict_batch`): the
    regions of the foreground that cover at least `least_area` of the view."""
    scores = models.classifier(x).logits.float().softmax(1)
    of_class = known_or_first(labels, ranked(scores)[1])
    boxes = object_boxes(masks(x, of_class), least_area)
    counts = [len(b) for b in boxes]
    of_view = torch.arange(len(x), device=x.device).repeat_interleave(torch.tensor(counts, device=x.device))
    known = [x.new_zeros(0)]
    for views, crops in zip(of_view.split(len(x)), torch.cat(boxes).split(len(x)), strict=True):
        if len(views):  # as many at a time as there are images
            known.append(confidence(models.classifier(crop(x[views], crops, models.crop_margin)).logits))
    each = torch.cat(known).split(counts)
    orders = [c.argsort(descending=True, stable=True) for c in each]
    pairs = list(zip(boxes, each, orders, strict=True))
    return Objects(scores, of_class, [b[o] for b, _, o in pairs], [c[o] for _, c, o in pairs])


def known_or_first(labels: Tensor | None, top: Tensor) -> Tensor:
    """B class ids: those that are known, and of the other images (-1) the best of `top`, B x k."""
    return top[:, 0] if labels is None else torch.where(labels < 0, top[:, 0], labels)


def last_box(boxes: dict[str, Tensor]) -> Tensor:
    """The boxes that are scored: the last localizer's."""
    return next(reversed(boxes.values()))


def masked_score(models: Models, x: Tensor, seen: Seen) -> Tensor:
    """Softmax of the class that each view is taken for, on the view without its box: B."""
    fill = mask_fill(models.classifier.mean, models.config)
    scores = models.classifier(mask_out(x, last_box(seen.boxes), fill)).logits.float().softmax(1)
    return scores.gather(1, seen.top5[:, :1])[:, 0]


@torch.inference_mode()
def view_boxes(
    models: Models,
    images: Images,
    size: int,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    autocast: AbstractContextManager[None],
) -> dict[str, np.ndarray]:
    """Boxes of flipped and scaled views mapped back to the plain view: result -> V x N x 4. For `consistency`, which
    needs no ground truth. Views: horizontal flip; scale 0.9 and 1.1 about the centre."""
    models.eval()
    frame, rows = Frame("full_image", images.resize, size), Rows()
    with predicting(batch_size):
        for _, pixels, labels in _on_device(images, batch_size, workers, device):
            x = frame.see(pixels)
            each: dict[str, list[Tensor]] = {}
            for view in _views(x):
                with autocast:
                    boxes = predict_batch(models, warp(x, view, torch.zeros(3)), labels).boxes
                for name, b in boxes.items():
                    each.setdefault(name, []).append(view.inverse().boxes(b).clamp(0, 1))
            rows.accumulate({name: torch.stack(b, 1) for name, b in each.items()})
    return {name: b.swapaxes(0, 1) for name, b in rows.compute().items()}


def each_score_map(
    score_maps: Callable[[Tensor, Tensor], Tensor],
    images: Images,
    size: int,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    autocast: AbstractContextManager[None],
) -> Iterator[tuple[int, np.ndarray]]:
    """Position in the split and score map (h x w float32, of the image's class, not normalised) of this worker's images
    in full_image. score_maps: as `Models.score_maps`."""
    frame = Frame("full_image", images.resize, size)
    with predicting(batch_size):
        for index, pixels, labels in _on_device(images, batch_size, workers, device):
            x = frame.see(pixels)
            with autocast:
                maps = score_maps(x, labels)
            yield from zip(index.tolist(), maps.cpu().numpy(), strict=True)


def _views(x: Tensor) -> Iterator[AxisMap]:
    for sx, sy in ((-1.0, 1.0), (0.9, 0.9), (1.1, 1.1)):
        scale = torch.tensor([[sx, sy]], device=x.device).expand(len(x), 2)
        yield AxisMap(scale, 0.5 - 0.5 * scale)
