"""What the pages tell their reader to type is understood, what they link to is there, their tables are the code's."""

import argparse
import dataclasses
import importlib
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import (
    DOCS,
    GUIDES,
    PAGES,
    README,
    ROOT,
    blocks,
    commands,
    headings,
    inline_commands,
    links,
    name_of,
    prose,
    sections,
    slug,
    text_of,
    words_of,
)
from report_records import analysis_script

import lchp
import lchp.cli
import lchp.harness
from lchp.backbones import BACKBONES
from lchp.baselines import METHODS
from lchp.cli import COMMANDS, Train
from lchp.config import AUTO, FIELDS, GONE, OPEN_CHOICES, PRESETS, TrainConfig, preset
from lchp.console import parse, preset_config
from lchp.data import DATASETS
from lchp.errors import ConfigError
from lchp.harness import Options, Sweep, SweepResult
from lchp.harness.grids import NAMES
from lchp.harness.own import GridFlags, read_grid, read_sweep_file
from lchp.harness.script import Flags
from lchp.harness.search_script import SearchFlags
from lchp.harness.sweep import Outcome, Plan, make_plan
from lchp.method.choice import DELTAS, KEPT, ROUNDS
from lchp.training.chain import KINDS

TYPED = sorted({line for page in GUIDES for line in commands(page)})
INLINE = sorted({line for page in GUIDES for line in inline_commands(page)})
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


class Understood(BaseException):
    """Raised where a script has read its arguments, in place of what it would do."""


def then_stop(reads: Callable[..., Any]) -> Callable[..., Any]:
    def read(*arguments: Any, **more: Any) -> Any:
        reads(*arguments, **more)
        raise Understood

    return read


def lchp_line(words: list[str]) -> None:
    if words[0] == "sweep":
        lchp_sweep(words[1:])
        return
    name = next(n for n in COMMANDS if words[: len(n.split())] == n.split())
    rest = words[len(name.split()) :]
    default = Train(preset_config(rest)) if COMMANDS[name] is Train else None
    if rest == ["--help"]:
        return
    assert isinstance(parse(COMMANDS[name], rest, f"lchp {name}", default), COMMANDS[name])


def lchp_sweep(words: list[str]) -> None:
    if not words:  # named in the text
        return
    if words[0] in NAMES:
        sweep_line(f"sweeps/{words[0]}.py", words[1:])
    elif words != ["--help"] and not words[0].endswith(".toml"):
        assert read_grid(parse(GridFlags, words, "lchp sweep", GridFlags(Flags(preset_config(words)))).grid)


def sweep_line(script: str, rest: list[str]) -> None:
    assert (ROOT / script).is_file()
    common = Flags(preset_config(rest))
    if "search" in script:
        parse(SearchFlags, rest, script, SearchFlags(common))
    else:
        parse(Flags, rest, script, common)


def analysis_line(name: str, rest: list[str], patch: pytest.MonkeyPatch) -> None:
    if name == "harness_cost":  # it hands its arguments on
        sweep_line("sweeps/delta_tau.py", rest)
        return
    patch.syspath_prepend(ROOT / "analysis")  # as Python lets a script do
    patch.syspath_prepend(ROOT)
    script = analysis_script(name)
    patch.setattr(lchp.cli, "parse", then_stop(lchp.cli.parse))
    patch.setattr(lchp.console, "parse", then_stop(lchp.console.parse))  # which run_scoring calls
    if hasattr(script, "parse"):
        patch.setattr(script, "parse", then_stop(script.parse))
    patch.setattr(argparse.ArgumentParser, "parse_args", then_stop(argparse.ArgumentParser.parse_args))
    patch.setattr(sys, "argv", [name, *rest])
    with pytest.raises(Understood):
        script.main()


def install_line(line: str) -> None:
    """The install command: its files and extras exist. What follows the install is a command of its own."""
    for part in line.split(" && ")[2:]:
        words = words_of(part)
        if words[0] == ".venv/bin/python":
            sweep_line(words[1], words[2:])
        elif words[0] == ".venv/bin/uv":
            assert (ROOT / words[words.index("-c") + 1]).is_file()
            extras = re.findall(r"\w+", words[words.index("-e") + 1])
            assert set(extras) <= PROJECT["project"]["optional-dependencies"].keys()
        else:
            assert words == [".venv/bin/pytest"]


