"""Intervals of a difference over seeds and images, beside closed forms and data of a known truth."""

import numpy as np
import pytest

from lchp.errors import RunError
from lchp.report.paired import difference, holm


def drawn(
    rng: np.random.Generator, seeds: int, images: int, of_seed: float, of_image: float, rest: float
) -> np.ndarray:
    """S x N differences around 0: effects of the seed, of the image, and of both."""
    parts = (
        rng.normal(0, of_seed, (seeds, 1)),
        rng.normal(0, of_image, (1, images)),
        rng.normal(0, rest, (seeds, images)),
    )
    return parts[0] + parts[1] + parts[2]


@pytest.mark.parametrize(
    ("seeds", "of_seed", "of_image", "rest"),
    [(3, 0.0, 0.0, 30.0), (3, 5.0, 0.0, 30.0), (5, 2.0, 30.0, 10.0), (2, 5.0, 10.0, 10.0)],
    ids=["noise alone", "seeds decide", "images decide", "two seeds"],
)
def test_the_interval_holds_the_truth_as_often_as_it_says(
    seeds: int, of_seed: float, of_image: float, rest: float
) -> None:
    """95 % of 200 draws, give or take three standard errors of 1.5 points."""
    rng = np.random.default_rng(0)
    found = [difference(drawn(rng, seeds, 40, of_seed, of_image, rest)) for _ in range(200)]
    held = np.mean([d.low <= 0 <= d.high for d in found])
    assert 0.905 <= held <= 0.995
    assert np.mean([d.p < 0.05 for d in found]) == pytest.approx(1 - held, abs=1e-9)


def test_the_variance_is_that_of_the_crossed_random_effects() -> None:
    """(MS_seeds + MS_images - MS_rest) / SN."""
    from scipy import stats  # a second, which not every process of the suite need wait for

    d = drawn(np.random.default_rng(1), 5, 400, 6.0, 20.0, 20.0) + 3.0
    s, n = d.shape
    rest = d - d.mean(0) - d.mean(1, keepdims=True) + d.mean()
    squares = n * d.mean(1).var(ddof=1), s * d.mean(0).var(ddof=1), (rest**2).sum() / ((s - 1) * (n - 1))
    error = ((squares[0] + squares[1] - squares[2]) / (s * n)) ** 0.5
    found = difference(d)
    of_seeds, of_images = squares[0] / (s * n), (squares[1] - squares[2]) / (s * n)
    half = (of_seeds * stats.t.ppf(0.975, s - 1) + of_images * stats.t.ppf(0.975, n - 1)) / error
    assert found.mean == pytest.approx(d.mean())
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.05)


def test_one_seed_is_of_the_images_alone() -> None:
    d = np.array([[100.0] * 6 + [-100.0] + [0.0] * 33])
    found = difference(d)
    assert (found.seeds, found.images, found.mean) == (1, 40, 12.5)
    assert found.p == pytest.approx(2 * (7 + 1) / 2**7)  # McNemar: at least 6 of 7 heads, both sides
    assert found.high - found.low == pytest.approx(2 * 1.96 * d.std() / 40**0.5, rel=0.15)
    grades = difference(np.random.default_rng(0).normal(5, 10, (1, 300)))
    assert grades.p < 1e-6
    assert 0 < grades.low < 5 < grades.high


def test_what_never_differs_has_no_interval() -> None:
    found = difference(np.zeros((3, 10)))
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_the_same_data_give_the_same_interval() -> None:
    d = drawn(np.random.default_rng(2), 3, 50, 1.0, 1.0, 1.0)
    assert difference(d) == difference(d)
    moved = difference(d + 7)
    assert moved.high - moved.low == pytest.approx(difference(d).high - difference(d).low)


def test_holm_s_correction() -> None:
    """The worked example of R's p.adjust: 0.01, 0.02, 0.03 -> 0.03, 0.04, 0.04; and in any order, capped at 1."""
    assert holm([0.01, 0.02, 0.03]) == pytest.approx([0.03, 0.04, 0.04])
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


@pytest.mark.parametrize("seeds", [1, 3])
def test_one_image_gives_no_interval(seeds: int) -> None:
    with pytest.raises(RunError, match="one test image"):
        difference(np.full((seeds, 1), 100.0))
