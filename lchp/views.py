"""The batches that a stage trains on, in an order and with views that follow from the epoch's generator alone."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from lchp import distributed
from lchp.augment import StrongParameters, general_view, sample_general, sample_strong
from lchp.context import Context
from lchp.data.images import batches, shuffled
from lchp.inference import to_float
from lchp.loop import epoch_seed
from lchp.stages import views_of

Drawn = TypeVar("Drawn", StrongParameters, None)


def epoch_order(context: Context, generator: torch.Generator) -> list[list[int]]:
    """Positions of the training images, batch by batch; the first thing that an epoch's generator draws."""
    return shuffled(len(context.images), context.config.data.batch_size, generator)


def images_of(context: Context, stage: str, epoch: int, step: int) -> list[str]:
    """Ids of the images of a step: an epoch's order is the first that its generator draws."""
    order = epoch_order(context, torch.Generator().manual_seed(epoch_seed(context.config.seed, stage, epoch)))
    return [context.images.split.image_ids[i] for i in order[step]]


def general_batches(
    context: Context, generator: torch.Generator, start: int = 0
) -> Iterator[tuple[Tensor, Tensor, None]]:
    """Epoch of (I_r B x 3 x H x W in [0, 1], y B, None): random crops and flips, from batch number `start` on."""
    yield from _views(context, generator, start, lambda _: None)


def strong_batches(
    context: Context, generator: torch.Generator, start: int = 0
) -> Iterator[tuple[Tensor, Tensor, StrongParameters]]:
    """As `general_batches`, with the draws of the strong views, of one image one after the other."""
    config = context.config.refinement
    views = views_of(config)
    yield from _views(context, generator, start, lambda n: sample_strong(n * views, config, generator), views)


def _views(
    context: Context, generator: torch.Generator, start: int, draw_more: Callable[[int], Drawn], each: int = 1
) -> Iterator[tuple[Tensor, Tensor, Drawn]]:
    """I_r, y, and what `draw_more` drew for the batch (`each` rows per image), this worker's part of all."""
    data, device = context.config.data, context.device
    order = epoch_order(context, generator)

    def draw(n: int) -> tuple[Tensor, Tensor, Drawn]:
        return *sample_general(n, data.resize, data.image_size, generator), draw_more(n)

    for whole in order[:start]:  # what the batches trained on before had drawn, so that those to come get their own
        draw(len(whole))
    mine = [whole[distributed.part(len(whole))] for whole in order[start:]]
    for batch in batches(context.images, mine, workers=data.workers, pin=device.type == "cuda"):
        # every worker draws for the whole batch, so that an image's view does not depend on how many there are
        n = len(batch.index) * distributed.size()
        rows = distributed.part(n)
        offsets, flip, more = draw(n)
        raw = general_view(batch.images.to(device, non_blocking=True), offsets[rows], flip[rows], data.image_size)
        yield to_float(raw), batch.labels.to(device, non_blocking=True), _rows_of(more, rows, each)


def _rows_of(drawn: Drawn, rows: slice, each: int) -> Drawn:
    return drawn if drawn is None else drawn.select(slice(rows.start * each, rows.stop * each))
