"""Every registered backbone: shapes, a training step, torchvision's outputs; timm's models; weights that do not fit."""

import copy
import functools
import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lchp import TrainConfig, override
from lchp.backbones import BACKBONES, Role, Trunk, backbone, build_trunk, load_weights, weights_identity
from lchp.backbones.depthwise import DepthwiseConv2d
from lchp.config import InitializationConfig, ModelConfig
from lchp.data import imagenet
from lchp.data.decode import decode
from lchp.deploy.trained import load_run
from lchp.errors import ConfigError, WeightsError
from lchp.method.batch import Batch
from lchp.method.networks import Classifier, Localizer
from lchp.method.pseudo_boxes import make_teacher, update_teacher
from lchp.method.steps import classifier_step, localizer_step
from lchp.method.view_table import ViewTable
from lchp.training.run import train

pytestmark = pytest.mark.usefixtures("quick_starts")


@dataclass(frozen=True)
class Expected:
    """Of a role: the submodule of torchvision's network whose output is meant, channels, and the grid's side for an
    image with a side of `side`."""

    node: str
    channels: int
    grid: int


# stride 16 for the classifier; inception's convolutions without padding give 4 instead of 6 at 96 px, and none at 64
EXPECTED = {
    "inception_v3": (Expected("Mixed_6e", 768, 4), Expected("Mixed_7c", 2048, 1)),
    "resnet50": (Expected("layer3", 1024, 4), Expected("layer4", 2048, 2)),
    "vgg19_bn": (Expected("features.51", 512, 4), Expected("features", 512, 2)),
    "densenet161": (Expected("features.transition3.relu", 2112, 4), Expected("features", 2208, 2)),
    "mobilenet_v2": (Expected("features.14.conv.0", 576, 4), Expected("features.14.conv.0", 576, 4)),
    "vgg16": (Expected("features.29", 512, 4), Expected("features", 512, 2)),
    "googlenet": (Expected("inception4e", 832, 4), Expected("inception5b", 1024, 2)),
    # what goes into the added convolution, and the channels that come out of it
    "vgg16_gap": (Expected("features.29", 1024, 4), Expected("features.29", 1024, 4)),
    "googlenet_gap": (Expected("inception4e", 1024, 4), Expected("inception4e", 1024, 4)),
}


def side(name: str) -> int:
    """Of the images: small, since what is asked holds at any size."""
    return 96 if name == "inception_v3" else 64


# the side of the grid at 64, 160 and 448 px, for the classifier and for the localizer; 0: too small an image
GRIDS = {
    "inception_v3": ((2, 8, 26), (0, 3, 12)),
    "mobilenet_v2": ((4, 10, 28), (4, 10, 28)),
    "vgg16_gap": ((4, 10, 28), (4, 10, 28)),
    "googlenet_gap": ((4, 10, 28), (4, 10, 28)),
    "tiny": ((16, 40, 112), (16, 40, 112)),
    "tiny_wide": ((16, 40, 112), (16, 40, 112)),
    "tiny_coarse": ((8, 20, 56), (8, 20, 56)),
    "tiny_deep": ((16, 40, 112), (16, 40, 112)),
    "timm:vit_tiny_patch16_224": ((4, 10, 28), (4, 10, 28)),
}
STRIDES_16_AND_32 = ((4, 10, 28), (2, 5, 14))

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed: lchp[timm]")
TIMM = ("timm:mobilenetv3_small_050", "timm:vit_tiny_patch16_224")
NAMES = [
    *(n for n in sorted(BACKBONES) if BACKBONES[n].source != "timm"),
    *(pytest.param(n, marks=needs_timm) for n in sorted(BACKBONES) if BACKBONES[n].source == "timm"),
    *(pytest.param(n, marks=needs_timm) for n in TIMM),
]


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


