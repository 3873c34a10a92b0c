"""lchp predict: what it says, in every format; broken images, interruptions and odd run folders."""

import copy
import csv
import glob
import itertools
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from older_runs import as_before_links
from PIL import Image
from report_records import analysis_script

from lchp import TrainConfig, override
from lchp.backbones import _move_strides, backbone, build_trunk
from lchp.cli import main
from lchp.config import MEANING_BEFORE
from lchp.data.decode import decode
from lchp.deploy.formats import Prediction, open_writer
from lchp.deploy.predict import find_images, predict, predict_to
from lchp.deploy.trained import TrainedRun, load_run
from lchp.errors import ConfigError, DataError, LchpError, RunError
from lchp.evaluation.predictions import read_predictions, write_predictions
from lchp.files import runs
from lchp.method.networks import Localizer
from lchp.report.figures.panel import follow
from lchp.training.chain import Kind
from lchp.training.checkpoints import previous
from lchp.training.definition import Session
from lchp.training.run import train, train_links

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(squares_run: Path) -> TrainedRun:
    return load_run(squares_run, CPU)


@pytest.fixture
def run_copy(squares_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(squares_run, tmp_path / "run"))


def localizer_of(trained: TrainedRun) -> Localizer:
    assert trained.localizer is not None
    return trained.localizer


def box_of(prediction: Prediction) -> tuple[float, float, float, float]:
    assert prediction.box is not None
    return prediction.box


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
        np.testing.assert_allclose(box_of(p), box * [64, 48, 64, 48], atol=1e-3)
        assert (p.width, p.height) == (64, 48)
        assert (p.class_id, p.class_name) == (row["top5"][0], trained.class_names[row["top5"][0]])
        assert p.score == pytest.approx(row["top5_score"][0], abs=1e-5)
        assert p.confidence == pytest.approx(row["confidence"], abs=1e-5)


def test_an_unknown_frame_is_refused_and_leaves_nothing(
    trained: TrainedRun, squares_root: Path, tmp_path: Path
) -> None:
    wrong: Any = "centre_crop"
    with pytest.raises(ConfigError, match="frame = 'centre_crop': expected one of center_crop, full_image"):
        predict_to(trained, squares_root, tmp_path / "out", frame=wrong)
    assert not list(tmp_path.iterdir())


def test_batch_size_changes_nothing(trained: TrainedRun, squares_root: Path) -> None:
    one, many = ([p for p, _ in predict(trained, find_images(squares_root), batch_size=n)] for n in (1, 32))
    assert [p.image for p in one] == [p.image for p in many]
    np.testing.assert_allclose([box_of(p) for p in one], [box_of(p) for p in many], atol=1e-3)


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
    state = torch.load(run_copy / "checkpoints" / "regression.pt", weights_only=True)["modules"]["localizer"]
    for name, value in localizer_of(trained).state_dict().items():
        assert torch.equal(value, state[name])
    set_epochs(run_copy / "checkpoints" / "regression.pt", 0)
    with pytest.raises(RunError, match=r"regression.pt: stopped after 0 of 1 epochs; finish it with --resume first"):
        load_run(run_copy, CPU)


