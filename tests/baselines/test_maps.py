"""Score maps of a plainly trained classifier: CAM, Grad-CAM, LayerCAM, InfoCAM; and the registry of methods."""

import ast
import importlib
import pkgutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import lchp.baselines
import lchp.method.lchp
from lchp.backbones.tiny import TINY
from lchp.baselines import METHODS, cam, grad_cam, info_cam, layer_cam, method
from lchp.config import ModelConfig
from lchp.errors import ConfigError
from lchp.method.networks import Classifier

MAPS = [cam.cam, grad_cam.grad_cam, layer_cam.layer_cam, info_cam.info_cam]
CLASSES = 4


def waves(*shape: int) -> Tensor:
    """Numbers in [0, 1] that any machine makes alike."""
    n = torch.Size(shape).numel()
    return (0.5 + 0.5 * torch.sin(torch.arange(n, dtype=torch.float64) * 1.7)).float().view(shape)


def patterned(head: str) -> Classifier:
    """A small classifier in inference mode whose weights any machine makes alike."""
    config = ModelConfig(classifier="tiny", head=head, attention_maps=4, pretrained=False)  # pyright: ignore
    classifier = Classifier(config, CLASSES)
    with torch.no_grad():
        for parameter in classifier.parameters():
            if parameter.ndim > 1:
                fan_in = parameter[0].numel()
                parameter.copy_((waves(*parameter.shape) - 0.48) * (12 / fan_in**0.5))
        if head == "gap":
            classifier.linear.bias.copy_(waves(CLASSES))
    return classifier.eval()


def views(n: int = 3, size: int = 32) -> tuple[Tensor, Tensor]:
    return waves(n, 3, size, size), torch.arange(n) % CLASSES


def test_the_means_of_cam_are_the_logits_less_the_bias() -> None:
    """Zhou et al., Eq. 1: S_c is the sum of M_c (here its mean, by the pooling)."""
    classifier = patterned("gap")
    images, labels = views()
    logits = classifier(images).logits - classifier.linear.bias
    torch.testing.assert_close(cam.cam(classifier, images, labels).mean((1, 2)), logits[torch.arange(3), labels])


def test_grad_cam_under_gap_and_one_linear_layer_is_the_positive_part_of_cam() -> None:
    classifier = patterned("gap")
    images, labels = views()
    features = classifier(images).features.detach()
    with torch.no_grad():  # so that maps have both signs
        classifier.linear.weight -= cam.cam(classifier, images, labels).mean() / features.sum(1).mean()
    maps = cam.cam(classifier, images, labels)
    assert (maps > 0).any()
    assert (maps < 0).any()
    pixels = maps[0].numel()
    torch.testing.assert_close(grad_cam.grad_cam(classifier, images, labels), maps.relu() / pixels)


def test_layer_cam_under_gap_and_one_linear_layer_is_cam_without_negative_weights() -> None:
    classifier = patterned("gap")
    images, labels = views()
    features = classifier(images).features
    expected = torch.einsum("bchw,bc->bhw", features, classifier.linear.weight[labels].relu()) / features[0, 0].numel()
    torch.testing.assert_close(layer_cam.layer_cam(classifier, images, labels), expected.detach())


def test_info_cam_of_a_map_that_is_one_region_is_the_difference_of_information() -> None:
    """PMI(x, y) - PMI(x, y') = log p(y | x) - log p(y' | x) for balanced classes; the bias belongs to no position."""
    classifier = patterned("gap")
    images, labels = views(size=12)  # 3 x 3 features, all in the region around the one in the middle
    logits, bias = classifier(images).logits, classifier.linear.bias
    unlikely = info_cam.least_likely(logits, labels)
    log_p, rows = logits.log_softmax(1), torch.arange(3)
    difference = log_p[rows, labels] - log_p[rows, unlikely] - (bias[labels] - bias[unlikely])
    middle = info_cam.info_cam(classifier, images, labels)[:, 1, 1]
    torch.testing.assert_close(middle / 9, difference.detach())


def test_info_cam_adds_up_the_region_around_each_position() -> None:
    classifier = patterned("gap")
    images, labels = views()
    unlikely = info_cam.least_likely(classifier(images).logits, labels)
    difference = F.pad(cam.cam(classifier, images, labels) - cam.cam(classifier, images, unlikely), (1, 1, 1, 1))
    found = info_cam.info_cam(classifier, images, labels)
    assert found.shape == (3, 8, 8)
    for row, column in ((0, 0), (0, 4), (3, 5), (7, 7)):
        expected = difference[:, row : row + 3, column : column + 3].sum((1, 2))
        torch.testing.assert_close(found[:, row, column], expected, rtol=1e-4, atol=1e-4)


