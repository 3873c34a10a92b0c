"""fit(): epochs, schedules, checkpoints, resume, progress and metrics. It knows no method; a stage brings its step.

Every random number of an epoch comes from generators seeded by (seed, stage, epoch), so that a run resumed after any
epoch goes on exactly as the run that was never stopped.
"""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, ExponentialLR, LRScheduler, OneCycleLR
from tqdm import tqdm

from lchp import distributed
from lchp.checkpoints import newest_checkpoint, previous, save_checkpoint
from lchp.errors import LchpError, RunError, lacked_memory
from lchp.interrupt import Stop

log = logging.getLogger(__name__)

Metrics = dict[str, Any]

_LOOK_EVERY = 100
"""Steps between two looks at the losses."""
_NAMED = 8
"""Images that a message names."""
_SAVE_EVERY = 600.0
"""Seconds of an epoch between two checkpoints; an epoch of ImageNet takes hours."""


class DivergedError(LchpError):
    """A loss became infinite or not a number."""


@dataclass(frozen=True)
class Schedule:
    """A scheduler and whether it steps after every batch or after every epoch."""

    scheduler: LRScheduler
    per_step: bool


@dataclass
class Chunks:
    """In how many parts a batch of `batch` images goes through the networks, one after the other, before the optimizer
    steps. batch None: it must stay whole."""

    number: int = 1
    batch: int | None = None


@dataclass(frozen=True)
class Within:
    """How far an epoch has come: finished steps, sums of their metrics, learning rates at its start, seconds so far,
    and the states of torch's generators."""

    steps: int
    sums: dict[str, Tensor]
    rates: dict[str, float]
    seconds: float
    generators: dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """What `fit` runs. `modules`, `optimizers`, `schedules` by name are what a checkpoint holds.

    batches(epoch, generator, start) yields what step takes, from batch number `start` of the epoch on, the same as
    without that; step(batch, epoch) trains on it and returns scalars, still on the device: each is averaged over the
    epoch. `size` = images per epoch, for the progress bar. evaluate() measures after every epoch what is to be recorded
    with it, and judge(metrics) may refuse to go on. finish() changes the modules after the last epoch, before its
    checkpoint is written. images(epoch, step): the ids of a step's images, for messages. `chunks`: step's own.
    """

    name: str
    epochs: int
    size: int
    modules: Mapping[str, nn.Module]
    optimizers: Mapping[str, Optimizer]
    schedules: Mapping[str, Schedule]
    batches: Callable[[int, torch.Generator, int], Iterable[Any]]
    step: Callable[[Any, int], dict[str, Tensor]]
    count: Callable[[Any], int] = len
    images: Callable[[int, int], Sequence[str]] | None = None
    describe: Callable[[Metrics], str] = str
    evaluate: Callable[[], dict[str, float]] = dict
    judge: Callable[[Metrics], object] | None = None
    finish: Callable[[], object] | None = None
    chunks: Chunks = field(default_factory=Chunks)


