"""Where a method may hook a trunk: the modules that all data passes through one after the other, found by running it.

Nothing here knows an architecture: a module whose parts hand the same tensor on, from its input to its output, is such
a line and is entered; one with branches (a residual or inception block) is a single step of it.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lchp.backbones.modes import inference_mode_of

SIZE = 160
"""Side in px of the images that the units are found with."""


@dataclass(frozen=True)
class Unit:
    """A step of a trunk: the module's dotted name in it, and its output's channels, height and width (at SIZE)."""

    name: str
    channels: int
    height: int
    width: int


@dataclass
class _Call:
    """One run of a module, and those of its parts in order. A tensor is known by its version too: what changes it in
    place between two steps is a step of its own."""

    name: str
    module: nn.Module
    source: tuple[Any, int]
    result: tuple[Any, int] = (None, 0)
    parts: list["_Call"] = field(default_factory=list)

    @property
    def shape(self) -> torch.Size:
        """Of the result; empty where that is no tensor."""
        return self.result[0].shape if isinstance(self.result[0], Tensor) else torch.Size()


def _known(value: Any) -> tuple[Any, int]:
    return value, value._version if isinstance(value, Tensor) else 0


def _same(one: tuple[Any, int], other: tuple[Any, int]) -> bool:
    return one[0] is other[0] and one[1] == other[1]


def resolutions(trunk: nn.Module) -> tuple[tuple[Unit, ...], ...]:
    """The units of a trunk (`lchp.backbones.build_trunk`) in order, those of equal resolution together, coarsest last.

    A unit ends with its activation: a convolution that a norm or an activation follows is not one by itself. Input
    normalisation is left out, and so is what gives no B x C x h x w map (a transformer's tokens). The last unit is the
    trunk's own output.
    """
    whole = _run(trunk)
    steps = [c for c in _line(whole) if c.name != "0" and len(c.shape) == 4]
    if not steps or not _same(steps[-1].result, whole.result):  # the trunk does more to its last step's output
        steps.append(whole)
    ends = [c for c, following in pairwise(steps) if not _elementwise(following)]
    units = [Unit(c.name, *c.shape[1:]) for c in (*ends, steps[-1])]
    return tuple(tuple(group) for _, group in groupby(units, lambda u: (u.height, u.width)))


def _run(trunk: nn.Module) -> _Call:
    """Runs the trunk on one empty image in inference mode."""
    root = _Call("", trunk, (None, 0))
    open_calls = [root]

    def begin(name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        call = _Call(name, module, _known(inputs[0] if inputs else None))
        open_calls[-1].parts.append(call)
        open_calls.append(call)

    def end(result: Any) -> None:
        open_calls.pop().result = _known(result)

    with inference_mode_of(trunk), ExitStack() as hooks, torch.no_grad():
        for name, module in trunk.named_modules():
            hooks.enter_context(module.register_forward_pre_hook(lambda m, inputs, name=name: begin(name, m, inputs)))
            hooks.enter_context(module.register_forward_hook(lambda _m, _inputs, result: end(result)))
        trunk(torch.zeros(1, 3, SIZE, SIZE, device=next(trunk.parameters()).device))
    return root.parts[0]


def _line(call: _Call) -> list[_Call]:
    """The call itself, or those of its parts where they hand one tensor on from its input to its output."""
    parts = call.parts
    handed_on = (
        parts
        and _same(call.source, parts[0].source)
        and all(_same(a.result, b.source) for a, b in pairwise(parts))
        and _same(parts[-1].result, call.result)
        and len({part.name for part in parts}) == len(parts)  # a part that runs twice cannot be hooked at one place
    )
    return [step for part in parts for step in _line(part)] if handed_on else [call]


def _elementwise(call: _Call) -> bool:
    """Whether a step only rescales or cuts off values: a norm, an activation, dropout."""
    weights = any(p.ndim > 1 for p in call.module.parameters())
    return not weights and isinstance(call.source[0], Tensor) and call.shape == call.source[0].shape


@contextmanager
def outputs(trunk: nn.Module, units: Sequence[Unit]) -> Iterator[dict[Unit, Tensor]]:
    """Within the context, each run of the trunk leaves what the units put out in the dictionary (B x C x h x w)."""
    found: dict[Unit, Tensor] = {}
    with ExitStack() as hooks:
        for unit in units:
            module = trunk.get_submodule(unit.name)
            hooks.enter_context(
                module.register_forward_hook(lambda _m, _inputs, result, unit=unit: found.update({unit: result}))
            )
        yield found
