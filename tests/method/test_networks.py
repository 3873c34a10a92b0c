"""Classifier and localizer: heads, shapes, input normalisation."""

from typing import Any

import pytest
import torch
from torch import nn
from torchvision.transforms.v2.functional import normalize

from lchp.backbones import IMAGENET, SYMMETRIC, Normalize, build_trunk
from lchp.baselines import METHODS
from lchp.config import ModelConfig
from lchp.errors import ConfigError
from lchp.method import networks
from lchp.method.networks import Classifier, Localizer, bilinear_attention_pooling

TINY = {"classifier": "tiny", "localizer": "tiny", "pretrained": False}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_bilinear_attention_pooling_against_a_loop() -> None:
    maps, features = torch.rand(2, 3, 4, 5, generator=rng()), torch.randn(2, 6, 4, 5, generator=rng(1))
    pooled = bilinear_attention_pooling(maps, features)
    assert pooled.shape == (2, 3 * 6)
    for i in range(2):
        row = []
        for m in range(3):
            for c in range(6):
                total = sum((maps[i, m, y, x] * features[i, c, y, x]).item() for y in range(4) for x in range(5))
                mean = total / 20
                row.append((1 if mean > 0 else -1) * (abs(mean) + 1e-6) ** 0.5)
        expected = torch.tensor(row)
        torch.testing.assert_close(pooled[i], expected / expected.norm())
    torch.testing.assert_close(pooled.norm(dim=1), torch.ones(2))


def test_pooling_of_nothing_has_a_finite_gradient() -> None:
    maps = torch.zeros(1, 2, 3, 3, requires_grad=True)
    bilinear_attention_pooling(maps, torch.rand(1, 4, 3, 3, generator=rng())).sum().backward()
    assert maps.grad is not None
    assert maps.grad.isfinite().all()


def test_bap_classifier() -> None:
    torch.manual_seed(0)
    net = Classifier(ModelConfig(**TINY, attention_maps=5, bap_scale=7.0), 4).eval()
    out = net(torch.rand(2, 3, 64, 64, generator=rng()))
    b, c, h, w = out.features.shape
    assert out.attention_maps.shape == (b, 5, h, w)
    assert net.linear.weight.shape == (4, 5 * c)
    assert out.attention_maps.min() >= 0  # a ReLU, else a map would cancel what another sees
    pooled = bilinear_attention_pooling(out.attention_maps, out.features)
    torch.testing.assert_close(out.logits, 7.0 * pooled @ net.linear.weight.T)
    torch.testing.assert_close(out.attention("attention_maps"), out.attention_maps.mean(1))
    torch.testing.assert_close(out.attention("features"), out.features.mean(1))


@pytest.mark.parametrize("head", ["bap", "gap"])
def test_scores_and_boxes_are_not_rounded_to_bf16(head) -> None:
    """Else boxes are multiples of 1/256, and classes tie."""
    torch.manual_seed(0)
    config = ModelConfig(**TINY, head=head, localizer_head="gap" if head == "gap" else "spatial")
    images = torch.rand(2, 3, 64, 64, generator=rng())
    classifier, localizer = Classifier(config, 50).eval(), Localizer(config, 64).eval()
    with torch.autocast("cpu", torch.bfloat16):
        out, boxes = classifier(images), localizer(images)
    assert out.features.dtype == torch.bfloat16  # the trunk is
    for values in (out.logits, boxes):
        assert values.dtype == torch.float32
        assert (values.bfloat16() != values).float().mean() > 0.9
    assert not out.logits.isnan().any()


@pytest.mark.parametrize("name", ["acol", "csoa", "spg"])
def test_class_maps_of_the_compared_methods_are_not_rounded_to_bf16(name) -> None:
    scheme, labels = METHODS[name].scheme, torch.tensor([0, 3])
    model: Any = scheme.build(ModelConfig(**TINY, head="gap"), 5).eval()
    images = torch.rand(2, 3, 64, 64, generator=rng())
    with torch.autocast("cpu", torch.bfloat16):
        found = {
            "acol": lambda: (*model.maps(images, labels), model(images).logits),
            "csoa": lambda: (model.both(images)[1], model(images).logits),
            "spg": lambda: (*model.branches(images)[1:], model(images).logits),
        }[name]()
    for values in found:
        assert values.dtype == torch.float32
        assert (values.bfloat16() != values).float().mean() > 0.9


