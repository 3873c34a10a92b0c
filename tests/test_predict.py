"""lchp predict: what it says, in every format; broken images, interruptions and odd run folders."""

import csv
import itertools
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lchp import TrainConfig, override, runs
from lchp.backbones import _move_strides, backbone, build_trunk
from lchp.cli import main
from lchp.config import MEANING_BEFORE
from lchp.errors import ConfigError, DataError, LchpError, RunError
from lchp.formats import Prediction, open_writer
from lchp.predict import TrainedRun, find_images, load_run, predict, predict_to
from lchp.records import read_predictions, write_predictions
from lchp.train import train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(squares_run: Path) -> TrainedRun:
    return load_run(squares_run, CPU)


@pytest.fixture
def run_copy(squares_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(squares_run, tmp_path / "run"))


def set_epochs(checkpoint: Path, epochs: int) -> None:
    state = torch.load(checkpoint, weights_only=True)
    torch.save(state | {"epoch": epochs}, checkpoint)


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("frame", ["full_image", "center_crop"])
def test_predictions_equal_those_of_the_run(trained: TrainedRun, squares_run: Path, squares_root: Path, frame) -> None:
    rows = {r["image_id"]: r for r in read_predictions(squares_run).to_pylist() if r["frame"] == frame}
    found = {p.image: p for p, _ in predict(trained, find_images(squares_root), frame=frame, batch_size=5)}
    assert len(found) == 24
    assert trained.result == "lchp_r"
    for image_id, row in rows.items():
        p = found[image_id]
        box = np.array(row["lchp_r_box"])
        if frame == "center_crop":
            box = (4 + 32 * box) / 40  # a crop of 32 px in the middle of 40
        np.testing.assert_allclose(p.box, box * [64, 48, 64, 48], atol=1e-3)
        assert (p.width, p.height) == (64, 48)
        assert (p.class_id, p.class_name) == (row["top5"][0], trained.class_names[row["top5"][0]])
        assert p.score == pytest.approx(row["top5_score"][0], abs=1e-5)
        assert p.confidence == pytest.approx(row["confidence"], abs=1e-5)


def test_batch_size_changes_nothing(trained: TrainedRun, squares_root: Path) -> None:
    one, many = ([p for p, _ in predict(trained, find_images(squares_root), batch_size=n)] for n in (1, 32))
    assert [p.image for p in one] == [p.image for p in many]
    np.testing.assert_allclose([p.box for p in one], [p.box for p in many], atol=1e-3)


def test_images_are_read_only_as_they_are_needed(trained: TrainedRun, squares_root: Path) -> None:
    taken = 0

    def endless() -> Iterator[tuple[str, Path]]:
        nonlocal taken
        for taken in itertools.count(1):  # noqa: B007
            yield "x.png", squares_root / "red" / "0.png"

    found = predict(trained, endless(), batch_size=4)
    list(itertools.islice(found, 6))
    assert taken <= 4 * 4 + 1


def test_stage_1_serves_until_stage_2_is_complete(run_copy: Path) -> None:
    refinement = run_copy / "checkpoints" / "refinement.pt"
    set_epochs(refinement, 0)
    assert load_run(run_copy, CPU).result == "lchp_i"
    refinement.unlink()
    trained = load_run(run_copy, CPU)
    state = torch.load(run_copy / "checkpoints" / "initialization.pt", weights_only=True)["modules"]["localizer"]
    for name, value in trained.localizer.state_dict().items():
        assert torch.equal(value, state[name])


def test_networks_come_from_the_checkpoint_alone(run_copy: Path) -> None:
    values = runs.read_json(run_copy / runs.CONFIG)
    values["model"] |= {"pretrained": True, "weights_dir": str(run_copy / "gone")}
    runs.write_json(run_copy / runs.CONFIG, values)
    assert load_run(run_copy, CPU).result == "lchp_r"


