"""Fetching the data sets that may be fetched: resumable, checked, and unpacked without trusting the archive."""

import gzip
import hashlib
import logging
import lzma
import os
import re
import shutil
import ssl
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, Literal, cast
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from lchp.errors import DataError
from lchp.system.progress import tqdm

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DownloadSource:
    """Where an archive lies, its checksum, the folder in it that is the data set, and a file that folder must hold."""

    url: str
    archive: str
    checksum: str
    folder: str
    marker: str


# The checksums are those that torchvision-style loaders of both sets have verified for years.
SOURCES = {
    "cub": DownloadSource(
        "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz?download=1",
        "CUB_200_2011.tgz",
        "md5:97eceeb196236b17998738112f37df78",
        "CUB_200_2011",
        "images.txt",
    ),
    "tiny_imagenet": DownloadSource(
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        "tiny-imagenet-200.zip",
        "md5:90528d7ca1a48142e341f4ef8d21d0de",
        "tiny-imagenet-200",
        "wnids.txt",
    ),
}

MAX_BYTES = 8 * 2**30  # several times the larger of the two sets
MAX_MEMBERS = 1_000_000
_HEADERS = 4 * tarfile.BLOCKSIZE
"""Bytes of a tar archive that a member may take beside its content, on average."""
_BLOCK = 2**20
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError)


def download(
    name: Literal["cub", "tiny_imagenet"],
    target: Path,
    *,
    url: str | None = None,
    checksum: str | None = None,
    max_bytes: int = MAX_BYTES,
    timeout: float = 30.0,
    attempts: int = 5,
) -> Path:
    """Fetches and unpacks a data set into a folder of its own below `target`, and returns that folder.

    Does nothing, and logs so, if it is there already. The archive arrives as `target`/ARCHIVE.part; a call that was
    interrupted is continued by the next one, and a lost connection is tried again up to `attempts` times without
    progress. `timeout` is the longest silence in seconds. `url` names a mirror; `checksum` (`md5:HEX` or `sha256:HEX`)
    replaces the official one. Neither the archive nor what is in it may exceed `max_bytes`. One call per `target` at a
    time. Raises DataError for all that goes wrong.
    """
    source = SOURCES[name]
    folder, archive = target / source.folder, target / source.archive
    if (folder / source.marker).is_file():
        log.info("%s is complete: nothing to download", folder)
        return folder
    if folder.exists():
        raise DataError(f"{folder}: exists but holds no {source.marker}; move it away and run again")
    url, checksum = url or source.url, checksum or source.checksum
    if not re.fullmatch(r"md5:[0-9a-fA-F]{32}|sha256:[0-9a-fA-F]{64}", checksum):
        raise DataError(f"checksum = {checksum!r}: expected md5: or sha256: and the digest in hexadecimal")
    try:
        target.mkdir(parents=True, exist_ok=True)
        if not archive.is_file():
            part = archive.with_name(archive.name + ".part")
            _fetch(url, part, max_bytes, timeout, attempts)
            if fault := _checksum_fault(part, checksum):
                part.unlink()
                raise DataError(f"{url}: {fault}; the file was removed, run again to start over")
            part.rename(archive)
        elif fault := _checksum_fault(archive, checksum):  # put there by hand; or else checked before and not unpacked
            raise DataError(f"{archive}: {fault}; move it away and run again")
        _unpack(archive, folder, source.marker, max_bytes)
        archive.unlink()
    except OSError as error:
        raise DataError(f"{target}: {error.strerror or error}; what has arrived is kept, run again to go on") from error
    log.info("%s is complete", folder)
    return folder


