"""Sweeps of one's own: axes on the command line, and files."""

from pathlib import Path
from typing import Any

import pytest
import tomli_w

from lchp.cli import main
from lchp.errors import ConfigError
from lchp.harness import own
from lchp.harness.cells import Sweep, overrides_text
from lchp.harness.own import read_grid, read_sweep_file
from lchp.harness.script import Flags


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Flags, Sweep]]:
    """What would be run."""
    found: list[tuple[Flags, Sweep]] = []

    def conduct(flags: Flags, sweep: Sweep) -> int:
        found.append((flags, sweep))
        return 0

    monkeypatch.setattr(own, "conduct", conduct)
    return found


def test_axes_are_combined_and_name_the_record(asked: list[tuple[Flags, Sweep]]) -> None:
    axes = ["--grid", "refinement.tau=0.5,0.9", "--grid", "initialization.alpha=5, 20"]
    assert main(["sweep", *axes, "--seeds", "3", "--seed", "7", "--refinement.labeller", "frozen"]) == 0
    ((_, sweep),) = asked
    assert [tuple(cell.values()) for cell in sweep.cells] == [(0.5, 5.0), (0.5, 20.0), (0.9, 5.0), (0.9, 20.0)]
    assert (sweep.name, list(sweep.seeds), sweep.base.refinement.labeller) == ("tau-alpha", [7, 8, 9], "frozen")


