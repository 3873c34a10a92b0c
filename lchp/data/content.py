"""What image files hold: each read once, hashed and looked at, and remembered as long as the file is the same.

A data set's fingerprint and the key of its image cache are made of these hashes. What was learnt of a folder's images
lies in one file of the cache folder, 66 bytes an image. A file counts as unchanged while its size, inode and both times
(of change of its content and of its record) are; the latter no program can set back.
"""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import PIL

from lchp.config import DataConfig
from lchp.data.decode import decode, fault, header, read_file
from lchp.errors import DataError, RunError
from lchp.files.caches import user_cache
from lchp.files.runs import write_atomically
from lchp.system.progress import tqdm

log = logging.getLogger(__name__)

T = TypeVar("T")

_QUEUED = 4096
"""Images queued for threads at a time: a future for each of ImageNet's would cost gigabytes."""

_STATE = ("size", "modified", "changed", "inode")
_RECORD = np.dtype(
    [
        ("path", "<u8"),
        *((name, "<i8") for name in _STATE),
        ("digest", "u1", (16,)),
        ("width", "<i4"),
        ("height", "<i4"),
        ("orientation", "u1"),
        ("decodes", "?"),
    ]
)
_TICK = 20_000_000
"""ns: two changes of a file within a clock's tick may bear the same time. Linux counts in 1 to 10 ms."""
_COARSE_TICK = 2_000_000_000
"""The same, where times are whole seconds."""


@dataclass(frozen=True)
class Contents:
    """What N image files hold.

    `digests`: N x 16 uint8, of their bytes; 0 where a file cannot be read. `headers`: N x 3 int32, width and height in
    px as stored and the EXIF orientation to be applied; 0 0 0 where there is no header to read. `bad`: by position,
    what is wrong with those that do not decode, if that was looked for.
    """

    digests: np.ndarray
    headers: np.ndarray
    bad: dict[int, str]

    def sizes(self) -> np.ndarray:
        """N x 2 int: width, height in px of the upright pictures."""
        sideways = self.headers[:, 2:] >= 5
        return np.where(sideways, self.headers[:, 1::-1], self.headers[:, :2]).astype(np.int64)


def cache_folder(cache: str) -> Path | None:
    """Where `data.cache` says that caches lie; the user's cache folder for `auto` and `off` (which keeps no images, but
    still what is known of them); None where the user has none."""
    if cache not in ("auto", "off"):
        return Path(os.path.expanduser(cache))
    return user_cache()


def look(
    paths: Sequence[Path],
    config: DataConfig,
    *,
    exif: bool = False,
    decoded: bool = False,
    show_progress: bool = True,
) -> Contents:
    """What image files hold, from what is known of them; files that are new or changed are read.

    decoded: images are decoded (at data.resize) that are not known to decode. What is known lies in the cache's folder;
    where that cannot be written, all is read again the next time, and a warning says so.
    """
    folder = cache_folder(config.cache)
    names = [os.path.abspath(path) for path in paths]
    table = np.zeros(len(names), _RECORD)
    table["path"] = _keys(names)
    file = None if folder is None or not names else folder / "contents" / _file_name(names, exif)
    known = np.zeros(0, _RECORD) if file is None else _load(file)
    bad: dict[int, str] = {}

    def examine(i: int) -> bool:
        """Fills in row `i`; whether it may be remembered."""
        before = _state(names[i])
        table[i]["digest"], table[i]["width"], table[i]["height"] = 0, 0, 0
        try:
            content = read_file(paths[i])
            table[i]["digest"] = np.frombuffer(digest(content), np.uint8)
            about = header(paths[i], exif, content)
            table[i]["width"], table[i]["height"], table[i]["orientation"] = about
            if decoded:
                decode(paths[i], config.resize, exif, content)
                table[i]["decodes"] = True
        except DataError as error:
            bad[i] = fault(paths[i], error)
        for name, value in zip(_STATE, before, strict=True):
            table[i][name] = value
        return table[i]["width"] > 0 and before == _state(names[i])

    states = _states_of(names, config)
    same = np.zeros(len(names), bool)
    if len(known):
        found = known[np.searchsorted(known["path"], table["path"]).clip(max=len(known) - 1)]
        same = (found["path"] == table["path"]) & (states[:, 0] >= 0) & (found["decodes"] | (not decoded))
        for column, name in enumerate(_STATE):
            same &= found[name] == states[:, column]
        table[same] = found[same]
    new, learnt = np.flatnonzero(~same).tolist(), list[int]()
    if new:
        _wait_for_a_tick(int(states[new, _STATE.index("changed")].max()))
    try:
        title = "verify images" if decoded else "read images"
        for i, sound in in_threads(examine, new, config, title, show_progress and bool(new)):
            if sound:
                learnt.append(i)
    finally:
        if file is not None and learnt:
            _save(file, table[learnt], known)
    headers = np.stack([table[name] for name in ("width", "height", "orientation")], 1).astype(np.int32)
    return Contents(table["digest"].copy(), headers, dict(sorted(bad.items())) if decoded else {})


