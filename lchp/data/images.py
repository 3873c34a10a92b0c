"""A split's pixels: decoded once into a memory-mapped cache, or anew each time; then batches of them."""

import hashlib
import logging
import os
import shutil
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import platformdirs
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from lchp.config import DataConfig
from lchp.data.annotations import outside
from lchp.data.base import DataSet, Problem, Split, describe, require_sound
from lchp.data.decode import decode, fault, image_size
from lchp.errors import DataError, RunError
from lchp.runs import read_json, sync_folder, write_json

log = logging.getLogger(__name__)

T = TypeVar("T")

_QUEUED = 4096
"""Images queued for the threads at a time: a future for each of ImageNet's would cost gigabytes."""
_TRIES = 3
"""Caches made one after the other: another process may replace the same damaged one meanwhile."""


class Batch(NamedTuple):
    """`index`: B positions in the split; `images`: B x R x R x 3 uint8; `labels`: B int64."""

    index: Tensor
    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Images:
    """The split's images at R x R.

    `pixels`: uint8 array of R x R x 3 images (in memory or mapped), whose rows `rows` (N ints) are the split's; or
    None: decode anew. `problems`: images that did not decode and were dropped from `split` (under data.skip_bad).
    """

    split: Split
    resize: int
    pixels: np.ndarray | None
    rows: np.ndarray
    problems: tuple[Problem, ...] = ()

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, index: list[int]) -> Batch | DataError:
        """The hook by which torch's DataLoader fetches a whole batch at once.

        An error is returned, since torch wraps what a worker raises in that worker's traceback; `batches` raises it.
        """
        try:
            return self.batch(index)
        except DataError as error:
            return error

    def batch(self, index: list[int]) -> Batch:
        """The images at the positions `index`. Raises DataError naming the first that does not decode."""
        if self.pixels is not None:
            pixels = self.pixels[self.rows[index]]
        else:
            assert self.split.paths is not None
            pixels = np.stack([decode(self.split.paths[i], self.resize, exif=self.split.exif) for i in index])
        return Batch(torch.tensor(index), torch.from_numpy(pixels), torch.from_numpy(self.split.labels[index]))

    def select(self, keep: np.ndarray) -> "Images":
        """The images at the positions `keep` (int array), from the same pixels."""
        return replace(self, split=self.split.select(keep), rows=self.rows[keep])

    def sizes(self) -> np.ndarray:
        """N x 2 int: width, height in px of the originals (headers only are read)."""
        if self.split.images is not None:
            h, w = self.split.images.shape[1:3]
            return np.tile([w, h], (len(self.split), 1))
        assert self.split.paths is not None
        with ThreadPoolExecutor() as pool:
            read = list(pool.map(lambda path: image_size(path, exif=self.split.exif), self.split.paths))
        return np.array(read).reshape(-1, 2)


def open_images(split: Split, config: DataConfig, *, show_progress: bool = True) -> Images:
    """The images of a split, from memory, the cache (made here if it is not there yet), or decoded on demand.

    Raises DataError naming the first images that do not decode, unless data.skip_bad drops them (and some remain).
    Without a cache a bad image shows only when its turn comes, but for skip_bad, which decodes all once beforehand.
    """
    images, bad = _open(split, config, verified=config.skip_bad, show_progress=show_progress)
    if not bad:
        return images
    problems = _undecoded(split, bad)
    if not config.skip_bad or len(bad) == len(split):
        raise DataError(describe(problems))
    return replace(_without(images, bad), problems=problems)


def open_dataset(dataset: DataSet, config: DataConfig, *, show_progress: bool = True) -> tuple[DataSet, Images, Images]:
    """The images for training and those of the test, and the data set that they are, after all has been looked at.

    Every image is decoded (into the cache, or without one just for this) and every box held against its image's size.
    Raises DataError with the first problems and the count of all, those of the lists included. Under data.skip_bad what
    is faulty is dropped, and listed in `problems` of the data set returned: images that do not decode, test images with
    a box outside of them, all training boxes where one is (they are for diagnostics only), and the test images of a
    class that lost its last training image.
    """
    problems, opened = list(dataset.problems), list[Images]()
    for split in (dataset.train, dataset.test):
        images, bad = _open(split, config, verified=True, show_progress=show_progress)
        problems += _undecoded(split, bad)
        images = _without(images, bad)
        misplaced = _misplaced(dataset, images.split, config)
        problems += [problem for found in misplaced.values() for problem in found]
        if misplaced and split is dataset.train:
            images = replace(images, split=replace(images.split, boxes=None))
        elif misplaced:
            images = _without(images, misplaced)
        opened.append(images)
    train, test = opened
    present = np.unique(train.split.labels)
    lost = np.flatnonzero(~np.isin(test.split.labels, present))
    for label, count in Counter(test.split.labels[lost].tolist()).items():
        message = f"{count} test images but no training image that decodes; they are left out"
        problems.append(Problem(f"class {dataset.class_names[label]}", None, message))
    test = _without(test, lost.tolist())
    train, test = (replace(i, split=_relabelled(i.split, present)) for i in (train, test))
    names = tuple(dataset.class_names[label] for label in present)
    whole = replace(dataset, class_names=names, train=train.split, test=test.split, problems=tuple(problems))
    require_sound(whole, skip_bad=config.skip_bad)
    return whole, train, test


