"""ACoL, ADL, SPG and CSoA: identities, shapes, first losses; and where they hook a trunk."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from golden import BATCH, CLASSES, images, trunk
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from lchp.backbones import BACKBONES, SYMMETRIC, Backbone, build_trunk
from lchp.backbones import backbone as backbone_of
from lchp.backbones.spine import outputs, resolutions
from lchp.baselines import METHODS, Batch
from lchp.baselines.acol import DELTA, Acol, acol_loss, acol_map, erase
from lchp.baselines.adl import DROP_RATE, Adl, Dropout, adl_loss, positions
from lchp.baselines.cam import PLAIN, cam, inner_cam
from lchp.baselines.csoa import MARGIN, augmentation_loss, confidence_segmentation, segmentation_loss
from lchp.baselines.spg import LEAST_FOREGROUND, RELATIVE, Spg, guidance, guided, spg_loss
from lchp.config import ModelConfig
from lchp.method.definition import minmax
from lchp.method.networks import Classifier

NAMES = ("acol", "adl", "csoa", "spg")
TINY = ("tiny", "tiny_wide", "tiny_coarse", "tiny_deep")


def config(name: str = "tiny") -> ModelConfig:
    return ModelConfig(classifier=name, head="gap", pretrained=False)


def make(name: str, backbone: str = "tiny") -> nn.Module:
    torch.manual_seed(0)
    return METHODS[name].scheme.build(config(backbone), CLASSES)


def batch(step: int = 0, seed: int = 0) -> Batch:
    return Batch(*images(step), torch.Generator().manual_seed(seed), 0.0)


def loss_of(name: str, model: nn.Module, given: Batch) -> Tensor:
    return METHODS[name].scheme.loss(model, given)


def trunk_of(name: str) -> nn.Module:
    return build_trunk(name, "classifier", pretrained=False, weights_dir=None)


# where a trunk is hooked


def names(trunk: nn.Module) -> list[list[tuple[str, int]]]:
    """Name and channels of the units of the last two resolutions."""
    return [[(u.name, u.channels) for u in group] for group in resolutions(trunk)[-2:]]


def test_a_unit_ends_with_its_activation() -> None:
    net = trunk_of("tiny")  # convolution, norm, ReLU: three times
    assert names(net) == [[("1.2", 16)], [("1.5", 32), ("1.8", 48)]]
    assert [u.name for u in positions(net)] == ["1.2", "1.5", "1.8"]


def test_poolings_are_units() -> None:
    first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True))
    net = nn.Sequential(nn.Identity(), nn.Sequential(first, nn.MaxPool2d(2), nn.Conv2d(4, 5, 1), nn.ReLU()))
    assert names(net) == [[("1.0.1", 4)], [("1.1", 4), ("1.3", 5)]]


def test_a_residual_block_is_one_unit_although_it_adds_in_place() -> None:
    shortcut = nn.Conv2d(8, 16, 1, stride=2)
    blocks = [Bottleneck(8, 2), Bottleneck(8, 4, 2, shortcut), Bottleneck(16, 4), Bottleneck(16, 4)]
    net = nn.Sequential(nn.Identity(), nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sequential(*blocks)))
    assert names(net) == [[("1.0", 8), ("1.1.0", 8)], [(f"1.1.{i}", 16) for i in (1, 2, 3)]]
    assert [u.name for u in positions(net)] == ["1.0", "1.1.1", "1.1.3"]


class Tokens(nn.Module):
    """Patches of 16 px as tokens B x N x C, and those as a map again, as in a vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(3 * 16**2, 6), nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(self.embed(F.unfold(x, 16, stride=16).mT))
        return tokens.mT.unflatten(2, (x.shape[2] // 16, -1))


def test_tokens_are_no_map_so_the_trunks_output_is_left() -> None:
    net = nn.Sequential(nn.Identity(), Tokens())
    assert names(net) == [[("1", 6)]]
    assert [u.name for u in positions(net)] == ["1"]


@pytest.mark.parametrize("name", ["tiny_deep", "mobilenet_v2"])
def test_what_is_hooked_is_what_the_trunk_computes(name: str) -> None:
    torch.manual_seed(0)
    net = trunk_of(name)
    modes = [m.training for m in net.modules()]
    units = [u for group in resolutions(net) for u in group]
    assert [m.training for m in net.modules()] == modes
    x = torch.rand(2, 3, 160, 160)
    with torch.no_grad(), outputs(net.eval(), units) as found:
        features = net(x)
    assert torch.equal(found[units[-1]], features)
    assert [found[u].shape for u in units] == [(2, u.channels, u.height, u.width) for u in units]
    with torch.no_grad():
        found.clear()
        net(x)
    assert not found, "hooks are gone with their context"


# all four


@pytest.mark.parametrize("backbone", [*TINY, "mobilenet_v2"])
@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_gradients(name: str, backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("acol", "spg"):
        monkeypatch.setattr(f"lchp.baselines.{module}.WIDTH", 64)  # for speed
    model, given = make(name, backbone), batch()
    loss_of(name, model, given).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without
    assert all(p.grad is not None and p.grad.any() for n, p in model.named_parameters() if n.endswith("0.weight"))
    model.eval()
    out = model(given.images)
    maps = METHODS[name].map(model, given.images, given.labels)  # pyright: ignore[reportOptionalCall]
    assert out.logits.shape == (BATCH, CLASSES)
    assert maps.shape == (BATCH, *out.features.shape[2:])
    assert not maps.requires_grad
    assert maps.isfinite().all()
    mean = model.mean
    assert isinstance(mean, Tensor)
    assert mean.tolist() == pytest.approx(backbone_of(backbone).normalization[0])


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_and_a_loaded_state_are_the_same_method(name: str) -> None:
    model = make(name)
    twin = copy.deepcopy(model)
    loaded = METHODS[name].scheme.build(config(), CLASSES)
    loaded.load_state_dict(model.state_dict())
    losses = [loss_of(name, m.train(), batch()).item() for m in (model, twin, loaded)]
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize("name", NAMES)
def test_draws_come_from_the_generator_alone(name: str) -> None:
    model = make(name)
    first = loss_of(name, copy.deepcopy(model), batch())
    torch.manual_seed(99)
    assert torch.equal(loss_of(name, copy.deepcopy(model), batch()), first)


@pytest.mark.parametrize("name", NAMES)
def test_a_lower_precision_changes_the_loss_little(name: str) -> None:
    model, given = make(name), batch()
    whole = loss_of(name, copy.deepcopy(model), given)
    with torch.autocast("cpu", torch.bfloat16):
        assert loss_of(name, model, batch()).item() == pytest.approx(whole.item(), rel=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_the_head_is_the_methods_whatever_the_config_says(name: str) -> None:
    given = ModelConfig(classifier="tiny", head="bap", pretrained=False)
    assert METHODS[name].scheme.build(given, CLASSES)(torch.rand(1, 3, 64, 64)).attention_maps.shape[1] == 0


GOLDEN = {
    "acol": [2.30749, 2.29326, 2.27117],
    "adl": [1.11593, 1.08516, 1.10217],
    "csoa": [3.16506, 3.12893, 3.13472],
    "spg": [2.87488, 2.822, 2.85235],
}
"""Losses of three SGD steps on a fixed shallow trunk. A change of these numbers is a change of the maths."""


@pytest.mark.parametrize("name", NAMES)
def test_first_losses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "golden", Backbone(trunk, lambda net, _role: net, SYMMETRIC))
    model = make(name, "golden").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    generator, found = torch.Generator().manual_seed(0), []
    for step in range(3):
        loss = loss_of(name, model, Batch(*images(step), generator, step / 3))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert found == pytest.approx(GOLDEN[name], rel=1e-3)


# ACoL


def test_branch_b_sees_zeros_where_branch_a_fired() -> None:
    features = torch.rand(2, 5, 3, 3) + 0.1
    attention = torch.tensor([[[0.0, 0.5, 1.0], [0.59, 0.61, 0.2], [0.1, 0.2, 0.3]]]).repeat(2, 1, 1)
    attention[1] = 10 * attention[1] - 7  # only the place in the range counts
    erased = erase(features, attention)
    fired = torch.tensor([[0, 0, 1], [0, 1, 0], [0, 0, 0]], dtype=torch.bool)
    assert (erased[:, :, fired] == 0).all()
    assert torch.equal(erased[:, :, ~fired], features[:, :, ~fired])


def test_branch_b_gets_the_erased_features() -> None:
    model = make("acol").eval()
    assert isinstance(model, Acol)
    given, seen = batch(), []
    model.branch_b.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        a, _ = model.maps(given.images, given.labels)
        features = model.classifier.trunk(given.images)
    fired = minmax(a[torch.arange(BATCH), given.labels]) > DELTA  # B x h x w
    assert fired.flatten(1).any(1).all()
    kept = (~fired)[:, None].expand_as(features)
    assert (seen[0][~kept] == 0).all()
    assert torch.equal(seen[0][kept], features[kept])


def test_a_map_without_range_erases_nothing() -> None:
    features = torch.rand(1, 2, 4, 4)
    assert torch.equal(erase(features, torch.full((1, 4, 4), 3.0)), features)


def test_acol_is_two_cross_entropies_that_keep_to_their_branch() -> None:
    model, given = make("acol"), batch()
    assert isinstance(model, Acol)
    a, b = (F.cross_entropy(m.mean((2, 3)), given.labels) for m in model.maps(given.images, given.labels))
    a.backward(retain_graph=True)
    assert all(p.grad is None for p in model.branch_b.parameters())
    model.zero_grad()
    b.backward()
    assert all(p.grad is None for p in model.branch_a.parameters())
    assert all(p.grad is not None for p in model.classifier.trunk.parameters())
    assert acol_loss(make("acol"), given).item() == pytest.approx((a + b).item(), rel=1e-6)


def test_acols_map_is_the_larger_of_both() -> None:
    model, given = make("acol").eval(), batch()
    assert isinstance(model, Acol)
    with torch.no_grad():
        a, b = (minmax(m[torch.arange(BATCH), given.labels]) for m in model.maps(given.images, given.labels))
    fused = acol_map(model, given.images, given.labels)
    assert ((fused == a) | (fused == b)).all()
    assert ((fused >= a) & (fused >= b)).all()


# ADL


def test_adl_is_plain_in_inference_mode() -> None:
    model, given = make("adl").eval(), batch()
    assert isinstance(model, Adl)
    assert torch.equal(model(given.images).logits, model.classifier(given.images).logits)
    assert torch.equal(inner_cam(model, given.images, given.labels), cam(model.classifier, given.images, given.labels))


def test_adl_at_drop_rate_0_is_plain_but_for_the_importance_map() -> None:
    model, given = make("adl"), batch()
    assert isinstance(model, Adl)
    plain = PLAIN.loss(copy.deepcopy(model.classifier), given)
    assert torch.equal(adl_loss(copy.deepcopy(model), given, Dropout(drop_rate=0, importance=False)), plain)
    assert not torch.isclose(adl_loss(copy.deepcopy(model), given, Dropout(drop_rate=0)), plain)
    features = torch.rand(2, 3, 4, 4)
    weighed = Dropout(drop_rate=0)(features, given.draws)
    assert torch.allclose(weighed / features.mean(1, keepdim=True).sigmoid(), features)


def test_adl_drops_where_its_attention_is_highest_in_each_image() -> None:
    features = torch.tensor([[[1.0, 2.0], [3.0, 10.0]], [[1.0, 2.0], [3.0, 8.5]]])[None]
    features = torch.cat([features, features / 100])  # attention 1, 2, 3, 9.25; the threshold is the image's own
    dropped = Dropout(drop_rate=1, gamma=0.3)(features, torch.Generator())
    assert (dropped[..., 1, :] == 0).all()  # 3 and 9.25 are above 0.3 * 9.25
    assert torch.equal(dropped[..., 0, :], features[..., 0, :])


def test_adl_drops_at_its_rate() -> None:
    generator, features = torch.Generator().manual_seed(0), torch.arange(4.0).view(1, 1, 2, 2)
    layer = Dropout()
    dropped = sum((layer(features, generator)[0, 0, 1, 1] == 0).item() for _ in range(2000))
    assert dropped / 2000 == pytest.approx(DROP_RATE, abs=4 * math.sqrt(DROP_RATE * (1 - DROP_RATE) / 2000))


def test_adl_is_at_its_positions_and_leaves_them() -> None:
    model, given, sizes = make("adl", "tiny_deep"), batch(), []
    assert isinstance(model, Adl)

    def layer(features: Tensor, _generator: torch.Generator) -> Tensor:
        sizes.append(tuple(features.shape[1:3]))
        return features

    adl_loss(model, given, layer)  # pyright: ignore[reportArgumentType]
    assert sizes == [(16, 32), (32, 16), (48, 16)]
    model(given.images)
    assert len(sizes) == 3


# SPG


def test_spg_masks() -> None:
    scores = torch.full((1, 40, 40), 0.3)
    scores[0, :10], scores[0, 30:] = 0.8, 0.01
    mask = guidance(scores, 0.7, 0.05)
    assert torch.equal(mask.foreground, scores > 0.7)
    assert torch.equal(mask.background, scores < 0.05)
    assert not (mask.foreground | mask.background)[0, 10:30].any()


def test_spg_takes_the_highest_scores_where_none_is_high_enough() -> None:
    scores = torch.full((2, 60, 60), 0.2)
    scores[0, :10], scores[1, :2] = 0.4, 0.4
    scores[1, 5, 5] = 0.9  # one pixel is above delta_h: too little, and 0.4 is not above 0.7 * 0.9
    assert LEAST_FOREGROUND > 1 / 60**2
    mask = guidance(scores, 0.7, 0.05)
    assert torch.equal(mask.foreground, scores > RELATIVE * scores.amax((1, 2), keepdim=True))
    assert mask.foreground.sum((1, 2)).tolist() == [600, 1]


def test_spg_counts_only_the_pixels_that_the_mask_names() -> None:
    logits = torch.tensor([[[2.0, -1.0], [0.5, 3.0]]], requires_grad=True)
    mask = guidance(torch.tensor([[[0.9, 0.01], [0.3, 0.5]]]), 0.7, 0.05)
    loss = guided(logits, mask)
    assert loss.item() == pytest.approx((math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))) / 2)
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad[0, 1] == 0).all()
    nothing = guidance(torch.full((1, 2, 2), 0.3), 0.2, 0.05)._replace(
        foreground=torch.zeros(1, 2, 2, dtype=torch.bool)
    )
    assert guided(logits, nothing).item() == 0


