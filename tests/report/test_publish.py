"""Records copied to be published: same tables, no paths of the machine, only what follows from predictions."""

import json
import shutil
from pathlib import Path

import pytest
from report_records import analysis_script, seal, store, write_predicted, write_sweep

from lchp.config import PRESETS, TrainConfig, override, preset
from lchp.errors import ConfigError, RunError
from lchp.evaluation.predictions import read_predictions, summarize
from lchp.report.paper import read_paper
from lchp.report.publish import keep
from lchp.report.read import collect
from lchp.report.tables.numbers import table
from lchp.report.tables.render import to_markdown


def finished(storage: Path, config: TrainConfig, right: int) -> Path:
    """A run in the store whose summary follows from its predictions: LCHP-R is right on `right` of 8 images."""
    run = store(storage, config)
    write_predicted(run, {r: [i < right for i in range(8)] for r in ("pseudo_label", "lchp_i", "lchp_r")})
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | summarize(read_predictions(run))))
    environment = json.loads((run / "environment.json").read_text())
    environment["platform"] = "Linux-6.1.2-somebuild-x86_64-with-glibc2.36"
    environment["stage1"] = {
        "checkpoint": "/elsewhere/store/stage1/abc/checkpoints/initialization.pt",
        "identity": "abc",
    }
    (run / "environment.json").write_text(json.dumps(environment))
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "refinement.pt").write_bytes(b"weights")
    seal_without_folders(run)
    return run


def seal_without_folders(run: Path) -> None:
    (run / "checkpoints").rename(run.parent / "aside")
    seal(run)
    (run.parent / "aside").rename(run / "checkpoints")


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """Three deltas of `cub50_cpu` in a sweep, with folders of a machine in its configs, its command and an error."""
    root = tmp_path / "results"
    places = {"data.root": str(tmp_path / "sets" / "birds"), "model.weights_dir": str(tmp_path / "weights")}
    base, cells = override(preset("cub50_cpu"), places), []
    for n, delta in enumerate((0.2, 0.3, 0.4)):
        values = {"initialization.delta": delta}
        config = override(base, values)
        finished(root, config, 3 + n)
        cells.append((values, config, "done", None))
    values = {"initialization.delta": 0.5}
    cells.append((values, override(base, values), "failed", f"no file {tmp_path}/sets/birds/images.txt"))
    cells.append(
        ({"seed": 1}, override(base, {"seed": 1}), "failed", "in /usr/lib/somewhere/module.py: https://a.b/c/d")
    )
    path = write_sweep(
        root,
        cells,
        base,
        command=(f"{tmp_path}/clone/sweeps/delta_tau.py", "--storage", str(root), "--address", "ray://head:1"),
    )
    record = json.loads(path.read_text())
    next(iter(record["jobs"].values())).update(node="a-machine", pid=4711, devices=["0"])
    record["options"] = {"address": "ray://head:1", "max_failures": 2}
    path.write_text(json.dumps(record))
    return root


def test_a_copy_makes_the_same_tables_without_the_machines_paths(storage: Path, tmp_path: Path) -> None:
    out = tmp_path / "records"
    kept = keep([storage], out)
    assert (kept.runs, kept.sweeps, kept.problems) == (3, 1, ())
    files = [path for path in out.rglob("*") if path.is_file()]
    assert kept.size == sum(path.stat().st_size for path in files)
    assert not [path for path in files if path.suffix == ".pt"]
    for path in files:
        if path.suffix in (".json", ".jsonl") or path.name == "DONE":
            assert str(tmp_path) not in path.read_text(), path
            assert "/elsewhere" not in path.read_text(), path
            assert "somebuild" not in path.read_text(), path
            assert "a-machine" not in path.read_text(), path
            assert "/usr/lib" not in path.read_text(), path
    assert "module.py: https://a.b/c/d" in (out / "sweeps" / "all_tables" / "sweep.json").read_text()
    paper = read_paper()
    texts = [to_markdown(table(collect([s]), 3, PRESETS["cub50_cpu"], paper)) for s in (storage, out)]
    birds = str(tmp_path / "sets" / "birds").replace("_", r"\_")
    assert texts[1] == texts[0].replace(birds, "birds").replace("/usr/lib/somewhere/", "")
    for folder in collect([storage]).runs["folder"]:
        copy = out / "store" / "stage2" / Path(folder).name
        assert read_predictions(copy).equals(read_predictions(Path(folder)))


