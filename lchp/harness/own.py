"""A sweep of one's own without Python: axes on the command line, or a TOML file.

    name = "alpha"                            # of the record; the file's name by default
    preset = "parts"
    seeds = 3                                 # from the config's seed upwards

    [set]                                     # what differs from the preset in every cell
    "refinement.labeller" = "frozen"

    [grid]                                    # every combination of these
    "initialization.alpha" = [5.0, 20.0]
    "refinement.augmentations" = [["scale"], ["scale", "flip"]]

    [[cells]]                                 # and these cells
    "refinement.tau" = 0.5

    [random]                                  # and cells drawn at random
    draws = 20
    seed = 0

    [random.fields]
    "refinement.tau" = { low = 0.3, high = 0.95 }
    "initialization.alpha" = { low = 5, high = 80, log = true }
    "refinement.labeller" = ["online", "ema"]

A text means what it means on the command line ("None", "scale+flip").
"""

import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import tomli_w
import tyro

from lchp.config import FIELDS, flatten, override, preset, short_name, show, suggest, to_flat
from lchp.console import guarded, parse, preset_config, refuse
from lchp.errors import ConfigError, DataError
from lchp.harness.cells import MAX_CELLS, Overrides, Sweep, grid
from lchp.harness.grids import NAMES
from lchp.harness.plan import checked_name
from lchp.harness.script import Flags, Program, conduct
from lchp.report.select import require_field, split_values

DEFAULT_PRESET = "parts"


@dataclass(frozen=True)
class SweepFile:
    """What a sweep's file says. `base`: what differs from the preset in every cell."""

    name: str | None = None
    preset: str = DEFAULT_PRESET
    seeds: int = 1
    base: Overrides = field(default_factory=dict)
    cells: Sequence[Overrides] = ()


@dataclass
class GridFlags:
    """Run a sweep of your own: every combination of the axes, for every seed."""

    common: Annotated[Flags, tyro.conf.arg(name="")]
    grid: tyro.conf.UseAppendAction[Annotated[tuple[str, ...], tyro.conf.arg(metavar="FIELD=VALUE,VALUE")]] = ()
    """An axis: a field and its values; may be given several times. A list is one value: scale+flip, or [0.8,1.2]."""
    write: Path | None = None
    """Write the sweep of these flags as a file that `lchp sweep FILE` reads, and stop. The file must be new."""


def run_own(arguments: Sequence[str]) -> int:
    """`lchp sweep [FILE] [FLAGS]`; the exit status, as `lchp.harness.main` has it."""
    first = Path(arguments[0]) if arguments and not arguments[0].startswith("-") else None
    program = Program(("lchp", "sweep"))

    def body() -> int:
        asked, rest = SweepFile(), list(arguments)
        if first is not None:
            asked, rest = read_sweep_file(first), rest[1:]
            if any(word.partition("=")[0] == "--preset" for word in rest):
                raise ConfigError(f"--preset: {first} says the preset; change it there")
            rest = ["--preset", asked.preset, *rest]
        config = override(preset_config(rest), asked.base)
        common = Flags(config, preset=asked.preset, seeds=asked.seeds, name=asked.name)
        flags: GridFlags = parse(GridFlags, rest, "lchp sweep", GridFlags(common))
        common = flags.common
        cells = [*asked.cells, *(read_grid(flags.grid) if flags.grid else [])]
        if not cells:
            what = f"{first} has no [grid], [[cells]] or [random]" if first else "no --grid FIELD=VALUE,VALUE"
            raise ConfigError(f"nothing to sweep: {what}; lchp sweep --help shows how to say what varies")
        sweep = common.sweep(_name(cells), lambda _: cells)
        if flags.write is not None:
            which = "does not go with --write, which runs nothing"
            refuse(common.options, [each.name for each in fields(common.options)], which)
            refuse(common, ("dry_run",), which)
            write_sweep(flags.write, replace(asked, preset=common.preset, seeds=common.seeds), sweep)
            print(f"{flags.write}: run it with lchp sweep {flags.write}")
            return 0
        return conduct(common, sweep)

    return guarded(body, program.to_go_on(arguments), error=program.error)