def make_schedule(optimizer: Optimizer, kind: str, *, decay: float, epochs: int, steps_per_epoch: int) -> Schedule:
    """The learning-rate schedules by name, over the optimizer's own rates as the (maximal) rates."""
    if kind == "onecycle":
        top = [group["lr"] for group in optimizer.param_groups]
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
    stop: Stop | None = None,
) -> None:
    """Trains a stage, writing `checkpoint` after every epoch (and every ten minutes of one) and handing the epoch's
    metrics to `on_epoch`.

    record: gets the metrics just before the checkpoint is written, so that no finished epoch lacks them after a crash.
    identity: hash of what the result depends on; a checkpoint of another identity is refused with RunError.
    resume: go on from the newest intact checkpoint, in the middle of an epoch where that was written there.
    stop: where it is asked, a checkpoint is written at the end of the step and Interrupted is raised (with one worker).
    Raises DivergedError when a loss is not finite, within 100 steps and with the ids of the first such batch (with
    several workers, at the end of the epoch and without); the last finite checkpoint remains. Memory that does not
    suffice, a GPU's or the machine's, becomes a RunError that says what to lower, or smaller chunks where the stage
    allows them.
    """
    # one worker looks for all: on a shared disk they might see different epochs, and wait for each other for ever
    there = resume and distributed.from_first(lambda: checkpoint.exists() or previous(checkpoint).exists())
    start, within = restore(stage, checkpoint, identity) if there else (0, None)
    if stage.chunks.batch is not None and not there and distributed.rank() == 0:
        save(stage, checkpoint, identity, 0)  # to begin anew from, if the first step takes too much memory
    with nullcontext() if stop is None else stop.deferred():
        epoch = start
        while epoch < stage.epochs:
            keep = _keeper(stage, checkpoint, identity, epoch, stop)
            metrics, lacking = {}, None
            try:
                metrics = _run_epoch(stage, epoch, seed, show_progress, within, keep)
            except (MemoryError, RuntimeError, OSError) as error:
                lacking = lacked_memory(error)
                if lacking is None:
                    raise
            if lacking is not None:  # only here: while it is handled, the error holds the tensors of its step
                halve(stage, epoch, lacking)
                epoch, within = restore(stage, checkpoint, identity)
                continue
            _refuse_broken(stage, epoch, metrics)
            metrics |= stage.evaluate()
            epoch, within = epoch + 1, None
            if epoch == stage.epochs and stage.finish is not None:
                stage.finish()
            if distributed.rank() == 0:
                if record is not None:
                    record(metrics)
                save(stage, checkpoint, identity, epoch)
            tqdm.write(stage.describe(metrics)) if show_progress else log.info(stage.describe(metrics))
            if on_epoch is not None:
                on_epoch(metrics)
            if stage.judge is not None:
                stage.judge(metrics)
            if stop is not None:
                stop.answer()


Keep = Callable[[Callable[[], Within]], None]


def _keeper(stage: Stage, checkpoint: Path, identity: str, epoch: int, stop: Stop | None) -> Keep | None:
    """What is called after every step with a way to tell how far the epoch has come: it writes a checkpoint where one
    is due, and answers who asked to stop. None with several workers, which would have to agree on the step."""
    if distributed.size() > 1:
        return None
    last = time.monotonic()

    def keep(come: Callable[[], Within]) -> None:
        nonlocal last
        asked = stop is not None and stop.asked
        if not asked and time.monotonic() - last < _SAVE_EVERY:
            return
        save(stage, checkpoint, identity, epoch, come())
        last = time.monotonic()
        if stop is not None:
            stop.answer()

    return keep


def halve(stage: Stage, epoch: int, lacking: str) -> None:
    """After a step for which memory was too small: twice as many chunks, or RunError where that is not wanted or not
    possible. lacking: see `lacked_memory`."""
    where = f"{stage.name}, epoch {epoch + 1}: {lacking}"
    chunks = stage.chunks
    if chunks.batch is None or distributed.size() > 1:
        raise RunError(
            f"{where}; start anew with a lower --data.batch-size or --data.image-size, with --precision bf16, or with "
            "--auto-batch, which takes a batch in several parts"
        )
    if chunks.batch < 4 * chunks.number:  # BatchNorm needs two images
        raise RunError(f"{where} with {chunks.batch // chunks.number} images at a time; lower --data.image-size")
    chunks.number *= 2
    for optimizer in stage.optimizers.values():
        optimizer.zero_grad(set_to_none=True)  # of the parts that went through
    torch.cuda.empty_cache()
    log.warning("%s; from the last checkpoint on, each batch goes in %d parts", where, chunks.number)


def _refuse_broken(stage: Stage, epoch: int, metrics: Metrics) -> None:
    """Raises DivergedError for metrics or weights that are not finite."""
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


