"""A classifier of one's own: runs that train nothing, and `lchp boxes`."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from squares import small_config, small_flags, small_values, write_images
from torch import Tensor
from torchvision.models import mobilenet_v2

from lchp.cli import main
from lchp.config import TrainConfig, override
from lchp.data.label_file import read_label_file
from lchp.deploy.predict import find_images, predict
from lchp.deploy.trained import load_run
from lchp.errors import ConfigError, DataError, LchpError
from lchp.files.runs import read_metrics
from lchp.training.chain import chain_of, kinds_of
from lchp.training.forecast import forecast
from lchp.training.networks import by_rate
from lchp.training.run import Result, train

NAMES = ["c2", "other", "c0", "c1"]
"""Of the head's classes, in its order."""
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("quick_starts")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """own.pth and head.txt: four classes; three.pth: those of the data, whose images are in data."""
    place = tmp_path_factory.mktemp("own")
    write_images(place / "data")
    torch.manual_seed(1)
    state = mobilenet_v2(num_classes=4).state_dict()
    torch.save(state, place / "own.pth")
    rows = torch.tensor([NAMES.index(name) for name in ("c0", "c1", "c2")])
    heads = {name: state[name][rows] for name in ("classifier.1.weight", "classifier.1.bias")}
    torch.save({"state_dict": state | heads}, place / "three.pth")
    (place / "head.txt").write_text("\n".join(NAMES) + "\n")
    return place


def own_values(place: Path, weights: str = "three.pth", **more: Any) -> dict[str, Any]:
    return small_values(place / "data") | {
        "model.classifier": "mobilenet_v2",
        "model.classifier_weights": str(place / weights),
        "initialization.epochs": 0,
        "method.name": "layer_cam",
        "data.resize": 64,
        "data.image_size": 64,
        **{name.replace("__", "."): value for name, value in more.items()},
    }


def own_config(place: Path, weights: str = "three.pth", **more: Any) -> TrainConfig:
    return small_config(place / "data", own_values(place, weights, **more))


@pytest.fixture(scope="module")
def result(place: Path) -> Result:
    return train(own_config(place), output=place / "run")


def weights_of(run: Path) -> dict[str, Tensor]:
    state = torch.load(run / "checkpoints" / "initialization.pt", weights_only=True)
    return state["modules"]["classifier"]


def test_nothing_is_trained(place: Path, result: Result) -> None:
    own = torch.load(place / "three.pth", weights_only=True)["state_dict"]
    found = weights_of(result.run)
    assert torch.equal(found["linear.weight"], own["classifier.1.weight"])
    names = [n for n in found if n.startswith("trunk.1.")]
    sums = [float(found[n].double().sum()) for n in names]
    assert sorted(sums) == sorted(float(v.double().sum()) for n, v in own.items() if n.startswith("features."))
    assert [line["stage"] for line in read_metrics(result.run)] == ["boxes"]
    assert list(result.summary["results"]) == ["pseudo_label"]
    assert result.summary["score_maps"]


def test_such_a_run_goes_on_and_predicts_without_its_file(place: Path, result: Result) -> None:
    again = train(result.config, output=result.run, resume=True)
    assert again.summary == result.summary
    moved = (place / "three.pth").rename(place / "away.pth")
    try:
        trained = load_run(result.run, CPU)
        found = [p for p, _ in predict(trained, find_images(place / "data" / "test"))]
        assert len(found) == 9
        assert trained.class_names == ("c0", "c1", "c2")
    finally:
        moved.rename(place / "three.pth")


def test_a_file_of_names_says_which_classes_of_the_head_are_the_data_s(place: Path, result: Result) -> None:
    named = train(
        own_config(place, "own.pth", model__classifier_classes=str(place / "head.txt")), output=place / "named"
    )
    torch.testing.assert_close(weights_of(named.run), weights_of(result.run), rtol=0, atol=0)
    assert named.predictions() == result.predictions()


