"""Data sets by name, each one file here. Adding one: a module with `load(root) -> DataSet` and an entry in DATASETS."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from lchp.config import DataConfig
from lchp.data import cub, folder, imagenet, tiny_imagenet, wsol
from lchp.data.base import DataSet, Problem, Split, problems_text, require_folder, require_sound
from lchp.data.content import look

_IMAGENET_TERMS = "ImageNet's terms of access: for non-commercial research and teaching"


def _load_parts(_config: DataConfig) -> DataSet:
    from lchp.data import parts  # here, since drawing needs OpenCV and reading images does not

    return parts.load()


@dataclass(frozen=True)
class DataSource:
    """A data set that a config may name. load: reads it, as `read`; title: in tables; classes: their number in the
    whole of it, None where that is up to its folder; test: which of its splits is the test split, where there is a
    choice; published: whether the paper's tables have figures of it; generated: drawn, not photographed; terms: what
    its images may be used for, for those whom a model is handed to."""

    load: Callable[[DataConfig], DataSet]
    title: str
    classes: int | None = None
    test: str = ""
    published: bool = False
    generated: bool = False
    terms: str = "images of the publisher's own, whose licence is not recorded"

    @property
    def about(self) -> str:
        """Its title, with the split that is tested on where there is a choice."""
        return f"{self.title} ({self.test})" if self.test else self.title


DATASETS: Mapping[str, DataSource] = MappingProxyType(
    {
        "parts": DataSource(
            _load_parts,
            "parts (embedded, synthetic)",
            generated=True,
            terms="drawn by lchp, which is Apache-2.0; no photograph is in it",
        ),
        "cub": DataSource(
            lambda config: cub.load(require_folder(config.root, "CUB-200-2011", "the folder that holds images.txt")),
            "CUB-200-2011",
            200,
            published=True,
            terms="for non-commercial research and teaching; the photographs are their owners'",
        ),
        "tiny_imagenet": DataSource(
            lambda config: tiny_imagenet.load(
                require_folder(config.root, "Tiny-ImageNet", "the folder that holds train/ and val/")
            ),
            "Tiny-ImageNet",
            200,
            published=True,
            terms=_IMAGENET_TERMS,
        ),
        "imagenet": DataSource(
            lambda config: imagenet.load(
                require_folder(config.root, "ImageNet-1k", "the folder that holds Data/CLS-LOC, or train/ and val/")
            ),
            "ImageNet-1k",
            1000,
            published=True,
            terms=_IMAGENET_TERMS,
        ),
        "folder": DataSource(
            lambda config: folder.load(
                require_folder(config.root, "your images", "one sub-folder of images per class")
            ),
            "a folder of images",
        ),
        "wsol": DataSource(
            lambda config: wsol.load(require_folder(config.root, "wsolevaluation", wsol.EXPECTED)),
            "wsolevaluation",
            test=wsol.SPLITS["test"],
            terms="those of the data set that its lists are of",
        ),
        "wsol_fullsup": DataSource(
            lambda config: wsol.load(require_folder(config.root, "wsolevaluation", wsol.EXPECTED), "val"),
            "wsolevaluation",
            test=wsol.SPLITS["val"],
            terms="those of the data set that its lists are of",
        ),
    }
)


def read(config: DataConfig) -> DataSet:
    """The data set of a config with its problems. Raises DataError for a missing root or a wrong layout."""
    return DATASETS[config.name].load(config)


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


__all__ = [
    "DATASETS",
    "DataSet",
    "DataSource",
    "Problem",
    "Split",
    "fingerprint",
    "load",
    "problems_text",
    "read",
    "training_fingerprint",
]
