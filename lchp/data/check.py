"""`lchp data check`: what a data set holds, and everything that is wrong with it."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lchp.data.annotations import TOLERANCE
from lchp.data.base import DataSet, Problem, Split
from lchp.data.decode import decode, verify
from lchp.errors import DataError

_CHUNK = 256  # images queued at a time: all of ImageNet would cost gigabytes of futures, and delay Ctrl-C


def check(dataset: DataSet, *, workers: int = 0) -> list[Problem]:
    """Everything wrong: the loader's problems, then, in order, images that do not decode and boxes outside of them.

    Every image is decoded at full size, on `workers` threads (0: one per core; Pillow frees the interpreter meanwhile).
    """
    problems = list(dataset.problems)
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        for what, split in (("training", dataset.train), ("test", dataset.test)):
            with tqdm(total=len(split), desc=f"checking {what} images", unit="img", disable=None) as bar:
                indices = iter(range(len(split)))
                while chunk := list(islice(indices, _CHUNK)):
                    for found in pool.map(lambda i, split=split: list(_check_image(split, i)), chunk):
                        problems += found
                        bar.update()
    return problems


def _check_image(split: Split, index: int) -> Iterator[Problem]:
    image_id = split.image_ids[index]
    if split.paths is not None:
        path = split.paths[index]
        try:
            verify(path)
            height, width = decode(path, None, exif=split.exif).shape[:2]
        except DataError as error:
            yield Problem(str(path), None, str(error).removeprefix(f"{path}: "), image_id)
            return
    elif split.images is not None:
        path, (height, width) = Path(image_id), split.images.shape[1:3]
    else:
        return
    for box in split.boxes[index] if split.boxes is not None else ():
        x1, y1, x2, y2 = box.tolist()
        if min(x1, y1) < -TOLERANCE or x2 > width + TOLERANCE or y2 > height + TOLERANCE:
            message = f"box {x1:g} {y1:g} {x2:g} {y2:g} (x1 y1 x2 y2) lies outside of the image of {width} x {height}"
            yield Problem(str(path), None, message, image_id)


def summary(dataset: DataSet) -> str:
    """Counts as a few lines of text: classes, and per split images, boxes and images per class."""
    lines = [f"{dataset.name}: {len(dataset.class_names)} classes, {len(dataset.problems)} problems in its lists"]
    for what, split in (("training", dataset.train), ("test", dataset.test)):
        per_class = np.bincount(split.labels, minlength=len(dataset.class_names))
        boxes = "no boxes" if split.boxes is None else f"{sum(map(len, split.boxes)):,} boxes"
        spread = f"{per_class.min()} / {np.median(per_class):g} / {per_class.max()}"
        lines.append(f"  {what + ':':<10}{len(split):>10,} images, {boxes}; per class min / median / max: {spread}")
    return "\n".join(lines)
