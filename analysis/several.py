"""Several objects or one box: precision and recall of a run's boxes on test images with any number of objects.

python analysis/several.py RUN                                      # one box, and all objects
python analysis/several.py RUN --least-confidence 0 0.5 0.9 --least-area 0.01 0.05 --data-root IMAGENET --csv FILE

RUN is a run folder that holds stage 1. A row per way to answer: the one box of what made its pseudo boxes (a map, or
LCHP's teacher), with --localizer also its localizer's, and all objects; the class of each image is known. A box is
right when its IoU with an object is at least 0.5; of an object and a box, each counts once. It scores test boxes: a
measurement, and nothing to choose a recipe by.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import tyro
from scipy.optimize import linear_sum_assignment
from tabulate import tabulate

from lchp.boxes import iou
from lchp.config import override
from lchp.console import run_scoring
from lchp.data import load
from lchp.deploy.formats import Prediction
from lchp.deploy.predict import LEAST_AREA, predict
from lchp.deploy.trained import TrainedRun, load_run
from lchp.errors import ConfigError
from lchp.evaluation.metrics import IOU_THRESHOLD, TITLES

COLUMNS = ("answer", "least_area", "least_confidence", "precision", "recall", "boxes_per_image", "empty")


@dataclass
class Flags:
    """Score one box of an image beside all its objects."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    least_area: tuple[float, ...] = (LEAST_AREA,)
    """Shares of the image that an object's region covers at least."""
    least_confidence: tuple[float, ...] = (0.0, 0.5, 0.9)
    """Confidences below which nothing is there."""
    localizer: bool = False
    """Also score the box of the run's localizer."""
    csv: Path | None = None
    """File to write the rows to as well."""
    data_root: Annotated[Path | None, tyro.conf.arg(name="data-root")] = None
    """Where the data set lies; by default where the run read it."""
    threads: int = 0
    """CPU threads of torch; 0 leaves torch's choice."""


def matched(found: np.ndarray, objects: np.ndarray) -> int:
    """How many of the boxes found (K x 4) are right: most pairs of a box and an object (M x 4), each in one pair."""
    right = iou(found[:, None], objects[None]) >= IOU_THRESHOLD  # K x M
    rows, columns = linear_sum_assignment(right, maximize=True)
    return int(right[rows, columns].sum())


def row(found: Mapping[str, Prediction], truth: Mapping[str, np.ndarray], least: float) -> dict[str, float]:
    """Precision, recall and the share of images without a box (percent), and boxes per image, at a least confidence."""
    kept = {
        name: np.array([o.box for o in p.found if o.confidence >= least]).reshape(-1, 4) for name, p in found.items()
    }
    right = sum(matched(kept[name], objects) for name, objects in truth.items())
    boxes, objects = sum(map(len, kept.values())), sum(map(len, truth.values()))
    return {
        "precision": 100 * right / boxes if boxes else float("nan"),
        "recall": 100 * right / objects,
        "boxes_per_image": boxes / len(truth),
        "empty": 100 * sum(not len(b) for b in kept.values()) / len(truth),
    }


def score(flags: Flags) -> tuple[pd.DataFrame, dict[str, float]]:
    """The rows, and what the test images hold: images, objects, objects per image. Raises an LchpError."""
    if flags.threads:
        torch.set_num_threads(flags.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    places = {"data.root": str(flags.data_root)} if flags.data_root else {}
    trained = [load_run(flags.run, device, localizer=localizer) for localizer in (False, True)[: 1 + flags.localizer]]
    several, *_ = trained = [replace(run, config=override(run.config, places)) for run in trained]
    split = load(several.config.data).test
    if split.boxes is None or split.paths is None:
        raise ConfigError(f"{flags.run}: its test images have no boxes to score by, or are no files")
    truth = dict(zip(split.image_ids, (np.asarray(b, np.float64) for b in split.boxes), strict=True))
    images = list(zip(split.image_ids, split.paths, strict=True))
    labels = dict(zip(split.image_ids, split.labels.tolist(), strict=True))

    def answers(trained: TrainedRun, **how: Any) -> dict[str, Prediction]:
        return {p.image: p for p, _ in predict(trained, images, labels=labels, **how)}

    rows = []
    for run in trained:
        title, found = f"one box ({TITLES[run.result]})", answers(run)
        rows += [{"answer": title, "least_confidence": c} | row(found, truth, c) for c in flags.least_confidence]
    for area, found in ((a, answers(several, several=True, least_area=a)) for a in flags.least_area):
        about = {"answer": "several", "least_area": area}
        rows += [about | {"least_confidence": c} | row(found, truth, c) for c in flags.least_confidence]
    number = sum(map(len, truth.values()))
    held = {"images": len(truth), "objects": number, "objects per image": number / len(truth)}
    return pd.DataFrame(rows, columns=list(COLUMNS)).round(3), held


def said(flags: Flags) -> tuple[str, pd.DataFrame]:
    """What is printed, and the rows."""
    found, held = score(flags)
    counts = ", ".join(f"{value:g} {name}" for name, value in held.items())
    return f"{counts}\n{tabulate(found, headers='keys', showindex=False, floatfmt='.2f', missingval='-')}", found


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the rows; the exit status."""
    return run_scoring(Flags, said, "several", b"boxes_per_image", argv)


if __name__ == "__main__":
    raise SystemExit(main())
