"""Two results on the same test images: are they different by more than chance?

Paired, image by image: a bootstrap confidence interval of the difference, and McNemar's exact test (two-sided binomial
test of the images that only one of both gets right). Both say how far the *test images* decide it; they say nothing
about other seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from tabulate import tabulate

from lchp.config import to_flat
from lchp.errors import ConfigError, RunError
from lchp.evaluation.metrics import FRAMES, RESULTS, hits, in_top, percent
from lchp.evaluation.predictions import METRICS, TITLES, read_predictions
from lchp.files.runs import PREDICTIONS, read_config, read_environment
from lchp.files.targets import as_path
from lchp.report.dependence import is_complete, result_of
from lchp.report.read import title_of

RESAMPLES = 9999
CONFIDENCE = 0.95
COMPARED = ("gt_known", "top1_loc")


@dataclass(frozen=True)
class Side:
    """One of `lchp.evaluation.metrics.RESULTS` of a run folder. method: whose run it is, as the tables have it;
    None where the results' own titles say it."""

    run: Path
    result: str
    method: str | None = None

    @property
    def title(self) -> str:
        """What is compared: `LCHP-I`, or `CAM (Pseudo Label)`, its result in brackets."""
        result = TITLES[self.result]
        return result if self.method is None else f"{self.method} ({result})"

    def __str__(self) -> str:
        return f"{self.run}:{self.result}"


@dataclass(frozen=True)
class Comparison:
    """One metric in one frame. a, b, difference (a - b), low and high (its 95 % interval): percent (points); only_a,
    only_b: images that only one of both gets right; p: of McNemar's exact test; images: on how many."""

    frame: str
    metric: str
    a: float
    b: float
    low: float
    high: float
    only_a: int
    only_b: int
    p: float
    images: int

    @property
    def difference(self) -> float:
        """a - b in points."""
        return self.a - self.b


def parse_side(text: str) -> Side:
    """`RUN` (its last result: LCHP-R, or a compared method's) or `RUN:RESULT`.

    Raises ConfigError for a result that does not exist, RunError where the run folder cannot be read.
    """
    folder, colon, result = text.rpartition(":")
    if not colon or "/" in result:
        folder, result = text, None
    elif result not in RESULTS:
        raise ConfigError(f"--compare {text}: {result} is no result; expected RUN or RUN:{{{','.join(RESULTS)}}}")
    run = as_path(folder)
    config = to_flat(read_config(run))
    title = None if is_complete(config) else title_of(read_environment(run))
    return Side(run, result or result_of(config), title)


def compare(a: Side, b: Side, *, seed: int = 0) -> tuple[Comparison, ...]:
    """GT-Known and Top-1 in every frame; `seed` is the bootstrap's.

    Raises RunError where predictions are missing or damaged, have no boxes, or are of different test images.
    """
    tables = [read_predictions(side.run) for side in (a, b)]
    for side, table in zip((a, b), tables, strict=True):
        _check(side, table)
    out = []
    for frame in FRAMES:
        ours, theirs = (_Scored.read(side, table, frame) for side, table in zip((a, b), tables, strict=True))
        order = _matched(ours, theirs)
        for metric in COMPARED:
            x, y = ours.right[metric], theirs.right[metric][order]
            out.append(_compare(x, y, frame, metric, np.random.default_rng(seed)))
    return tuple(out)


def _check(side: Side, table: pa.Table) -> None:
    path = side.run / PREDICTIONS
    needed = ("image_id", "frame", "label", "top5", "ground_truth", f"{side.result}_iou")
    missing = [name for name in needed if name not in table.column_names]
    if missing:
        why = "was it written by another version of lchp?"
        if missing == [f"{side.result}_iou"] and side.method is not None:
            why = f"a run of {side.method} has no {TITLES[side.result]}"
        elif missing == ["lchp_r_iou"]:
            why = "stage 2 has not run"
        raise RunError(f"{path}: lacks {', '.join(missing)}; {why}")
    if table["ground_truth"].null_count:
        raise RunError(f"{path}: the test images have no ground-truth boxes; nothing to compare")