def in_threads(
    work: Callable[[int], T], items: Sequence[int], config: DataConfig, title: str, show_progress: bool
) -> Iterator[tuple[int, T]]:
    """Each item and what `work` makes of it, in order, by data.workers threads, with a progress bar of images."""
    bar = tqdm(total=len(items), desc=title, unit="img", disable=None if show_progress else True)
    with bar, ThreadPoolExecutor(config.workers or os.cpu_count()) as pool:
        try:
            for start in range(0, len(items), _QUEUED):
                some = items[start : start + _QUEUED]
                for item, made in zip(some, pool.map(work, some), strict=True):
                    bar.update()
                    yield item, made
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def digest(content: bytes) -> bytes:
    """16 bytes that stand for a file's content."""
    return hashlib.sha256(content).digest()[:16]


def state(path: str | Path) -> list[int]:
    """Size, times and inode of a file: as long as they are the same, so is its content. Raises OSError."""
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino & (2**63 - 1)]


def _state(name: str) -> list[int]:
    try:
        return state(name)
    except OSError:
        return [-1, -1, -1, -1]  # such an image is reported, or dropped, when it is to be decoded


def _states_of(names: Sequence[str], config: DataConfig) -> np.ndarray:
    """N x 4 int64, see `_STATE`; by threads, since a network's file system takes its time."""
    chunks = [names[start : start + _QUEUED] for start in range(0, len(names), _QUEUED)]
    with ThreadPoolExecutor(config.workers or os.cpu_count()) as pool:
        found = list(pool.map(lambda chunk: np.array([_state(name) for name in chunk], np.int64), chunks))
    return np.concatenate(found) if found else np.zeros((0, len(_STATE)), np.int64)


def _wait_for_a_tick(changed: int) -> None:
    """Waits until a file changed at that time (ns) would bear another one if it were changed now."""
    tick = _TICK if changed % 1_000_000_000 else _COARSE_TICK
    left = changed + tick - time.time_ns()
    if 0 < left <= tick:
        time.sleep(left / 1e9)


def _keys(names: Sequence[str]) -> np.ndarray:
    hashes = b"".join(hashlib.blake2b(os.fsencode(name), digest_size=8).digest() for name in names)
    return np.frombuffer(hashes, "<u8")


def _file_name(names: Sequence[str], exif: bool) -> str:
    """One for all files below the same folder, so that what is added to it changes nothing for the others."""
    common = os.path.commonpath([min(names), max(names)])
    return hashlib.sha256(f"{exif} ".encode() + os.fsencode(common)).hexdigest()[:24]


def _sealed(body: bytes) -> bytes:
    # another Pillow may decode less
    return hashlib.sha256(f"1 {PIL.__version__} ".encode() + body).digest()


def _load(file: Path) -> np.ndarray:
    """What is known, sorted by path; nothing where the file is missing, damaged or of another version."""
    try:
        whole = file.read_bytes()
    except OSError:
        return np.zeros(0, _RECORD)
    body = whole[32:]
    sound = whole[:32] == _sealed(body) and len(body) % _RECORD.itemsize == 0
    return np.frombuffer(body if sound else b"", _RECORD)


def _save(file: Path, learnt: np.ndarray, known: np.ndarray) -> None:
    rest = known[~np.isin(known["path"], learnt["path"])]
    body = np.sort(np.concatenate([learnt, rest]), order="path").tobytes()
    try:
        write_atomically(file, lambda out: out.write(_sealed(body) + body))
    except RunError as error:
        log.warning("%s; the images are read again at every start", str(error).partition(";")[0])
