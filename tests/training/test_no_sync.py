"""No step waits for the device: a GPU that has to hand a value to the host stands still until it is there, and so does
the host while a copy to the GPU is a blocking one (which only a fake GPU shows, see fake_cuda.py)."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_cuda import DEVICE, Autocast, Cuda
from stepping import batch_of, step_of, trainings
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lchp.baselines import METHODS
from lchp.config import TrainConfig, override, preset
from lchp.data.images import ImageBatch as Read
from lchp.method.batch import Batch
from lchp.method.views import strong_view
from lchp.system.devices import autocast
from lchp.training import batches as views
from lchp.training.chain import Kind, chain_of
from lchp.training.networks import Networks, build

TO_HOST = ("cpu", "numpy", "tolist", "item", "__bool__", "__float__", "__int__", "__index__", "__contains__")
"""Methods of a tensor that bring its values to the host."""
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "_unique2", "is_nonzero")
"""Operators whose result, or its size, the host needs to know."""


class Refuse(TorchDispatchMode):
    """Raises at an operator that waits."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in WAITING, f"{name} waits for the device"
        bools = [
            i for i in (args[1] if name in ("index", "index_put_") else ()) if i is not None and i.dtype == torch.bool
        ]
        assert not bools, "indexing by a mask waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def no_sync(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], None]:
    """Runs a body in which every way to the host raises."""

    def run(body: Callable[[], Any]) -> None:
        def refuse(*_: Any, **__: Any) -> Any:
            raise AssertionError("a tensor's values were brought to the host")

        with monkeypatch.context() as patch, Refuse():
            for name in TO_HOST:
                patch.setattr(Tensor, name, refuse)
            body()

    return run


def made(**values: Any) -> tuple[TrainConfig, Networks, Tensor, Tensor]:
    config = override(preset("parts"), {"refinement.augmenter": "tensor", **values})
    nets = build(chain_of(config, ""), 5, torch.device("cpu"))
    size = config.data.image_size
    x = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    return config, nets, x, torch.arange(4)


def sgd(net: torch.nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)


@pytest.mark.parametrize("second_pass", ["own", "raw"])
@pytest.mark.parametrize("resolution", ["input", "native"])
def test_stage_1_brings_nothing_to_the_host(no_sync, second_pass, resolution) -> None:
    values = {"initialization.second_pass": second_pass, "initialization.resolution": resolution}
    config, nets, x, y = made(**values)
    found = trainings(config, nets, len(x), x.device, autocast(x.device, "bf16"))
    kinds: tuple[Kind, ...] = ("classifier", "localizer")
    for kind in kinds:
        body = step_of(found[kind], batch_of(config, x, y))
        body()  # what is worked out once, such as the positions of an upsampling, is not part of a step
        no_sync(body)


@pytest.mark.parametrize("labeller", ["online", "frozen", "ema"])
def test_stage_2_brings_nothing_to_the_host(no_sync, labeller) -> None:
    config, nets, x, y = made(**{"refinement.labeller": labeller})
    found = trainings(config, nets, len(x), x.device, autocast(x.device, "bf16"))
    assert ("labels" in found) == (labeller == "frozen")
    for training in (training for kind, training in found.items() if kind in ("labels", "refinement")):
        no_sync(step_of(training, batch_of(config, x, y)))


def test_views_are_sent_without_waiting(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """General views, the draws of strong ones, and the strong views themselves."""
    config = override(preset("parts"), {"refinement.augmenter": "tensor"})
    data, n = config.data, 8

    def batches(_images: Any, order: list[list[int]], **_: Any) -> Iterator[Read]:  # as the loader pins them
        for index in order:
            pixels = torch.zeros(len(index), data.resize, data.resize, 3, dtype=torch.uint8)
            yield Read(torch.tensor(index).pin_memory(), pixels.pin_memory(), torch.tensor(index).pin_memory())

    monkeypatch.setattr(views, "batches", batches)
    context: Any = SimpleNamespace(config=config, device=DEVICE, images=range(n))
    fill = cuda.take(torch.zeros(3))
    with cuda.never_waits():
        for strong in (False, True):
            source = views.strong_batches if strong else views.general_batches
            for batch in source(context, torch.Generator().manual_seed(0)):
                x = batch.images
                assert x.shape == (n, 3, data.image_size, data.image_size)
                assert batch.index is not None
                assert batch.frame is not None
                assert x.device == batch.labels.device == batch.index.device == batch.frame.scale.device == DEVICE
                assert (batch.strong is not None) == strong
                if batch.strong is not None:
                    assert strong_view(x, batch.strong, fill, "tensor").shape == x.shape


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.scheme.teach is None])
def test_a_method_s_loss_waits_for_nothing(cuda: Cuda, name: str) -> None:
    scheme, config = METHODS[name].scheme, preset("parts")
    model = cuda.take(cuda.made(lambda: scheme.build(replace(config.model, head=METHODS[name].head), 5)))
    size, optimizer = config.data.image_size, sgd(model)
    x, y = cuda.take(torch.rand(4, 3, size, size)), cuda.take(torch.arange(4))
    for progress in (0.0, 0.5, 0.9):
        with cuda.never_waits():
            with Autocast():
                loss = scheme.loss(model, Batch(x, y, torch.Generator().manual_seed(1), progress))
            loss.backward()
            optimizer.step()


@pytest.mark.parametrize(
    "way", [lambda x: x.max().item(), lambda x: x[x > 0], lambda x: bool(x.sum() > 0), lambda x: x.cpu()]
)
def test_every_way_to_the_host_is_seen(no_sync, way) -> None:
    with pytest.raises(AssertionError):
        no_sync(lambda: way(torch.ones(3)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, and `pytest -m gpu`")
def test_steps_on_a_gpu_do_not_wait() -> None:
    config, nets, x, y = made()
    device = torch.device("cuda")
    nets = Networks(nets.classifier.to(device), nets.localizer.to(device))
    batch = batch_of(config, x.to(device), y.to(device), lambda t: t.to(device))
    links = trainings(config, nets, len(x), device, autocast(device, "bf16")).values()

    def steps() -> None:
        for training in links:
            step_of(training, batch)()

    steps()
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps()
    finally:
        torch.cuda.set_sync_debug_mode("default")
