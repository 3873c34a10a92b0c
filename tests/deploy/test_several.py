"""lchp predict --several and --least-confidence: every object of an image, or none."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lchp import TrainConfig, override
from lchp.boxes import iou
from lchp.cli import main
from lchp.config import InitializationConfig
from lchp.data.decode import decode
from lchp.deploy import predict as predicting
from lchp.deploy.formats import Detected, Prediction
from lchp.deploy.predict import find_images, predict, predict_to
from lchp.deploy.trained import TrainedRun, load_run
from lchp.evaluation.frames import Frame
from lchp.files import runs
from lchp.method.losses import confidence
from lchp.method.pseudo_boxes import algorithm_1, attention_masks, enclosing_boxes
from lchp.method.regions import object_boxes
from lchp.method.views import crop
from lchp.training.run import train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cam(squares_config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = override(squares_config, {"method.name": "cam", "method.threshold": 0.6})
    return train(config, output=tmp_path_factory.mktemp("cam") / "run").run


@pytest.fixture(scope="module")
def lchp(squares_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a delta at which its attention falls into several regions."""
    run = Path(shutil.copytree(squares_run, tmp_path_factory.mktemp("lchp") / "run"))
    values = runs.read_json(run / runs.CONFIG)
    values["initialization"] |= {"delta": 0.9, "attention": "features", "normalization": "minmax"}
    runs.write_json(run / runs.CONFIG, values)
    return run


@pytest.fixture(scope="module", params=["teacher", "map"])
def trained(request: pytest.FixtureRequest, lchp: Path, cam: Path) -> TrainedRun:
    return load_run(lchp if request.param == "teacher" else cam, CPU, localizer=False)


def drawn(drawing: str) -> Tensor:
    return torch.tensor([[[c == "#" for c in row] for row in drawing.split("|")]])


@pytest.mark.parametrize(
    ("drawing", "least", "boxes"),
    [
        ("......|......|......|......|......|......", 0, []),
        ("######|######|######|######|######|######", 0, [(0, 0, 6, 6)]),
        ("##....|##....|......|...###|...###|...###", 0, [(3, 3, 6, 6), (0, 0, 2, 2)]),  # the larger first
        ("##....|##....|......|...###|...###|...###", 0.12, [(3, 3, 6, 6)]),  # 4 of 36 pixels are less
        ("##....|##....|......|...###|...###|...###", 4 / 36, [(3, 3, 6, 6), (0, 0, 2, 2)]),
        ("##....|##....|......|...###|...###|...###", 0.5, []),
        ("##....|##....|..##..|..##..|......|......", 0, [(0, 0, 4, 4)]),  # corners connect
        ("##....|##....|##....|......|##....|##....", 0, [(0, 0, 2, 3), (0, 4, 2, 6)]),
        ("##..##|##..##|......|......|......|......", 0, [(0, 0, 2, 2), (4, 0, 6, 2)]),  # equals in reading order
        ("#.....|#.##..|#.##..|#.....|####..|......", 0, [(0, 0, 4, 5)]),  # a box within another's
        ("#..##.|#..##.|#.....|####..|......|....##", 0, [(0, 0, 5, 4), (4, 5, 6, 6)]),  # two become one
    ],
)
def test_objects_are_the_regions_that_are_large_enough(
    drawing: str, least: float, boxes: list[tuple[int, int, int, int]]
) -> None:
    found = object_boxes(drawn(drawing), least)
    assert [[round(6 * v) for v in box] for box in found[0].tolist()] == [list(box) for box in boxes]


def test_no_two_objects_overlap_and_every_region_is_in_one() -> None:
    masks = torch.rand(60, 24, 24, generator=torch.Generator().manual_seed(0)) < torch.linspace(0.02, 0.3, 60).view(
        -1, 1, 1
    )
    counts = set()
    for mask, boxes in zip(masks, object_boxes(masks, 0), strict=True):
        counts.add(len(boxes))
        if len(boxes) > 1:
            pairs = iou(boxes[:, None], boxes[None])
            assert float(pairs.fill_diagonal_(0).max()) == 0
        pixels = mask.nonzero().flip(1)[:, None]  # N x 1 x (x, y), before N x boxes
        inside = (boxes[:, :2] * 24 <= pixels + 1e-4) & (boxes[:, 2:] * 24 >= pixels + 1 - 1e-4)
        assert (inside.all(2).sum(1) == 1).all()
    assert len(counts) > 5