def read_grid(axes: Sequence[str]) -> list[Overrides]:
    """Every combination of axes as typed, `FIELD=VALUE,VALUE`. Raises ConfigError."""
    found: dict[str, list[Any]] = {}
    for text in axes:
        said, equals, values = text.partition("=")
        name = said.strip().replace("-", "_")  # as flags are typed, too
        if not equals or not values.strip():
            raise ConfigError(f"--grid {text}: expected FIELD=VALUE,VALUE, e.g. --grid refinement.tau=0.5,0.9")
        require_field(name, f"--grid {text}")
        if name in found:
            raise ConfigError(f"--grid {text}: {name} is an axis already; give its values at once")
        found[name] = [FIELDS[name].parse(value) for value in split_values(values)]
    return _grid("--grid", found)


def _grid(where: str, axes: Mapping[str, Sequence[Any]]) -> list[Overrides]:
    number = math.prod(map(len, axes.values()))
    if number > MAX_CELLS:
        raise ConfigError(f"{where}: {number} cells, expected at most {MAX_CELLS}")
    return grid(axes)


def _name(cells: Sequence[Overrides]) -> str:
    """A record's name: the fields that vary."""
    return "-".join(dict.fromkeys(short_name(name).replace(".", "_") for cell in cells for name in cell)) or "recipe"


def read_sweep_file(path: Path) -> SweepFile:
    """Reads a sweep's file (see the module). Raises ConfigError, one line that names the file, the place in it and what
    is allowed there."""
    try:
        said = tomllib.loads(path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode())
    except OSError as error:
        names = "a file NAME.toml, or the name of a sweep (lchp sweep --help lists them)"
        near = suggest(str(path), NAMES)
        raise ConfigError(f"{path}: cannot be read ({error.strerror}){near}; expected {names}") from None
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise ConfigError(f"{path}: is not TOML ({error})") from None
    try:
        return _sweep_file(said, path.stem)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _sweep_file(said: Mapping[str, Any], stem: str) -> SweepFile:
    kinds = {"name": str, "preset": str, "seeds": int, "set": dict, "grid": dict, "cells": list, "random": dict}
    values = {"name": stem, "seeds": 1, **_checked("", said, kinds)}
    if values["seeds"] < 1:
        raise ConfigError(f"seeds = {values['seeds']}: expected at least 1")
    if "name" in said:
        checked_name(values["name"], "name")
    base = _fields("set", values.get("set", {}), _value)
    config = override(preset(values.get("preset", DEFAULT_PRESET)), base)
    cells: list[Overrides] = []
    for i, cell in enumerate(values.get("cells", []), 1):
        cells.append(_fields(f"cells, number {i}", cell, _value))
    if values.get("grid"):
        cells += _grid("grid", _fields("grid", values["grid"], _values))
    if "random" in values:
        cells += _draws(_checked("random: ", values["random"], {"draws": int, "seed": int, "fields": dict}))
    for cell in cells:
        override(config, cell)  # what contradicts the recipe is said here, with the file's name
    return SweepFile(values["name"], values.get("preset", DEFAULT_PRESET), values["seeds"], base, cells)


def _checked(where: str, said: Mapping[str, Any], kinds: Mapping[str, type]) -> dict[str, Any]:
    words = {str: "a text", int: "a whole number", dict: "a table", list: "a list of tables"}
    for key, value in said.items():
        if key not in kinds:
            raise ConfigError(f"{where}{key}: no such key{suggest(key, kinds)}; expected {', '.join(kinds)}")
        if type(value) is not kinds[key]:
            raise ConfigError(f"{where}{key} = {value!r}: expected {words[kinds[key]]}")
    return dict(said)