def test_fields_of_one_last_name_give_records_of_different_names(asked: list[tuple[Flags, Sweep]]) -> None:
    axes = (["initialization.lr=0.01"], ["refinement.lr=0.01"], ["refinement.lr=0.01", "initialization.lr=0.01"])
    for fields in axes:
        assert main(["sweep", *(word for axis in fields for word in ("--grid", axis))]) == 0
    names = ["initialization_lr", "refinement_lr", "refinement_lr-initialization_lr"]
    assert [sweep.name for _, sweep in asked] == names
    assert overrides_text(asked[-1][1].cells[0]) == "refinement.lr 0.01, initialization.lr 0.01"


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        ("refinement.augmentations=scale,[scale,flip]", [("scale",), ("scale", "flip")]),
        ("refinement.scale=0.8+1.2,[0.9,1.1],(0.7, 1.3)", [(0.8, 1.2), (0.9, 1.1), (0.7, 1.3)]),
        ("initialization.mask-delta=None,0.4", [None, 0.4]),
        ("initialization.delta=auto,0.4", ["auto", 0.4]),
        ("model.pretrained=False,true", [False, True]),
        ("model.classifier=vgg16_gap,timm:resnet18.a1_in1k", ["vgg16_gap", "timm:resnet18.a1_in1k"]),
        ("data.batch_size=32", [32]),
    ],
)  # fmt: skip
def test_a_value_is_read_as_its_field_has_it(axis: str, values: list[Any]) -> None:
    assert [value for cell in read_grid([axis]) for value in cell.values()] == values


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        (["refinement.tau"], "expected FIELD=VALUE,VALUE"),
        (["refinement.tau="], "expected FIELD=VALUE,VALUE"),
        (["refinement.taus=0.5"], "did you mean refinement.tau?"),
        (["refinement.tau=0.5,high"], "refinement.tau = 'high': expected a number, in [0, 1]"),
        (["refinement.tau=0.5,,0.9"], "refinement.tau = '': expected a number"),
        (["refinement.tau=0.5,7"], "refinement.tau = '7': expected a number, in [0, 1]"),
        (["refinement.tau=0.5", "refinement.tau=0.6"], "is an axis already"),
        (["refinement.augmentations=scale,rotation"], "refinement.augmentations = 'rotation'"),
        ([f"seed={','.join(map(str, range(200)))}", f"data.batch_size={','.join(map(str, range(1, 200)))}"], "at most"),
    ],
)
def test_mistakes_in_axes_are_one_line(axes: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", *(word for axis in axes for word in ("--grid", axis)), "--dry-run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_file_is_written_from_flags_and_read_back(
    tmp_path: Path, asked: list[tuple[Flags, Sweep]], capsys: pytest.CaptureFixture[str]
) -> None:
    axes = ["--grid", "initialization.mask_delta=None,0.4", "--grid", "refinement.augmentations=scale,scale+flip"]
    flags = [*axes, "--seeds", "2", "--preset", "cub50_cpu", "--data.root", "CUB 200", "--initialization.delta", "auto"]
    assert main(["sweep", *flags]) == 0
    path = tmp_path / "mine.toml"
    assert main(["sweep", *flags, "--write", str(path)]) == 0
    assert f"lchp sweep {path}" in capsys.readouterr().out
    assert main(["sweep", str(path)]) == 0
    (_, first), (_, second) = asked
    assert first == second
    before = path.read_bytes()
    assert main(["sweep", *flags, "--write", str(path)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert path.read_bytes() == before
    new = str(tmp_path / "new.toml")
    for option in (
        "--resume",
        "--no-share",
        "--dry-run",
        "--max-concurrent=2",
        "--address=auto",
        "--name=\udcff",
        "--name=a/b",
    ):
        assert main(["sweep", *flags, "--write", new, option]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        named = option.partition("=")[0].replace("--no-", "--")
        why = "cannot be written as UTF-8" if option == "--name=\udcff" else f"{named} does not go with --write"
        assert ("--name = 'a/b': expected a plain name" if option == "--name=a/b" else why) in line
    assert list(tmp_path.iterdir()) == [path]


def test_flags_override_a_file_and_the_axes_add_to_it(tmp_path: Path, asked: list[tuple[Flags, Sweep]]) -> None:
    (path := tmp_path / "mine.toml").write_text("seeds = 3\n[set]\nseed = 5\n[grid.refinement]\ntau = [0.1, 0.2]\n")
    assert main(["sweep", str(path), "--seeds", "1", "--storage", "there", "--grid", "refinement.tau=0.3"]) == 0
    ((flags, sweep),) = asked
    assert [cell["refinement.tau"] for cell in sweep.cells] == [0.1, 0.2, 0.3]
    assert (sweep.name, list(sweep.seeds), str(flags.options.storage)) == ("mine", [5], "there")


def file(path: Path, **said: Any) -> Path:
    path.write_text(tomli_w.dumps(said))
    return path


def test_a_file_as_windows_writes_it_is_read(tmp_path: Path) -> None:
    (path := tmp_path / "mine.toml").write_bytes(b"\xef\xbb\xbf[grid]\r\n'refinement.tau' = [0.5]\r\n")
    assert read_sweep_file(path).cells == [{"refinement.tau": 0.5}]


def test_draws_keep_to_their_ranges_and_repeat(tmp_path: Path) -> None:
    fields = {
        "refinement.tau": {"low": 0.3, "high": 0.95},
        "initialization.alpha": {"low": 5, "high": 80, "log": True},
        "initialization.epochs": {"low": 1, "high": 3},
        "refinement.labeller": ["online", "ema"],
    }
    path = file(tmp_path / "r.toml", random={"draws": 200, "seed": 3, "fields": fields})
    cells = read_sweep_file(path).cells
    assert cells == read_sweep_file(path).cells
    assert len(cells) == 200
    drawn = {name: [cell[name] for cell in cells] for name in fields}
    assert 0.3 <= min(drawn["refinement.tau"]) < 0.35 < 0.9 < max(drawn["refinement.tau"]) <= 0.95
    assert 70 <= sum(value < 20 for value in drawn["initialization.alpha"]) <= 130  # 20 is half-way in the logarithm
    assert set(drawn["initialization.epochs"]) == {1, 2, 3}
    assert set(drawn["refinement.labeller"]) == {"online", "ema"}


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ({"grids": {}}, "grids: no such key (did you mean grid?)"),
        ({"seeds": "3"}, "seeds = '3': expected a whole number"),
        ({"seeds": True}, "seeds = True: expected a whole number"),
        ({"seeds": 0}, "seeds = 0: expected at least 1"),
        ({"name": "a/b"}, "name = 'a/b': expected a plain name"),
        ({"name": ""}, "name = '': expected a plain name"),
        ({"preset": "cab"}, "did you mean cub?"),
        ({"set": {"refinement.taus": 1}}, "set: refinement.taus: no such field (did you mean refinement.tau?)"),
        ({"set": {"refinement": 3}}, "set: refinement = 3"),
        ({"set": {"refinement.tau": 7}}, "set: refinement.tau = 7"),
        ({"grid": {"refinement.tau": 0.5}}, "grid: refinement.tau = 0.5: expected a list of values"),
        ({"grid": {"refinement.tau": []}}, "grid: refinement.tau = []: expected a list of values"),
        ({"grid": {"refinement.tau": [0.5, "x"]}}, "grid: refinement.tau = 'x'"),
        ({"cells": [{"refinement.tau": 0.5}, {"refinement.tau": 7}]}, "cells, number 2: refinement.tau = 7"),
        ({"cells": [3]}, "cells, number 1: a config is an object"),
        ({"cells": {"refinement.tau": 0.5}}, "expected a list of tables"),
        ({"random": {"draws": 3}}, "expected a table [random.fields]"),
        ({"random": {"draws": 0, "fields": {"refinement.tau": [0.5]}}}, "draws = 0: expected in 1.."),
        ({"random": {"draw": 1}}, "random: draw: no such key (did you mean draws?)"),
        ({"random": {"draws": 1, "seed": -1, "fields": {}}}, "seed = -1: expected at least 0"),
        ({"random": {"draws": 1, "fields": {"refinement.tau": 0.5}}}, "expected { low = ..., high = ... }"),
        ({"random": {"draws": 1, "fields": {"refinement.tau": {"low": 0.5}}}}, "expected { low = ..., high = ... }"),
        ({"random": {"draws": 1, "fields": {"refinement.tau": {"low": 0.9, "high": 0.5}}}}, "expected low <= high"),
        ({"random": {"draws": 1, "fields": {"refinement.tau": {"low": 0.5, "high": 9}}}}, "refinement.tau = 9"),
        ({"random": {"draws": 1, "fields": {"refinement.labeller": {"low": "a", "high": "b"}}}}, "refinement.labeller"),
        ({"random": {"draws": 1, "fields": {"initialization.alpha": {"low": 0, "high": 1, "log": True}}}}, "above 0"),
    ],
)
def test_mistakes_in_a_file_are_one_line_that_names_it(tmp_path: Path, said: dict[str, Any], line: str) -> None:
    path = file(tmp_path / "mine.toml", **said)
    with pytest.raises(ConfigError) as raised:
        read_sweep_file(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "content", [b"seeds = ", b"\xff\xfe", b"a" * 10, b"[" * 100_000, b"[grid]\n[grid]\n", b"seeds = " + b"9" * 5000]
)
def test_what_is_no_toml_is_one_line(tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (path := tmp_path / "mine.toml").write_bytes(content)
    assert main(["sweep", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"lchp: error: {path}: ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["delta_taus"],
            "cannot be read (No such file or directory) (did you mean delta_tau?); expected a file NAME.toml, or",
        ),
        (["--seeds", "2"], "nothing to sweep: no --grid FIELD=VALUE,VALUE"),
        (["FILE"], "nothing to sweep: FILE has no [grid], [[cells]] or [random]"),
        (["FILE", "--preset", "cub"], "--preset: FILE says the preset"),
        (["FILE", "--gird", "refinement.tau=0.5"], "did you mean --grid"),
        (["--grid", "refinement.tau=0.5", "--price-per-hour", "2"], "--price-per-hour: goes with --dry-run"),
        (["search", "--price-per-hour", "2"], "--price-per-hour: goes with --dry-run"),
        (["search", "--limit", "2", "--dry-run"], "--limit: a search has no list of cells"),
        (["--grid", "refinement.tau=0.5", "--write", "FILE2"], "--storage does not go with --write"),
        (
            ["FILE", "--grid", "refinement.tau=0.5", "--write", "FILE2", "--resume"],
            "--storage does not go with --write",
        ),
        (["delta_tau", "--grid", "refinement.tau=0.5"], "no such option of lchp sweep delta_tau"),
    ],
)
def test_mistakes_in_the_command_are_one_line(
    tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = file(tmp_path / "mine.toml", preset="parts", grid={})  # an empty table is no axis
    assert main(["sweep", *(word.replace("FILE", str(path)) for word in words), "--storage", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said.replace("FILE", str(path)) in line
    assert [p.name for p in tmp_path.iterdir()] == ["mine.toml"]