@pytest.mark.parametrize("boxes", ["single", "merged"])
@pytest.mark.parametrize("second_pass", ["own", "raw"])
@pytest.mark.parametrize("normalization", ["max", "minmax"])
@pytest.mark.parametrize("resolution", ["input", "native"])
def test_algorithm_1_s_box_is_the_one_around_its_foreground(
    boxes: Any, second_pass: Any, normalization: Any, resolution: Any
) -> None:
    config = replace(
        InitializationConfig(),
        delta=0.6,
        boxes=boxes,
        second_pass=second_pass,
        normalization=normalization,
        resolution=resolution,
    )
    images = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0)).repeat_interleave(6, 2)
    images = images.repeat_interleave(6, 3)
    attend = lambda x: torch.nn.functional.avg_pool2d(x.mean(1), 8)  # noqa: E731
    mean = torch.zeros(3)
    box = algorithm_1(attend, images, config, mean).box
    around, found = enclosing_boxes(attention_masks(attend, images, config, mean))
    assert found.any()
    torch.testing.assert_close(around, box)


def eq_4(trained: TrainedRun, path: Path, box: tuple[float, ...]) -> float:
    """The confidence of a box in px, by hand."""
    pixels = torch.from_numpy(decode(path, trained.config.data.resize, exif=True))[None]
    view = Frame.of("full_image", trained.config.data).see(pixels)
    of_view = torch.tensor([[box[0] / 64, box[1] / 48, box[2] / 64, box[3] / 48]], dtype=torch.float32)
    with torch.inference_mode():
        return float(confidence(trained.classifier(crop(view, of_view)).logits))


def test_objects_of_a_run(trained: TrainedRun, squares_root: Path) -> None:
    images = list(find_images(squares_root))
    found = [p for p, _ in predict(trained, images, several=True, least_area=0.02, batch_size=5)]
    one = [p for p, _ in predict(trained, images, batch_size=5)]
    assert {len(p.found) for p in found} - {1}, "some images have several objects, or none"
    for several, single, (_, path) in zip(found, one, images, strict=True):
        assert (several.class_id, several.image) == (single.class_id, single.image)
        assert several.score == pytest.approx(single.score, abs=1e-6)
        assert list(several.found) == sorted(several.found, key=lambda o: -o.confidence)
        assert several.box == (several.found[0].box if several.found else None)
        assert several.confidence == (several.found[0].confidence if several.found else 0)
        for detected in several.found:
            assert detected.confidence == pytest.approx(eq_4(trained, path, detected.box), abs=1e-5)
        corners = np.array([o.box for o in several.found]).reshape(-1, 4)
        if trained.config.method.name == "lchp":  # whose one box goes around all
            assert single.box is not None
            assert (corners[:, :2] >= np.array(single.box[:2]) - 1e-3).all()
            assert (corners[:, 2:] <= np.array(single.box[2:]) + 1e-3).all()


def test_of_a_map_with_one_region_the_object_is_its_box(trained: TrainedRun, squares_root: Path) -> None:
    images = list(find_images(squares_root))
    pairs = zip(predict(trained, images, several=True, least_area=0.0), predict(trained, images), strict=True)
    seen = 0
    for (several, _), (single, _) in pairs:
        if len(several.found) == 1 and trained.config.method.name == "lchp":
            np.testing.assert_allclose(np.array(several.box), np.array(single.box), atol=1e-3)
            seen += 1
        elif several.found and trained.config.method.name == "cam":  # the largest region's box lies in an object's
            inside = [o for o in several.found if iou(np.array(o.box), np.array(single.box)) > 0]
            assert len(inside) == 1
            seen += 1
    assert seen > 3