def _without(images: Images, positions: Collection[int]) -> Images:
    return images.select(np.setdiff1d(np.arange(len(images)), list(positions))) if positions else images


def _relabelled(split: Split, present: np.ndarray) -> Split:
    """The split with the labels `present` (sorted) numbered from 0; itself where nothing changes."""
    labels = np.searchsorted(present, split.labels)
    return split if np.array_equal(labels, split.labels) else replace(split, labels=labels)


def _undecoded(split: Split, bad: dict[int, str]) -> tuple[Problem, ...]:
    return tuple(
        Problem(str(split.paths[i]), None, message, split.image_ids[i])
        for i, message in bad.items()
        if split.paths is not None
    )


def _misplaced(dataset: DataSet, split: Split, config: DataConfig) -> dict[int, list[Problem]]:
    """By position: the boxes that lie outside of their image (headers are read of images that have boxes)."""

    def look(i: int) -> list[Problem]:
        assert split.paths is not None
        size = image_size(split.paths[i], exif=split.exif)
        return list(outside(dataset.written[split.paths[i]], *size, split.image_ids[i]))

    boxed = [i for i, path in enumerate(split.paths or ()) if path in dataset.written]
    with ThreadPoolExecutor(config.workers or os.cpu_count()) as pool:
        return {i: found for i, found in zip(boxed, pool.map(look, boxed), strict=True) if found}


def _open(split: Split, config: DataConfig, *, verified: bool, show_progress: bool) -> tuple[Images, dict[int, str]]:
    """All images of a split; and, by position, what is wrong with those that do not decode, as far as the cache or the
    wish to have them `verified` made them be decoded."""
    everything = np.arange(len(split))
    if split.images is not None:
        pixels = split.images
        if pixels.shape[1:3] != (config.resize, config.resize):
            raise DataError(
                f"data.resize = {config.resize}: this data set is generated at {pixels.shape[1]} px; "
                f"set data.resize to {pixels.shape[1]}"
            )
        return Images(split, config.resize, pixels, everything), {}
    if config.cache == "off" or not len(split):
        pixels, bad = None, _decode_all(split, config, None, show_progress) if verified else {}
    else:
        auto = Path(platformdirs.user_cache_dir("lchp"))
        folder = auto if config.cache == "auto" else Path(os.path.expanduser(config.cache))
        pixels, bad = _cached(split, config, folder, show_progress)
    return Images(split, config.resize, pixels, everything), bad