def program_line(words: list[str]) -> None:
    """Another program's: its own arguments are its own, but the files and places of ours are there."""
    program, *rest = words
    if program == "docker":
        assert (ROOT / "Dockerfile").is_file()
        assert rest[0] in ("build", "run")
        for inner in [rest[rest.index("python") + 1 :]] if "python" in rest else []:
            sweep_line(inner[0], inner[1:])
    elif program == "ray":
        inner = rest[rest.index("--") + 1 :]
        assert inner[0] == "python"
        sweep_line(inner[1], inner[2:])
    elif program == "sbatch":
        at = next(i for i, word in enumerate(rest) if word.startswith("sweeps/"))
        assert (ROOT / rest[at]).is_file()
        lchp_line(["sweep", *rest[at + 1 :]])
    elif program in (".venv/bin/pytest", "pytest"):
        paths = [word for word in rest if "/" in word]
        assert all((ROOT / path.partition("::")[0]).exists() for path in paths)
    elif program == ".ci/run":
        assert not rest
    elif program in ("ruff", "pyright", "mkdocs"):
        assert set(rest) <= {"format", "check", "build", "--strict"}
    else:
        assert words in (["source", ".venv/bin/activate"], ["tensorboard", "--logdir", "runs/watched"])


def read_command(line: str, patch: pytest.MonkeyPatch) -> None:
    if line.startswith("python3 -m venv "):
        install_line(line)
        return
    words = words_of(line)
    if words[0] == "lchp":
        lchp_line(words[1:])
    elif words[:2] == ["python", "-m"]:
        package, _, module = words[2].partition(".")
        if package == "analysis":
            analysis_line(module, words[3:], patch)
        else:
            assert words[2] == "pydoc"
            importlib.import_module(words[3])
    elif words[0] == "python" and words[1].startswith("sweeps/"):
        sweep_line(words[1], words[2:])
    elif words[0] == "python" and words[1].startswith("analysis/"):
        assert (ROOT / words[1]).is_file()
        analysis_line(Path(words[1]).stem, words[2:], patch)
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
        assert set(words[2:]) <= set(re.findall(r"--\w+", (ROOT / words[1]).read_text()))
    else:
        program_line(words)