def begin(module: nn.Module) -> None:
    """As torchvision begins its VGG, so that no layer's output vanishes."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        assert module.bias is not None
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        module.reset_parameters()


def reference_network(name: str) -> nn.Module:
    torch.manual_seed(0)
    make = getattr(torchvision.models, name)
    if name.startswith("vgg"):  # without its classification layers, whose 124 million parameters take seconds
        with torch.device("meta"):
            net = make(weights=None)
        net.classifier = nn.Identity()
        return scatter(net.to_empty(device="cpu").apply(begin)).eval()
    inception = name in ("inception_v3", "googlenet")
    options = {"aux_logits": False, "transform_input": False, "init_weights": False} if inception else {}
    return scatter(make(weights=None, **options)).eval()


def write_weights(net: nn.Module, name: str, folder: Path, metadata: dict[str, str] | None = None) -> Path:
    """Saves what a trunk may need, without the classification layer."""
    state = {k: v for k, v in net.state_dict().items() if not k.startswith(("fc.", "classifier."))}
    path = folder / f"{name}.safetensors"
    save_file(state, path, metadata)
    return path


@pytest.fixture(scope="module", params=NAMES)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """Both networks of a backbone, with torchvision's random weights read from a file where it is torchvision's."""
    name, folder = request.param, tmp_path_factory.mktemp("weights")
    ours = name not in EXPECTED
    source = None if ours else BACKBONES[name].file or name
    reference = None if source is None else reference_network(source)
    if source is not None and reference is not None:
        write_weights(reference, source, folder)
    config = ModelConfig(
        classifier=name,
        localizer=name,
        attention_maps=4,
        pretrained=not ours,
        weights_dir=None if ours else str(folder),
    )
    torch.manual_seed(0)
    yield Built(name, reference, Classifier(config, 3), Localizer(config, side(name)))
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
    x = torch.rand(2, 3, side(built.name), side(built.name), generator=torch.Generator().manual_seed(2))
    if built.reference is None:  # none of torchvision's: any whole grid will do
        features = built.classifier.trunk(x)
        assert side(built.name) % features.shape[2] == side(built.name) % features.shape[3] == 0
        return
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in BACKBONES[built.name].normalization)
    for trunk, expected in zip((built.classifier.trunk, built.localizer.backbone), EXPECTED[built.name], strict=True):
        with torch.no_grad():
            features = trunk.eval()(x)
        theirs = output_of(built.reference, expected.node, (x - mean) / std)
        if built.name == "densenet161":
            theirs = theirs.relu()  # torchvision applies it outside of its features
        if BACKBONES[built.name].added:
            with torch.no_grad():
                theirs = trunk.get_submodule("1.1")(theirs).relu()
        assert features.shape == (2, expected.channels, expected.grid, expected.grid)
        torch.testing.assert_close(features, theirs, rtol=1e-5, atol=1e-5)


def test_trains_one_step(built: Built) -> None:
    classifier, localizer = built.classifier.train(), built.localizer.train()
    teacher, table, config = make_teacher(classifier), ViewTable(1, 2, 4), InitializationConfig()
    optimizers = tuple(torch.optim.SGD(n.parameters(), lr=0.01) for n in (classifier, localizer))
    firsts = [next(n.parameters()) for n in (classifier, localizer)]
    before = [p.detach().clone() for p in firsts]
    taught = next(teacher.parameters()).clone()
    x = torch.rand(2, 3, side(built.name), side(built.name), generator=torch.Generator().manual_seed(3))
    batch = Batch(x, torch.tensor([0, 2]), index=torch.arange(2))
    first = classifier_step(classifier, teacher, table, batch, 0, config)
    second = localizer_step(localizer, batch, table.at(0, torch.arange(2)), torch.ones(2), config.alpha)
    for net, (loss, scalars), optimizer in zip((classifier, localizer), (first, second), optimizers, strict=True):
        assert all(v.isfinite() for v in (loss, *scalars.values()))
        loss.backward()
        assert takes_part(net)
        optimizer.step()
    update_teacher(teacher, classifier, config.beta, config.teacher_buffers)
    for p, old in zip(firsts, before, strict=True):
        assert p.isfinite().all()
        assert not torch.equal(p, old)
    assert not torch.equal(next(teacher.parameters()), taught)


def takes_part(net: nn.Module) -> bool:
    """Whether each parameter has a gradient: with several workers, one that takes no part is an error."""
    return all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())


def test_averaging_heads_train_too() -> None:
    config = ModelConfig("tiny", "tiny", head="gap", localizer_head="gap", pretrained=False)
    for net in (Classifier(config, 3).train(), Localizer(config, 64).train()):
        out = net(torch.rand(2, 3, 64, 64))
        (out if isinstance(out, Tensor) else out.logits).square().sum().backward()
        assert takes_part(net)


def test_grids(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every size in use, on the meta device, which computes shapes alone. It takes longest for a BatchNorm, which
    changes none, and longer than the CPU for a small transformer."""
    monkeypatch.setattr(nn.functional, "batch_norm", lambda x, *_, **__: x)
    device = "cpu" if "vit" in built.name else "meta"
    trunks = built.classifier.trunk.eval(), built.localizer.backbone.eval()
    for trunk, grids in zip(trunks, GRIDS.get(built.name, STRIDES_16_AND_32), strict=True):
        there = {n: v.detach().to(device) for n, v in (*trunk.named_parameters(), *trunk.named_buffers())}
        for size, grid in zip((64, 160, 448), grids, strict=True):
            if grid:
                images = torch.zeros(1, 3, size, size, device=device)
                assert torch.func.functional_call(trunk, there, images).shape[2:] == (grid, grid)
            else:
                with (
                    torch.device("meta"),
                    pytest.raises(ConfigError, match=rf"^data\.image_size = {size}: too small for {built.name} "),
                ):
                    Localizer(ModelConfig(built.name, built.name, pretrained=False), size)


