"""The general view (crop, flip) and the strong view S (scale, translation, flip).

Each is sampled as one map per image and axis, p' = scale * p + shift in fractions of the view, which then moves pixels
and boxes alike (Eq. 5 needs S on both). Sampling happens on the CPU from an explicit generator, so that a seed gives
the same views on every device.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lchp.boxes import apply_map
from lchp.config import RefinementConfig
from lchp.system.devices import send


@dataclass(frozen=True)
class AxisMap:
    """B maps p' = scale * p + shift, per axis (x, y), in fractions of the view: both B x 2."""

    scale: Tensor
    shift: Tensor

    def then(self, other: "AxisMap") -> "AxisMap":
        """The map that applies this one first and `other` second."""
        return AxisMap(self.scale * other.scale, self.shift * other.scale + other.shift)

    def inverse(self) -> "AxisMap":
        """The map that undoes this one."""
        return AxisMap(1 / self.scale, -self.shift / self.scale)

    def boxes(self, boxes: Tensor) -> Tensor:
        """B x 4 boxes under the map, not clipped."""
        return apply_map(boxes, self.scale, self.shift)

    def to(self, device: torch.device) -> "AxisMap":
        """The same maps on a device."""
        return AxisMap(*send(torch.stack([self.scale, self.shift]), device))

    def select(self, keep: slice) -> "AxisMap":
        """The maps of some images."""
        return AxisMap(self.scale[keep], self.shift[keep])


@dataclass(frozen=True)
class StrongParameters:
    """What S drew for B images. `scale` B x 2 (x, y); `sides` B x 4 (left, top, right, bottom; > 0 pads, < 0 crops, as
    shares of the size); `flip` B x 2 bool (horizontal, vertical). Applied in this order, as imgaug's sequence is."""

    scale: Tensor
    sides: Tensor
    flip: Tensor

    def select(self, keep: slice) -> "StrongParameters":
        """The parameters of some of the images."""
        return StrongParameters(self.scale[keep], self.sides[keep], self.flip[keep])

    def axis_map(self) -> AxisMap:
        """The three as one map."""
        scaled = AxisMap(self.scale, 0.5 - 0.5 * self.scale)  # about the centre
        grown = 1 + self.sides[:, :2] + self.sides[:, 2:]  # the size is kept, so padding shrinks the content
        padded = AxisMap(1 / grown, self.sides[:, :2] / grown)
        flip = self.flip.to(self.scale.dtype)
        return scaled.then(padded).then(AxisMap(1 - 2 * flip, flip))


