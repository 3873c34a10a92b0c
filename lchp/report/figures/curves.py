"""Curves: GT-Known over delta and over tau, accuracy over the IoU threshold, confidence against IoU, training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lchp.config import Preset
from lchp.errors import RunError
from lchp.evaluation.metrics import FLOORS, FRAMES, IOU_THRESHOLD, hits, percent
from lchp.evaluation.predictions import TITLES
from lchp.report.figures.images import Predicted
from lchp.report.figures.style import (
    BLUE,
    COLUMN,
    CURVES,
    DASHES,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    SMALL,
    VERMILLION,
    Drawing,
    Mark,
    style,
)
from lchp.report.paper import Paper
from lchp.report.paper import number as as_number
from lchp.report.read import Records
from lchp.report.select import DELTA, TAU, Group, choose
from lchp.report.tables.grid import DATA, FAILED, NO_BOXES, PAPER_FRAME, Table, axis_table

THRESHOLDS = np.arange(4, 37) / 40  # 0.1 to 0.9; 20 / 40 is 0.5 exactly
BINS = 10
RESAMPLES = 999

Where = Mapping[str, Any] | None
"""Values of fields that the runs must have, as in `lchp.report.select.choose`."""
PaperCurve = Mapping[float, float | None]
"""The paper's value at each delta or tau, in percent; None: training failed."""

_FLOOR_LINES = {"full_box": (0, (1, 4)), "centre_box": (0, (5, 2, 1, 2))}


def over_delta(records: Records, preset: Preset, paper: Paper, where: Where = None) -> Drawing:
    """Table 3 as curves: GT-Known over delta in both frames, of the runs and with the figures of the table.

    Raises RunError where the table has no figure.
    """
    made = axis_table(records, 3, preset, paper, where)
    group = _group(records, preset, DELTA, where, made)
    with style():
        figure, axes = _stack(2, 1.75)
        for ax, section in zip(axes, made.sections, strict=True):
            curves = []
            for column, mark in zip(made.columns, CURVES.values(), strict=True):
                ours = points(made, section.frame, column)
                theirs = printed(paper, 3, column) if section.frame == PAPER_FRAME else {}
                _measured(ax, ours, mark, column)
                _published(ax, theirs, mark)
                curves.append((mark, ours, theirs))
            _failures(ax, curves)
            _floors(ax, group.runs, section.frame)
            _percent_axis(ax, f"GT-Known (%)\n{section.frame}")
        axes[-1].set_xlabel(r"foreground threshold $\delta$")
        _legend(figure, axes[0], ncols=3)
    return Drawing("delta", f"{made.title}, in both frames{_curve_words(made, group)}", figure)


def over_tau(records: Records, preset: Preset, paper: Paper, where: Where = None) -> Drawing:
    """Table 4 as curves: LCHP-R over tau in both frames, beside LCHP-I, which does not depend on tau; and the training
    boxes that tau keeps, a diagnostic. Of the runs and with the figures of the table.

    Raises RunError where the table has no figure.
    """
    made = axis_table(records, 4, preset, paper, where)
    group = _group(records, preset, TAU, where, made)
    count, known, result = made.columns
    shares, quality = Mark(SKY, "-", "D"), Mark(VERMILLION, DASHES["dashed"], "v")
    with style():
        figure, axes = _stack(3, 1.6)
        for ax, section in zip(axes, made.sections, strict=False):
            _level(ax, group.runs, f"results/lchp_i/{section.frame}/gt_known", CURVES["lchp_i"], TITLES["lchp_i"])
            ours = points(made, section.frame, result)
            theirs = printed(paper, 4, result) if section.frame == PAPER_FRAME else {}
            _measured(ax, ours, CURVES["lchp_r"], result)
            _published(ax, theirs, CURVES["lchp_r"])
            _failures(ax, [(CURVES["lchp_r"], ours, theirs)])
            _floors(ax, group.runs, section.frame)
            _percent_axis(ax, f"GT-Known (%)\n{section.frame}")
        if "kept/total" in group.runs:
            kept = points(made, PAPER_FRAME, count)
            scale = 100 / group.runs["kept/total"].mean()
            _measured(axes[2], Points(kept.x, kept.mean * scale, kept.sd * scale, kept.n, ()), shares, "share kept")
        _measured(axes[2], points(made, PAPER_FRAME, known), quality, "their GT-Known")
        counts = {x: v for x, v in printed(paper, 4, count).items() if v is not None}
        _published(axes[2], {x: 100 * v / max(counts.values()) for x, v in counts.items()}, shares)  # all at tau 0
        _published(axes[2], printed(paper, 4, known), quality)
        _percent_axis(axes[2], f"training boxes (%)\n{PAPER_FRAME}")
        axes[2].legend(loc="lower left")
        axes[2].set_xlabel(r"confidence threshold $\tau$")
        _legend(figure, axes[0], ncols=3)
    title = (
        "GT-Known (%) of LCHP-R over the confidence threshold tau on the test images, in both frames, and below it the "
        "share of LCHP-I's training boxes that tau keeps and their GT-Known, a diagnostic that reads training boxes"
    )
    return Drawing("tau", title + _curve_words(made, group), figure)


