"""CUDA without CUDA: tensors on the device `cuda:0` that have shapes and no values (torch's FakeTensorMode), among real
ones on the CPU. Code on them runs in no time, and stops where on a GPU it would fail, or wait:

- operands on two devices, and weights that stayed on the CPU: torch's own check;
- a value that the host asks for (`item`, `tolist`, `if`), a mask as an index: no value to give;
- with `strict`: a copy to the host, and one to the device that waits.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from lchp.method import pseudo_boxes as pseudo

T = TypeVar("T")

DEVICE = torch.device("cuda:0")


class Waits(AssertionError):
    """A step that would wait for the GPU."""


class Autocast:
    """bf16 as on a GPU; `torch.autocast` turns itself off without one."""

    def __enter__(self) -> None:
        self.before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        torch.autocast_increment_nesting()

    def __exit__(self, *_: object) -> None:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", self.before[0])
        torch.set_autocast_dtype("cuda", self.before[1])


class Cuda(TorchDispatchMode):
    """Real tensors of the CPU stay real; what comes back from the device is zeros, where that is allowed."""

    def __init__(self) -> None:
        super().__init__()
        self.strict = False
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operands = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        named = [x for x in (kwargs.get("device"), *args) if isinstance(x, torch.device)]
        to = named[0] if named else torch.device("cpu")
        if not any(isinstance(x, FakeTensor) for x in operands) and to.type == "cpu":
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "item") and not self.strict:
            return 0
        if name in ("_to_copy", "to") and (named or len(operands) == 2):
            source, *other = operands
            to = other[0].device if other else to
            if to.type == "cpu":
                return self._to_host(source, kwargs.get("dtype"))
            self._check_pinned(source, kwargs.get("non_blocking", False))
            if source.device.type == "cpu":
                return func(self.fake.from_tensor(source), *args[1:], **kwargs)
        if name == "copy_":
            self._check_pinned(operands[1], args[2] if len(args) > 2 else False)
        if name in ("index", "index_put", "index_put_"):
            for index in args[1]:
                self._check_pinned(index, False)
        return func(*args, **kwargs)

    def _to_host(self, x: Tensor, dtype: torch.dtype | None) -> Tensor:
        if self.strict:
            raise Waits("a tensor's values were brought to the host")
        with unset_fake_temporarily():
            return torch.zeros(x.shape, dtype=dtype or x.dtype)

    def _check_pinned(self, source: Tensor | None, non_blocking: bool) -> None:
        """Of what is about to be copied to the device."""
        if not self.strict or source is None or source.device.type != "cpu" or source.ndim == 0:
            return
        if not non_blocking or not getattr(source, "pinned", False):
            raise Waits("a copy to the device waits: it is a blocking one, or from memory that is not pinned")

    def take(self, value: Any) -> Any:
        """A real tensor, or a module with all it holds, as if it lay on the device."""
        if isinstance(value, Tensor):
            value = value.detach()
            value = value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
            return (value if isinstance(value, FakeTensor) else self.fake.from_tensor(value)).to(DEVICE)
        for module in value.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(self.take(parameter), parameter.requires_grad)
            module._buffers.update({n: None if b is None else self.take(b) for n, b in module._buffers.items()})
        return value

    def made(self, make: Callable[[], T]) -> T:
        """What `make` makes on the CPU, without computing it."""
        with _disable_current_modes(), self.fake:
            return make()

    @contextmanager
    def never_waits(self) -> Iterator[None]:
        """Within the context, what waits raises Waits, or torch's error for a value that is not there."""
        self.strict = True
        try:
            yield
        finally:
            self.strict = False


def _pinned(tensor: Tensor) -> Tensor:
    copy: Any = tensor.clone()
    copy.pinned = True
    return copy


def _copied(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    """torch's own copies the values, which are not there."""
    copy: Any = tensor.detach().clone()
    copy = nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy
    memo[id(tensor)] = copy
    return copy


def gradients(output: Tensor, wanted: Sequence[Tensor] | None = None, start: Tensor | None = None) -> list[Any]:
    """Goes back from the output node by node, since autograd's engine asks for a real device: adds to the `grad` of
    every leaf, or gives the gradients of those that are `wanted`."""
    assert output.grad_fn is not None
    order, seen, stack = [], set(), [(output.grad_fn, False)]
    while stack:  # nodes after all that they lead to
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack += [(node, True), *((n, False) for n, _ in node.next_functions if n is not None)]
    into: dict[Any, list[Any]] = {n: [None] * max(1, len(n._input_metadata)) for n in order}
    into[output.grad_fn][output.output_nr] = torch.ones_like(output) if start is None else start
    of_leaf: dict[int, Any] = {}
    for node in reversed(order):
        if hasattr(node, "variable"):  # a leaf
            leaf, (gradient,) = node.variable, into[node]
            if gradient is None:
                continue
            assert gradient.device == leaf.device
            of_leaf[id(leaf)] = gradient
            if wanted is None:
                leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
            continue
        found = node(*into[node])
        found = found if isinstance(found, tuple) else (found,)
        for (following, number), gradient in zip(node.next_functions, found, strict=True):
            if following is not None and gradient is not None:
                there, meta = into[following], following._input_metadata[number]
                gradient = gradient.sum_to_size(meta.shape).to(meta.dtype)  # what was broadcast or cast, as the engine
                there[number] = gradient if there[number] is None else there[number] + gradient
    return [of_leaf[id(leaf)] for leaf in wanted or ()]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cuda]:
    """A fake GPU; tensors of two of them do not mix."""

    def grad(output: Tensor, wanted: Any, start: Tensor | None = None) -> Any:
        return tuple(gradients(output, [wanted] if isinstance(wanted, Tensor) else wanted, start))

    made = torch.optim.SGD.__init__
    unfused = lambda self, *args, **more: made(self, *args, **more | {"fused": None})  # noqa: E731
    monkeypatch.setattr(torch.optim.SGD, "__init__", unfused)  # the fused step has no fake kernel
    monkeypatch.setattr(Tensor, "pin_memory", _pinned)
    monkeypatch.setattr(FakeTensor, "__deepcopy__", _copied, raising=False)
    monkeypatch.setattr(Tensor, "backward", lambda loss: gradients(loss))
    monkeypatch.setattr(torch.autograd, "grad", grad)
    pseudo._lines.cache_clear()
    mode = Cuda()
    monkeypatch.setattr(nn.Module, "to", lambda module, *_, **__: mode.take(module))  # torch's swaps what it moves
    try:
        with mode.fake, mode:
            yield mode
    finally:
        pseudo._lines.cache_clear()