def test_unknown_backbone_is_suggested() -> None:
    with pytest.raises(ConfigError, match=r"did you mean resnet50\?"):
        backbone("resnet5")
    with pytest.raises(ConfigError, match="or timm:NAME"):
        backbone("convnext_tiny")


# --- timm


def test_without_timm_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # import raises ImportError
    for name in ("timm:convnext_tiny", "se_resnet50"):
        with pytest.raises(ConfigError, match=r"needs timm, an optional package: pip install timm"):
            build_trunk(name, "classifier", pretrained=False, weights_dir=None)


@needs_timm
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm:convnext_tny", r"has no model 'convnext_tny' \(did you mean timm:convnext_tiny\?\)$"),
        ("timm:", "has no model ''"),
        ("timm:hf-hub:someone/model", "has no model"),
        ("timm:seresnet50.in1", "its tags: a1_in1k, a2_in1k, a3_in1k, ra2_in1k"),
        ("timm:vit_small_patch32_224", "stride 32, too coarse for a classifier"),
        ("timm:cait_xxs24_224", "its input is fixed at 224 px"),
    ],
)
def test_models_of_timm_that_will_not_do(name: str, said: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=said) as error:
        build_trunk(name, "classifier", pretrained=False, weights_dir=None)
    assert "\n" not in str(error.value)


@needs_timm
@pytest.mark.parametrize("name", [*TIMM, "timm:resnet10t"])
def test_timms_features_survive_the_cut(name: str) -> None:
    """Pruned, and its activations taken out of its BatchNorms, a model gives the features it gave before."""
    torch.manual_seed(0)
    entry = backbone(name)
    whole = scatter(entry.build()).eval()
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    vit = "vit" in name
    with torch.no_grad():
        theirs = whole.forward_intermediates(x, norm=vit, output_fmt="NCHW", intermediates_only=True)  # pyright: ignore
        indices: dict[Role, int] = {"classifier": -1 if vit else -2, "localizer": -1}
        for role, index in indices.items():
            trunk = entry.cut(copy.deepcopy(whole), role).eval()
            torch.testing.assert_close(trunk(x), theirs[index], rtol=1e-5, atol=1e-5)
            assert trunk(x).shape[2:] == ((4, 4) if vit or role == "classifier" else (2, 2))


