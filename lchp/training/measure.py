"""What a run measures: predictions of the test split, kept training boxes, and the held-out images."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lchp.config import TrainConfig
from lchp.data.box_file import BoxFile
from lchp.data.images import Images
from lchp.evaluation.frames import FRAMES, Frame, GroundTruth
from lchp.evaluation.inference import Models, Predictions, Rows, each_score_map, predict, predicting, view_boxes
from lchp.evaluation.metrics import RESULTS, best_iou, consistency, gt_known, percent, unboxed
from lchp.evaluation.predictions import frame_table, rows_in, summarize
from lchp.files import runs
from lchp.files.runs import SUMMARY
from lchp.method.choice import known_by, looked_at, score
from lchp.method.pseudo_boxes import mask_fill
from lchp.method.steps import predict_boxes
from lchp.system import distributed
from lchp.training.batches import plain_batches
from lchp.training.context import Context
from lchp.training.definition import DivergedError

MAP_INTERVAL = 0.001
"""Between the thresholds of a score map, wsolevaluation's."""
_NONE = np.zeros((0, 4))
TAUS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Thresholds of Table 4, at which the kept training boxes are counted."""


def _how(context: Context) -> dict[str, Any]:
    """How networks go over a split: the options that all of `lchp.evaluation.inference` takes."""
    config = context.config
    return {
        "size": config.data.image_size,
        "batch_size": config.evaluation.batch_size,
        "workers": config.data.workers,
        "device": context.device,
        "autocast": context.autocast,
    }


@dataclass(frozen=True)
class Evaluation:
    """What networks predict of a split in one frame. Ground truth is read only where it is asked for."""

    frame: Frame
    images: Images
    predictions: Predictions

    @cached_property
    def truth(self) -> GroundTruth | None:
        """In the frame; None where the split has no boxes."""
        boxes = self.images.split.boxes
        return None if boxes is None else self.frame.truth(boxes, self.images.sizes())

    def ious(self, result: str) -> np.ndarray | None:
        """Of a result's boxes, image by image; None where the split has no boxes."""
        return None if self.truth is None else best_iou(self.predictions.boxes[result], self.truth)

    def table(self) -> Any:
        """Rows of predictions.parquet."""
        p, split = self.predictions, self.images.split
        scores = {name: getattr(p, name) for name in ("confidence", "crop_score", "masked_score")}
        of_images = split.image_ids, self.frame.name, split.labels, p.top5, p.top5_score
        return frame_table(*of_images, p.boxes, scores, self.truth)


def evaluate(models: Models, context: Context, images: Images, *frames: str) -> list[Evaluation]:
    """A split in some frames, in one pass over it. Raises DivergedError where weights, finite as they are, give boxes
    or scores that are not."""
    found = predict(models, images, frames, **_how(context), show_progress=context.show_progress)
    for p in found.values():
        for name, values in (*p.boxes.items(), ("confidence", p.confidence), ("top5_score", p.top5_score)):
            if not np.isfinite(values).all():
                raise DivergedError(f"predictions: {name} is not finite; training diverged, lower the learning rate")
    given = context.box_file
    out = []
    for name, p in found.items():
        frame = Frame.of(name, context.config.data)
        if given is not None and given.count(images):
            p = replace(p, boxes={RESULTS[0]: _given(given, images, frame), **p.boxes})
        out.append(Evaluation(frame, images, p))
    return out


def _given(box_file: BoxFile, images: Images, frame: Frame) -> np.ndarray:
    """The boxes of a file in a frame, N x 4; one without area for an image that the file has none of."""
    boxes = [np.array([box]) if (box := box_file.boxes.get(i)) is not None else _NONE for i in images.split.image_ids]
    found = frame.truth(boxes, images.sizes())
    return np.where(found.valid[:, :1], found.boxes[:, 0], 0.0)


def given_boxes(box_file: BoxFile, context: Context) -> dict[str, Any]:
    """What a file holds (`method.boxes`), by counts, and how good its boxes of the training images are, by frame: a
    diagnostic that reads training boxes; nothing is chosen by it. An image without a box counts as missed."""
    images, config = context.images, context.config
    out: dict[str, Any] = {
        "images": len(images),
        "boxed": box_file.count(images),
        "several": box_file.several,
        "unknown": len(box_file.unknown),
        "test": box_file.count(context.test),
    }
    if images.split.boxes is None or not config.evaluation.kept_by_tau:
        return out
    for name in FRAMES:
        frame = Frame.of(name, config.data)
        ious = best_iou(_given(box_file, images, frame), frame.truth(images.split.boxes, images.sizes()))
        out[name] = {"gt_known": gt_known(ious), "mean_iou": percent(ious)}
    return out