def test_it_can_be_trained_further_at_one_rate(place: Path, tmp_path: Path) -> None:
    config = own_config(place, initialization__epochs=1, initialization__lr=1e-9, model__pretrained=True)
    run = train(override(config, {"model.localizer": "mobilenet_v2"}), output=tmp_path / "run", stage="init").run
    own = torch.load(place / "three.pth", weights_only=True)["state_dict"]
    torch.testing.assert_close(weights_of(run)["linear.weight"], own["classifier.1.weight"], rtol=0, atol=1e-6)
    assert [line["stage"] for line in read_metrics(run)] == ["initialization", "boxes"]
    from lchp.baselines import METHODS
    from lchp.training.networks import build_classifier

    assert len(by_rate(build_classifier(config, METHODS["cam"], 3), config, METHODS["cam"])) == 1


def test_what_the_files_hold_is_in_the_key(place: Path, tmp_path: Path) -> None:
    def key(**more: Any) -> str:
        return chain_of(own_config(place, **more), "d")["classifier"].key

    copy = tmp_path / "copy.pth"
    copy.write_bytes((place / "three.pth").read_bytes())
    assert key(model__classifier_weights=str(copy)) == key()
    assert len({key(), key(weights="own.pth"), key(model__classifier_classes=str(place / "head.txt"))}) == 3
    assert key(method__name="cam") == key(), "all maps of a classifier share it"
    found = forecast(own_config(place))
    assert [(link.kind, link.epochs, link.seconds > 0) for link in found.links] == [
        ("classifier", 0, False),
        ("boxes", 1, True),
    ]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"model.classifier_weights": None},
            "initialization.epochs = 0: expected at least 1, or model.classifier_weights",
        ),
        ({"method.localizer": True}, "initialization.epochs = 0: expected at least 1, since the localizer trains"),
        (
            {"method.name": "lchp"},
            "model.classifier_weights = 'three.pth': expected None, since the method 'lchp' has a",
        ),
        (
            {"method.name": "acol"},
            "model.classifier_weights = 'three.pth': expected None, since the method 'acol' has a",
        ),
        (
            {"model.classifier_weights": None, "model.classifier_classes": "c", "initialization.epochs": 1},
            "model.classifier_classes = 'c': expected None, or model.classifier_weights",
        ),
    ],
)
def test_fields_that_contradict_each_other_are_refused(place: Path, values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        kinds_of(small_config(place / "data", own_values(place) | {"model.classifier_weights": "three.pth"} | values))
    assert str(refused.value).startswith(said)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("c0 c1 c2", "names.txt: names 3 classes, a line each; the head of {place}/own.pth has 4"),
        ("c0 c1 x y", "names.txt: lacks class 'c2'; it begins with 'c0'"),
        ("v w x y", "names.txt: lacks class 'c0' and 2 more of the data's classes; it begins with 'v'"),
    ],
)
def test_names_that_do_not_fit_are_one_line(place: Path, lines: str, said: str) -> None:
    (place / "names.txt").write_text(lines.replace(" ", "\n"))
    config = own_config(place, "own.pth", model__classifier_classes=str(place / "names.txt"))
    with pytest.raises(DataError) as refused:
        train(config, output=place / "never")
    assert str(refused.value) == f"{place}/{said.format(place=place)}"
    assert not (place / "never").exists()


def test_counts_that_do_not_fit_are_one_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *small_flags(own_values(place, "own.pth")), "--output", str(place / "never")]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("lchp: error")]
    said = "own.pth: its head has 4 classes, the data 3; name the head's, in its order, by model.classifier_classes"
    assert line.endswith(said)
    assert not (place / "never").exists()


def test_names_that_are_there_twice_are_listed(place: Path) -> None:
    (place / "twice.txt").write_text("c0\nc1\n\nc1\nc0\n")
    with pytest.raises(DataError) as refused:
        train(own_config(place, "own.pth", model__classifier_classes=str(place / "twice.txt")), output=place / "never")
    assert str(refused.value).splitlines() == [
        f"2 problems in the classes of {place}/own.pth:",
        f"  {place}/twice.txt:4: class 'c1' is on line 2 already",
        f"  {place}/twice.txt:5: class 'c0' is on line 1 already",
    ]


