"""Networks over a split: boxes, classes and confidence, image by image, in each evaluation frame."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from lchp.augment import AxisMap, crop, warp
from lchp.config import InitializationConfig
from lchp.data.images import Batch, Images, batches, in_order
from lchp.distributed import collected, dealt
from lchp.distributed import size as size_of_team
from lchp.errors import enough_memory
from lchp.losses import confidence
from lchp.networks import Classifier, Localizer
from lchp.pseudo import mask_out
from lchp.stages import predict_boxes, pseudo_boxes


@dataclass(frozen=True)
class Models:
    """What predicts: `classifier` names the class and scores the crop; `boxes` maps a result's name to its source."""

    classifier: Classifier
    teacher: Classifier | None
    localizers: dict[str, Localizer]
    config: InitializationConfig
    crop_margin: float = 0.0
    map_boxes: Callable[[Tensor, Tensor], Tensor] | None = None
    """A compared method's boxes, in place of the teacher's: images, class ids -> B x 4 (see `lchp.compared`)."""
    score_maps: Callable[[Tensor, Tensor], Tensor] | None = None
    """Its score maps, where they are its result: images, class ids -> B x h x w."""

    def eval(self) -> None:
        """Puts every network in inference mode."""
        for net in (self.classifier, self.teacher, *self.localizers.values()):
            if net is not None:
                net.eval()


class Seen(NamedTuple):
    """Of B images: `top5` B x k class ids, best first, and `top5_score` their softmax; `boxes`: result -> B x 4
    fractions of the view; `confidence`: maximum softmax on the crop in the last localizer's box (Eq. 4); `crop_score`:
    softmax there of the class that the whole view is taken for."""

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


def see(images: Tensor, frame: str, size: int) -> Tensor:
    """B x R x R x 3 uint8 in a frame: B x 3 x size x size in [0, 1], channels last in memory."""
    r = images.shape[1]
    if frame == "center_crop":
        start = (r - size) // 2
        images = images[:, start : start + size, start : start + size]
    x = to_float(images)
    if x.shape[2] != size:
        x = F.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return x


def to_float(images: Tensor) -> Tensor:
    """B x H x W x 3 uint8 to B x 3 x H x W in [0, 1], channels last in memory."""
    return images.permute(0, 3, 1, 2).float().div_(255)


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
    order = dealt(in_order(len(images), batch_size))
    source = batches(images, order, workers=workers, pin=device.type == "cuda")
    title = f"predict {' and '.join(frames)}"
    parts: dict[str, list[_Part]] = {frame: [] for frame in frames}
    bar = tqdm(total=len(images), desc=title, unit="img", leave=False, disable=None if show_progress else True)
    with predicting(batch_size), bar:
        for batch in source:
            pixels = batch.images.to(device, non_blocking=True)
            for frame, found in parts.items():
                with autocast:
                    x = see(pixels, frame, size)
                    seen = predict_batch(models, x, batch.labels.to(device))
                    found.append((seen, masked_score(models, x, seen)))
            bar.update(len(batch.index))
    return {frame: _joined(found) for frame, found in parts.items()}


_Part = tuple[Seen, Tensor]
"""What `predict_batch` and `masked_score` give."""


def _joined(parts: list[_Part]) -> Predictions:
    """Batches as one, of all workers."""
    rows = [
        {f"box {n}": b for n, b in seen.boxes.items()}
        | {n: v for n, v in seen._asdict().items() if n != "boxes"}
        | {"masked_score": masked}
        for seen, masked in parts
    ]
    if size_of_team() > 1:
        rows = collected([{n: v.cpu() for n, v in row.items()} for row in rows])
    whole = {n: torch.cat([row[n] for row in rows]).cpu().numpy() for n in rows[0]}
    boxes = {n.removeprefix("box "): v for n, v in whole.items() if n.startswith("box ")}
    return Predictions(boxes=boxes, **{n: v for n, v in whole.items() if not n.startswith("box ")})


def predict_batch(models: Models, x: Tensor, labels: Tensor | None = None) -> Seen:
    """What the networks say of images B x 3 x H x W in [0, 1].

    labels: B class ids, whose boxes a compared method's map is asked for: GT-Known's class is known, and where the
    class that the image is taken for is right, it is the same. None: of the class that the image is taken for.
    """
    scores = models.classifier(x).logits.float().softmax(1)
    score, top = ranked(scores)
    boxes: dict[str, Tensor] = {}
    if models.teacher is not None:
        boxes["pseudo_label"] = pseudo_boxes(models.teacher, x, models.config).box.float()
    elif models.map_boxes is not None:
        boxes["pseudo_label"] = models.map_boxes(x, top[:, 0] if labels is None else labels)
    for name, localizer in models.localizers.items():
        boxes[name] = predict_boxes(localizer, x)
    logits = models.classifier(crop(x, last_box(boxes), models.crop_margin)).logits
    of_class = logits.float().softmax(1).gather(1, top[:, :1])[:, 0]
    return Seen(top, score, boxes, confidence(logits), of_class)


def last_box(boxes: dict[str, Tensor]) -> Tensor:
    """The boxes that are scored: the last localizer's."""
    return next(reversed(boxes.values()))


def masked_score(models: Models, x: Tensor, seen: Seen) -> Tensor:
    """Softmax of the class that each view is taken for, on the view without its box: B."""
    mean = models.classifier.mean
    fill = mean if models.config.mask == "mean" else torch.zeros_like(mean)
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
    order = dealt(in_order(len(images), batch_size))
    found: list[dict[str, Tensor]] = []  # per batch: result -> V x B x 4
    with predicting(batch_size):
        for batch in batches(images, order, workers=workers, pin=device.type == "cuda"):
            x = see(batch.images.to(device), "full_image", size)
            each: dict[str, list[Tensor]] = {}
            for view in _views(x):
                with autocast:
                    boxes = predict_batch(models, warp(x, view, torch.zeros(3)), batch.labels.to(device)).boxes
                for name, b in boxes.items():
                    each.setdefault(name, []).append(view.inverse().boxes(b).clamp(0, 1).cpu())
            found.append({name: torch.stack(b) for name, b in each.items()})
    found = collected(found)
    return {name: torch.cat([f[name] for f in found], 1).numpy() for name in found[0]}


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
    order = dealt(in_order(len(images), batch_size))
    with predicting(batch_size):
        for batch in batches(images, order, workers=workers, pin=device.type == "cuda"):
            x = see(batch.images.to(device), "full_image", size)
            with autocast:
                maps = score_maps(x, batch.labels.to(device))
            yield from zip(batch.index.tolist(), maps.cpu().numpy(), strict=True)


def _views(x: Tensor) -> Iterator[AxisMap]:
    for sx, sy in ((-1.0, 1.0), (0.9, 0.9), (1.1, 1.1)):
        scale = torch.tensor([[sx, sy]], device=x.device).expand(len(x), 2)
        yield AxisMap(scale, 0.5 - 0.5 * scale)


__all__ = ["Batch", "Models", "Predictions", "Seen", "predict", "predict_batch", "see", "to_float", "view_boxes"]
