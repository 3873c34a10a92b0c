"""fit(): epochs, schedules, checkpoints, resume, progress and metrics. It knows no method; a stage brings its step.

Every random number of an epoch comes from generators seeded by (seed, stage, epoch), so that a run resumed after any
epoch goes on exactly as the run that was never stopped.
"""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, ExponentialLR, LRScheduler, OneCycleLR
from tqdm import tqdm

from lchp import distributed
from lchp.errors import LchpError, RunError
from lchp.runs import write_atomically

log = logging.getLogger(__name__)

Metrics = dict[str, Any]

_LOOK_EVERY = 100
"""Steps between two looks at the losses."""
_NAMED = 8
"""Images that a message names."""


class DivergedError(LchpError):
    """A loss became infinite or not a number."""


@dataclass(frozen=True)
class Schedule:
    """A scheduler and whether it steps after every batch or after every epoch."""

    scheduler: LRScheduler
    per_step: bool


@dataclass(frozen=True)
class Stage:
    """What `fit` runs. `modules`, `optimizers`, `schedules` by name are what a checkpoint holds.

    batches(epoch, generator) yields what step takes; step(batch, epoch) trains on it and returns scalars, still on the
    device: each is averaged over the epoch. `size` = images per epoch, for the progress bar. evaluate() measures after
    every epoch what is to be recorded with it. images(epoch, step): the ids of a step's images, for messages.
    """

    name: str
    epochs: int
    size: int
    modules: Mapping[str, nn.Module]
    optimizers: Mapping[str, Optimizer]
    schedules: Mapping[str, Schedule]
    batches: Callable[[int, torch.Generator], Iterable[Any]]
    step: Callable[[Any, int], dict[str, Tensor]]
    count: Callable[[Any], int] = len
    images: Callable[[int, int], Sequence[str]] | None = None
    describe: Callable[[Metrics], str] = str
    evaluate: Callable[[], dict[str, float]] = dict


def make_schedule(optimizer: Optimizer, kind: str, *, decay: float, epochs: int, steps_per_epoch: int) -> Schedule:
    """The learning-rate schedules by name, over the optimizer's own rate as the (maximal) rate."""
    if kind == "onecycle":
        top = optimizer.param_groups[0]["lr"]
        total = epochs * steps_per_epoch
        return Schedule(OneCycleLR(optimizer, top, total_steps=total, cycle_momentum=False), per_step=True)
    if kind == "exponential":
        return Schedule(ExponentialLR(optimizer, decay), per_step=False)
    return Schedule(ConstantLR(optimizer, 1.0), per_step=False)


def epoch_seed(seed: int, stage: str, epoch: int) -> int:
    """The seed of an epoch's generators."""
    return int.from_bytes(hashlib.sha256(f"{seed} {stage} {epoch}".encode()).digest()[:6], "big")


def fit(
    stage: Stage,
    *,
    seed: int,
    checkpoint: Path,
    identity: str,
    resume: bool = False,
    record: Callable[[Metrics], None] | None = None,
    on_epoch: Callable[[Metrics], None] | None = None,
    show_progress: bool = True,
) -> None:
    """Trains a stage, writing `checkpoint` after every epoch and handing the epoch's metrics to `on_epoch`.

    record: gets the metrics just before the checkpoint is written, so that no finished epoch lacks them after a crash.
    identity: hash of what the result depends on; a checkpoint of another identity is refused with RunError.
    Raises DivergedError when a loss is not finite, within 100 steps and with the ids of the first such batch (with
    several workers, at the end of the epoch and without); the checkpoint of the epoch before remains. MemoryError of a
    GPU becomes a RunError that says what to lower.
    """
    # one worker looks for all: on a shared disk they might see different epochs, and wait for each other for ever
    there = resume and distributed.from_first(checkpoint.exists)
    start = restore(stage, checkpoint, identity) if there else 0
    for epoch in range(start, stage.epochs):
        try:
            metrics = _run_epoch(stage, epoch, seed, show_progress)
        except torch.OutOfMemoryError as error:
            reason = str(error).splitlines()[0][:160]
            raise RunError(
                f"{stage.name}, epoch {epoch + 1}: the GPU's memory ran out ({reason}); start anew with a lower "
                "--data.batch-size or --data.image-size, or with --precision bf16"
            ) from None
        bad = [k for k, v in metrics.items() if isinstance(v, float) and not math.isfinite(v)]
        if bad:
            raise DivergedError(
                f"{stage.name}, epoch {epoch + 1}: {bad[0]} is {metrics[bad[0]]}; training diverged, "
                "lower the learning rate"
            )
        broken = [k for k, m in stage.modules.items() if not all(p.isfinite().all() for p in m.parameters())]
        if broken:  # the last step of an epoch can spoil the weights without a trace in its losses
            raise DivergedError(
                f"{stage.name}, epoch {epoch + 1}: weights of the {broken[0]} are not finite; training diverged, "
                "lower the learning rate"
            )
        metrics |= stage.evaluate()
        if distributed.rank() == 0:
            if record is not None:
                record(metrics)
            save(stage, checkpoint, identity, epoch + 1)
        tqdm.write(stage.describe(metrics)) if show_progress else log.info(stage.describe(metrics))
        if on_epoch is not None:
            on_epoch(metrics)


