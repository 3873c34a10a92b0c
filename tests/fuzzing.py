"""Plain records as somebody may have edited them: every field gone, or with something else in its place."""

import copy
import math
from collections.abc import Iterator
from typing import Any

INSTEAD: tuple[Any, ...] = (
    *(None, True, "", "text", "\ud800", "a\nb", "a\0b", [], [None], {}, {"a": {"b": [1]}}),
    *(0, -1, 0.5, 10**400, 1e308, -1e308, math.nan, math.inf),
)
"""What stands in a field's place."""


def changes(value: Any, where: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Paths to change, with what then stands there; `...` for a key that is gone. Of a list, the first two items."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, inner in items:
        if isinstance(value, dict):
            yield (*where, key), ...
        yield from (((*where, key), other) for other in INSTEAD)
        yield from changes(inner, (*where, key))


def changed(record: Any, path: tuple[str | int, ...], value: Any) -> Any:
    record = copy.deepcopy(record)
    at = record
    for key in path[:-1]:
        at = at[key]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return record


def fuzzed(record: Any) -> Iterator[tuple[str, Any]]:
    for path, value in changes(record):
        yield (
            f"{'/'.join(map(str, path))} = {'gone' if value is ... else ascii(value)[:40]}",
            changed(record, path, value),
        )
    yield from ((ascii(value)[:40], value) for value in INSTEAD)
