"""Is `auto` right? Each candidate's score, which reads no box, beside GT-Known of its boxes, which is an oracle.

python -m analysis.auto_regret RUN [RUN ...]                # teachers after the last epoch
python -m analysis.auto_regret RUN --after 2 4 8 --csv FILE

RUN is a run folder that holds stage 1 of LCHP (lchp train --stage init is enough). A row per run, number of epochs and
frame: GT-Known of Pseudo Label by the candidate that `auto` chooses on training images, by the best of all (the oracle:
it reads the test boxes), by the median, and by the preset's own setting; `regret` = oracle - auto.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, cast

import pandas as pd
import torch
import tyro
from scipy.stats import spearmanr
from tabulate import tabulate

from analysis.teacher_boxes import boxes, open_teacher, truth_of
from lchp.boxes import area
from lchp.config import AUTO, PRESETS, InitializationConfig, TrainConfig
from lchp.console import run_scoring
from lchp.errors import RunError
from lchp.evaluation.frames import FRAMES, Frame
from lchp.evaluation.metrics import best_iou, gt_known
from lchp.files.runs import read_config
from lchp.files.schema import FrameName
from lchp.method.choice import PARTS, ROUNDS, candidates, known_by_each, looked_at, score, spared
from lchp.method.pseudo_boxes import Snapshots
from lchp.training.batches import plain_batches
from lchp.training.context import Context


@dataclass
class Flags:
    """Candidates of auto, by their score and by the oracle."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders that hold LCHP's classifier."""
    after: tuple[int, ...] = ()
    """Epochs of the classifier after which the teacher is looked at; by default the last. More than one needs a run
    with initialization.mask_delta, which keeps its teachers."""
    images: int = sum(ROUNDS)
    """Training images that score the candidates."""
    test: int = 0
    """Test images that the oracle reads; 0: all."""
    frame: tuple[FrameName, ...] = FRAMES
    """Frames that the oracle looks at."""
    csv: Path | None = None
    """File for a row per candidate."""
    data_root: Annotated[Path | None, tyro.conf.arg(name="data-root")] = None
    """Where the data set lies; by default where the run read it."""
    threads: int = 0
    """CPU threads of torch; 0 leaves torch's choice."""


def own_setting(config: TrainConfig) -> InitializationConfig:
    """What the boxes of a config go by without `auto`: its own fields, or those of its masks."""
    first = config.initialization
    masks = {n: getattr(first, m) if m else "own" for n, m in AUTO.items() if getattr(first, n) == "auto"}
    if "second_pass" in masks:
        named = (p.config.initialization.second_pass for p in PRESETS.values() if _alike(p.config, config))
        masks["second_pass"] = next((second_pass for second_pass in named if second_pass != "auto"), "own")
    return replace(first, **masks)


def _alike(preset: TrainConfig, config: TrainConfig) -> bool:
    return preset.model.classifier == config.model.classifier and preset.data.image_size == config.data.image_size


@torch.inference_mode()
def scored(teacher: Any, context: Context, configs: Sequence[InitializationConfig], images: int) -> torch.Tensor:
    """Candidates x PARTS in percent, over training images as `auto` sees them."""
    order = scoring(context, images)
    sums = torch.zeros(len(configs), len(PARTS), dtype=torch.float64)
    for batch in plain_batches(context, "center_crop", order):
        with context.autocast:
            for n, (crop, masked, b) in enumerate(known_by_each(teacher, batch.images, batch.labels, configs)):
                parts = crop, masked, area(b), score(crop, masked, b)
                sums[n] += torch.stack(parts).sum(1).double().cpu()
    return 100 * sums / len(order)


def every_candidate(config: TrainConfig) -> tuple[tuple[InitializationConfig, ...], InitializationConfig]:
    """All candidates, whatever is `auto` in a config, its masks as they are; and its own setting among them."""
    first = config.initialization
    masks = {m: getattr(first, m) or getattr(first, n) for n, m in AUTO.items() if m}
    asked = replace(first, **dict.fromkeys(AUTO, "auto"), **{m: v for m, v in masks.items() if v != "auto"})
    own = own_setting(config)
    return candidates(asked, config.model.head), replace(asked, **{name: getattr(own, name) for name in AUTO})