@dataclass(frozen=True)
class Points:
    """A curve: x ascending; mean and sample deviation over seeds (NaN where there is none), n seeds; failed: where
    training failed and there is no point."""

    x: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    n: np.ndarray
    failed: tuple[float, ...]


def points(made: Table, frame: str, column: str) -> Points:
    """A column of Table 3 or 4 in one frame as a curve over the row's value, where that is a number."""
    section = next(s for s in made.sections if s.frame == frame)
    at = made.columns.index(column)
    cells = {float(row.labels[0]): row.cells[at] for row in section.rows if row.labels[0] != "auto"}
    there = {x: c for x, c in sorted(cells.items()) if c.mean is not None}
    return Points(
        np.array(list(there)),
        np.array([c.mean for c in there.values()], float),
        np.array([np.nan if c.sd is None else c.sd for c in there.values()]),
        np.array([c.n for c in there.values()], int),
        tuple(x for x, c in sorted(cells.items()) if c.ours.startswith(FAILED)),
    )


def printed(paper: Paper, number: int, column: str) -> PaperCurve:
    """The paper's column of Table 3 or 4; None where its training failed."""
    texts = {float(row): paper.value(number, row, column) for row in paper.rows(number)}
    return {x: as_number(text) for x, text in texts.items() if text is not None}


def over_threshold(runs: Sequence[Mapping[str, Predicted]], about: str) -> Drawing:
    """Share of test images whose box has at least a given IoU, for the results that all runs have. runs: per seed,
    frame -> boxes.

    Raises RunError where the test images have no boxes.
    """
    for predicted in (p for run in runs for p in run.values()):
        _require_truth(predicted)
    with style():
        figure, axes = _stack(2, 1.75)
        for ax, frame in zip(axes, FRAMES, strict=True):
            for result, mark in CURVES.items():
                if any(result not in run[frame].ious for run in runs):
                    continue
                each = np.array([accuracy(run[frame].ious[result]) for run in runs])  # runs x thresholds
                sd = each.std(0, ddof=1) if len(runs) > 1 else np.full(len(THRESHOLDS), np.nan)
                curve = Points(THRESHOLDS, each.mean(0), sd, np.full(len(THRESHOLDS), len(runs)), ())
                _measured(ax, curve, mark, TITLES[result], markevery=4)
            ax.axvline(IOU_THRESHOLD, color=GREY, linewidth=0.6)
            _percent_axis(ax, f"images (%)\n{frame}")
        axes[-1].set_xlabel("IoU threshold")
        axes[-1].set_xticks(np.linspace(0.1, 0.9, 9))
        _legend(figure, axes[0], ncols=3)
    n = len(runs)
    caption = (
        "Share of the test images whose box reaches an IoU with the ground truth, in both frames"
        + (f": mean and standard deviation over {n} seeds. " if n > 1 else " (one seed). ")
        + f"At {IOU_THRESHOLD:g} (line) it is GT-Known. {about}"
    )
    return Drawing("iou", caption, figure)


def accuracy(ious: np.ndarray) -> np.ndarray:
    """Percent of N IoUs that reach each of THRESHOLDS."""
    return np.array([percent(ious >= t) for t in THRESHOLDS])