def _cached(split: Split, config: DataConfig, folder: Path, show_progress: bool) -> tuple[np.ndarray, dict[int, str]]:
    """The memory-mapped N x R x R x 3 array, decoded in threads and published by one rename; and, by position, what is
    wrong with the images that did not decode."""
    target = folder / "images" / _cache_key(split, config.resize)
    for _ in range(_TRIES):
        if os.path.exists(target):
            found = _read_cache(target, (len(split), config.resize, config.resize, 3))
            if found is not None and not any(_decodes(split, i, config.resize) for i in found[1]):
                return found
            shutil.rmtree(target, ignore_errors=True)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(prefix=f"{target.name}-", dir=target.parent))
            try:
                bad = _fill(split, config, partial / "images.npy", show_progress)
                write_json(partial / "about.json", {"images": len(split), "resize": config.resize, "bad": bad})
                _publish(partial, target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        except OSError as error:
            raise DataError(
                f"data.cache = {str(folder)!r}: cannot be written ({error.strerror or error}); name another or say off"
            ) from None
    raise DataError(f"{target}: this cache is damaged whenever it is made; name another folder or say --data.cache off")


def _read_cache(target: Path, shape: tuple[int, ...]) -> tuple[np.ndarray, dict[int, str]] | None:
    """What a cache holds (as data: numpy's pickles are refused), or None, with a warning, where it is damaged."""
    try:
        bad = {int(i): str(message) for i, message in read_json(target / "about.json")["bad"].items()}
        pixels = np.load(target / "images.npy", mmap_mode="r")
        if pixels.shape != shape or pixels.dtype != np.uint8 or not set(bad) <= set(range(len(pixels))):
            raise ValueError(f"{pixels.dtype} {pixels.shape} instead of uint8 {shape}")
    except (RunError, OSError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        log.warning("%s: damaged cache, made anew (%s)", target, error)
        return None
    return pixels, bad


def _decodes(split: Split, index: int, resize: int) -> bool:
    """Whether an image decodes that did not when the cache was made: its file may have been out of reach for a time."""
    assert split.paths is not None
    try:
        decode(split.paths[index], resize, exif=split.exif)
    except DataError:
        return False
    return True


def _fill(split: Split, config: DataConfig, file: Path, show_progress: bool) -> dict[int, str]:
    """Decodes all images into `file`; returns what is wrong with those that do not decode, by position."""
    shape = (len(split), config.resize, config.resize, 3)
    needed, free = int(np.prod(shape)), shutil.disk_usage(file.parent).free
    if needed > free:
        raise DataError(
            f"data.cache: {needed / 1e9:.1f} GB are needed in {file.parent.parent} and {free / 1e9:.1f} GB are free; "
            "name another folder or say --data.cache off"
        )
    with file.open("wb") as out:
        about = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(out, about)
        begin, size = out.tell(), int(np.prod(shape[1:]))
        out.truncate(begin + needed)
        handle = out.fileno()
        # written, not mapped: on a disk that fills up meanwhile, a store into a map kills the process without a word
        bad = _decode_all(split, config, lambda i, pixels: _put(handle, pixels, begin + i * size), show_progress)
        os.fsync(handle)
    return bad


def _put(handle: int, pixels: np.ndarray, at: int) -> None:
    """Writes all of `pixels` at a place in a file; for any thread. One call may write a part, as on a full disk."""
    left = np.ascontiguousarray(pixels).data.cast("B")
    while left:
        count = os.pwrite(handle, left, at)
        left, at = left[count:], at + count


def _publish(partial: Path, target: Path) -> None:
    """Renames a whole cache to its place, unless another process has put the same one there meanwhile."""
    sync_folder(partial)
    try:
        os.rename(partial, target)
    except OSError:
        if not (target / "about.json").is_file():
            raise
    sync_folder(target.parent)


def _decode_all(
    split: Split, config: DataConfig, out: Callable[[int, np.ndarray], None] | None, show_progress: bool
) -> dict[int, str]:
    """Decodes all images in threads, handing each and its position to `out` where it is given; returns what is wrong
    with the bad, by position."""
    bad: dict[int, str] = {}

    def put(i: int) -> None:
        assert split.paths is not None
        try:
            pixels = decode(split.paths[i], config.resize, exif=split.exif)
        except DataError as error:
            bad[i] = fault(split.paths[i], error)
        else:
            if out is not None:
                out(i, pixels)

    name = "verify images" if out is None else "decode images"
    bar = tqdm(total=len(split), desc=name, unit="img", disable=None if show_progress else True)
    with bar, ThreadPoolExecutor(config.workers or os.cpu_count()) as pool:
        try:
            for start in range(0, len(split), _QUEUED):
                for _ in pool.map(put, range(start, min(start + _QUEUED, len(split)))):
                    bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return dict(sorted(bad.items()))


def _cache_key(split: Split, resize: int) -> str:
    """Hash of the files' absolute paths, sizes and times: a changed image is decoded again."""
    assert split.paths is not None
    digest = hashlib.sha256(f"v1 {resize} {split.exif}".encode())
    for path in split.paths:
        try:
            stat = path.stat()
            size, changed = stat.st_size, stat.st_mtime_ns
        except OSError:  # decoding will say what it is
            size = changed = -1
        digest.update(os.fsencode(f"{path.absolute()}\0{size}\0{changed}\n"))
    return digest.hexdigest()[:24]


def batches(images: Images, order: Sequence[list[int]], *, workers: int, pin: bool) -> Iterator[Batch]:
    """Batches of the positions in `order`, prefetched by `workers` processes where images are decoded on demand.

    Raises DataError naming the first image that does not decode.
    """
    loader = DataLoader(
        images,  # pyright: ignore[reportArgumentType]  # anything with __getitems__ and __len__ serves
        batch_sampler=order,
        collate_fn=_as_is,
        num_workers=workers if images.pixels is None else 0,
        pin_memory=pin,
    )
    for batch in ahead(iter(loader), 2) if pin else loader:
        if isinstance(batch, DataError):
            raise batch
        yield batch


def ahead(source: Iterator[T], count: int) -> Iterator[T]:
    """The items of `source`, in order, of which a thread makes up to `count` ahead: while a GPU computes, the next
    batches are gathered and pinned. What `source` raises is raised in its turn."""
    end = object()
    pool = ThreadPoolExecutor(1)
    try:
        pending = deque(pool.submit(next, source, end) for _ in range(count))
        while (item := pending.popleft().result()) is not end:
            pending.append(pool.submit(next, source, end))
            yield item  # pyright: ignore[reportReturnType]
    finally:
        pool.shutdown(cancel_futures=True)


def _as_is(batch: Any) -> Any:
    """What `__getitems__` made is a batch already. A function of the module, since spawned workers get it pickled."""
    return batch


def shuffled(n: int, batch_size: int, generator: torch.Generator) -> list[list[int]]:
    """One epoch's order as batches; the incomplete last one is left out, unless it is the only one."""
    order = torch.randperm(n, generator=generator).tolist()
    full = [order[i : i + batch_size] for i in range(0, n - batch_size + 1, batch_size)]
    return full or [order]


def in_order(n: int, batch_size: int) -> list[list[int]]:
    """All positions once, in order, as batches."""
    return [list(range(i, min(i + batch_size, n))) for i in range(0, n, batch_size)]
