"""Methods that train on changed images: CutMix, HaS, GR, beside plain classification."""

import golden
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lchp.backbones import BACKBONES, SYMMETRIC, Backbone
from lchp.baselines import Batch, Scheme, cutmix, gr, has
from lchp.baselines.cam import PLAIN
from lchp.config import ModelConfig
from lchp.method.networks import Classifier

SCHEMES = [PLAIN, *(m.METHOD.scheme for m in (cutmix, has, gr))]


@pytest.fixture
def classifier(monkeypatch) -> Classifier:
    """The fixed shallow trunk of the golden losses, with a GAP head."""
    monkeypatch.setitem(BACKBONES, "golden", Backbone(golden.trunk, lambda net, _role: net, SYMMETRIC))
    torch.manual_seed(0)
    return Classifier(ModelConfig(classifier="golden", head="gap", pretrained=False), golden.CLASSES).train()


def batch(step: int = 0, seed: int = 0) -> Batch:
    return Batch(*golden.images(step), torch.Generator().manual_seed(seed), 0.0)


def plain(classifier: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(classifier(images).logits, labels)


def test_cutmix_with_nothing_cut_is_plain_classification(classifier) -> None:
    b = batch()
    mask = cutmix.cut_mask((64, 64), torch.tensor(1.0), torch.tensor([0.3, 0.7]))
    order = torch.arange(golden.BATCH).flip(0)
    assert torch.equal(cutmix.mixed_loss(classifier, b, mask, order), plain(classifier, b.images, b.labels))


def test_cutmix_with_all_cut_is_plain_classification_of_the_other_images(classifier) -> None:
    b = batch()
    order = torch.arange(golden.BATCH).roll(1)
    loss = cutmix.mixed_loss(classifier, b, torch.ones(64, 64, dtype=torch.bool), order)
    assert torch.equal(loss, plain(classifier, b.images[order], b.labels[order]))


def test_cutmix_weighs_labels_by_the_area_that_is_left(classifier) -> None:
    b = batch()
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[8:24, 16:64] = True  # 16 * 48 of 4096
    order = torch.arange(golden.BATCH).roll(2)
    mixed = b.images.clone()
    mixed[:, :, 8:24, 16:64] = b.images[order][:, :, 8:24, 16:64]
    logits = classifier(mixed).logits
    expected = 0.8125 * F.cross_entropy(logits, b.labels) + 0.1875 * F.cross_entropy(logits, b.labels[order])
    torch.testing.assert_close(cutmix.mixed_loss(classifier, b, mask, order), expected)


@pytest.mark.parametrize(
    ("share", "centre", "rows", "columns"),
    [
        (0.75, (0.5, 0.5), (16, 48), (32, 96)),  # a quarter of the area: half of each side
        (0.75, (0.0, 0.95), (0, 16), (89, 128)),  # cut off at the border: rows -16 to 16, columns 121 -+ 32
        (0.0, (0.5, 0.5), (0, 64), (0, 128)),
        (1.0, (0.5, 0.5), (0, 0), (0, 0)),
    ],
)
def test_cutmix_cuts_a_box_of_the_share_about_the_centre(share, centre, rows, columns) -> None:
    mask = cutmix.cut_mask((64, 128), torch.tensor(share), torch.tensor(centre))
    expected = torch.zeros(64, 128, dtype=torch.bool)
    expected[slice(*rows), slice(*columns)] = True
    assert torch.equal(mask, expected)


def test_has_at_rate_0_is_plain_classification(classifier) -> None:
    b = batch()
    assert torch.equal(has.has_loss(classifier, b, rate=0), plain(classifier, b.images, b.labels))


def test_has_at_rate_1_shows_the_mean_colour_alone(classifier) -> None:
    b = batch()
    grey = classifier.mean.view(1, 3, 1, 1).expand_as(b.images)
    assert torch.equal(has.has_loss(classifier, b, rate=1), plain(classifier, grey, b.labels))


def test_has_hides_whole_patches_of_its_grid() -> None:
    hidden = torch.zeros(2, has.GRID, has.GRID, dtype=torch.bool)
    hidden[0, 0, 2] = hidden[1, 6, 6] = True
    seen = has.hide(torch.ones(2, 3, 224, 224), hidden, torch.tensor([0.1, 0.2, 0.3]))
    expected = torch.ones(2, 3, 224, 224)
    colour = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    expected[0, :, :32, 64:96] = colour
    expected[1, :, 192:, 192:] = colour
    assert torch.equal(seen, expected)


def test_has_hides_patches_at_its_rate(classifier) -> None:
    seen = []
    classifier.trunk.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    for seed in range(20):
        has.has_loss(classifier, batch(seed=seed))
    colour = classifier.mean.view(1, 3, 1, 1)
    hidden = torch.stack([(x == colour).all(1).float().mean() for x in seen])
    assert abs(hidden.mean() - has.HIDE) < 0.03  # 20 * 6 * 49 patches: four standard deviations are 0.026


@pytest.mark.parametrize("size", [(64, 64), (48, 96)])
def test_gr_s_crops_have_the_published_areas_and_aspects(size) -> None:
    x1, y1, x2, y2 = gr.sample_crops(4000, size, torch.Generator().manual_seed(0)).T
    for low, high in ((x1, x2), (y1, y2)):
        assert (low >= 0).all()
        assert (high <= 1 + 1e-6).all()
    whole = (x2 - x1 == 1) & (y2 - y1 == 1)
    area = ((x2 - x1) * (y2 - y1))[~whole]
    aspect = ((x2 - x1) * size[1] / ((y2 - y1) * size[0]))[~whole]
    assert 0.08 - 1e-6 <= area.min() < 0.09
    assert area.max() <= 1 + 1e-6
    assert 0.75 - 1e-5 <= aspect.min() < 0.76
    assert 1.32 < aspect.max() <= 4 / 3 + 1e-5
    if size == (64, 64):  # nearly every crop fits at some try, and no side is favoured
        assert whole.float().mean() < 0.01
        assert area.max() > 0.9
        torch.testing.assert_close(aspect.log().mean(), torch.tensor(0.0), atol=0.01, rtol=0)
        torch.testing.assert_close((x1 + x2).mean(), torch.tensor(1.0), atol=0.02, rtol=0)


def test_gr_with_the_whole_image_is_plain_classification(classifier, monkeypatch) -> None:
    monkeypatch.setattr(gr, "sample_crops", lambda n, _size, _generator: torch.tensor([[0.0, 0, 1, 1]]).repeat(n, 1))
    b = batch()
    torch.testing.assert_close(gr.gr_loss(classifier, b), plain(classifier, b.images, b.labels))


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.name)
def test_losses_come_from_the_batch_s_generator_alone(scheme: Scheme, classifier) -> None:
    classifier.eval()  # else BatchNorm's statistics move between the calls
    before = batch().images
    torch.manual_seed(1)
    first = scheme.loss(classifier, b := batch())
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(scheme.loss(classifier, batch()), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(b.images, before), "the caller's images were changed"
    if scheme is not PLAIN:
        assert scheme.loss(classifier, batch(seed=1)) != first


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.name)
def test_gradients_reach_every_parameter(scheme: Scheme, classifier) -> None:
    scheme.loss(classifier, batch()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in classifier.parameters())


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        (PLAIN, [1.101516, 1.060963, 1.040466, 0.976734]),
        (cutmix.METHOD.scheme, [1.089072, 1.081210, 1.063922, 1.047506]),
        (has.METHOD.scheme, [1.117043, 1.090864, 1.061101, 1.059720]),
        (gr.METHOD.scheme, [1.106129, 1.053993, 0.986341, 0.924823]),
    ],
    ids=[s.name for s in SCHEMES],
)
def test_first_losses(scheme: Scheme, expected: list[float], classifier) -> None:
    """Of four steps of SGD, on fixed images; a change of these numbers is a change of the maths."""
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.01, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    found = []
    for step in range(4):
        loss = scheme.loss(classifier, Batch(*golden.images(step), generator, step / 4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert found == pytest.approx(expected, rel=2e-4)
