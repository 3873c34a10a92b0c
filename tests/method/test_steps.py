"""The steps of both stages, with networks small enough to follow by hand."""

import copy
from dataclasses import dataclass, replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from lchp.config import InitializationConfig, RefinementConfig, field_types
from lchp.method.batch import Batch
from lchp.method.networks import ClassifierOutput
from lchp.method.pseudo_boxes import make_teacher, update_teacher
from lchp.method.steps import (
    Labels,
    classifier_step,
    freeze_batch_norm,
    label_boxes,
    label_views,
    localizer_step,
    padding,
    refinement_step,
)
from lchp.method.view_table import Boxes, ViewTable
from lchp.method.views import AxisMap, StrongParameters, sample_strong

BOX = [0.2, 0.3, 0.6, 0.9]


class Constant(nn.Module):
    """A localizer that answers one box, its only parameter; and counts how it was called."""

    def __init__(self, box: list[float]) -> None:
        super().__init__()
        self.box = nn.Parameter(torch.tensor(box))
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]))
        self.seen: list[tuple[bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((self.training, torch.is_grad_enabled()))
        return self.box.expand(len(x), 4)


class Brightness(nn.Module):
    """A classifier whose attention is the red channel, and whose logits are a weight times the mean colour."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> ClassifierOutput:
        return ClassifierOutput(self.weight * x.mean((2, 3)), x[:, :1], x)


@dataclass(frozen=True)
class Nets:
    """Stand-ins of theta_1, theta_2, Loc, and of stage 2's labeller where it is not Loc itself."""

    classifier: Any
    teacher: Any
    localizer: Any
    labeller: Any = None


def networks(box: list[float] = BOX, weight: float = 1.0) -> Nets:
    classifier = Brightness(weight)
    return Nets(classifier, make_teacher(classifier), Constant(box))


def shifted(n: int, left: float = 0.0, flip: bool = False) -> StrongParameters:
    sides = torch.zeros(n, 4)
    sides[:, 0] = left
    return StrongParameters(torch.ones(n, 2), sides, torch.tensor([[flip, False]]).expand(n, 2))


def stepped(net: nn.Module, loss: Tensor, scalars: dict[str, Tensor], lr: float) -> dict[str, Tensor]:
    loss.backward()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    optimizer.step()
    optimizer.zero_grad()
    return {"loss": loss.detach()} | scalars


def refine(nets: Nets, images: Tensor, strong: StrongParameters, lr: float = 0.0, **fields: Any) -> dict[str, Tensor]:
    config = RefinementConfig(**fields)
    nets.classifier.eval().requires_grad_(False)

    def label(batch: Batch) -> Labels:
        return label_views(nets.labeller or nets.localizer, nets.classifier, batch.images, config)

    batch = Batch(images, torch.zeros(len(images)), strong=strong)
    out = stepped(nets.localizer, *refinement_step(nets.localizer, batch, label, config, nets.localizer.mean), lr)
    if config.labeller == "ema":
        update_teacher(nets.labeller, nets.localizer, 0.9)
    return out


def initialize(
    nets: Nets, images: Tensor, y: Tensor, config: InitializationConfig, lr: float = 0.1
) -> dict[str, Tensor]:
    """A step of the classifier, of its teacher, and of the localizer on the boxes that were noted."""
    table, index = ViewTable(1, len(images), 4), torch.arange(len(images))
    batch = Batch(images, y, index=index)
    of_classifier = classifier_step(nets.classifier, nets.teacher, table, batch, 0, config)
    out = stepped(nets.classifier, *of_classifier, lr)
    update_teacher(nets.teacher, nets.classifier, config.beta, config.teacher_buffers)
    boxes = Boxes(table, whole=False).of(index, 0, AxisMap(torch.ones(1, 2), torch.zeros(1, 2)))
    return out | stepped(nets.localizer, *localizer_step(nets.localizer, batch, *boxes, config.alpha), lr)


def images_of(*colours: tuple[float, float, float]) -> Tensor:
    return torch.tensor(colours, dtype=torch.float32)[:, :, None, None].expand(-1, -1, 8, 8).contiguous()


def test_refinement_compares_the_view_with_the_moved_box() -> None:
    """Horizontal flip: x1 0.2 -> 0.4, x2 0.6 -> 0.8, so the squared error is 0.2^2 + 0.2^2 in every image."""
    out = refine(networks(), images_of((1, 0, 0), (1, 0, 0)), shifted(2, flip=True), tau=0.0)
    assert out["loss"].item() == pytest.approx(0.08)
    assert out["kept"].item() == 100
    assert out["box_area"].item() == pytest.approx(24)


def test_only_confident_images_teach_and_all_count() -> None:
    """Softmax of (w, 0, 0) is above tau for the first image only; the loss is divided by two all the same."""
    nets = networks(weight=5.0)
    out = refine(nets, images_of((1, 0, 0), (0.1, 0, 0)), shifted(2, flip=True), tau=0.9)
    assert out["loss"].item() == pytest.approx(0.08 / 2)
    assert out["kept"].item() == 50


def test_nothing_moves_when_all_is_masked() -> None:
    nets = networks()
    before = nets.localizer.box.clone()
    out = refine(nets, images_of((1, 0, 0)), shifted(1, flip=True), lr=1.0, tau=0.999)
    assert out["loss"].item() == 0
    assert out["kept"].item() == 0
    assert torch.equal(nets.localizer.box, before)
    assert nets.classifier.weight.grad is None
    assert nets.teacher.weight.grad is None


def test_the_step_follows_the_gradient_of_the_view_alone() -> None:
    """The target carries no gradient: d/dx1 of (0.2 - 0.4)^2 is -0.4, so with rate 0.1 x1 becomes 0.24."""
    nets = networks()
    refine(nets, images_of((1, 0, 0)), shifted(1, flip=True), lr=0.1, tau=0.0)
    torch.testing.assert_close(nets.localizer.box.detach(), torch.tensor([0.24, 0.3, 0.64, 0.9]))
    weighted = networks()
    refine(weighted, images_of((1, 0, 0)), shifted(1, flip=True), lr=0.1, tau=0.0, loss_weight=2.0)
    torch.testing.assert_close(weighted.localizer.box.detach(), torch.tensor([0.28, 0.3, 0.68, 0.9]))


def test_targets_are_clipped_or_not() -> None:
    """Cropping a quarter on the left: x (0.1, 0.6) -> (-0.2, 0.4666)."""
    box = [0.1, 0.3, 0.6, 0.9]
    x1, x2 = (0.1 - 0.25) / 0.75, (0.6 - 0.25) / 0.75
    clipped = refine(networks(box), images_of((1, 0, 0)), shifted(1, left=-0.25), tau=0.0)
    assert clipped["loss"].item() == pytest.approx(0.1**2 + (x2 - 0.6) ** 2)
    free = refine(networks(box), images_of((1, 0, 0)), shifted(1, left=-0.25), tau=0.0, targets="unclipped")
    assert free["loss"].item() == pytest.approx((x1 - 0.1) ** 2 + (x2 - 0.6) ** 2)


@pytest.mark.parametrize("targets", ["clipped", "unclipped"])
def test_a_vanished_box_teaches_nothing_and_is_counted(targets) -> None:
    nets = networks([0.0, 0.0, 0.2, 1.0])
    strong = StrongParameters(
        torch.ones(2, 2),
        torch.tensor([[-0.25, 0, 0, 0], [0.0, 0, 0, 0]]),
        torch.tensor([[False, False], [True, False]]),
    )
    out = refine(nets, images_of((1, 0, 0), (1, 0, 0)), strong, tau=0.0, targets=targets)
    assert out["vanished"].item() == 50
    assert out["kept"].item() == 100  # by confidence, as in Table 4
    assert out["loss"].item() == pytest.approx((0.8**2 + 0.8**2) / 2)


@pytest.mark.parametrize("augmenter", ["tensor", "opencv", "imgaug"])
def test_a_batch_of_which_every_box_vanished_teaches_nothing(augmenter) -> None:
    nets = networks([0.0, 0.0, 0.2, 1.0])
    before = nets.localizer.box.clone()
    out = refine(nets, images_of((1, 0, 0), (0, 1, 0)), shifted(2, left=-0.25), lr=1.0, tau=0.0, augmenter=augmenter)
    assert out["vanished"].item() == 100
    assert out["loss"].item() == 0
    assert torch.equal(nets.localizer.box, before)


@pytest.mark.parametrize(
    "point", [[0.5, 0.5, 0.5, 0.5], [0.3, 0.0, 0.3, 1.0], [1.0, 1.0, 1.0, 1.0], [2.0, 2.0, 3.0, 3.0]]
)
def test_a_box_without_area_is_scored_but_teaches_nothing(point) -> None:
    """Its crop is a pixel; a box beyond the view has none left in it."""
    nets = networks(point)
    out = refine(nets, images_of((1, 0, 0)), shifted(1), lr=1.0, tau=0.0)
    assert out["vanished"].item() == 100
    assert out["box_area"].item() == out["loss"].item() == 0
    assert out["confidence"].item() == pytest.approx(100 * torch.tensor([1.0, 0, 0]).softmax(0)[0].item())
    assert nets.localizer.box.tolist() == pytest.approx(point)
    kept = refine(networks(point), images_of((1, 0, 0)), shifted(1, flip=True), tau=0.0, vanished="kept")
    assert kept["loss"].isfinite()


@pytest.mark.parametrize("labeller", ["online", "frozen", "ema"])
def test_labellers(labeller) -> None:
    nets = networks()
    teacher = Constant([0.0, 0.0, 1.0, 1.0]).requires_grad_(False)
    if labeller != "online":
        nets = replace(nets, labeller=teacher)
    out = refine(nets, images_of((1, 0, 0)), shifted(1), lr=0.1, tau=0.0, labeller=labeller)
    if labeller == "online":  # the view is the image, so it agrees with itself
        assert out["loss"].item() == pytest.approx(0)
        return
    assert out["loss"].item() == pytest.approx(0.2**2 + 0.3**2 + 0.4**2 + 0.1**2)
    if labeller == "frozen":
        assert teacher.box.tolist() == [0, 0, 1, 1]
    else:  # beta = 0.9, towards the localizer after its step
        torch.testing.assert_close(teacher.box, 0.9 * torch.tensor([0.0, 0, 1, 1]) + 0.1 * nets.localizer.box.detach())


def test_labelling_is_in_inference_mode_and_leaves_no_trace() -> None:
    nets = networks([0.6, 0.3, 0.2, 1.4])
    nets.localizer.train()
    with torch.no_grad():
        b = label_boxes(nets.localizer, images_of((1, 0, 0)))
    torch.testing.assert_close(b, torch.tensor([[0.2, 0.3, 0.6, 1.0]]))  # in order, clipped
    assert nets.localizer.seen == [(False, False)]
    assert nets.localizer.training


def test_labelling_keeps_frozen_batch_norm_frozen() -> None:
    localizer: Any = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3), nn.Linear(3, 4))
    localizer.train()
    freeze_batch_norm(localizer)
    mean = localizer[1].running_mean.clone()
    with torch.no_grad():
        label_boxes(localizer, torch.rand(4, 3, 1, 1))
    localizer(torch.rand(4, 3, 1, 1))
    assert not localizer[1].training
    assert localizer[2].training
    assert torch.equal(localizer[1].running_mean, mean)


