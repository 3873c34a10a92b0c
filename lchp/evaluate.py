"""Predictions to metrics. Needs numpy only, so that any table can be recomputed from a run folder.

Two evaluation frames, never mixed: `center_crop` (resize to a square, centre crop; PSOL's habit) and `full_image`
(the whole image resized to a square; wsolevaluation's habit). Boxes are fractions of the frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lchp.boxes import area, iou

FRAMES = ("center_crop", "full_image")
RESULTS = ("pseudo_label", "lchp_i", "lchp_r")
"""The three results of LCHP: the teacher's own box, the localizer after stage 1 and after stage 2."""

IOU_THRESHOLD = 0.5
FULL_BOX = (0.0, 0.0, 1.0, 1.0)
CENTRE_BOX = (0.1, 0.1, 0.9, 0.9)
"""The two floors: the whole frame, and the centred box of 80 % side."""


@dataclass(frozen=True)
class GroundTruth:
    """Boxes of N images in one frame, padded: `boxes` N x K x 4 fractions of the frame, `valid` N x K."""

    boxes: np.ndarray
    valid: np.ndarray

    def select(self, keep: np.ndarray) -> "GroundTruth":
        """Of some images."""
        return GroundTruth(self.boxes[keep], self.valid[keep])


def ground_truth(boxes: Sequence[np.ndarray], sizes: np.ndarray, frame: str, *, crop: float = 1.0) -> GroundTruth:
    """Ground truth seen in a frame.

    boxes: per image K x 4 pixels of the original image (exclusive ends); sizes: N x 2 width, height in px;
    crop: image_size / resize, the share of the resized image's side that the centre crop keeps.
    A box is clipped to the crop; one that lies outside of it altogether is no longer a target.
    """
    most = max((len(b) for b in boxes), default=1)
    out = np.zeros((len(boxes), max(most, 1), 4), np.float64)
    valid = np.zeros(out.shape[:2], bool)
    for i, b in enumerate(boxes):
        out[i, : len(b)] = np.asarray(b, np.float64) / np.tile(np.asarray(sizes[i], np.float64), 2)
        valid[i, : len(b)] = True
    if frame == "center_crop":
        out = (out - (1 - crop) / 2) / crop
    elif frame != "full_image":
        raise ValueError(f"frame = {frame!r}: expected one of {', '.join(FRAMES)}")
    out = np.clip(out, 0, 1)
    return GroundTruth(out, valid & (area(out) > 1e-9))  # rounding leaves slivers of what touches the crop


def best_iou(boxes: np.ndarray, truth: GroundTruth) -> np.ndarray:
    """IoU of each predicted box (N x 4) with the best of its image's ground-truth boxes, N values (any counts)."""
    each = iou(np.asarray(boxes, np.float64)[:, None], truth.boxes)
    return np.where(truth.valid, each, 0.0).max(1)


def hits(ious: np.ndarray) -> np.ndarray:
    """GT-Known, image by image: IoU >= 0.5."""
    return ious >= IOU_THRESHOLD


def in_top(top: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Whether the label is among the first k classes of `top` (N x >=k class ids, best first)."""
    return (top[:, :k] == labels[:, None]).any(1)


def percent(values: np.ndarray) -> float:
    """Mean in percent, micro-averaged over images."""
    return float(100 * np.mean(values)) if len(values) else float("nan")


def localization(ious: np.ndarray, top5: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """GT-Known, Top-1 and Top-5 Loc and mean IoU in percent, of N images in one frame."""
    known = hits(ious)
    return {
        "gt_known": percent(known),
        "top1_loc": percent(known & in_top(top5, labels, 1)),
        "top5_loc": percent(known & in_top(top5, labels, 5)),
        "mean_iou": percent(ious),
    }


def macro_average(ious: np.ndarray, labels: np.ndarray) -> float:
    """GT-Known averaged over classes instead of images (PSOL's habit), in percent."""
    known = hits(ious)
    return float(np.mean([percent(known[labels == c]) for c in np.unique(labels)]))


def classification(top5: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Top-1 and top-5 classification accuracy in percent."""
    return {"top1": percent(in_top(top5, labels, 1)), "top5": percent(in_top(top5, labels, 5))}


def floors(truth: GroundTruth) -> dict[str, float]:
    """GT-Known in percent of a box over the whole frame, and of a centred box of 80 % side."""
    n = len(truth.boxes)
    return {
        name: percent(hits(best_iou(np.tile(box, (n, 1)), truth)))
        for name, box in (("full_box", FULL_BOX), ("centre_box", CENTRE_BOX))
    }


def consistency(boxes: np.ndarray, mapped_back: np.ndarray) -> float:
    """Mean IoU in percent of boxes (N x 4) and the boxes of V views mapped back (V x N x 4). Needs no ground truth."""
    return percent(iou(np.asarray(boxes, np.float64)[None], np.asarray(mapped_back, np.float64)).ravel())


def unboxed(boxes: np.ndarray, crop_score: np.ndarray, masked_score: np.ndarray) -> dict[str, float]:
    """How good boxes (N x 4 fractions of the frame) are by the classifier alone, every figure in percent.

    crop_score, masked_score: N, the softmax of the class that the whole view is taken for, on the crop in the box and
    on the view with the box masked out. `score` = crop - masked - area: a good box holds what the classifier goes by,
    leaves nothing of it outside, and is no larger than that. Reads no ground truth; ours, after the paper's masking.
    """
    b = np.asarray(boxes, np.float64)
    crop, masked = percent(crop_score), percent(masked_score)
    size = percent((b[:, 2:] - b[:, :2]).clip(0).prod(1))
    return {"crop": crop, "masked": masked, "area": size, "score": crop - masked - size}
