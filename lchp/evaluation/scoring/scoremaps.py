"""Score maps as files: which there must be, what one must hold, and the frame in which they are scored."""

import time
import zipfile
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from lchp.config import counted
from lchp.data.base import Problem
from lchp.errors import ConfigError, DataError
from lchp.system.progress import tqdm

FRAME = 224
"""Side in px of the square in which wsolevaluation compares: its networks' input."""


class Read(NamedTuple):
    """A map as it is scored, FRAME x FRAME float64 in [0, 1]; `was_resized`: it came in another size."""

    scoremap: np.ndarray
    was_resized: bool


def thresholds(interval: float) -> np.ndarray:
    """The grid 0, interval, 2 interval, ... below 1. Raises ConfigError for an interval that gives none."""
    if not 1e-5 <= interval <= 1:
        raise ConfigError(f"interval = {interval:g}: expected a step between thresholds, from 1e-5 to 1")
    return np.arange(0, 1, interval)


def read_map(path: Path) -> Read:
    """One .npy file as float64 of FRAME x FRAME in [0, 1].

    A map of FRAME x FRAME is taken as it is, and must lie in [0, 1]. Any other size is that of a network's output, of
    any range: it is resized (bicubic) and then scaled to [0, 1] by its least and largest value (a constant one to 0),
    as wsolevaluation's inference prepares its maps; scoring it in its own frame would compare it with boxes of another.
    Raises DataError for a file that is not a whole .npy array of H x W finite floats; pickled objects are never loaded.
    """
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: a wrong header is refused, not allocated
    except (ValueError, OSError, EOFError, OverflowError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise DataError(f"{path}: not a whole .npy array of numbers ({reason})") from None
    if not isinstance(stored, np.ndarray):
        raise DataError(f"{path}: an archive of arrays; expected one .npy array of H x W")
    if stored.dtype.kind != "f":
        raise DataError(f"{path}: dtype {stored.dtype}; expected floats")
    if stored.ndim != 2 or not stored.size:
        raise DataError(f"{path}: shape {' x '.join(map(str, stored.shape)) or '()'}; expected H x W")
    scoremap = np.array(stored, np.float64, order="C")
    if not np.isfinite(scoremap).all():
        count = int((~np.isfinite(scoremap)).sum())
        raise DataError(f"{path}: {count} of {scoremap.size} values are NaN or infinite")
    if scoremap.shape != (FRAME, FRAME):
        return Read(in_its_frame(scoremap), True)
    if scoremap.min() < 0 or scoremap.max() > 1:
        values = f"values from {scoremap.min():g} to {scoremap.max():g}"
        raise DataError(f"{path}: {values}; a map of {FRAME} x {FRAME} must lie in [0, 1]")
    return Read(scoremap, False)


def each_map(
    folder: Path, image_ids: Collection[str], accumulate: Callable[[str, np.ndarray], object], *, show_progress: bool
) -> tuple[dict[str, int], float]:
    """Calls `accumulate(image id, map)` on `folder`/<image id>.npy of every image, one map in memory at a time.

    Returns what was counted and does not keep a score from being one: `resized` (maps of another size), `constant`
    (maps of one value, whose box says nothing), `unknown` (maps of no image of the split: other splits may lie in the
    same folder), and the seconds it took. Raises DataError where the folder or any image's map is missing, before
    anything is read.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of score maps")
    files = {image_id: folder / f"{image_id}.npy" for image_id in image_ids}
    missing = [path for path in files.values() if not path.is_file()]
    if missing:
        raise DataError(f"{missing[0]}: no such score map; {len(missing)} of {len(files)} are missing (<image id>.npy)")
    there = sum(path.is_file() for path in folder.rglob("*.npy"))
    counted = Counter(unknown=there - len(files))
    start = time.perf_counter()
    for image_id, path in tqdm(files.items(), "score maps", unit="img", disable=None if show_progress else True):
        scoremap, was_resized = read_map(path)
        counted.update(resized=was_resized, constant=bool(scoremap.min() == scoremap.max()))
        accumulate(image_id, scoremap)
    return {name: counted[name] for name in ("resized", "constant", "unknown")}, time.perf_counter() - start


def warnings_of(counted: dict[str, int]) -> list[str]:
    """What `each_map` counted, a line for each kind that there was."""
    lines = {
        "resized": f"score maps of another size than {FRAME} x {FRAME} were resized (bicubic) and scaled to [0, 1]",
        "constant": "score maps are constant, so that their box is the whole image or none",
        "unknown": "score maps in the folder belong to no image of the split",
    }
    return [f"{counted[name]} {line}" for name, line in lines.items() if counted[name]]


def speed(images: int, seconds: float) -> str:
    """How many images were scored, and how fast."""
    return f"{counted(images, 'image')} in {seconds:.1f} s, {images / seconds:.1f} images/s"


def refuse(problems: list[Problem]) -> None:
    """Raises DataError, one line, if there are any: a score of what is left would be one of other images."""
    if problems:
        more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
        raise DataError(f"{problems[0]}{more}")


def in_its_frame(scoremap: np.ndarray) -> np.ndarray:
    """A network's map, H x W of any range, as it is scored: FRAME x FRAME (bicubic), then its range stretched to
    [0, 1]."""
    return _scaled(cv2.resize(scoremap, (FRAME, FRAME), interpolation=cv2.INTER_CUBIC))


def _scaled(scoremap: np.ndarray) -> np.ndarray:
    low = scoremap.min()
    if low == scoremap.max():
        return np.zeros_like(scoremap)
    scoremap = scoremap - low
    return scoremap / scoremap.max()
