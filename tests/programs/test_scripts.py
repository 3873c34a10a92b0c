"""The scripts of sweeps/ and analysis/ are the commands of the package under other names."""

import runpy
from pathlib import Path

import pytest
from drained import three_seconds_an_epoch
from report_records import analysis_script, write_run

import lchp.harness
from lchp.cli import main
from lchp.config import override, preset
from lchp.harness import cells, printout
from lchp.harness.grids import NAMES

ROOT = Path(__file__).parents[2]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("script", "command"), [("make_tables", "tables"), ("make_figures", "figures"), ("report", "report")]
)
def test_a_script_writes_the_files_of_its_command(
    script: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage, made = tmp_path / "results", {}
    for delta in (0.3, 0.5):
        write_run(storage / str(delta), override(preset("parts"), {"initialization.delta": delta}))
    flags = {"tables": ["--table", "3", "4"], "figures": ["--figure", "delta"], "report": ["--no-figures"]}[command]
    for name in ("script", "command"):
        out = tmp_path / name / ("page.html" if command == "report" else "out")
        out.parent.mkdir()
        words = ["--storage", str(storage), "--output", str(out), *flags]
        assert (analysis_script(script).main(words) if name == "script" else main([command, *words])) == 0
        made[name] = contents(tmp_path / name), capsys.readouterr().out.replace(str(out), "OUT")
    assert made["script"] == made["command"]
    assert made["script"][0]


def test_every_sweep_has_a_script() -> None:
    assert {path.stem for path in (ROOT / "sweeps").glob("*.py")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_script_runs_the_sweep_of_its_name(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(printout, "forecast", three_seconds_an_epoch)
    monkeypatch.setattr(cells, "data_fingerprint", lambda _: "0" * 16)  # no need to draw the images
    monkeypatch.setattr(lchp.harness, "exit_program", ends)
    path, flags = ROOT / "sweeps" / f"{name}.py", ["--dry-run", "--storage", str(tmp_path), "--max-concurrent", "1"]
    monkeypatch.setattr("sys.argv", [str(path), *flags])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert main(["sweep", name, *flags]) == 0
    assert capsys.readouterr().out == printed
    assert printed
