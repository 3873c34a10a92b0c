"""What the README tells its reader to type is understood, and none of its blanks is left open."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from lchp.cli import COMMANDS, Train, parse
from lchp.config import TrainConfig, preset

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```(?:bash)?\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
LINES = [line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.startswith("lchp ")]


@pytest.mark.parametrize("line", LINES)
def test_lchp_lines_are_understood(line: str) -> None:
    words = shlex.split(line)[1:]
    name = next(n for n in COMMANDS if words[: len(n.split())] == n.split())
    rest = words[len(name.split()) :]
    chosen = rest[rest.index("--preset") + 1] if "--preset" in rest else "parts"
    default = Train(preset(chosen)) if COMMANDS[name] is Train else None
    assert isinstance(parse(COMMANDS[name], rest, f"lchp {name}", default), COMMANDS[name])


def test_there_are_lines_to_check() -> None:
    assert len(LINES) >= 7


def test_no_blank_is_left() -> None:
    assert set(re.findall(r"<!--.*?-->", README)) == {"<!-- test -->", "<!-- end -->"}
    assert "____" not in README


def test_fields_of_the_table_of_open_choices_exist_with_the_defaults_named() -> None:
    rows = re.findall(r"^\| [^|]+ \| `(\w+)\.(\w+)` \| ([^|]+) \|", README, re.MULTILINE)
    assert len(rows) >= 15
    for section, name, said in rows:
        value = getattr(getattr(TrainConfig(), section), name)
        assert dataclasses.is_dataclass(getattr(TrainConfig(), section))
        expected = f"{value:g}" if isinstance(value, float) else str(value)
        assert said.replace("`", "").split(" ")[0] == expected, name
