"""Connected regions of a foreground: the box of the largest, and of all that are large enough. Corners connect."""

from collections.abc import Iterator

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from lchp.boxes import FULL_BOX


def largest_component_boxes(mask: Tensor) -> Tensor:
    """Smallest rectangle around the largest connected region of masks B x h x w (bool): B x 4 in [0, 1].

    Of regions of equal size it is the first in reading order; without foreground the box is the whole view.
    `lchp.method.pseudo_boxes.enclosing_boxes` is the one around all foreground.
    """
    boxes = torch.tensor(FULL_BOX).repeat(len(mask), 1)
    for box, (found, pixels) in zip(boxes, _regions(mask), strict=True):
        if len(found):
            box.copy_(torch.from_numpy(found[pixels.argmax()]))
    return boxes.to(mask.device)


def object_boxes(mask: Tensor, least_area: float) -> list[Tensor]:
    """Boxes of the objects in each of the masks B x h x w (bool): K x 4 in [0, 1], K from 0 up, largest region first.

    An object is a connected region that covers at least `least_area` of its view. Of boxes that overlap, one is left:
    it goes around those that torchvision's nms would drop for it, so that in the end no two overlap.
    """
    of_views = []
    for found, pixels in _regions(mask):
        large = pixels >= max(1, least_area * mask[0].numel())
        boxes, size = torch.from_numpy(found[large]), torch.from_numpy(pixels[large]).float()
        of_views.append(_merged(boxes, size).to(mask.device))
    return of_views


def _regions(mask: Tensor) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each mask its regions' boxes (K x 4 float32, in [0, 1]) and numbers of pixels (K), in reading order."""
    h, w = mask.shape[1:]
    for part in mask.cpu().numpy():
        labels = np.empty(part.shape, np.int32)
        ndimage.label(part, np.ones((3, 3)), labels)
        count = int(labels.max())
        ends = [(x.start / w, y.start / h, x.stop / w, y.stop / h) for y, x in ndimage.find_objects(labels)]
        yield np.array(ends, np.float32).reshape(count, 4), np.bincount(labels[labels > 0], minlength=count + 1)[1:]


def _merged(boxes: Tensor, size: Tensor) -> Tensor:
    """Boxes K x 4 of regions of that size (K), merged where they overlap at all; the largest first."""
    from torchvision.ops import box_iou, nms  # which no training needs, and which looks for packages that are optional

    while True:
        kept = nms(boxes, size, 0.0)  # the largest first
        if len(kept) == len(boxes):
            return boxes[kept]
        into = box_iou(boxes, boxes[kept]).argmax(1)  # itself, or what it is dropped for
        parts = [into == k for k in range(len(kept))]
        boxes = torch.stack([torch.cat([boxes[p, :2].amin(0), boxes[p, 2:].amax(0)]) for p in parts])
        size = torch.stack([size[p].sum() for p in parts])
