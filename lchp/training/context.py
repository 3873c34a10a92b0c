"""What both stages run on: the data, the device, and what environment.json says of them."""

import hashlib
import logging
import os
import platform
import subprocess
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lchp import __version__
from lchp.config import TrainConfig, counted
from lchp.data import DataSet, fingerprint, read, training_fingerprint
from lchp.data.base import listing, require_classes
from lchp.data.box_file import BoxFile
from lchp.data.images import Images, open_dataset
from lchp.errors import ConfigError, DataError
from lchp.system.devices import autocast, device_name, prepare, resolve_device, resolve_precision

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Context:
    """What both stages need: data, device, and how to run on it."""

    config: TrainConfig
    dataset: DataSet
    images: Images
    device: torch.device
    precision: str
    show_progress: bool
    test: Images
    fingerprint: str
    """Of the whole data set."""
    training_fingerprint: str
    """Of what training sees of it."""
    held_out: Images | None = None
    """The training images that `data.validation` takes away from `images`."""
    box_file: BoxFile | None = None
    """Of the method `boxes`."""

    @property
    def autocast(self) -> AbstractContextManager[None]:
        """The context in which the networks run."""
        return autocast(self.device, self.precision)


def open_context(config: TrainConfig, show_progress: bool) -> Context:
    """Device, data and images of a config. Raises an LchpError for what is not there."""
    device = resolve_device(config.device)
    prepare(config, device)
    dataset, images, test = open_dataset(read(config.data), config.data, show_progress=show_progress)
    require_classes(dataset)
    for note in dataset.notes:
        log.warning("%s", note)
    held_out = None
    if config.data.validation:
        is_held_out = held_out_images(images.split.image_ids, config.data.validation, config.seed)
        held_out, images = images.select(np.flatnonzero(is_held_out)), images.select(np.flatnonzero(~is_held_out))
    if config.evaluation.oracle and (held_out is None or held_out.split.boxes is None):
        why = "data.validation = 0 holds none out" if held_out is None else "those of this data set have no boxes"
        log.warning("evaluation.oracle: without effect, it reads held-out training images' boxes, and %s", why)
    precision = resolve_precision(config.precision, device)
    if dropped := dataset.problems:
        said = counted(len(dropped), "faulty record")
        log.warning("dropped %s (all are in environment.json), first %s", said, dropped[0])
    box_file = None
    if config.method.boxes is not None:
        box_file = open_box_file(config, images, held_out, test)
        dataset = replace(dataset, problems=(*dataset.problems, *box_file.problems))
    marks = fingerprint(dataset), training_fingerprint(dataset)
    return Context(config, dataset, images, device, precision, show_progress, test, *marks, held_out, box_file)


def open_box_file(config: TrainConfig, images: Images, held_out: Images | None, test: Images) -> BoxFile:
    """The boxes of the file that a config names; what is to be known of them is logged. Raises DataError for faulty
    rows, unless data.skip_bad leaves them out, and where no training image has a box."""
    from lchp.data.box_reader import read_box_file  # pandas, which other methods need not wait for

    path = Path(os.path.expanduser(config.method.boxes or ""))
    found = read_box_file(path, [images, *([] if held_out is None else [held_out]), test])
    if found.problems and not config.data.skip_bad:
        raise DataError(listing(found.problems, f"in {path} (--data.skip-bad leaves faulty rows out)"))
    count, total = found.count(images), len(images)
    if not count:
        row = f"; {found.unknown[0]}" if found.unknown else ""
        raise DataError(
            f"{path}: no box of any of the {total} training images (such as {images.split.image_ids[0]}){row}"
        )
    log.info("%s: boxes of %d of %d training images%s", path, count, total, _lacking(found, images))
    if found.several:
        log.info("%s: several boxes in %s; that with the highest score counts", path, counted(found.several, "image"))
    if found.unknown:
        log.warning("%s: passed over %s, first %s", path, counted(len(found.unknown), "row"), found.unknown[0])
    if in_test := found.count(test):
        missed = "" if in_test == len(test) else "; an image without one counts as missed"
        log.info("%s: boxes of %d of %d test images, the result Pseudo Label%s", path, in_test, len(test), missed)
    else:
        log.info("%s: no box of a test image, so there is no result Pseudo Label", path)
    return found


def _lacking(found: BoxFile, images: Images) -> str:
    lacking = [i for i in images.split.image_ids if i not in found.boxes]
    return f"; those without one (first {lacking[0]}) add nothing to L_reg" if lacking else ""


def held_out_images(image_ids: Sequence[str], share: float, seed: int) -> np.ndarray:
    """Which images `data.validation` holds out, N bool: those whose hash of seed and id falls into the first `share`.
    Raises ConfigError where that leaves either side empty."""
    positions = [int.from_bytes(hashlib.sha256(f"{seed} {i}".encode()).digest()[:8], "big") / 2**64 for i in image_ids]
    is_held_out = np.array(positions) < share
    if not is_held_out.any() or is_held_out.all():
        raise ConfigError(
            f"data.validation = {share:g}: holds out {is_held_out.sum()} of {len(is_held_out)} training images; "
            "both sides need some"
        )
    return is_held_out


def describe_environment(context: Context) -> dict[str, Any]:
    """What environment.json says before training starts."""
    names = ("torch", "torchvision", "numpy", "pyarrow", "ray", "imaug")
    versions = {"lchp": __version__} | {n: v for n in names if (v := _version(n)) is not None}
    return {
        "versions": {"python": platform.python_version(), **versions},
        "git_revision": _git_revision(),
        "platform": platform.platform(),
        "device": device_name(context.device),
        "precision": context.precision,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "data_fingerprint": context.fingerprint,
        "class_names": list(context.dataset.class_names),
        "skipped": [str(problem) for problem in context.dataset.problems],
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """Commit of the package's checkout, with -dirty for uncommitted changes; None for an installed package."""
    here = Path(__file__).parents[2]
    if not (here / ".git").exists():
        return None
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