def imagenet_instructions() -> str:
    """What to do by hand, since ImageNet may only be fetched by those who accepted its terms."""
    return """\
ImageNet-1k cannot be downloaded without an account; its terms allow non-commercial research only.

1. Create an account at https://www.kaggle.com and accept the rules of the competition
   https://www.kaggle.com/c/imagenet-object-localization-challenge
2. kaggle competitions download -c imagenet-object-localization-challenge     (about 155 GB)
3. unzip imagenet-object-localization-challenge.zip -d imagenet               (and extract any .tar.gz in it there)
4. lchp data check imagenet imagenet

Expected then:
   imagenet/ILSVRC/Data/CLS-LOC/train/<wnid>/*.JPEG     1,281,167 images of 1,000 classes
   imagenet/ILSVRC/Data/CLS-LOC/val/*.JPEG              50,000 images
   imagenet/ILSVRC/Annotations/CLS-LOC/val/*.xml        their boxes
   imagenet/LOC_synset_mapping.txt                      class names
   imagenet/LOC_val_solution.csv                        classes of the validation images

With torchvision's layout (train/<wnid>/, val/ or val/<wnid>/), put LOC_val_solution.csv, or Annotations/ of
ILSVRC2012_bbox_val_v3.tgz from https://image-net.org, beside train/ and val/.
"""


def _fetch(url: str, part: Path, max_bytes: int, timeout: float, attempts: int) -> None:
    """Completes `part` from `url`, going on where it ends."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise DataError(f"url = {url!r}: expected http:// or https://")
    left = attempts
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _fetch_once(url, part, max_bytes, timeout):
                return
            reason = "the connection closed early"
        except HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise DataError(f"{url}: the server answers {error.code} {error.reason}") from error
            reason = f"the server answers {error.code} {error.reason}"
        except (HTTPException, ConnectionError, TimeoutError, URLError, ssl.SSLError) as error:
            reason = str(error) or type(error).__name__  # any other OSError is the disk's
        grown = part.exists() and part.stat().st_size > before
        left = attempts if grown else left - 1
        if left <= 0:
            raise DataError(f"{url}: {reason}; what has arrived is kept in {part}, run again to go on")
        log.warning("%s: %s; trying again", url, reason)
        time.sleep(min(2.0 ** (attempts - left), 30.0) if left < attempts else 0.1)


def _fetch_once(url: str, part: Path, max_bytes: int, timeout: float) -> bool:
    """One request, for what `part` lacks. True if the file is complete as far as the server tells."""
    have = part.stat().st_size if part.exists() else 0
    request = Request(
        url, headers={"User-Agent": "lchp", "Range": f"bytes={have}-"} if have else {"User-Agent": "lchp"}
    )
    try:
        response = urlopen(request, timeout=timeout)
    except HTTPError as error:
        if error.code != 416:
            raise
        if _total(error.headers) == have:
            return True
        part.unlink()  # longer than what the server has: not the same file
        return False
    with response:
        start, total = _extent(response.status, response.headers, have)
        _refuse_size(url, part, start, total, max_bytes)
        with (
            part.open("r+b" if start else "wb") as file,
            tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=None) as bar,
        ):
            file.seek(start)
            file.truncate()
            return _copy(response, file, total, max_bytes, url, bar.update)


def _extent(status: int, headers: Message, have: int) -> tuple[int, int | None]:
    """Where the body starts in the file, and how long the file is (None if not told)."""
    if status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", "").strip())
        if match and int(match[1]) == have:
            return have, _total(headers)
        raise HTTPException("the server sent another range than asked for")
    length = headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _total(headers: Message) -> int | None:
    total = headers.get("Content-Range", "").rpartition("/")[2].strip()
    return int(total) if total.isdigit() else None


def _refuse_size(url: str, part: Path, start: int, total: int | None, max_bytes: int) -> None:
    if total is None:
        return
    if total > max_bytes:
        raise DataError(f"{url}: {total} bytes are more than the limit of {max_bytes}")
    free = shutil.disk_usage(part.parent).free
    if total - start > free:
        raise DataError(f"{part.parent}: {total - start} bytes are to come, but only {free} are free on the disk")


def _copy(
    response: IO[bytes], file: IO[bytes], total: int | None, max_bytes: int, url: str, on_bytes: Callable[[int], object]
) -> bool:
    while block := response.read(_BLOCK):
        file.write(block)
        on_bytes(len(block))
        if file.tell() > max_bytes:
            raise DataError(f"{url}: more than the limit of {max_bytes} bytes")
    return total is None or file.tell() >= total


def _checksum_fault(path: Path, checksum: str) -> str | None:
    """How the file's checksum differs, or None."""
    algorithm, _, expected = checksum.partition(":")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with (
        path.open("rb") as file,
        tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc="checksum", disable=None) as bar,
    ):
        while block := file.read(_BLOCK):
            digest.update(block)
            bar.update(len(block))
    found = digest.hexdigest()
    return None if found == expected.lower() else f"{algorithm} is {found}, expected {expected}"


