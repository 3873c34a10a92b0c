"""Several workers that train one run (DDP): who does what, and what they exchange. Free of Ray.

Every worker draws the same order and the same random views of each global batch, and computes its own slice of it.
Gradients, batch statistics and metrics are those of the global batch, so a run does not depend on the number of
workers (up to rounding). With one process everything here does nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from torch import Tensor, nn

from lchp.errors import ConfigError

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


def size() -> int:
    """Number of workers."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Position of this worker; 0 is the one that writes."""
    return dist.get_rank() if size() > 1 else 0


def barrier() -> None:
    """Waits for all workers."""
    if size() > 1:
        dist.barrier()


def part(n: int) -> slice:
    """This worker's rows of a global batch of n. Raises ConfigError where the batch cannot be cut into equal parts."""
    workers = size()
    if n % workers:
        raise ConfigError(
            f"data.batch_size: a batch of {n} images cannot be cut into equal parts for {workers} workers; "
            "take a multiple of the number of workers"
        )
    each = n // workers
    return slice(rank() * each, (rank() + 1) * each)


def mean_over_workers(totals: dict[str, float], steps: int) -> dict[str, float]:
    """Means over the steps of all workers, of whom one may have had none. totals: sums over this worker's `steps`."""
    mine: list[Any] = [(totals, steps)]
    if size() > 1:
        mine *= size()
        dist.all_gather_object(mine, (totals, steps))
    names = dict.fromkeys(name for found, _ in mine for name in found)
    whole = max(sum(number for _, number in mine), 1)
    return {name: sum(found.get(name, 0.0) for found, _ in mine) / whole for name in names}


def from_first(compute: Callable[[], T]) -> T:
    """What `compute` gives on worker 0, on all of them: for decisions that look at files."""
    if size() == 1:
        return compute()
    box: list[Any] = [compute() if rank() == 0 else None]
    dist.broadcast_object_list(box)
    return box[0]


def dealt(order: Sequence[T]) -> Sequence[T]:
    """This worker's share of a list: every size()-th item."""
    return order[rank() :: size()]


def collected(mine: list[T]) -> list[T]:
    """The inverse of `dealt` after each item was worked on: all workers' results in the list's order."""
    if size() == 1:
        return mine
    everyone: list[list[T]] = [[] for _ in range(size())]
    dist.all_gather_object(everyone, mine)
    longest = max(len(each) for each in everyone)
    return [each[i] for i in range(longest) for each in everyone if i < len(each)]


def share_batch_statistics(module: M) -> M:
    """The network with every BatchNorm normalising by the global batch; parameters and their names stay."""
    if size() == 1:
        return module
    if next(module.parameters()).is_cuda:
        return cast(M, nn.SyncBatchNorm.convert_sync_batchnorm(module))
    for norm in module.modules():
        if type(norm) is nn.BatchNorm2d:
            norm.__class__ = GlobalBatchNorm2d
    return module


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over the slices of all workers; torch's SyncBatchNorm does the same, but on GPUs only."""

    def forward(self, input: Tensor) -> Tensor:
        """B x C x H x W, normalised per channel."""
        if not self.training or size() == 1:
            return super().forward(input)
        x = input.float()
        count = x.numel() // x.shape[1] * size()
        mean = dist_nn.all_reduce(x.sum((0, 2, 3))) / count
        centred = x - mean.view(1, -1, 1, 1)
        variance = dist_nn.all_reduce(centred.square().sum((0, 2, 3))) / count
        self._update(mean.detach(), variance.detach() * count / max(count - 1, 1))
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)).to(input.dtype)

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)