def test_spgs_guidance_teaches_the_branches_and_not_their_teachers() -> None:
    model, given = make("spg"), batch()
    assert isinstance(model, Spg)
    _, b1, b2, c = model.branches(given.images)
    guided(c, guidance(((b1 + b2.mean()) / 2).sigmoid(), 0.5, 0.45)).backward(retain_graph=True)
    assert all(p.grad is None for part in (model.b1, model.b2, model.shared) for p in part.parameters())
    assert any(p.grad is not None and p.grad.any() for p in model.c.parameters())
    model.zero_grad()
    guided(b1, guidance(b2.sigmoid(), 0.5, 0.45)).backward()
    assert all(p.grad is None for part in (model.b2, model.c) for p in part.parameters())
    assert model.classifier.linear.weight.grad is None


def test_spgs_classifier_is_plain() -> None:
    model, given = make("spg").eval(), batch()
    assert isinstance(model, Spg)
    assert torch.equal(inner_cam(model, given.images, given.labels), cam(model.classifier, given.images, given.labels))
    assert isinstance(model.classifier, Classifier)
    assert spg_loss(model, given) > PLAIN.loss(model.classifier, given)


# CSoA


def test_csoas_confidence_is_0_at_the_mean_and_1_at_the_ends() -> None:
    cam_of = torch.tensor([[[-1.0, 0.0], [0.6, 1.0]]])  # stretched 0, 0.5, 0.8, 1; mean 0.575
    m, k = confidence_segmentation(cam_of)
    assert m.tolist() == [[[False, False], [True, True]]]
    assert k.flatten().tolist() == pytest.approx([1, (0.575 - 0.5) / 0.575, (0.8 - 0.575) / 0.425, 1])
    m, k = confidence_segmentation(torch.full((1, 2, 2), 4.0))
    assert not m.any()
    assert (k == 0).all()


