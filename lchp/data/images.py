"""A split's pixels: decoded once into a memory-mapped cache, or anew each time; then batches of them."""

import logging
import os
import shutil
import sys
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lchp.config import DataConfig
from lchp.data.annotations import against_lists
from lchp.data.base import DataSet, Problem, Split, problems_text, require_sound
from lchp.data.cache import Cached, open_cache, place_of, shown_bytes, size_of
from lchp.data.content import Contents, cache_folder, look
from lchp.data.decode import decode, image_size
from lchp.errors import DataError

log = logging.getLogger(__name__)

T = TypeVar("T")

_SHARED_MEMORY = "/dev/shm"
_PREFETCHED, _TAKEN = 2, 4
"""Batches in shared memory: those made ahead by each process (torch's default), and those in the consumer's hands."""
_PATIENCE = 120
"""Seconds without a batch after which processes count as stuck: one may die without a word while it hands one over."""


class ImageBatch(NamedTuple):
    """`index`: B positions in the split; `images`: B x R x R x 3 uint8; `labels`: B int64."""

    index: Tensor
    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Images:
    """The split's images at R x R.

    `pixels`: uint8 array of R x R x 3 images (in memory, or a cache), whose rows `rows` (N ints) are the split's; or
    None: decode anew. `problems`: images that did not decode and were dropped from `split` (under data.skip_bad).
    `originals`: N x 2 int, width and height in px of the upright originals, where they have been looked at.
    """

    split: Split
    resize: int
    pixels: np.ndarray | Cached | None
    rows: np.ndarray
    problems: tuple[Problem, ...] = ()
    originals: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, index: list[int]) -> ImageBatch | DataError:
        """The hook by which torch's DataLoader fetches a whole batch at once.

        An error is returned, since torch wraps what a worker raises in that worker's traceback; `batches` raises it.
        """
        try:
            return self.batch(index)
        except DataError as error:
            return error

    def batch(self, index: list[int], each: Callable[..., Iterable[np.ndarray]] = map) -> ImageBatch:
        """The images at the positions `index`. Raises DataError naming the first that does not decode.

        each: a `map` that may decode several at once, in order.
        """
        kept = self.pixels
        pixels = np.stack(list(each(self._decode, index))) if kept is None else kept[self.rows[index]]
        return ImageBatch(torch.tensor(index), torch.from_numpy(pixels), torch.from_numpy(self.split.labels[index]))

    def _decode(self, position: int) -> np.ndarray:
        assert self.split.paths is not None
        return decode(self.split.paths[position], self.resize, exif=self.split.exif)

    def select(self, keep: np.ndarray) -> "Images":
        """The images at the positions `keep` (int array), from the same pixels."""
        originals = None if self.originals is None else self.originals[keep]
        return replace(self, split=self.split.select(keep), rows=self.rows[keep], originals=originals)

    def sizes(self) -> np.ndarray:
        """N x 2 int: width, height in px of the originals (headers are read of those that have not been looked at)."""
        if self.originals is not None:
            return self.originals
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
    split, contents = _look(split, config, verified=config.skip_bad, show_progress=show_progress)
    _require_room([(split, contents)], config)
    images, bad = _open(split, contents, config, show_progress)
    if not bad:
        return images
    problems = _undecoded(split, bad)
    if not config.skip_bad or len(bad) == len(split):
        raise DataError(problems_text(problems))
    return replace(_without(images, bad), problems=problems)


def open_dataset(dataset: DataSet, config: DataConfig, *, show_progress: bool = True) -> tuple[DataSet, Images, Images]:
    """The images for training and those of the test, and the data set that they are, after all has been looked at.

    Every image is decoded (into the cache, or without one just for this; but for those known to decode since a start
    before) and every box and listed size held against its image's size.
    Raises DataError with the first problems and the count of all, those of the lists included. Under data.skip_bad what
    is faulty is dropped, and listed in `problems` of the data set returned: images that do not decode, test images with
    a box outside of them or of another size than listed, all training boxes where one is so (they are for diagnostics
    only), and the test images of a class that lost its last training image.
    """
    problems, opened = list(dataset.problems), list[Images]()
    splits = [_look(s, config, verified=True, show_progress=show_progress) for s in (dataset.train, dataset.test)]
    _require_room(splits, config)
    if config.workers and not _cached(config) and dataset.train.paths is not None:
        lack = lacking_memory(config.workers, config.batch_size, config.resize)
        if lack is not None:
            log.warning("data.workers = %d: %s; threads decode instead", config.workers, lack)
    for is_train, (split, contents) in zip((True, False), splits, strict=True):
        images, bad = _open(split, contents, config, show_progress)
        problems += _undecoded(split, bad)
        images = _without(images, bad)
        misplaced = _misplaced(dataset, images)
        problems += [problem for found in misplaced.values() for problem in found]
        if misplaced and is_train:
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


def _misplaced(dataset: DataSet, images: Images) -> dict[int, list[Problem]]:
    """By position: the boxes that lie outside of their image, and listed sizes that are not the image's."""
    if images.split.paths is None or not (dataset.written or dataset.sizes):
        return {}
    found = {
        i: list(against_lists(dataset, path, width, height, image_id))
        for i, (path, image_id, (width, height)) in enumerate(
            zip(images.split.paths, images.split.image_ids, images.sizes().tolist(), strict=True)
        )
        if path in dataset.written or path in dataset.sizes
    }
    return {i: problems for i, problems in found.items() if problems}


