"""What is remembered of training views: rows of numbers by epoch and image, or of whole images, in a checkpoint."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lchp.method.views import AxisMap
from lchp.system import distributed


class ViewTable(nn.Module):
    """`values`: epochs x images x columns, float32, NaN where nothing was noted. A module, so that it lies in a
    checkpoint and on the device of the networks; no step waits for it."""

    values: Tensor

    def __init__(self, epochs: int, images: int, columns: int) -> None:
        super().__init__()
        self.register_buffer("values", torch.full((epochs, images, columns), torch.nan))

    def note(self, epoch: int, index: Tensor | None, rows: Tensor) -> None:
        """Notes rows B x columns of the images at the positions `index` (B); without positions nothing is noted."""
        if index is not None:
            self.values[epoch].index_copy_(0, index, rows.detach().float())

    def at(self, epoch: int, index: Tensor) -> Tensor:
        """The rows of the images at the positions `index` (B): B x columns."""
        return self.values[epoch].index_select(0, index)

    def exchange(self, epoch: int) -> None:
        """Gives every worker the rows that the others noted in an epoch."""
        if distributed.size() == 1:
            return
        there = ~self.values[epoch].isnan()
        total = torch.where(there, self.values[epoch], 0)
        count = there.float()
        dist.all_reduce(total)
        dist.all_reduce(count)
        self.values[epoch] = torch.where(count > 0, total / count.clamp(min=1), torch.nan)


@dataclass(frozen=True)
class Boxes:
    """Pseudo boxes (x1 y1 x2 y2 in [0, 1]): of each view of each epoch, or (`whole`) of whole images, which every view
    of an image shares. Who reads them does not know where they come from."""

    table: ViewTable
    whole: bool

    def of(self, index: Tensor, epoch: int, frame: AxisMap) -> tuple[Tensor, Tensor]:
        """Boxes B x 4 of the views of an epoch, clipped to them, and whether there is one (B bool). index: B positions
        of images; frame: the maps from the whole image to the view."""
        if not self.whole:
            rows = self.table.at(epoch, index)
            return rows.nan_to_num(0.0), ~rows.isnan().any(1)
        rows = frame.boxes(self.table.at(0, index)).clamp(0, 1)
        known = ((rows[:, 2:] - rows[:, :2]) > 0).all(1)  # False where there is none, and where the view lost it
        return rows.nan_to_num(0.0), known
