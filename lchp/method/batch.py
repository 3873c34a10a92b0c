"""A batch of training views, and what a training step is: what the loop, the methods and the views share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lchp.method.views import AxisMap, StrongParameters


@dataclass(frozen=True)
class Batch:
    """What a training step may use, of B views of training images.

    images: B x 3 x H x W in [0, 1]; labels: B class ids; generator: what every draw of a loss comes from; progress: the
    share of all training steps that are done, in [0, 1); index: B positions among the training images; frame: the maps
    from the whole image to the view; strong: the draws of the strong views, of one image one after the other.
    """

    images: Tensor
    labels: Tensor
    generator: torch.Generator | None = None
    progress: float = 0.0
    index: Tensor | None = None
    frame: AxisMap | None = None
    strong: StrongParameters | None = None

    @property
    def draws(self) -> torch.Generator:
        """The generator, of a batch that has one."""
        assert self.generator is not None
        return self.generator

    def __len__(self) -> int:
        return len(self.images)

    def chunks(self, number: int) -> "list[Batch]":
        """The batch in at most `number` parts, one after the other."""
        if number == 1:
            return [self]
        found, begin = [], 0
        each = 1 if self.strong is None else len(self.strong.flip) // len(self)
        for images in self.images.chunk(number):
            rows = slice(begin, begin + len(images))
            begin = rows.stop
            found.append(
                Batch(
                    images,
                    self.labels[rows],
                    self.generator,
                    self.progress,
                    None if self.index is None else self.index[rows],
                    None if self.frame is None else self.frame.select(rows),
                    None if self.strong is None else self.strong.select(slice(rows.start * each, rows.stop * each)),
                )
            )
        return found


Step = Callable[[Any, Batch, int], tuple[Tensor, dict[str, Tensor]]]
"""(network in training mode, batch, epoch) to the loss that is minimised and scalars that are recorded."""


def nothing(*_: Any) -> None:
    """What a training calls where there is nothing to do."""
