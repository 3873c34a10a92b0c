"""lchp export: the file runs without lchp, for any batch, and says what the networks say; or it is not written."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lchp import TrainConfig, override
from lchp.baselines import METHODS
from lchp.cli import main
from lchp.deploy import export
from lchp.deploy.detectors import largest_region
from lchp.deploy.export import METADATA, OUTPUTS, TOLERANCE, Detector
from lchp.deploy.trained import TrainedRun, load_run
from lchp.errors import ConfigError, LchpError
from lchp.evaluation.inference import predict_batch
from lchp.files.runs import Kind
from lchp.method.networks import Classifier, Localizer
from lchp.method.pseudo_boxes import enclosing_boxes
from lchp.method.regions import largest_component_boxes
from lchp.training.map_boxes import Directions, source_of
from lchp.training.networks import build_classifier
from lchp.training.run import train

pytestmark = pytest.mark.usefixtures("quick_starts")

CPU = torch.device("cpu")
NO_LCHP = """
import json, sys, torch
files = {"metadata.json": ""}
module = torch.jit.load(sys.argv[1], _extra_files=files)
box, scores, confidence = module(torch.load(sys.argv[2]))
assert not any(name.split(".")[0] == "lchp" for name in sys.modules)
torch.save((box, scores, confidence), sys.argv[3])
print(files["metadata.json"].decode() if isinstance(files["metadata.json"], bytes) else files["metadata.json"])
"""


def untrained(config: TrainConfig, classifier: str, localizer: str, size: int) -> TrainedRun:
    values = {"model.classifier": classifier, "model.localizer": localizer}
    values |= {"data.resize": size, "data.image_size": size}
    config = override(config, values | {"data.root": "/nowhere"})
    torch.manual_seed(0)
    networks = Classifier(config.model, 3).eval(), Localizer(config.model, config.data.image_size).eval()
    with torch.no_grad():
        for trunk in (networks[0].trunk, networks[1].backbone):
            assert isinstance(trunk, nn.Sequential)
            _, layers = trunk  # behind the normalization
            assert isinstance(layers, nn.Sequential)
            trunk[1], _ = without_repeats(layers, torch.rand(2, 3, size, size), set())
    return TrainedRun(config, ("a", "b", "c"), *networks, "lchp_i", CPU)


def without_repeats(layers: nn.Sequential, x: Tensor, seen: set[Any]) -> tuple[nn.Sequential, Tensor]:
    """A trunk with one block of each kind, and what it gives for x: a conversion takes as long as its input is deep,
    and a block shows nothing new after its like. Where such a one changes the shape, a convolution stands for it."""
    kept: list[nn.Module] = []
    for block in layers:
        if isinstance(block, nn.Sequential):
            block, x = without_repeats(block, x, seen)
            kept.append(block)
            continue
        y, children = block(x), [name for name, _ in block.named_children()]
        kind = type(block), *children, vars(block).get("use_res_connect")
        stand_in = nn.Conv2d(x.shape[1], y.shape[1], 1, max(1, x.shape[2] // y.shape[2])).eval()
        if kind not in seen or not children or stand_in(x).shape != y.shape:
            kept.append(block)
            x = y
        elif y.shape != x.shape:
            kept.append(stand_in)
            x = stand_in(x)
        seen.add(kind)
    return nn.Sequential(*kept), x


def eager(trained: TrainedRun, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    with torch.no_grad():
        assert trained.localizer is not None
        return Detector(trained.classifier, trained.localizer, 0.0).eval()(images)


def test_torchscript_runs_in_a_process_without_lchp(squares_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "deep" / "model.pt"
    assert main(["export", "--run", str(squares_run), "--output", str(file)]) == 0
    images = torch.rand(3, 3, 32, 32)
    torch.save(images, tmp_path / "images.pt")
    command = [sys.executable, "-I", "-W", "ignore", "-c", NO_LCHP]
    paths = [str(file), str(tmp_path / "images.pt"), str(tmp_path / "out.pt")]
    done = subprocess.run([*command, *paths], capture_output=True, text=True, check=True, cwd=tmp_path)
    metadata = json.loads(done.stdout)
    assert metadata["class_names"] == ["blue", "green", "red"]
    assert (metadata["image_size"], metadata["frame"], metadata["result"]) == (32, "full_image", "lchp_r")
    found = torch.load(tmp_path / "out.pt")
    for ours, theirs in zip(eager(load_run(squares_run, CPU), images), found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    box, scores, confidence = found
    assert (box.shape, scores.shape, confidence.shape) == ((3, 4), (3, 3), (3,))
    assert bool((box[:, :2] <= box[:, 2:]).all())
    torch.testing.assert_close(scores.sum(1), torch.ones(3))


@pytest.fixture(scope="module")
def two_backbones(squares_config: TrainConfig) -> TrainedRun:
    """inception_v3 where all its layers are used, and mobilenet_v2, whose features are the same in both places, in the
    other."""
    return untrained(squares_config, "mobilenet_v2", "inception_v3", 96)


@pytest.fixture(scope="module")
def resnet(squares_config: TrainConfig) -> TrainedRun:
    return untrained(squares_config, "tiny", "resnet50", 64)


@pytest.mark.parametrize("run", ["two_backbones", "resnet"])
def test_torchscript_of_the_backbones(run: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    trained = request.getfixturevalue(run)
    size = trained.config.data.image_size
    about = export.export(trained, tmp_path / "model.pt")
    assert about["largest_difference"] <= TOLERANCE
    module = torch.jit.load(tmp_path / "model.pt")
    images = torch.rand(4, 3, size, size)
    for ours, theirs in zip(eager(trained, images), module(images), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def onnx_outputs(file: Path, images: Tensor) -> tuple[list[np.ndarray], dict]:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    metadata = json.loads(session.get_modelmeta().custom_metadata_map[METADATA])
    return session.run(list(OUTPUTS), {"images": images.numpy()}), metadata


EXPORTED = {(m.map, m.scheme.build): name for name, m in METHODS.items() if not m.complete}.values()
"""A method of each map and network: those that differ in their training alone are exported alike."""


def untrained_map(config: TrainConfig, name: str, component: str = "largest") -> TrainedRun:
    """A run of a compared method, with weights as they are drawn."""
    size = 64
    values = {"method.name": name, "method.component": component, "method.threshold": 0.5, "data.image_size": size}
    config = override(config, values | {"data.root": "/nowhere", "data.resize": size})
    torch.manual_seed(0)
    classifier: Any = build_classifier(config, METHODS[name], 3).eval().requires_grad_(False)
    done: dict[Kind, dict[str, Any]] = {}
    if METHODS[name].boxes == "ddt":
        directions = Directions(classifier.trunk, size, 3, CPU)
        features = classifier.trunk(torch.rand(8, 3, 8, 8).repeat_interleave(8, 2).repeat_interleave(8, 3))
        directions.mean.copy_(features.mean((0, 2, 3)).expand_as(directions.mean))
        directions.direction.normal_()
        done["boxes"] = {"directions": directions}
    source = source_of(config, METHODS[name], classifier, done)
    return TrainedRun(config, ("a", "b", "c"), classifier, None, "pseudo_label", CPU, source)


def said_of(trained: TrainedRun, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What lchp predict says of views."""
    seen = predict_batch(trained.models, images)
    return seen.boxes["pseudo_label"], seen.scores, seen.confidence


