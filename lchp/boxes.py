"""Box geometry on batches. A box is x1 y1 x2 y2; its frame (pixels, or fractions of a view) is the caller's.

Works alike on numpy arrays and torch tensors, and imports torch only when given a tensor.
"""

import importlib
from typing import Any

import numpy as np

Array = Any
"""A numpy array or a torch tensor."""

FULL_BOX = (0.0, 0.0, 1.0, 1.0)
CENTRE_BOX = (0.1, 0.1, 0.9, 0.9)


def _namespace(x: Array) -> Any:
    return np if isinstance(x, (np.ndarray, np.generic)) else importlib.import_module("torch")


def area(boxes: Array, *, inclusive: bool = False) -> Array:
    """Area of ... x 4 boxes; 0 where a box is empty. `inclusive`: x2 y2 are the last pixel, not the first outside."""
    one = 1 if inclusive else 0
    width, height = boxes[..., 2] - boxes[..., 0] + one, boxes[..., 3] - boxes[..., 1] + one
    return width.clip(0) * height.clip(0)


def iou(a: Array, b: Array, *, inclusive: bool = False) -> Array:
    """Intersection over union of ... x 4 boxes, broadcast over the leading axes; 0 where both are empty."""
    xp = _namespace(a)
    top_left = xp.maximum(a[..., :2], b[..., :2])
    bottom_right = xp.minimum(a[..., 2:], b[..., 2:])
    intersection = area(xp.concatenate([top_left, bottom_right], -1), inclusive=inclusive)
    union = area(a, inclusive=inclusive) + area(b, inclusive=inclusive) - intersection
    return xp.where(union > 0, intersection / xp.where(union > 0, union, xp.ones_like(union)), xp.zeros_like(union))


def merge(a: Array, b: Array) -> Array:
    """Smallest boxes around both, ... x 4 (Algorithm 1's merge of L_r and L_m)."""
    xp = _namespace(a)
    return xp.concatenate([xp.minimum(a[..., :2], b[..., :2]), xp.maximum(a[..., 2:], b[..., 2:])], -1)


def order(boxes: Array) -> Array:
    """... x 4 boxes with x1 <= x2 and y1 <= y2, swapping ends where a regression (or a flip) crossed them."""
    xp = _namespace(boxes)
    a, b = boxes[..., :2], boxes[..., 2:]
    return xp.concatenate([xp.minimum(a, b), xp.maximum(a, b)], -1)


def apply_map(boxes: Array, scale: Array, shift: Array) -> Array:
    """Boxes under the per-axis map p' = scale * p + shift; a negative scale (a flip) swaps the ends back in order.

    boxes: B x 4; scale, shift: B x 2, in x, y.
    """
    xp = _namespace(boxes)
    return order(boxes * xp.concatenate([scale, scale], -1) + xp.concatenate([shift, shift], -1))
