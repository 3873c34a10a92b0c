"""Figures 2 and 3: test images with the boxes of the results and the ground truth."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lchp.config import TrainConfig
from lchp.data import DataSet
from lchp.errors import RunError
from lchp.evaluation.metrics import IOU_THRESHOLD, hits
from lchp.evaluation.predictions import TITLES
from lchp.pictures import STYLES
from lchp.report.figures.images import Predicted, read_pixels
from lchp.report.figures.style import PAGE, SMALL, Drawing, box_handles, draw_box, draw_picture, pen, style
from lchp.report.flags import Against, Pick


@dataclass(frozen=True)
class Picked:
    """Which images are shown. positions: in the predictions; of: how many images fit; rule: the rule in words."""

    positions: np.ndarray
    of: int
    rule: str


def pick_images(predicted: Predicted, pick: Pick, count: int, seed: int, against: Against = "lchp_i") -> Picked:
    """Chooses up to `count` images.

    `random`: drawn by `seed`; `best`, `worst`: by the IoU of the last result's box (LCHP-R's), ties by the order of the
    test split; `gained`: drawn by `seed` among those where it is right (IoU >= 0.5) and `against` is not; `lost`: the
    other way round. Raises RunError where the rule needs ground truth or a result that is not there, or where no image
    fits.
    """
    everything, rng = np.arange(len(predicted)), np.random.default_rng(seed)
    if pick == "random":
        positions = rng.choice(everything, min(count, len(everything)), replace=False)
        return Picked(np.sort(positions), len(everything), f"drawn at random (seed {seed})")
    if predicted.truth is None:
        raise RunError(f"{predicted.run}: no ground-truth boxes, which --pick {pick} needs; say --pick random")
    last = predicted.last
    if pick in ("best", "worst"):
        ious = predicted.ious[last]
        positions = np.argsort(-ious if pick == "best" else ious, kind="stable")[:count]
        return Picked(positions, len(everything), f"{TITLES[last]}'s {'highest' if pick == 'best' else 'lowest'} IoU")
    if against == last:
        raise RunError(f"{predicted.run}: --pick {pick} compares two results, and its last is {TITLES[last]}")
    if against not in predicted.ious:
        there = ", ".join(TITLES[result] for result in predicted.ious)
        raise RunError(f"{predicted.run}: has no {TITLES[against]}, which --pick {pick} compares with, but {there}")
    ours, theirs = hits(predicted.ious[last]), hits(predicted.ious[against])
    fit = np.flatnonzero(ours & ~theirs if pick == "gained" else theirs & ~ours)
    names = (TITLES[last], TITLES[against])
    right, wrong = names if pick == "gained" else names[::-1]
    if not len(fit):
        raise RunError(f"{predicted.run}: no image on which {right} is right and {wrong} is wrong ({predicted.frame})")
    positions = np.sort(rng.choice(fit, min(count, len(fit)), replace=False))
    return Picked(positions, len(fit), f"drawn at random (seed {seed}) where {right} is right and {wrong} is wrong")


def grid(dataset: DataSet, config: TrainConfig, predicted: Predicted, picked: Picked, name: str, about: str) -> Drawing:
    """Figures 2 and 3, with the boxes of the results that the run has. `about`: a sentence that says which run this is.

    Raises DataError where the pixels are missing or are not those of the run.
    """
    pixels = read_pixels(dataset, config, predicted, picked.positions.tolist())
    ids = [predicted.image_ids[i] for i in picked.positions]
    columns = _columns(len(ids))
    rows = -(-len(ids) // columns)
    side, gap, strip, top = PAGE / columns, 0.09, 0.2, 0.3  # inches
    height = top + rows * (side + strip)
    results = list(predicted.boxes)
    truth_too = ["ground_truth"] if predicted.truth is not None else []
    entries = [*results, *truth_too]
    layers = [n for n in STYLES if n in entries]  # in the order to draw them
    with style():
        figure = Figure(figsize=(PAGE, height))
        for cell, (i, image) in enumerate(zip(picked.positions.tolist(), pixels, strict=True)):
            left, upper = cell % columns * side, height - top - cell // columns * (side + strip)
            inner = side - gap
            ax = figure.add_axes(
                ((left + gap / 2) / PAGE, (upper - inner) / height, inner / PAGE, inner / height), label=str(cell)
            )
            draw_picture(ax, image)
            for layer in layers:
                truth = () if predicted.truth is None else predicted.truth[i]
                for box in truth if layer == "ground_truth" else [predicted.boxes[layer][i]]:
                    draw_box(ax, box, layer)
            if predicted.truth is not None:
                _write_ious(figure, {r: float(predicted.ious[r][i]) for r in results}, left, upper - inner, side)
        figure.legend(
            handles=box_handles(entries),
            loc="upper center",
            ncols=len(layers),
            borderaxespad=0.1,
            fontsize=8,
            handlelength=3,
            columnspacing=2.5,
        )
    below = ""
    if predicted.truth is not None:
        what = "IoU" if len(results) == 1 else "IoUs"
        below = f" Under each the {what}, bold where the box is right (IoU of at least {IOU_THRESHOLD:g})."
    caption = (
        f"{len(ids)} of {picked.of} test images in the frame {predicted.frame}: {picked.rule}. "
        f"{_legend(entries)}{below} {about} Images: {', '.join(ids)}."
    )
    return Drawing(name, caption, figure)


def _columns(count: int) -> int:
    """Images per row, three to six: as many as leave the fewest places empty, and rather four than more or less."""
    return min((4, 3, 5, 6), key=lambda n: -count % n) if count > 3 else 3


def _write_ious(figure: Figure, ious: dict[str, float], left: float, bottom: float, side: float) -> None:
    """The results' IoUs below a picture, each behind a sample of its box's line. Lengths in inches."""
    width, height = figure.get_size_inches()
    y = (bottom - 0.11) / height
    for k, (name, iou) in enumerate(ious.items()):
        x = left + side * (k + 0.53) / len(ious)
        figure.add_artist(Line2D([(x - 0.24) / width, (x - 0.05) / width], [y, y], **pen(name)))
        weight = "bold" if hits(np.array(iou)) else "normal"
        figure.text(x / width, y, f"{iou:.2f}", fontsize=SMALL, va="center_baseline", fontweight=weight)


def _legend(entries: Sequence[str]) -> str:
    words = {
        "pseudo_label": "yellow, dotted: Pseudo Label",
        "lchp_i": "green, dashed: LCHP-I",
        "lchp_r": "blue, solid: LCHP-R",
        "ground_truth": "red, thick: ground truth",
    }
    text = "; ".join(words[entry] for entry in entries)
    return f"{text[0].upper()}{text[1:]}."
