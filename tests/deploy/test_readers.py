"""What lchp predict writes is read by the tools that it is written for: images with one object, with two, with none.

supervision, Label Studio's SDK and Ultralytics are no dependencies of the tests: supervision brings PyAV, 100 MB whose
wheel holds codecs under the GPL; the SDK brings 29 packages, formatters and language tools among them; Ultralytics is
under the AGPL. Where one is not installed, its test says so.
"""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lchp.deploy.formats import ANNOTATIONS, Detected, Format, Prediction, open_writer

NAMES = ("blue", "green tit", 'red & "<b>"')
ONE = Prediction("a/one.png", 64, 48, 0, NAMES[0], 0.9, (4.0, 6.0, 24.0, 30.0), 0.8)
PAIR = (Detected((2.0, 3.0, 12.0, 13.0), 0.7), Detected((30.0, 20.0, 60.0, 44.0), 0.4))
TWO = Prediction("a/two.png", 64, 48, 2, NAMES[2], 0.6, PAIR[0].box, 0.7, PAIR)
NONE = Prediction("b/none.png", 64, 48, 1, NAMES[1], 0.5, None, 0.2)
NONE_OF_SEVERAL = Prediction("b/zero.png", 64, 48, 1, NAMES[1], 0.5, None, 0.0, ())
ALL = (ONE, TWO, NONE, NONE_OF_SEVERAL)


@pytest.fixture
def written(tmp_path: Path) -> Callable[[Format], Path]:
    """Writes the predictions in a format."""

    def write_all(format: Format) -> Path:
        out = tmp_path / format
        out.mkdir()
        with open_writer(format, out, NAMES) as write:
            for n, prediction in enumerate(ALL):
                path = tmp_path / "photos" / prediction.image
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (64, 48), (40 * n, 0, 0)).save(path)
                write(prediction, path)
        return out

    return write_all