def against_iou(frames: Mapping[str, Predicted], tau: float, about: str) -> Drawing:
    """Confidence of the last result's box (LCHP-R's) against its IoU, with the rank correlation. frames: frame -> a
    run's predictions.

    Raises RunError where the test images have no boxes.
    """
    words = []
    with style():
        figure, axes = _stack(2, 1.95)
        for ax, frame in zip(axes, FRAMES, strict=True):
            predicted = frames[frame]
            _require_truth(predicted)
            p, iou = predicted.confidence, predicted.ious[predicted.last]
            ax.scatter(p, iou, s=5, color=SKY, linewidths=0, alpha=max(0.08, min(0.6, 250 / len(p))), rasterized=True)
            centres, means, right = binned(p, iou)
            ax.plot(centres, means, "o-", color=BLUE, label="mean IoU")
            ax.plot(
                centres,
                right,
                "s",
                linestyle=DASHES["dashed"],
                color=VERMILLION,
                label=f"IoU $\\geq$ {IOU_THRESHOLD:g} (share)",
            )
            ax.axvline(tau, color=GREY, linewidth=0.6)
            ax.set(ylim=(-0.02, 1.02), xlim=(min(0.0, float(p.min())) - 0.02, 1.02), ylabel=f"IoU\n{frame}")
            words.append(correlation(p, iou))
            ax.set_title(f"Spearman's {words[-1]}".replace("rho", r"$\rho$"), fontsize=SMALL)
        axes[-1].set_xlabel("confidence of the crop")
        _legend(figure, axes[0], ncols=2)
    last = TITLES[frames[FRAMES[0]].last]
    both = "; ".join(f"{frame}: {w}" for frame, w in zip(FRAMES, words, strict=True))
    caption = (
        f"Confidence (maximum softmax of the classifier on the crop in {last}'s box) against that box's IoU, a point "
        f"per test image of one run; means over groups of equally many images by confidence; line: tau {tau:g}. "
        f"Rank correlation ({both}; 95 % interval by bootstrap over images). {about}"
    )
    return Drawing("confidence", caption, figure)