def tested_on(context: Context, images: int) -> Context:
    """With so many of the test images, drawn once and for all; 0: all."""
    if not images:
        return context
    some = torch.randperm(len(context.test), generator=torch.Generator().manual_seed(0))[:images].sort()[0]
    return replace(context, test=context.test.select(some.numpy()))


def scoring(context: Context, images: int) -> list[int]:
    """Positions of the training images that score candidates, so many at most: those that the classifier was spared, or
    where it was spared none those that `auto` would look at."""
    labels = context.images.split.labels.tolist()
    auto = context.config.initialization.auto_fields
    return ((spared(labels) if auto else []) or looked_at(len(labels)))[:images]


def look(run: Path, flags: Flags) -> pd.DataFrame:
    """A row per number of epochs, candidate and frame: its fields, the parts of its score, and GT-Known. Raises an
    LchpError."""
    config = read_config(run)
    context, teacher, modules = open_teacher(run, config, flags.data_root, flags.threads)
    context = tested_on(context, flags.test)
    first = config.initialization
    kept = None
    if "teachers" in modules:
        kept = Snapshots(teacher, first.epochs).to(context.device)
        kept.load_state_dict(modules["teachers"])
    configs, own = every_candidate(config)
    every = [*configs, *([own] if own not in configs else [])]
    rows = []
    for after in flags.after or (first.epochs,):
        if kept is not None:
            kept.load(teacher, kept.after(after))
        elif after != first.epochs:
            raise RunError(f"{run}: keeps the last teacher alone; train it with initialization.mask_delta")
        parts = scored(teacher, context, every, flags.images)
        for name in flags.frame:
            frame = Frame.of(name, config.data)
            truth = truth_of(context, frame)
            for n, (c, b) in enumerate(zip(every, boxes(teacher, context, frame, every), strict=True)):  # pyright: ignore
                fields = {field: getattr(c, field) for field in AUTO}
                figures = dict(zip(PARTS, parts[n].tolist(), strict=True))
                rows.append(
                    {"run": str(run), "after": after, "frame": name, **fields, **figures}
                    | {"gt_known": gt_known(best_iou(b[:, 1], truth)), "own": c == own, "candidate": c in configs}
                )
    return pd.DataFrame(rows)


def rows_of(runs: Sequence[Path], look: Callable[[Path], pd.DataFrame]) -> pd.DataFrame:
    """What `look` says of each run, in one table. Raises an LchpError, also where no run is named."""
    if not runs:
        raise RunError("RUN: name the run folders to look at")
    return pd.concat([look(run) for run in runs])


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """A row per run, number of epochs and frame."""
    rows = []
    correlate: Any = spearmanr
    for at, rows_there in found.groupby(["run", "after", "frame"], sort=False):
        run, after, frame = cast("tuple[str, int, str]", at)
        part: Any = rows_there.reset_index(drop=True)
        mine = part[part["candidate"]]
        best, oracle = mine.loc[mine["score"].idxmax()], mine.loc[mine["gt_known"].idxmax()]
        rows.append(
            {
                "run": Path(run).name,
                "after": after,
                "frame": frame,
                "auto": " ".join(str(best[name]) for name in AUTO),
                "auto GT-Known": best["gt_known"],
                "preset": part.loc[part["own"], "gt_known"].iloc[0],
                "median": mine["gt_known"].median(),
                "oracle GT-Known": oracle["gt_known"],
                "oracle": " ".join(str(oracle[name]) for name in AUTO),
                "regret": oracle["gt_known"] - best["gt_known"],
                "rho": correlate(mine["score"], mine["gt_known"]).statistic,
            }
        )
    return pd.DataFrame(rows)


def said(flags: Flags) -> tuple[str, pd.DataFrame]:
    """What is printed, and the rows."""
    found = rows_of(flags.runs, lambda run: look(run, flags))
    table = tabulate(summary(found), headers="keys", showindex=False, floatfmt=".2f")
    about = "GT-Known of Pseudo Label on test images, percent; the oracle reads their boxes, auto and score read none."
    return f"{table}\n{about}", found.round(3)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the rows; the exit status."""
    return run_scoring(Flags, said, "auto_regret", b"run,after,frame,delta", argv)


if __name__ == "__main__":
    raise SystemExit(main())