def test_json_lines_and_csv_say_where_nothing_is(written: Callable[[Format], Path]) -> None:
    one, two, none, zero = map(json.loads, (written("jsonl") / "predictions.jsonl").read_text().splitlines())
    assert (one["box"], one["confidence"], "objects" in one) == ([4, 6, 24, 30], 0.8, False)
    assert two["objects"] == [{"box": list(o.box), "confidence": o.confidence} for o in PAIR]
    assert (two["box"], two["confidence"]) == ([2, 3, 12, 13], 0.7)
    assert (none["box"], none["confidence"], "objects" in none) == (None, 0.2, False)
    assert (zero["box"], zero["confidence"], zero["objects"]) == (None, 0, [])
    with (written("csv") / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["a/one.png", "a/two.png", "a/two.png", "b/none.png", "b/zero.png"]
    assert [row["x1"] for row in rows] == ["4.0", "2.0", "30.0", "", ""]
    assert [row["confidence"] for row in rows] == ["0.8", "0.7", "0.4", "0.2", "0.0"]


def test_pycocotools_reads_coco(written: Callable[[Format], Path]) -> None:
    from pycocotools.coco import COCO

    loaded = COCO(str(written("coco") / "annotations.json"))
    assert [image["file_name"] for image in loaded.loadImgs(loaded.getImgIds())] == [p.image for p in ALL]
    for image, prediction in zip(loaded.getImgIds(), ALL, strict=True):
        found: Any = loaded.loadAnns(loaded.getAnnIds(imgIds=[image]))
        boxes = [(x, y, x + w, y + h) for x, y, w, h in (a["bbox"] for a in found)]
        assert boxes == [o.box for o in prediction.found]
        assert [a["score"] for a in found] == [o.confidence for o in prediction.found]
        assert {loaded.loadCats(a["category_id"])[0]["name"] for a in found} <= {prediction.class_name}
    assert sorted(loaded.getAnnIds()) == [1, 2, 3]


def detections(read: Any, out: Path) -> dict[str, tuple[list[list[float]], list[str]]]:
    """By the image's file name: boxes and class names, as supervision has them."""
    found = {}
    for path, _, said in read:
        found[Path(path).name] = said.xyxy.round(3).tolist(), [read.classes[k] for k in said.class_id]
    assert all(path.is_relative_to(out) for path in map(Path, read.image_paths)) or out.name == "coco"
    return found


EXPECTED = {Path(p.image).name: ([list(o.box) for o in p.found], [p.class_name] * len(p.found)) for p in ALL}


def test_supervision_reads_coco_and_yolo(written: Callable[[Format], Path], tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision", reason="reads COCO and YOLO: pip install supervision")
    read = supervision.DetectionDataset.from_coco(
        str(tmp_path / "photos"), str(written("coco") / "annotations.json"), force_masks=False
    )
    assert detections(read, tmp_path / "coco") == EXPECTED
    out = written("yolo")
    found = {}
    for folder in ("a", "b"):  # its reader does not look into folders
        images, labels = out / "images" / folder, out / "labels" / folder
        read = supervision.DetectionDataset.from_yolo(str(images), str(labels), str(out / "data.yaml"))
        found |= detections(read, out)
    assert {name: names for name, (_, names) in found.items()} == {name: names for name, (_, names) in EXPECTED.items()}
    for name, (boxes, _) in EXPECTED.items():
        np.testing.assert_allclose(np.reshape(found[name][0], (-1, 4)), np.reshape(boxes, (-1, 4)), atol=1e-3)


def test_ultralytics_reads_yolo(written: Callable[[Format], Path]) -> None:
    reason = "trains on what --format yolo writes: pip install ultralytics"
    dataset = pytest.importorskip("ultralytics.data.dataset", reason=reason)
    out = written("yolo")
    (yaml,) = out.glob("*.yaml")
    names = pytest.importorskip("yaml").safe_load(yaml.read_bytes())["names"]
    read = dataset.YOLODataset(img_path=str(out / "images"), data={"names": names, "channels": 3}, augment=False)
    assert len(read.labels) == len(ALL)
    for label in read.labels:
        (prediction,) = [p for p in ALL if Path(p.image).name == Path(label["im_file"]).name]
        x, y, w, h = (label["bboxes"] * [64, 48, 64, 48]).T
        corners = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1)
        expected = np.reshape([o.box for o in prediction.found], (-1, 4))
        np.testing.assert_allclose(corners, expected, atol=1e-3)
        assert [names[int(k)] for k in label["cls"].ravel()] == [prediction.class_name] * len(prediction.found)


def test_label_studio_tasks_begin_with_the_least_confident(written: Callable[[Format], Path]) -> None:
    out = written("labelstudio")
    tasks = json.loads((out / "tasks.json").read_text())
    assert [task["data"]["image"] for task in tasks] == [
        f"/data/local-files/?d=photos/{p.image}" for p in sorted(ALL, key=lambda p: p.confidence)
    ]
    (said,) = tasks[2]["predictions"]
    assert said["score"] == 0.7
    value = said["result"][1]["value"]
    corners = {"x": 100 * 30 / 64, "y": 100 * 20 / 48, "width": 100 * 30 / 64, "height": 100 * 24 / 48}
    assert {k: value[k] for k in corners} == pytest.approx(corners, abs=1e-4)
    assert [task["predictions"][0]["result"] for task in tasks[:2]] == [[], []]


def test_label_studio_s_own_reader_takes_config_and_tasks(written: Callable[[Format], Path]) -> None:
    reason = "reads what --format labelstudio writes: pip install label-studio-sdk"
    interface = pytest.importorskip("label_studio_sdk.label_interface", reason=reason)
    out = written("labelstudio")
    read = interface.LabelInterface((out / "label_config.xml").read_text())
    read.validate()
    assert list(read.get_control("label").labels) == list(NAMES)
    for task in json.loads((out / "tasks.json").read_text()):
        for prediction in task["predictions"]:
            assert read.validate_prediction(prediction, return_errors=True) == []
        assert [shown.value for shown in read.load_task(task["data"]).objects] == [task["data"]["image"]]


def test_nothing_at_all_is_still_a_file_of_each_format(tmp_path: Path) -> None:
    for format in ANNOTATIONS:
        out = tmp_path / format
        out.mkdir()
        with open_writer(format, out, NAMES):
            pass
    assert json.loads((tmp_path / "labelstudio" / "tasks.json").read_text()) == []
    assert json.loads((tmp_path / "coco" / "annotations.json").read_text())["images"] == []


def test_names_that_xml_does_not_hold(tmp_path: Path) -> None:
    from xml.etree import ElementTree

    names = ("a\x07b", "\ud800", "é\n中", "<&>", "a\u00a0b", "a  b", "class 1", "a b (4)")
    with open_writer("labelstudio", tmp_path, names):
        pass
    labels = ElementTree.parse(tmp_path / "label_config.xml").iter("Label")
    assert [label.get("value") for label in labels] == [
        "a b", "class 1", "é 中", "<&>", "a b (4)", "a b (5)", "class 1 (6)", "a b (4) (7)"
    ]  # fmt: skip
