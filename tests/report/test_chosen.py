"""A run whose boxes are made as `auto` chose, as by the recipes for a folder: in tables, figures and the page."""

import json
from pathlib import Path

import pytest

from lchp import TrainConfig, override
from lchp.cli import main
from lchp.config import show
from lchp.report.read import collect
from lchp.training.run import train

FIELDS = ("delta", "attention", "normalization", "second_pass")


@pytest.fixture(scope="module")
def storage(squares_config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chosen")
    masks = {"mask_delta": 0.5, "mask_attention": "features", "mask_normalization": "max"}
    values = {f"initialization.{name}": value for name, value in (dict.fromkeys(FIELDS, "auto") | masks).items()}
    for seed in range(2):
        train(override(squares_config, {**values, "seed": seed}), output=folder / str(seed))
    return folder


def chosen(storage: Path, seed: int) -> str:
    values = json.loads((storage / str(seed) / "summary.json").read_text())["chosen"]["values"]
    assert tuple(values) == FIELDS
    return ", ".join(f"{name} {show(value)}" for name, value in values.items())


def test_its_record_is_read(storage: Path) -> None:
    records = collect([storage])
    assert records.problems == ()
    assert list(records.runs["chosen"]) == [chosen(storage, 0), chosen(storage, 1)]
    assert set(records.runs["initialization.delta"]) == {"auto"}


def test_every_command_takes_it_and_says_what_was_chosen(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of = ["--storage", str(storage)]
    assert main(["tables", *of, "--table", "1", "--out", str(tmp_path / "tables")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    first, second = chosen(storage, 0), chosen(storage, 1)
    words = f"auto chose {first}." if first == second else f"{first} (seed 0)"
    assert words in said
    assert main(["figures", *of, "--figure", "delta", "iou", "--out", str(tmp_path / "figures")]) == 1
    assert "initialization.delta is auto, which is no point of a curve" in capsys.readouterr().err
    assert (tmp_path / "figures" / "iou.png").is_file()
    assert main(["report", *of, "--out", str(tmp_path / "report.html"), "--no-figures"]) == 0
    assert words in (tmp_path / "report.html").read_text()