def test_a_run_folder_of_before_there_were_links_serves(
    squares_config: TrainConfig, run_copy: Path, squares_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """LCHP's localizer lies in stage 1's checkpoint, of the run itself or of the one that stage 2 started from."""
    lchp_i, lchp_r = (
        torch.load(run_copy / "checkpoints" / f"{name}.pt", weights_only=True)["modules"]["localizer"]
        for name in ("regression", "refinement")
    )
    second = train(squares_config, output=tmp_path / "stage2" / "k2", stage="refine", source=run_copy).run
    first = as_before_links(run_copy)
    as_before_links(second, stage1=first)

    def holds(run: Path, result: str, state: dict[str, Any]) -> None:
        trained = load_run(run, CPU)
        assert trained.result == result
        assert trained.class_names == ("blue", "green", "red")
        assert all(torch.equal(value, state[name]) for name, value in localizer_of(trained).state_dict().items())

    holds(first, "lchp_r", lchp_r)
    holds(second, "lchp_r", lchp_r)
    assert main(["predict", str(squares_root), "--run", str(second), "--output", str(tmp_path / "boxes")]) == 0
    assert main(["export", "--run", str(first), "--output", str(tmp_path / "model.pt")]) == 0
    assert main(["evaluate", "--run", str(first), "--classifier", str(second), "--ten-crop"]) == 0
    teacher_boxes = analysis_script("teacher_boxes")
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    steps = [follow(run, squares_config, pixels, seed=0) for run in (first, second)]
    np.testing.assert_array_equal(steps[0].b, steps[1].b)
    rows = [teacher_boxes.score(run, teacher_boxes.Flags(run, delta=(0.3,))) for run in (first, second)]
    assert rows[0].equals(rows[1])
    assert len(rows[0]) == 2
    for run in (first, second):
        (run / "checkpoints" / "refinement.pt").unlink()
        holds(run, "lchp_i", lchp_i)
    moved = Path(shutil.copytree(first, tmp_path / "stage1" / "run"))
    shutil.rmtree(first)
    holds(second, "lchp_i", lchp_i)  # found beside, in the storage's stage1/
    shutil.rmtree(moved)
    with pytest.raises(RunError, match="no such checkpoint"):
        load_run(second, CPU)
    capsys.readouterr()


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
    """store/refinement/KEY finds store/classifier/KEY and store/localizer/KEY, not only where the sweep once ran."""
    old, new, session = tmp_path / "old", tmp_path / "new", Session(squares_config.seed)
    found: dict[Kind, Path] = {kind: old / kind / "key" for kind in ("classifier", "localizer")}
    for folder in found.values():
        shutil.copytree(run_copy, folder)
    train_links(squares_config, old / "refinement" / "key", session, found=found)
    old.rename(new)
    trained, whole = load_run(new / "refinement" / "key", CPU), load_run(run_copy, CPU)
    assert trained.result == "lchp_r"
    for name, value in localizer_of(whole).state_dict().items():
        assert torch.equal(value, localizer_of(trained).state_dict()[name])
    (new / "refinement" / "key" / "checkpoints" / "refinement.pt").unlink()
    assert load_run(new / "refinement" / "key", CPU).result == "lchp_i"
    for kind in ("localizer", "classifier"):
        (new / kind).rename(tmp_path / "away")
        with pytest.raises(RunError, match=f"{kind}/key/checkpoints/.*: no such checkpoint"):
            load_run(new / "refinement" / "key", CPU)
        (tmp_path / "away").rename(new / kind)


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
    refused("damaged.*; bring it back from a copy, or train the run again in another --output$")
    previous(first).write_bytes(b"")
    refused("damaged.*; lchp train --output .* --resume goes on from the one before it$")
    first.unlink()
    refused("no such checkpoint")


def test_a_stopped_run_knows_its_classes(squares_config: TrainConfig, tmp_path: Path) -> None:
    def stop(metrics: dict) -> None:
        if metrics["stage"] == "regression":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(squares_config, stop, output=tmp_path / "run")
    trained = load_run(tmp_path / "run", CPU)
    assert (trained.result, trained.class_names) == ("lchp_i", ("blue", "green", "red"))


def test_strides_that_a_weight_file_moved_come_back_with_the_checkpoint() -> None:
    torch.manual_seed(0)
    moved = build_trunk("resnet50", "classifier", pretrained=False, weights_dir=None).eval()
    plain = copy.deepcopy(moved)
    with torch.device("meta"):
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
        np.testing.assert_allclose([x, y, x + w, y + h], box_of(p), atol=0.02)
        assert annotation["area"] == pytest.approx(w * h, abs=0.01)
        assert annotation["score"] == pytest.approx(p.confidence, abs=1e-6)
        assert annotation["iscrowd"] == 0


def test_coco_of_nothing_is_still_json(trained: TrainedRun, squares_root: Path, tmp_path: Path) -> None:
    summary = predict_to(trained, squares_root, tmp_path / "out", format="coco", min_confidence=1.0)
    coco = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert summary.left_out == 24
    assert coco["images"] == coco["annotations"] == []


def test_coco_is_drawn_and_masked_by_pycocotools(trained: TrainedRun, squares_root: Path, tmp_path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from pycocotools.coco import COCO

    predict_to(trained, squares_root, tmp_path / "out", format="coco")
    loaded = COCO(str(tmp_path / "out" / "annotations.json"))
    found = loaded.loadAnns(loaded.getAnnIds())
    assert len(found) == 24
    for annotation in found:
        x, y, w, h = annotation["bbox"]
        mask = loaded.annToMask(annotation)
        assert mask.shape == (48, 64)
        rows, columns = np.nonzero(mask)
        edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(edges, [x, y, x + w, y + h], atol=1)
        assert mask.sum() == (edges[2] - edges[0]) * (edges[3] - edges[1])
    loaded.showAnns(found[:2], draw_bbox=True)
    assert len(pyplot.gca().collections) == 2
    pyplot.close("all")


def test_coco_results_are_scored_by_pycocotools(
    trained: TrainedRun, squares_root: Path, tmp_path: Path, capsys
) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    predict_to(trained, squares_root, tmp_path / "out", format="coco")
    truth = COCO(str(tmp_path / "out" / "annotations.json"))
    found: Any = truth.loadAnns(truth.getAnnIds())
    scores = COCOeval(truth, truth.loadRes(found), "bbox")
    for step in (scores.evaluate, scores.accumulate, scores.summarize):
        step()
    assert scores.stats[0] == pytest.approx(1)  # against itself
    assert "Average Precision" in capsys.readouterr().out


def test_yolo(trained: TrainedRun, squares_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict_to(trained, squares_root, out, format="yolo")
    assert (out / "classes.txt").read_text().splitlines() == ["blue", "green", "red"]
    data = yaml.safe_load((out / "data.yaml").read_bytes())
    assert data == {"train": "images", "val": "images", "names": {0: "blue", 1: "green", 2: "red"}}
    for p, path in predict(trained, find_images(squares_root)):
        (line,) = (out / "labels" / p.image).with_suffix(".txt").read_text().splitlines()
        k, *values = line.split()
        cx, cy, w, h = map(float, values)
        assert int(k) == p.class_id
        corners = np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]) * [64, 48, 64, 48]
        np.testing.assert_allclose(corners, box_of(p), atol=1e-3)
        assert (out / "images" / p.image).read_bytes() == path.read_bytes()


def write_yolo(source: Path, out: Path, names: list[str], classes: tuple[str, ...] = ("one",)) -> None:
    """Of images (made here, each of its own width) at these names below `source`, with a box that tells them apart."""
    out.mkdir()
    with open_writer("yolo", out, classes) as write:
        for i, name in enumerate(names):
            path = source / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20 + i, 20)).save(path, "PNG" if path.suffix == "" else None)
            write(Prediction(name, 20 + i, 20, 0, "one", 1.0, (0, 0, 10, 10), 1.0), path)


