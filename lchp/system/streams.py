"""Standard input, output and error as a program finds them: closed, of an encoding that lacks signs, or a pipe that
nobody reads any more."""

import contextlib
import io
import os
import sys
from dataclasses import dataclass
from typing import Any, TextIO

UNREAD = 141
"""The exit status, as that of a program that SIGPIPE ended, where nobody reads standard output any more."""


def prepare() -> None:
    """To call where a program starts: what is closed reads and writes nothing, and signs that the encoding lacks are
    written as escapes."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            with contextlib.suppress(OSError):  # else the next file that is opened gets the number, and what is printed
                os.set_inheritable(_vacant(number), True)
            setattr(sys, name, open(os.devnull, "w" if number else "r"))  # noqa: SIM115
        elif number and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _vacant(number: int) -> int:
    """The null device under a file number that nothing has; OSError where something has it."""
    handle = os.open(os.devnull, os.O_RDWR)  # which takes the lowest free number
    if handle != number:
        os.close(handle)
        raise FileExistsError(number)
    return handle


@dataclass(frozen=True)
class _Outlasting:
    """A stream that is written to in vain once nobody reads it, instead of raising BrokenPipeError."""

    stream: TextIO

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except BrokenPipeError:
            abandon(self.stream)
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except BrokenPipeError:
            abandon(self.stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def outlast() -> None:
    """To call before work that must not end because nobody reads what it says (a training piped to `head -1`): until
    `settle` what is written after that is lost, and nothing is raised."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _Outlasting):
            setattr(sys, name, _Outlasting(stream))


def settle() -> None:
    """To call where a program ends: writes out what is left, so that nothing fails after it, and undoes `outlast`."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            continue
        try:
            stream.flush()
        except (OSError, ValueError):  # ValueError: somebody closed it
            abandon(stream)
        if isinstance(stream, _Outlasting):
            setattr(sys, name, stream.stream)


def abandon(stream: Any) -> None:
    """Puts the null device in a stream's place, so that what it still holds does not fail when the program ends."""
    with contextlib.suppress(OSError, ValueError):  # where it is of no file
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
