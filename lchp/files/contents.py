"""What stands for a file's content, in keys and as a checksum."""

import errno
import hashlib
import os
import stat
from functools import lru_cache
from pathlib import Path


def content_hash(path: Path) -> str:
    """16 hexadecimal digits that stand for what a file holds. Raises OSError, also for what is no regular file."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):  # a pipe is opened for ever
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return _content_hash(path, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


@lru_cache
def _content_hash(path: Path, *_state: int) -> str:
    return checksum(path)[:16]


def checksum(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
