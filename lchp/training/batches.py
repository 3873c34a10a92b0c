"""The batches that a stage trains on, in an order and with views that follow from the epoch's generator alone."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from lchp.data.images import batches, shuffled
from lchp.evaluation.frames import Frame, to_float
from lchp.files.schema import FrameName
from lchp.method.batch import Batch
from lchp.method.steps import views_of
from lchp.method.views import AxisMap, StrongParameters, general_view, sample_general, sample_strong
from lchp.system import distributed
from lchp.training.context import Context
from lchp.training.definition import epoch_seed


def epoch_order(context: Context, generator: torch.Generator) -> list[list[int]]:
    """Positions of the training images, batch by batch; the first thing that an epoch's generator draws."""
    return shuffled(len(context.images), context.config.data.batch_size, generator)


def images_of(context: Context, draws: str, epoch: int, step: int) -> list[str]:
    """Ids of the images of a step: an epoch's order is the first that its generator draws."""
    order = epoch_order(context, torch.Generator().manual_seed(epoch_seed(context.config.seed, draws, epoch)))
    return [context.images.split.image_ids[i] for i in order[step]]


def general_batches(context: Context, generator: torch.Generator, start: int = 0) -> Iterator[Batch]:
    """An epoch of general views (random crops and flips), from batch number `start` on."""
    return _views(context, generator, start, 0)


def strong_batches(context: Context, generator: torch.Generator, start: int = 0) -> Iterator[Batch]:
    """As `general_batches`, with the draws of the strong views."""
    return _views(context, generator, start, views_of(context.config.refinement))


def taught_batches(context: Context, epoch: int, generator: torch.Generator, start: int, name: str) -> Iterator[Batch]:
    """As `general_batches`, with what a classifier's loss needs: generators of its own draws, seeded by `name`, so that
    an epoch gone on with draws what it would have; and the progress."""
    config, steps = context.config, len(epoch_order(context, torch.Generator()))
    for n, batch in enumerate(general_batches(context, generator, start), start):
        draws = torch.Generator().manual_seed(epoch_seed(config.seed, f"{name} {epoch}", n))
        yield replace(batch, generator=draws, progress=(epoch + n / steps) / config.initialization.epochs)


def plain_batches(context: Context, frame: FrameName, order: Sequence[int], start: int = 0) -> Iterator[Batch]:
    """Training images at the positions `order` as a frame shows them, from batch number `start` on; of several workers
    each has every n-th batch."""
    data, device = context.config.data, context.device
    seen, size = Frame.of(frame, data), data.batch_size
    mine = distributed.dealt([list(order[i : i + size]) for i in range(0, len(order), size)][start:])
    for batch in batches(context.images, mine, workers=data.workers, pin=device.type == "cuda"):
        x = seen.see(batch.images.to(device, non_blocking=True))
        yield Batch(x, batch.labels.to(device, non_blocking=True), index=batch.index.to(device, non_blocking=True))


def _views(context: Context, generator: torch.Generator, start: int, strong: int) -> Iterator[Batch]:
    """This worker's part of each batch; strong: the number of strong views of an image, whose draws come after those of
    the batch's general views."""
    data, device = context.config.data, context.device
    order = epoch_order(context, generator)

    def draw(n: int) -> tuple[torch.Tensor, torch.Tensor, StrongParameters | None]:
        general = sample_general(n, data.resize, data.image_size, generator)
        return *general, sample_strong(n * strong, context.config.refinement, generator) if strong else None

    for whole in order[:start]:  # what the batches trained on before had drawn, so that those to come get their own
        draw(len(whole))
    mine = [whole[distributed.part(len(whole))] for whole in order[start:]]
    for batch in batches(context.images, mine, workers=data.workers, pin=device.type == "cuda"):
        # every worker draws for the whole batch, so that an image's view does not depend on how many there are
        n = len(batch.index) * distributed.size()
        rows = distributed.part(n)
        offsets, flip, drawn = draw(n)
        offsets, flip = offsets[rows], flip[rows]
        raw = general_view(batch.images.to(device, non_blocking=True), offsets, flip, data.image_size)
        yield Batch(
            to_float(raw),
            batch.labels.to(device, non_blocking=True),
            index=batch.index.to(device, non_blocking=True),
            frame=_frame(offsets, flip, data.resize / data.image_size, data.image_size).to(device),
            strong=None if drawn is None else drawn.select(slice(rows.start * strong, rows.stop * strong)),
        )


def _frame(offsets: torch.Tensor, flip: torch.Tensor, ratio: float, size: int) -> AxisMap:
    """The maps from whole images to their general views."""
    shift = -offsets.float() / size
    mirrored = torch.stack([flip, torch.zeros_like(flip)], 1).float()
    return AxisMap(torch.full_like(shift, ratio), shift).then(AxisMap(1 - 2 * mirrored, mirrored))
