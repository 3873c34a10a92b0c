"""Paths that a user names to be written: what is replaced, what is refused, and how a path is read."""

import json
import os
import shutil
import socket
import stat
from pathlib import Path

import pytest

from lchp.cli import main
from lchp.errors import ConfigError
from lchp.files import runs
from lchp.files.targets import as_path, claim, holding, json_of, require_file, require_new_folder
from lchp.report.figures.style import Drawing, save
from lchp.report.tables.grid import Table
from lchp.report.tables.render import FORMATS
from lchp.report.tables.write import write_tables

TABLE = "image_id,x1,y1,x2,y2,label\na,0,0,9,9,0\n"


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a refused command says."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def odd_targets(folder: Path) -> dict[Path, str]:
    """Things that are no file to replace, and what is said of them."""
    (folder / "mine").write_text("mine")
    (folder / "link").symlink_to(folder / "mine")
    (folder / "dangling").symlink_to(folder / "nothing")
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str((folder / "socket").relative_to(Path.cwd())))
    said = {"link": "a link", "dangling": "a link", "pipe": "a pipe", "folder": "a folder", "socket": "a socket"}
    return {folder / name: f"is {kind}; name a file" for name, kind in said.items()} | {
        Path("/dev/null"): "is a device; name a file",
        folder / "mine" / "below": "cannot be written (Not a directory)",
    }


def test_what_is_no_file_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for target, said in odd_targets(tmp_path).items():
        for own in (None, lambda _: True):
            with pytest.raises(ConfigError) as error:
                require_file(target, "output", own, "result")
            assert str(error.value) == f"--output {target}: {said}"


def test_a_file_is_replaced_by_its_own_command_alone(tmp_path: Path) -> None:
    target, own = tmp_path / "a.json", json_of("images", "warnings")
    assert require_file(target, "json", own) == target
    target.touch()
    assert require_file(target, "json", own) == target
    for content in ("mine", "[1]", '{"images": 1}', '{"images"', "[" * 100000):
        target.write_text(content)
        with pytest.raises(ConfigError, match=r"is there already and is no result; name another file, or remove it"):
            require_file(target, "json", own, "result")
    target.write_text('{"images": 1, "warnings": {}, "more": 0}')
    assert require_file(target, "json", own) == target
    (tmp_path / "same.json").hardlink_to(target)
    with pytest.raises(ConfigError, match="is what this command reads"):
        require_file(target, "json", own, "result", [tmp_path / "none", tmp_path / "same.json"])
    target.write_bytes(b"\0\xff one and two")
    assert require_file(target, "json", holding(b"one", b"two")) == target


def test_a_run_folder_keeps_its_files(tmp_path: Path) -> None:
    run, link = tmp_path / "run", tmp_path / "link"
    (run / "checkpoints").mkdir(parents=True)
    (run / runs.CONFIG).write_text("{}")
    link.symlink_to(run)
    for folder in (run, link):
        for name in ("config.json", "summary.json", "checkpoints/refinement.pt", "checkpoints/deep/x", "checkpoints"):
            for check in (lambda t: require_file(t, "output"), require_new_folder):
                with pytest.raises(ConfigError, match=f"belongs to the run folder {run}; name another"):
                    check(folder / name)
        assert require_file(folder / "model.pt", "output") == folder / "model.pt"
        assert require_new_folder(folder / "boxes") == folder / "boxes"


def test_a_new_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    assert require_new_folder(tmp_path / "empty").is_dir()
    for name, said in (("file", "is a file; name a new folder$"), ("link", "is a link"), (".", "not empty")):
        with pytest.raises(ConfigError, match=said):
            require_new_folder(tmp_path / name)


def test_score_spares_what_it_reads(tmp_path: Path, capsys) -> None:
    table = tmp_path / "boxes.csv"
    table.write_text(TABLE)
    command = ["score", "--boxes", table, "--annotations", table, "--json"]
    assert "is what this command reads" in refused(capsys, *command, table)
    assert "is a device" in refused(capsys, *command, "/dev/full")
    assert table.read_text() == TABLE
    for _ in range(2):
        assert main([*map(str, command), str(tmp_path / "s.json")]) == 0
    assert json.loads((tmp_path / "s.json").read_text())["images"] == 1


def test_export_spares_checkpoints_and_strangers_files(squares_run: Path, tmp_path: Path, capsys) -> None:
    run = Path(shutil.copytree(squares_run, tmp_path / "run"))
    before = (run / "checkpoints" / "refinement.pt").read_bytes()
    assert "belongs to the run folder" in refused(
        capsys, "export", "--run", run, "--output", run / "checkpoints" / "refinement.pt"
    )
    (tmp_path / "model.pt").write_bytes(before)
    assert "is no export of lchp" in refused(capsys, "export", "--run", run, "--output", tmp_path / "model.pt")
    assert (tmp_path / "model.pt").read_bytes() == (run / "checkpoints" / "refinement.pt").read_bytes() == before
    for _ in range(2):
        assert main(["export", "--run", str(run), "--output", str(tmp_path / "other.pt")]) == 0


