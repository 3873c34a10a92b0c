"""Data sets by name, each one file here. Adding one: a module with `load(root) -> DataSet` and its line in DATASETS."""

import hashlib
from collections.abc import Callable

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
    """Hash of a data set's ids, labels and boxes (and pixels, where they are in memory): the data part of a key."""
    digest = hashlib.sha256(f"{dataset.name}\0{dataset.class_names}".encode())
    for split in (dataset.train, dataset.test):
        digest.update("\0".join(split.image_ids).encode())
        digest.update(np.ascontiguousarray(split.labels).tobytes())
        if split.images is not None:
            digest.update(np.ascontiguousarray(split.images).data)
        for boxes in split.boxes or ():
            digest.update(np.ascontiguousarray(boxes, np.float32).tobytes() + b"|")
    return digest.hexdigest()[:16]


__all__ = ["DATASETS", "DataSet", "Problem", "Split", "describe", "fingerprint", "load"]
