"""Why the import of a package fails, in one line: it is broken, lacking, or there is no memory for it.

A program imports this module before all others: what fails before `lchp.cli.guarded` runs is then told so, too.
"""

import sys
import traceback
from itertools import pairwise
from pathlib import Path
from types import TracebackType

from lchp.errors import lacked_memory, printable, reason

_INSTALLED = ("site-packages", "dist-packages")
_UNMAPPED = "failed to map segment"
"""What the loader of shared libraries says where the address space does not suffice."""


def failed_import(error: BaseException) -> str | None:
    """What package of others our code could not import, why, and what to do; None for any other error."""
    package = _package(error)
    if package is None:
        return None
    while (deeper := error.__cause__ or (None if error.__suppress_context__ else error.__context__)) is not None:
        error = deeper
    memory = _UNMAPPED in str(error) or isinstance(error, (MemoryError, SystemError)) or lacked_memory(error)
    advice = (
        "there is too little memory or address space for it (ulimit -v, or the container's limit): raise that"
        if memory
        else "install it again, with all that it needs"
    )
    return printable(f"the package {package} cannot be imported ({reason(error)}); {advice}")


def _package(error: BaseException) -> str | None:
    """The package that one of our modules was importing."""
    ours = False
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__", ""))
        if module.startswith("importlib."):
            continue
        package = module.partition(".")[0]
        if ours and package != "lchp" and frame.f_code.co_name == "<module>":
            return package
        ours = package == "lchp"
    if ours and isinstance(error, ImportError) and error.name:  # of what has no code in Python, or is not there
        package = error.name.partition(".")[0]
        return None if package == "lchp" else package
    if ours and isinstance(error, SyntaxError) and error.filename:  # a file that was cut off, say
        return next((below for folder, below in pairwise(Path(error.filename).parts) if folder in _INSTALLED), None)
    return None


def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    said = failed_import(error)
    if said is None or sys.stderr is None:
        sys.__excepthook__(kind, error, trace)
    else:
        print(f"error: {said}", file=sys.stderr)


if sys.excepthook is sys.__excepthook__:  # nobody else's
    sys.excepthook = _hook