@needs_timm
def test_activations_survive_torchs_synchronized_batch_norm() -> None:
    trunk = build_trunk("timm:mobilenetv3_small_050", "classifier", pretrained=False, weights_dir=None)
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        before = scatter(trunk).eval()(x)
        synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(trunk)
        assert any(isinstance(m, nn.SyncBatchNorm) for m in synchronized.modules())
        torch.testing.assert_close(synchronized(x), before)


@needs_timm
def test_images_that_patches_do_not_cover_are_refused() -> None:
    trunk = build_trunk("timm:vit_tiny_patch16_224", "classifier", pretrained=False, weights_dir=None)
    with pytest.raises(ConfigError, match=r"data\.image_size = 72: expected a multiple of 16"):
        trunk.train()(torch.zeros(1, 3, 72, 72))


@needs_timm
def test_timms_weights(tmp_path: Path) -> None:
    name = "timm:resnet10t"
    assert weights_identity(name, pretrained=True, weights_dir=None) == "timm resnet10t.c3_in1k"
    assert refusal(tmp_path, name).startswith(f"{tmp_path}/timm_resnet10t.safetensors: no such file")
    net = scatter(backbone(name).build())
    state = {k: v for k, v in net.state_dict().items() if not k.startswith("fc.")}
    save_file(state, tmp_path / "timm_resnet10t.safetensors")
    assert len(weights_identity(name, pretrained=True, weights_dir=str(tmp_path))) == 16
    trunk = build_trunk(name, "localizer", pretrained=True, weights_dir=str(tmp_path))
    held = list(trunk.state_dict().values())
    for key in ("conv1.6.weight", "layer4.0.bn2.running_var"):
        assert any(v.shape == state[key].shape and torch.equal(v, state[key]) for v in held), key
    save_file({k: v for k, v in state.items() if k != "conv1.6.weight"}, tmp_path / "timm_resnet10t.safetensors")
    message = refusal(tmp_path, name)
    assert "conv1.6.weight" in message
    assert "expected timm's names" in message


def test_the_weights_of_se_resnet50_are_named() -> None:
    assert weights_identity("se_resnet50", pretrained=True, weights_dir=None) == "timm seresnet50.ra2_in1k"


def test_what_a_backbone_adds_to_a_network_with_weights_starts_from_random(tmp_path: Path) -> None:
    state = {k: v for k, v in backbone("googlenet").build().state_dict().items() if not k.startswith("fc.")}
    save_file(state, tmp_path / "googlenet.safetensors")
    trunk = build_trunk("googlenet_gap", "classifier", pretrained=True, weights_dir=str(tmp_path))
    assert isinstance(trunk, Trunk)
    assert [trunk.get_parameter(n).shape for n in trunk.from_random] == [(1024, 832, 3, 3), (1024,)]
    whole = build_trunk("googlenet_gap", "classifier", pretrained=False, weights_dir=None)
    assert isinstance(whole, Trunk)
    assert set(whole.from_random) == {n for n, _ in whole.named_parameters()}


