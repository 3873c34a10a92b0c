"""analysis/make_tables.py: what it writes, prints and refuses."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from report_records import ANALYSIS, analysis_script, store, write_grid, write_predicted, write_run, write_sweep

from lchp.config import PRESETS, override, preset
from lchp.console import guarded
from lchp.report.flags import Source
from lchp.report.tables.write import TableOptions, make_tables, render_tables

SCRIPT = ANALYSIS / "make_tables.py"


@pytest.fixture(scope="module")
def main() -> Callable[[list[str]], int]:
    return analysis_script("make_tables").main


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_all_tables_are_written_and_printed(main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = write_grid(tmp_path / "results")
    assert main(["--storage", str(storage)]) == 0
    out, err = capsys.readouterr()
    expected = {f"table_{n}.{suffix}" for n in range(1, 7) for suffix in ("md", "tex", "csv", "html")} | {"tables.tex"}
    first = contents(storage / "tables")
    assert set(first) == expected
    assert all(f"Table {n}. " in out for n in range(1, 7))
    assert "preset parts: the recipe of 20 of 20 runs" in out
    assert err == ""
    assert not any(str(tmp_path).encode() in data for data in first.values())
    assert main(["--storage", str(storage)]) == 0
    assert contents(storage / "tables") == first


def test_one_table_into_a_folder(main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = write_grid(tmp_path / "results")
    options = ["--table", "3", "--output", str(tmp_path / "out"), "--preset", "parts", "--where", "refinement.tau=0.8"]
    assert main(["--storage", str(storage), *options]) == 0
    assert set(contents(tmp_path / "out")) == {"table_3.md", "table_3.tex", "table_3.csv", "table_3.html", "tables.tex"}
    out = capsys.readouterr().out
    assert "Table 3." in out
    assert "Table 4." not in out
    assert "65.50 ± 2.12 (2)" in out


def test_what_cannot_be_read_is_said_and_the_rest_made(
    main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = write_grid(tmp_path / "results")
    broken = store(tmp_path / "more", preset("cub"))
    (broken / "summary.json").write_text("{")
    store(tmp_path / "other", preset("cub50_cpu"))
    storages = [str(tmp_path / name) for name in ("results", "more", "nowhere", "other")]
    assert main(["--storage", *storages]) == 1
    out, err = capsys.readouterr()
    assert "66.50 ± 2.12 (2)" in out
    assert f"{broken / 'summary.json'}: cannot be read" in err
    assert "nowhere: no such folder" in err
    assert "1 run on cub: not in Tables 3-6, which are of parts; --preset cub makes theirs" in err
    assert (storage / "tables" / "table_1.md").exists()


def test_an_empty_storage_gives_tables_of_what_was_not_run(main, tmp_path: Path, capsys) -> None:
    assert main(["--storage", str(tmp_path), "--table", "3"]) == 1
    out, err = capsys.readouterr()
    assert "not run" in out
    assert "no finished run: the rows are those of the preset cub" in out
    assert err == f"{tmp_path}: no finished run\n"


MISTAKES = {
    "--storage": "--storage: expected at least one folder",
    "--storage /nowhere": "/nowhere: no such folder; name the storage of a sweep or a run folder by --storage",
    "--table 9": "--table 9: the paper has Tables 1 to 6; 7 is of the choices it leaves open, 8 of score maps",
    "--preset cup": "did you mean cub?",
    "--where x=1": "--where x=1: x is no field",
    "--watch 0": "--watch 0: expected seconds",
    "--compare a": "--compare: expected two results",
    "--compare a b --table 3": "--table does not go with --compare",
    "--compare a b --watch 9": "--watch does not go with --compare",
    "--compare a b --output c": "--output does not go with --compare",
    "--compare a b --preset cub": "--preset does not go with --compare",
    "--compare a b --where seed=0": "--where does not go with --compare RUN RUN",
    "--compare a b --sweep c": "--sweep does not go with --compare RUN RUN",
    "--compare a b --storage c": "--storage does not go with --compare RUN RUN",
    "--compare a b": "a/config.json: no such file",
    "--tabel 3": "--tabel: no such option of make_tables.py (did you mean --table?)",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_is_one_line(main, arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert MISTAKES[arguments] in err
    assert err.count("\n") == 1


def test_compare_prints_a_table(main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_predicted(
        write_run(tmp_path / "run", preset("parts")), {"lchp_i": [True] * 9 + [False], "lchp_r": [True] * 10}
    )
    assert main(["--compare", str(run), f"{run}:lchp_i"]) == 0
    out = capsys.readouterr().out
    assert "+10.00" in out
    assert "McNemar" in out


def test_watch_ends_when_the_sweeps_have_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = preset("parts")
    configs = [override(base, {"initialization.delta": d}) for d in (0.3, 0.5)]
    store(tmp_path, configs[0])
    states = ["done", "running"]
    path = write_sweep(tmp_path, [({}, c, s, None) for c, s in zip(configs, states, strict=True)], base, "mine")
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        """The second cell finishes at the third look."""
        slept.append(seconds)
        if len(slept) == 2:
            store(tmp_path, configs[1])
            record = json.loads(path.read_text())
            record["cells"][1]["state"] = "done"
            path.write_text(json.dumps(record))

    wanted = TableOptions(Source((tmp_path,)), tmp_path / "tables", numbers=(3,), watch=30)
    assert make_tables(wanted, sleep=sleep) == 0
    out, err = capsys.readouterr()
    assert slept == [30, 30]
    assert out.count("Table 3.") == 2  # printed when something came, not at every look
    assert (
        err.count("waiting: mine: 1 of 2 cells to come, but nothing runs it here (start it again with --resume)") == 2
    )
    assert err.endswith("the sweeps are finished\n")
    assert "65.00 (1)" in (tmp_path / "tables" / "table_3.md").read_text()


def test_watch_ends_with_ctrl_c(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(tmp_path, preset("parts"))

    def sleep(_: float) -> None:
        raise KeyboardInterrupt

    wanted = TableOptions(Source((tmp_path,)), tmp_path / "tables", numbers=(3,), watch=30)
    assert guarded(lambda: make_tables(wanted, sleep=sleep)) == 130
    err = capsys.readouterr().err
    assert "waiting: for a sweep to start" in err
    assert err.endswith("\nstopped\n")
    assert (tmp_path / "tables" / "table_3.md").exists()


def test_a_sweep_can_print_its_tables(tmp_path: Path) -> None:
    text = render_tables(write_grid(tmp_path), PRESETS["parts"], (3, 4))
    assert "Table 3." in text
    assert "Table 4." in text


def test_a_sweep_prints_no_section_without_a_figure_of_its_own(tmp_path: Path) -> None:
    """Table 1 has the paper's rows of CUB and ImageNet, Table 2 those of Tiny-ImageNet; the runs are on `parts`."""
    text = render_tables(write_grid(tmp_path), PRESETS["parts"], (1, 2))
    assert "parts (embedded, synthetic), full_image\n" in text
    assert "CUB-200-2011, center_crop\n" not in text
    assert "Table 2." not in text
    (tmp_path / "empty").mkdir()
    assert "Table 2." in render_tables(tmp_path / "empty", PRESETS["parts"], (2,))


def test_the_script_runs_by_its_path_without_torch_and_ray(tmp_path: Path) -> None:
    code = (
        "import runpy, sys\n"
        "try:\n    runpy.run_path(sys.argv[1], run_name='__main__')\n"
        "except SystemExit as end:\n    assert end.code == 2, end.code\n"
        "assert not {'torch', 'ray', 'scipy', 'matplotlib'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(SCRIPT)], check=True, cwd=tmp_path, capture_output=True)
