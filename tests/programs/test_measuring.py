"""The scripts of analysis/ that run networks: what they say follows from runs, and the benchmark's two sides agree."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from report_records import PAPER, analysis_script
from squares import small_config, write_images

from lchp.config import RefinementConfig
from lchp.method.views import sample_strong
from lchp.training.run import train


def test_teacher_boxes_are_the_pseudo_labels_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small_config(write_images(tmp_path / "images"))
    run = train(config, output=tmp_path / "run", stage="init").run
    script = analysis_script("teacher_boxes")
    delta, file = config.initialization.delta, tmp_path / "boxes.csv"
    assert script.main([str(run), "--delta", str(delta), "0.95", "--csv", str(file)]) == 0
    lines = [
        dict(zip(h, r, strict=True)) for h, *rest in [[x.split(",") for x in file.read_text().split()]] for r in rest
    ]
    known = json.loads((run / "summary.json").read_text())["results"]["pseudo_label"]
    for line in (x for x in lines if float(x["delta"]) == delta):
        assert float(line["merged"]) == pytest.approx(known[line["frame"]]["gt_known"], abs=0.01)
        assert float(line["gain"]) == pytest.approx(float(line["merged"]) - float(line["one_pass"]), abs=0.02)
    assert len(lines) == 4
    assert script.main([str(run), "--delta", "1.5"]) == 2
    assert "initialization.delta = 1.5" in capsys.readouterr().err


def test_several_objects_and_one_box_are_scored_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On images with one object, the one box's recall and precision are GT-Known; objects count once each."""
    root = write_images(tmp_path / "images")
    run = train(small_config(root, {"method.name": "cam"}), output=tmp_path / "run").run
    script, file = analysis_script("several"), tmp_path / "rows.csv"
    command = [str(run), "--least-confidence", "0", "1", "--least-area", "0", "1", "--csv", str(file)]
    assert script.main(command) == 0
    assert capsys.readouterr().out.startswith("9 images, 9 objects, 1 objects per image\n")
    head, *rest = [line.split(",") for line in file.read_text().splitlines()]
    one, nothing, several, _, whole, _ = (dict(zip(head, line, strict=True)) for line in rest)
    known = json.loads((run / "summary.json").read_text())["results"]["pseudo_label"]["full_image"]["gt_known"]
    assert float(one["precision"]) == float(one["recall"]) == pytest.approx(known, abs=0.01)
    assert (float(one["boxes_per_image"]), float(one["empty"])) == (1, 0)
    assert (nothing["precision"], float(nothing["recall"]), float(nothing["empty"])) == ("", 0, 100)
    assert float(several["boxes_per_image"]) > 0
    assert float(whole["boxes_per_image"]) <= 1
    assert script.main([str(run), "--least-confidence", "a"]) == 2
    matched = script.matched
    first, second, far = [0, 0, 10, 10], [20, 0, 30, 10], [50, 50, 60, 60]
    assert matched(np.array([first, far]), np.array([first, second])) == 1
    assert matched(np.array([first, first]), np.array([first, second])) == 1  # an object counts once
    assert matched(np.array([first]), np.array([first, first])) == 1  # and so does a box
    assert matched(np.array([[0, 0, 10, 8], first]), np.array([first, [0, 0, 10, 8]])) == 2
    assert matched(np.zeros((0, 4)), np.array([first])) == 0


def test_the_baseline_computes_what_lchp_computes() -> None:
    baseline = analysis_script("baseline")
    strong = sample_strong(40, RefinementConfig(), torch.Generator().manual_seed(0))
    boxes = torch.rand(40, 2, 2, generator=torch.Generator().manual_seed(1)).sort(1).values.flatten(1)
    plain = [baseline.strong_box(box, strong, i) for i, box in enumerate(boxes.tolist())]
    torch.testing.assert_close(strong.axis_map().boxes(boxes), torch.tensor(plain), atol=1e-4, rtol=0)
    assert baseline.attention_box(torch.zeros(4, 4).numpy(), 16, 0.5) is None


def test_the_benchmark_measures_both_sides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(PAPER.parent)  # it imports the baseline beside it, as Python lets a script do
    script = analysis_script("benchmark")
    file = tmp_path / "out.json"
    small = [
        "--size",
        "64",
        "--backbone",
        "tiny",
        "--classes",
        "5",
        "--batch-size",
        "4",
        "--images",
        "6",
        "--repeats",
        "1",
    ]
    assert script.main([*small, "--precision", "fp32", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert set(found["ratios"]) == {"boxes", "strong_augmentation", "data", "stage1_step", "stage2_step"}
    assert all(ratio > 0 for ratio in found["ratios"].values())
    assert set(found["network_share"]) == {"stage1", "stage2"}
    for stage, share in found["network_share"].items():
        pieces = found["parts"][stage]
        assert share == pytest.approx(pieces["the networks' passes alone"] / pieces["step"])  # of one measurement
        assert found["images_per_second"][stage] == pytest.approx(4 / found["seconds"][f"{stage}_step"][0])
    text = capsys.readouterr().out
    assert "boxes of attention agree" in text
    assert "the networks' own passes are" in text
    assert script.main([*small, "--repeats", "0"]) == 2