def label_of(image: str) -> str:
    """Where Ultralytics and YOLOv5 look for an image's label."""
    return "/labels/".join(image.rsplit("/images/", 1)).rsplit(".", 1)[0] + ".txt"


def as_a_detector_reads(out: Path) -> dict[int, float]:
    """Width of each image below images/ that Ultralytics finds -> the width of the box in its label, px."""
    endings = ("bmp", "dng", "jpeg", "jpg", "mpo", "png", "tif", "tiff", "webp", "pfm")
    found = {}
    for image in glob.glob(f"{out}/images/**/*.*", recursive=True):
        if Path(image).is_file() and image.rpartition(".")[2].lower() in endings:
            width, (line,) = Image.open(image).width, Path(label_of(image)).read_text().splitlines()
            found[width] = float(line.split()[3]) * width
    return found


@pytest.mark.parametrize(
    "names",
    [
        ["train/images/a.jpg", "val/images/images/a.jpg", "_images/a.jpg", "images/a.jpg", "labels/a.jpg"],
        ["a.jpg", "a.png", "a.png.png", "a.webp", "a_images/a.jpg", "Images/a.jpg"],
        ["a.png", "b.JPG", "a.txt/a.png", "a.txt/b.txt/c.png", "a.txt_/a.png"],  # a folder named as a label is
        ["a.b.png", "a..png", "a .png", "\u00e9\U0001f426.png", "c.ppm", "d.pgm", "c.ppm.png", "e"],
    ],
    ids=lambda names: names[0],
)
def test_a_detector_finds_the_label_of_every_image(tmp_path: Path, names: list[str]) -> None:
    out = tmp_path / "images" / "out"  # whose path says `images` too
    out.parent.mkdir()
    write_yolo(tmp_path / "in", out, names)
    found = as_a_detector_reads(out)
    assert found.keys() == {20 + i for i in range(len(names))}
    np.testing.assert_allclose(list(found.values()), 10, atol=1e-3)


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tif", "avif"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_detector_sees_upright_what_lies_turned_in_its_file(tmp_path: Path, extension: str, orientation: int) -> None:
    """As OpenCV reads it, which heeds EXIF in JPEG and PNG alone, and Pillow without it but in JPEG, as Ultralytics."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.new("RGB", (20, 10), "white")
    stored.paste("black", (0, 0, 4, 4))  # the top left corner, as stored
    path = tmp_path / f"a.{extension}"
    stored.save(path, exif=exif, quality=100)
    upright = decode(path, None, exif=True)
    height, width = upright.shape[:2]
    assert (width > height) == (orientation < 5)
    out = tmp_path / "out"
    out.mkdir()
    with open_writer("yolo", out, ("one",)) as write:
        write(Prediction(path.name, width, height, 0, "one", 1.0, (0, 0, 10, 10), 1.0), path)
    (image,) = (out / "images").iterdir()
    read = cv2.imread(str(image))
    assert read is not None
    assert np.abs(read[..., ::-1].astype(int) - upright).mean() < 8
    if extension != "jpg":
        assert Image.open(image).size == (width, height)


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("a.jpg", {"format": "JPEG", "xmp": XMP}),  # Pillow heeds it, OpenCV does not
        ("b.jpg", {"format": "GIF"}),
        ("c.jpeg", {"format": "AVIF"}),
        ("d.png", {"format": "JPEG2000"}),
        ("e.tif", {"format": "TIFF", "compression": "lzma"}),
        ("f.png", {"format": "JPEG"}),
    ],
)
def test_a_detector_reads_whatever_an_image_holds(tmp_path: Path, name: str, how: dict[str, Any]) -> None:
    """By its own means: OpenCV, which reads what Pillow says is of one of Ultralytics' formats."""
    stored = Image.new("RGB", (20, 10), "white")
    stored.paste("black", (0, 0, 4, 4))
    stored.save(tmp_path / name, **how)
    upright = decode(tmp_path / name, None, exif=True)
    height, width = upright.shape[:2]
    out = tmp_path / "out"
    out.mkdir()
    with open_writer("yolo", out, ("one",)) as write:
        write(Prediction(name, width, height, 0, "one", 1.0, (0, 0, 5, 5), 1.0), tmp_path / name)
    (image,) = (out / "images").iterdir()
    read = cv2.imread(str(image))
    assert read is not None
    assert np.abs(read[..., ::-1].astype(int) - upright).mean() < 8
    assert (image.suffix, Image.open(image).format) in ((".png", "PNG"), (".png", "JPEG"))


