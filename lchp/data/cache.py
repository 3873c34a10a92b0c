"""Decoded images in a file that is mapped into memory; each is held against its checksum whenever it is read.

A folder per split: images.npy (the pixels, one image after the other), rows.npy (where each lies, its size and CRC-32)
and about.json. Its name is a hash of the files' contents, so a changed image is decoded again and a copy of the data
set elsewhere finds the same cache. An image with at most half the pixels of `resize` x `resize` is kept at its own
size and resized when it is read, to the same pixels.
"""

import hashlib
import logging
import os
import shutil
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lchp.config import DataConfig
from lchp.data.base import Split
from lchp.data.content import Contents, digest, in_threads, state
from lchp.data.decode import CachedImage, decode, decode_kept, fault, finished, keeps_source, read_file
from lchp.errors import DataError, RunError
from lchp.files.filesystem import sync
from lchp.files.runs import read_json, sync_folder, write_atomically, write_json

log = logging.getLogger(__name__)

_TRIES = 3
"""Caches made one after the other: another process may replace the same damaged one meanwhile."""
_PIXELS, _ROWS, _ABOUT = "images.npy", "rows.npy", "about.json"
_ROW = np.dtype(
    [("begin", "<i8"), ("height", "<i4"), ("width", "<i4"), ("orientation", "u1"), ("checksum", "<u4")], align=True
)


@dataclass(frozen=True)
class Cached:
    """The images of `split` in a cache, read like an array of N x R x R x 3 uint8 (R: `resize`).

    `pixels`: all bytes, mapped; `rows`: a `_ROW` per image. An image that does not fit its checksum is decoded anew,
    and the cache, which a warning calls damaged, is removed, so that the next start makes it again.
    """

    split: Split
    resize: int
    folder: Path
    pixels: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        """The images at the positions `index` (B ints), B x R x R x 3. Raises DataError, see `_anew`."""
        out = np.empty((len(index), self.resize, self.resize, 3), np.uint8)

        def read(place: int) -> None:
            kept = self._read(int(index[place]))
            whole = kept.pixels.shape == out.shape[1:] and kept.orientation == 1
            out[place] = kept.pixels if whole else finished(kept, self.resize)

        threads = torch.get_num_threads()
        if threads > 1 and len(index) > 1 and any(self.rows["width"][index] != self.resize):  # a resize takes its time
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(read, range(len(index))))
        else:
            for place in range(len(index)):
                read(place)
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[np.arange(len(self))].astype(dtype or np.uint8, copy=False)

    def _read(self, row: int) -> CachedImage:
        begin, height, width, orientation, checksum = self.rows[row].tolist()
        # a copy: what was checked is what is used, whatever becomes of the file
        pixels = self.pixels[begin : begin + height * width * 3].copy()
        if _checksum(pixels) != checksum:
            return self._anew(row, checksum)
        return CachedImage(pixels.reshape(height, width, 3), orientation)

    def _anew(self, row: int, checksum: int) -> CachedImage:
        """An image from its file, in place of a damaged one. Raises DataError where the file is another by now."""
        assert self.split.paths is not None
        path = self.split.paths[row]
        kept = decode_kept(path, self.resize, self.split.exif, read_file(path))
        if _checksum(kept.pixels) != checksum:
            raise DataError(
                f"{self.folder}: damaged cache, and {path} is no longer the image that it was made of; give the "
                "command again"
            )
        if self.folder.exists():
            log.warning("%s: damaged cache, removed (%s is decoded anew)", self.folder, path)
            shutil.rmtree(self.folder, ignore_errors=True)
        return kept

    def damaged(self, config: DataConfig, show_progress: bool) -> int:
        """How many images do not fit their checksums."""

        def sound(row: int) -> bool:
            begin, height, width, _, checksum = self.rows[row].tolist()
            return _checksum(self.pixels[begin : begin + height * width * 3]) == checksum

        positions = range(len(self))
        return sum(not is_sound for _, is_sound in in_threads(sound, positions, config, "verify cache", show_progress))


def layout(headers: np.ndarray, resize: int) -> np.ndarray:
    """Where a cache keeps the images with these headers (see `Contents`), N `_ROW` without checksums."""
    rows = np.zeros(len(headers), _ROW)
    for i, (width, height, orientation) in enumerate(headers.tolist()):
        if keeps_source(width, height, resize):
            rows[i] = (0, height, width, max(orientation, 1), 0)
        else:
            rows[i] = (0, resize, resize, 1, 0)
    rows["begin"][1:] = np.cumsum(_bytes_of(rows))[:-1]
    return rows


def size_of(headers: np.ndarray, resize: int) -> int:
    """Bytes of a cache of images with these headers (see `Contents`)."""
    return int(_bytes_of(layout(headers, resize)).sum())


def _bytes_of(rows: np.ndarray) -> np.ndarray:
    return rows["height"].astype(np.int64) * rows["width"] * 3


def place_of(split: Split, resize: int, folder: Path) -> Path:
    """The folder of a split's cache."""
    assert split.digests is not None
    key = hashlib.sha256(f"v2 {resize} {split.exif}".encode() + split.digests.tobytes()).hexdigest()[:24]
    return folder / "images" / key


