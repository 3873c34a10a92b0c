"""Data sets by name, each one file here. Adding one: a module with `load(root) -> DataSet` and its line in DATASETS."""

import hashlib
from collections.abc import Callable, Iterator

import numpy as np

from lchp.config import DataConfig
from lchp.data import cub, folder, imagenet, tiny_imagenet, wsol
from lchp.data.base import DataSet, Problem, Split, describe, require_folder, require_sound
from lchp.data.content import look


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
    "wsol": lambda config: wsol.load(require_folder(config.root, "wsolevaluation", wsol.EXPECTED)),
    "wsol_fullsup": lambda config: wsol.load(require_folder(config.root, "wsolevaluation", wsol.EXPECTED), "val"),
}


def read(config: DataConfig) -> DataSet:
    """The data set of a config with its problems. Raises DataError for a missing root or a wrong layout."""
    return DATASETS[config.name](config)


def load(config: DataConfig) -> DataSet:
    """As `read`, but raises DataError for any problem, too (unless skip_bad), and for a split without images.

    No image is opened: `lchp.data.images.open_dataset` finds what is wrong with those.
    """
    dataset = read(config)
    require_sound(dataset, skip_bad=config.skip_bad)
    return dataset


def fingerprint(dataset: DataSet, cache: str = "auto") -> str:
    """Hash of a set's ids, labels, boxes and images (their pixels in memory, or their files' content).

    Files that no `open_dataset` has read are read here, but for those known in the folder that `cache` (data.cache)
    names.
    """
    digest = hashlib.sha256(_classes(dataset))
    for split in (dataset.train, dataset.test):
        for part in _contents(split, cache):
            digest.update(part)
        for boxes in split.boxes or ():
            digest.update(np.ascontiguousarray(boxes, np.float32).tobytes() + b"|")
    return digest.hexdigest()[:16]


def training_fingerprint(dataset: DataSet, cache: str = "auto") -> str:
    """Hash of what training sees, for the identity of checkpoints: names, and the training split without its boxes."""
    digest = hashlib.sha256(_classes(dataset))
    for part in _contents(dataset.train, cache):
        digest.update(part)
    return digest.hexdigest()[:16]


def _classes(dataset: DataSet) -> bytes:
    # wsol and wsol_fullsup differ in the test split only
    return f"{dataset.name.removesuffix('_fullsup')}\0{dataset.class_names}".encode()


def _contents(split: Split, cache: str) -> Iterator[bytes | memoryview]:
    """Ids, labels and images of a split."""
    yield "\0".join(split.image_ids).encode()
    yield np.ascontiguousarray(split.labels).tobytes()
    if split.images is not None:
        yield np.ascontiguousarray(split.images).data
    if split.digests is not None:
        yield split.digests.tobytes()
    elif split.paths is not None:
        yield look(split.paths, DataConfig(cache=cache), exif=split.exif, show_progress=False).digests.tobytes()


__all__ = ["DATASETS", "DataSet", "Problem", "Split", "describe", "fingerprint", "load", "read", "training_fingerprint"]
