"""Settings ranked without ground truth: by how much the classifier relies on what is in the boxes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from lchp.config import short_name, show
from lchp.errors import RunError
from lchp.report.dependence import is_complete
from lchp.report.read import Records
from lchp.report.select import FINGERPRINT, IDENTITY, RECIPE, canonical, once, rows, split

FRAME = "center_crop"
PARTS = ("crop", "masked", "area", "score")


@dataclass(frozen=True)
class RankedSetting:
    """One setting: the fields that tell it from the others, its seeds, and means over them in percent. parts: of
    `lchp.evaluation.metrics.unboxed`, for LCHP-R on the test images; known: GT-Known of LCHP-R (None without boxes)."""

    values: Mapping[str, Any]
    seeds: int
    parts: Mapping[str, float]
    known: float | None


def rank(records: Records, where: Mapping[str, Any] | None = None) -> tuple[RankedSetting, ...]:
    """Settings, the best score first; runs that `lchp train` wrote before it computed the score are left out.

    Raises RunError where no run is left.
    """
    runs = canonical(records.runs)
    there, runs = len(runs), rows(runs, map(is_complete, runs.to_dict("records")))
    if there and runs.empty:
        raise RunError("no run to rank: these are of compared methods; LCHP's runs are ranked, by LCHP-R's boxes")
    for name, value in (where or {}).items():
        runs = rows(runs, (v == value for v in runs[name]))
    columns = {part: f"unboxed/{FRAME}/{part}" for part in PARTS}
    if columns["score"] in runs:
        runs = rows(runs, (not np.isnan(v) for v in runs[columns["score"]]))
    if runs.empty or columns["score"] not in runs:
        raise RunError("no run to rank; none meets --where and --sweep, or their summaries are older than `unboxed`")
    vary = [name for name in (*IDENTITY, FINGERPRINT, RECIPE) if len(set(runs[name])) > 1]
    groups = [once(group, ("unboxed/",)).runs for group in split(runs, None)]
    found = [
        RankedSetting(
            {name: group[name].iloc[0] for name in vary},
            len(set(group["seed"])),
            {part: float(group[column].to_numpy(float).mean()) for part, column in columns.items()},
            _known(group),
        )
        for group in groups
    ]
    return tuple(sorted(found, key=lambda s: -s.parts["score"]))


def _known(runs: pd.DataFrame) -> float | None:
    value = float(runs[f"results/lchp_r/{FRAME}/gt_known"].to_numpy(float).mean())
    return None if np.isnan(value) else value


def rank_text(settings: Sequence[RankedSetting]) -> str:
    """A table, and how well the ranking agrees with GT-Known where there are boxes."""
    names = list(settings[0].values)
    head = [*map(short_name, names), "seeds", *PARTS, "GT-Known (not used)"]
    body = [
        [
            *(show(s.values[n]) for n in names),
            s.seeds,
            *(f"{s.parts[part]:.2f}" for part in PARTS),
            "-" if s.known is None else f"{s.known:.2f}",
        ]
        for s in settings
    ]
    lines = [
        f"LCHP-R on the test images, {FRAME}, percent: the class's softmax on the crop in the box and with the box\n"
        "masked out, the box's area, and score = crop - masked - area. No box was read for them.",
        tabulate(body, head, disable_numparse=True),
    ]
    known, scores = [s.known for s in settings], [s.parts["score"] for s in settings]
    if len(settings) > 2 and None not in known and len(set(scores)) > 1 and len(set(known)) > 1:
        from scipy.stats import spearmanr  # half a second, which other tables need not wait for

        correlate: Any = spearmanr
        lines.append(
            f"Spearman's rho of score and GT-Known over these settings: {correlate(scores, known).statistic:.2f}"
        )
    return "\n\n".join(lines)