# --- lchp boxes


def boxes(place: Path, *more: str, weights: str = "own.pth", source: str = "data/test") -> int:
    own = ["--weights", str(place / weights), "--backbone", "mobilenet_v2", "--size", "64", "--device", "cpu"]
    return main(["boxes", str(place / source), *own, *more])


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_the_command_gives_what_such_a_run_predicts(place: Path, result: Result, tmp_path: Path) -> None:
    """The classes are those of the folders, where they are as many; nothing but the photographs is read."""
    out = tmp_path / "out"
    assert boxes(place, "--output", str(out), "--pictures", "--precision", "fp32", weights="three.pth") == 0
    run = ["--run", str(result.run), "--output", str(tmp_path / "run"), "--device", "cpu"]
    assert main(["predict", str(place / "data" / "test"), *run]) == 0
    assert lines_of(out) == lines_of(tmp_path / "run")
    assert {line["class_name"] for line in lines_of(out)} <= {"c0", "c1", "c2"}
    assert len(list((out / "pictures").rglob("*.jpg"))) == 9


def test_labels_say_whose_map_it_is(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("label,image\nother,c0/0.png\nc2,c1/1.png\nother,gone.png\n")
    named = ["--classes", str(place / "head.txt")]
    assert boxes(place, *named, "--labels", str(labels), "--output", str(tmp_path / "some")) == 0
    assert "9 images by LayerCAM of own.pth, of the class that labels.csv has for 2" in capsys.readouterr().err
    assert boxes(place, *named, "--output", str(tmp_path / "none")) == 0
    some, none = ({line["image"]: line for line in lines_of(tmp_path / name)} for name in ("some", "none"))
    assert (some["c0/0.png"]["class_name"], some["c1/1.png"]["class_name"]) == ("other", "c2")
    assert {n for n in some if some[n] != none[n]} <= {"c0/0.png", "c1/1.png"}


@pytest.mark.parametrize("form", ["coco", "yolo", "labelstudio"])  # and csv, below
def test_it_writes_the_formats_of_predict(place: Path, form: str, tmp_path: Path) -> None:
    assert boxes(place, "--format", form, "--output", str(tmp_path / "out"), weights="three.pth") == 0
    assert any((tmp_path / "out").iterdir())


def test_what_it_writes_is_learnt_from_by_the_method_boxes(place: Path, tmp_path: Path) -> None:
    assert boxes(place, "--format", "csv", "--output", str(tmp_path / "out"), source="data", weights="three.pth") == 0
    values = {"method.name": "boxes", "method.boxes": str(tmp_path / "out" / "predictions.csv")}
    result = train(small_config(place / "data", values), output=tmp_path / "run", stage="init")
    assert result.summary["given"] | {"center_crop": 0, "full_image": 0} == {
        "images": 24, "boxed": 24, "several": 0, "unknown": 0, "test": 9, "center_crop": 0, "full_image": 0
    }  # fmt: skip


def test_classes_that_nothing_names_have_numbers(place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert boxes(place, "--output", str(tmp_path / "out")) == 0
    assert "the 4 classes of" in caplog.text
    assert {line["class_name"] for line in lines_of(tmp_path / "out")} <= set("0123")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--method", "psol"], "--method psol: expected one whose map is of a plain classifier: "),
        (["--method", "boxes"], "--method boxes: expected one whose map is of a plain classifier: "),
        (["--method", "lchp"], "--method lchp: expected one whose map is of a plain classifier: "),
        (["--method", "acol"], "--method acol: expected one whose map is of a plain classifier: "),
        (["--method", "cutmix"], "--method cutmix: expected one whose map is of a plain classifier: cam, grad_cam, "),
        (["--method", "nothing"], "--method = 'nothing': expected lchp, "),
        (["--backbone", "tiny"], "--backbone = 'tiny': has no class head of one linear layer"),
        (["--backbone", "resnet51"], "--backbone = 'resnet51': expected one of "),
        (["--backbone", "resnet50"], "{place}/own.pth: lacks fc.weight, the class head of resnet50 (classes x 2048)"),
        (["--classes", "{place}/gone.txt"], "{place}/gone.txt: cannot be read (No such file or directory)"),
        (["--labels", "{place}/head.txt"], "{place}/head.txt: lacks the columns image, label"),
        (["--size", "4"], "--size = 4: expected in 8..4096"),
        (["--threshold", "2"], "--threshold = 2.0: expected in [0, 1)"),
        (["--least-area", "0.1"], "--least-area goes with --several"),
        (["--format", "csv", "--min-confidence", "0.1"], "--min-confidence goes with --format coco, yolo, labelstudio"),
        (["--several", "--component", "all"], "--component does not go with --several"),
    ],
)
def test_what_does_not_fit_is_one_line(
    place: Path, more: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [word.format(place=place) for word in more]
    assert boxes(place, *more, "--output", str(tmp_path / "out")) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("lchp: error")]
    assert line.startswith(f"lchp: error: {said.format(place=place)}")
    assert not (tmp_path / "out").exists()


