"""Every registered backbone: shapes, a training step, torchvision's outputs; and weights that do not fit."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lchp.backbones import BACKBONES, backbone, build_trunk, load_weights
from lchp.config import InitializationConfig, ModelConfig
from lchp.data import imagenet
from lchp.data.decode import decode
from lchp.errors import ConfigError, WeightsError
from lchp.networks import Classifier, Localizer
from lchp.pseudo import make_teacher
from lchp.stages import Networks, initialization_step


@dataclass(frozen=True)
class Expected:
    """Of a role: the submodule of torchvision's network whose output is meant, channels, and grid at 96 px."""

    node: str
    channels: int
    grid: int


# stride 16 for the classifier; inception's convolutions without padding give 4 instead of 6 at 96 px
EXPECTED = {
    "inception_v3": (Expected("Mixed_6e", 768, 4), Expected("Mixed_7c", 2048, 1)),
    "resnet50": (Expected("layer3", 1024, 6), Expected("layer4", 2048, 3)),
    "vgg19_bn": (Expected("features.51", 512, 6), Expected("features", 512, 3)),
    "densenet161": (Expected("features.transition3.relu", 2112, 6), Expected("features", 2208, 3)),
    "mobilenet_v2": (Expected("features.14.conv.0", 576, 6), Expected("features.14.conv.0", 576, 6)),
}
SIZE = 96


@dataclass(frozen=True)
class Built:
    name: str
    reference: nn.Module | None
    classifier: Classifier
    localizer: Localizer


def scatter(net: nn.Module) -> nn.Module:
    """Random BatchNorm statistics, so that a buffer which is not loaded shows."""
    generator = torch.Generator().manual_seed(1)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None and m.running_var is not None:
            m.running_mean.copy_(0.1 * torch.randn(m.running_mean.shape, generator=generator))
            m.running_var.copy_(0.5 + torch.rand(m.running_var.shape, generator=generator))
    return net


def reference_network(name: str) -> nn.Module:
    torch.manual_seed(0)
    make = getattr(torchvision.models, name)
    options = {"aux_logits": False, "transform_input": False, "init_weights": False} if name == "inception_v3" else {}
    return scatter(make(weights=None, **options)).eval()


def write_weights(net: nn.Module, name: str, folder: Path, metadata: dict[str, str] | None = None) -> Path:
    """Saves what a trunk may need, without the classification layer."""
    state = {k: v for k, v in net.state_dict().items() if not k.startswith(("fc.", "classifier."))}
    path = folder / f"{name}.safetensors"
    save_file(state, path, metadata)
    return path


@pytest.fixture(scope="module", params=sorted(BACKBONES))
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """Both networks of a backbone, with torchvision's random weights read from a file where it is torchvision's."""
    name, folder = request.param, tmp_path_factory.mktemp("weights")
    ours = name not in EXPECTED
    reference = None if ours else reference_network(name)
    if reference is not None:
        write_weights(reference, name, folder)
    config = ModelConfig(
        classifier=name,
        localizer=name,
        attention_maps=4,
        pretrained=not ours,
        weights_dir=None if ours else str(folder),
    )
    torch.manual_seed(0)
    yield Built(name, reference, Classifier(config, 3), Localizer(config, SIZE))
    for path in folder.iterdir():  # half a gigabyte for VGG
        path.unlink()


def output_of(net: nn.Module, node: str, x: Tensor) -> Tensor:
    """What a submodule of a whole network puts out."""
    found: list[Tensor] = []
    hook = net.get_submodule(node).register_forward_hook(lambda _module, _input, output: found.append(output.clone()))
    with torch.no_grad():
        net(x)
    hook.remove()
    return found[0]


def test_features_equal_torchvisions(built: Built) -> None:
    x = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    if built.reference is None:  # our own: any whole grid will do
        features = built.classifier.trunk(x)
        assert SIZE % features.shape[2] == SIZE % features.shape[3] == 0
        return
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in BACKBONES[built.name].normalization)
    for trunk, expected in zip((built.classifier.trunk, built.localizer.backbone), EXPECTED[built.name], strict=True):
        with torch.no_grad():
            features = trunk.eval()(x)
        theirs = output_of(built.reference, expected.node, (x - mean) / std)
        if built.name == "densenet161":
            theirs = theirs.relu()  # torchvision applies it outside of its features
        assert features.shape == (2, expected.channels, expected.grid, expected.grid)
        torch.testing.assert_close(features, theirs, rtol=1e-5, atol=1e-5)


def test_trains_one_step(built: Built) -> None:
    classifier, localizer = built.classifier.train(), built.localizer.train()
    nets = Networks(classifier, make_teacher(classifier), localizer)
    optimizers = tuple(torch.optim.SGD(n.parameters(), lr=0.01) for n in (classifier, localizer))
    firsts = [next(n.parameters()) for n in (classifier, localizer)]
    before = [p.detach().clone() for p in firsts]
    teacher = next(nets.teacher.parameters()).clone()
    x = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    out = initialization_step(nets, optimizers, x, torch.tensor([0, 2]), InitializationConfig(), nullcontext())
    assert all(v.isfinite() for v in out.values())
    for p, old in zip(firsts, before, strict=True):
        assert p.isfinite().all()
        assert not torch.equal(p, old)
    assert not torch.equal(next(nets.teacher.parameters()), teacher)


def test_unknown_backbone_is_suggested() -> None:
    with pytest.raises(ConfigError, match=r"did you mean resnet50\?"):
        backbone("resnet5")