@needs_timm
def test_a_download_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    build = timm.create_model

    def create(*args, pretrained: bool, **options):
        if pretrained:
            raise RuntimeError("no route to host\nand more")
        return build(*args, pretrained=pretrained, **options)

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(WeightsError) as error:
        build_trunk("timm:resnet10t", "classifier", pretrained=True, weights_dir=None)
    message = str(error.value)
    assert message.startswith("timm's weights of timm:resnet10t could not be downloaded (no route to host); give")
    assert "timm_resnet10t.safetensors" in message


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (URLError(OSError(113, "No route to host")), "downloaded (<urlopen error [Errno 113] No route to host>)"),
        (RuntimeError('invalid hash value (expected "a", got "b")'), "downloaded (invalid hash value"),
        (OSError(28, "No space left on device"), "stored in {hub} ([Errno 28] No space left on device)"),
        (PermissionError(13, "Permission denied", "/a/b"), "stored in /a/b ([Errno 13] Permission denied: '/a/b')"),
        (EOFError("Ran out of input"), "read from {hub}, where the file is damaged: delete it (Ran out of input)"),
    ],
)
def test_weights_that_cannot_be_fetched_say_what_failed(
    monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    import torchvision.models

    def fail(*_: object) -> object:
        raise error

    monkeypatch.setattr(torchvision.models, "get_weight", fail)
    with pytest.raises(WeightsError) as caught:
        build_trunk("mobilenet_v2", "classifier", pretrained=True, weights_dir=None)
    hub = os.path.join(torch.hub.get_dir(), "checkpoints")
    assert f"mobilenet_v2 could not be {said.format(hub=hub)}" in str(caught.value)


@needs_timm
def test_a_model_of_timms_trains_and_comes_back(squares_config: TrainConfig, tmp_path: Path) -> None:
    """In bf16 and channels_last, with its 3x3 depthwise convolutions replaced."""
    name = "timm:mobilenetv3_small_050"
    config = override(
        squares_config,
        {
            "model.classifier": name,
            "model.localizer": name,
            "data.resize": 72,
            "data.image_size": 64,
            "precision": "bf16",
        },
    )
    result = train(config, output=tmp_path / "run")
    assert set(result.summary["results"]) == {"pseudo_label", "lchp_i", "lchp_r"}
    trained = load_run(tmp_path / "run", torch.device("cpu"))
    assert trained.localizer is not None
    assert any(isinstance(m, DepthwiseConv2d) for m in trained.localizer.modules())
    state = torch.load(tmp_path / "run" / "checkpoints" / "refinement.pt", weights_only=True)["modules"]["localizer"]
    for key, value in trained.localizer.state_dict().items():
        assert torch.equal(value, state[key])


# --- weights that do not fit: always one line, never a random start


mobilenet = functools.cache(lambda: reference_network("mobilenet_v2"))


def mobilenet_file(folder: Path, metadata: dict[str, str] | None = None) -> tuple[Path, dict[str, Tensor]]:
    path = write_weights(mobilenet(), "mobilenet_v2", folder, metadata)
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


@pytest.mark.parametrize("name", ["mobilenet_v2", "inception_v3"])
def test_sample_weights_load(weights_dir: Path, name: str) -> None:
    trunk = build_trunk(name, "classifier", pretrained=True, weights_dir=str(weights_dir)).eval()
    with torch.no_grad():
        features = trunk(torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)))
    assert features.isfinite().all()
    assert 0.01 < features.std() < 10


def test_resnet50_knows_the_sample_images(weights_dir: Path, ilsvrc10_root: Path) -> None:
    """The mean cross-entropy of the whole network on ten images is 0.78, where wrong strides or a wrong normalisation
    show: it is 1.26 with torchvision's strides, 1.31 with inception's normalisation."""
    net = BACKBONES["resnet50"].build().eval()
    load_weights(net, "resnet50", str(weights_dir))
    assert net.get_submodule("layer2.0.conv1").stride == (2, 2)  # its metadata says so
    state = load_file(weights_dir / "resnet50.safetensors")
    net.get_submodule("fc").load_state_dict({k: state[f"fc.{k}"].float() for k in ("weight", "bias")})
    classes = torch.tensor([0, 217, 482, 491, 497, 566, 569, 571, 574, 701])  # of 1000, in the order of synset ids
    split = imagenet.load(ilsvrc10_root).test.select(torch.arange(0, 500, 50).numpy())
    assert split.paths is not None
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in BACKBONES["resnet50"].normalization)
    x = torch.stack([torch.from_numpy(decode(path, 224)).permute(2, 0, 1) for path in split.paths]) / 255
    with torch.no_grad():
        assert nn.functional.cross_entropy(net((x - mean) / std), classes[split.labels]) < 0.9
