"""Settings ranked without boxes."""

import json
from pathlib import Path

import pytest
from report_records import analysis_script, store

from lchp.config import override, preset
from lchp.errors import RunError
from lchp.report.read import collect
from lchp.report.unboxed import rank, rank_text


def scored(storage: Path, score: float, known: float, **values: object) -> None:
    run = store(storage, override(preset("parts"), {k.replace("__", "."): v for k, v in values.items()}))
    summary = json.loads((run / "summary.json").read_text())
    parts = {"crop": 80.0, "masked": 80.0 - 30.0 - score, "area": 30.0, "score": score}
    summary["unboxed"] = {"center_crop": parts, "full_image": parts}
    summary["results"]["lchp_r"]["center_crop"]["gt_known"] = known
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "DONE").unlink()
    run.rename(storage / run.name)  # a run folder of its own, without checksums


def test_the_best_score_comes_first_as_a_mean_over_seeds(tmp_path: Path) -> None:
    for seed, more in ((0, 0.0), (1, 4.0)):
        scored(tmp_path, 10.0 + more, 60.0, initialization__delta=0.3, seed=seed)
        scored(tmp_path, 20.0 + more, 70.0, initialization__delta=0.5, seed=seed)
        scored(tmp_path, -5.0 + more, 40.0, initialization__delta=0.7, seed=seed)
    found = rank(collect([tmp_path]))
    assert [s.values["initialization.delta"] for s in found] == [0.5, 0.3, 0.7]
    assert [s.parts["score"] for s in found] == pytest.approx([22, 12, -3])
    assert [s.seeds for s in found] == [2, 2, 2]
    text = rank_text(found)
    assert "over these settings: 1.00" in text
    assert text.index("0.5") < text.index("0.3") < text.index("0.7")
    assert [s.values for s in rank(collect([tmp_path]), {"initialization.delta": 0.3})] == [{}]


def test_records_without_the_score_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(tmp_path, preset("parts").__class__())
    store(tmp_path, preset("parts"))
    with pytest.raises(RunError, match="no run to rank"):
        rank(collect([tmp_path]))
    assert analysis_script("rank_unboxed").main(["--storage", str(tmp_path)]) == 2
    scored(tmp_path, 10.0, 60.0, initialization__delta=0.3)
    assert len(rank(collect([tmp_path]))) == 1
    capsys.readouterr()
    assert analysis_script("rank_unboxed").main(["--storage", str(tmp_path)]) == 0
    assert "60.00" in capsys.readouterr().out


def test_one_setting_on_other_images_is_another_and_a_copy_counts_once(tmp_path: Path) -> None:
    for name, score in (("one", 10.0), ("copy", 10.0), ("other", 30.0)):
        scored(tmp_path / name, score, 60.0)
        (run,) = (folder for folder in (tmp_path / name).iterdir() if folder.name != "store")
        run.rename(tmp_path / f"run_{name}")
    environment = json.loads((tmp_path / "run_other" / "environment.json").read_text())
    changed = environment | {"data_fingerprint": "other"}
    (tmp_path / "run_other" / "environment.json").write_text(json.dumps(changed))
    found = rank(collect([tmp_path]))
    assert [(s.parts["score"], s.seeds) for s in found] == [(30.0, 1), (10.0, 1)]
    assert "other" in rank_text(found)


def test_that_runs_are_of_compared_methods_is_said(tmp_path: Path) -> None:
    scored(tmp_path, 10.0, 60.0, method__name="cam")
    with pytest.raises(RunError, match=r"of compared methods"):
        rank(collect([tmp_path]))