def sample_strong(n: int, config: RefinementConfig, generator: torch.Generator) -> StrongParameters:
    """Draws the strong view of n images. The same numbers are drawn whatever subset of augmentations is on, so that
    two runs that differ in the subset see the same draws of what they share."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    scale = uniform(*config.scale, n, 2)
    sides = uniform(-config.translation, config.translation, n, 4)
    shifted = torch.rand(n, 1, generator=generator) < config.translation_probability
    flip = torch.rand(n, 2, generator=generator) < config.flip_probability
    on = config.augmentations
    return StrongParameters(
        scale if "scale" in on else torch.ones_like(scale),
        sides * shifted if "translation" in on else torch.zeros_like(sides),
        flip if "flip" in on else torch.zeros_like(flip),
    )


def warp(images: Tensor, axis_map: AxisMap, fill: Tensor | None = None, backend: str = "auto") -> Tensor:
    """Images (B x 3 x H x W) under the map, bilinear; what comes from outside is `fill` (3 values), or without it the
    nearest pixel of the image. backend: `tensor` (grid_sample, where the images are), `opencv` (on the CPU; it rounds
    positions to 1/32 px, and is the faster one there); any other name is the faster of the two for the images.
    """
    if backend == "opencv" or (backend != "tensor" and images.device.type == "cpu"):
        return _warp_opencv(images, axis_map, fill)
    b, _, h, w = images.shape
    back = axis_map.to(images.device).inverse()

    def axis(size: int, k: int) -> Tensor:
        centres = (torch.arange(size, device=images.device, dtype=torch.float32) + 0.5) / size
        return (centres * back.scale[:, k, None] + back.shift[:, k, None]) * 2 - 1  # B x size, grid_sample's -1..1

    x, y = axis(w, 0), axis(h, 1)
    grid = torch.stack([x[:, None, :].expand(b, h, w), y[:, :, None].expand(b, h, w)], -1).to(images.dtype)
    if fill is None:
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    offset = fill.view(1, 3, 1, 1).to(images)
    return F.grid_sample(images - offset, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + offset


def _warp_opencv(images: Tensor, axis_map: AxisMap, fill: Tensor | None) -> Tensor:
    import cv2

    cv2.setNumThreads(torch.get_num_threads())  # else it takes every core, whatever a trial was given
    pictures = images.float().cpu().permute(0, 2, 3, 1).contiguous().numpy()  # no copy where channels are last already
    back, (h, w) = axis_map.inverse(), pictures.shape[1:3]
    scale, shift = (part.double().cpu().numpy() for part in (back.scale, back.shift))
    size = np.array([w, h])
    moved = shift * size + 0.5 * scale - 0.5  # in pixels, whose centres OpenCV counts from 0
    border = cv2.BORDER_REPLICATE if fill is None else cv2.BORDER_CONSTANT
    colour = [] if fill is None else fill.tolist()
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    out = np.empty_like(pictures)
    for picture, view, (sx, sy), (tx, ty) in zip(pictures, out, scale, moved, strict=True):
        matrix = np.array([[sx, 0, tx], [0, sy, ty]])
        cv2.warpAffine(picture, matrix, (w, h), view, how, border, colour)
    return torch.from_numpy(out).permute(0, 3, 1, 2).to(images.device, images.dtype)


def strong_view(images: Tensor, parameters: StrongParameters, fill: Tensor, backend: str) -> Tensor:
    """S(I_r) of B x 3 x H x W images in [0, 1]; fill: colour from outside (3 values); backend: see RefinementConfig."""
    if backend == "imgaug":
        return warp_imgaug(images, parameters, fill)
    return warp(images, parameters.axis_map(), fill, backend)


def crop(images: Tensor, boxes: Tensor, margin: float = 0.0, backend: str = "auto") -> Tensor:
    """Each image's crop in its box (B x 4 in [0, 1]), bilinear, at the image's own size (Eq. 4); backend: `warp`'s.

    The box first grows by `margin`, a share of its side, to each of its four sides, as far as the image goes. A box
    thinner than a pixel is taken as one pixel wide.
    """
    least = 1 / max(images.shape[2:])
    grow = margin * (boxes[:, 2:] - boxes[:, :2])
    boxes = torch.cat([boxes[:, :2] - grow, boxes[:, 2:] + grow], 1).clamp(0, 1)
    side = (boxes[:, 2:] - boxes[:, :2]).clamp(min=least)
    return warp(images, AxisMap(1 / side, -boxes[:, :2] / side), backend=backend)


def warp_imgaug(images: Tensor, parameters: StrongParameters, fill: Tensor) -> Tensor:
    """The same view by imgaug (the paper's tool), on uint8 and image by image. images: B x 3 x H x W in [0, 1].

    It differs from `warp` in three ways: padding and cropping are whole pixels, each operation resamples, and what the
    scaling moves out of the view does not come back when padding shrinks the content.
    """
    import imgaug.augmenters as iaa

    # imgaug takes a list of fill values for a choice among them, so the padding stays 0, and a fourth channel, 1 where
    # the image is, tells where the colour goes
    inside = torch.ones_like(images[:, :1])
    raw = (torch.cat([images, inside], 1).float().cpu() * 255).round().to(torch.uint8)
    pictures = raw.permute(0, 2, 3, 1).contiguous().numpy()
    views = [imgaug_sequence(parameters, i, iaa).augment_image(picture) for i, picture in enumerate(pictures)]
    view = (torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2) / 255).to(images.device, images.dtype)
    return view[:, :3] + (1 - view[:, 3:]) * fill.view(1, 3, 1, 1).to(view)


def imgaug_sequence(parameters: StrongParameters, i: int, iaa: Any) -> Any:
    """imgaug's sequence with image i's draws: Affine scale, CropAndPad (size kept), horizontal and vertical flip."""
    sx, sy = parameters.scale[i].tolist()
    left, top, right, bottom = parameters.sides[i].tolist()
    horizontal, vertical = parameters.flip[i].tolist()
    return iaa.Sequential(
        [
            iaa.Affine(scale={"x": sx, "y": sy}, cval=0, mode="constant"),
            iaa.CropAndPad(percent=(top, right, bottom, left), pad_cval=0, keep_size=True),
            iaa.Fliplr(float(horizontal)),
            iaa.Flipud(float(vertical)),
        ]
    )


def sample_general(n: int, resize: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random crops and flips of resize x resize images: (offsets n x 2 int64 in px (x, y), flip n bool)."""
    offsets = torch.randint(0, resize - size + 1, (n, 2), generator=generator)
    return offsets, torch.rand(n, generator=generator) < 0.5


def general_view(images: Tensor, offsets: Tensor, flip: Tensor, size: int) -> Tensor:
    """Crops (and flips) of uint8 images (B x R x R x 3): B x size x size x 3, no resampling."""
    if images.device.type == "cpu":  # whole lines at a time; indexing copies pixel by pixel
        out = images.new_empty(len(images), size, size, 3)
        for view, image, (x, y), mirrored in zip(out, images, offsets.tolist(), flip.tolist(), strict=True):
            part = image[y : y + size, x : x + size]
            view.copy_(part.flip(1) if mirrored else part)
        return out
    b, steps = len(images), torch.arange(size, device=images.device)
    left, top, mirrored = send(torch.cat([offsets, flip[:, None]], 1), images.device).split(1, 1)  # B x 1 each
    columns = left + torch.where(mirrored > 0, steps.flip(0)[None], steps[None])  # B x size
    rows = top + steps[None]
    return images[torch.arange(b, device=images.device)[:, None, None], rows[:, :, None], columns[:, None, :]]
