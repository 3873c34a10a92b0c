"""What a run measures: predictions of the test split, kept training boxes, and the held-out images."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lchp import distributed, runs
from lchp.config import TrainConfig
from lchp.context import Context
from lchp.data.base import Split
from lchp.data.images import Images
from lchp.evaluate import FRAMES, GroundTruth, best_iou, consistency, ground_truth, hits, percent, unboxed
from lchp.inference import Models, Predictions, predict, view_boxes
from lchp.loop import DivergedError
from lchp.records import frame_table, summarize, write_predictions
from lchp.runs import SUMMARY, require_claimed
from lchp.stages import Networks

TAUS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Thresholds of Table 4, at which the kept training boxes are counted."""


def _predict(models: Models, context: Context, images: Images, *frames: str) -> dict[str, Predictions]:
    """Raises DivergedError where weights, finite as they are, give boxes or scores that are not."""
    found = predict(
        models,
        images,
        frames,
        context.config.data.image_size,
        batch_size=context.config.evaluation.batch_size,
        workers=context.config.data.workers,
        device=context.device,
        autocast=context.autocast,
        show_progress=context.show_progress,
    )
    for p in found.values():
        for name, values in (*p.boxes.items(), ("confidence", p.confidence), ("top5_score", p.top5_score)):
            if not np.isfinite(values).all():
                raise DivergedError(f"predictions: {name} is not finite; training diverged, lower the learning rate")
    return found


def _truth(split: Split, images: Images, frame: str, config: TrainConfig) -> GroundTruth | None:
    if split.boxes is None:
        return None
    return ground_truth(split.boxes, images.sizes(), frame, crop=config.data.image_size / config.data.resize)


def record_predictions(run: Path, models: Models, context: Context) -> dict[str, Any]:
    """Predicts the test split in both frames, writes predictions.parquet, and returns the summary made from it."""
    import pyarrow as pa

    config = context.config
    images, split = context.test, context.test.split
    tables = []
    for frame, p in _predict(models, context, images, *FRAMES).items():
        truth = _truth(split, images, frame, config)
        tables.append(
            frame_table(
                split.image_ids,
                frame,
                split.labels,
                p.top5,
                p.top5_score,
                p.boxes,
                {"confidence": p.confidence, "crop_score": p.crop_score, "masked_score": p.masked_score},
                truth,
            )
        )
    table = pa.concat_tables(tables)
    if distributed.rank() == 0:
        require_claimed(run)
        write_predictions(run, table)
    summary = summarize(table)
    if split.boxes is None or config.evaluation.consistency:
        summary["consistency"] = _consistency(models, context, images, table)
    return summary


def _view_boxes(models: Models, context: Context, images: Images) -> dict[str, np.ndarray]:
    return view_boxes(
        models,
        images,
        context.config.data.image_size,
        batch_size=context.config.evaluation.batch_size,
        workers=context.config.data.workers,
        device=context.device,
        autocast=context.autocast,
    )


def _consistency(models: Models, context: Context, images: Images, table: Any) -> dict[str, float]:
    import pyarrow.compute as pc

    views = _view_boxes(models, context, images)
    plain = table.filter(pc.equal(table["frame"], "full_image"))  # pyright: ignore[reportAttributeAccessIssue]
    return {name: consistency(np.array(plain[f"{name}_box"].to_pylist()), v) for name, v in views.items()}


def validate(models: Models, context: Context, images: Images) -> dict[str, float]:
    """How good the last localizer is on held-out training images, in percent. `score` is what a search may maximise
    without any box (see `lchp.evaluate.unboxed`). Beside it, for the eye: the consistency of the boxes under flips and
    scales, and the share kept at a fixed confidence.
    Under evaluation.oracle, `oracle_gt_known` is added, which reads these images' boxes."""
    name = list(models.localizers)[-1]
    models = replace(models, teacher=None, localizers={name: models.localizers[name]})
    p = _predict(models, context, images, "full_image")["full_image"]
    agreement = consistency(p.boxes[name], _view_boxes(models, context, images)[name])
    kept = percent(p.confidence > context.config.evaluation.confidence)
    score = unboxed(p.boxes[name], p.crop_score, p.masked_score)["score"]
    out = {"images": float(len(images)), "consistency": agreement, "kept": kept, "score": score}
    oracle = context.config.evaluation.oracle
    truth = _truth(images.split, images, "full_image", context.config) if oracle else None
    return out if truth is None else out | {"oracle_gt_known": percent(hits(best_iou(p.boxes[name], truth)))}


def kept_boxes(nets: Networks, context: Context) -> dict[str, Any]:
    """Table 4, left: which training boxes of LCHP-I pass tau, and how good they are. A diagnostic that reads training
    boxes; nothing is chosen by it."""
    config, split, tau = context.config, context.images.split, context.config.refinement.tau
    margin = config.refinement.crop_margin
    models = Models(nets.classifier, None, {"lchp_i": nets.localizer}, config.initialization, margin)
    p = _predict(models, context, context.images, "center_crop")["center_crop"]
    truth = _truth(split, context.images, "center_crop", config)
    ious = None if truth is None else best_iou(p.boxes["lchp_i"], truth)

    def at(threshold: float) -> dict[str, Any]:
        keep = p.confidence > threshold
        known = None if ious is None or not keep.any() else percent(hits(ious[keep]))
        return {"count": int(keep.sum()), "share": percent(keep), "gt_known": known}

    return {
        "tau": tau,
        "total": len(split),
        **at(tau),
        "mean_confidence": percent(p.confidence),
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
    kept = runs.read_json(Path(source) / SUMMARY).get("kept") or {}
    found = kept.get("by_tau", {}).get(f"{tau:g}")
    if found is None or set(kept["by_tau"]) != {f"{t:g}" for t in TAUS}:
        return None
    return kept | {"tau": tau, **found}
