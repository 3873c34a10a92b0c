"""Progress bars, also on a terminal that does not know its size."""

import os
import sys
from contextlib import suppress
from typing import Any

from tqdm import tqdm as _tqdm

COLUMNS, LINES = 80, 24
"""Of a terminal that says it has none, as `docker -t` and `script` open one."""


class tqdm(_tqdm):
    """tqdm's, which alone would draw nothing on a terminal of no columns or no lines."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **_size_where_unknown() | options)


def _size_where_unknown() -> dict[str, Any]:
    """What tqdm takes for the size, less one each as in its own reading."""
    with suppress(AttributeError, OSError, ValueError):  # closed, or no terminal
        columns, lines = os.get_terminal_size(sys.stderr.fileno())
        return ({} if columns else {"ncols": COLUMNS - 1}) | ({} if lines else {"nrows": LINES - 1})
    return {}