def test_attention_maps_are_normalised_as_ws_dan_s_and_those_of_older_checkpoints_as_they_were(tmp_path) -> None:
    torch.manual_seed(0)
    config, images = ModelConfig(**TINY, attention_maps=5), torch.rand(2, 3, 64, 64, generator=rng())
    nets: list[Any] = [Classifier(config, 4).eval() for _ in range(3)]
    older, newer, loaded = nets
    assert [m.eps for m in newer.attend if isinstance(m, nn.BatchNorm2d)] == [1e-3]
    older.attend[1].eps = 1e-5
    state: Any = older.state_dict()
    state._metadata[""]["version"] = 1
    for net, weights in ((older, state), (newer, newer.state_dict())):
        torch.save(weights, tmp_path / "weights.pt")  # as a checkpoint is kept
        loaded.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
        assert torch.equal(loaded(images).attention_maps, net(images).attention_maps)


def test_an_image_of_which_the_trunk_leaves_nothing(monkeypatch) -> None:
    monkeypatch.setattr(networks, "build_trunk", lambda *_, **__: nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(16)))
    with pytest.raises(ConfigError, match=r"^data\.image_size = 8: too small for [a-z0-9_]+ \(.*\)$"):
        Classifier(ModelConfig(**TINY), 4, image_size=8)
    with pytest.raises(ConfigError, match=r"^data\.image_size = 8: too small"):
        Localizer(ModelConfig(**TINY), 8)


def test_gap_classifier() -> None:
    torch.manual_seed(0)
    net = Classifier(ModelConfig(**TINY, head="gap"), 4).eval()
    out = net(torch.rand(2, 3, 64, 64, generator=rng()))
    torch.testing.assert_close(out.logits, net.linear(out.features.mean((2, 3))))
    assert out.attention_maps.shape[1] == 0
    torch.testing.assert_close(out.attention("features"), out.features.mean(1))


@pytest.mark.parametrize("head", ["spatial", "gap"])
@pytest.mark.parametrize("encoding", ["linear", "sigmoid"])
def test_localizer_starts_at_the_centred_box(head, encoding) -> None:
    torch.manual_seed(0)
    net = Localizer(ModelConfig(**TINY, localizer_head=head, box_encoding=encoding), 64).eval()
    boxes = net(torch.rand(8, 3, 64, 64, generator=rng()))
    assert boxes.shape == (8, 4)
    torch.testing.assert_close(boxes, torch.tensor([[0.1, 0.1, 0.9, 0.9]]).expand(8, 4), atol=0.1, rtol=0)
    assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_sigmoid_bounds_the_box_and_linear_does_not() -> None:
    for encoding in ("linear", "sigmoid"):
        torch.manual_seed(0)
        net = Localizer(ModelConfig(**TINY, box_encoding=encoding), 64).eval()
        last = [m for m in net.modules() if isinstance(m, nn.Linear)][-1]
        with torch.no_grad():
            last.bias.add_(9.0)
        boxes = net(torch.rand(2, 3, 64, 64, generator=rng()))
        assert (boxes.max() > 1) == (encoding == "linear")


def test_a_spatial_head_tells_where_and_an_averaged_one_does_not() -> None:
    """With features that ignore position, moving the object moves the box of the spatial head alone."""
    images = torch.zeros(2, 3, 64, 64)
    images[0, :, 8:24, 16:32] = images[1, :, 40:56, 32:48] = 1.0  # far enough from the rim, on the trunk's grid
    moved = {}
    for head in ("spatial", "gap"):
        torch.manual_seed(0)
        boxes = Localizer(ModelConfig(**TINY, localizer_head=head), 64).eval()(images)
        moved[head] = (boxes[0] - boxes[1]).abs().max().item()
    assert moved["gap"] < 1e-4 < moved["spatial"]


@pytest.mark.parametrize("normalization", [IMAGENET, SYMMETRIC])
def test_networks_normalise_images_as_torchvision_does(normalization) -> None:
    images = torch.rand(2, 3, 8, 8, generator=rng())
    expected = normalize(images, mean=list(normalization[0]), std=list(normalization[1]))
    torch.testing.assert_close(Normalize(normalization)(images), expected)
    mean = torch.tensor(normalization[0]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    assert Normalize(normalization)(mean).abs().max() == 0


def test_the_mean_colour_of_a_network_is_its_weights() -> None:
    config = ModelConfig(classifier="mobilenet_v2", localizer="tiny", pretrained=False)
    assert tuple(Classifier(config, 2).mean.tolist()) == pytest.approx(IMAGENET[0])
    assert tuple(Localizer(config, 64).mean.tolist()) == SYMMETRIC[0]


def test_normalisation_is_no_part_of_a_checkpoint() -> None:
    trunk = build_trunk("tiny", "classifier", pretrained=False, weights_dir=None)
    assert not any(k.startswith("0.") for k in trunk.state_dict())
