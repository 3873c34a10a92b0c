"""How good a finished teacher's boxes are, at any delta and by any choice of Algorithm 1, without training again.

python -m analysis.teacher_boxes RUN                                # the run's own choices, at delta 0.2 to 0.7
python -m analysis.teacher_boxes RUN --delta 0.3 0.5 --attention features attention_maps --csv FILE

RUN is a run folder that holds stage 1. A row per choice, delta and frame: GT-Known of L_r (one pass), of the merged
box, and the difference. It scores test boxes: a diagnostic of a teacher, and nothing to choose a recipe by.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
import tyro
from tabulate import tabulate
from torch import Tensor

from lchp.config import InitializationConfig, TrainConfig, as_chosen, override
from lchp.console import run_scoring
from lchp.data.images import batches, in_order
from lchp.errors import RunError
from lchp.evaluation.frames import FRAMES, Frame
from lchp.evaluation.metrics import GroundTruth, best_iou, gt_known
from lchp.files.runs import CHECKPOINTS, link_folder, read_config, read_summary
from lchp.method.choice import candidate_boxes
from lchp.method.networks import Classifier
from lchp.method.pseudo_boxes import make_teacher
from lchp.training.chain import STAGES, method_of
from lchp.training.checkpoints import load_checkpoint
from lchp.training.context import Context, open_context
from lchp.training.networks import build_classifier

CHOICES = ("attention", "normalization", "second_pass")


@dataclass
class Flags:
    """Score a finished teacher's boxes, one pass and merged."""

    run: tyro.conf.Positional[Path]
    """Run folder with stage 1's checkpoint, or of a stage 2 that started from it."""
    delta: tuple[float, ...] = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    """Foreground thresholds."""
    attention: tuple[Literal["attention_maps", "features"], ...] = ()
    """What A averages; the run's own by default (where that is `auto`, what it chose), as for the next two."""
    normalization: tuple[Literal["max", "minmax"], ...] = ()
    """Normalisation before delta."""
    second_pass: tuple[Literal["own", "raw"], ...] = ()
    """Range by which A_m is normalised."""
    csv: Path | None = None
    """File to write the rows to as well."""
    data_root: Annotated[Path | None, tyro.conf.arg(name="data-root")] = None
    """Where the data set lies; by default where the run read it."""
    threads: int = 0
    """CPU threads of torch; 0 leaves torch's choice."""


def variants(flags: Flags, own: InitializationConfig) -> list[InitializationConfig]:
    """A config per combination of choices and deltas, checked by the config's own rules."""
    each = [getattr(flags, name) or (getattr(own, name),) for name in CHOICES]
    return [
        replace(own, **dict(zip(CHOICES, values, strict=True)), delta=delta, boxes="merged")
        for *values, delta in product(*each, flags.delta)
    ]


def test_images(context: Context, frame: Frame) -> Iterator[Tensor]:
    """The test images as a frame shows them, batch by batch: B x 3 x H x W."""
    order = in_order(len(context.test), context.config.evaluation.batch_size)
    for batch in batches(context.test, order, workers=context.config.data.workers, pin=False):
        yield frame.see(batch.images.to(context.device))


@torch.inference_mode()
def boxes(
    teacher: Classifier, context: Context, frame: Frame, configs: Sequence[InitializationConfig]
) -> list[np.ndarray]:
    """Per config: L_r and the merged box of every test image, N x 2 x 4 fractions of the frame."""
    found: list[list[Tensor]] = [[] for _ in configs]
    for images in test_images(context, frame):
        with context.autocast:
            for out, both in zip(found, candidate_boxes(teacher, images, configs), strict=True):
                out.append(torch.stack(both, 1).cpu())
    return [torch.cat(parts).numpy() for parts in found]


def open_teacher(
    run: Path, config: TrainConfig, data_root: Path | None, threads: int
) -> tuple[Context, Classifier, dict[str, Any]]:
    """The data of a run, its finished teacher, and all modules of the classifier's checkpoint. config: the run's, with
    what was chosen or without. Raises an LchpError."""
    found = method_of(config)
    if found.boxes != "teacher":
        raise RunError(f"{run}: a run of {found.title}, which has no teacher")
    places = {"data.root": str(data_root)} if data_root else {}
    config = override(config, {"model.pretrained": False, "model.weights_dir": None, "threads": threads, **places})
    context = open_context(config, show_progress=False)
    if context.test.split.boxes is None:
        raise RunError(f"{run}: its test images have no boxes to score by")
    classifier: Any = build_classifier(config, found, len(context.dataset.class_names))
    teacher = make_teacher(classifier).to(device=context.device, memory_format=torch.channels_last)
    checkpoint = load_checkpoint(link_folder(run, "classifier") / CHECKPOINTS / f"{STAGES['classifier']}.pt")
    teacher.load_state_dict(checkpoint["modules"]["teacher"])
    return context, teacher, checkpoint["modules"]


def truth_of(context: Context, frame: Frame) -> GroundTruth:
    """The boxes of the test images that `open_teacher` has found, as a frame has them."""
    known = context.test.split.boxes
    assert known is not None
    return frame.truth(known, context.test.sizes())


def score(run: Path, flags: Flags) -> pd.DataFrame:
    """The rows: choices, delta, frame, one_pass, merged and gain (percent). Raises an LchpError."""
    config = as_chosen(read_config(run), read_summary(run).get("chosen"))
    configs = variants(flags, config.initialization)
    for c in configs:  # the rules of every config: delta in (0, 1), attention maps only of a head that has them
        replace(config, initialization=c)
    context, teacher, _ = open_teacher(run, config, flags.data_root, flags.threads)
    rows = []
    for frame in (Frame.of(name, context.config.data) for name in FRAMES):
        truth = truth_of(context, frame)
        for c, b in zip(configs, boxes(teacher, context, frame, configs), strict=True):
            one, merged = (gt_known(best_iou(b[:, i], truth)) for i in range(2))
            rows.append([*(getattr(c, name) for name in CHOICES), c.delta, frame.name, one, merged, merged - one])
    return pd.DataFrame(rows, columns=[*CHOICES, "delta", "frame", "one_pass", "merged", "gain"]).round(2)


def said(flags: Flags) -> tuple[str, pd.DataFrame]:
    """What is printed, and the rows."""
    found = score(flags.run, flags)
    return tabulate(found, headers="keys", showindex=False, floatfmt=".2f"), found


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the rows; the exit status."""
    return run_scoring(Flags, said, "teacher_boxes", b"delta,frame,one_pass,merged,gain", argv)


if __name__ == "__main__":
    raise SystemExit(main())
