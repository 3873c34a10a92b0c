"""The method `boxes`: LCHP's localizer and refinement on pseudo boxes of a file."""

import csv
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from report_records import analysis_script
from small import config, make_folder

from lchp.boxes import iou
from lchp.cli import main
from lchp.cli.train import method_line
from lchp.config import PRESETS, TrainConfig, override, preset
from lchp.data import load
from lchp.deploy.trained import load_run
from lchp.errors import ConfigError, DataError, RunError
from lchp.evaluation.predictions import rows_in, summary_table
from lchp.files.contents import content_hash
from lchp.files.runs import DONE, SUMMARY, Kind, read_environment, read_metrics, read_summary, write_json
from lchp.report.paper import Paper
from lchp.report.read import collect
from lchp.report.tables.cells import FieldTable
from lchp.report.tables.fields import field_table
from lchp.report.tables.methods import recipe_table
from lchp.training.chain import chain_of, config_until, depends_on, kinds_of, label, results_of
from lchp.training.definition import Session
from lchp.training.run import Result, train, train_links

CPU = torch.device("cpu")
WORSE: Any = analysis_script("worse_boxes")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("boxes") / "data")


@pytest.fixture(scope="module")
def given(root: Path) -> Path:
    """boxes.csv's rows of the training images but three, and of half the test images."""
    head, *rows = (root / "boxes.csv").read_text().splitlines()
    train_, test = (sorted(row for row in rows if row.startswith(split)) for split in ("train", "test"))
    (root.parent / "mine.csv").write_text("\n".join([head, *train_[3:], *test[:8]]) + "\n")
    return root.parent / "mine.csv"


def of_file(root: Path, file: Path, **more: Any) -> TrainConfig:
    values = {"method.name": "boxes", "method.boxes": str(file), **{n.replace("__", "."): v for n, v in more.items()}}
    return override(config(root, first=1, second=1), values)


