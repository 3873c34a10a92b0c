"""Sweeps' files that somebody edited by hand: read, or refused in one line that names the file; never a traceback."""

import copy
import math
import random
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from lchp.config import override, preset
from lchp.errors import ConfigError
from lchp.harness.cells import expand
from lchp.harness.own import read_sweep_file
from lchp.harness.plan import checked_name
from lchp.harness.script import Flags

WHOLE: dict[str, Any] = {
    "name": "mine",
    "preset": "parts",
    "seeds": 2,
    "set": {"refinement.labeller": "frozen", "data": {"validation": 0.1}},
    "grid": {"initialization.alpha": [5.0, 20.0], "refinement.augmentations": [["scale"], ["scale", "flip"]]},
    "cells": [{"refinement.tau": 0.5}, {"refinement": {"tau": 0.6}}],
    "random": {
        "draws": 3,
        "seed": 1,
        "fields": {
            "refinement.tau": {"low": 0.3, "high": 0.95},
            "initialization.alpha": {"low": 5, "high": 80, "log": True},
            "refinement.labeller": ["online", "ema"],
        },
    },
}
INSTEAD: tuple[Any, ...] = (
    *(True, "", "a/b", "a\nb", "None", [], [{}], {}, {"a": {"b": [1]}}, {"": 1}),
    *(0, -1, 10**400, math.nan, {"low": math.nan, "high": math.inf}),
)
"""What stands in a value's place."""


def changed(value: Any) -> Iterator[Any]:
    """Copies with one key gone, one more, or one value in another's place."""
    if isinstance(value, (dict, list)):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            for other in (*INSTEAD, *changed(value[key])):
                copied = copy.deepcopy(value)
                copied[key] = other
                yield copied
            copied = copy.deepcopy(value)
            del copied[key]
            yield copied
    if isinstance(value, dict):
        yield value | {"more": 1}


def torn(content: bytes, rng: random.Random) -> bytes:
    """Bytes with a piece gone, twice there, or others in its place."""
    start, length = rng.randrange(len(content)), rng.randrange(1, 12)
    piece = content[start : start + length]
    others = (b"", piece * 2, b"=", b"[", b'"', b"\n", b"\xff", b"\0", b"9" * 30, b"1e999", b"'''", b"[[", b".")
    return content[:start] + rng.choice(others) + content[start + length :]


def read_or_refused(path: Path) -> bool:
    """Whether a file is read. What is read makes a sweep, or is refused there in one line."""
    read, fault = False, ""
    try:
        asked = read_sweep_file(path)
        read = True
        config = override(preset(asked.preset), asked.base)
        sweep = Flags(config, preset=asked.preset, seeds=asked.seeds, name=asked.name).sweep("x", lambda _: asked.cells)
        checked_name(sweep.name)
        if config.data.name == "parts" and len(asked.cells) * asked.seeds < 16:
            assert len(expand(sweep)) <= len(asked.cells) * len(sweep.seeds)
    except ConfigError as error:
        fault = str(error)
    assert "\n" not in fault
    assert read or fault.startswith(f"{path}: ")
    return read


def test_any_value_in_a_sweep_s_file_is_read_or_refused(tmp_path: Path) -> None:
    path, read = tmp_path / "mine.toml", 0
    path.write_text(tomli_w.dumps(WHOLE))
    assert read_or_refused(path)
    files = [tomli_w.dumps(said) for said in changed(WHOLE)]
    for text in files:
        path.write_text(text)
        try:
            read += read_or_refused(path)
        except Exception as fault:
            pytest.fail(f"{type(fault).__name__}: {fault}\n{text}")
    assert 30 < read < len(files) - 300


def test_any_bytes_in_a_sweep_s_file_are_read_or_refused(tmp_path: Path) -> None:
    rng, path, whole = random.Random(0), tmp_path / "mine.toml", tomli_w.dumps(WHOLE).encode()
    no_toml = 0
    for _ in range(300):
        content = torn(whole, rng)
        path.write_bytes(content)
        try:
            tomllib.loads(content.decode())
        except ValueError:
            no_toml += 1
        try:
            read_or_refused(path)
        except Exception as fault:
            pytest.fail(f"{type(fault).__name__}: {fault}\n{content!r}")
    assert 50 < no_toml < 250
