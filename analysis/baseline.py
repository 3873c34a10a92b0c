"""The straightforward implementation that analysis/benchmark.py measures lchp against: the paper written down plainly.

JPEGs are decoded every epoch, boxes are found image by image with contours, the classifier runs once on the raw images
and once on the masked ones, strong views are imgaug's on uint8, and everything is fp32, eager, in PyTorch's default
layout. It computes what lchp computes; the benchmark checks that before it times anything.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from lchp.method.views import StrongParameters

Box = tuple[float, float, float, float]


class Decoded(Dataset[tuple[Tensor, int]]):
    """Image files, decoded anew each time, cropped and flipped at random; for a DataLoader's workers."""

    def __init__(self, paths: Sequence[Path], labels: np.ndarray, resize: int, size: int) -> None:
        self.paths, self.labels, self.resize, self.size = paths, labels, resize, size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        """An image, 3 x size x size in [0, 1], and its class."""
        with Image.open(self.paths[i]) as image:
            picture = image.convert("RGB").resize((self.resize, self.resize), Image.Resampling.BILINEAR)
        x, y = np.random.randint(0, self.resize - self.size + 1, 2)
        view = np.asarray(picture)[y : y + self.size, x : x + self.size]
        if np.random.rand() < 0.5:
            view = view[:, ::-1]
        return torch.from_numpy(view.copy()).permute(2, 0, 1).float() / 255, int(self.labels[i])


def attention_box(attention: np.ndarray, size: int, delta: float) -> Box | None:
    """The box around everything above delta of the maximum, in pixels; None where nothing is."""
    upsampled = cv2.resize(attention, (size, size), interpolation=cv2.INTER_LINEAR)
    mask = (upsampled > delta * upsampled.max()).astype(np.uint8)
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return None
    ends = [(x, y, x + w, y + h) for x, y, w, h in map(cv2.boundingRect, contours)]
    left, top, right, bottom = zip(*ends, strict=True)
    return min(left), min(top), max(right), max(bottom)


def attention_boxes(attention: Tensor, size: int, delta: float, otherwise: Sequence[Box] | None = None) -> list[Box]:
    """As `attention_box`, for B x h x w; where there is none, the box of `otherwise`, or the whole view."""
    found = [attention_box(a, size, delta) for a in attention.float().cpu().numpy()]
    return [box or (otherwise[i] if otherwise else (0, 0, size, size)) for i, box in enumerate(found)]


def pseudo_boxes(teacher: nn.Module, images: Tensor, source: str, delta: float, fill: Tensor) -> tuple[Tensor, Tensor]:
    """Algorithm 1: the merged boxes, B x 4 in [0, 1], and the masked images."""
    size = images.shape[-1]
    with torch.no_grad():
        first = attention_boxes(teacher(images).attention(source), size, delta)
        masked = images.clone()
        for image, (x1, y1, x2, y2) in zip(masked, first, strict=True):
            image[:, int(y1) : int(y2), int(x1) : int(x2)] = fill.view(3, 1, 1).to(image)
        second = attention_boxes(teacher(masked).attention(source), size, delta, first)
    merged = [
        (min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])) for a, b in zip(first, second, strict=True)
    ]
    return torch.tensor(merged, device=images.device) / size, masked


def initialization_step(
    classifier: nn.Module,
    teacher: nn.Module,
    localizer: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    images: Tensor,
    y: Tensor,
    *,
    source: str,
    delta: float,
    alpha: float,
    beta: float,
    fill: Tensor,
) -> Tensor:
    """One iteration of stage 1; the loss."""
    box, masked = pseudo_boxes(teacher, images, source, delta, fill)
    l_cls = 0.5 * (F.cross_entropy(classifier(images).logits, y) + F.cross_entropy(classifier(masked).logits, y))
    l_reg = ((localizer(images) - box) ** 2).sum(1).mean()
    loss = l_cls + alpha * l_reg
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    with torch.no_grad():
        for mine, other in zip(teacher.parameters(), classifier.parameters(), strict=True):
            mine.mul_(beta).add_(other, alpha=1 - beta)
        for mine, other in zip(teacher.buffers(), classifier.buffers(), strict=True):
            mine.copy_(other)
    return loss.detach()


def crops(images: Tensor, boxes: Tensor) -> Tensor:
    """Each image's crop in its box, whole pixels, back at the image's size."""
    size, out = images.shape[-1], []
    for image, box in zip(images, (boxes * size).round().int().tolist(), strict=True):
        x1, y1 = min(box[0], size - 1), min(box[1], size - 1)
        part = image[None, :, y1 : max(box[3], y1 + 1), x1 : max(box[2], x1 + 1)]
        out.append(F.interpolate(part, (size, size), mode="bilinear", align_corners=False))
    return torch.cat(out)


def strong_views(images: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """S(I_r) and S(b) by imgaug, on uint8 on the CPU; black comes in from outside."""
    from imgaug import augmenters
    from imgaug.augmentables.bbs import BoundingBox

    iaa: Any = augmenters  # its annotations take whole numbers alone
    sequence = iaa.Sequential(
        [
            iaa.Affine(scale={"x": (0.8, 1.2), "y": (0.8, 1.2)}),
            iaa.Sometimes(0.5, iaa.CropAndPad(percent=(-0.25, 0.25))),
            iaa.Fliplr(0.5),
            iaa.Flipud(0.5),
        ]
    )
    size = images.shape[-1]
    raw = (images.permute(0, 2, 3, 1).cpu().numpy() * 255).round().astype(np.uint8)
    views, found = sequence(images=raw, bounding_boxes=[[BoundingBox(*b)] for b in (boxes * size).tolist()])
    target = torch.tensor([[b[0].x1, b[0].y1, b[0].x2, b[0].y2] for b in found]) / size
    view = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).float().div(255)
    return view.to(images.device), target.to(images.device, torch.float32)


def strong_box(box: Sequence[float], strong: StrongParameters, i: int) -> Box:
    """S(b) of image i under draws of lchp's, in fractions of the view, operation by operation; not clipped."""
    (x1, y1, x2, y2), scale = box, strong.scale[i].tolist()
    x1, x2 = ((v - 0.5) * scale[0] + 0.5 for v in (x1, x2))
    y1, y2 = ((v - 0.5) * scale[1] + 0.5 for v in (y1, y2))
    left, top, right, bottom = strong.sides[i].tolist()
    x1, x2 = ((v + left) / (1 + left + right) for v in (x1, x2))
    y1, y2 = ((v + top) / (1 + top + bottom) for v in (y1, y2))
    mirrored, upside_down = strong.flip[i].tolist()
    if mirrored:
        x1, x2 = 1 - x2, 1 - x1
    if upside_down:
        y1, y2 = 1 - y2, 1 - y1
    return x1, y1, x2, y2


def refinement_step(
    classifier: nn.Module,
    localizer: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    tau: float,
) -> Tensor:
    """One iteration of stage 2, with the localizer's own labels; the loss."""
    with torch.no_grad():
        localizer.eval()
        raw = localizer(images)
        localizer.train()
        b = torch.cat([torch.minimum(raw[:, :2], raw[:, 2:]), torch.maximum(raw[:, :2], raw[:, 2:])], 1).clamp(0, 1)
        confidence = classifier(crops(images, b)).logits.softmax(1).amax(1)
        view, target = strong_views(images, b)
        target = target.clamp(0, 1)
        visible = ((target[:, 2:] - target[:, :2]) > 0).all(1)
    error = ((localizer(view) - target) ** 2).sum(1)
    loss = ((confidence > tau) & visible).float().mul(error).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()