def test_a_detector_that_repairs_its_images_leaves_the_originals(tmp_path: Path) -> None:
    write_yolo(tmp_path / "in", tmp_path / "out", ["a.jpg"])
    original = (tmp_path / "in" / "a.jpg").read_bytes()
    image = tmp_path / "out" / "images" / "a.jpg"
    Image.open(image).save(image, "JPEG", subsampling=0, quality=100)
    image.chmod(0o600)
    assert image.read_bytes() != original
    assert (tmp_path / "in" / "a.jpg").read_bytes() == original


NAMES = (
    *(
        "\U0001f426 bird",
        "\u00e9t\u00e9",
        "e\u0301",
        "\u4e2d\u6587",
        "yes",
        "null",
        "1.0",
        "~",
        "- a",
        "a: b",
        "{a}",
        "# a",
    ),
    *(
        "a\tb",
        "a\nb",
        "a\x07b",
        "\x7f",
        "\x85",
        "\u2028",
        "\ufeff",
        "\ufffe",
        '"',
        "\\U0001",
        "'",
        " a ",
        "%",
        "!a",
        "&a",
        "*a",
    ),
)


def test_class_names_read_back_the_same_from_yaml(tmp_path: Path) -> None:
    write_yolo(tmp_path / "in", tmp_path / "out", [], NAMES)
    content = (tmp_path / "out" / "data.yaml").read_bytes()
    assert yaml.safe_load(content)["names"] == dict(enumerate(NAMES))
    assert content.isascii()  # YOLOv5 reads it in the machine's own encoding
    assert len((tmp_path / "out" / "classes.txt").read_text("utf-8").split("\n")) == len(NAMES) + 1