def test_a_run_folder_of_an_older_version_serves(run_copy: Path, squares_root: Path, tmp_path: Path, capsys) -> None:
    """Its config lacks the fields that came later, its predictions the scores, its summary what is made of them."""
    values = runs.read_json(run_copy / runs.CONFIG)
    for name in MEANING_BEFORE:
        section, _, leaf = name.rpartition(".")
        del (values[section] if section else values)[leaf]
    runs.write_json(run_copy / runs.CONFIG, values)
    table = read_predictions(run_copy).drop_columns(["crop_score", "masked_score"])
    write_predictions(run_copy, table)
    summary = {k: v for k, v in runs.read_json(run_copy / runs.SUMMARY).items() if k != "unboxed"}
    runs.write_json(run_copy / runs.SUMMARY, summary)
    assert main(["evaluate", "--run", str(run_copy)]) == 0
    assert "summary.json says the same" in capsys.readouterr().out
    assert main(["predict", str(squares_root), "--run", str(run_copy), "--output", str(tmp_path / "boxes")]) == 0
    assert len(lines(tmp_path / "boxes" / "predictions.jsonl")) == 24
    assert load_run(run_copy, CPU).config.refinement.bn_statistics == "strong"
    del values["refinement"]["tau"]
    runs.write_json(run_copy / runs.CONFIG, values)
    with pytest.raises(
        RunError, match=r"config\.json: config lacks refinement\.tau; it was written by another version"
    ):
        load_run(run_copy, CPU)


def test_a_run_of_stage_2_alone_finds_its_stage_1(squares_config: TrainConfig, run_copy: Path, tmp_path: Path) -> None:
    (run_copy / "checkpoints" / "refinement.pt").unlink()
    second = tmp_path / "second"
    train(squares_config, output=second, stage="refine", source=run_copy)
    assert load_run(second, CPU).result == "lchp_r"
    first = run_copy / "checkpoints" / "initialization.pt"
    state = torch.load(first, weights_only=True)
    torch.save(state | {"identity": "another"}, first)
    with pytest.raises(RunError, match="another config"):
        load_run(second, CPU)
    first.unlink()
    with pytest.raises(RunError, match="no such checkpoint"):
        load_run(second, CPU)


def test_a_moved_storage_keeps_its_runs_whole(squares_config: TrainConfig, run_copy: Path, tmp_path: Path) -> None:
    """store/stage2/KEY finds store/stage1/KEY beside it, not only where the sweep once ran."""
    first, second = tmp_path / "old" / "stage1" / "k1", tmp_path / "old" / "stage2" / "k2"
    shutil.copytree(run_copy, first)
    (first / "checkpoints" / "refinement.pt").unlink()
    train(squares_config, output=second, stage="refine", source=first)
    (tmp_path / "old").rename(tmp_path / "new")
    assert load_run(tmp_path / "new" / "stage2" / "k2", CPU).result == "lchp_r"
    shutil.rmtree(tmp_path / "new" / "stage1")
    with pytest.raises(RunError, match="no such checkpoint"):
        load_run(tmp_path / "new" / "stage2" / "k2", CPU)


def test_run_folders_that_cannot_serve(run_copy: Path, tmp_path: Path) -> None:
    def refused(match: str) -> None:
        with pytest.raises(RunError, match=match) as error:
            load_run(run_copy, CPU)
        assert "\n" not in str(error.value)

    with pytest.raises(RunError, match="no such run folder"):
        load_run(tmp_path / "nowhere", CPU)
    environment = runs.read_json(run_copy / runs.ENVIRONMENT)
    runs.write_json(run_copy / runs.ENVIRONMENT, environment | {"class_names": ["a", "b"]})
    refused("does not fit the classifier")
    runs.write_json(run_copy / runs.ENVIRONMENT, {k: v for k, v in environment.items() if k != "class_names"})
    refused("lacks class_names")
    runs.write_json(run_copy / runs.ENVIRONMENT, environment)
    first = run_copy / "checkpoints" / "initialization.pt"
    set_epochs(first, 0)
    refused("stopped after 0 of 1 epochs")
    first.write_bytes(first.read_bytes()[:1000])
    refused("damaged")
    first.unlink()
    refused("no such checkpoint")


