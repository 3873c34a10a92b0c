"""What a config field says about itself as metadata of its type, and how it reads a value."""

import contextlib
import difflib
import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from lchp.errors import ConfigError

_PLAIN = frozenset({bool, int, float, str, NoneType})
_WORDS: Mapping[str, Any] = MappingProxyType({"none": None, "true": True, "false": False})
_FLOAT32 = 3e38  # what networks compute in ends a little above


@dataclass(frozen=True)
class Rule:
    """Which values of its type a field takes: a test, and what it lets through, in words. Upper ends are far beyond
    use; beyond them memory, threads or float32 fail in ways that do not name the field."""

    fits: Callable[[Any], bool]
    words: str
    is_path: bool = False  # a pathlib.Path is taken as well, and kept as text
    others: tuple[Any, ...] = ()  # values that `words` names beside those of the kind


def within(interval: str, *others: Any) -> Rule:
    """An interval as mathematics writes it, `[0, 1)`, or one of whole numbers with both its ends, `8..4096`; `others`:
    values beside it."""
    low, high = map(float, re.split(r", |\.\.", interval.strip("[()]")))
    above, under = interval.startswith("("), interval.endswith(")")

    def fits(v: Any) -> bool:
        return v in others or ((low < v if above else low <= v) and (v < high if under else v <= high))

    return Rule(fits, f"in {interval}" + "".join(f", or {other}" for other in others), others=others)


def _can_be_path(value: str | None) -> bool:
    try:
        return value is None or (bool(value.strip()) and b"\0" not in os.fsencode(value))
    except UnicodeEncodeError:
        return False


POSITIVE = Rule(lambda v: v > 0, "greater than 0")
PATH = Rule(_can_be_path, "not empty, of characters that a path may have", is_path=True)
CACHE = Rule(
    lambda v: _can_be_path(v) and (v in ("auto", "off") or v.lower() not in ("auto", "off")),
    "auto, off, or the path of a folder",
    is_path=True,
)

Part = Literal[
    "images",  # what the data set holds
    "views",  # what the networks see of it, in which order and precision
    "trunk",  # the classifier's trunk as it starts
    "head",  # the classifier's head
    "classifier",  # how it is trained
    "ratio",  # the rate of a compared classifier's layers that start from random
    "teacher",  # LCHP's teacher, where its masks are those of its boxes
    "masks",  # LCHP's teacher, where it makes masks alone
    "teacher_boxes",  # the boxes that it makes then
    "map",  # the box of a compared method's score map
    "l_reg",  # how stage 1 weighs the regression
    "localizer",  # the localizer as it starts, and how it is trained
    "labels",  # stage 2's box and confidence of every view
    "refinement",  # stage 2's training
    "kept",  # which boxes tau keeps (Table 4)
    "predictions",  # the recorded scores of a box
    "measures",  # what else is measured
]
"""A part of the method, as far as fields can change it."""


def changes(*parts: Part) -> tuple[Part, ...]:
    """The parts that a field enters. None: it says where things are, how to go about them, or which parts there are."""
    return parts


@dataclass(frozen=True)
class Since:
    """Of a field that came after the first records: RECIPE_VERSION at that time, and what records without it mean."""

    recipe: int
    meant: Any


@dataclass(frozen=True)
class Open:
    """A choice that the paper leaves open: its place, by how much it is expected to matter, and the values to compare
    (none: all that its type lists)."""

    place: int
    values: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Field:
    """All that the field of this dotted name says about itself, but for its default and docstring."""

    name: str
    type: Any
    rule: Rule | None
    changes: tuple[Part, ...]
    since: Since | None
    open: Open | None

    @property
    def allowed(self) -> str:
        """What it takes, in words: `a number, in (0, 1)`."""
        kind = described(self.type, self.rule.others if self.rule else ())
        return f"{kind}, {self.rule.words}" if self.rule else kind

    def read(self, value: Any) -> Any:
        """A value as the field's type: lists become tuples, whole numbers floats where one is asked for, numpy's values
        and paths plain ones (JSON, sweeps and Python hold them so). Raises ConfigError for one that does not fit."""
        try:
            is_path = self.rule and self.rule.is_path and isinstance(value, os.PathLike)
            value = os.fspath(value) if is_path else plain(value)
            found = _typed(value, self.type)
            expected = self.rule.words if self.rule and not self.rule.fits(found) else None
        except OverflowError:
            expected = "a finite number"
        except (TypeError, RecursionError):
            expected = self.allowed
        if expected is None:
            return found
        raise ConfigError(f"{self.name} = {quoted(value)}: expected {expected}")

    def parse(self, text: str) -> Any:
        """The value of a text as `show` writes it, or as a user types it: `0.7`, `scale+flip`, `[0.8, 1.2]`, `None`.
        Raises ConfigError."""
        for reading in _readings(text.strip()):
            with contextlib.suppress(ConfigError):
                return self.read(reading)
        raise ConfigError(f"{self.name} = {quoted(text)}: expected {self.allowed}")


