"""A split's pixels: decoded once into a memory-mapped cache, or anew each time; then batches of them."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
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
from lchp.data.base import Problem, Split, describe
from lchp.data.decode import decode, image_size
from lchp.errors import DataError

T = TypeVar("T")

_QUEUED = 4096
"""Images queued for the threads at a time: a future for each of ImageNet's would cost gigabytes."""


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
    everything = np.arange(len(split))
    if split.images is not None:
        pixels = split.images
        if pixels.shape[1:3] != (config.resize, config.resize):
            raise DataError(
                f"data.resize = {config.resize}: this data set is generated at {pixels.shape[1]} px; "
                f"set data.resize to {pixels.shape[1]}"
            )
        return Images(split, config.resize, pixels, everything)
    if config.cache == "off":
        pixels, bad = None, _decode_all(split, config, None, show_progress) if config.skip_bad else {}
    else:
        auto = Path(platformdirs.user_cache_dir("lchp"))
        folder = auto if config.cache == "auto" else Path(config.cache).expanduser()
        pixels, bad = _cached(split, config, folder, show_progress)
    if not bad:
        return Images(split, config.resize, pixels, everything)
    assert split.paths is not None
    problems = tuple(Problem(str(split.paths[i]), None, message, split.image_ids[i]) for i, message in bad.items())
    if not config.skip_bad or len(bad) == len(split):
        raise DataError(describe(problems))
    rows = np.setdiff1d(everything, list(bad))
    return Images(split.select(rows), config.resize, pixels, rows, problems)


def _cached(split: Split, config: DataConfig, folder: Path, show_progress: bool) -> tuple[np.ndarray, dict[int, str]]:
    """The memory-mapped N x R x R x 3 array, decoded in threads and published by one rename; and, by position, what is
    wrong with the images that did not decode."""
    target = folder / "images" / _cache_key(split, config.resize)
    if not (target / "images.npy").is_file():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(prefix=f"{target.name}-", dir=target.parent))
        except OSError as error:
            raise DataError(
                f"data.cache = {str(folder)!r}: cannot be written ({error.strerror or error}); name another or say off"
            ) from None
        try:
            bad = _fill(split, config, partial / "images.npy", show_progress)
            about = {"images": len(split), "resize": config.resize, "bad": bad}
            (partial / "about.json").write_text(json.dumps(about))
            # another process that made the same cache meanwhile: its copy serves as well
            with contextlib.suppress(OSError):
                os.rename(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    bad = json.loads((target / "about.json").read_text())["bad"]
    return np.load(target / "images.npy", mmap_mode="r"), {int(i): message for i, message in bad.items()}


def _fill(split: Split, config: DataConfig, file: Path, show_progress: bool) -> dict[int, str]:
    """Decodes all images into `file`; returns what is wrong with those that do not decode, by position."""
    shape = (len(split), config.resize, config.resize, 3)
    needed, free = int(np.prod(shape)), shutil.disk_usage(file.parent).free
    if needed > free:
        raise DataError(
            f"data.cache: {needed / 1e9:.1f} GB are needed in {file.parent.parent} and {free / 1e9:.1f} GB are free; "
            "name another folder or say --data.cache off"
        )
    out = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
    bad = _decode_all(split, config, out, show_progress)
    out.flush()
    return bad


def _decode_all(split: Split, config: DataConfig, out: np.ndarray | None, show_progress: bool) -> dict[int, str]:
    """Decodes all images in threads, into `out` where it is given; returns what is wrong with the bad, by position."""
    bad: dict[int, str] = {}

    def put(i: int) -> None:
        assert split.paths is not None
        try:
            pixels = decode(split.paths[i], config.resize, exif=split.exif)
        except DataError as error:
            bad[i] = str(error).removeprefix(f"{split.paths[i]}: ")
        else:
            if out is not None:
                out[i] = pixels

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
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
        digest.update(f"{path.absolute()}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
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