def test_a_run_of_the_chain_stays_in_its_link_s_folder(tmp_path: Path) -> None:
    """With the keys of the links that it began from, without where they lay; what lay elsewhere goes to its link's."""
    config = preset("parts")
    run = finished(tmp_path / "old", config, 5)
    environment = json.loads((run / "environment.json").read_text())
    del environment["stage1"]
    links = {"localizer": "/elsewhere/store/localizer/abc", "refinement": None}
    environment["links"] = {kind: {"key": kind, "run": place} for kind, place in links.items()}
    (run / "environment.json").write_text(json.dumps(environment))
    seal_without_folders(run)
    (tmp_path / "new" / "store" / "refinement").mkdir(parents=True)
    moved = run.rename(tmp_path / "new" / "store" / "refinement" / run.name)
    alone = shutil.copytree(moved, tmp_path / "alone" / "run", ignore=shutil.ignore_patterns("DONE"))
    for name, storage, kept in (("a", tmp_path / "new", moved.name), ("b", alone, "run")):
        out = tmp_path / name
        assert keep([storage], out).problems == ()
        copy = out / "store" / "refinement" / kept
        assert list(collect([out]).runs["folder"]) == [str(copy)]
        places = json.loads((copy / "environment.json").read_text())["links"]
        assert {kind: place["run"] for kind, place in places.items()} == {"localizer": "abc", "refinement": None}


def test_without_predictions_the_tables_are_the_same(storage: Path, tmp_path: Path) -> None:
    whole, small = tmp_path / "whole", tmp_path / "small"
    keep([storage], whole)
    keep([storage], small, predictions=False)
    assert list(whole.rglob("*.parquet"))
    assert not list(small.rglob("*.parquet"))
    records = [collect([folder]) for folder in (whole, small)]
    assert not records[1].problems
    paper = read_paper()
    texts = [to_markdown(table(found, 3, PRESETS["cub50_cpu"], paper)) for found in records]
    assert texts[0] == texts[1]


def test_a_summary_that_does_not_follow_is_left_out(storage: Path, tmp_path: Path) -> None:
    run = sorted((storage / "store" / "stage2").iterdir())[0]
    summary = json.loads((run / "summary.json").read_text())
    summary["results"]["lchp_r"]["center_crop"]["gt_known"] += 1
    (run / "summary.json").write_text(json.dumps(summary))
    seal_without_folders(run)
    kept = keep([storage], tmp_path / "records")
    assert kept.runs == 2
    assert len(kept.problems) == 1
    assert "summary.json does not follow from predictions.parquet" in kept.problems[0]


def test_nothing_is_overwritten_and_nothing_half_written(storage: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is there already and not empty"):
        keep([storage], tmp_path / "there")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="no finished run to keep"):
        keep([tmp_path / "empty"], tmp_path / "records")
    assert not (tmp_path / "records").exists()
    assert not list(tmp_path.glob(".records*"))


def test_one_result_in_two_storages_is_kept_once(storage: Path, tmp_path: Path) -> None:
    keep([storage], tmp_path / "first")
    kept = keep([storage, tmp_path / "first"], tmp_path / "records")
    assert (kept.runs, kept.sweeps) == (3, 2)
    assert {p.name for p in (tmp_path / "records" / "sweeps").iterdir()} == {"all_tables", "all_tables-2"}


def test_the_script_says_what_it_kept(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = analysis_script("keep_records")
    monkeypatch.chdir(tmp_path)
    assert script.main(["--storage", str(storage), "--out", "records"]) == 0
    assert capsys.readouterr().out.startswith("3 runs and 1 sweep in records, 0.")
    assert script.main(["--storage", str(storage), "--out", "records"]) == 2
    assert "records: is there already and not empty" in capsys.readouterr().err


def test_two_runs_of_one_name_are_both_kept(storage: Path, tmp_path: Path) -> None:
    runs = sorted((storage / "store" / "stage2").iterdir())
    for run, other in zip(runs[:2], ("a", "b"), strict=True):
        (tmp_path / other).mkdir()
        run.rename(tmp_path / other / "seed0")
    kept = keep([tmp_path / "a", tmp_path / "b"], tmp_path / "records")
    assert (kept.runs, kept.problems) == (2, ())
    assert len(collect([tmp_path / "records"]).runs) == 2