@pytest.mark.parametrize("several", [False, True])
def test_what_is_less_confident_is_nothing(trained: TrainedRun, squares_root: Path, several: bool) -> None:
    images = list(find_images(squares_root))
    every = [p for p, _ in predict(trained, images, several=several)]
    sure = sorted(o.confidence for p in every for o in p.found)
    least = (sure[len(sure) // 2 - 1] + sure[len(sure) // 2]) / 2
    kept = [p for p, _ in predict(trained, images, several=several, least_confidence=least)]
    assert sum(len(p.found) for p in kept) == len(sure) - len(sure) // 2
    for before, after in zip(every, kept, strict=True):
        assert after.found == tuple(o for o in before.found if o.confidence >= least)
        assert after.confidence == before.confidence
        assert (after.box is None) == (not after.found)


def test_on_the_command_line(squares_run: Path, squares_root: Path, tmp_path: Path, capsys: Any) -> None:
    command = ["predict", str(squares_root), "--run", str(squares_run), "--device", "cpu"]
    assert main([*command, "--least-confidence", "1", "--format", "yolo", "--output", str(tmp_path / "yolo")]) == 0
    assert "24 with nothing there" in capsys.readouterr().err
    labels = sorted((tmp_path / "yolo" / "labels").rglob("*.txt"))
    assert len(labels) == len(list((tmp_path / "yolo" / "images").rglob("*.png"))) == 24
    assert {label.read_text() for label in labels} == {""}
    out = tmp_path / "several"
    assert main([*command, "--several", "--least-area", "0.02", "--pictures", "--output", str(out)]) == 0
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    said = capsys.readouterr().err
    assert "24 images by Pseudo Label (" in said
    assert f"; {sum(len(row['objects']) for row in rows)} objects" in said
    assert len(list((out / "pictures").rglob("*.jpg"))) == 24
    for flag, value in (("--least-area", "1.5"), ("--least-confidence", "-0.1"), ("--least-area", "nan")):
        assert main([*command, flag, value]) == 2
        error = capsys.readouterr().err
        assert f"{flag.removeprefix('--').replace('-', '_')} = {value}: expected in [0, 1]" in error
        assert error.count("\n") == 1


def test_images_that_nothing_is_in_are_annotated_or_left_out(
    trained: TrainedRun, squares_root: Path, tmp_path: Path
) -> None:
    """least_confidence: an image without annotation; min_confidence: no image."""
    sure = sorted(p.confidence for p, _ in predict(trained, find_images(squares_root)))
    low, high = (sure[5] + sure[6]) / 2, (sure[11] + sure[12]) / 2
    how: dict[str, Any] = {"format": "coco", "min_confidence": low, "least_confidence": high}
    summary = predict_to(trained, squares_root, tmp_path / "out", **how)
    coco = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert (len(coco["images"]), len(coco["annotations"])) == (18, 12)
    assert (summary.images, summary.left_out, summary.empty, summary.objects) == (24, 6, 6, 12)


def test_an_object_too_thin_for_an_annotation_leaves_the_others(
    trained: TrainedRun, squares_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    thin, thick, small = (
        Detected(box, c) for box, c in (((0, 0, 0.5, 9), 0.9), ((1, 1, 9, 9), 0.8), ((2, 2, 4, 4), 0.3))
    )
    of_image = [(thin, thick, small), (thin,), (), (thick,)]
    images = list(find_images(squares_root))[: len(of_image)]

    def several(*_: Any, **__: Any) -> Any:
        for (name, path), objects in zip(images, of_image, strict=True):
            box, sure = (objects[0].box, objects[0].confidence) if objects else (None, 0.0)
            yield Prediction(name, 40, 40, 0, "a", 0.5, box, sure, objects), path

    monkeypatch.setattr(predicting, "predict", several)
    out = tmp_path / "out"
    summary = predict_to(trained, squares_root, out, format="labelstudio", several=True)
    assert (summary.images, summary.left_out, summary.empty, summary.objects, summary.thin) == (4, 1, 1, 3, 1)
    tasks = [task["predictions"][0] for task in json.loads((out / "tasks.json").read_text())]
    assert [(task["score"], len(task["result"])) for task in tasks] == [(0.0, 0), (0.8, 2), (0.8, 1)]
    predict_to(trained, squares_root, tmp_path / "lines", several=True)
    rows = [json.loads(line) for line in (tmp_path / "lines" / "predictions.jsonl").read_text().splitlines()]
    assert [len(row["objects"]) for row in rows] == [3, 1, 0, 1]
