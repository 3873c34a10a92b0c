"""Ends what is left of a Ray that was started in a folder, and removes the folder.

Ray's agents outlive a killed program by a minute, and what Ray was just starting by longer. As a program of its own
(`main`), in a session of its own, this waits until the program that started it has ended in whatever way, and clears up
behind it. It needs nothing but Python, so that it is there at once. It looks for processes in /proc; where there is
none, Ray's own ways of ending must do.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

PROCESSES = Path("/proc")
PATIENCE = 10.0
"""Seconds in which killed processes must be gone; one in an uninterruptible system call stays."""


def users(folder: Path) -> list[int]:
    """Ray's processes that live in `folder`: they write to files below it, or are Ray's and have it in their command.
    Ray gives workers and agents other names than they were started by, and other sessions."""
    found = []
    for process in PROCESSES.glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile, or is another user's
            if int(process.name) != os.getpid() and (_is_named(process, folder) or _writes(process, folder)):
                found.append(int(process.name))
    return found


def _is_named(process: Path, folder: Path) -> bool:
    command = (process / "cmdline").read_bytes()
    return f"{folder}/".encode() in command and b"/ray/" in command


def _writes(process: Path, folder: Path) -> bool:
    """Whether a process has a file below `folder` open to write: who only reads looks at Ray's logs."""
    for handle in (process / "fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            if os.readlink(handle).startswith(f"{folder}/"):
                flags = (process / "fdinfo" / handle.name).read_text().partition("flags:")[2].split()[0]
                if int(flags, 8) & (os.O_WRONLY | os.O_RDWR):
                    return True
    return False


def reap(folder: Path) -> None:
    """Kills Ray's processes that live in `folder`, those included that are born meanwhile."""
    deadline = time.monotonic() + PATIENCE
    while (left := users(folder)) and time.monotonic() < deadline:
        for process in left:
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.05)


def main() -> None:
    """Waits for the end of standard input, whose other end the program holds that owns the folder."""
    folder = Path(sys.argv[1])
    while sys.stdin.buffer.read(1):
        pass
    if folder.is_dir():  # else its owner has cleared up
        reap(folder)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
