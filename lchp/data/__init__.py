"""Data sets by name, each one file here. Adding one: a module with `load(root) -> DataSet` and its line in DATASETS."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from lchp.config import DataConfig
from lchp.data import cub, folder, imagenet, tiny_imagenet
from lchp.data.base import DataSet, Problem, Split, describe, require_folder
from lchp.errors import DataError


def _load_parts(_config: DataConfig) -> DataSet:
    from lchp.data import parts  # here, since drawing needs OpenCV and reading images does not

    return parts.load()


DATASETS: dict[str, Callable[[DataConfig], DataSet]] = {
    "parts": _load_parts,
    "cub": lambda config: cub.load(require_folder(config.root, "CUB-200-2011", "the folder that holds images.txt")),
    "tiny_imagenet": lambda config: tiny_imagenet.load(
        require_folder(config.root, "Tiny-ImageNet", "the folder that holds train/ and val/")
    ),
    "imagenet": lambda config: imagenet.load(
        require_folder(config.root, "ImageNet-1k", "the folder that holds Data/CLS-LOC, or train/ and val/")
    ),
    "folder": lambda config: folder.load(
        require_folder(config.root, "your images", "one sub-folder of images per class")
    ),
}


def load(config: DataConfig) -> DataSet:
    """The data set of a config. Raises DataError for a missing root, a wrong layout, or (unless skip_bad) any fault."""
    dataset = DATASETS[config.name](config)
    if dataset.problems and not config.skip_bad:
        raise DataError(describe(dataset.problems))
    if not len(dataset.train) or not len(dataset.test):
        raise DataError(
            f"{dataset.name}: {len(dataset.train)} training and {len(dataset.test)} test images; both need some"
        )
    return dataset


def fingerprint(dataset: DataSet) -> str:
    """Hash of a set's ids, labels, boxes and images (pixels in memory, or file sizes): the data part of a key."""
    digest = hashlib.sha256(_classes(dataset))
    for split in (dataset.train, dataset.test):
        for part in _contents(split):
            digest.update(part)
        for boxes in split.boxes or ():
            digest.update(np.ascontiguousarray(boxes, np.float32).tobytes() + b"|")
    return digest.hexdigest()[:16]


def training_fingerprint(dataset: DataSet) -> str:
    """Hash of what training sees, for the identity of checkpoints: names, and the training split without its boxes."""
    digest = hashlib.sha256(_classes(dataset))
    for part in _contents(dataset.train):
        digest.update(part)
    return digest.hexdigest()[:16]


def _classes(dataset: DataSet) -> bytes:
    return f"{dataset.name}\0{dataset.class_names}".encode()


def _contents(split: Split) -> Iterator[bytes | memoryview]:
    """Ids, labels and images of a split; an image's file counts by its size, -1 where it cannot be read."""
    yield "\0".join(split.image_ids).encode()
    yield np.ascontiguousarray(split.labels).tobytes()
    if split.images is not None:
        yield np.ascontiguousarray(split.images).data
    if split.paths is not None:
        yield np.array([_file_size(path) for path in split.paths], np.int64).tobytes()


def _file_size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1  # such an image is reported, or dropped, when it is to be decoded


__all__ = ["DATASETS", "DataSet", "Problem", "Split", "describe", "fingerprint", "load", "training_fingerprint"]
