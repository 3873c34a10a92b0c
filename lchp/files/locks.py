"""Lock files: who writes into a folder, and whether it is still the folder that was claimed.

A lock file names its holder and falls free when that dies. It stays as the holder wrote it, so that who finds another
content, or none, knows that the folder was moved, replaced, or lost its disk.
"""

import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lchp.errors import RunError
from lchp.files.filesystem import lock
from lchp.files.runs import unwritable

log = logging.getLogger(__name__)

LOCK = "lock"
_SAME_TIME = 0.5
"""Seconds by which what two processes do may be apart where it is meant to be at the same time."""
_ORPHANED = 15.0
"""Seconds for which the forked children of a process that was killed, which have its locks too, may outlive it."""


class HeldError(RunError):
    """A lock that another process holds."""


@dataclass(frozen=True)
class Claim:
    """The folder of a held lock file. `mark` is what its holder wrote into it."""

    path: Path
    mark: str

    def check(self) -> None:
        """Raises RunError where the folder is no longer the one that was claimed. To write on would leave half of a
        result in another place."""
        try:
            there = self.path.read_text(errors="replace")
        except OSError as error:
            why = f"{self.path.name}: {error.strerror or error}"
        else:
            if there == self.mark:
                return
            why = f"its {self.path.name} is another's"
        raise RunError(
            f"{self.path.parent}: the folder is gone or was replaced ({why}); is its disk still mounted? "
            "Once it is back, give the same command with --resume"
        )


@contextlib.contextmanager
def locked(
    path: Path, *, wait: float = 0.0, remove: bool = False, name: str | None = None, other: str = "name another folder"
) -> Iterator[Claim]:
    """Holds the lock file `path`, in a folder that is there; `remove`: it goes when the block ends. name, other: what
    a message calls it, and what it tells to do else.

    Raises HeldError where another process has held it for `wait` seconds, RunError where it cannot be written. Where
    the file system has no locks a warning says so; then the file alone tells who holds it: a process of this machine is
    kept away, and one of another machine takes the lock over, which `Claim.check` tells who had it.
    """
    begin, said = time.monotonic(), False
    while True:
        try:
            handle, held = lock(path)
            if not held and _is_alive(path):
                os.close(handle)
                raise BlockingIOError
        except BlockingIOError:
            holder = _holder(path)
            dead = _is_dead(holder)
            if time.monotonic() - begin >= (max(wait, _ORPHANED) if dead else wait):
                raise HeldError(
                    f"{name or path}: held by a process that is still running ({holder}); wait for its end, or {other}"
                ) from None
            if dead and not said:
                log.warning("%s: waits for processes that %s, which is gone, has left behind", path, holder)
            said |= dead
            time.sleep(0.1)
            continue
        except OSError as error:
            raise unwritable(path, error) from None
        try:
            if not _is_named(handle, path):  # whoever held it has removed it since it was opened here
                continue
            mark = f"pid {os.getpid()} on {socket.gethostname()}, {_start_of(os.getpid())} {secrets.token_hex(8)}\n"
            try:
                path.write_text(mark)
            except OSError as error:
                raise unwritable(path, error) from None
            if not held:
                log.warning(
                    "%s: this file system has no locks; start nothing on another machine that writes into this folder",
                    path.parent,
                )
                time.sleep(_SAME_TIME)
                if not _has(path, mark):
                    continue
            try:
                yield Claim(path, mark)
            finally:
                with contextlib.suppress(OSError):
                    if remove and _is_named(handle, path) and (held or _has(path, mark)):
                        path.unlink()
                    elif not held and _has(path, mark):
                        path.write_text("")
            return
        finally:
            os.close(handle)


def _holder(path: Path) -> str:
    """Whom a lock file names."""
    try:
        return path.read_text(errors="replace").partition(",")[0].strip()
    except OSError as error:
        return error.strerror or str(error)


def _has(path: Path, mark: str) -> bool:
    """Whether a lock file is as its holder wrote it."""
    try:
        return path.read_text(errors="replace") == mark
    except OSError:
        return False


def _is_alive(path: Path) -> bool:
    """Whether the process that a lock file names is one of this machine that runs, and no other that has got its number
    since."""
    try:
        holder, _, more = path.read_text(errors="replace").partition(", ")
    except OSError:
        return False
    words = holder.split()
    if words[:1] != ["pid"] or words[-1] != socket.gethostname() or _is_dead(holder):
        return False
    return more.partition(" ")[0] == _start_of(words[1])


def _start_of(pid: object) -> str:
    """When a process of this machine began, in the system's own count; `?` where it does not say so."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "?"


def _is_named(handle: int, path: Path) -> bool:
    """Whether `path` is the open file."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False


def _is_dead(holder: str) -> bool:
    """Whether the process that a lock file names was one of this machine, and is no more."""
    words = holder.split()
    if words[:1] != ["pid"] or words[-1] != socket.gethostname():
        return False
    try:
        os.kill(int(words[1]), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, OverflowError):
        pass
    return False