def test_a_stopped_run_knows_its_classes(squares_config: TrainConfig, tmp_path: Path) -> None:
    def stop(_metrics: dict) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(squares_config, stop, output=tmp_path / "run")
    trained = load_run(tmp_path / "run", CPU)
    assert (trained.result, trained.class_names) == ("lchp_i", ("blue", "green", "red"))


def test_strides_that_a_weight_file_moved_come_back_with_the_checkpoint() -> None:
    torch.manual_seed(0)
    moved = build_trunk("resnet50", "classifier", pretrained=False, weights_dir=None).eval()
    plain = build_trunk("resnet50", "classifier", pretrained=False, weights_dir=None).eval()
    network = backbone("resnet50").build()
    _move_strides(network, "a weight file")
    for layer, place in (("layer2", "1.5"), ("layer3", "1.6")):
        block, source = moved.get_submodule(f"{place}.0"), network.get_submodule(f"{layer}.0")
        for conv in ("conv1", "conv2"):
            block.get_submodule(conv).stride = source.get_submodule(conv).stride  # pyright: ignore
    plain.load_state_dict(moved.state_dict())
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(plain(x), moved(x))


def test_json_lines_and_pictures(trained: TrainedRun, squares_root: Path, tmp_path: Path) -> None:
    summary = predict_to(trained, squares_root, tmp_path / "out", pictures=True, batch_size=7)
    assert (summary.images, summary.broken, summary.left_out) == (24, 0, 0)
    rows = lines(tmp_path / "out" / "predictions.jsonl")
    assert [r["image"] for r in rows][:2] == ["blue/0.png", "blue/1.png"]
    keys = {"image", "width", "height", "class_id", "class_name", "score", "box", "confidence"}
    assert set(rows[0]) == keys
    pictures = tmp_path / "out" / "pictures"
    assert len(list(pictures.rglob("*.jpg"))) == 24
    x1, _, x2, y2 = rows[0]["box"]
    drawn = np.asarray(Image.open(pictures / "blue" / "0.png.jpg")).astype(int)
    assert drawn.shape == (48, 64, 3)
    bottom = drawn[round(y2) - 1, round((x1 + x2) / 2)]
    assert bottom[0] > 150
    assert bottom[1] > 150
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_csv(trained: TrainedRun, squares_root: Path, tmp_path: Path) -> None:
    predict_to(trained, squares_root, tmp_path / "out", format="csv")
    predict_to(trained, squares_root, tmp_path / "lines")
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, expected in zip(rows, lines(tmp_path / "lines" / "predictions.jsonl"), strict=True):
        assert row["image"] == expected["image"]
        assert row["class_name"] == expected["class_name"]
        assert [float(row[k]) for k in ("x1", "y1", "x2", "y2")] == expected["box"]
        assert float(row["confidence"]) == expected["confidence"]


def test_coco(trained: TrainedRun, squares_root: Path, tmp_path: Path) -> None:
    predict_to(trained, squares_root, tmp_path / "out", format="coco")
    coco = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert [c["name"] for c in coco["categories"]] == ["blue", "green", "red"]
    assert len(coco["images"]) == len(coco["annotations"]) == 24
    found = {p.image: p for p, _ in predict(trained, find_images(squares_root))}
    names = {c["id"]: c["name"] for c in coco["categories"]}
    for image, annotation in zip(coco["images"], coco["annotations"], strict=True):
        p = found[image["file_name"]]
        assert annotation["image_id"] == image["id"]
        assert (image["width"], image["height"]) == (64, 48)
        assert names[annotation["category_id"]] == p.class_name
        x, y, w, h = annotation["bbox"]
        np.testing.assert_allclose([x, y, x + w, y + h], p.box, atol=0.02)
        assert annotation["area"] == pytest.approx(w * h, abs=0.01)
        assert annotation["score"] == pytest.approx(p.confidence, abs=1e-6)
        assert annotation["iscrowd"] == 0


