"""A classifier of the user's own out of a file: its logits are those of its own model; or one line says why not."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from lchp.backbones import backbone, build_trunk, head_of
from lchp.backbones.own import read_own
from lchp.config import ModelConfig
from lchp.errors import ConfigError, LchpError, WeightsError
from lchp.method.networks import Classifier
from lchp.training.own_classifier import fill_classifier

pytestmark = pytest.mark.usefixtures("quick_starts")

CLASSES = 3
TIMM = ("timm:resnet10t", "timm:regnetx_002", "timm:efficientnet_lite0")


def scattered(net: nn.Module) -> nn.Module:
    """BatchNorms with statistics of their own, so that each must be in its place."""
    for n, module in enumerate(net.modules()):
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.fill_(0.01 * (n % 5))
            module.running_var.fill_(1 + 0.1 * (n % 3))
    return net.eval()


def own_model(name: str, classes: int = CLASSES) -> nn.Module:
    """A whole model of its source's, with random weights."""
    if name.startswith("timm:"):
        timm = pytest.importorskip("timm")
        return scattered(timm.create_model(name.removeprefix("timm:"), num_classes=classes))
    import torchvision.models

    more: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    more |= {"aux_logits": False} if more else {}
    return scattered(getattr(torchvision.models, name)(num_classes=classes, **more))


def classifier_of(path: Path, name: str, size: int = 96) -> Classifier:
    own = read_own(path, name)
    model = ModelConfig(name, head="gap", pretrained=False, classifier_weights=str(path))
    classifier = Classifier(model, len(own.weight), size)
    fill_classifier(classifier, own, range(len(own.weight)))
    return classifier.eval()


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "densenet161", "googlenet", "inception_v3", *TIMM])
def test_logits_are_those_of_its_own_model(name: str, tmp_path: Path) -> None:
    net, x = own_model(name), torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    torch.save(net.state_dict(), tmp_path / "w.pth")
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in backbone(name).normalization)
    with torch.no_grad():
        found = classifier_of(tmp_path / "w.pth", name)(x)
        torch.testing.assert_close(found.logits, net((x - mean) / std), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return {name: value.clone() for name, value in own_model("mobilenet_v2").state_dict().items()}


WAYS: dict[str, Callable[[Any, Path], object]] = {
    "w.pth": torch.save,
    "w.safetensors": lambda state, path: save_file(state, path),
    "wrapped.pt": lambda state, path: torch.save({"state_dict": state, "epoch": 3, "args": {"lr": 0.1}}, path),
    "parallel.tar": lambda state, path: torch.save({"model": {f"module.{n}": v for n, v in state.items()}}, path),
    "half.bin": lambda state, path: torch.save(
        {n: v.half() if v.is_floating_point() else v for n, v in state.items()}, path
    ),
}


@pytest.mark.parametrize("name", WAYS)
def test_however_it_was_saved(state: dict[str, Tensor], name: str, tmp_path: Path) -> None:
    WAYS[name](state, tmp_path / name)
    own = read_own(tmp_path / name, "mobilenet_v2")
    torch.testing.assert_close(own.weight, state["classifier.1.weight"], rtol=1e-3, atol=1e-3)
    assert own.weight.dtype == torch.float32


def without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {n: v for n, v in state.items() if n != name}


def as_(name: str, value: Tensor) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: state | {name: value}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            without("classifier.1.weight"),
            "lacks classifier.1.weight, the class head of mobilenet_v2 (classes x 1280); its last parameters: ",
        ),
        (
            as_("classifier.1.weight", torch.zeros(3, 640)),
            "classifier.1.weight is 3 x 640, expected classes x 1280, as",
        ),
        (as_("classifier.1.weight", torch.zeros(1280)), "classifier.1.weight is 1280, expected classes x 1280, as"),
        (as_("classifier.1.bias", torch.zeros(4)), "classifier.1.bias is 4, expected 3, as classifier.1.weight has it"),
        (as_("classifier.1.bias", torch.full((3,), torch.nan)), "classifier.1.bias holds values that are not finite"),
        (as_("classifier.1.weight", torch.zeros(0, 1280)), "classifier.1.weight is 0 x 1280, expected classes x 1280"),
        (as_("classifier.1.weight", torch.tensor(1.0)), "classifier.1.weight is one number, expected classes x 1280"),
        (as_("classifier.1.weight", torch.ones(3, 1280, dtype=torch.int8)), "classifier.1.weight is int8, expected de"),
        (as_("classifier.1.weight", torch.ones(3, 1280).to_sparse()), "classifier.1.weight is sparse, expected dense"),
        (as_("features.0.1.weight", torch.ones(32).to_sparse()), "features.0.1.weight is sparse, expected dense flo"),
        (as_("features.0.1.weight", torch.ones(32) + 0j), "features.0.1.weight is complex64, expected dense floating"),
        (as_("features.0.1.weight", torch.ones(32, device="meta")), "features.0.1.weight holds no values"),
        (
            as_("features.0.1.weight", torch.full((32,), 1e300, dtype=torch.float64)),
            "features.0.1.weight holds values that are no",
        ),
        (
            without("features.0.0.weight"),
            "does not fit mobilenet_v2: 1 parameters missing ['features.0.0.weight'], 0 unknown []; expected "
            "torchvision's names",
        ),
        (as_("more.weight", torch.zeros(1)), "does not fit mobilenet_v2: 0 parameters missing [], 1 unknown ['more.w"),
        (
            as_("features.0.0.weight", torch.zeros(32, 3, 7, 7)),
            "does not fit mobilenet_v2: size mismatch for features.0.0.weight: copying a param with shape",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(state: dict[str, Tensor], change: Any, said: str, tmp_path: Path) -> None:
    torch.save(change(state), tmp_path / "w.pth")
    with pytest.raises(WeightsError) as refused:
        read_own(tmp_path / "w.pth", "mobilenet_v2")
    assert str(refused.value).startswith(f"{tmp_path}/w.pth: {said}")
    assert len(str(refused.value).splitlines()) == 1


def test_a_head_without_a_bias_has_none(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(without("classifier.1.bias")(state), tmp_path / "w.pth")
    assert read_own(tmp_path / "w.pth", "mobilenet_v2").bias.tolist() == [0, 0, 0]


def test_metadata_that_ask_for_another_input_are_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "w.safetensors", {"input": "[-1,1]"})
    with pytest.raises(WeightsError, match=r"its metadata asks for input '\[-1,1\]', but this backbone is fed"):
        read_own(tmp_path / "w.safetensors", "mobilenet_v2")


class Harm:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("content", [pickle.dumps({"a": 1}, 4), b"hello", b"image,label\n"])
def test_what_torch_did_not_write_is_one_line_without_warnings(
    tmp_path: Path, content: bytes, recwarn: pytest.WarningsRecorder
) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=r"a\.pth: holds more than weights, or none"):
        read_own(tmp_path / "a.pth", "mobilenet_v2")
    assert [str(w.message) for w in recwarn if "pickle" in str(w.message)] == []