@pytest.fixture(scope="module")
def result(root: Path, given: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return train(of_file(root, given), output=tmp_path_factory.mktemp("storage") / "run")


def test_the_file_s_boxes_teach_in_place_of_stage_1_s(root: Path, given: Path, result: Result) -> None:
    """What the localizer learns from is the file's; an image without a box is left out of L_reg, and counted."""
    found = torch.load(result.run / "checkpoints" / "boxes.pt", weights_only=True)["modules"]["boxes"]["values"][0]
    data = load(of_file(root, given).data).train
    assert data.boxes is not None
    truth = torch.from_numpy(np.stack([boxes[0] for boxes in data.boxes])) / 72
    assert found.isnan().all(1).tolist() == [True] * 3 + [False] * 29
    torch.testing.assert_close(found[3:], truth[3:], rtol=0, atol=1e-6)
    counts = {"images": 32, "boxed": 29, "several": 0, "unknown": 0, "test": 8}
    share = pytest.approx(100 * 29 / 32)
    assert result.summary["given"] == counts | {
        frame: {"gt_known": share, "mean_iou": share} for frame in ("center_crop", "full_image")
    }
    stages = [line["stage"] for line in read_metrics(result.run)]
    assert stages == ["initialization", "boxes", "regression", "refinement"]


def test_the_file_s_boxes_of_test_images_are_a_result(result: Result) -> None:
    """Of those that it holds; the others count as missed."""
    rows = rows_in(result.predictions(), "full_image")
    ious = rows["pseudo_label_iou"].to_numpy()
    assert np.round(ious, 5).tolist() == [1.0] * 8 + [0.0] * 8
    assert list(result.summary["results"]) == ["pseudo_label", "lchp_i", "lchp_r"]
    assert result.summary["results"]["pseudo_label"]["full_image"]["gt_known"] == 50
    said = summary_table(result.summary)
    assert "the file has boxes of 29 of 32 training images, and of 8 test images" in said
    assert "  its training boxes in full_image: GT-Known 90.62 %, mean IoU 90.62 % (diagnostic" in said
    assert method_line(result.config, result.summary["results"]) == (
        "method: Boxes of mine.csv; Pseudo Label is the file's box, LCHP-I the localizer regressed on such boxes, "
        "LCHP-R that after LCHP's stage 2"
    )


def test_what_is_to_be_known_of_the_file_is_said(
    root: Path, given: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    head, *rows = given.read_text().splitlines()
    rows = [f"{row},0.5" for row in rows if row.startswith("train")]
    file = tmp_path / "b.csv"
    file.write_text("\n".join([f"{head},score", *rows, f"{rows[0][:-3]}0.4", "else.png,1,2,3,4,1"]) + "\n")
    train(of_file(root, file), output=tmp_path / "run", stage="init")
    said = [r.getMessage().removeprefix(f"{file}: ") for r in caplog.records if r.getMessage().startswith(str(file))]
    assert said == [
        "boxes of 29 of 32 training images; those without one (first train/class_0/000.png) add nothing to L_reg",
        "several boxes in 1 image; that with the highest score counts",
        f"passed over 1 row, first {file}:32: image 'else.png' is not in the data set",
        "no box of a test image, so there is no result Pseudo Label",
    ]
    summary = read_summary(tmp_path / "run")
    assert list(summary["results"]) == ["lchp_i"]
    assert "of no test image" in summary_table({**summary})


def test_faulty_rows_stop_a_training_by_line_or_are_left_out(root: Path, given: Path, tmp_path: Path) -> None:
    head, *rows = given.read_text().splitlines()
    bad = tmp_path / "bad.csv"
    bad.write_text("\n".join([head, "train/class_0/010.png,1,nan,3,4", "train/class_0/020.png,1,2,99,4", *rows]) + "\n")
    assert main(["train", *_flags(root, bad), "--output", str(tmp_path / "run")]) == 2
    with pytest.raises(DataError) as refused:
        train(of_file(root, bad), output=tmp_path / "run")
    assert str(refused.value).splitlines() == [
        f"2 problems in {bad} (--data.skip-bad leaves faulty rows out):",
        f"  {bad}:2: image train/class_0/010.png: box 1 nan 3 4 is not finite",
        f"  {bad}:3: image train/class_0/020.png: box 1 2 99 4 (x1 y1 x2 y2) lies outside of the image of 72 x 72",
    ]
    assert not (tmp_path / "run").exists()
    bad.write_text(f"{head}\nelse.png,1,2,3,4\n")
    with pytest.raises(
        DataError, match=r"bad.csv: no box of any of the 32 training images \(such as train/class_0/000"
    ):
        train(of_file(root, bad), output=tmp_path / "run")


def _flags(root: Path, file: Path) -> list[str]:
    values = {"data.name": "folder", "data.root": root, "data.cache": "off", "method.name": "boxes"}
    values |= {"method.boxes": file, "device": "cpu"}
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def test_the_content_of_the_file_is_in_the_keys_and_its_place_is_not(root: Path, given: Path, tmp_path: Path) -> None:
    def keys(file: Path) -> dict[str, str]:
        return {link.kind: link.key for link in chain_of(of_file(root, file), "d")}

    copy, other = tmp_path / "copy.csv", tmp_path / "other.csv"
    copy.write_bytes(given.read_bytes())
    other.write_text(given.read_text().replace("\n", "\r\n"))
    assert keys(copy) == keys(given)
    differing = {kind for kind, key in keys(other).items() if key != keys(given)[kind]}
    assert differing == {"boxes", "localizer", "refinement"}
    before = keys(copy)
    copy.write_text(copy.read_text() + "else.png,1,2,3,4\n")  # within a process, too
    assert keys(copy)["boxes"] != before["boxes"]
    cam = chain_of(override(config(root, first=1, second=1), {"method.name": "cam"}), "d")
    assert cam["classifier"].key == before["classifier"], "its classifier is that of the compared methods"
    chain = chain_of(of_file(root, given), "d")
    assert config_until(chain, "classifier").method.boxes is None
    for kind in chain.links:
        assert chain.until(kind.kind).last.key == kind.key


def test_what_a_config_says_of_its_links() -> None:
    found = override(preset("parts"), {"method.name": "boxes", "method.boxes": "gone/mine.json"})
    assert kinds_of(found) == ("classifier", "boxes", "localizer", "refinement")
    assert results_of(found) == ("lchp_i", "lchp_r")
    assert label(found) == "Boxes of mine.json"
    with pytest.raises(ConfigError, match=r"^method.boxes = 'gone/mine.json': cannot be read \(No such file"):
        chain_of(found, "d")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"method.name": "boxes"}, "method.boxes = None: expected a file of pseudo boxes"),
        ({"method.boxes": "b.csv"}, "method.boxes = 'b.csv': expected None, since the method 'lchp' makes its boxes"),
        ({"method.name": "cam", "method.boxes": "b.csv"}, "method.boxes = 'b.csv': expected None"),
        (
            {"method.name": "boxes", "method.boxes": "b.csv", "method.localizer": True},
            "method.localizer = True: expected False, since method.name = 'boxes' always has one",
        ),
    ],
)
def test_fields_that_contradict_each_other_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        kinds_of(override(preset("parts"), values))
    assert str(refused.value).startswith(said)


def test_such_a_run_predicts_without_the_file(result: Result, given: Path) -> None:
    moved = given.rename(given.with_suffix(".away"))
    try:
        assert load_run(result.run, CPU).result == "lchp_r"
        with pytest.raises(RunError, match="Boxes of a file: only the run's own images have some"):
            load_run(result.run, CPU, localizer=False)
    finally:
        moved.rename(given)


