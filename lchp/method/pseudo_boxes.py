"""Algorithm 1: pseudo boxes from the teacher's attention; and the teacher itself (Eq. 7)."""

import copy
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lchp.boxes import merge
from lchp.config import InitializationConfig
from lchp.method.losses import above, attention_range, foreground

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Pseudo:
    """Algorithm 1 on B images: `box` (the result), `l_r`, `l_m`, all B x 4 in [0, 1]; `masked` = I_m, B x 3 x H x W;
    `attention` A_r, B x h x w. In a single pass `l_m` is L_r."""

    box: Tensor
    l_r: Tensor
    l_m: Tensor
    masked: Tensor
    attention: Tensor


def enclosing_boxes(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest rectangle around all foreground pixels: B x H x W bool -> (B x 4 in [0, 1], B bool: any foreground).

    x2 y2 are exclusive: the far edge of the last pixel. All pixels count, not the largest component. Without
    foreground the box is the whole view.
    """
    return _ends(mask.any(1), mask.any(2))


def _ends(columns: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes from which columns (B x W bool) and rows (B x H bool) hold foreground; and B bool: any at all."""

    def ends(line: Tensor) -> tuple[Tensor, Tensor]:  # B x n bool -> first and past-the-last position, as fractions
        n = line.shape[1]
        numbers = line.to(torch.uint8)
        return numbers.argmax(1) / n, (n - numbers.flip(1).argmax(1)) / n

    (x1, x2), (y1, y2) = ends(columns), ends(rows)
    return torch.stack([x1, y1, x2, y2], 1), columns.any(1)


def attention_boxes(
    attention: Tensor, size: tuple[int, int], config: InitializationConfig, reference: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """L = box of {A > delta} (Eq. 1): attention B x h x w, `size` = H, W of the input, reference: see `foreground`.

    At the input's resolution the upsampled map is never built. Between two neighbours of the small map a bilinear line
    is straight, so its largest sample is the first or the last of them: a column of the large map holds foreground
    where one of about 2 h of its H pixels does, and a row likewise. The boxes are those of the whole map.
    """
    if config.resolution == "native":
        return enclosing_boxes(foreground(attention, config.threshold, config.normalization, reference))
    rows, columns = (_lines(n, to, attention.device) for n, to in zip(attention.shape[1:], size, strict=True))
    with torch.autocast(attention.device.type, enabled=False):  # positions must not be rounded to bf16
        attention = attention.float()
        # the largest sample of a line decides whether the line holds foreground
        in_columns = ((rows.ends @ attention) @ columns.every.T).amax(1)  # B x W, of B x ~2h x W
        in_rows = (rows.every @ (attention @ columns.ends.T)).amax(2)  # B x H, of B x H x ~2w
        of = attention if reference is None else reference.float()
        low, high = attention_range(rows.ends @ of @ columns.ends.T, config.normalization)
    low, high = low[:, :, 0], high[:, :, 0]
    return _ends(above(in_columns, config.threshold, low, high), above(in_rows, config.threshold, low, high))


class _Lines(NamedTuple):
    """Samples of a line through k knots, as matrices: of every sample (n x k), and of those next to a knot, among which
    are the extremes of all (about 2k x k)."""

    every: Tensor
    ends: Tensor


@functools.lru_cache(maxsize=64)
def _lines(knots: int, size: int, device: torch.device) -> _Lines:
    """Of the bilinear line through `knots` values, at the centres of `size` pixels (align_corners=False)."""
    at = ((torch.arange(size, dtype=torch.float64) + 0.5) * knots / size - 0.5).clamp(0, knots - 1)
    before = at.floor().long().clamp(max=max(knots - 2, 0))
    share = (at - before).float()
    every, numbers = torch.zeros(size, knots), torch.arange(size)
    every[numbers, before] = 1 - share
    every[numbers, (before + 1).clamp(max=knots - 1)] += share
    changes = before[1:] != before[:-1]
    edge = torch.ones(1, dtype=torch.bool)
    next_to_knot = torch.cat([edge, changes]) | torch.cat([changes, edge])
    return _Lines(every.to(device), every[next_to_knot].to(device))


def upsample(attention: Tensor, size: tuple[int, int]) -> Tensor:
    """B x h x w to B x H x W, bilinear."""
    return F.interpolate(attention[:, None].float(), size, mode="bilinear", align_corners=False)[:, 0]


def mask_out(images: Tensor, boxes: Tensor, fill: Tensor) -> Tensor:
    """I_m: images (B x 3 x H x W) with the pixels whose centre lies in the box (B x 4 in [0, 1]) set to `fill` (3)."""
    h, w = images.shape[2:]
    x = (torch.arange(w, device=images.device) + 0.5) / w
    y = (torch.arange(h, device=images.device) + 0.5) / h
    columns = (x >= boxes[:, 0, None]) & (x < boxes[:, 2, None])  # B x W
    rows = (y >= boxes[:, 1, None]) & (y < boxes[:, 3, None])  # B x H
    inside = (rows[:, :, None] & columns[:, None, :])[:, None]  # B x 1 x H x W
    return torch.where(inside, fill.view(1, 3, 1, 1).to(images), images)


def mask_fill(mean: Tensor, config: InitializationConfig) -> Tensor:
    """The colour (3 values) of what is masked out; mean: the one that the networks' input normalisation maps to 0."""
    return mean if config.mask == "mean" else torch.zeros_like(mean)


@torch.no_grad()
def algorithm_1(
    attend: Callable[[Tensor], Tensor], images: Tensor, config: InitializationConfig, mean: Tensor
) -> Pseudo:
    """Pseudo boxes of images I_r (B x 3 x H x W in [0, 1]).

    attend: the teacher, images -> A (B x h x w); mean: the colour that its input normalisation maps to 0 (3 values).
    """
    size = (images.shape[2], images.shape[3])
    fill = mask_fill(mean, config)
    a_r = attend(images)  # B x h x w
    l_r, _ = attention_boxes(a_r, size, config)
    i_m = mask_out(images, l_r, fill)
    if config.boxes == "single":
        return Pseudo(l_r, l_r, l_r, i_m, a_r)
    a_m = attend(i_m)
    l_m, found = attention_boxes(a_m, size, config, a_r if config.second_pass == "raw" else None)
    l_m = torch.where(found[:, None], l_m, l_r)  # nothing left to attend: the merge is L_r
    return Pseudo(merge(l_r, l_m), l_r, l_m, i_m, a_r)


@torch.no_grad()
def attention_masks(
    attend: Callable[[Tensor], Tensor], images: Tensor, config: InitializationConfig, mean: Tensor
) -> Tensor:
    """The foreground that the boxes of Algorithm 1 enclose, of both its passes: B x H x W bool, or B x h x w at the
    attention's own resolution. Arguments as in `algorithm_1`."""
    size = (images.shape[2], images.shape[3])
    scaled = (lambda a: upsample(a, size)) if config.resolution == "input" else (lambda a: a)
    first = algorithm_1(attend, images, replace(config, boxes="single"), mean)
    a_r = scaled(first.attention)
    mask = foreground(a_r, config.threshold, config.normalization)
    if config.boxes == "single":
        return mask
    reference = a_r if config.second_pass == "raw" else None
    return mask | foreground(scaled(attend(first.masked)), config.threshold, config.normalization, reference)


def of_masks(config: InitializationConfig) -> InitializationConfig:
    """How Algorithm 1 finds L_r of the masks I_m, where that is not how it finds the boxes: one pass suffices."""
    return replace(
        config,
        delta=config.mask_delta if config.mask_delta is not None else config.delta,
        attention=config.mask_attention or config.attention,
        normalization=config.mask_normalization or config.normalization,
        boxes="single",
    )


def make_teacher(student: Network) -> Network:
    """theta_2: a copy of the student in eval mode, without gradients."""
    return copy.deepcopy(student).requires_grad_(False).eval()


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, beta: float, buffers: str = "copied") -> None:
    """theta_2 <- beta theta_2 + (1 - beta) theta_1 (Eq. 7). BatchNorm buffers are `copied` or `averaged` likewise."""
    ours, theirs = list(teacher.parameters()), list(student.parameters())
    torch._foreach_lerp_(ours, theirs, 1 - beta)  # pyright: ignore  # one kernel; torch's stubs leave it out
    for floating in (True, False):  # one kernel copies tensors of one type
        ours, theirs = ([b for b in net.buffers() if b.is_floating_point() == floating] for net in (teacher, student))
        if ours and floating and buffers == "averaged":  # a count has no average
            torch._foreach_lerp_(ours, theirs, 1 - beta)  # pyright: ignore
        elif ours:
            torch._foreach_copy_(ours, theirs)  # pyright: ignore


class Snapshots(nn.Module):
    """A network's state after some epochs of its training: all, up to MOST, else that many at equal distances, the last
    among them. `values`: snapshots x numbers, float32."""

    MOST = 8
    values: Tensor

    def __init__(self, network: nn.Module, epochs: int) -> None:
        super().__init__()
        self.epochs = self.kept(epochs)
        number = len(self.epochs)
        self.register_buffer("values", torch.zeros(number, sum(t.numel() for t in _floats(network))))

    @classmethod
    def kept(cls, epochs: int) -> tuple[int, ...]:
        """The numbers of epochs, of so many, after which the state is kept."""
        number = min(epochs, cls.MOST)
        return tuple(math.ceil((n + 1) * epochs / number) for n in range(number))

    @classmethod
    def first(cls, epochs: int, least: int) -> int:
        """The first of them that is no less than `least`."""
        return next(kept for kept in cls.kept(epochs) if kept >= least)

    def note(self, epoch: int, network: nn.Module) -> None:
        """Notes the state at the end of an epoch (counted from 0), where it is one of those that are kept."""
        if epoch + 1 in self.epochs:
            self.values[self.epochs.index(epoch + 1)] = torch.cat([t.detach().flatten() for t in _floats(network)])

    def after(self, epochs: int) -> int:
        """The number of epochs after which the first state was kept that had trained for as many, or more."""
        return self.first(self.epochs[-1], epochs)

    def load(self, network: nn.Module, epochs: int) -> None:
        """Gives a network the state that was kept after `epochs` epochs."""
        there = _floats(network)
        parts = self.values[self.epochs.index(epochs)].split([t.numel() for t in there])
        with torch.no_grad():
            for tensor, part in zip(there, parts, strict=True):
                tensor.copy_(part.view_as(tensor))


def _floats(network: nn.Module) -> list[Tensor]:
    return [t for t in (*network.parameters(), *network.buffers()) if t.is_floating_point()]
