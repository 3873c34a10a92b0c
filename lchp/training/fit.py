"""fit(): epochs, steps, schedules, checkpoints, resume, progress and metrics. It knows no method; a training brings its
step.

Every random number of an epoch comes from generators seeded by (seed, training, epoch), so that a run resumed after any
epoch goes on exactly as the run that was never stopped.
"""

import logging
import math
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lchp.errors import RunError, lacked_memory
from lchp.method.batch import Batch
from lchp.system import distributed
from lchp.system.interrupt import Stop
from lchp.system.progress import tqdm
from lchp.training.checkpoints import previous, restore, save
from lchp.training.definition import DivergedError, Metrics, PartialEpoch, Session, Training, epoch_seed

log = logging.getLogger(__name__)

_LOOK_EVERY = 100
"""Steps between two looks at the losses."""
_NAMED = 8
"""Images that a message names."""
_AGREE_EVERY = 10
"""Steps between two looks of several workers at whether a checkpoint is due."""
_SAVE_EVERY = 600.0
"""Seconds of an epoch between two checkpoints; an epoch of ImageNet takes hours."""


class _Step(nn.Module):
    """A training's step as the forward pass of a module, so that DistributedDataParallel takes part in it whatever of
    the network it calls."""

    def __init__(self, training: Training) -> None:
        super().__init__()
        assert training.network is not None
        self.network = training.modules[training.network]
        self.step = training.step

    def forward(self, batch: Batch, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.step(self.network, batch, epoch)


def fit(training: Training, session: Session, checkpoint: Path, identity: str) -> None:
    """Trains, writing `checkpoint` after every epoch (and every ten minutes of one).

    identity: hash of what the result depends on; a checkpoint of another identity is refused with RunError.
    Raises DivergedError when a loss is not finite, within 100 steps and with the ids of the first such batch (with
    several workers, at the end of the epoch and without); the last finite checkpoint remains. Memory that does not
    suffice, a GPU's or the machine's, becomes a RunError that says what to lower, or smaller chunks where the training
    allows them.
    """
    stop = session.stop
    # one worker looks for all: on a shared disk they might see different epochs, and wait for each other for ever
    there = session.resume and distributed.from_first(lambda: checkpoint.exists() or previous(checkpoint).exists())
    epoch, within = restore(training, checkpoint, identity) if there else (0, None)
    if epoch < training.first:
        _pass_over(training)
        epoch = training.first
    step = stepper(training)
    if training.chunks.batch is not None and not there and distributed.rank() == 0:
        save(training, checkpoint, identity, epoch)  # to begin anew from, if the first step takes too much memory
    if not training.epochs and not there and distributed.rank() == 0:
        save(training, checkpoint, identity, epoch)  # as it is: a classifier of one's own
    with nullcontext() if stop is None else stop.deferred():
        while epoch < training.epochs:
            keep = _keeper(training, checkpoint, identity, epoch, stop)
            metrics, lacking = {}, None
            try:
                metrics = _run_epoch(training, step, epoch, session, within, keep)
            except (MemoryError, RuntimeError, OSError) as error:
                lacking = lacked_memory(error)
                if lacking is None:
                    raise
            if lacking is not None:  # only here: while it is handled, the error holds the tensors of its step
                halve(training, epoch, lacking)
                epoch, within = restore(training, checkpoint, identity)
                continue
            training.ended(epoch)
            _refuse_broken(training, epoch, metrics)
            metrics |= training.evaluate()
            epoch, within = epoch + 1, None
            if epoch == training.epochs:
                training.finish()
            if distributed.rank() == 0:
                session.record(metrics)
                save(training, checkpoint, identity, epoch)
            said = training.describe(metrics)
            tqdm.write(said) if session.show_progress else log.info(said)
            session.on_epoch(metrics)
            training.judge(metrics)
            if stop is not None:
                stop.answer()


def stepper(training: Training) -> nn.Module | None:
    """The step of a training, as a module whose gradients are those of all workers; None where nothing is trained."""
    if training.network is None:
        return None
    step = _Step(training)
    if distributed.size() == 1:
        return step
    # statistics are the same on all workers (see distributed.share_batch_statistics)
    return DistributedDataParallel(step, broadcast_buffers=False)


def _pass_over(training: Training) -> None:
    """Moves optimizer and schedule to the first epoch, as if those before it had been trained without gradients."""
    optimizer, schedule = training.optimizer, training.schedule
    if optimizer is None or schedule is None:
        return
    for _ in range(training.first):
        for _ in range(training.steps_per_epoch):
            optimizer.step()
            if schedule.per_step:
                schedule.scheduler.step()
        if not schedule.per_step:
            schedule.scheduler.step()


Keep = Callable[[Callable[[], PartialEpoch]], None]


def _keeper(training: Training, checkpoint: Path, identity: str, epoch: int, stop: Stop | None) -> Keep | None:
    """What is called after every step with a way to tell how far the epoch has come: it writes a checkpoint where one
    is due, and answers who asked to stop. None where several workers share out what is no training, whose steps may
    differ in number."""
    several = distributed.size() > 1
    if several and training.network is None:
        return None
    last, steps = time.monotonic(), 0

    def due() -> bool:
        return (stop is not None and stop.asked) or time.monotonic() - last >= _SAVE_EVERY

    def keep(partial: Callable[[], PartialEpoch]) -> None:
        nonlocal last, steps
        steps += 1
        if (several and steps % _AGREE_EVERY) or not distributed.from_first(due):
            return
        if several:
            training.ended(epoch)  # what each has noted, all know
        found = partial().gathered()
        if distributed.rank() == 0:
            save(training, checkpoint, identity, epoch, found)
        last = time.monotonic()
        if stop is not None:
            stop.answer()

    return keep


def halve(training: Training, epoch: int, lacking: str) -> None:
    """After a step for which memory was too small: twice as many chunks, or RunError where that is not wanted or not
    possible. lacking: see `lacked_memory`."""
    where = f"{training.name}, epoch {epoch + 1}: {lacking}"
    chunks = training.chunks
    if chunks.batch is None or distributed.size() > 1:
        raise RunError(
            f"{where}; start anew with a lower --data.batch-size or --data.image-size, with --precision bf16, or with "
            "--auto-batch, which takes a batch in several parts"
        )
    if chunks.batch < 4 * chunks.number:  # BatchNorm needs two images
        raise RunError(f"{where} with {chunks.batch // chunks.number} images at a time; lower --data.image-size")
    chunks.number *= 2
    if training.optimizer is not None:
        training.optimizer.zero_grad(set_to_none=True)  # of the parts that went through
    torch.cuda.empty_cache()
    log.warning("%s; from the last checkpoint on, each batch goes in %d parts", where, chunks.number)


def _refuse_broken(training: Training, epoch: int, metrics: Metrics) -> None:
    """Raises DivergedError for metrics or weights that are not finite."""
    bad = [k for k, v in metrics.items() if isinstance(v, float) and not math.isfinite(v)]
    if bad:
        raise DivergedError(
            f"{training.name}, epoch {epoch + 1}: {bad[0]} is {metrics[bad[0]]}; training diverged, "
            "lower the learning rate"
        )
    broken = [k for k, m in training.modules.items() if not all(p.isfinite().all() for p in m.parameters())]
    if broken:  # the last step of an epoch can spoil the weights without a trace in its losses
        raise DivergedError(
            f"{training.name}, epoch {epoch + 1}: weights of the {broken[0]} are not finite; training diverged, "
            "lower the learning rate"
        )


def _run_epoch(
    training: Training,
    step: nn.Module | None,
    epoch: int,
    session: Session,
    within: PartialEpoch | None,
    keep: Keep | None,
) -> Metrics:
    seed = epoch_seed(session.seed, training.draws or training.name, epoch)
    generator = torch.Generator().manual_seed(seed)
    # whatever draws inside a network (dropout), which must differ between the workers of one run
    torch.manual_seed(seed + distributed.rank())
    sums: dict[str, Tensor] = {} if within is None else dict(within.sums)
    optimizer = training.optimizer
    now = {} if optimizer is None else {f"lr_{training.network}": float(optimizer.param_groups[0]["lr"])}
    rates = now if within is None else within.rates
    done = 0 if within is None else within.steps
    before = 0.0 if within is None else within.seconds
    steps, begin, recent = done, time.perf_counter(), list[Tensor]()
    title = f"{training.name} {epoch + 1}/{training.epochs}"
    with tqdm(
        total=training.size, desc=title, unit="img", leave=False, disable=None if session.show_progress else True
    ) as bar:
        for batch in training.batches(epoch, generator, done):
            if within is not None and steps == done:  # only now: the loader of the batches has drawn its own seed
                _set_generators(within.generators)
                bar.update(done * len(batch))
            values = _stepped(training, step, batch, epoch)
            for name, value in values.items():
                sums[name] = sums[name] + value if name in sums else value
            recent += [values["loss"]] if "loss" in values else []
            if len(recent) == _LOOK_EVERY:
                _refuse_infinite(training, epoch, steps, recent)
                recent = []
            if training.schedule is not None and training.schedule.per_step:
                training.schedule.scheduler.step()
            steps += 1
            bar.update(len(batch) * distributed.size())
            if keep is not None:

                def partial(steps: int = steps, recent: list[Tensor] = recent) -> PartialEpoch:
                    _refuse_infinite(training, epoch, steps - 1, recent)
                    _refuse_broken(training, epoch, {})  # nothing that cannot be gone on from is kept
                    return PartialEpoch(steps, sums, rates, before + time.perf_counter() - begin, _generators())

                keep(partial)
    _refuse_infinite(training, epoch, steps - 1, recent)
    if training.schedule is not None and not training.schedule.per_step:
        with warnings.catch_warnings():  # who goes on after an epoch's last step has taken none that torch saw
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            training.schedule.scheduler.step()
    totals = {name: float(total) for name, total in sums.items()}  # the epoch's only device-to-host copy
    means = distributed.mean_over_workers(totals, steps)
    seconds = before + time.perf_counter() - begin
    parts = {"chunks": training.chunks.number} if training.chunks.number > 1 else {}
    return {
        "stage": training.name,
        "epoch": epoch + 1,
        "epochs": training.epochs,
        **means,
        **rates,
        **parts,
        "seconds": round(seconds, 3),
        "images_per_second": round(training.size / seconds, 2),
    }


def _stepped(training: Training, step: nn.Module | None, batch: Batch, epoch: int) -> dict[str, Tensor]:
    try:
        return take_step(training, step, batch, epoch)
    except RuntimeError as error:  # as torch.use_deterministic_algorithms raises it
        if "does not have a deterministic implementation" not in str(error):
            raise
        reason = str(error).split(",")[0]
        raise RunError(f"{training.name}: {reason[:200]}; leave --deterministic out to train on this device") from None


def take_step(training: Training, step: nn.Module | None, batch: Batch, epoch: int) -> dict[str, Tensor]:
    """One step of a training on a batch, in as many parts as `chunks` says, of which BatchNorm sees one at a time; the
    scalars, of parts weighted by their images."""
    values = list[dict[str, Tensor]]()
    for part in batch.chunks(training.chunks.number):
        share = len(part) / len(batch)
        if step is None:
            with torch.no_grad(), training.autocast():
                _, scalars = training.step(None, part, epoch)
        else:
            with training.autocast():
                loss, scalars = step(part, epoch)
            (share * loss).backward()
            scalars = {"loss": loss} | scalars
        values.append({name: share * value.detach() for name, value in scalars.items()})
    if training.optimizer is not None:
        training.optimizer.step()
        training.optimizer.zero_grad(set_to_none=True)
    training.updated()
    return {name: torch.stack([v[name] for v in values]).sum() for name in values[0]}


def _generators() -> dict[str, Any]:
    """The states of torch's own generators, from which networks draw."""
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": on_gpus}


def _set_generators(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


def _refuse_infinite(training: Training, epoch: int, last: int, losses: list[Tensor]) -> None:
    """Raises DivergedError where one of the losses up to step `last` is not finite. Alone: workers that do not all see
    it would wait for each other."""
    if not losses or distributed.size() > 1:
        return
    values = torch.stack(losses).tolist()  # waits for the device: once in so many steps
    bad = next((i for i, value in enumerate(values) if not math.isfinite(value)), None)
    if bad is None:
        return
    step = last - len(losses) + 1 + bad
    ids = list(training.images(epoch, step)) if training.images is not None else []
    named = f"; images of that batch: {', '.join(ids[:_NAMED])}" if ids else ""
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    raise DivergedError(
        f"{training.name}, epoch {epoch + 1}: loss is {values[bad]} at step {step + 1}; training diverged, lower the "
        f"learning rate{named}{more}"
    )