def test_csoas_segmentation_loss_is_weighted_by_confidence() -> None:
    internal = torch.tensor([[[3.0, -2.0], [0.0, 1.0]]])
    m, k = torch.tensor([[[True, False], [False, True]]]), torch.tensor([[[1.0, 0.5], [0.0, 0.0]]])
    expected = (math.log1p(math.exp(-3)) + 0.5 * math.log1p(math.exp(-2))) / 1.5
    assert segmentation_loss(internal, m, k).item() == pytest.approx(expected)
    assert segmentation_loss(internal, m, torch.zeros_like(k)).item() == 0


def test_csoas_metric_loss_wants_foregrounds_of_a_class_near_and_backgrounds_far() -> None:
    m = torch.tensor([[[True, False]], [[True, False]]])  # the left pixel is the foreground
    k = torch.ones(2, 1, 2)
    labels = torch.tensor([0, 0])
    east, north = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])

    def features(*pixels: Tensor) -> Tensor:  # foreground and background of the first image, then of the second
        return torch.stack(pixels).view(2, 1, 2, 2).permute(0, 3, 1, 2)

    apart = augmentation_loss(features(east, north, east, north), m, k, labels)
    mixed = augmentation_loss(features(east, east, east, east), m, k, labels)
    crossed = augmentation_loss(features(east, north, north, east), m, k, labels)
    assert apart.item() == 0  # cosines 1 and 0, further apart than the margin
    assert mixed.item() == pytest.approx(MARGIN)
    # f . p = cos 45 degrees for both, f . b in turn 0 and 1
    assert crossed.item() == pytest.approx((MARGIN + 1 - math.sqrt(0.5)) / 2, rel=1e-5)
    assert augmentation_loss(features(east, north, north, east), m, k, torch.tensor([0, 1])).item() == pytest.approx(
        MARGIN / 2
    )