def binned(p: np.ndarray, iou: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of groups of equally many images by confidence (ten; fewer where a group would hold less than 20): mean
    confidence, mean IoU, share of right boxes."""
    groups = np.array_split(np.argsort(p, kind="stable"), max(1, min(BINS, len(p) // 20)))
    means = [(p[g].mean(), iou[g].mean(), hits(iou[g]).mean()) for g in groups]
    centres, mean, right = np.array(means).T
    return centres, mean, right


def correlation(p: np.ndarray, iou: np.ndarray) -> str:
    """Spearman's rho of N confidences and IoUs in words, with a 95 % interval (percentile bootstrap, fixed seed)."""
    if len(np.unique(p)) < 2 or len(np.unique(iou)) < 2:
        return f"rho undefined (all values equal), n = {len(p)}"

    from scipy.stats import bootstrap, rankdata, spearmanr  # half a second, which other figures need not wait for

    def rho(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        """Of many resamples at once; 0 where all values of one are equal."""
        ranks = [rankdata(values, axis=axis) for values in (a, b)]
        x, y = (r - r.mean(axis, keepdims=True) for r in ranks)
        both = np.sqrt((x**2).sum(axis) * (y**2).sum(axis))
        return np.divide((x * y).sum(axis), both, out=np.zeros_like(both), where=both > 0)

    found: Any = spearmanr(p, iou)
    interval = bootstrap(
        (p, iou),
        rho,
        paired=True,
        vectorized=True,
        batch=max(1, 2_000_000 // len(p)),
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    value = "p < 0.001" if found.pvalue < 0.001 else f"p = {found.pvalue:.3f}"
    return f"rho = {found.statistic:.2f} [{interval.low:.2f}, {interval.high:.2f}], {value}, n = {len(p)}"


def training(metrics: Sequence[Mapping[str, Any]], about: str) -> Drawing:
    """Losses and shares over the epochs of the classifier, the localizer and stage 2, from the lines of metrics.jsonl,
    as far as a run has them. In older records LCHP's stage 1 is one training of both.

    Raises RunError where there is no line.
    """
    if not metrics:
        raise RunError("metrics.jsonl: no epochs recorded")
    joint = any(m["stage"] == "initialization" and "l_reg" in m for m in metrics)
    boxes = "initialization" if joint else "regression"
    # a compared method's classifier and localizer are trained by one loss each
    l_cls, l_reg = (name if any(name in m for m in metrics) else "loss" for name in ("l_cls", "l_reg"))
    noted = boxes if l_cls == "loss" else "initialization"  # LCHP's teacher makes them beside the classifier
    losses = (
        ("initialization", l_cls, r"$L_{cls}$", Mark(BLUE, "-", "o")),
        (boxes, l_reg, r"$L_{reg}$", Mark(ORANGE, DASHES["dashed"], "s")),
        ("refinement", "loss", r"$L_{refine}$", Mark(GREEN, DASHES["dotted"], "^")),
    )
    shares = (
        ("initialization", "top1", "train top-1", Mark(BLUE, "-", "o")),
        (noted, "pseudo_area", "pseudo box area", Mark(ORANGE, DASHES["dashed"], "s")),
        ("refinement", "confidence", "mean confidence", Mark(VERMILLION, DASHES["dashed"], "v")),
        ("refinement", "kept", "confidence above tau", Mark(GREEN, DASHES["dotted"], "^")),
        ("refinement", "box_area", "box area of b", Mark(PURPLE, (0, (5, 2, 1, 2)), "D")),
    )
    names = {
        "initialization": "stage 1" if joint else "classifier",
        "regression": "localizer",
        "refinement": "stage 2",
    }
    trainings = {stage: [m for m in metrics if m["stage"] == stage] for stage in names}
    trainings = {stage: lines for stage, lines in trainings.items() if lines}
    starts = dict(
        zip(trainings, np.r_[0, np.cumsum([len(lines) for lines in trainings.values()])].tolist(), strict=False)
    )
    with style():
        figure, (top, bottom) = _stack(2, 1.9)
        for ax, curves in ((top, losses), (bottom, shares)):
            for stage, key, label, mark in curves:
                lines = trainings.get(stage, [])
                epochs = np.array([starts[stage] + m["epoch"] for m in lines if key in m])
                values = np.array([float(m[key]) for m in lines if key in m])
                if ax is top:
                    values = np.where(values > 0, values, np.nan)  # the axis is logarithmic; 0 while nothing trains
                if np.isfinite(values).any():
                    every = max(1, len(metrics) // 12)
                    ax.plot(
                        epochs,
                        values,
                        color=mark.colour,
                        linestyle=mark.line,
                        marker=mark.marker,
                        markevery=every,
                        label=label,
                    )
            for start in list(starts.values())[1:]:
                ax.axvline(start + 0.5, color=GREY, linewidth=0.6)
            if ax.get_lines():
                ax.legend(
                    loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=3 if ax is top else 2, borderaxespad=0.2
                )
        top.set(yscale="log", ylabel="loss")
        _percent_axis(bottom, "%")
        bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
        bottom.set_xlabel(f"epoch ({', then '.join(names[stage] for stage in trainings)})")
    caption = (
        "Means over each epoch's training batches: losses (above) and shares in percent (below). Epochs of "
        + ", ".join(f"{names[stage]}: {len(lines)}" for stage, lines in trainings.items())
        + f". {about}"
    )
    return Drawing("training", caption, figure)


def _stack(count: int, height: float) -> tuple[Figure, Any]:
    """Axes above each other in a column's width, over one x axis. height: of each, in inches."""
    figure = Figure(figsize=(COLUMN, count * height + 0.35), layout="constrained")
    return figure, figure.subplots(count, 1, sharex=True)


def _measured(ax: Axes, curve: Points, mark: Mark, label: str, markevery: int = 1) -> None:
    """Ours: the mean, and a band of a standard deviation to both sides; broken where training failed."""
    look: dict[str, Any] = {"linestyle": mark.line, "marker": mark.marker, "markevery": markevery}
    x = np.r_[curve.x, curve.failed]
    order, nothing = np.argsort(x), np.full(len(curve.failed), np.nan)
    x, mean, sd = x[order], np.r_[curve.mean, nothing][order], np.r_[curve.sd, nothing][order]
    ax.plot(x, mean, color=mark.colour, label=label, **look)
    if np.isfinite(sd).any():
        ax.fill_between(x, mean - sd, mean + sd, color=mark.colour, alpha=0.22, linewidth=0)


def _level(ax: Axes, runs: pd.DataFrame, column: str, mark: Mark, label: str) -> None:
    """Draws what does not depend on the axis: a line at the mean over seeds, and its band."""
    values = runs.drop_duplicates("seed")[column].dropna().to_numpy(float)
    if len(values):
        ax.axhline(values.mean(), color=mark.colour, linestyle=mark.line, label=label)
    if len(values) > 1:
        mean, sd = values.mean(), values.std(ddof=1)
        ax.axhspan(mean - sd, mean + sd, color=mark.colour, alpha=0.15, linewidth=0)


def _published(ax: Axes, values: PaperCurve, mark: Mark) -> None:
    """The paper's: thin, with hollow marks."""
    there = {x: y for x, y in sorted(values.items()) if y is not None}
    look: dict[str, Any] = {"linestyle": mark.line, "linewidth": 0.7, "markeredgewidth": 0.8}
    if there:
        x, y = list(there), list(there.values())
        ax.plot(x, y, color=mark.colour, marker=mark.marker, markerfacecolor="white", **look)


def _failures(ax: Axes, curves: Sequence[tuple[Mark, Points, PaperCurve]]) -> None:
    """Crosses with a word where training failed, ours or the paper's: at the bottom, a line of its own per curve."""
    patch = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    for level, (mark, ours, theirs) in enumerate(curves):
        published = {x for x, value in theirs.items() if value is None}
        for x in sorted({*ours.failed, *published}):
            word = (
                "failed" if x not in published else "failed, as the paper's" if x in ours.failed else "failed (paper)"
            )
            left = x < 0.5  # delta and tau are in [0, 1]; the word goes where there is room
            ax.plot([x], [2 + 9 * level], marker="X" if x in ours.failed else "x", color=mark.colour, linestyle="none")
            ax.annotate(
                word,
                (x, 2 + 9 * level),
                xytext=(6 if left else -6, 0),
                textcoords="offset points",
                ha="left" if left else "right",
                va="center",
                fontsize=SMALL,
                color=mark.colour,
                bbox=patch,
            )


def _floors(ax: Axes, runs: pd.DataFrame, frame: str) -> None:
    for key, title in FLOORS.items():
        height = float(runs[f"floors/{frame}/{key}"].to_numpy().mean())
        if np.isfinite(height):
            ax.axhline(height, color=GREY, linewidth=0.7, linestyle=_FLOOR_LINES[key], label=f"floor: {title}")


def _group(records: Records, preset: Preset, axis: str, where: Where, made: Table) -> Group:
    """The runs of a table. Raises RunError where it has no figure."""
    group = choose(records, preset, axis, where).group
    cells = [(row.labels[0], cell) for section in made.sections for row in section.rows for cell in row.cells]
    there = {label for label, cell in cells if cell.mean is not None}
    if group is None or not there - {"auto"}:
        boxless = any(cell.ours == NO_BOXES for _, cell in cells)
        why = "the test images have no ground-truth boxes" if boxless else "no finished run belongs there"
        why = f"{axis} is auto, which is no point of a curve" if there else why
        raise RunError(f"Table {made.number} has no figure of {preset.config.data.name} to draw: {why}")
    return group


def _curve_words(made: Table, group: Group) -> str:
    """The rest of a caption: seeds, floors, the paper's curve, and what the table says of its runs."""
    every = [p.n for s in made.sections for c in made.columns if len((p := points(made, s.frame, c)).n)]
    least, most = int(min(n.min() for n in every)), int(max(n.max() for n in every))
    over = f"{least} seed{'s' * (most > 1)}" if least == most else f"{least} to {most} seeds"
    spread = "mean and standard deviation over" if most > 1 else "of"
    floors = []
    for key, title in FLOORS.items():
        values = [group.runs[f"floors/{frame}/{key}"].mean() for frame in FRAMES]
        if np.isfinite(values).all():
            floors.append(f"{title} {values[0]:.1f} and {values[1]:.1f}")
    floor_words = f" Floors ({' and '.join(FRAMES)}): {'; '.join(floors)}." if floors else ""
    paper_words = f" Thin lines, hollow marks: the paper's, on {DATA['cub']} in {PAPER_FRAME}."
    return f": {spread} {over}.{floor_words}{paper_words} {made.caption}"


def _percent_axis(ax: Axes, label: str) -> None:
    ax.set(ylim=(-3, 105), ylabel=label)
    ax.set_yticks(range(0, 101, 20))


def _legend(figure: Figure, ax: Axes, ncols: int) -> None:
    """One legend above all axes; one grey entry stands for the paper's curves of every colour."""
    handles, labels = ax.get_legend_handles_labels()
    if any(line.get_markerfacecolor() == "white" for line in ax.get_lines()):
        handles.append(Line2D([], [], color=GREY, linewidth=0.7, marker="o", markersize=4, markerfacecolor="white"))
        labels.append("paper (CUB)")
    figure.legend(handles, labels, loc="outside upper center", ncols=ncols)


def _require_truth(predicted: Predicted) -> None:
    if predicted.truth is None:
        raise RunError(f"{predicted.run}: no ground-truth boxes, so that no IoU can be drawn")