def test_the_least_likely_label_is_never_the_image_s_own() -> None:
    logits = torch.tensor([[0.0, -2.0, -1.0], [0.0, -2.0, -1.0]])
    assert info_cam.least_likely(logits, torch.tensor([1, 0])).tolist() == [2, 1]


@pytest.mark.parametrize(
    ("score_map", "library"),
    [
        (
            grad_cam.grad_cam,
            [
                [[0.72269, 0, 0], [0, 0.48563, 0.67858], [0, 0.30780, 0.10654]],
                [[0.94993, 0.56323, 0], [0.21801, 0.80124, 0.64741], [0, 0.03810, 0.21522]],
            ],
        ),
        (
            layer_cam.layer_cam,
            [
                [[0.31116, 0.69696, 0.28763], [0.36179, 1.00000, 0.56952], [0.07316, 0.65330, 0.71126]],
                [[0.08296, 0.60688, 0.55989], [0.16579, 0.81017, 0.75849], [0.16893, 0.40412, 0.23276]],
            ],
        ),
    ],
)
def test_maps_are_those_of_the_library(score_map, library) -> None:
    """grad-cam 1.5.7's GradCAM and LayerCAM on the same network (with a BAP head, whose gradients differ from position
    to position), at rows and columns 1, 6 and 11 of 16."""
    images = waves(2, 3, 16, 16)
    maps = score_map(patterned("bap"), images, torch.tensor([1, 2])).numpy()
    as_the_library = [_stretched(cv2.resize(_stretched(m), (16, 16))) for m in maps]
    np.testing.assert_allclose(np.stack(as_the_library)[:, 1::5, 1::5], library, atol=2e-4)


def _stretched(x: np.ndarray) -> np.ndarray:
    return (x - x.min()) / (x.max() - x.min())


@pytest.mark.parametrize("score_map", MAPS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_maps_leave_no_trace_in_the_classifier(score_map, mode) -> None:
    classifier = patterned("gap")
    before = {k: v.clone() for k, v in classifier.state_dict().items()}
    with mode():
        images, labels = views()
        enabled = torch.is_grad_enabled()
        first = score_map(classifier, images, labels)
        assert torch.is_grad_enabled() == enabled
        again = score_map(classifier, images, labels)
    assert torch.equal(first, again)
    assert not first.requires_grad
    assert all(p.grad is None for p in classifier.parameters())
    assert all(torch.equal(v, before[k]) for k, v in classifier.state_dict().items())
    assert not classifier.trunk._forward_hooks


@pytest.mark.parametrize("score_map", MAPS)
@pytest.mark.parametrize("backbone", [*TINY, "mobilenet_v2"])
def test_maps_have_the_features_shape_on_every_cheap_backbone(score_map, backbone) -> None:
    classifier = Classifier(ModelConfig(classifier=backbone, head="gap", pretrained=False), CLASSES).eval()
    images, labels = views(2, 64)
    maps = score_map(classifier, images, labels)
    assert maps.shape == (2, *classifier(images).features.shape[2:])
    assert maps.dtype == torch.float32
    assert maps.isfinite().all()


def test_the_registry_holds_one_method_per_file_under_the_file_s_name() -> None:
    folder = Path(lchp.baselines.__path__[0])
    files = {m.name for m in pkgutil.iter_modules([str(folder)])}
    parts = {f for f in files if not hasattr(importlib.import_module(f"lchp.baselines.{f}"), "METHOD")}
    first, *compared = METHODS.items()
    assert first == ("lchp", lchp.method.lchp.METHOD)
    assert first[1].complete
    assert sorted(name for name, _ in compared) == sorted(files - parts)
    for name, found in compared:
        assert found is importlib.import_module(f"lchp.baselines.{name}").METHOD
        assert found.name == name
    used = {
        node.module
        for file in (*folder.glob("*.py"), folder.parent / "training" / "map_boxes.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom)
    }
    assert {f"lchp.baselines.{p}" for p in parts} <= used, "a file without METHOD that nothing uses"


def test_schemes_of_one_name_are_one_scheme() -> None:
    """Trainings are shared by the scheme's name."""
    by_name = {}
    for found in METHODS.values():
        assert by_name.setdefault(found.scheme.name, found.scheme) == found.scheme


def test_an_unknown_method_is_refused_with_the_nearest() -> None:
    assert method("cam").map is cam.cam
    with pytest.raises(
        ConfigError, match=r"method.name = 'grad-cam': expected lchp, .*cam.*\(did you mean grad_cam\?\)"
    ):
        method("grad-cam")