def test_coco_of_nothing_is_still_json(trained: TrainedRun, squares_root: Path, tmp_path: Path) -> None:
    summary = predict_to(trained, squares_root, tmp_path / "out", format="coco", min_confidence=1.0)
    coco = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert summary.left_out == 24
    assert coco["images"] == coco["annotations"] == []


def test_coco_loads_in_pycocotools(trained: TrainedRun, squares_root: Path, tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    predict_to(trained, squares_root, tmp_path / "out", format="coco")
    loaded = coco.COCO(str(tmp_path / "out" / "annotations.json"))
    assert len(loaded.getAnnIds()) == 24


def test_yolo(trained: TrainedRun, squares_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict_to(trained, squares_root, out, format="yolo")
    assert (out / "classes.txt").read_text().splitlines() == ["blue", "green", "red"]
    assert '1: "green"' in (out / "data.yaml").read_text()
    for p, path in predict(trained, find_images(squares_root)):
        (line,) = (out / "labels" / p.image).with_suffix(".txt").read_text().splitlines()
        k, *values = line.split()
        cx, cy, w, h = map(float, values)
        assert int(k) == p.class_id
        corners = np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]) * [64, 48, 64, 48]
        np.testing.assert_allclose(corners, p.box, atol=1e-3)
        assert (out / "images" / p.image).read_bytes() == path.read_bytes()


def test_yolo_keeps_images_apart_that_differ_in_their_extension(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png"):
        (tmp_path / name).write_text(name)
    with open_writer("yolo", tmp_path, ("one",)) as write:
        for name in ("a.jpg", "a.png"):
            write(Prediction(name, 10, 10, 0, "one", 1.0, (0, 0, 5, 5), 1.0), tmp_path / name)
    assert sorted(p.name for p in (tmp_path / "labels").iterdir()) == ["a.png.txt", "a.txt"]
    assert (tmp_path / "images" / "a.png.png").read_text() == "a.png"


def test_unsure_images_and_thin_boxes_stay_out_of_annotations(
    trained: TrainedRun, squares_root: Path, tmp_path: Path
) -> None:
    sure = sorted(p.confidence for p, _ in predict(trained, find_images(squares_root)))
    middle = (sure[11] + sure[12]) / 2
    summary = predict_to(trained, squares_root, tmp_path / "yolo", format="yolo", min_confidence=middle)
    assert summary.left_out == 12
    assert len(list((tmp_path / "yolo" / "labels").rglob("*.txt"))) == 12
    assert len(list((tmp_path / "yolo" / "images").rglob("*.png"))) == 12
    predict_to(trained, squares_root, tmp_path / "lines", min_confidence=middle)
    assert len(lines(tmp_path / "lines" / "predictions.jsonl")) == 24


def test_exif_orientation_counts_for_own_images_only(trained: TrainedRun, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 30)).save(tmp_path / "photo.jpg", exif=exif)
    ((own, _),) = predict(trained, find_images(tmp_path))
    cub = replace(trained, config=override(trained.config, {"data.name": "cub"}))
    ((stored, _),) = predict(cub, find_images(tmp_path))
    assert (own.width, own.height) == (30, 60)
    assert (stored.width, stored.height) == (60, 30)


def test_broken_images_are_reported_and_the_others_done(
    squares_run: Path, squares_root: Path, tmp_path, capsys
) -> None:
    source = tmp_path / "source"
    shutil.copytree(squares_root / "red", source / "deep" / "red")
    (source / "broken.png").write_bytes(b"no image")
    (source / "cut.png").write_bytes((squares_root / "red" / "0.png").read_bytes()[:300])
    (source / "notes.txt").write_text("not an image")
    status = main(["predict", str(source), "--run", str(squares_run), "--device", "cpu"])
    captured = capsys.readouterr()
    assert status == 1
    assert [json.loads(line)["image"] for line in captured.out.splitlines()] == [f"deep/red/{i}.png" for i in range(8)]
    errors = captured.err.splitlines()
    assert sum("broken.png" in line for line in errors) == 1
    assert sum("cut.png" in line for line in errors) == 1
    assert re.search(r"8 images by LCHP-R \([\d.]+ s, [\d.]+ images/s\); 2 could not be read", errors[-1])