def _look(split: Split, config: DataConfig, *, verified: bool, show_progress: bool) -> tuple[Split, Contents | None]:
    """The split with its files' digests and what these hold, as far as a cache or the wish to have all images
    `verified` asks for it."""
    if split.paths is None or not len(split) or not (verified or _cached(config)):
        return split, None
    contents = look(split.paths, config, exif=split.exif, decoded=not _cached(config), show_progress=show_progress)
    return replace(split, digests=contents.digests), contents


def _cached(config: DataConfig) -> bool:
    return config.cache != "off"


def _folder(config: DataConfig) -> Path:
    folder = cache_folder(config.cache)
    if folder is None:
        raise DataError("data.cache = 'auto': you have no home folder (HOME is not set); name a folder or say off")
    return folder


def _require_room(splits: Sequence[tuple[Split, Contents | None]], config: DataConfig) -> None:
    """Raises DataError where the caches of splits, those that are not there yet, do not fit on the disk together."""
    needed = 0
    for split, contents in splits if _cached(config) else ():
        if contents is not None and not place_of(split, config.resize, _folder(config)).exists():
            needed += size_of(contents.headers, config.resize)
    if not needed:
        return
    folder = _folder(config) / "images"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError:  # making the cache will say what it is
        return
    if needed > free:
        raise DataError(
            f"data.cache: {needed / 1e9:.1f} GB are needed in {folder} and {free / 1e9:.1f} GB are free; "
            "name another folder or say --data.cache off"
        )


def _open(
    split: Split, contents: Contents | None, config: DataConfig, show_progress: bool
) -> tuple[Images, dict[int, str]]:
    """All images of a split; and, by position, what is wrong with those that do not decode, as far as is known."""
    everything = np.arange(len(split))
    if split.images is not None:
        pixels = split.images
        if pixels.shape[1:3] != (config.resize, config.resize):
            raise DataError(
                f"data.resize = {config.resize}: this data set is generated at {pixels.shape[1]} px; "
                f"set data.resize to {pixels.shape[1]}"
            )
        return Images(split, config.resize, pixels, everything), {}
    if contents is None:
        return Images(split, config.resize, None, everything), {}
    pixels, bad = None, contents.bad
    if _cached(config):
        pixels, bad = open_cache(split, contents, config, _folder(config), show_progress)
    return Images(split, config.resize, pixels, everything, originals=contents.sizes()), bad


def batches(images: Images, order: Sequence[list[int]], *, workers: int, pin: bool) -> Iterator[ImageBatch]:
    """Batches of the positions in `order`, prefetched by `workers` processes where images are decoded on demand.

    Where the shared memory through which processes hand over images is too small, threads decode. They take over as
    well where processes fail, or give no batch for `_PATIENCE` seconds.
    Raises DataError naming the first image that does not decode.
    """
    options: dict[str, Any] = {"batch_sampler": order, "collate_fn": _as_is, "pin_memory": pin}
    if images.pixels is not None or not workers:
        source = iter(DataLoader(images, **options))  # pyright: ignore[reportArgumentType]  # __getitems__, __len__ serve
    elif lacking_memory(workers, max(map(len, order), default=0), images.resize):
        source = _by_threads(images, workers, options)
    else:
        source = _by_processes(images, order, workers, options)
    for batch in ahead(source, 2) if pin else source:
        if isinstance(batch, DataError):
            raise batch
        yield batch


def lacking_memory(workers: int, batch_size: int, resize: int) -> str | None:
    """What of shared memory `workers` processes lack to hand over batches; None where there is enough.

    It is a file system of its own on Linux, 64 MB in Docker's containers, and a process that overfills it dies.
    """
    if sys.platform != "linux":
        return None
    needed = (_PREFETCHED * workers + _TAKEN) * batch_size * resize**2 * 3
    try:
        found = os.statvfs(_SHARED_MEMORY)
    except OSError as error:
        return f"{_SHARED_MEMORY}: {error.strerror}"
    free = found.f_bavail * found.f_frsize
    if free >= needed or not found.f_blocks:  # mounted without a limit
        return None
    return f"{_SHARED_MEMORY} has {shown_bytes(free)} free, and {workers} processes need {shown_bytes(needed)}"


def _by_processes(
    images: Images, order: Sequence[list[int]], workers: int, options: dict[str, Any]
) -> Iterator[ImageBatch | DataError]:
    given = 0
    try:
        loader = DataLoader(images, num_workers=workers, timeout=_PATIENCE, **options)  # pyright: ignore[reportArgumentType]
        for batch in loader:
            yield batch
            given += 1
        return
    except (RuntimeError, OSError) as error:
        log.warning("data.workers = %d: %s; threads decode instead", workers, str(error).partition("\n")[0])
    # a generator of its own: the first loader has drawn from the common one already
    rest = {**options, "batch_sampler": order[given:], "generator": torch.Generator()}
    yield from _by_threads(images, workers, rest)


def _by_threads(images: Images, workers: int, options: dict[str, Any]) -> Iterator[ImageBatch | DataError]:
    with ThreadPoolExecutor(workers) as pool:
        yield from DataLoader(_Threaded(images, pool), **options)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class _Threaded:
    """Images, of whose batches threads decode the images at once."""

    images: Images
    pool: ThreadPoolExecutor

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, index: list[int]) -> ImageBatch | DataError:
        try:
            return self.images.batch(index, self.pool.map)
        except DataError as error:
            return error


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