def test_pictures_whose_names_become_the_same_are_all_there(
    trained: TrainedRun, squares_root: Path, tmp_path: Path
) -> None:
    square = Image.open(squares_root / "red" / "0.png")
    names = [
        "a.jpg",
        "a.png",
        "a.png.jpg",
        "a.png.jpg.jpg",
        "b.png",
        "b.png.jpg/a.png",
        "c.jpeg",
        "c.jpeg.jpg",
        "D.JPG",
    ]
    for i, name in enumerate(names):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        square.resize((60 + i, 40)).save(path)
    summary = predict_to(trained, tmp_path / "in", tmp_path / "out", pictures=True, batch_size=2)
    drawn = [Image.open(p).width for p in (tmp_path / "out" / "pictures").rglob("*.*") if p.is_file()]
    assert summary.images == len(names)
    assert sorted(drawn) == [60 + i for i in range(len(names))]


def test_unsure_images_and_thin_boxes_stay_out_of_annotations(
    trained: TrainedRun, squares_root: Path, tmp_path: Path
) -> None:
    sure = sorted(p.confidence for p, _ in predict(trained, find_images(squares_root)))
    middle = (sure[11] + sure[12]) / 2
    summary = predict_to(trained, squares_root, tmp_path / "yolo", format="yolo", min_confidence=middle)
    assert summary.left_out == 12
    assert len(list((tmp_path / "yolo" / "labels").rglob("*.txt"))) == 12
    assert len(list((tmp_path / "yolo" / "images").rglob("*.png"))) == 12


@pytest.mark.parametrize("data", ["folder", "cub", "imagenet"])
def test_photographs_are_upright_whatever_the_run_was_trained_on(trained: TrainedRun, tmp_path: Path, data) -> None:
    """The boxes of a photograph are those of the picture as it is looked at, and so is its copy with the box."""
    rng = np.random.default_rng(0)
    upright = Image.fromarray(rng.integers(0, 255, (6, 3, 3), dtype=np.uint8)).resize((300, 600))
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "in").mkdir()
    upright.save(tmp_path / "in" / "a.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "in" / "b.jpg", quality=100, subsampling=0, exif=exif)
    run = replace(trained, config=override(trained.config, {"data.name": data}))
    predict_to(run, tmp_path / "in", tmp_path / "out", pictures=True)
    plain, turned = lines(tmp_path / "out" / "predictions.jsonl")
    assert (turned["width"], turned["height"]) == (plain["width"], plain["height"]) == (300, 600)
    np.testing.assert_allclose(turned["box"], plain["box"], atol=2)
    assert Image.open(tmp_path / "out" / "pictures" / "b.jpg").size == (300, 600)


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
    import lchp.deploy.predict as module

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

    file = tmp_path / "notes.txt"
    file.write_text("no image")
    refused(ConfigError, "notes.txt: is a file; name a new folder$", output=file)
    refused(DataError, "notes.txt: ", file, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    refused(ConfigError, "needs --output", pictures=True)
    refused(ConfigError, "needs --output", format="yolo")
    refused(ConfigError, "not empty", output=squares_root)
    refused(ConfigError, "min_confidence", min_confidence=1.5)
    refused(ConfigError, "batch_size", batch_size=0)
    refused(ConfigError, "^--least-area goes with --several$", least_area=0.05)
    for form in ("jsonl", "csv"):
        said = "^--min-confidence goes with --format coco, yolo, labelstudio$"
        refused(ConfigError, said, format=form, min_confidence=0.5)
    refused(DataError, "no such image or folder", tmp_path / "nowhere")
    refused(DataError, "no images found", tmp_path)


def test_the_command_line_says_what_is_wrong(squares_run: Path, tmp_path: Path, capsys) -> None:
    for arguments, expected in (
        ([str(tmp_path), "--run", str(tmp_path / "nowhere")], "no such run folder"),
        ([str(tmp_path), "--run", str(tmp_path)], "is .* a run folder"),
        ([str(tmp_path), "--run", str(squares_run), "--format", "xml"], "jsonl"),
        ([str(tmp_path), "--run", str(squares_run), "--formt", "csv"], "--format"),
        ([str(tmp_path), "--run", str(squares_run), "--least-area", "0.1"], "--least-area goes with --several"),
        ([str(tmp_path), "--run", str(squares_run), "--min-confidence", "0.1"], "--min-confidence goes with --format"),
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
