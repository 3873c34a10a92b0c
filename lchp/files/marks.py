"""Who runs a sweep whose storage is behind a URL, where there are no locks: an object that its holder renews.

A mark that its holder has not renewed for STALE seconds may be taken over. Whoever writes one waits, and reads back
whose it is. Clocks of the machines have to agree within a minute or so.
"""

import contextlib
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from lchp.errors import RunError
from lchp.files import runs
from lchp.files.locks import Claim, HeldError
from lchp.files.remote import TRIES, Remote, RemoteError

log = logging.getLogger(__name__)

RENEWED = 30.0
"""Seconds between two writings of a mark."""
STALE = 180.0
SAME_TIME = 1.0
"""Seconds by which two that write a mark at the same time may be apart."""


@dataclass(frozen=True)
class RemoteClaim:
    """The mark `name` of a storage, of which `mark` tells whose it is. own: the lock on this machine's mirror."""

    remote: Remote
    name: str
    mark: str
    own: Claim | None = None

    def check(self) -> None:
        """Raises RunError where the mark is another's, or gone: what is written would be in another's way."""
        if self.own is not None:
            self.own.check()
        there = holder_of(self.remote, self.name)
        if there is None or there[0] != self.mark:
            whose = "is gone" if there is None else f"is another's ({there[0].partition(',')[0]})"
            raise RunError(
                f"{self.remote.under(self.name)}: the mark of this sweep {whose}; is it running elsewhere? "
                "Where it is not, give the same command with --resume"
            )


def holder_of(remote: Remote, name: str, *, tries: int = TRIES) -> tuple[str, float] | None:
    """What a mark says: whose it is, and when it was renewed (seconds since 1970). None where there is none.
    Raises RemoteError."""
    content = remote.read(name, tries=tries)
    if content is None:
        return None
    whose, _, when = content.decode(errors="replace").strip().rpartition(" ")
    try:
        return whose, float(when)
    except ValueError:
        return whose, 0.0


def is_fresh(renewed: float) -> bool:
    """Whether the holder of a mark may be alive."""
    return time.time() - renewed < STALE


@contextlib.contextmanager
def marked(remote: Remote, name: str, own: Claim) -> Iterator[RemoteClaim]:
    """Holds a mark, renewed by a thread; own: the lock of this machine's mirror, held already. Raises HeldError where
    another holds it, RemoteError."""
    place = own.path.stat()
    mirror = runs.digest([socket.gethostname(), str(own.path), place.st_dev, place.st_ino])
    mark = f"pid {os.getpid()} on {socket.gethostname()}, {mirror}-{secrets.token_hex(8)}"
    claim = RemoteClaim(remote, name, mark, own)
    there = holder_of(remote, name)
    # of this mirror no process is left: we have its lock
    if there is not None and is_fresh(there[1]) and f", {mirror}-" not in there[0]:
        raise _held_by(remote, name, there[0])
    _renew(claim)
    time.sleep(SAME_TIME)
    there = holder_of(remote, name)
    if there is None or there[0] != claim.mark:
        raise _held_by(remote, name, "another that began at the same time" if there is None else there[0])
    over = threading.Event()

    def keep() -> None:
        away = False
        while not over.wait(RENEWED):
            try:
                there = holder_of(remote, name, tries=1)
                if there is not None and there[0] != claim.mark:
                    return  # `check` says so
                _renew(claim)
            except RemoteError as error:
                if not away:
                    log.warning("%s; trainings go on, and what they read and write is tried again", error.fault)
                away = True
                continue
            if away:
                log.warning("%s: answers again", remote.url)
            away = False

    keeping = threading.Thread(target=keep, name="mark", daemon=True)
    keeping.start()
    try:
        yield claim
    finally:
        over.set()
        with contextlib.suppress(RemoteError):
            there = holder_of(remote, name)
            if there is not None and there[0] == claim.mark:
                remote.remove(name)


def _renew(claim: RemoteClaim) -> None:
    claim.remote.write(claim.name, f"{claim.mark} {time.time():.0f}\n".encode(), tries=1)


def _held_by(remote: Remote, name: str, whose: str) -> HeldError:
    return HeldError(
        f"{remote.under(name)}: held by a process that still runs ({whose.partition(',')[0]}), or ran "
        f"{STALE / 60:.0f} minutes ago; wait for its end, or take another --name"
    )
