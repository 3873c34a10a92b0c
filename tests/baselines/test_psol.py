"""PSOL and what its boxes come from: DDT, or the maps of another method."""

import numpy as np
import pytest
import torch
from torch import Tensor

from lchp.baselines import psol
from lchp.baselines.ddt import Descriptors, Transform
from lchp.evaluation.frames import to_float
from lchp.method.regions import largest_component_boxes
from lchp.method.views import general_view, sample_general
from lchp.training.batches import _frame


def features(n: int, seed: int = 0, channels: int = 6, side: int = 8) -> Tensor:
    """Noise above 0, as after a ReLU, of different spread in each channel."""
    noise = torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(seed))
    return (noise * torch.arange(1, channels + 1).view(1, -1, 1, 1) + 1).relu()


def test_the_direction_is_the_first_principal_one() -> None:
    x = features(5)
    rows = x.permute(0, 2, 3, 1).reshape(-1, 6).double().numpy()
    _, _, components = np.linalg.svd(rows - rows.mean(0))
    descriptors = Descriptors(6)
    descriptors.add(x)
    mean, direction = descriptors.principal()
    np.testing.assert_allclose(mean, rows.mean(0), atol=1e-12)
    np.testing.assert_allclose(direction, components[0] * np.sign(components[0].sum()), atol=1e-9)


def test_the_direction_is_that_of_scikit_learn() -> None:
    """sklearn 1.9.1's PCA(1) on these 12 descriptors, in the sign of ours."""
    n = torch.arange(48, dtype=torch.float64)
    descriptors = Descriptors(4)
    descriptors.add((n * 1.7).sin().view(3, 4, 2, 2))
    found = descriptors.principal()
    mean = [0.0013364627019, 0.0012249280827, 0.0007934360999, 0.0001546946253]
    direction = [0.4176551544175, 0.5678067061830, 0.5696442963012, 0.4226879370096]
    assert found[0].tolist() == pytest.approx(mean, abs=1e-12)
    assert found[1].tolist() == pytest.approx(direction, abs=1e-11)


