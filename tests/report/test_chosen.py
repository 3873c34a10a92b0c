"""A run whose boxes are made as `auto` chose, as by the recipes for a folder: in tables, figures and the page."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from report_records import analysis_script

from lchp import TrainConfig, override, preset
from lchp.cli import main
from lchp.config import show
from lchp.report.dependence import kinds, stage1
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


def test_the_link_that_chooses_is_of_stage_1(storage: Path) -> None:
    """As its time is, on the page."""
    (row, _) = collect([storage]).runs.to_dict("records")
    assert stage1(row) == ("classifier", "choice", "boxes", "localizer")
    assert kinds(row) == (*stage1(row), "refinement")
    assert "choice" not in kinds(row | {f"initialization.{name}": None for name in FIELDS})


def test_a_teacher_s_boxes_are_those_that_were_chosen(storage: Path, tmp_path: Path) -> None:
    summary, file = json.loads((storage / "0" / "summary.json").read_text()), tmp_path / "boxes.csv"
    values = summary["chosen"]["values"]
    command = [str(storage / "0"), "--delta", str(values["delta"]), "--csv", str(file)]
    assert analysis_script("teacher_boxes").main(command) == 0
    head, *rows = [line.split(",") for line in file.read_text().splitlines()]
    for row in (dict(zip(head, row, strict=True)) for row in rows):
        assert [row[name] for name in FIELDS[1:]] == [values[name] for name in FIELDS[1:]]
        known = summary["results"]["pseudo_label"][row["frame"]]["gt_known"]
        assert float(row["merged"]) == pytest.approx(known, abs=0.01)


def test_auto_is_compared_with_the_setting_of_its_preset() -> None:
    """Not with that of another recipe for the same network, which is `auto` itself."""
    fixed = preset("cub50_cpu")
    asked = override(fixed, dict.fromkeys([f"initialization.{name}" for name in FIELDS], "auto"))
    own = analysis_script("auto_regret").own_setting(asked)
    assert [getattr(own, name) for name in FIELDS] == [getattr(fixed.initialization, name) for name in FIELDS]


def test_what_is_learnt_of_a_candidate_s_boxes(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of the candidate that was chosen are the run's Pseudo Label."""
    file, summary = tmp_path / "rows.csv", json.loads((storage / "0" / "summary.json").read_text())
    learn = analysis_script("learnt_boxes").main
    assert learn([str(storage / "0"), "--csv", str(file)]) == 2
    assert "none is left to learn from; --images N" in capsys.readouterr().err
    assert learn([str(storage / "0"), "--images", "12", "--top", "56", "--csv", str(file)]) == 0
    values, rows = summary["chosen"]["values"], pd.read_csv(file).to_dict("records")
    assert all(0 <= row["learnt_gt_known"] <= 100 for row in rows)
    for frame, known in summary["results"]["pseudo_label"].items():
        there = [row for row in rows if row["frame"] == frame and row["candidate"]]
        (chosen,) = [row for row in there if all(str(row[name]) == str(values[name]) for name in FIELDS)]
        assert chosen["gt_known"] == pytest.approx(known["gt_known"], abs=0.01)


@pytest.mark.parametrize("script", ["auto_regret", "learnt_boxes"])
def test_a_look_at_no_run_is_one_line(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert analysis_script(script).main([]) == 2
    assert capsys.readouterr().err == "error: RUN: name the run folders to look at\n"


def test_a_linear_localizer_learns_what_is_linear_and_the_mean_of_what_is_not() -> None:
    ridge = analysis_script("learnt_boxes").Ridge
    draw = torch.Generator().manual_seed(0)
    features, new = torch.randn(60, 8, generator=draw), torch.randn(5, 8, generator=draw)
    box = torch.tensor([0.2, 0.3, 0.6, 0.8])
    slopes = 0.01 * torch.randn(8, 4, generator=draw)
    noise = 0.1 * (torch.randint(0, 2, (60, 4), generator=draw) - 0.5)
    fitted = ridge.fit(features, torch.stack([box + features @ slopes, box + noise]), 1e-4)
    linear, noisy = fitted.boxes(new)
    torch.testing.assert_close(linear, box + new @ slopes, atol=1e-4, rtol=0)
    assert (ridge.fit(features, (box + noise)[None], 1e4).boxes(new) - (box + noise.mean(0))).abs().max() < 1e-4
    assert noisy.shape == (5, 4)


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
    caption = " ".join((tmp_path / "figures" / "iou.txt").read_text().split())
    assert words.removeprefix("auto ") in caption
    assert main(["report", *of, "--out", str(tmp_path / "report.html"), "--no-figures"]) == 0
    assert words in (tmp_path / "report.html").read_text()
