"""What a training is, before it runs: its network, step, batches, rates and parts, and how far an epoch has come."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, ExponentialLR, LRScheduler, OneCycleLR

from lchp.errors import LchpError
from lchp.method.batch import Batch, Step, nothing
from lchp.system import distributed
from lchp.system.interrupt import Stop

Metrics = dict[str, Any]


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
class PartialEpoch:
    """How far an epoch has come: finished steps, sums of their metrics, learning rates at its start, seconds so far,
    and the states of torch's generators. others: `sums` and `generators` of the workers after the first."""

    steps: int
    sums: dict[str, Tensor]
    rates: dict[str, float]
    seconds: float
    generators: dict[str, Any]
    others: list[dict[str, Any]] = field(default_factory=list)

    def gathered(self) -> "PartialEpoch":
        """This worker's made that of all workers."""
        sums = {name: total.cpu() for name, total in self.sums.items()}
        first, *others = distributed.collected([{"sums": sums, "generators": self.generators}])
        return replace(self, **first, others=others)

    def own(self) -> "PartialEpoch":
        """That of all workers made this worker's. Where their number was another one, it has the mean of their sums."""
        found = [{"sums": self.sums, "generators": self.generators}, *self.others]
        mine = found[distributed.rank() % len(found)]
        if len(found) != distributed.size():
            mine["sums"] = {n: torch.stack([f["sums"][n] for f in found]).mean(0) for n in self.sums}
        return replace(self, **mine, others=[])


@dataclass(frozen=True)
class Training:
    """What `fit` runs: one network trained by one optimizer, or (without a network) something computed by epochs.

    modules: what a checkpoint holds, by name; step(network, batch, epoch) returns the loss that is minimised and
    scalars, still on the device, each of which is averaged over the epoch. batches(epoch, generator, start) yields what
    step takes, from batch number `start` of the epoch on, the same as without that. `first`: epochs before it are
    passed over; `draws`: the name that the generators' seeds go by, `name` by default; `size` = images per epoch, for
    the progress bar. updated() follows every step of the optimizer, ended(epoch) every epoch before it is measured.
    evaluate() measures what is to be recorded with an epoch, and judge(metrics) may refuse to go on. finish() changes
    the modules after the last epoch, before its checkpoint is written. images(epoch, step): the ids of a step's
    images, for messages. chunks: in how many parts a batch may go through the network.
    """

    name: str
    epochs: int
    size: int
    modules: Mapping[str, nn.Module]
    step: Step
    batches: Callable[[int, torch.Generator, int], Iterable[Batch]]
    network: str | None = None
    optimizer: Optimizer | None = None
    schedule: Schedule | None = None
    first: int = 0
    steps_per_epoch: int = 1
    draws: str | None = None
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext
    updated: Callable[[], object] = nothing
    ended: Callable[[int], object] = nothing
    images: Callable[[int, int], Sequence[str]] | None = None
    describe: Callable[[Metrics], str] = str
    evaluate: Callable[[], dict[str, float]] = dict
    judge: Callable[[Metrics], object] = nothing
    finish: Callable[[], object] = nothing
    chunks: Chunks = field(default_factory=Chunks)


@dataclass(frozen=True)
class Session:
    """How trainings are gone about; none of it changes a result.

    record: gets an epoch's metrics just before its checkpoint is written, so that no finished epoch lacks them after a
    crash; on_epoch: gets them after it. resume: go on from the newest intact checkpoint, in the middle of an epoch
    where that was written there. stop: where it is asked, a checkpoint is written at the end of the step (of
    one in ten, with several workers, of which the first is asked) and Interrupted is raised.
    """

    seed: int
    resume: bool = False
    record: Callable[[Metrics], object] = nothing
    on_epoch: Callable[[Metrics], object] = nothing
    show_progress: bool = True
    stop: Stop | None = None


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
