"""What a file system may refuse, in one place.

Some have no way to sync a folder or to set permissions (CIFS, vfat, FUSE), some no locks (Lustre without `flock`, NFS
without its lock service). No result depends on the first two, so they are passed over; that there are no locks is told
to the caller. Everything else that a call says (no room, read-only, gone) is raised as it is.
"""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

_UNSUPPORTED = frozenset(
    {
        errno.EINVAL,
        errno.ENOTSUP,
        errno.EOPNOTSUPP,
        errno.ENOSYS,
        errno.ENOTTY,
        errno.EBADF,  # flock of NFS and fsync of some others, where the file is not open in the way that they want
        errno.EPERM,
        errno.EACCES,
        errno.ENOLCK,
    }
)
"""What system calls say that a file system does not have."""


@contextlib.contextmanager
def where_supported() -> Iterator[None]:
    """Passes over a call that the file system does not have."""
    try:
        yield
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def sync(handle: int) -> None:
    """Waits until an open file is on disk. Raises OSError."""
    with where_supported():
        os.fsync(handle)


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on disk, without which a crash may undo a rename. Raises OSError."""
    with where_supported():  # a folder that may be written to and not be listed cannot be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def set_mode(path: str | Path, mode: int) -> None:
    """Sets a file's permissions. Raises OSError."""
    with where_supported():
        os.chmod(path, mode)


def name_new(made: str, path: Path) -> None:
    """Gives the file `made` the name `path`, which it must be the first to have. Raises FileExistsError."""
    linked = False
    with where_supported():
        os.link(made, path)
        linked = True
    if linked:
        os.unlink(made)
        return
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))  # a file system without hard links
    os.replace(made, path)


def lock(path: Path) -> tuple[int, bool]:
    """Opens the file `path`, made if need be, and takes its exclusive lock, until it is closed; whether that is so, or
    the file system has no locks. Raises BlockingIOError where another process has it, and OSError."""
    # a file open for writing would keep its file system from being mounted read-only; NFS locks no other
    for mode in (os.O_RDONLY, os.O_RDWR):
        handle = os.open(path, mode | os.O_CREAT, 0o666)
        try:
            with where_supported():
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return handle, True
        except BaseException:
            os.close(handle)
            raise
        if mode == os.O_RDONLY:
            os.close(handle)
    return handle, False
