"""What is learnt from each candidate's boxes? A linear localizer in place of a trained one, in seconds per candidate.

python -m analysis.learnt_boxes RUN [RUN ...]
python -m analysis.learnt_boxes RUN --learn 400 --top 12 --csv FILE

RUN is a run folder that holds LCHP's classifier (lchp train --stage init is enough). Errors that differ from image to
image average out in a localizer, a fault that all boxes share is learnt. So boxes that are good themselves need not
teach well. Here a ridge regression from the teacher's features to a candidate's boxes is fitted on training images. It
draws boxes on those that the classifier is spared, where `auto`'s score is taken of them, without any box; and on test
images, for GT-Known, which is an oracle.

A row per candidate and frame. `score` and `gt_known` are those of the candidate's own boxes, `learnt_score` and
`learnt_gt_known` those of the regression's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import pandas as pd
import torch
import tyro
from tabulate import tabulate
from torch import Tensor

from analysis.auto_regret import every_candidate, rows_of, scored, scoring, tested_on
from analysis.teacher_boxes import boxes, open_teacher, test_images, truth_of
from lchp.boxes import order
from lchp.config import AUTO, InitializationConfig
from lchp.console import run_scoring
from lchp.errors import RunError
from lchp.evaluation.frames import FRAMES, Frame
from lchp.evaluation.metrics import best_iou, gt_known
from lchp.files.runs import read_config
from lchp.files.schema import FrameName
from lchp.method.choice import ROUNDS, candidate_boxes, known_by, score
from lchp.method.networks import Classifier
from lchp.method.pseudo_boxes import mask_fill
from lchp.training.batches import plain_batches
from lchp.training.context import Context


@dataclass
class Flags:
    """Candidates of auto, by what a linear localizer learns from their boxes."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders that hold LCHP's classifier."""
    learn: int = 800
    """Training images whose boxes are learnt, at most."""
    images: int = sum(ROUNDS)
    """Training images that score, at most."""
    test: int = 0
    """Test images that the oracle reads; 0: all."""
    top: int = 24
    """Candidates that are looked at: the best by the score of their own boxes."""
    ridge: float = 0.3
    """Weight of the penalty, as a share of the features' mean squared length."""
    frame: tuple[FrameName, ...] = FRAMES
    """Frames that the oracle looks at."""
    csv: Path | None = None
    """File for a row per candidate and frame."""
    data_root: Annotated[Path | None, tyro.conf.arg(name="data-root")] = None
    """Where the data set lies; by default where the run read it."""
    threads: int = 0
    """CPU threads of torch; 0 leaves torch's choice."""


@dataclass(frozen=True)
class Ridge:
    """A linear map per candidate from features to boxes, as weights of the n images that it was fitted on. `basis`,
    n x D: their features less `mean`, D, over `scale`; `middle` is the mean box."""

    basis: Tensor
    mean: Tensor
    scale: Tensor
    weights: Tensor  # candidates x n x 4
    middle: Tensor  # candidates x 1 x 4

    @classmethod
    def fit(cls, features: Tensor, boxes: Tensor, ridge: float) -> "Ridge":
        """features n x D; boxes candidates x n x 4."""
        mean, scale = features.mean(0), features.std()
        basis, middle = (features - mean) / scale, boxes.mean(1, keepdim=True)
        products = basis @ basis.T
        products.diagonal().add_(ridge * products.diagonal().mean())
        return cls(basis, mean, scale, torch.linalg.solve(products, boxes - middle), middle)

    def boxes(self, features: Tensor) -> Tensor:
        """features m x D -> candidates x m x 4, within the view."""
        likeness = (features - self.mean) / self.scale @ self.basis.T
        return order((likeness @ self.weights + self.middle).clamp(0, 1))


def features_of(teacher: Classifier, images: Tensor) -> Tensor:
    """The trunk's last maps as they lie, B x (C * h * w), float32 on the CPU."""
    return teacher(images).features.float().flatten(1).cpu()


@torch.inference_mode()
def fitted(
    teacher: Classifier,
    context: Context,
    configs: Sequence[InitializationConfig],
    positions: Sequence[int],
    ridge: float,
) -> Ridge:
    """What is learnt from the boxes of each config on training images at these positions."""
    features, made = [], []
    for batch in plain_batches(context, "center_crop", positions):
        with context.autocast:
            features.append(features_of(teacher, batch.images))
            made.append(torch.stack([b.cpu() for _, b in candidate_boxes(teacher, batch.images, configs)]))
    return Ridge.fit(torch.cat(features), torch.cat(made, 1), ridge)


