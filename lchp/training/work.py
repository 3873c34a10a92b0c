"""What the trainings of all links are made of."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from lchp.config import InitializationConfig, RefinementConfig, TrainConfig
from lchp.method.batch import Batch, Step
from lchp.method.view_table import ViewTable
from lchp.training.batches import epoch_order, images_of
from lchp.training.chain import Chain, Kind, Link
from lchp.training.context import Context
from lchp.training.definition import Chunks, Metrics, Training, make_schedule
from lchp.training.networks import Networks


@dataclass(frozen=True)
class Work:
    """What a link's training is made of: the data, the chain, the networks, the modules of the links before it (kind ->
    name -> module, as their checkpoints hold them), and the metrics of an earlier try."""

    context: Context
    chain: Chain
    nets: Networks
    done: Mapping[Kind, Mapping[str, Any]]
    earlier: Sequence[Metrics] = ()


def sgd_training(
    work: Work,
    link: Link,
    network: str,
    groups: list[dict[str, Any]],
    rates: InitializationConfig | RefinementConfig,
    schedule: str,
    modules: Mapping[str, nn.Module],
    step: Step,
    batches: Callable[[int, torch.Generator, int], Iterator[Batch]],
    draws: str | None = None,
) -> Training:
    """A training of one network by SGD. groups: its parameters, each with its `lr`; draws: see `Training`."""
    context, config = work.context, work.context.config
    optimizer = torch.optim.SGD(
        groups, momentum=rates.momentum, weight_decay=rates.weight_decay, fused=context.device.type == "cuda" or None
    )
    steps = len(epoch_order(context, torch.Generator()))
    return Training(
        link.stage,
        link.epochs,
        views_per_epoch(context),
        modules,
        step,
        batches,
        network,
        optimizer,
        make_schedule(optimizer, schedule, decay=rates.lr_decay, epochs=max(link.epochs, 1), steps_per_epoch=steps),
        steps_per_epoch=steps,
        draws=draws,
        autocast=lambda: context.autocast,
        images=lambda epoch, step: images_of(context, draws or link.stage, epoch, step),
        chunks=chunks_of(config),
    )


def noting(
    work: Work,
    link: Link,
    table: ViewTable,
    step: Step,
    batches: Callable[[int, torch.Generator, int], Iterator[Batch]],
    more: Mapping[str, nn.Module] = MappingProxyType({}),
    *,
    draws: str | None = None,
) -> Training:
    """What notes values of the training images in a table, and trains nothing. more: further modules to keep; draws:
    see `Training`, None for whole images, which nothing is drawn for."""
    context = work.context
    return Training(
        link.stage,
        link.epochs,
        len(context.images) if draws is None else views_per_epoch(context),
        {link.kind: table, **more},
        step,
        batches,
        draws=draws,
        autocast=lambda: context.autocast,
        ended=table.exchange,
        describe=lambda m: epoch_line(m, link),
        chunks=Chunks() if draws is None else chunks_of(context.config),
    )


def views_per_epoch(context: Context) -> int:
    """Training images that an epoch of views shows."""
    return len(epoch_order(context, torch.Generator())) * min(context.config.data.batch_size, len(context.images))


def chunks_of(config: TrainConfig) -> Chunks:
    """Whether memory that does not suffice may cut a batch in parts."""
    return Chunks(batch=config.data.batch_size if config.auto_batch else None)


def epoch_line(metrics: Metrics, link: Link) -> str:
    """An epoch on one line: its scalars, its rate and its speed."""
    names = {"l_cls": "L_cls {:.4f}", "loss": "loss {:.4f}", "l_reg": "L_reg {:.5f}", "top1": "train top-1 {:.1f} %"}
    names |= {"confidence": "confidence {:.1f} %", "pseudo_area": "pseudo box area {:.1f} %", "score": "score {:.1f}"}
    if link.kind == "refinement":
        names |= {"loss": "L_refine {:.5f}", "kept": "kept {:.1f} %", "vanished": "vanished {:.2f} %"}
    if "l_cls" in metrics or "l_reg" in metrics:
        del names["loss"]
    said = [text.format(metrics[name]) for name, text in names.items() if name in metrics]
    said += [f"lr {value:.2e}" for name, value in metrics.items() if name.startswith("lr_")]
    at = f"{link.kind} epoch {metrics['epoch']}/{metrics['epochs']}"
    return "  ".join([at, *said, f"{metrics['images_per_second']:.0f} images/s"])