@pytest.mark.parametrize(
    ("name", "component"), [*((name, "largest") for name in EXPORTED), ("cam", "all"), ("psol", "all")]
)
def test_a_map_s_box_is_exported(squares_config: TrainConfig, tmp_path: Path, name: str, component: str) -> None:
    trained = untrained_map(squares_config, name, component)
    about = export.export(trained, tmp_path / "model.pt")
    assert about["result"] == "pseudo_label"
    module = torch.jit.load(tmp_path / "model.pt")
    images = torch.rand(6, 3, 8, 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    for ours, theirs in zip(said_of(trained, images), module(images), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    boxes = module(images)[0]
    assert len({tuple(box) for box in boxes.tolist()}) > 1
    assert bool((boxes[:, :2] < boxes[:, 2:]).all())


@pytest.mark.parametrize("name", ["grad_cam", "layer_cam"])
def test_a_map_without_its_backward_pass_is_the_same(squares_config: TrainConfig, name: str) -> None:
    classifier, images = untrained_map(squares_config, name).classifier, torch.rand(4, 3, 64, 64)
    labels, found = torch.tensor([0, 1, 2, 1]), METHODS[name]
    assert found.map is not None
    assert found.exported is not None
    maps = found.map(classifier, images, labels)
    assert maps.std() > 0
    torch.testing.assert_close(found.exported(classifier, images, labels), maps, rtol=1e-5, atol=1e-7)


def test_a_map_that_needs_gradients_is_refused_in_one_line(
    squares_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lchp.deploy.detectors.method_of", lambda _: replace(METHODS["grad_cam"], exported=None))
    with pytest.raises(LchpError, match="needs a backward pass, which such a file does not hold; train a") as error:
        export.export(untrained_map(squares_config, "grad_cam"), tmp_path / "model.pt")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_the_largest_region_by_tensors_is_scipy_s() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = [torch.rand(8, 61, 83, generator=generator) < share for share in (0.05, 0.3, 0.4, 0.45, 0.5, 0.6)]
    snake = torch.zeros(1, 61, 83, dtype=torch.bool)
    snake[:, ::2] = True  # one region, whose far ends are thousands of steps away from each other
    snake[:, 1::4, -1], snake[:, 3::4, 0] = True, True
    turned = snake.flip(1)
    empty = torch.zeros(2, 61, 83, dtype=torch.bool)
    for mask in (*masks, snake, turned, empty):
        boxes, found = enclosing_boxes(largest_region(mask))
        assert torch.equal(boxes, largest_component_boxes(mask))
        assert torch.equal(found, mask.any((1, 2)))
    assert torch.equal(largest_region(snake), snake)


@pytest.mark.slow
def test_onnx_of_a_map(squares_config: TrainConfig, tmp_path: Path) -> None:
    """At 16 px, where the largest region is grown in fewer rounds."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    values = {"method.name": "acol", "method.threshold": 0.5, "data.resize": 20, "data.image_size": 16}
    run = train(override(squares_config, values), output=tmp_path / "run").run
    file = tmp_path / "files" / "model.onnx"
    assert main(["export", "--run", str(run), "--output", str(file), "--format", "onnx"]) == 0
    trained = load_run(run, CPU)
    boxes = set()
    for n in (1, 6):
        images = torch.rand(n, 3, 8, 8).repeat_interleave(2, 2).repeat_interleave(2, 3)
        found, metadata = onnx_outputs(file, images)
        for ours, theirs in zip(said_of(trained, images), found, strict=True):
            np.testing.assert_allclose(ours.numpy(), theirs, atol=TOLERANCE)
        assert metadata["class_names"] == ["blue", "green", "red"]
        boxes |= {tuple(box) for box in found[0].tolist()}
    assert len(boxes) > 2
    assert [p.name for p in file.parent.iterdir()] == ["model.onnx"]


@pytest.mark.slow
def test_onnx_of_the_backbones(two_backbones: TrainedRun, tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    export.export(two_backbones, tmp_path / "model.onnx", "onnx")
    for n in (1, 3):
        images = torch.rand(n, 3, 96, 96)
        found, _ = onnx_outputs(tmp_path / "model.onnx", images)
        for ours, theirs in zip(eager(two_backbones, images), found, strict=True):
            np.testing.assert_allclose(ours.numpy(), theirs, atol=TOLERANCE)


def test_a_file_that_differs_is_not_written(squares_run: Path, tmp_path: Path, monkeypatch) -> None:
    trained = load_run(squares_run, CPU)

    def wrong(detector, example, metadata):
        content, run = export._torchscript(detector, example, metadata)
        return content, lambda images: [output + 0.01 for output in run(images)]

    monkeypatch.setitem(export._FORMATS, "torchscript", wrong)
    with pytest.raises(LchpError, match=r"differ from the networks' by 0\.01"):
        export.export(trained, tmp_path / "model.pt")
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_are_no_numbers_are_refused(squares_run: Path, tmp_path: Path) -> None:
    trained = load_run(squares_run, CPU)
    with torch.no_grad():
        trained.classifier.linear.weight[0, 0] = float("nan")
    with pytest.raises(LchpError, match="differ"):
        export.export(trained, tmp_path / "model.pt")
    assert list(tmp_path.iterdir()) == []


def test_real_images_are_checked_where_they_are(squares_run: Path) -> None:
    trained = load_run(squares_run, CPU)
    assert len(export._check_images(trained)) == 3
    gone = replace(trained, config=override(trained.config, {"data.root": "/nowhere"}))
    assert len(export._check_images(gone)) == 2


def test_onnx_without_its_packages_is_one_line(squares_run: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"pip install -c constraints.txt -e '.\[export\]'"):
        export.export(load_run(squares_run, CPU), tmp_path / "model.onnx", "onnx")


def test_a_folder_is_no_file(squares_run: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "model.pt"
    folder.mkdir()
    assert main(["export", "--run", str(squares_run), "--output", str(folder)]) == 2
    assert "is a folder" in capsys.readouterr().err


def test_the_name_says_the_format(squares_run: Path, capsys) -> None:
    for arguments in (["--output", "model.bin"], ["--output", "model.onnx", "--format", "torchscript"]):
        assert main(["export", "--run", str(squares_run), *arguments]) == 2
        assert "end its name in .onnx" in capsys.readouterr().err
