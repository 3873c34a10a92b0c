"""`lchp train` from end to end, and what a user's mistakes are answered with: one line, status 2."""

import contextlib
import errno
import io
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from squares import small_values, write_images

from lchp.cli import main
from lchp.cli.train import method_line
from lchp.config import override, preset
from lchp.console import guarded
from lchp.evaluation.metrics import RESULTS


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


def flags(root: Path) -> list[str]:
    """The small config as command-line flags."""
    out = ["--preset", "cub"]
    for name, value in {**small_values(root), "initialization.epochs": 1, "refinement.epochs": 1}.items():
        flag = name.replace("_", "-")
        section, _, leaf = flag.rpartition(".")
        if isinstance(value, bool):
            out.append(f"--{section}.{'' if value else 'no-'}{leaf}")
        else:
            out += [f"--{flag}", str(value)]
    return out


@pytest.fixture(scope="module")
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A run folder, and what its training printed on standard output and standard error."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        assert main(["train", *flags(root), "--output", str(run)]) == 0
    return run, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def finished(trained: tuple[Path, str, str]) -> Path:
    return trained[0]


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a wrong command is answered with."""
    capsys.readouterr()
    assert main(list(arguments)) == 2
    err = capsys.readouterr().err
    lines = [line for line in err.replace("\r", "\n").split("\n") if line.strip() and "img/s" not in line]
    assert len(lines) == 1, err
    assert lines[0].startswith("lchp: error: ")
    assert "Traceback" not in err
    return lines[0]


@pytest.mark.parametrize(
    "fault", [RuntimeError("can't start new thread"), BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")]
)
def test_too_few_threads_are_one_line(fault: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> int:
        raise fault

    assert guarded(body) == 2
    assert capsys.readouterr().err == (
        "error: no more threads or processes may be started here; raise the limit (ulimit -u, or the container's)\n"
    )


def test_train_prints_the_table_and_the_run_folder(trained: tuple[Path, str, str]) -> None:
    run, out, err = trained
    for text in ("Pseudo Label", "LCHP-I", "LCHP-R", "GT-Known", "Top-1", "Top-5", "mean IoU", "floor"):
        assert text in out
    for frame in ("center_crop", "full_image"):
        assert frame in out
    assert out.rstrip().endswith(f"run folder: {run}")
    for link in ("classifier", "localizer", "refinement"):
        assert f"{link} epoch 1/1" in out + err
    assert "kept" in out
    assert "Traceback" not in err


def test_evaluate_prints_the_same_table(finished: Path, capsys) -> None:
    capsys.readouterr()
    assert main(["evaluate", "--run", str(finished)]) == 0
    assert "Pseudo Label" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["train", "--nonsense", "--seed", "--help"], [], ["--version"]]
)
def test_help(arguments, capsys) -> None:
    try:
        assert main(arguments) == 0
    except SystemExit as stop:
        assert stop.code in (0, None)  # noqa: PT017
    out = capsys.readouterr().out
    assert "lchp" in out
    if arguments[:1] == ["train"]:
        for flag in (
            "--initialization.delta",
            "--refinement.tau",
            "--model.weights-dir",
            "--resume",
            "--preset",
            "--from",
        ):
            assert flag in out


def test_each_example_of_help_is_a_line(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["figures", "--help"])
    lines = [line.split("#")[0].strip() for line in capsys.readouterr().out.splitlines()]
    assert {"lchp figures", "lchp figures --run RUN --figure panel --image 1234"} <= set(lines)


@pytest.mark.parametrize("command", ["train", "predict"])
def test_a_line_of_help_is_full(command: str, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the source breaks a docstring, its help goes on."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    indents = [len(line) - len(line.lstrip()) for line in lines]
    inside = [pair for pair, two in zip(pairwise(lines), pairwise(indents), strict=True) if two[0] == two[1] > 4]
    assert len(inside) > 10
    assert [line for line, after in inside if len(f"{line} {after.split()[0]}") <= 80] == []


def test_python_dash_m() -> None:
    done = subprocess.run([sys.executable, "-m", "lchp", "--help"], check=True, capture_output=True, text=True)
    assert "train" in done.stdout


@pytest.mark.parametrize("preset", ["cub", "tiny_imagenet", "imagenet", "folder"])
def test_missing_root(preset, tmp_path: Path, capsys) -> None:
    out = str(tmp_path / "run")
    assert "data.root is not set" in mistake(capsys, "train", "--preset", preset, "--output", out)
    line = mistake(capsys, "train", "--preset", preset, "--data.root", "/no/such/place", "--output", out)
    assert "/no/such/place" in line
    assert not (tmp_path / "run").exists()  # a config that cannot start leaves nothing behind


@pytest.mark.parametrize("preset", ["cub", "tiny_imagenet", "imagenet", "folder"])
def test_wrong_layout(preset, tmp_path: Path, capsys) -> None:
    (tmp_path / "data").mkdir()
    arguments = ["train", "--preset", preset, "--data.root", str(tmp_path / "data"), "--output", str(tmp_path / "run")]
    assert str(tmp_path / "data") in mistake(capsys, *arguments)


def test_missing_weights(root: Path, tmp_path: Path, capsys) -> None:
    arguments = [f for f in flags(root) if f != "--model.no-pretrained"]
    arguments[arguments.index("--model.classifier") + 1] = "mobilenet_v2"
    line = mistake(capsys, "train", *arguments, "--model.weights-dir", str(tmp_path), "--output", str(tmp_path / "run"))
    assert f"{tmp_path}/mobilenet_v2.safetensors: no such file" in line
    assert not (tmp_path / "run").exists()


def test_missing_options_are_named_without_their_help(capsys) -> None:
    for arguments, names in {"publish": "--run DIR, --output MODEL", "predict --several": "IMAGE/FOLDER"}.items():
        line = mistake(capsys, *arguments.split())
        program = arguments.split()[0]
        assert line == f"lchp: error: lchp {program} needs {names}; lchp {program} --help lists the options"


def test_unknown_field(capsys) -> None:
    assert "did you mean --initialization.delta?" in mistake(capsys, "train", "--initialization.detla", "0.5")
    assert "did you mean --initialization.delta?" in mistake(capsys, "train", "--detla", "0.5")
    assert "did you mean --initialization.lr or --refinement.lr?" in mistake(capsys, "train", "--lr", "0.5")


def test_unknown_backbone(root: Path, tmp_path: Path, capsys) -> None:
    arguments = flags(root)
    arguments[arguments.index("--model.localizer") + 1] = "resnet5"
    assert "did you mean resnet50?" in mistake(capsys, "train", *arguments, "--output", str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--preset", "cubs"], "did you mean cub?"),
        (["train", "--initialization.delta", "1.5"], "initialization.delta = 1.5: expected in (0, 1)"),
        (["train", "--initialization.delta", "high"], "delta"),
        (["train", "--initialization.attention", "maps"], "attention"),
        (["train", "--data.image-size", "100"], "data.image_size = 100"),
        (["train", "--resume"], "--resume needs --output"),
        (["train", "--stage", "refine"], "--from"),
        (["trian"], "did you mean train?"),
        (["evaluate", "--run", "/no/such/run"], "/no/such/run"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_wrong_values(arguments, said, capsys) -> None:
    assert said in mistake(capsys, *arguments)


def test_checkpoint_of_another_config(finished: Path, root: Path, tmp_path: Path, capsys) -> None:
    arguments = flags(root)
    arguments[arguments.index("--initialization.delta") + 1] = "0.3"
    refine = ["--no-forecast", "--stage", "refine", "--from", str(finished), "--output", str(tmp_path / "run")]
    assert "another config" in mistake(capsys, "train", *arguments, *refine)
    line = mistake(capsys, "train", *arguments, "--resume", "--output", str(finished))
    assert "differs from the config asked for: initialization.delta 0.5 (asked for: 0.3); resume with" in line
    assert "holds a run already" in mistake(capsys, "train", *flags(root), "--output", str(finished))


def test_checkpoint_of_a_run_with_other_classes(finished: Path, tmp_path: Path, capsys) -> None:
    more = write_images(tmp_path / "images", classes=4)
    refine = ["--no-forecast", "--stage", "refine", "--from", str(finished), "--output", str(tmp_path / "run")]
    line = mistake(capsys, "train", *flags(more), *refine)
    assert str(finished) in line
    assert not (tmp_path / "run").exists()


def test_damaged_predictions(finished: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "predictions.parquet").write_bytes((finished / "predictions.parquet").read_bytes()[:300])
    assert "damaged" in mistake(capsys, "evaluate", "--run", str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            "score --dataset birds",
            "--dataset = 'birds': expected one of CUB, ILSVRC, OpenImages; lchp score --help lists",
        ),
        ("predict x --weights_only", "--weights_only: no such option of lchp predict"),
        ("data check parts --threads 2", "--threads: no such option of lchp data check"),
        ("data check parts --workers a", "--workers = 'a': expected a whole number; lchp data check --help"),
        ("tables --table 1 x", "--table = '1 x': expected a whole number; lchp tables --help"),
        ("predict x --run", "--run: lacks a value; expected DIR"),
        ("boxes", "lchp boxes needs IMAGE/FOLDER, --weights FILE, --backbone NAME; lchp boxes --help"),
        ("data download", "lchp data download needs {cub,tiny_imagenet,imagenet}; lchp data download --help"),
        (
            "sweep delta_tau --gpus-per-trial=a",
            "--gpus-per-trial = 'a': expected a number; lchp sweep delta_tau --help",
        ),
        ("sweep delta_tau --track none", "--track = 'none': expected one of mlflow, wandb, tensorboard; for several,"),
    ],
)
def test_an_option_that_cannot_be_read_is_named_with_its_value_and_what_it_takes(
    arguments: str, said: str, capsys
) -> None:
    assert main(arguments.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"lchp: error: {said}")


def test_a_folder_in_place_of_a_data_set_is_understood(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_photos").mkdir()
    assert main(["data", "check", "my_photos"]) == 2
    assert capsys.readouterr().err.endswith("; your own images are checked by lchp data check folder my_photos\n")
    assert main(["data", "check", "no_photos"]) == 2
    assert capsys.readouterr().err.endswith("; lchp data check --help lists the options\n")


def test_output_that_cannot_be_written(root: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    arguments = [*flags(root), "--no-forecast", "--output", str(tmp_path / "file" / "run")]
    assert "cannot be written" in mistake(capsys, "train", *arguments)


def test_results_are_explained_where_the_run_has_them() -> None:
    """A compared method's run may end with stage 1, and a file may hold no box of a test image."""
    psol = {"method.name": "psol", "method.localizer": True, "method.refine": True}
    refined = override(preset("parts"), psol)
    ddt = "Pseudo Label is DDT's box, of the image's own class (where top-1 is right, that is the predicted one)"
    regressed = "the localizer regressed on such boxes"
    assert method_line(refined, ["pseudo_label"]) == f"method: DDT; {ddt}"
    assert method_line(refined, RESULTS) == (
        f"method: PSOL, refined by LCHP; {ddt}, LCHP-I {regressed}, LCHP-R that after LCHP's stage 2"
    )
    given = override(preset("parts"), {"method.name": "boxes", "method.boxes": "mine.csv"})
    assert method_line(given, ["lchp_i"]) == f"method: Boxes of mine.csv; LCHP-I is {regressed}"
    assert method_line(preset("parts"), RESULTS) is None