def open_cache(
    split: Split, contents: Contents, config: DataConfig, folder: Path, show_progress: bool
) -> tuple[Cached, dict[int, str]]:
    """The cache, made by threads and published by one rename where it is not there; and, by position, what is wrong
    with the images that did not decode. Raises DataError where it cannot be written or mapped."""
    target = place_of(split, config.resize, folder)
    for _ in range(_TRIES):
        if os.path.exists(target):
            found = _read_cache(target, split, config, folder, show_progress)
            if found is not None and not any(_decodes(split, i, config.resize) for i in found[1]):
                return found
            shutil.rmtree(target, ignore_errors=True)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(prefix=f"{target.name}-", dir=target.parent))
            try:
                _make(split, contents, config, partial, folder, show_progress)
                _publish(partial, target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        except OSError as error:
            raise DataError(
                f"data.cache = {str(folder)!r}: cannot be written ({error.strerror or error}); name another or say off"
            ) from None
    raise DataError(f"{target}: this cache is damaged whenever it is made; name another folder or say --data.cache off")


def _read_cache(
    target: Path, split: Split, config: DataConfig, folder: Path, show_progress: bool
) -> tuple[Cached, dict[int, str]] | None:
    """What a cache holds (as data: numpy's pickles are refused), or None, with a warning, where it is damaged.

    Its file is read in full only if it has been touched since it was made."""
    try:
        about, file = read_json(target / _ABOUT), target / _PIXELS
        bad = {int(i): str(message) for i, message in about["bad"].items()}
        rows = np.load(target / _ROWS)
        if rows.dtype != _ROW or rows.shape != (len(split),) or _checksum(rows) != about["rows"]:
            raise ValueError(f"{_ROWS} is another")
        head, total = _header(rows), int(_bytes_of(rows).sum())
        with file.open("rb") as stored:
            found = stored.read(len(head))
        if found != head or os.stat(file).st_size != len(head) + total:
            raise ValueError(f"{_PIXELS} is cut, or begins otherwise")
        if not set(bad) <= set(range(len(split))):
            raise ValueError("more images than there are")
        cached = Cached(split, config.resize, target, _mapped(file, len(head), total, folder), rows)
        if (now := state(file)) != about["state"]:  # touched by whoever it was, or a copy
            if damaged := cached.damaged(config, show_progress):
                raise ValueError(f"{damaged} of {len(rows)} images do not fit their checksums")
            write_json(target / _ABOUT, about | {"state": now})
    except (RunError, OSError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        log.warning("%s: damaged cache, made anew (%s)", target, error)
        return None
    return cached, bad


def _decodes(split: Split, index: int, resize: int) -> bool:
    """Whether an image decodes that did not when the cache was made: its file may have been out of reach for a time."""
    assert split.paths is not None
    try:
        decode(split.paths[index], resize, exif=split.exif)
    except DataError:
        return False
    return True


def _header(rows: np.ndarray) -> bytes:
    """What images.npy begins with: it is an array with an image per row where all are of one size, else of bytes."""
    sizes = {*zip(rows["height"].tolist(), rows["width"].tolist(), strict=True)}
    shape = (len(rows), *sizes.pop(), 3) if len(sizes) == 1 else (int(_bytes_of(rows).sum()),)
    out = BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return out.getvalue()


def _mapped(file: Path, begin: int, count: int, folder: Path) -> np.ndarray:
    if not count:
        return np.zeros(0, np.uint8)
    try:
        return np.asarray(np.memmap(file, np.uint8, "r", begin, (count,)))
    except OSError as error:
        raise DataError(
            f"data.cache = {str(folder)!r}: its file system cannot map files into memory (mmap: "
            f"{error.strerror or error}), which the image cache needs; name a folder on another or say --data.cache off"
        ) from None


def _make(
    split: Split, contents: Contents, config: DataConfig, partial: Path, folder: Path, show_progress: bool
) -> None:
    """Decodes all images into the files of `partial`."""
    rows = layout(contents.headers, config.resize)
    total, file, bad = int(_bytes_of(rows).sum()), partial / _PIXELS, dict[int, str]()
    log.info("image cache of %s in %s", shown_bytes(total), folder)
    with file.open("wb") as out:
        begin = out.write(_header(rows))
        out.flush()
        out.truncate(begin + total)
        _mapped(file, begin, total, folder)  # rather now than after hours of decoding
        handle = out.fileno()

        def put(i: int) -> None:
            assert split.paths is not None
            assert split.digests is not None
            path = split.paths[i]
            try:
                content = read_file(path)
                kept = decode_kept(path, config.resize, split.exif, content)
                if digest(content) != split.digests[i].tobytes() or kept.pixels.size != _bytes_of(rows[i]):
                    raise DataError("changed while it was read; give the command again")
            except DataError as error:
                bad[i] = fault(path, error)
                rows["checksum"][i] = zlib.crc32(bytes(_bytes_of(rows[i])))
            else:
                rows["checksum"][i] = _checksum(kept.pixels)
                # written, not mapped: on a disk that fills up meanwhile, a store into a map kills the process
                _put(handle, kept.pixels, begin + int(rows["begin"][i]))

        for _ in in_threads(put, range(len(split)), config, "decode images", show_progress):
            pass
        sync(handle)
    write_atomically(partial / _ROWS, lambda out: np.save(out, rows))
    known = {"images": len(split), "resize": config.resize, "bad": dict(sorted(bad.items()))}
    write_json(partial / _ABOUT, known | {"rows": _checksum(rows), "state": state(file)})


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data)


def shown_bytes(count: int) -> str:
    """A number of bytes as `1.4 GB`, `23 MB` or `5 kB`."""
    unit, size = next(((u, s) for u, s in (("GB", 1e9), ("MB", 1e6)) if count >= s), ("kB", 1e3))
    return f"{count / size:,.1f} {unit}" if unit == "GB" else f"{count / size:.0f} {unit}"


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
        if not (target / _ABOUT).is_file():
            raise
    sync_folder(target.parent)
