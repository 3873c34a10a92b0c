"""What the README tells its reader to type is understood, and none of its blanks is left open."""

import dataclasses
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest

import lchp.harness
from lchp.cli import COMMANDS, Train
from lchp.config import OPEN_CHOICES, TrainConfig, preset
from lchp.console import parse, preset_config
from lchp.harness import Options, Sweep, SweepResult
from lchp.harness.script import Flags
from lchp.harness.search_script import SearchFlags
from lchp.harness.sweep import Outcome, Plan, make_plan

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
FENCED = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
BLOCKS = [text for language, text in FENCED if language in ("", "bash")]
LINES = [line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.startswith("lchp ")]
SWEEPS = [
    line
    for block in BLOCKS
    for line in (part.split("  #")[0].strip() for part in block.replace("\\\n", " ").splitlines())
    if line.startswith("python sweeps/")
]


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
    assert len(SWEEPS) >= 6


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


def test_every_open_choice_with_an_alternative_is_compared() -> None:
    rows = re.findall(r"^\| [^|]+ \| `(\w+\.\w+)` \| [^|]+ \| ([^|]+) \|$", README, re.MULTILINE)
    assert {name for name, others in rows if others != "-"} == set(OPEN_CHOICES)


@pytest.mark.parametrize("line", SWEEPS)
def test_sweep_lines_are_understood(line: str) -> None:
    script, *rest = shlex.split(line)[1:]
    assert (ROOT / script).exists()
    common = Flags(preset_config(rest))
    flags = parse(SearchFlags, rest, script, SearchFlags(common)) if "search" in script else None
    assert flags or parse(Flags, rest, script, common)


def test_the_sweep_of_ones_own_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the trainings: the example's names, cells and options make a plan."""
    (code,) = (text for language, text in FENCED if language == "python" and "grid(" in text)
    planned: list[Plan] = []

    def plan_only(sweep: Sweep, options: Options) -> SweepResult:
        planned.append(make_plan(sweep, options))
        return SweepResult(tmp_path, [Outcome(c, "waiting", None, None, None, None) for c in planned[0].cells])

    monkeypatch.setattr(lchp.harness, "run", plan_only)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    (plan,) = planned
    kinds = Counter(p.job.kind for p in plan.schedule.jobs.values() if p.state == "waiting")
    assert kinds == {"classifier": 2, "localizer": 4, "refinement": 8}
