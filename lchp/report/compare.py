"""Two results on the same test images: are they different by more than chance?

Two runs, image by image: a bootstrap confidence interval of the difference, and McNemar's exact test (two-sided
binomial test of the images that only one of both gets right). Both say how far the *test images* decide it; they say
nothing about other seeds. Two settings, of which several seeds were run: see `lchp.report.paired`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from tabulate import tabulate

from lchp.config import to_flat
from lchp.errors import ConfigError, RunError
from lchp.evaluation.metrics import FRAMES, RESULTS, hits, in_top, percent
from lchp.evaluation.predictions import METRICS, TITLES, read_predictions
from lchp.files.runs import PREDICTIONS, read_config, read_environment
from lchp.files.targets import as_path
from lchp.report.dependence import is_complete, result_of
from lchp.report.flags import STORAGES, Source
from lchp.report.paired import RESAMPLES, Difference, difference
from lchp.report.read import METHOD, Records, title_of
from lchp.report.select import (
    FINGERPRINT,
    IDENTITY,
    RECIPE,
    canonical,
    once,
    parse_where,
    require,
    rows,
    show,
    sorted_values,
    split,
    split_values,
)

COMPARED = ("gt_known", "top1_loc")


@dataclass(frozen=True)
class Side:
    """One of `lchp.evaluation.metrics.RESULTS` of a run folder, or of a setting. method: whose run it is, as the tables
    have it; None where the results' own titles say it; setting: what was typed, with its runs by seed, of which `run`
    is the first."""

    run: Path
    result: str
    method: str | None = None
    setting: str = ""
    seeds: Mapping[int, Path] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What is compared: `LCHP-I`, or `CAM (Pseudo Label)`, its result in brackets."""
        result = TITLES[self.result]
        return result if self.method is None else f"{self.method} ({result})"

    def __str__(self) -> str:
        return f"{self.title} of {self.setting or self.run}"


@dataclass(frozen=True)
class Comparison:
    """One metric in one frame. a, b, difference (a - b), low and high (its 95 % interval): percent (points); only_a,
    only_b: images (of all seeds) that only one of both gets right; p: of McNemar's exact test, with several seeds of
    `lchp.report.paired.difference`; images, seeds: on how many."""

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
    seeds: int = 1

    @property
    def difference(self) -> float:
        """a - b in points."""
        return self.a - self.b


def compared(texts: Sequence[str], chosen: Source) -> str:
    """What `--compare` prints: two runs, or two settings of the chosen records. Raises an LchpError."""
    if len(texts) != 2:
        raise ConfigError("--compare: expected two results, RUN[:RESULT] RUN[:RESULT], or two settings, FIELD=VALUE")
    of_settings = any(is_setting(text) for text in texts)
    if not of_settings and (chosen.where or chosen.sweep or chosen.storage != STORAGES):
        idle = "--where" if chosen.where else "--sweep" if chosen.sweep else "--storage"
        raise ConfigError(f"{idle} does not go with --compare RUN RUN; it chooses among settings, FIELD=VALUE")
    records = chosen.read() if of_settings else None
    a, b = (parse_side(text, records, chosen.where) for text in texts)
    return comparison_text(a, b, compare(a, b))


def is_setting(text: str) -> bool:
    """Whether a text names fields, and not a folder that is there."""
    return "=" in text and not as_path(text.rpartition(":")[0] or text).exists() and not as_path(text).exists()


def parse_side(text: str, records: Records | None = None, where: Sequence[str] = ()) -> Side:
    """`RUN` (its last result: LCHP-R, or a compared method's) or `RUN:RESULT`; or a setting of `records`,
    `FIELD=VALUE[,FIELD=VALUE][:RESULT]`, with what `where` says.

    Raises ConfigError for a result that does not exist, or for conditions that several settings meet; RunError where
    the run folder cannot be read.
    """
    folder, colon, result = text.rpartition(":")
    if not colon or "/" in result or (result not in RESULTS and is_setting(text)):
        folder, result = text, None
    elif result not in RESULTS:
        raise ConfigError(f"--compare {text}: {result} is no result; expected RUN or RUN:{{{','.join(RESULTS)}}}")
    if records is not None and is_setting(text):
        return _setting(folder, records, where, result)
    run = as_path(folder)
    config = to_flat(read_config(run))
    title = None if is_complete(config) else title_of(read_environment(run))
    return Side(run, result or result_of(config), title)


def _setting(text: str, records: Records, where: Sequence[str], result: str | None) -> Side:
    conditions = parse_where([*where]) | parse_where(split_values(text), "--compare")
    require(records, conditions, "--compare")
    runs = canonical(records.runs)
    for name, value in conditions.items():
        runs = rows(runs, (v == value for v in runs[name]))
    groups = split(runs, None)
    if len(groups) != 1:
        differing = [n for n in (*IDENTITY, FINGERPRINT, RECIPE) if len(set(runs[n])) > 1]
        each = "; ".join(f"{n} {', '.join(map(show, sorted_values(runs[n])))}" for n in differing)
        raise ConfigError(f"--compare {text}: {len(groups)} settings meet it; add what tells them apart: {each or '-'}")
    mine = once(groups[0]).runs.sort_values("seed")
    first = mine.iloc[0]
    title = None if is_complete(first) else first[METHOD]
    seeds = {int(seed): Path(folder) for seed, folder in zip(mine["seed"], mine["folder"], strict=True)}
    return Side(Path(first["folder"]), result or result_of(first), title, text, seeds)