def test_padding_colour() -> None:
    localizer: Any = Constant(BOX)
    assert padding(localizer.mean, RefinementConfig()).tolist() == [0, 0, 0]
    assert torch.equal(padding(localizer.mean, RefinementConfig(padding="mean")), localizer.mean)


def test_every_augmenter_serves_a_step() -> None:
    strong = sample_strong(2, RefinementConfig(), torch.Generator().manual_seed(0))
    losses = [
        refine(networks(), images_of((1, 0, 0), (0, 1, 0)), strong, tau=0.0, augmenter=a)["loss"].item()
        for a in get_args(field_types()["refinement.augmenter"])
    ]
    assert losses == pytest.approx([losses[0]] * len(losses))  # these networks answer the same to all views


def test_initialization_step_by_hand() -> None:
    """One red square on black: L_r is the square and I_m is black, so L_m finds nothing and the box is the square."""
    images = torch.zeros(1, 3, 8, 8)
    images[0, 0, 2:6, 4:8] = 1.0
    nets, y, lr = networks(), torch.tensor([0]), 0.1
    nets.classifier.train()
    teacher = copy.deepcopy(nets.teacher)
    config = InitializationConfig(delta=0.5, resolution="native", mask="black", alpha=20.0, beta=0.9)
    out = initialize(nets, images, y, config, lr)
    logit = torch.tensor([16 / 64, 0, 0])
    l_cls = 0.5 * (-logit.log_softmax(0)[0] + torch.tensor(3.0).log())
    error = torch.tensor(BOX) - torch.tensor([0.5, 0.25, 1.0, 0.75])
    assert out["l_cls"].item() == pytest.approx(l_cls.item())
    assert out["l_reg"].item() == pytest.approx(error.square().sum().item())
    assert out["loss"].item() == pytest.approx(20 * error.square().sum().item())
    assert out["pseudo_area"].item() == pytest.approx(25)
    assert out["top1"].item() == 100
    torch.testing.assert_close(nets.localizer.box.detach(), torch.tensor(BOX) - lr * 20 * 2 * error)
    gradient = -0.5 * (1 - logit.softmax(0)[0]) * 16 / 64
    weight = 1 - lr * gradient
    assert nets.classifier.weight.item() == pytest.approx(weight.item())
    assert nets.teacher.weight.item() == pytest.approx((0.9 * teacher.weight + 0.1 * weight).item())
    assert nets.teacher.weight.grad is None