def test_predict_spares_links(squares_run: Path, squares_root: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    said = refused(capsys, "predict", squares_root, "--run", squares_run, "--output", tmp_path / "link")
    assert "link: is a link; name a new folder" in said


def test_tables_and_figures_replace_files_alone(tmp_path: Path) -> None:
    (tmp_path / "tables.tex").symlink_to(tmp_path / "thesis.tex")
    with pytest.raises(ConfigError, match=r"tables\.tex: is a link"):
        write_tables([], tmp_path)
    from matplotlib.figure import Figure

    (tmp_path / "delta.txt").mkdir()
    with pytest.raises(ConfigError, match=r"delta\.txt: is a folder"):
        save(Drawing("delta", "A caption.", Figure()), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["delta.txt", "tables.tex"]


@pytest.mark.parametrize("name", [*(f"table_3.{suffix}" for suffix in FORMATS), "tables.tex"])
def test_tables_replace_tables_of_ours_alone(name: str, tmp_path: Path) -> None:
    made = [Table(3, "A title", "A caption", ("delta",), ("LCHP-R",), (), ("a note",))]
    mine = "table,mine\n### Table 3. mine\n\\documentclass{article}\n<figure>\n"
    (tmp_path / name).write_text(mine)
    with pytest.raises(ConfigError, match="is there already and is no table of lchp; name another file, or remove it"):
        write_tables(made, tmp_path)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {name: mine}
    (tmp_path / name).unlink()
    for _ in range(2):
        write_tables(made, tmp_path)
    assert len([*tmp_path.iterdir()]) == 5


@pytest.mark.parametrize("suffix", ["png", "pdf", "txt"])
def test_figures_replace_figures_of_ours_alone(suffix: str, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    drawing = Drawing("delta", "A caption.", Figure())
    Figure().savefig(tmp_path / "user.png")
    mine = (tmp_path / "user.png").read_bytes() if suffix == "png" else b"%PDF-1.4 mine"
    (tmp_path / f"delta.{suffix}").write_bytes(mine)
    with pytest.raises(ConfigError, match="is there already and is no figure of lchp; name another file, or remove it"):
        save(drawing, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"user.png", f"delta.{suffix}"}
    assert (tmp_path / f"delta.{suffix}").read_bytes() == mine
    (tmp_path / f"delta.{suffix}").unlink()
    for _ in range(2):
        save(drawing, tmp_path)
    assert len([*tmp_path.iterdir()]) == 4


@pytest.mark.parametrize(
    "arguments",
    [
        ("export", "--run", "a", "--output="),
        ("export", "--run", "a", "--output", ""),
        ("evaluate", "--run="),
        ("evaluate", "--run", " "),
        ("predict", "--run", "a", "--output=", "x"),
        ("score", "--json="),
        ("train", "--output="),
        ("train", "--from", ""),
        ("data", "download", "cub", ""),
    ],
    ids=" ".join,
)
def test_an_empty_value_is_not_the_current_folder(arguments: tuple[str, ...], capsys) -> None:
    assert refused(capsys, *arguments).endswith(": is empty")


def test_every_path_knows_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "p.csv").write_text(TABLE)
    assert main(["score", "--boxes=~/p.csv", "--annotations", "~/p.csv", "--json", "~/s.json"]) == 0
    assert (tmp_path / "s.json").is_file()
    assert f"{tmp_path}/none: no such run folder" in refused(capsys, "predict", "~/p.csv", "--run", "~/none")
    assert as_path("~nobody-of-that-name/x") == Path("~nobody-of-that-name/x")
    with pytest.raises(ConfigError, match="a path is empty"):
        as_path("")


def test_claimed_names(tmp_path: Path) -> None:
    names = [("a", ".txt"), ("a", ".txt"), ("a.txt/b", ".txt"), ("a", ".txt"), ("a.txt_/b", ".txt"), ("c/d", ".txt")]
    found = [claim(tmp_path, stem, suffix, ".png").relative_to(tmp_path).as_posix() for stem, suffix in names]
    assert found == ["a.txt", "a.png.txt", "a.txt_/b.txt", "a.png.png.txt", "a.txt_/b.png.txt", "c/d.txt"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_and_folders_have_the_mode_that_the_umask_leaves(
    squares_run: Path, squares_root: Path, tmp_path: Path, mask: int
) -> None:
    before = os.umask(mask)
    try:
        runs.write_json(tmp_path / "a.json", {})
        source, out = str(squares_root / "red" / "0.png"), tmp_path / "out"
        assert main(["predict", source, "--run", str(squares_run), "--output", str(out), "--format", "yolo"]) == 0
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "a.json", out, *out.rglob("*"))}
    assert set(modes) == {"a.json", "out", "labels", "0.txt", "images", "0.png", "classes.txt", "data.yaml"}
    for name, mode in modes.items():
        assert mode == (0o666 if "." in name else 0o777) & ~mask
