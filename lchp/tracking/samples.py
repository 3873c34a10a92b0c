"""Sample pictures for trackers: test images with the boxes of every result."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from lchp.evaluation.metrics import TITLES
from lchp.evaluation.predictions import results_in, rows_in
from lchp.pictures import BLACK, STYLES, WHITE, draw_box

FRAME = "full_image"
SAMPLES = 16
COLUMNS = 4
LEAST_CELL = 192  # px; smaller images are enlarged, so that lines can be told apart
LEGEND = 24  # px


def shown_images(count: int, seed: int) -> list[int]:
    """Positions of the test images that pictures show, of `count`: for a seed the same every time."""
    return sorted(np.random.default_rng(seed).choice(count, min(SAMPLES, count), replace=False).tolist())


def layers_of(table: Any, shown: Sequence[int]) -> dict[str, list[np.ndarray]]:
    """What `sample_grid` draws of predictions (see `lchp.evaluation.predictions`) of the images at `shown`."""
    rows = rows_in(table, FRAME).take(list(shown))
    layers = {name: [np.array([box]) for box in rows[f"{name}_box"].to_pylist()] for name in results_in(rows)}
    if not rows["ground_truth"].null_count:
        layers["ground_truth"] = [np.array(boxes).reshape(-1, 4) for boxes in rows["ground_truth"].to_pylist()]
    return layers


def sample_grid(pixels: np.ndarray, layers: Mapping[str, Sequence[np.ndarray]], size: int) -> np.ndarray:
    """Images with boxes as in the paper's Figure 2 and a legend on top, one picture of H x W x 3 uint8.

    pixels: N x R x R x 3 uint8, whole images; layers: result, or `ground_truth` -> per image K x 4 boxes, fractions of
    it; size: of each image in the picture, in px, at least. Yellow Pseudo Label, green LCHP-I, blue LCHP-R, red ground
    truth.
    """
    cell = max(LEAST_CELL, size)
    rows = -(-len(pixels) // COLUMNS)
    layers = {name: layers[name] for name in STYLES if name in layers}
    out = Image.new("RGB", (COLUMNS * cell, LEGEND + rows * cell), WHITE)
    for i, array in enumerate(pixels):
        image = Image.fromarray(array).resize((cell, cell), Image.Resampling.BILINEAR)
        for name, boxes in layers.items():
            for x1, y1, x2, y2 in (boxes[i] * cell).tolist():
                draw_box(image, (x1, y1, x2, y2), STYLES[name])
        out.paste(image, (i % COLUMNS * cell, LEGEND + i // COLUMNS * cell))
    draw = ImageDraw.Draw(out)
    for k, name in enumerate(layers):
        left = 8 + k * (COLUMNS * cell - 16) // len(layers)
        draw_box(out, (left, 5, left + 24, LEGEND - 5), STYLES[name])
        draw.text((left + 32, 6), TITLES.get(name, "ground truth"), fill=BLACK)
    return np.asarray(out)
