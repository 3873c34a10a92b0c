"""`lchp data check`: what a data set holds, and everything that is wrong with it."""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

from lchp.config import DataConfig
from lchp.data.annotations import against_lists, outside
from lchp.data.base import DataSet, Problem, Split, WrittenBox, lone_class
from lchp.data.cache import shown_bytes, size_of
from lchp.data.content import cache_folder, in_threads
from lchp.data.decode import decode, fault, header, verify
from lchp.errors import DataError
from lchp.system.progress import tqdm

_CHUNK = 256  # images queued at a time: all of ImageNet would cost gigabytes of futures, and delay Ctrl-C


def check(dataset: DataSet, *, workers: int = 0) -> list[Problem]:
    """Everything wrong: the loader's problems; then, in order, images that do not decode and boxes outside of them; and
    training images of one class alone.

    Every image, also of those that the loader left out, is decoded at full size, on `workers` threads (0: one per core;
    Pillow frees the interpreter meanwhile).
    """
    problems = list(dataset.problems)
    others, exif = dataset.left_out, dataset.train.exif
    parts: list[tuple[str, int, Callable[[int], list[Problem]]]] = [
        ("training images", len(dataset.train), lambda i: _check_image(dataset, dataset.train, i)),
        ("test images", len(dataset.test), lambda i: _check_image(dataset, dataset.test, i)),
        ("images left out", len(others), lambda i: _check_file(dataset, others[i], None, exif=exif)),
    ]
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        for what, count, examine in parts:
            with tqdm(total=count, desc=f"checking {what}", unit="img", disable=None) as bar:
                indices = iter(range(count))
                while chunk := list(islice(indices, _CHUNK)):
                    for found in pool.map(examine, chunk):
                        problems += found
                        bar.update()
    return problems if (alone := lone_class(dataset)) is None else [*problems, alone]


def _check_image(dataset: DataSet, split: Split, index: int) -> list[Problem]:
    image_id = split.image_ids[index]
    if split.paths is not None:
        return _check_file(dataset, split.paths[index], image_id, exif=split.exif)
    assert split.images is not None
    height, width = split.images.shape[1:3]
    given = [] if split.boxes is None else split.boxes[index].tolist()
    return list(outside([WrittenBox(image_id, None, tuple(box)) for box in given], width, height, image_id))


def _check_file(dataset: DataSet, path: Path, image_id: str | None, *, exif: bool) -> list[Problem]:
    try:
        verify(path)
        height, width = decode(path, None, exif=exif).shape[:2]
    except DataError as error:
        return [Problem(str(path), None, fault(path, error), image_id)]
    return list(against_lists(dataset, path, width, height, image_id or path.name))


def summary(dataset: DataSet) -> str:
    """Counts as a few lines of text: classes, and per split images, boxes and images per class; and the notes."""
    lines = [f"{dataset.name}: {len(dataset.class_names)} classes, {len(dataset.problems)} problems in its lists"]
    for what, split in (("training", dataset.train), ("test", dataset.test)):
        per_class = np.bincount(split.labels, minlength=len(dataset.class_names))
        boxes = "no boxes" if split.boxes is None else f"{sum(map(len, split.boxes)):,} boxes"
        spread = f"{per_class.min()} / {np.median(per_class):g} / {per_class.max()}" if len(per_class) else "-"
        lines.append(f"  {what + ':':<10}{len(split):>10,} images, {boxes}; per class min / median / max: {spread}")
    return "\n".join([*lines, *(f"  {note}" for note in dataset.notes)])


def cache_summary(dataset: DataSet, config: DataConfig) -> str | None:
    """A line on the image cache that training would make, and the room for it; None for a generated data set.

    Headers are read of all images."""

    def size(path: Path) -> tuple[int, int, int]:
        try:
            return header(path)
        except DataError:
            return 0, 0, 0

    paths = [path for split in (dataset.train, dataset.test) for path in split.paths or ()]
    if not paths:
        return None
    headers = [found for _, found in in_threads(lambda i: size(paths[i]), range(len(paths)), config, "sizes", True)]
    needed = shown_bytes(size_of(np.array(headers), config.resize))
    folder = cache_folder(config.cache)
    there = next((f for f in (folder, *folder.parents) if f.is_dir()), None) if folder is not None else None
    room = "" if there is None else f"; {folder} has {shown_bytes(shutil.disk_usage(there).free)} free"
    return f"  cache:    {needed} at data.resize {config.resize}, unless data.cache is off{room}"