def test_batches_add_up_to_the_whole() -> None:
    x = features(7)
    whole, parts = Descriptors(6), Descriptors(6)
    whole.add(x)
    for part in x.split([1, 4, 2]):
        parts.add(part)
    assert parts.count == whole.count == 7 * 64
    for ours, theirs in zip(parts.principal(), whole.principal(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_large_means_cost_no_precision() -> None:
    """In float32 the covariance would drown in the squared mean."""
    x = features(5).double()
    near, far = Descriptors(6), Descriptors(6)
    near.add(x)
    far.add(x + 1000)
    torch.testing.assert_close(far.principal()[1], near.principal()[1], rtol=0, atol=1e-6)


def test_the_transform_is_positive_where_activation_exceeds_the_mean_along_it() -> None:
    """Each image by the mean and direction of its class, and not rounded to bf16 where the networks are."""
    transform = Transform(torch.tensor([[9.0, 9.0], [1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.6, 0.8]]))
    x = torch.tensor([[[1.0, 2.0]], [[2.0, 1.0]]]).expand(2, 2, 1, 2)  # of both, two positions: (1, 2) and (2, 1)
    with torch.autocast("cpu", torch.bfloat16):
        found = transform.project(x, torch.tensor([1, 0]))
    torch.testing.assert_close(found, torch.tensor([[[0.0, -0.2]], [[-8.0, -7.0]]]))


def test_a_class_without_images_is_an_error() -> None:
    with pytest.raises(ValueError, match="no image"):
        Descriptors(3).principal()


def test_a_box_ends_between_two_cells_of_the_features_own_grid() -> None:
    """PSOL enlarges the thresholded map by its nearest cells; a bilinear one would end up to half a cell inside."""
    x = torch.zeros(1, 1, 7, 7)
    x[0, 0, 2:5, 1:3] = 1.1
    x[0, 0, 3, 5] = 9.0  # the larger value, in the smaller component
    found = Transform(torch.ones(1, 1), torch.ones(1, 1)).boxes(x, torch.tensor([0]))
    torch.testing.assert_close(found, torch.tensor([[1, 2, 3, 5]]) / 7)


def test_the_common_object_is_found_in_every_image() -> None:
    """One that fires the same three channels at another place of each, on noise."""
    generator = torch.Generator().manual_seed(0)
    x = 0.3 * torch.rand(12, 8, 10, 10, generator=generator)
    expected = []
    for i in range(12):
        left, top = torch.randint(0, 6, (2,), generator=generator).tolist()
        x[i, :3, top : top + 4, left : left + 3] += 2
        expected.append([left / 10, top / 10, (left + 3) / 10, (top + 4) / 10])
    descriptors = Descriptors(8)
    for part in x.split(5):
        descriptors.add(part)
    transform = Transform.of([descriptors.principal()], torch.device("cpu"))
    torch.testing.assert_close(transform.boxes(x, torch.zeros(12, dtype=torch.long)), torch.tensor(expected))


@pytest.mark.parametrize(
    ("drawing", "box"),
    [
        ("....|.##.|.#..|....", (1, 1, 3, 3)),
        ("##..|....|..##|..##", (2, 2, 4, 4)),  # the larger of two
        ("##..|....|..##|....", (0, 0, 2, 1)),  # of equal ones the first
        ("#...|.#..|..#.|...#", (0, 0, 4, 4)),  # corners connect
        ("....|....|....|....", (0, 0, 4, 4)),  # nothing: the whole view
        ("####|####|####|####", (0, 0, 4, 4)),
    ],
)
def test_the_box_is_the_largest_component_s(drawing, box) -> None:
    mask = torch.tensor([[c == "#" for c in row] for row in drawing.split("|")])
    assert (4 * largest_component_boxes(mask[None])).tolist() == [list(box)]


def test_the_localizer_s_loss_is_the_squared_error_of_corner_and_sides() -> None:
    box_hat = torch.tensor([[0.1, 0.2, 0.5, 0.9]], requires_grad=True)  # x y w h: 0.1 0.2 0.4 0.7
    box = torch.tensor([[0.2, 0.2, 0.8, 0.8]])  # 0.2 0.2 0.6 0.6
    each = 50 * (0.01 + 0 + 0.04 + 0.01) / 4
    loss = psol.localizer_loss(box_hat, box, torch.ones(1, dtype=torch.bool))
    torch.testing.assert_close(loss, torch.tensor(each))
    known = torch.tensor([True, False])  # a view that has lost its box teaches nothing
    both = psol.localizer_loss(torch.cat([box_hat, box_hat]), torch.cat([box, 0 * box]), known)
    torch.testing.assert_close(both, torch.tensor(each / 2))
    loss.backward()
    assert box_hat.grad is not None


def test_psol_s_boxes_come_from_no_classifier() -> None:
    assert psol.METHOD.map is None
    assert psol.METHOD.scheme.name == "plain"


def test_a_box_of_the_whole_image_lies_on_the_object_in_every_general_view() -> None:
    """Crop and flip of the pixels against those of the box."""
    stored, size, n = 72, 64, 32
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(n, stored, stored, 3, dtype=torch.uint8)
    images[:, 20:50, 27:40] = 255
    offsets, flip = sample_general(n, stored, size, generator)
    assert 0 < flip.sum() < n
    views = to_float(general_view(images, offsets, flip, size)).amax(1)
    whole = torch.tensor([[27, 20, 40, 50]]).expand(n, 4) / stored
    mapped = _frame(offsets, flip, stored / size, size).boxes(whole) * size
    for view, box in zip(views, mapped, strict=True):
        y, x = torch.where(view > 0)
        torch.testing.assert_close(box, torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float())
