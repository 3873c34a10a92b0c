"""What a run measures: predictions of the test split, kept training boxes, and the held-out images."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lchp import distributed, runs
from lchp.config import TrainConfig
from lchp.context import Context
from lchp.data.base import Split
from lchp.data.images import Images
from lchp.evaluate import FRAMES, RESULTS, GroundTruth, best_iou, consistency, ground_truth, hits, percent, unboxed
from lchp.inference import Models, Predictions, each_score_map, predict, view_boxes
from lchp.loop import DivergedError
from lchp.records import frame_table, summarize, write_predictions
from lchp.runs import SUMMARY
from lchp.stages import Networks

MAP_INTERVAL = 0.001
"""Between the thresholds of a score map, wsolevaluation's."""
TAUS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Thresholds of Table 4, at which the kept training boxes are counted."""


def _how(context: Context) -> dict[str, Any]:
    """How networks go over a split: the options that all of `lchp.inference` takes."""
    config = context.config
    return {
        "batch_size": config.evaluation.batch_size,
        "workers": config.data.workers,
        "device": context.device,
        "autocast": context.autocast,
    }


def _predict(models: Models, context: Context, images: Images, *frames: str) -> dict[str, Predictions]:
    """Raises DivergedError where weights, finite as they are, give boxes or scores that are not."""
    found = predict(
        models,
        images,
        frames,
        context.config.data.image_size,
        **_how(context),
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


def record_predictions(run: Path, models: Models, context: Context, *, check: Callable[[], object]) -> dict[str, Any]:
    """Predicts the test split in both frames, writes predictions.parquet, and returns the summary made from it. check:
    called before it is written, to raise where the run folder is not the one that was claimed."""
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
        check()
        write_predictions(run, table)
    summary = summarize(table)
    if models.score_maps is not None and split.boxes is not None:
        summary["score_maps"] = score_maps(models, context)
    if split.boxes is None or config.evaluation.consistency:
        summary["consistency"] = _consistency(models, context, images, table)
    return summary


def score_maps(models: Models, context: Context) -> dict[str, float]:
    """The score maps of the test split as wsolevaluation scores them (see `lchp.scoring.maps`), in percent.

    `oracle_maxboxacc` (largest contour, IoU 0.5) and `oracle_maxboxacc_v2` (any contour, mean over IoU 0.3, 0.5, 0.7)
    are at the best threshold of these very images, `oracle_threshold` that of the former; `boxacc` and `boxacc_v2` at
    method.threshold. Under evaluation.oracle and data.validation also `..._at_validation`, at
    `oracle_validation_threshold`, the best one of the held-out training images (reads their boxes, not the test's).
    """
    from lchp.scoring.maps import IOUS  # OpenCV's contours are for those who score maps
    from lchp.scoring.scoremaps import thresholds

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
    chosen = int(_map_curves(models, context, held_out, grid)[0, IOUS.index(50)].argmax())
    return out | {
        "oracle_validation_threshold": float(grid[chosen]),
        "oracle_validation_boxacc": float(at_50[chosen]),
        "oracle_validation_boxacc_v2": float(best[:, chosen].mean()),
    }


def _map_curves(models: Models, context: Context, images: Images, grid: np.ndarray) -> np.ndarray:
    """Percent of the images whose map's box is right, of the largest contour and of all: 2 x len(IOUS) x thresholds."""
    from lchp.scoring.maps import IOUS, in_frame, ious_of, reached
    from lchp.scoring.scoremaps import in_its_frame

    split, sizes = images.split, images.sizes()
    assert split.boxes is not None
    assert models.score_maps is not None
    models.eval()
    right = np.zeros((2, len(IOUS), len(grid)), np.int64)
    maps = each_score_map(
        models.score_maps,
        images,
        context.config.data.image_size,
        **_how(context),
    )
    for i, scoremap in maps:
        if not np.isfinite(scoremap).all():
            raise DivergedError("predictions: a score map is not finite; training diverged, lower the learning rate")
        inclusive = np.asarray(split.boxes[i], np.float64) - (0, 0, 1, 1)
        found = ious_of(in_its_frame(scoremap), grid, in_frame(inclusive, tuple(sizes[i])))
        right += np.stack([reached(found.largest), reached(found.best)])
    return 100.0 * np.sum(distributed.collected([right]), 0) / len(images)


def _view_boxes(models: Models, context: Context, images: Images) -> dict[str, np.ndarray]:
    return view_boxes(
        models,
        images,
        context.config.data.image_size,
        **_how(context),
    )


def _consistency(models: Models, context: Context, images: Images, table: Any) -> dict[str, float]:
    import pyarrow.compute as pc

    views = _view_boxes(models, context, images)
    plain = table.filter(pc.equal(table["frame"], "full_image"))  # pyright: ignore[reportAttributeAccessIssue]
    return {name: consistency(np.array(plain[f"{name}_box"].to_pylist()), v) for name, v in views.items()}


def validate(models: Models, context: Context, images: Images) -> dict[str, float]:
    """How good the last result is on held-out training images, in percent. `score` is what a search may maximise
    without any box (see `lchp.evaluate.unboxed`). Beside it, for the eye: the consistency of the boxes under flips and
    scales, and the share kept at a fixed confidence.
    Under evaluation.oracle, `oracle_gt_known` is added, which reads these images' boxes."""
    if models.localizers:
        name = list(models.localizers)[-1]
        models = replace(models, teacher=None, map_boxes=None, localizers={name: models.localizers[name]})
    else:  # a compared method's map or DDT
        name = RESULTS[0]
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
    kept: dict[str, Any] = {**(runs.read_summary(Path(source)).get("kept") or {})}
    found = kept.get("by_tau", {}).get(f"{tau:g}")
    if found is None or set(kept["by_tau"]) != {f"{t:g}" for t in TAUS}:
        return None
    return kept | {"tau": tau, **found}
