"""The difference of two settings on the same test images: how far other seeds and other images leave it open."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lchp.errors import RunError

RESAMPLES = 9999
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """mean, low, high (the 95 % interval), in the unit of the values; p: of no difference; adjusted: the p-value after
    Holm's correction over all that were tested with it; seeds, images: on how many."""

    mean: float
    low: float
    high: float
    p: float
    seeds: int
    images: int
    adjusted: float | None = None

    def __str__(self) -> str:
        p = self.p if self.adjusted is None else self.adjusted
        return f"{self.mean:+.2f} ({self.low:+.2f} to {self.high:+.2f}), p {p:.2g}"


def difference(values: np.ndarray, *, seed: int = 0) -> Difference:
    """Of a - b in points, S x N: common seeds by test images. seed: of the resampling, the same draws every time.

    A paired bootstrap that draws seeds and images, the images for all seeds alike, since all seeds see the same ones.
    Of S seeds it draws S - 1, which makes the variance over seeds unbiased (Rao and Wu, J. Am. Stat. Assoc. 1988).
    Drawing both ways counts the variance of what is of one seed and one image three times, of which two are taken away
    (Owen, Ann. Appl. Stat. 2007). Each share of the variance has Student's t of its own, seeds and images (Cochran and
    Cox, Experimental Designs, 1957): the percentiles of three seeds would be far too narrow. With one seed the images
    alone are drawn: a percentile interval, and McNemar's exact test where an image is right or wrong, else Student's.
    """
    from scipy import optimize, stats  # half a second, which other tables need not wait for

    d = np.asarray(values, float)
    (seeds, images), mean = d.shape, float(d.mean())
    if images < 2:
        raise RunError("the runs have one test image in common; an interval needs two")
    if not d.any():  # no image and no seed decides anything
        return Difference(0.0, 0.0, 0.0, 1.0, seeds, images)
    if seeds == 1:
        options = {"n_resamples": RESAMPLES, "confidence_level": CONFIDENCE, "method": "percentile"}
        batch, rng = max(1, 2_000_000 // images), np.random.default_rng(seed)
        low, high = stats.bootstrap((d[0],), np.mean, batch=batch, rng=rng, **options).confidence_interval
        more, less = int((d > 0).sum()), int((d < 0).sum())
        binary = set(np.unique(d)) <= {-100.0, 0.0, 100.0}
        test: Any = stats.binomtest(more, more + less) if binary else stats.ttest_1samp(d[0], 0.0)
        return Difference(mean, float(low), float(high), float(test.pvalue), seeds, images)
    rest = d - d.mean(0) - d.mean(1, keepdims=True) + mean
    alone = (rest**2).sum() / ((seeds - 1) * (images - 1)) / (seeds * images)
    of_seeds = d.mean(1).var(ddof=1) / seeds
    of_images = max(_resampled(d, seed).var(ddof=1) - 2 * alone - of_seeds, 0.0)
    error = float(of_seeds + of_images) ** 0.5
    if not error:  # the same in every image and seed
        return Difference(mean, mean, mean, 0.0, seeds, images)

    def reach(p: float) -> float:
        """Half of the interval outside of which a share p lies."""
        each = of_seeds * stats.t.isf(p / 2, seeds - 1), of_images * stats.t.isf(p / 2, images - 1)
        return float(sum(each)) / error

    least = 1e-12
    root: Any = optimize.brentq
    p = least if reach(least) <= abs(mean) else root(lambda p: reach(p) - abs(mean), least, 1.0, xtol=1e-14)
    half = reach(1 - CONFIDENCE)
    return Difference(mean, mean - half, mean + half, float(p), seeds, images)


def _resampled(d: np.ndarray, seed: int) -> np.ndarray:
    """Means of a fifth of RESAMPLES draws of all seeds but one and of all images; for a variance these suffice."""
    rng, (seeds, images) = np.random.default_rng(seed), d.shape
    total, step, out = RESAMPLES // 5, max(1, 4_000_000 // images), []
    for start in range(0, total, step):
        count = min(step, total - start)
        over_seeds = np.eye(seeds)[rng.integers(seeds, size=(count, seeds - 1))].mean(1) @ d  # count x N
        out.append(np.take_along_axis(over_seeds, rng.integers(images, size=(count, images)), 1).mean(1))
    return np.concatenate(out)


def holm(p: Sequence[float]) -> list[float]:
    """p-values after Holm's step-down correction (Scand. J. Stat. 1979), in their order."""
    order = np.argsort(p)
    steps = np.maximum.accumulate(np.asarray(p, float)[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return steps[np.argsort(order)].tolist()
