"""Errors that a user can mend: each carries one line that names the field, file or line and what to do."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

_LACKING = ("allocate memory", "out of memory", "bad_alloc", "ALLOC_FAILED")
"""What errors of Python, torch, its libraries and the system say where memory runs out."""


class LchpError(Exception):
    """Base of all mistakes a user can mend. The command line prints its message without a traceback."""


class ConfigError(LchpError):
    """A field that does not exist, a value out of range, or options that contradict each other."""


class DataError(LchpError):
    """A data set that is missing, laid out otherwise than its name promises, or damaged."""


class WeightsError(LchpError):
    """Pretrained weights that are missing or do not fit the network."""


class RunError(LchpError):
    """A run folder or checkpoint that is missing, damaged, or belongs to another config."""


def printable(text: str) -> str:
    """`text` with control characters and undecodable bytes as escapes: what a stranger named a file can then neither
    break a message's line nor steer the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def lacked_memory(error: BaseException) -> str | None:
    """Whose memory ran out, and what asked for it, where that is what an error says; None for any other error."""
    said = next((line for line in str(error).splitlines() if any(phrase in line for phrase in _LACKING)), None)
    if said is None and isinstance(error, MemoryError):
        said = str(error).partition("\n")[0] or "no memory for Python"
    if said is None or not isinstance(error, (MemoryError, RuntimeError, OSError)):
        return None
    whose = "the GPU's" if "CUDA" in said or "CUDNN" in said else "the machine's"
    return f"{whose} memory ran out ({said.rpartition('err == 0. ')[2][:160]})"


def is_of_threads(error: BaseException) -> bool:
    """Whether an error says that no thread or process could be started, for a limit on their number."""
    if isinstance(error, OSError):
        return error.errno == errno.EAGAIN and error.filename is None
    return isinstance(error, RuntimeError) and "can't start new thread" in str(error)


@contextmanager
def enough_memory(where: str, advice: str) -> Iterator[None]:
    """Within the context, memory that runs out becomes a RunError of one line, which says where and what to do."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        lacking = lacked_memory(error)
        if lacking is None:
            raise
        raise RunError(f"{where}: {lacking}; {advice}") from None


_HEAD = re.compile(r"(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:Error|Exception|Exit|Interrupt|Warning)(?:\(\w+\))?(?::|$)")
"""The line of a traceback that names its exception."""
_FIGURES = re.compile(r"Memory on the node.*?\bwas ([\d.]+ ?GB[^(\n]*\([\d.]+\))", re.S)
_THRESHOLD = re.compile(r"OOM kill reason: ([^\n]+)|(threshold of [\d.]*\d)")
"""What the memory monitor of Ray says, of two versions."""


def reason(error: BaseException | str) -> str:
    """The line that says why, of an exception (or the text of one, with or without its traceback) that is not ours:
    the first of the last exception's message; those after it too where the first only announces them."""
    if isinstance(error, BaseException):
        text = str(error).strip() or type(error).__name__
        cause = error.__cause__
        if cause is not None and (why := reason(cause)) not in text:
            return f"{reason(text)} ({why})"
        return reason(text)
    if figures := _FIGURES.search(error):
        threshold = _THRESHOLD.search(error)
        more = "" if threshold is None else f", {threshold[1] or threshold[2]}"
        return f"Ray ended it since the machine's memory ran low: {figures[1]}{more}"
    lines = [line for line in error.splitlines() if line.strip()]
    heads = [i for i, line in enumerate(lines) if _HEAD.match(line)]
    said = [line.strip() for line in lines[heads[-1] if heads else 0 :]]
    if not said:
        return ""
    if re.search(r"\d+ validation errors? for", said[0]):  # pydantic's: then the field, then what is wrong with it
        return ": ".join(said[:3]).partition(" [type=")[0][:500]
    return " ".join(said[:2] if said[0].endswith(":") else said[:1])[:500]