def predictions_of(models: Models, context: Context) -> Any:
    """The test split in both frames by these models, as a table of predictions.parquet."""
    import pyarrow as pa

    return pa.concat_tables([each.table() for each in evaluate(models, context, context.test, *FRAMES)])


def summary_of(table: Any, models: Models, context: Context) -> dict[str, Any]:
    """The summary of a run's predictions, with what needs more than these: scores of maps, consistency, and how good
    the last result is on held-out images. models: all that the run has."""
    config, images = context.config, context.test
    summary = summarize(table)
    if models.score_maps is not None and images.split.boxes is not None:
        summary["score_maps"] = score_maps(models, context)
    if images.split.boxes is None or config.evaluation.consistency:
        plain = rows_in(table, "full_image")
        boxes = {name: np.array(plain[f"{name}_box"].to_pylist()) for name in models.results}
        summary["consistency"] = _consistency(models, context, images, boxes)
    return summary


def score_maps(models: Models, context: Context) -> dict[str, float]:
    """The score maps of the test split as wsolevaluation scores them (see `lchp.evaluation.scoring.maps`), in percent.

    `oracle_maxboxacc` (largest contour, IoU 0.5) and `oracle_maxboxacc_v2` (any contour, mean over IoU 0.3, 0.5, 0.7)
    are at the best threshold of these very images, `oracle_threshold` that of the former; `boxacc` and `boxacc_v2` at
    method.threshold. Under evaluation.oracle and data.validation also `..._at_validation`, at
    `oracle_validation_threshold`, the best one of the held-out training images (reads their boxes, not the test's).
    """
    from lchp.evaluation.scoring.maps import IOUS  # OpenCV's contours are for those who score maps
    from lchp.evaluation.scoring.scoremaps import thresholds

    fixed = context.config.method.threshold
    grid = thresholds(MAP_INTERVAL)
    curves = _map_curves(models, context, context.test, np.append(grid, fixed))
    largest, best = curves[:, :, :-1]
    at_50 = largest[IOUS.index(50)]
    out = {
        "oracle_maxboxacc": float(at_50.max()),
        "oracle_maxboxacc_v2": float(best.max(1).mean()),
        "oracle_threshold": float(grid[at_50.argmax()]),
        "threshold": fixed,
        "boxacc": float(curves[0, IOUS.index(50), -1]),
        "boxacc_v2": float(curves[1, :, -1].mean()),
    }
    held_out = context.held_out
    if held_out is None or held_out.split.boxes is None or not context.config.evaluation.oracle:
        return out
    at_best = int(_map_curves(models, context, held_out, grid)[0, IOUS.index(50)].argmax())
    return out | {
        "oracle_validation_threshold": float(grid[at_best]),
        "oracle_validation_boxacc": float(at_50[at_best]),
        "oracle_validation_boxacc_v2": float(best[:, at_best].mean()),
    }


def _map_curves(models: Models, context: Context, images: Images, grid: np.ndarray) -> np.ndarray:
    """Percent of the images whose map's box is right, of the largest contour and of all: 2 x len(IOUS) x thresholds."""
    from lchp.evaluation.scoring.maps import MapEvaluator
    from lchp.evaluation.scoring.scoremaps import in_its_frame

    split, sizes = images.split, images.sizes()
    assert split.boxes is not None
    assert models.score_maps is not None
    models.eval()
    evaluator = MapEvaluator.at(grid)
    for i, scoremap in each_score_map(models.score_maps, images, **_how(context)):
        if not np.isfinite(scoremap).all():
            raise DivergedError("predictions: a score map is not finite; training diverged, lower the learning rate")
        inclusive = np.asarray(split.boxes[i], np.float64) - (0, 0, 1, 1)
        evaluator.accumulate(in_its_frame(scoremap), inclusive, tuple(sizes[i]))
    of_all = MapEvaluator(grid, np.sum(distributed.collected([evaluator.right]), 0))
    return of_all.compute(len(images))