def _run_epoch(stage: Stage, epoch: int, seed: int, show_progress: bool) -> Metrics:
    generator = torch.Generator().manual_seed(epoch_seed(seed, stage.name, epoch))
    # whatever draws inside a network (dropout), which must differ between the workers of one run
    torch.manual_seed(epoch_seed(seed, stage.name, epoch) + distributed.rank())
    sums: dict[str, Tensor] = {}
    rates = {f"lr_{k}": o.param_groups[0]["lr"] for k, o in stage.optimizers.items()}
    steps, begin, recent = 0, time.perf_counter(), list[Tensor]()
    title = f"{stage.name} {epoch + 1}/{stage.epochs}"
    with tqdm(total=stage.size, desc=title, unit="img", leave=False, disable=None if show_progress else True) as bar:
        for batch in stage.batches(epoch, generator):
            values = stage.step(batch, epoch)
            for name, value in values.items():
                sums[name] = sums[name] + value if name in sums else value
            recent.append(values["loss"])
            if len(recent) == _LOOK_EVERY:
                _refuse_infinite(stage, epoch, steps, recent)
                recent = []
            for schedule in stage.schedules.values():
                if schedule.per_step:
                    schedule.scheduler.step()
            steps += 1
            bar.update(stage.count(batch) * distributed.size())
    _refuse_infinite(stage, epoch, steps - 1, recent)
    for schedule in stage.schedules.values():
        if not schedule.per_step:
            schedule.scheduler.step()
    sums = distributed.mean_over_workers(sums)
    means = {name: float(total) / max(steps, 1) for name, total in sums.items()}  # the epoch's only device-to-host copy
    seconds = time.perf_counter() - begin
    return {
        "stage": stage.name,
        "epoch": epoch + 1,
        "epochs": stage.epochs,
        **means,
        **rates,
        "seconds": round(seconds, 3),
        "images_per_second": round(stage.size / seconds, 2),
    }


def _refuse_infinite(stage: Stage, epoch: int, last: int, losses: list[Tensor]) -> None:
    """Raises DivergedError where one of the losses up to step `last` is not finite. Alone: workers that do not all see
    it would wait for each other."""
    if not losses or distributed.size() > 1:
        return
    values = torch.stack(losses).tolist()  # waits for the device: once in so many steps
    bad = next((i for i, value in enumerate(values) if not math.isfinite(value)), None)
    if bad is None:
        return
    step = last - len(losses) + 1 + bad
    ids = list(stage.images(epoch, step)) if stage.images is not None else []
    named = f"; images of that batch: {', '.join(ids[:_NAMED])}" if ids else ""
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    raise DivergedError(
        f"{stage.name}, epoch {epoch + 1}: loss is {values[bad]} at step {step + 1}; training diverged, lower the "
        f"learning rate{named}{more}"
    )


def save(stage: Stage, path: Path, identity: str, epoch: int) -> None:
    """Writes the state after `epoch` epochs, atomically."""
    state = {
        "identity": identity,
        "stage": stage.name,
        "epoch": epoch,
        "modules": {k: m.state_dict() for k, m in stage.modules.items()},
        "optimizers": {k: o.state_dict() for k, o in stage.optimizers.items()},
        "schedules": {k: s.scheduler.state_dict() for k, s in stage.schedules.items()},
    }
    write_atomically(path, lambda file: torch.save(state, file))


def restore(stage: Stage, path: Path, identity: str) -> int:
    """Loads what `save` wrote into the stage and returns the number of finished epochs."""
    state = load_checkpoint(path, identity)
    try:
        for name, module in stage.modules.items():
            module.load_state_dict(state["modules"][name])
        for name, optimizer in stage.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        for name, schedule in stage.schedules.items():
            schedule.scheduler.load_state_dict(state["schedules"][name])
        return int(state["epoch"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"{path}: does not fit this stage ({reason[:200]})") from None


def load_checkpoint(path: Path, identity: str | None = None) -> dict[str, Any]:
    """A checkpoint as data (no code in it can run). Raises RunError if it is missing, damaged or another config's."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RunError(f"{path}: no such checkpoint; has this stage been trained in this run folder?") from None
    except Exception as error:  # torch raises zip, pickle, EOF and runtime errors for damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"{path}: damaged or not a checkpoint of lchp ({reason[:200]})") from None
    if not isinstance(state, dict) or "identity" not in state or "modules" not in state:
        raise RunError(f"{path}: not a checkpoint of lchp")
    if identity is not None and state["identity"] != identity:
        raise RunError(
            f"{path}: was written by another config (or data); use a new --output, or the config it was made with"
        )
    return state