@pytest.mark.parametrize("normalization", ["max", "minmax"])
def test_an_image_without_a_difference_is_a_box_over_all_and_fully_masked(normalization) -> None:
    nets = networks()
    config = InitializationConfig(delta=0.5, normalization=normalization)
    images = images_of((0.5, 0.5, 0.5), (0, 0, 0))
    out = initialize(nets, images, torch.tensor([0, 1]), config)
    assert out["pseudo_area"].item() == 100
    assert all(v.isfinite() for v in out.values())
    assert all(p.isfinite().all() for n in (nets.classifier, nets.localizer) for p in n.parameters())


def test_an_image_without_a_box_teaches_nothing_and_counts() -> None:
    table = ViewTable(1, 2, 4)
    table.note(0, torch.tensor([1]), torch.tensor([[0.2, 0.3, 0.6, 0.8]]))
    frame = AxisMap(torch.ones(2, 2), torch.zeros(2, 2))
    box, known = Boxes(table, whole=False).of(torch.tensor([0, 1]), 0, frame)
    assert known.tolist() == [False, True]
    loss, _ = localizer_step(Constant(BOX), Batch(torch.rand(2, 3, 8, 8), torch.zeros(2)), box, known, 1.0)
    assert loss.item() == pytest.approx(0.1**2 / 2)


def test_boxes_of_whole_images_follow_each_view() -> None:
    """The middle half, mirrored: x 0.5 .. 0.7 of the image is 0.5 .. 0.9 of the view, and 0.1 .. 0.5 after."""
    table = ViewTable(1, 2, 4)
    table.note(0, torch.tensor([0, 1]), torch.tensor([[0.5, 0.25, 0.7, 0.75], [0.0, 0.0, 0.2, 1.0]]))
    middle = AxisMap(torch.full((2, 2), 2.0), torch.full((2, 2), -0.5))
    mirrored = middle.then(AxisMap(torch.tensor([[-1.0, 1.0]]), torch.tensor([[1.0, 0.0]])))
    box, known = Boxes(table, whole=True).of(torch.tensor([0, 1]), 3, mirrored)
    torch.testing.assert_close(box[0], torch.tensor([0.1, 0.0, 0.5, 1.0]))
    assert known.tolist() == [True, False]  # the view has lost the second