def _consistency(models: Models, context: Context, images: Images, boxes: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Of each result's boxes in full_image."""
    views = view_boxes(models, images, **_how(context))
    return {name: consistency(boxes[name], of_views) for name, of_views in views.items()}


def validate(models: Models, context: Context, images: Images) -> dict[str, float]:
    """How good the last result is on held-out training images, in percent. `score` is what a search may maximise
    without any box (see `lchp.evaluation.metrics.unboxed`). Beside it, for the eye: the consistency of the boxes under
    flips and scales, and the share kept at a fixed confidence.
    Under evaluation.oracle, `oracle_gt_known` is added, which reads these images' boxes."""
    if models.localizers:
        name = list(models.localizers)[-1]
        models = replace(models, pseudo=None, localizers={name: models.localizers[name]})
    else:  # a compared method's map or DDT
        name = RESULTS[0]
    (evaluation,) = evaluate(models, context, images, "full_image")
    p = evaluation.predictions
    out = {
        "images": float(len(images)),
        "consistency": _consistency(models, context, images, p.boxes)[name],
        "kept": percent(p.confidence > context.config.evaluation.confidence),
        "score": unboxed(p.boxes[name], p.crop_score, p.masked_score)["score"],
    }
    ious = evaluation.ious(name) if context.config.evaluation.oracle else None
    return out if ious is None else out | {"oracle_gt_known": gt_known(ious)}


@torch.inference_mode()
def stage2_gain(models: Models, context: Context) -> dict[str, float]:
    """How much better LCHP-R's boxes of some training images are than LCHP-I's, by the score that reads class labels
    and no box (see `lchp.method.choice`), in center_crop and percent: the score of each, the mean difference and its
    standard error over the images."""
    models.eval()
    pair = {name: models.localizers[name] for name in ("lchp_i", "lchp_r")}
    fill, rows = mask_fill(models.classifier.mean, models.config), Rows()
    with predicting(context.config.data.batch_size):
        for batch in plain_batches(context, "center_crop", looked_at(len(context.images))):
            found = {}
            with context.autocast:
                for name, localizer in pair.items():
                    boxes = predict_boxes(localizer, batch.images)
                    crop, masked = known_by(
                        models.classifier, batch.images, batch.labels, boxes, fill, models.crop_margin
                    )
                    found[name] = score(crop, masked, boxes)
            rows.accumulate(found)
    first, second = (100 * v.astype(np.float64) for v in rows.compute().values())
    gain = second - first
    error = float(gain.std(ddof=1) / len(gain) ** 0.5) if len(gain) > 1 else 0.0
    figures = {"lchp_i": float(first.mean()), "lchp_r": float(second.mean()), "gain": float(gain.mean())}
    return {"images": len(gain), **figures, "error": error}


def kept_boxes(classifier: Any, localizer: Any, context: Context) -> dict[str, Any]:
    """Table 4, left: which training boxes of LCHP-I pass tau, and how good they are. A diagnostic that reads training
    boxes; nothing is chosen by it."""
    config, tau = context.config, context.config.refinement.tau
    margin = config.refinement.crop_margin
    models = Models(classifier, None, {"lchp_i": localizer}, config.initialization, margin)
    (evaluation,) = evaluate(models, context, context.images, "center_crop")
    confidence, ious = evaluation.predictions.confidence, evaluation.ious("lchp_i")

    def at(threshold: float) -> dict[str, Any]:
        keep = confidence > threshold
        known = None if ious is None or not keep.any() else gt_known(ious[keep])
        return {"count": int(keep.sum()), "share": percent(keep), "gt_known": known}

    return {
        "tau": tau,
        "total": len(confidence),
        **at(tau),
        "mean_confidence": percent(confidence),
        "by_tau": {f"{t:g}": at(t) for t in sorted({*TAUS, tau})},
    }


def known_kept(source: str | Path | None, config: TrainConfig) -> dict[str, Any] | None:
    """What `kept_boxes` gives, where the run folder of stage 1 holds it already for this tau and this crop."""
    tau = config.refinement.tau
    if source is None or tau not in TAUS or not (Path(source) / SUMMARY).is_file():
        return None
    # read as it stands: a record of an older version lacks fields, and serves all the same
    margin = runs.read_json(Path(source) / runs.CONFIG).get("refinement", {}).get("crop_margin")
    if margin != config.refinement.crop_margin:
        return None
    kept: dict[str, Any] = {**(runs.read_summary(Path(source)).get("kept") or {})}
    found = kept.get("by_tau", {}).get(f"{tau:g}")
    if found is None or set(kept["by_tau"]) != {f"{t:g}" for t in TAUS}:
        return None
    return kept | {"tau": tau, **found}