@dataclass(frozen=True)
class _Scored:
    """One side's test images in one frame. right: metric -> N bool."""

    side: Side
    frame: str
    image_ids: list[str]
    truth: Sequence[object]
    right: dict[str, np.ndarray]

    @staticmethod
    def read(side: Side, table: pa.Table, frame: str) -> "_Scored":
        rows = table.filter(pa.array([f == frame for f in table["frame"].to_pylist()]))
        if not rows.num_rows:
            raise RunError(f"{side.run / PREDICTIONS}: no rows for frame {frame}")
        known = hits(rows[f"{side.result}_iou"].to_numpy())
        top = in_top(np.array(rows["top5"].to_pylist()), rows["label"].to_numpy(), 1)
        truth = list(zip(rows["label"].to_pylist(), rows["ground_truth"].to_pylist(), strict=True))
        right = {"gt_known": known, "top1_loc": known & top}
        return _Scored(side, frame, rows["image_id"].to_pylist(), truth, right)


def _matched(a: _Scored, b: _Scored) -> np.ndarray:
    """Where each of a's images lies in b, N ints. Raises RunError where the images or their boxes differ."""
    for x, y in ((a, b), (b, a)):
        alone = sorted(set(x.image_ids) - set(y.image_ids))
        if alone:
            raise RunError(
                f"{y.side.run / PREDICTIONS}: lacks {len(alone)} of the {len(x.image_ids)} test images of "
                f"{x.side.run}, first {alone[0]} ({a.frame}); compare runs on the same test images"
            )
    place = {image: i for i, image in enumerate(b.image_ids)}
    order = np.array([place[image] for image in a.image_ids])
    for image, i, truth in zip(a.image_ids, order, a.truth, strict=True):
        if b.truth[i] != truth:
            raise RunError(
                f"{b.side.run / PREDICTIONS}: another class or ground truth of {image} ({a.frame}) than in "
                f"{a.side.run}; compare runs on the same data and crop"
            )
    return order


def _compare(x: np.ndarray, y: np.ndarray, frame: str, metric: str, rng: np.random.Generator) -> Comparison:
    from scipy import stats  # half a second, which tables need not wait for

    only_a, only_b = int((x & ~y).sum()), int((y & ~x).sum())
    low = high = 0.0
    p = 1.0
    if only_a or only_b:  # else all resamples are the same, and no image decides anything
        spread = stats.bootstrap(
            (100.0 * x, 100.0 * y),
            _difference,
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            confidence_level=CONFIDENCE,
            method="percentile",
            batch=max(1, 2_000_000 // len(x)),
            rng=rng,
        )
        low, high = (float(v) for v in spread.confidence_interval)
        p = float(stats.binomtest(only_a, only_a + only_b).pvalue)
    return Comparison(frame, metric, percent(x), percent(y), low, high, only_a, only_b, p, len(x))


def _difference(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.mean(x - y, axis=axis)


def comparison_text(a: Side, b: Side, compared: Sequence[Comparison]) -> str:
    """What `compare` found, as a table."""
    head = ["frame", "metric", "A", "B", "A - B", "95 % interval", "only A right", "only B right", "McNemar p"]
    rows = [
        [
            c.frame,
            METRICS[c.metric],
            f"{c.a:.2f}",
            f"{c.b:.2f}",
            f"{c.difference:+.2f}",
            f"{c.low:+.2f} to {c.high:+.2f}",
            c.only_a,
            c.only_b,
            f"{c.p:.3g}",
        ]
        for c in compared
    ]
    lines = [f"{name}: {side.title} of {side.run}" for name, side in (("A", a), ("B", b))]
    return "\n".join(
        [
            *lines,
            f"{compared[0].images} test images, percent and points\n",
            tabulate(rows, head, disable_numparse=True),
            f"\ninterval: paired bootstrap over the test images ({RESAMPLES} resamples, percentile); "
            "p: McNemar's exact test.\nBoth ask whether other test images would say the same; neither knows of seeds.",
        ]
    )