def test_faulty_labels_are_listed_by_line(tmp_path: Path) -> None:
    file = tmp_path / "l.csv"
    file.write_text("image,label,more\na,robin,1\na,wren,2\nb,owl,3\nnone,owl,4\na,robin,5\n")
    with pytest.raises(DataError) as refused:
        read_label_file(file, ["a", "b"], ["robin", "wren"])
    assert str(refused.value).splitlines() == [
        f"2 problems in {file}:",
        f"  {file}:3: image 'a' has another label above",
        f"  {file}:4: image 'b': 'owl' is none of the classes",
    ]
    file.write_text("image,label\nx,robin\n")
    with pytest.raises(DataError, match=r"l\.csv: no label of any image; it has 'x', and an image is 'a'"):
        read_label_file(file, ["a", "b"], ["robin", "wren"])


CELL = st.one_of(st.text(max_size=4), st.sampled_from(["a", "b", "robin", "wren", '"', ",", "\n"]))


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(CELL, CELL), max_size=4))
def test_any_labels_are_read_or_refused_by_line(place: Path, rows: list[tuple[str, str]]) -> None:
    file = place / "l.csv"
    text = "\n".join(",".join(row) for row in [("image", "label"), *rows])
    file.write_bytes(text.encode(errors="surrogateescape"))
    try:
        found = read_label_file(file, ["a", "b"], ["robin", "wren"])
    except LchpError as error:
        check(error, file)
    else:
        assert found.keys() <= {"a", "b"}
        assert set(found.values()) <= {0, 1}


def check(error: LchpError, file: Path) -> None:
    assert str(file) in str(error)
    assert all(line.isprintable() for line in str(error).splitlines())


def test_real_weights_name_what_is_on_a_photograph(weights_dir: Path, ilsvrc10_root: Path, tmp_path: Path) -> None:
    """ResNet-50's own class head on tench, the first of ImageNet's classes; its box covers the fish."""
    rows = [
        row for row in csv.reader((ilsvrc10_root / "LOC_val_solution.csv").open()) if row[1].startswith("n01440764")
    ]
    folder = tmp_path / "tench"
    folder.mkdir()
    for image_id, _ in rows[:3]:
        file = ilsvrc10_root / "Data" / "CLS-LOC" / "val" / f"{image_id}.JPEG"
        (folder / file.name).write_bytes(file.read_bytes())
    own = ["--weights", str(weights_dir / "resnet50.safetensors"), "--backbone", "resnet50", "--device", "cpu"]
    assert main(["boxes", str(folder), *own, "--output", str(tmp_path / "out")]) == 0
    found = lines_of(tmp_path / "out")
    assert [line["class_id"] for line in found].count(0) >= 2
    assert np.isfinite([line["box"] for line in found]).all()