def test_one_image_on_the_command_line(squares_run: Path, squares_root: Path, capsys) -> None:
    assert main(["predict", str(squares_root / "red" / "0.png"), "--run", str(squares_run), "--format", "csv"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.startswith("image,width,height,class_id,class_name,score,x1")
    assert row.startswith("0.png,64,48,")


def test_a_stopped_prediction_leaves_nothing(trained: TrainedRun, squares_root: Path, tmp_path, monkeypatch) -> None:
    import lchp.predict as module

    calls = itertools.count()
    original = module.predict_batch

    def stop_at_third(*args):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(module, "predict_batch", stop_at_third)
    for format in ("jsonl", "coco", "yolo"):
        with pytest.raises(KeyboardInterrupt):
            predict_to(trained, squares_root, tmp_path / "out", format=format, pictures=True, batch_size=4)  # pyright: ignore
        calls = itertools.count()
    assert list(tmp_path.iterdir()) == []


def test_the_output_may_lie_in_the_folder_that_is_searched(trained: TrainedRun, squares_root: Path, tmp_path) -> None:
    source = Path(shutil.copytree(squares_root / "red", tmp_path / "red"))
    predict_to(trained, source, source / "out", pictures=True)
    assert len(list(find_images(source, source / "out"))) == 8
    assert len(list((source / "out" / "pictures").iterdir())) == 8


def test_options_that_cannot_be(trained: TrainedRun, squares_root: Path, tmp_path: Path) -> None:
    def refused(error: type[LchpError], match: str, source: Path = squares_root, **options) -> None:
        with pytest.raises(error, match=match):
            predict_to(trained, source, **options)

    refused(ConfigError, "needs --output", pictures=True)
    refused(ConfigError, "needs --output", format="yolo")
    refused(ConfigError, "not empty", output=squares_root)
    refused(ConfigError, "min_confidence", min_confidence=1.5)
    refused(ConfigError, "batch_size", batch_size=0)
    refused(DataError, "no such image or folder", tmp_path / "nowhere")
    refused(DataError, "no images found", tmp_path)


def test_the_command_line_says_what_is_wrong(squares_run: Path, tmp_path: Path, capsys) -> None:
    for arguments, expected in (
        ([str(tmp_path), "--run", str(tmp_path / "nowhere")], "no such run folder"),
        ([str(tmp_path), "--run", str(tmp_path)], "is .* a run folder"),
        ([str(tmp_path), "--run", str(squares_run), "--format", "xml"], "jsonl"),
        ([str(tmp_path), "--run", str(squares_run), "--formt", "csv"], "--format"),
        (["--run", str(squares_run)], "IMAGE/FOLDER"),
    ):
        assert main(["predict", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert re.search(expected, error), error


def test_what_is_no_image_is_said_once(trained: TrainedRun, squares_root: Path, tmp_path: Path, capsys) -> None:
    source = tmp_path / "photos"
    shutil.copytree(squares_root / "red", source)
    for name in ("a.HEIC", "b.heic", "@eaDir/0.png", "Thumbs.db", "notes.txt"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(b"")
    assert predict_to(trained, source, tmp_path / "out").images == 8
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "passed over" in line] == [
        f"{source}: passed over 2 pictures that cannot be decoded here: .heic 2; convert them to JPEG or PNG",
        f"{source}: passed over 1 files that are no images: .txt 1",
        f"{source}: passed over 2 hidden files and what systems leave (thumbnails): @eaDir 1, Thumbs.db 1",
    ]
    for image in source.glob("*.png"):
        image.unlink()
    with pytest.raises(DataError, match=r"no images found .*; \.heic 2 cannot be decoded here"):
        predict_to(trained, source, tmp_path / "again")