def _readings(text: str) -> Iterator[Any]:
    """What a text may mean, the narrowest first."""
    yield from (value for word, value in _WORDS.items() if text.lower() == word)
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            yield kind(text)
    yield text
    yield tuple(next(_readings(part.strip())) for part in re.split("[+,]", text.strip("[]()")) if part.strip())


def field_of(name: str, annotation: Any) -> Field:
    """The field of this dotted name, annotated so."""
    kind, *metadata = get_args(annotation)
    said: dict[type, Any] = {type(m): m for m in metadata}
    return Field(name, kind, said.get(Rule), said[tuple], said.get(Since), said.get(Open))


def plain(value: Any) -> Any:
    """Lists as tuples; scalars and arrays of numpy, and of torch, as Python's own values: np.float32(0.3) as 0.3."""
    if type(value) in _PLAIN:
        return value
    if getattr(value, "dtype", None) in ("float16", "float32"):
        value = value.astype(str).astype(float)
    if hasattr(value, "tolist") and not isinstance(value, type):
        value = value.tolist()
        value = float(value) if hasattr(value, "tolist") and isinstance(value, Real) else value  # a long double
    return tuple(map(plain, value)) if isinstance(value, (list, tuple)) else value


_parts = functools.cache(lambda kind: (get_origin(kind), get_args(kind)))


def _typed(value: Any, kind: Any) -> Any:
    """Raises TypeError for a value of another kind, OverflowError for one that is not finite."""
    origin, args = _parts(kind)
    if origin in (Union, UnionType):
        for arg in args:
            with contextlib.suppress(TypeError):
                return _typed(value, arg)
        raise TypeError
    if origin is tuple and type(value) is tuple and (args[-1] is Ellipsis or len(value) == len(args)):
        return tuple(_typed(v, args[0]) for v in value)
    if origin is Literal and value in args:
        return args[args.index(value)]
    if kind is float and type(value) is int and abs(value) <= 2**53:
        return float(value)
    if kind is float and type(value) is float and not abs(value) <= _FLOAT32:
        raise OverflowError
    if type(value) is kind:
        return value
    raise TypeError


def described(kind: Any, said: tuple[Any, ...] = ()) -> str:
    """A type in words, without the values that are `said` elsewhere."""
    origin, args = _parts(kind)
    if origin in (Union, UnionType):
        arms = [a for a in args if not (a is NoneType and None in said) and set(get_args(a)).isdisjoint(said)]
        return " or ".join(map(described, arms))
    if origin is Literal:
        return "one of " + ", ".join(args)
    if origin is tuple:
        return f"a list of {described(args[0])}" if args[-1] is Ellipsis else f"{len(args)} values"
    named = {float: "a number", int: "a whole number", bool: "True or False", str: "text", NoneType: "None"}
    return named[kind]


def show(value: Any) -> str:
    """A field's value as text for a table: `0.7`, `scale+flip`."""
    if isinstance(value, (tuple, list)):
        return "+".join(map(show, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def counted(number: int, what: str) -> str:
    """A number of things: `1 run`, `2 runs`, `0 classes`."""
    return f"{number} {what}{'' if number == 1 else 'es' if what.endswith('s') else 's'}"


def quoted(value: Any) -> str:
    """A value for a message: on one line, and not too long."""
    try:
        text = " ".join(repr(value).splitlines())
    except (ValueError, RecursionError):  # Python prints no whole number of thousands of digits
        text = f"a whole number of {value.bit_length()} bits" if isinstance(value, int) else type(value).__name__
    return text if len(text) <= 100 else f"{text[:97]}..."


def as_given(name: Any) -> str:
    """A field's name for a message, as it was given."""
    return name if isinstance(name, str) and name.isprintable() and 0 < len(name) <= 60 else quoted(name)


def suggest(name: str, known: Iterable[str]) -> str:
    """` (did you mean ...?)` for a mistyped name, or nothing. Of a dotted name the last part alone will do."""
    forms: dict[str, dict[str, None]] = {}
    for each in known:
        bare = each.lstrip("-")
        for form in (bare, bare.rpartition(".")[2]):
            forms.setdefault(form, {})[each] = None
    close = difflib.get_close_matches(name.lstrip("-"), forms, n=1, cutoff=0.6)
    return f" (did you mean {' or '.join(list(forms[close[0]])[:3])}?)" if close else ""