def _fields(where: str, said: Any, read: Callable[[str, Any], Any]) -> dict[str, Any]:
    """Fields by dotted name, each read by `read(name, value)`."""
    found = {}
    try:
        for name, value in flatten(said).items():
            if name not in FIELDS:
                raise ConfigError(f"{name}: no such field{suggest(str(name), FIELDS)}")
            found[name] = read(name, value)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    return found


def _value(name: str, value: Any) -> Any:
    return FIELDS[name].parse(value) if isinstance(value, str) else FIELDS[name].read(value)


def _values(name: str, values: Any) -> list[Any]:
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{name} = {values!r}: expected a list of values")
    return [_value(name, value) for value in values]


def _draws(said: Mapping[str, Any]) -> list[Overrides]:
    """Cells drawn at random: uniformly, or uniformly in the logarithm, from a range; or from a list. A number keeps
    four digits, so that a table can show it."""
    number = said.get("draws", 0)
    if not 1 <= number <= MAX_CELLS:
        raise ConfigError(f"random: draws = {number}: expected in 1..{MAX_CELLS}")
    if said.get("seed", 0) < 0:
        raise ConfigError(f"random: seed = {said['seed']}: expected at least 0")
    fields = _fields("random.fields", said.get("fields", {}), _range)
    if not fields:
        raise ConfigError("random: expected a table [random.fields] of ranges and lists")
    rng = np.random.default_rng(said.get("seed", 0))
    return [{name: _value(name, draw(rng)) for name, draw in fields.items()} for _ in range(number)]


def _range(name: str, said: Any) -> Callable[[np.random.Generator], Any]:
    """What draws a field's value. Its ends are checked here, so that no draw can fail."""
    if isinstance(said, list):
        values = _values(name, said)
        return lambda rng: values[int(rng.integers(len(values)))]
    expected = (
        f"{name} = {said!r}: expected {{ low = ..., high = ... }}, with log = true if wanted, or a list of values"
    )
    if not isinstance(said, dict) or not {"low", "high"} <= said.keys() <= {"low", "high", "log"}:
        raise ConfigError(expected)
    low, high = (_value(name, said[end]) for end in ("low", "high"))
    log = said.get("log", False)
    if not all(type(v) in (int, float) for v in (low, high)) or type(log) is not bool:
        raise ConfigError(expected)
    if not low <= high or (log and low <= 0):
        raise ConfigError(f"{name} = {said!r}: expected low <= high{', and above 0 with log' * log}")
    whole = FIELDS[name].type is int or int in get_args(FIELDS[name].type)

    def draw(rng: np.random.Generator) -> float | int:
        if whole and not log:
            return int(rng.integers(low, high, endpoint=True))
        value = math.exp(rng.uniform(math.log(low), math.log(high))) if log else rng.uniform(low, high)
        return min(max(round(value), low), high) if whole else min(max(float(f"{value:.4g}"), low), high)

    return draw


def write_sweep(path: Path, asked: SweepFile, sweep: Sweep) -> None:
    """Writes a sweep as a file that `read_sweep_file` reads as the same. Raises DataError for a file that is there."""
    checked_name(sweep.name)
    recipe = to_flat(preset(asked.preset))
    base = {name: value for name, value in to_flat(sweep.base).items() if value != recipe[name]}
    said = {"name": sweep.name, "preset": asked.preset, "seeds": asked.seeds, "set": _plain(base)}
    said["cells"] = [_plain(cell) for cell in sweep.cells]
    try:
        content = tomli_w.dumps({key: value for key, value in said.items() if value != {}}).encode()
    except UnicodeEncodeError:
        raise ConfigError(f"--write {path}: a name or a path in the sweep cannot be written as UTF-8") from None
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError:
        raise DataError(f"--write {path}: is there already; say another name") from None


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As TOML can hold it, which knows no None."""
    return {name: list(v) if isinstance(v, tuple) else show(v) if v is None else v for name, v in values.items()}
