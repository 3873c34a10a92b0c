"""The steps of a chain's links as `fit` takes them, on networks and a batch of a test's own."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import torch

from lchp.config import TrainConfig
from lchp.method.batch import Batch
from lchp.method.views import AxisMap, sample_strong
from lchp.training.chain import Kind, chain_of
from lchp.training.definition import Training
from lchp.training.fit import stepper, take_step
from lchp.training.links import training_of
from lchp.training.networks import Networks
from lchp.training.work import Work


def trainings(
    config: TrainConfig, nets: Networks, images: int, device: torch.device, amp: AbstractContextManager[None]
) -> dict[Kind, Training]:
    """The trainings of a chain on so many images, each given those before it."""
    context: Any = SimpleNamespace(config=config, device=device, images=range(images), autocast=amp, held_out=None)
    work, found = Work(context, chain_of(config, ""), nets, {}), dict[Kind, Training]()
    for link in work.chain:
        found[link.kind] = training_of(work, link)
        done: Mapping[Kind, Any] = {**work.done, link.kind: found[link.kind].modules}
        work = Work(context, work.chain, nets, done)
    return found


def step_of(training: Training, batch: Batch) -> Callable[[], Any]:
    """A step on a batch. The network learns, though a later link may have frozen it meanwhile."""
    module = stepper(training)
    if training.network is not None:
        training.modules[training.network].requires_grad_(True)
    return lambda: take_step(training, module, batch, 0)


def batch_of(config: TrainConfig, x: torch.Tensor, y: torch.Tensor, take: Callable[[Any], Any] = lambda x: x) -> Batch:
    """The batch of images x (B x 3 x H x W) and labels y, which takes whatever a link may read."""
    n = len(x)
    frame = AxisMap(take(torch.ones(n, 2)), take(torch.zeros(n, 2)))
    strong = sample_strong(n, config.refinement, torch.Generator().manual_seed(1))
    return Batch(x, y, index=take(torch.arange(n)), frame=frame, strong=strong)