def test_no_code_of_a_file_runs(tmp_path: Path) -> None:
    for name, content in {"a.pt": {"fc.weight": Harm(tmp_path / "ran")}, "b.pt": nn.Linear(2, 2)}.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(WeightsError, match=r"holds more than weights, or none \(a whole model is code\)"):
            read_own(tmp_path / name, "mobilenet_v2")
    (tmp_path / "c.pt").write_bytes(pickle.dumps(Harm(tmp_path / "ran")))
    with pytest.raises(WeightsError, match=r"c\.pt: "):
        read_own(tmp_path / "c.pt", "mobilenet_v2")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [{}, [1], {"epoch": 3}, {3: torch.zeros(2)}, torch.zeros(2)], ids=str)
def test_data_that_are_no_weights_are_one_line(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"w.pt: holds no weights by name; save the model's state_dict\(\)$"):
        read_own(tmp_path / "w.pt", "mobilenet_v2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("own")


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(st.binary(max_size=60), st.sampled_from(["w.pt", "w.safetensors"]), st.integers(0, 400))
def test_damaged_files_are_one_line(folder: Path, content: bytes, name: str, kept: int) -> None:
    WAYS["w.pth" if name == "w.pt" else name]({"classifier.1.weight": torch.zeros(3, 8)}, folder / name)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:kept] + content)
    with pytest.raises(LchpError) as refused:
        read_own(folder / name, "mobilenet_v2")
    assert str(refused.value).startswith(f"{folder}/{name}: ")
    assert len(str(refused.value).splitlines()) == 1


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"w\.pt: not a regular file$"):
        read_own(tmp_path / "w.pt", "mobilenet_v2")


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    for name in ("gone.pt", "gone.safetensors"):
        with pytest.raises(WeightsError, match=rf"^{tmp_path}/{name}: .*No such file"):
            read_own(tmp_path / name, "mobilenet_v2")


@pytest.mark.parametrize("name", ["tiny", "vgg16", "vgg19_bn", "vgg16_gap"])
def test_a_backbone_without_such_a_head_is_refused(name: str) -> None:
    said = f"model.classifier = {name!r}: has no class head of one linear layer after global average pooling"
    with pytest.raises(ConfigError, match=f"^{said}.*expected one of inception_v3, resnet50, "):
        head_of(name)
    with pytest.raises(ConfigError, match=said):
        build_trunk(name, "whole", pretrained=False, weights_dir=None)


@pytest.mark.parametrize("name", ["timm:mobilenetv3_small_050", "timm:convnext_atto", "timm:vit_tiny_patch16_224"])
def test_a_model_of_timm_whose_head_is_more_is_refused(name: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=f"^model.classifier = {name!r}: its class head is more than global average"):
        build_trunk(name, "whole", pretrained=False, weights_dir=None)