# --- weights that do not fit: always one line, never a random start


def mobilenet_file(folder: Path, metadata: dict[str, str] | None = None) -> tuple[Path, dict[str, Tensor]]:
    path = write_weights(reference_network("mobilenet_v2"), "mobilenet_v2", folder, metadata)
    return path, load_file(path)


def refusal(folder: Path, name: str = "mobilenet_v2") -> str:
    with pytest.raises(WeightsError) as error:
        build_trunk(name, "classifier", pretrained=True, weights_dir=str(folder))
    message = str(error.value)
    assert "\n" not in message
    return message


def test_missing_file(tmp_path: Path) -> None:
    message = refusal(tmp_path)
    assert f"{tmp_path}/mobilenet_v2.safetensors: no such file" in message
    assert "no-pretrained" in message


def test_corrupted_file(tmp_path: Path) -> None:
    path, _ = mobilenet_file(tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    assert "not a readable safetensors file" in refusal(tmp_path)
    path.write_bytes(b"")
    assert "not a readable safetensors file" in refusal(tmp_path)


def test_wrong_shape(tmp_path: Path) -> None:
    path, state = mobilenet_file(tmp_path)
    save_file(state | {"features.0.0.weight": torch.zeros(32, 1, 3, 3)}, path)
    message = refusal(tmp_path)
    assert "features.0.0.weight" in message
    assert "[32, 1, 3, 3]" in message


def test_missing_and_unknown_names(tmp_path: Path) -> None:
    path, state = mobilenet_file(tmp_path)
    save_file({f"module.{k}": v for k, v in state.items()}, path)
    message = refusal(tmp_path)
    assert "missing" in message
    assert "module.features" in message
    save_file({k: v for k, v in state.items() if k != "features.3.conv.1.0.weight"}, path)
    assert "features.3.conv.1.0.weight" in refusal(tmp_path)


def test_metadata_of_another_normalisation(tmp_path: Path) -> None:
    mobilenet_file(tmp_path, {"input": "[-1,1]"})
    assert "'[-1,1]'" in refusal(tmp_path)
    mobilenet_file(tmp_path, {"input": "imagenet mean/std"})
    build_trunk("mobilenet_v2", "classifier", pretrained=True, weights_dir=str(tmp_path))


def test_a_backbone_without_imagenet_weights() -> None:
    with pytest.raises(WeightsError, match=r"^tiny has no ImageNet weights; say --model\.no-pretrained"):
        build_trunk("tiny", "classifier", pretrained=True, weights_dir=None)


def test_half_precision_and_left_out_counters_load(tmp_path: Path) -> None:
    path, state = mobilenet_file(tmp_path)
    half = {k: v.half() for k, v in state.items() if not k.endswith("num_batches_tracked")}
    save_file(half, path)
    net = BACKBONES["mobilenet_v2"].build()
    load_weights(net, "mobilenet_v2", str(tmp_path))
    weight = net.get_parameter("features.0.0.weight")
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight.detach(), state["features.0.0.weight"].half().float())


def test_stride_metadata_moves_the_strides(tmp_path: Path) -> None:
    net = reference_network("resnet50")
    for metadata, expected in (({"stride": "conv1 of block 0 in layer2-4 (not conv2)"}, (2, 1)), (None, (1, 2))):
        write_weights(net, "resnet50", tmp_path, metadata)
        trunk = build_trunk("resnet50", "localizer", pretrained=True, weights_dir=str(tmp_path))
        strided = [
            (m.get_submodule("conv1").stride, m.get_submodule("conv2").stride)
            for m in trunk.modules()
            if hasattr(m, "downsample") and m.downsample is not None
        ]
        assert strided[1:] == [((expected[0],) * 2, (expected[1],) * 2)] * 3  # layer1 keeps its size


# --- real weights


@pytest.mark.parametrize("name", ["mobilenet_v2", "inception_v3", "resnet50"])
def test_sample_weights_load(weights_dir: Path, name: str) -> None:
    trunk = build_trunk(name, "classifier", pretrained=True, weights_dir=str(weights_dir)).eval()
    if name == "resnet50":
        assert trunk.get_submodule("1.5.0.conv1").stride == (2, 2)  # its metadata says so
    with torch.no_grad():
        features = trunk(torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)))
    assert features.isfinite().all()
    assert 0.01 < features.std() < 10


@pytest.mark.slow
def test_resnet50_names_the_sample_images(weights_dir: Path, ilsvrc10_root: Path) -> None:
    """Top-1 of the whole network, which wrong strides or a wrong normalisation would lower; 73 % on all 500 images."""
    net = BACKBONES["resnet50"].build().eval()
    load_weights(net, "resnet50", str(weights_dir))
    state = load_file(weights_dir / "resnet50.safetensors")
    net.get_submodule("fc").load_state_dict({k: state[f"fc.{k}"].float() for k in ("weight", "bias")})
    classes = torch.tensor([0, 217, 482, 491, 497, 566, 569, 571, 574, 701])  # of 1000, in the order of synset ids
    split = imagenet.load(ilsvrc10_root).test.select(torch.arange(0, 500, 10).numpy())
    assert split.paths is not None
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in BACKBONES["resnet50"].normalization)
    right = 0
    with torch.no_grad():
        for path, label in zip(split.paths, split.labels, strict=True):
            x = torch.from_numpy(decode(path, 224)).permute(2, 0, 1)[None].float() / 255
            right += int(net((x - mean) / std).argmax() == classes[label])
    assert right / len(split) > 0.6
