"""Predictions to metrics. Needs numpy only, so that any table can be recomputed from a run folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from lchp.boxes import CENTRE_BOX, FULL_BOX, iou
from lchp.evaluation.frames import FRAMES, GroundTruth
from lchp.files.schema import ResultName

RESULTS: tuple[ResultName, ...] = get_args(ResultName)
"""The three results of LCHP: the teacher's own box, the localizer after stage 1 and after stage 2."""
TITLES = {"pseudo_label": "Pseudo Label", "lchp_i": "LCHP-I", "lchp_r": "LCHP-R"}
METRICS = {"gt_known": "GT-Known", "top1_loc": "Top-1", "top5_loc": "Top-5", "mean_iou": "mean IoU"}
"""What `localization` gives."""

IOU_THRESHOLD = 0.5
FLOORS = {"full_box": "whole frame", "centre_box": "80 % box"}
"""What any result should beat: the GT-Known of boxes that are the same in every image."""


@dataclass(frozen=True)
class Metric:
    """A figure of a run, in percent: which result, in which frame, by which of METRICS. Raises ValueError for a name
    that is none of them."""

    result: str
    frame: str
    name: str = "gt_known"

    def __post_init__(self) -> None:
        for what, known in (("result", RESULTS), ("frame", FRAMES), ("name", tuple(METRICS))):
            if (value := getattr(self, what)) not in known:
                raise ValueError(f"metric: {what} = {value!r}: expected one of {', '.join(known)}")

    @property
    def title(self) -> str:
        """For people."""
        return f"{METRICS[self.name]} of {TITLES[self.result]} in {self.frame}"

    @property
    def path(self) -> str:
        """Its column in a table of runs (see `lchp.report.read`), and where it stands in a summary."""
        return f"results/{self.result}/{self.frame}/{self.name}"

    def of(self, summary: Mapping[str, Any]) -> float | None:
        """Its value in a summary; None where the run has no such result, or its images have no boxes."""
        return summary["results"].get(self.result, {}).get(self.frame, {}).get(self.name)


def best_iou(boxes: np.ndarray, truth: GroundTruth) -> np.ndarray:
    """IoU of each predicted box (N x 4) with the best of its image's ground-truth boxes, N values (any counts)."""
    each = iou(np.asarray(boxes, np.float64)[:, None], truth.boxes)
    return np.where(truth.valid, each, 0.0).max(1)


def hits(ious: np.ndarray) -> np.ndarray:
    """GT-Known, image by image: IoU >= 0.5."""
    return ious >= IOU_THRESHOLD


def gt_known(ious: np.ndarray) -> float:
    """GT-Known in percent, micro-averaged over images."""
    return percent(hits(ious))


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
        "gt_known": gt_known(ious),
        "top1_loc": percent(known & in_top(top5, labels, 1)),
        "top5_loc": percent(known & in_top(top5, labels, 5)),
        "mean_iou": percent(ious),
    }


def macro_average(ious: np.ndarray, labels: np.ndarray) -> float:
    """GT-Known averaged over classes instead of images (PSOL's habit), in percent."""
    return float(np.mean([gt_known(ious[labels == c]) for c in np.unique(labels)]))


def classification(top5: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Top-1 and top-5 classification accuracy in percent."""
    return {"top1": percent(in_top(top5, labels, 1)), "top5": percent(in_top(top5, labels, 5))}


def floors(truth: GroundTruth) -> dict[str, float]:
    """GT-Known in percent of a box over the whole frame, and of a centred box of 80 % side."""
    n = len(truth.boxes)
    return {
        name: gt_known(best_iou(np.tile(box, (n, 1)), truth))
        for name, box in zip(FLOORS, (FULL_BOX, CENTRE_BOX), strict=True)
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
