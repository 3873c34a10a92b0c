"""Top-1 and Top-5 Loc of a run's boxes with another run's classes: PSOL's two networks, a localizer without classes
and a classifier as strong as one likes (Zhang et al., CVPR 2020, section 3.3)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lchp.config import TrainConfig
from lchp.data import load
from lchp.data.images import batches, in_order, open_images
from lchp.deploy.trained import load_classifier
from lchp.errors import RunError
from lchp.evaluation.frames import FRAMES, Frame, to_float
from lchp.evaluation.inference import predicting, ranked
from lchp.evaluation.metrics import classification, localization
from lchp.evaluation.predictions import read_predictions, results_in, rows_in
from lchp.files import runs
from lchp.files.schema import SecondClassifier
from lchp.system.devices import autocast, resolve_precision


def second_classifier(run: Path, other: Path, device: torch.device, *, ten_crop: bool = False) -> SecondClassifier:
    """The results of `run` with the classes of `other`'s classifier on the same test images, every figure in percent;
    written to `run`/second_classifier.json, with who named the classes.

    The classifier sees its own run's center_crop, or `ten_crop`: the corners and the centre with their mirror images,
    whose softmax is averaged. Classes are matched by name. Raises RunError where they are not the same.
    """
    table, config = read_predictions(run), runs.read_config(run)
    classifier, theirs, names = load_classifier(other, device)
    data = load(replace(config.data, skip_bad=True))
    ours = {name: label for label, name in enumerate(data.class_names)}
    if set(names) != set(ours):
        raise RunError(f"{other}: its classes are not those of {run}; Top-1 needs a classifier of the same data set")
    images = open_images(data.test, replace(theirs.data, skip_bad=True))
    top = _top5(classifier, images, theirs, device, ten_crop=ten_crop)
    to_ours = np.array([ours[name] for name in names])
    by_image = dict(zip(images.split.image_ids, to_ours[top], strict=True))
    results: dict[str, dict[str, Any]] = {}
    classified: Any = {}
    for frame in FRAMES:
        rows = rows_in(table, frame)
        missing = [i for i in rows["image_id"].to_pylist() if i not in by_image]
        if missing:
            raise RunError(f"{run}: its test image {missing[0]} is not in {config.data.root}; was the data changed?")
        labels = rows["label"].to_numpy()
        top5 = np.array([by_image[i] for i in rows["image_id"].to_pylist()])
        classified = classification(top5, labels)
        for result in results_in(rows):
            if rows[f"{result}_iou"].null_count:
                raise RunError(f"{run}: its test images have no ground-truth boxes")
            results.setdefault(result, {})[frame] = localization(rows[f"{result}_iou"].to_numpy(), top5, labels)
    record: SecondClassifier = {
        "classifier": {"run": other.name, "backbone": theirs.model.classifier, "method": theirs.method.name},
        "crops": 10 if ten_crop else 1,
        "classification": classified,
        "results": results,
    }
    runs.write_json(run / runs.SECOND_CLASSIFIER, record)
    return record


@torch.inference_mode()
def _top5(classifier: Any, images: Any, config: TrainConfig, device: torch.device, *, ten_crop: bool) -> np.ndarray:
    """Class ids N x k of the classifier's run, best first."""
    size = config.data.image_size
    found = []
    order = in_order(len(images), config.evaluation.batch_size)
    context = autocast(device, resolve_precision(config.precision, device))
    for batch in batches(images, order, workers=config.data.workers, pin=device.type == "cuda"):
        pixels = batch.images.to(device)
        views = ten_crops(pixels, size) if ten_crop else [Frame.of("center_crop", config.data).part(pixels)]
        with predicting(len(pixels)), context:
            scores = torch.stack([classifier(to_float(view)).logits.float().softmax(1) for view in views]).mean(0)
        found.append(ranked(scores)[1].cpu())
    return torch.cat(found).numpy()


def ten_crops(pixels: Tensor, size: int) -> list[Tensor]:
    """The corners and the centre of B x R x R x 3 images, each and its mirror image: ten of B x size x size x 3."""
    end = pixels.shape[1] - size
    places = ((0, 0), (end, 0), (0, end), (end, end), (end // 2, end // 2))
    crops = [_crop(pixels, x, y, size) for x, y in places]
    return [*crops, *(crop.flip(2) for crop in crops)]


def _crop(pixels: Tensor, x: int, y: int, size: int) -> Tensor:
    return pixels[:, y : y + size, x : x + size]