def _run_epoch(
    stage: Stage, epoch: int, seed: int, show_progress: bool, within: Within | None, keep: Keep | None
) -> Metrics:
    generator = torch.Generator().manual_seed(epoch_seed(seed, stage.name, epoch))
    # whatever draws inside a network (dropout), which must differ between the workers of one run
    torch.manual_seed(epoch_seed(seed, stage.name, epoch) + distributed.rank())
    sums: dict[str, Tensor] = {} if within is None else dict(within.sums)
    now = {f"lr_{k}": float(o.param_groups[0]["lr"]) for k, o in stage.optimizers.items()}
    rates = now if within is None else within.rates
    done = 0 if within is None else within.steps
    before = 0.0 if within is None else within.seconds
    steps, begin, recent = done, time.perf_counter(), list[Tensor]()
    title = f"{stage.name} {epoch + 1}/{stage.epochs}"
    with tqdm(total=stage.size, desc=title, unit="img", leave=False, disable=None if show_progress else True) as bar:
        for batch in stage.batches(epoch, generator, done):
            if within is not None and steps == done:  # only now: the loader of the batches has drawn its own seed
                _set_generators(within.generators)
                bar.update(done * stage.count(batch))
            values = _stepped(stage, batch, epoch)
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
            if keep is not None:

                def come(steps: int = steps, recent: list[Tensor] = recent) -> Within:
                    _refuse_infinite(stage, epoch, steps - 1, recent)
                    _refuse_broken(stage, epoch, {})  # nothing that cannot be gone on from is kept
                    return Within(steps, sums, rates, before + time.perf_counter() - begin, _generators())

                keep(come)
    _refuse_infinite(stage, epoch, steps - 1, recent)
    for schedule in stage.schedules.values():
        if not schedule.per_step:
            schedule.scheduler.step()
    sums = distributed.mean_over_workers(sums)
    means = {name: float(total) / max(steps, 1) for name, total in sums.items()}  # the epoch's only device-to-host copy
    seconds = before + time.perf_counter() - begin
    parts = {"chunks": stage.chunks.number} if stage.chunks.number > 1 else {}
    return {
        "stage": stage.name,
        "epoch": epoch + 1,
        "epochs": stage.epochs,
        **means,
        **rates,
        **parts,
        "seconds": round(seconds, 3),
        "images_per_second": round(stage.size / seconds, 2),
    }


def _stepped(stage: Stage, batch: Any, epoch: int) -> dict[str, Tensor]:
    try:
        return stage.step(batch, epoch)
    except RuntimeError as error:  # as torch.use_deterministic_algorithms raises it
        if "does not have a deterministic implementation" not in str(error):
            raise
        reason = str(error).split(",")[0]
        raise RunError(f"{stage.name}: {reason[:200]}; leave --deterministic out to train on this device") from None


def _generators() -> dict[str, Any]:
    """The states of torch's own generators, from which networks draw."""
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": on_gpus}


def _set_generators(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


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


def save(stage: Stage, path: Path, identity: str, epoch: int, within: "Within | None" = None) -> None:
    """Writes the state after `epoch` whole epochs, and how far the next one has come, if it has begun."""
    state = {
        "identity": identity,
        "stage": stage.name,
        "epoch": epoch,
        "modules": {k: m.state_dict() for k, m in stage.modules.items()},
        "optimizers": {k: o.state_dict() for k, o in stage.optimizers.items()},
        "schedules": {k: s.scheduler.state_dict() for k, s in stage.schedules.items()},
        "chunks": stage.chunks.number,
        "within": None if within is None else asdict(within),
    }
    save_checkpoint(path, state)


def restore(stage: Stage, path: Path, identity: str) -> "tuple[int, Within | None]":
    """Loads the newest intact checkpoint into the stage; the number of whole epochs, and how far the next one has come
    (0 and None where there is no checkpoint). Raises RunError."""
    state = newest_checkpoint(path, identity)
    if state is None:
        return 0, None
    try:
        for name, module in stage.modules.items():
            module.load_state_dict(state["modules"][name])
        for name, optimizer in stage.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        for name, schedule in stage.schedules.items():
            schedule.scheduler.load_state_dict(state["schedules"][name])
        stage.chunks.number = max(int(state["chunks"]), stage.chunks.number)
        return int(state["epoch"]), None if state["within"] is None else Within(**state["within"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"{path}: does not fit this stage ({reason[:200]})") from None