def compare(a: Side, b: Side, *, seed: int = 0) -> tuple[Comparison, ...]:
    """GT-Known and Top-1 in every frame, of two settings over the seeds that both have; `seed` is the bootstrap's.

    Raises ConfigError for a run beside a setting, RunError where predictions are missing or damaged, have no boxes, or
    are of different test images, and where two settings have no seed in common.
    """
    if bool(a.seeds) != bool(b.seeds):
        raise ConfigError("--compare: one is a run and the other a setting; expected two runs or two settings")
    seeds = sorted(a.seeds.keys() & b.seeds.keys())
    if a.seeds and not seeds:
        raise RunError(f"{a.setting} and {b.setting} have no seed in common")
    pairs = [(replace(a, run=a.seeds[s]), replace(b, run=b.seeds[s])) for s in seeds] or [(a, b)]
    reader, out = PairReader(), []
    for frame in FRAMES:
        for metric in COMPARED:
            x, y = reader.values(pairs, frame, metric)
            out.append(_compare(x > 0, y > 0, frame, metric, seed))
    return tuple(out)


class PairReader:
    """Reads the figures of runs on their test images, each file once."""

    def __init__(self) -> None:
        self.tables: dict[Path, pa.Table] = {}

    def values(self, pairs: Sequence[tuple[Side, Side]], frame: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """Of METRICS, image by image in percent: twice S x N, of S pairs of runs on the same N images. Raises
        RunError."""
        first, out = None, []
        for pair in pairs:
            a, b = (_Scored.read(side, self._table(side), frame) for side in pair)
            first = first or a
            out.append((a.values[metric][_matched(first, a)], b.values[metric][_matched(first, b)]))
        x, y = zip(*out, strict=True)
        return np.array(x), np.array(y)

    def difference(self, a: pd.DataFrame, b: pd.DataFrame, path: str) -> Difference:
        """Of two settings' runs, by seed: a - b in the figure of this path, `results/<result>/<frame>/<metric>`, where
        a result that is none is each run's last. Raises RunError, also where no seed is common."""
        _, result, frame, metric = path.split("/")
        sides = [
            {
                int(run["seed"]): Side(
                    Path(run["folder"]), result if result in RESULTS else result_of(run), run[METHOD]
                )
                for run in runs.to_dict("records")
            }
            for runs in (a, b)
        ]
        pairs = [(side, sides[1][seed]) for seed, side in sorted(sides[0].items()) if seed in sides[1]]
        if not pairs:
            raise RunError("no seed is common to both")
        x, y = self.values(pairs, frame, metric)
        return difference(x - y)

    def _table(self, side: Side) -> pa.Table:
        if side.run not in self.tables:
            self.tables[side.run] = read_predictions(side.run)
        _check(side, self.tables[side.run])
        return self.tables[side.run]


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
    """One side's test images in one frame. values: metric -> N, in percent."""

    side: Side
    frame: str
    image_ids: list[str]
    truth: Sequence[object]
    values: dict[str, np.ndarray]

    @staticmethod
    def read(side: Side, table: pa.Table, frame: str) -> "_Scored":
        rows = table.filter(pa.array([f == frame for f in table["frame"].to_pylist()]))
        if not rows.num_rows:
            raise RunError(f"{side.run / PREDICTIONS}: no rows for frame {frame}")
        ious, labels = rows[f"{side.result}_iou"].to_numpy(), rows["label"].to_numpy()
        known, top = hits(ious), np.array(rows["top5"].to_pylist())
        values = {"gt_known": known, "mean_iou": ious}
        values |= {f"top{k}_loc": known & in_top(top, labels, k) for k in (1, 5)}
        truth = list(zip(rows["label"].to_pylist(), rows["ground_truth"].to_pylist(), strict=True))
        return _Scored(side, frame, rows["image_id"].to_pylist(), truth, {n: 100.0 * v for n, v in values.items()})


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


def _compare(x: np.ndarray, y: np.ndarray, frame: str, metric: str, seed: int) -> Comparison:
    """x, y: S x N, what each got right."""
    only_a, only_b = int((x & ~y).sum()), int((y & ~x).sum())
    found = difference(100.0 * x - 100.0 * y, seed=seed)
    sides = percent(x), percent(y)
    return Comparison(frame, metric, *sides, found.low, found.high, only_a, only_b, found.p, x.shape[1], len(x))


def comparison_text(a: Side, b: Side, compared: Sequence[Comparison]) -> str:
    """What `compare` found, as a table."""
    several = compared[0].seeds > 1
    p = "p" if several else "McNemar p"
    head = ["frame", "metric", "A", "B", "A - B", "95 % interval", "only A right", "only B right", p]
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
    lines = [f"{name}: {side}" for name, side in (("A", a), ("B", b))]
    seeds = f"{compared[0].seeds} common seeds, " if several else ""
    about = (
        f"\ninterval: paired bootstrap over the test images ({RESAMPLES} resamples, percentile); "
        "p: McNemar's exact test.\nBoth ask whether other test images would say the same; neither knows of seeds."
    )
    if several:
        about = (
            "\ninterval and p: paired hierarchical bootstrap over seeds and test images.\nBoth ask whether other seeds "
            "and other test images would say the same."
        )
    return "\n".join(
        [
            *lines,
            f"{seeds}{compared[0].images} test images, percent and points\n",
            tabulate(rows, head, disable_numparse=True),
            about,
        ]
    )