def _unpack(archive: Path, folder: Path, marker: str, max_bytes: int) -> None:
    """Extracts beside `folder` and renames at the end, so that `folder` is either absent or complete."""
    beside = folder.with_name(f".{folder.name}.unpacking")
    if beside.exists():
        shutil.rmtree(beside)
    beside.mkdir()
    try:
        (_unpack_zip if archive.suffix == ".zip" else _unpack_tar)(archive, beside, max_bytes)
        if not (beside / folder.name / marker).is_file():
            raise DataError(f"{archive}: holds no {folder.name}/{marker}")
        os.rename(beside / folder.name, folder)
    except _DAMAGED as error:
        raise DataError(f"{archive}: cannot be unpacked ({error})") from error
    except OSError as error:
        if error.errno is None:  # gzip's and bz2's word for damage; the others are the disk's
            raise DataError(f"{archive}: cannot be unpacked ({error})") from error
        raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@dataclass
class _Bounded:
    """A stream of at most `left` bytes: tarfile holds the headers of a member in memory, whatever their size."""

    file: gzip.GzipFile
    left: int

    def read(self, size: int) -> bytes:
        block = self.file.read(size)
        self.left -= len(block)
        if self.left < 0:
            raise ValueError("more bytes than its members may have")
        return block


def _unpack_tar(archive: Path, into: Path, max_bytes: int) -> None:
    with (
        gzip.open(archive) as plain,
        tarfile.open(fileobj=cast(Any, _Bounded(plain, max_bytes + _HEADERS * MAX_MEMBERS)), mode="r|") as tar,
        tqdm(desc="unpacking", unit="files", disable=None) as bar,
    ):
        size = 0
        for count, member in enumerate(tar, 1):
            if not (member.isfile() or member.isdir()):
                raise DataError(f"{archive}: {member.name!r} is a link or a special file; refused")
            size += member.size
            _refuse_member(archive, member.name, count, size, max_bytes)
            tar.extract(member, into, filter="data")
            bar.update()


def _unpack_zip(archive: Path, into: Path, max_bytes: int) -> None:
    with zipfile.ZipFile(archive) as file:
        size = 0
        members = file.infolist()
        for count, member in enumerate(members, 1):
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise DataError(f"{archive}: {member.filename!r} is a link or a special file; refused")
            size += member.file_size  # zipfile reads no more than this of a member, whatever it inflates to
            _refuse_member(archive, member.filename, count, size, max_bytes)
        for member in tqdm(members, desc="unpacking", unit="files", disable=None):
            file.extract(member, into)


def _refuse_member(archive: Path, name: str, count: int, size: int, max_bytes: int) -> None:
    if size > max_bytes or count > MAX_MEMBERS:
        raise DataError(f"{archive}: unpacks to more than {max_bytes} bytes or {MAX_MEMBERS} files; refused")
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if posix.is_absolute() or windows.anchor or ".." in posix.parts or ".." in windows.parts or "\0" in name:
        raise DataError(f"{archive}: {name!r} leads out of the target folder; refused")