@torch.inference_mode()
def learnt_scores(teacher: Any, context: Context, ridge: Ridge, positions: Sequence[int]) -> Tensor:
    """`auto`'s score, percent, of the boxes that each candidate's regression draws."""
    found = []
    fill = mask_fill(teacher.mean, context.config.initialization)
    for batch in plain_batches(context, "center_crop", positions):
        x, labels = batch.images, batch.labels
        with context.autocast:
            drawn = ridge.boxes(features_of(teacher, x)).to(x.device)
            known = [known_by(teacher, x, labels, b, fill) for b in drawn]
        found.append(torch.stack([score(*pair, b) for pair, b in zip(known, drawn, strict=True)]).cpu())
    return 100 * torch.cat(found, 1).mean(1)


def look(run: Path, flags: Flags) -> pd.DataFrame:
    """The rows of a run. Raises an LchpError."""
    config = read_config(run)
    context, teacher, _ = open_teacher(run, config, flags.data_root, flags.threads)
    context = tested_on(context, flags.test)
    judging = scoring(context, flags.images)
    mixed = torch.randperm(len(context.images), generator=torch.Generator().manual_seed(1)).tolist()
    learning = [n for n in mixed if n not in set(judging)][: flags.learn]
    if not learning:
        raise RunError(
            f"{run}: all of its {len(mixed)} training images score, and none is left to learn from; --images N"
        )
    configs, own = every_candidate(config)
    every = [*configs, *([own] if own not in configs else [])]
    own_scores = scored(teacher, context, every, flags.images)[:, -1]
    best = own_scores.argsort(descending=True).tolist()[: flags.top]
    looked = [n for n, c in enumerate(every) if n in best or c == own]
    ridge = fitted(teacher, context, [every[n] for n in looked], learning, flags.ridge)
    learnt = learnt_scores(teacher, context, ridge, judging)
    rows = []
    for name in flags.frame:
        frame = Frame.of(name, config.data)
        truth = truth_of(context, frame)
        with torch.inference_mode(), context.autocast:
            drawn = [ridge.boxes(features_of(teacher, x)).numpy() for x in test_images(context, frame)]
        made = boxes(teacher, context, frame, [every[n] for n in looked])
        of_each = zip(looked, made, np.concatenate(drawn, 1), learnt.tolist(), strict=True)
        for n, both, learnt_boxes, learnt_score in of_each:
            rows.append(
                {"run": str(run), "frame": name, **{field: getattr(every[n], field) for field in AUTO}}
                | {"score": own_scores[n].item(), "gt_known": gt_known(best_iou(both[:, 1], truth))}
                | {"learnt_score": learnt_score, "learnt_gt_known": gt_known(best_iou(learnt_boxes, truth))}
                | {"own": every[n] == own, "candidate": every[n] in configs}
            )
    return pd.DataFrame(rows)


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """Per run and frame: what each score chooses, beside the oracle of what is learnt."""
    rows = []
    for at, there in found.groupby(["run", "frame"], sort=False):
        run, frame = cast("tuple[str, str]", at)
        mine: Any = there[there["candidate"]].reset_index(drop=True)
        oracle = mine["learnt_gt_known"].max()
        picks = [("score of its boxes", mine.loc[mine["score"].idxmax()])]
        picks += [("score of what is learnt", mine.loc[mine["learnt_score"].idxmax()])]
        picks += [
            ("(the preset)", there[there["own"]].iloc[0]),
            ("(oracle)", mine.loc[mine["learnt_gt_known"].idxmax()]),
        ]
        for by, row in picks:
            what = " ".join(str(row[name]) for name in AUTO)
            figures = [row["gt_known"], row["learnt_gt_known"], oracle - row["learnt_gt_known"]]
            rows.append([Path(run).name, frame, by, what, *figures])
    heads = ["run", "frame", "chosen by", "candidate", "GT-Known", "GT-Known of what is learnt", "regret"]
    return pd.DataFrame(rows, columns=heads)


def said(flags: Flags) -> tuple[str, pd.DataFrame]:
    """What is printed, and the rows."""
    found = rows_of(flags.runs, lambda run: look(run, flags))
    table = tabulate(summary(found), headers="keys", showindex=False, floatfmt=".1f")
    return f"{table}\nGT-Known is of test images, percent, and reads their boxes; the scores read none.", found.round(3)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the rows; the exit status."""
    return run_scoring(Flags, said, "learnt_boxes", b"run,frame,delta", argv)


if __name__ == "__main__":
    raise SystemExit(main())