def test_the_tables_show_the_boxes_beside_what_was_learnt_from_them(result: Result, given: Path) -> None:
    recipe = PRESETS["parts"]
    recipe = type(recipe)(**{**vars(recipe), "config": override(recipe.config, {"data.name": "folder"})})
    table = recipe_table(collect([result.run.parent]), 1, recipe, Paper({}))
    rows = {row.labels: [cell.ours for cell in row.cells] for row in table.sections[1].rows}
    known = {name: row["full_image"]["gt_known"] for name, row in result.summary["results"].items()}
    assert rows["Boxes of mine.csv", "-"][2] == f"{known['pseudo_label']:.2f} (1)"
    assert rows["Boxes of mine.csv, LCHP-R", "tiny_coarse, classifier tiny"][2].endswith("(1)")
    assert ("Boxes of mine.csv, LCHP-I", "tiny_coarse, classifier tiny") in rows
    assert read_environment(result.run).get("files") == {"method.boxes": content_hash(given)}
    assert any("the file has boxes of 29 of 32 training images: GT-Known 90.62" in note for note in table.notes)
    own = field_table(collect([result.run.parent]), FieldTable(("method.boxes",)))
    assert own.columns == ("Pseudo Label", "LCHP-I", "LCHP-R")
    assert own.sections[1].rows[0].cells[0].ours.startswith(f"{known['pseudo_label']:.2f} (1)")
    fields = depends_on(result.config, "pseudo_label")
    assert "model.classifier" in fields
    assert not {"model.localizer", "refinement.tau"} & fields


def test_its_links_are_trained_apart_and_share_the_classifier(root: Path, given: Path, tmp_path: Path) -> None:
    """As jobs of a sweep: the link of the file's boxes has no result of its own, and records of it are no runs."""
    config_ = of_file(root, given)
    store = tmp_path / "store"
    parts: dict[Kind, Path] = {}
    for kind in ("classifier", "boxes", "localizer"):
        folder = store / kind / "key"
        train_links(config_, folder, Session(config_.seed, show_progress=False), last=kind, found=parts)
        parts[kind] = folder
    assert [(folder / SUMMARY).exists() for folder in parts.values()] == [False, False, True]
    whole = train(config_, output=tmp_path / "whole", stage="init")
    assert read_summary(parts["localizer"])["results"] == whole.summary["results"]
    for folder in parts.values():
        files = [path for path in folder.iterdir() if path.is_file()]
        write_json(
            folder / DONE,
            {"key": "key", "files": {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}},
        )
    records = collect([tmp_path])
    assert [p for p in records.problems if "boxes" in p] == []


# --- worse boxes of a known kind


def test_worse_boxes_are_so_in_the_known_way() -> None:
    sizes = np.tile([200, 100], (500, 1))
    boxes = np.tile([80.0, 30, 120, 70], (500, 1))
    shifted = WORSE.worse(boxes, sizes, "shifted", 0.25, 0)
    np.testing.assert_allclose(np.hypot(*(shifted - boxes)[:, :2].T), 10)
    np.testing.assert_allclose(shifted[:, 2:] - shifted[:, :2], 40)
    assert WORSE.worse(boxes, sizes, "head", 0.45, 0)[7].tolist() == [80, 30, 120, 48]
    jittered = WORSE.worse(boxes, sizes, "jittered", 0.1, 0) - boxes
    assert jittered.std(0) == pytest.approx([4] * 4, rel=0.1)
    small = WORSE.worse(np.array([[0.0, 0, 2, 2]] * 500), np.tile([3, 3], (500, 1)), "jittered", 1.0, 0)
    assert (small >= 0).all()
    assert (small <= 3).all()
    assert (small[:, 2:] - small[:, :2] >= 1 - 1e-9).all()


def test_the_script_writes_training_boxes_alone_and_says_whose(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "oracle.csv"
    where = ["--data.name", "folder", "--data.root", str(root)]
    assert WORSE.main(["--kind", "head", "--output", str(out), *where]) == 0
    with out.open() as file:
        rows = list(csv.DictReader(file))
    data = load(config(root).data).train
    assert [row["image_id"] for row in rows] == list(data.image_ids)
    assert {row["oracle"] for row in rows} == {"head"}
    assert data.boxes is not None
    found = np.array([[float(row[c]) for c in ("x1", "y1", "x2", "y2")] for row in rows])
    assert iou(found, np.stack([b[0] for b in data.boxes])) == pytest.approx([0.45] * 32, abs=0.01)
    assert "32 training boxes of folder, head by 0.45 (oracle): mean IoU 45.0" in capsys.readouterr().out
    assert WORSE.main(["--kind", "jittered", "--output", str(out), *where]) == 0, "its own file is replaced"
    (tmp_path / "mine.csv").write_text("image_id,x1\n")
    assert WORSE.main(["--output", str(tmp_path / "mine.csv"), *where]) == 2
    assert (tmp_path / "mine.csv").read_text() == "image_id,x1\n"