@pytest.mark.parametrize("line", TYPED)
def test_every_command_is_understood(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read_command(line, monkeypatch)


@pytest.mark.parametrize("line", INLINE)
def test_commands_in_the_text_are_understood(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may leave out what a command needs, but name nothing that it does not have."""
    error: ConfigError | None = None
    try:
        read_command(line, monkeypatch)
    except ConfigError as found:
        error = found
    assert error is None or str(error).startswith(("missing: ", "Missing value "))


def test_there_are_commands_to_check() -> None:
    assert len([line for line in TYPED if line.startswith("lchp ")]) >= 30
    assert len([line for line in TYPED if line.startswith(("python sweeps/", "lchp sweep "))]) >= 10
    assert len([line for line in TYPED if "analysis" in line]) >= 10


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("lchp train --preset cubs", "preset"),
        ("lchp predict --run x", "IMAGE"),
        ("python sweeps/delta_tau.py --seed-count 3", "no such option"),
        ("python analysis/make_tables.py --tables 3", "RAISE"),
        ("python -m analysis.auto_regret RUN --since 2", "RAISE"),
    ],
)
def test_a_wrong_command_is_found(line: str, error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BaseException, match=error):
        read_command(line, monkeypatch)


def test_a_foreign_program_is_not_passed_over() -> None:
    with pytest.raises(AssertionError):
        program_line(["curl", "-O", "x"])


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_options_and_fields_that_are_named_exist(page: Path) -> None:
    text = text_of(page)
    sections_of = {name.partition(".")[0] for name in FIELDS if "." in name}
    options = {n.replace("-", "_") for n in re.findall(r"--([a-z]+\.[a-z][a-z_-]*)", text)}
    options = {f"{s}.{n.removeprefix('no_')}" for s, n in (o.split(".", 1) for o in options)}
    fields = {n for n in re.findall(r"`([a-z]+\.[a-z_]+)`", text) if n.split(".")[0] in sections_of}
    checkpoints = {n for n in fields if n.endswith(".pt")}
    assert options | (fields - checkpoints) <= FIELDS.keys() | (GONE.keys() if page.name == "UPGRADING.md" else set())


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    assert [link for link in links(page) if not leads(page, link)] == []


def leads(page: Path, link: str) -> bool:
    """Whether a link's file is there, in these very letters, and its heading."""
    if link.startswith("https://"):
        return True
    place, _, anchor = link.partition("#")
    target = (page.parent / place).resolve() if place else page
    if not target.is_relative_to(ROOT) or target.name not in {p.name for p in target.parent.glob("*")}:
        return False
    return not anchor or anchor in map(slug, headings(target))


def test_a_dead_link_is_found() -> None:
    assert leads(README, "docs/start.md#test")
    assert not leads(README, "docs/start.md#tests")
    assert not leads(README, "docs/Start.md")
    assert not leads(README, "docs/none.md")
    assert not leads(README, "../elsewhere.md")


def test_every_page_is_in_the_navigation_and_on_the_first_page() -> None:
    nav = re.findall(r"^ +- (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    names = {page.name for page in DOCS}
    assert sorted([*nav, "api.md"]) == sorted(names)  # the hook adds the API
    assert names - {"index.md"} <= set(links(ROOT / "docs" / "index.md"))
    assert {f"docs/{name}" for name in names - {"index.md"}} <= set(links(README))


def test_modules_with_an_api_page_exist() -> None:
    listed = re.search(r"^  api:\n((?:    - .+\n)+)", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert listed is not None
    names = re.findall(r"- (\S+)", listed[1])
    told = re.findall(r"^\| `([\w.]+)` \|", text_of(ROOT / "docs" / "api.md"), re.MULTILINE)
    assert names == told
    for name in names:
        assert importlib.import_module(name).__doc__


def test_the_readme_is_short() -> None:
    assert len(text_of(README).splitlines()) <= 150
    assert [line for line in prose(README).splitlines() if len(line) > 120] == []


def test_the_first_screen_is_for_images_without_boxes_and_the_second_for_research() -> None:
    found = [heading for heading, _ in sections(README)]
    assert [h for h in found if h in ("## Boxes for your own images", "## For research")] == found[1:3]
    (first,) = (text for heading, text in sections(README) if heading == "## Boxes for your own images")
    assert "lchp predict" in first
    lines = text_of(README).splitlines()
    assert lines.index("## For research") <= 40
    assert not re.search(r"\d\.\d %|GT-Known", "\n".join(lines[: lines.index("### Results")]))


def test_no_blank_is_left() -> None:
    assert set(re.findall(r"<!--.*?-->", text_of(README))) == {"<!-- test -->", "<!-- end -->"}
    for page in GUIDES:
        assert not re.search(r"____|TODO|TBD|@[A-Z]+@", text_of(page)), page


def test_continuous_integration_runs_the_block_between_the_marks() -> None:
    between = re.search(r"^<!-- test -->\n```\n(.+)\n```\n<!-- end -->$", text_of(README), re.MULTILINE)
    assert between is not None
    assert between[1].endswith('-e ".[test]" && .venv/bin/pytest')
    assert ".ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()


def figured(page: Path) -> Iterator[tuple[str, str]]:
    """The sections of a page with measured figures: a picture, or a table with several numbers after a point."""
    for heading, text in sections(page):
        rows = "\n".join(line for line in text.splitlines() if line.startswith("|"))
        if re.search(r"^!\[", text, re.MULTILINE) or len(re.findall(r"(?<![\w.=])\d+\.\d\b(?!\.)", rows)) >= 8:
            yield heading, text


@pytest.mark.parametrize("page", DOCS, ids=name_of)
def test_every_figure_carries_its_command(page: Path) -> None:
    command = re.compile(r"^(?:lchp|python) |`(?:lchp|python) [^`]+`", re.MULTILINE)
    found = [heading for heading, text in figured(page) if not command.search(text)]
    if page.name != "recipes.md":  # whose numbers are settings
        assert found == []


def test_there_are_figures_to_check() -> None:
    assert {page.name for page in DOCS if list(figured(page))} >= {"speed.md", "parts.md", "methods.md", "tables.md"}


def test_open_choices_are_those_of_the_code_with_their_defaults() -> None:
    page = text_of(ROOT / "docs" / "open-choices.md")
    rows = re.findall(r"^\| [^|]+ \| `(\w+)\.(\w+)` \| ([^|]+) \| ([^|]+) \|$", page, re.MULTILINE)
    assert len(rows) >= 15
    for section, name, said, _ in rows:
        value = getattr(getattr(TrainConfig(), section), name)
        assert dataclasses.is_dataclass(getattr(TrainConfig(), section))
        expected = f"{value:g}" if isinstance(value, float) else str(value)
        assert said.replace("`", "").split(" ")[0] == expected, name
    assert {f"{section}.{name}" for section, name, _, others in rows if others != "-"} == set(OPEN_CHOICES)


def test_presets_are_those_of_the_code() -> None:
    page = text_of(ROOT / "docs" / "recipes.md")
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| .+? \| (\d+ \+ \d+) \| (\S+) \| ([\d., ]+) \|$", page, re.MULTILINE)
    assert {name for name, *_ in rows} == PRESETS.keys()
    for name, data, epochs, delta, grid in rows:
        config = preset(name)
        first, second = config.initialization, config.refinement
        assert f"{config.data.image_size} px" in data
        assert epochs == f"{first.epochs} + {second.epochs}"
        assert (delta, grid) == (str(first.delta), ", ".join(map(str, PRESETS[name].deltas))), name


def test_names_in_tables_are_those_of_the_registries() -> None:
    def first_column(page: str) -> str:
        return "\n".join(line.split(" | ")[0] for line in text_of(ROOT / "docs" / page).splitlines() if line[:1] == "|")

    assert set(re.findall(r"`(\w+)`", first_column("data.md"))) >= DATASETS.keys()
    listed = {n for n in re.findall(r"`(\w+)`", first_column("backbones.md")) if n != "NAME"}
    assert listed == {name for name in BACKBONES if not name.startswith(("tiny", "timm:"))}
    methods = text_of(ROOT / "docs" / "methods.md")
    assert set(re.findall(r"^\| [^|]+ \| `(\w+)`", methods, re.MULTILINE)) == METHODS.keys()
    for page in ("sweeps.md", "architecture.md"):
        rows = re.findall(r"^\| `(\w+)` \|", text_of(ROOT / "docs" / page), re.MULTILINE)
        assert tuple(row for row in rows if row in KINDS) == KINDS


def test_what_auto_does_is_what_the_page_says() -> None:
    page = text_of(ROOT / "docs" / "auto.md")
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == AUTO.keys()
    assert [f"{DELTAS[0]}, {DELTAS[1]}, ..., {DELTAS[-1]}" in page, len(DELTAS) * 2**3] == [True, 56]
    assert f"{sum(ROUNDS)} training images are looked at, in three rounds" in page
    for number in (*ROUNDS, *KEPT):
        assert re.search(rf"\b{number}\b", page)
    assert {name for name, p in PRESETS.items() if p.config.initialization.auto_fields} == {"folder", "folder_cpu"}


def test_tests_that_the_promises_name_exist() -> None:
    page = text_of(ROOT / "docs" / "reliability.md")
    sources = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    seen = 0
    for file, name in re.findall(r"`(test_\w+\.py)?(?:::(test_\w+))?(?:\.\.\.)?`", page):
        places = [sources[file]] if file else sources.values()
        assert any(f"def {name}" in text for text in places), (file, name)
        seen += bool(name)
    assert seen >= 15


def test_training_from_python_runs_as_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = (b.text for b in blocks(ROOT / "docs" / "python.md") if b.language == "python")
    asked: list[Any] = []

    @dataclasses.dataclass
    class Trained:
        summary: Any

    def only_note(config: TrainConfig, *, on_epoch: Any, output: str) -> Trained:
        asked.append((config.initialization.delta, config.seed, on_epoch, output))
        return Trained({"results": {"lchp_r": {"center_crop": {"gt_known": 61.0}}}})

    monkeypatch.setattr(lchp, "train", only_note, raising=False)
    exec(compile(code, "python.md", "exec"), {"__name__": "__main__"})
    assert asked == [(0.4, 1, print, "runs/mine")]


def test_the_sweep_of_ones_own_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the trainings: the example's names, cells and options make a plan."""
    (code,) = (b.text for b in blocks(ROOT / "docs" / "sweeps.md") if b.language == "python")
    planned: list[Plan] = []

    def plan_only(sweep: Sweep, options: Options) -> SweepResult:
        planned.append(make_plan(sweep, options))
        return SweepResult(tmp_path, [Outcome(c, "waiting", None, None, None, None) for c in planned[0].cells])

    monkeypatch.setattr(lchp.harness, "run", plan_only)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "sweeps.md", "exec"), {"__name__": "__main__"})
    (plan,) = planned
    states = [(p.job.kind, p.state) for p in plan.schedule.jobs.values()]
    kinds = {kind: states.count((kind, "waiting")) for kind in KINDS}
    assert kinds == {"classifier": 2, "choice": 0, "boxes": 0, "localizer": 4, "labels": 0, "refinement": 8}


def test_the_file_of_a_sweep_reads_as_printed(tmp_path: Path) -> None:
    (text,) = (b.text for b in blocks(ROOT / "docs" / "sweeps.md") if b.language == "toml")
    (path := tmp_path / "mine.toml").write_text(text)
    found = read_sweep_file(path)
    assert (found.name, found.preset, found.seeds, len(found.cells)) == ("alpha", "parts", 3, 4 + 1 + 20)
    assert found.base == {"refinement.labeller": "frozen"}


def test_the_sketch_of_packages_is_that_of_the_code(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "docs" / "tools"))
    try:
        sketch = importlib.import_module("sketch")
    finally:
        sys.path.pop(0)
    page = text_of(ROOT / "docs" / "architecture.md")
    assert page == sketch.renewed(page, ROOT / "lchp"), "renew it: python docs/tools/sketch.py --write"
    for name, text in {
        "low.py": '"""Low. More."""\nimport typing\n',
        "middle/__init__.py": '"""Middle | of all."""\n',
        "middle/one.py": "def later():\n    from pack import low\n",
        "high.py": "from pack.middle.one import later\nimport pack.low\n",
        "left.py": "if TYPE_CHECKING:\n    from pack import high\nfrom pack import right\n",
        "right.py": "import pack.left\n",
    }.items():
        (tmp_path / "pack" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pack" / name).write_text(text)
    drawn = sketch.sketch(tmp_path / "pack")
    arrows = {line.strip() for line in drawn.splitlines() if "-->" in line}
    assert arrows == {"high --> middle", "middle --> low", "left --> right", "right --> left"}
    assert "| `middle/` | Middle \\| of all | low |" in drawn
    assert "| `high.py` |  | middle, low |" in drawn


def test_files_of_the_container_exist_and_its_base_is_the_one_that_is_named() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    (base,) = (line.split()[1] for line in lines if line.startswith("FROM "))
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-runtime-ubuntu\d\d\.\d\d", base)
    assert base in text_of(ROOT / "docs" / "start.md")
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert copied
    assert [path for path in copied if not (ROOT / path).exists()] == []


def test_how_to_cite_says_what_the_package_is() -> None:
    cited = dict(re.findall(r"^([\w-]+): (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE))
    assert cited["version"] == lchp.__version__
    assert cited["license"] == PROJECT["project"]["license"]
    assert cited["cff-version"] == "1.2.0"


def test_new_fields_are_in_the_notes_on_upgrading() -> None:
    page = text_of(ROOT / "UPGRADING.md")
    newer = {name for name, field in FIELDS.items() if field.since}
    rows = dict(re.findall(r"^\| `([\w.]+)` \| \d \| `([^`]*)` \|", page, re.MULTILINE))
    assert rows == {name: str(FIELDS[name].since.meant) for name in newer}  # type: ignore[union-attr]


def test_changes_are_in_sections() -> None:
    kinds = re.findall(r"^### (.+)$", text_of(ROOT / "CHANGELOG.md"), re.MULTILINE)
    assert kinds
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert re.search(rf"^## \[?{re.escape(lchp.__version__)}\]?", text_of(ROOT / "CHANGELOG.md"), re.MULTILINE)
