"""What runs on a GPU, rehearsed without one at 448 px (see fake_cuda.py): steps of both stages, prediction in both
frames, and every method's boxes. tests/test_no_sync.py does so with the views and the methods' losses."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_cuda import DEVICE, Autocast, Cuda, Waits
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorDeviceMismatchError,
)

from lchp import inference, predict, stages
from lchp.augment import sample_strong
from lchp.compared import _of_map, map_source
from lchp.config import TrainConfig, override
from lchp.data.images import Batch
from lchp.evaluate import FRAMES
from lchp.inference import Models
from lchp.methods import METHODS
from lchp.methods.ddt import Descriptors, Transform
from lchp.networks import Classifier, Localizer
from lchp.stages import Networks, initialization_step, refinement_step

CLASSES, BATCH, SIZE = 5, 4, 448
PRECISION: dict[str, Any] = {"bf16": Autocast(), "fp32": nullcontext()}
TINY = {"model.classifier": "tiny", "model.localizer": "tiny"}


def config_of(**values: Any) -> TrainConfig:
    small = {"model.classifier": "mobilenet_v2", "model.localizer": "mobilenet_v2", "model.pretrained": False}
    return override(TrainConfig(), {"data.image_size": SIZE, "data.resize": 512} | small | values)


def networks_of(cuda: Cuda, config: TrainConfig) -> Networks:
    """Classifier, teacher, localizer and labeller on the device, in training mode where they train."""

    def make() -> tuple[nn.Module, ...]:
        classifiers = (Classifier(config.model, CLASSES, SIZE) for _ in range(2))
        return *classifiers, *(Localizer(config.model, SIZE) for _ in range(2))

    classifier, teacher, localizer, labeller = map(cuda.take, cuda.made(make))
    for still in (teacher, labeller):
        still.eval().requires_grad_(False)
    return Networks(classifier, teacher, localizer, None if config.refinement.labeller == "online" else labeller)


def batch_of(cuda: Cuda) -> tuple[Tensor, Tensor]:
    images = torch.rand(BATCH, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    return cuda.take(images), cuda.take(torch.arange(BATCH))


def sgd(net: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)


def twice(cuda: Cuda, step: Callable[[], Any]) -> None:
    """What is worked out once, such as the positions of an upsampling, is not part of a step."""
    step()
    with cuda.never_waits():
        step()


@pytest.mark.parametrize(("bits", "second_pass"), [("bf16", "own"), ("fp32", "raw")])
def test_stage_1(cuda: Cuda, bits: str, second_pass: str) -> None:
    config = config_of(**{"initialization.second_pass": second_pass})
    nets, (x, y) = networks_of(cuda, config), batch_of(cuda)
    optimizers = (sgd(nets.classifier), sgd(nets.localizer))
    twice(cuda, lambda: initialization_step(nets, optimizers, x, y, config.initialization, PRECISION[bits]))
    for net, optimizer in zip((nets.classifier, nets.localizer), optimizers, strict=True):
        assert all(p in optimizer.state for p in net.parameters())  # every weight has had a gradient


@pytest.mark.parametrize(("bits", "labeller"), [("bf16", "online"), ("fp32", "ema")])
def test_stage_2(cuda: Cuda, bits: str, labeller: str) -> None:
    config = config_of(**{"refinement.labeller": labeller, "refinement.augmenter": "tensor"})
    nets, (x, _) = networks_of(cuda, config), batch_of(cuda)
    nets.classifier.eval().requires_grad_(False)
    strong = sample_strong(BATCH, config.refinement, torch.Generator().manual_seed(1))
    optimizer = sgd(nets.localizer)
    twice(cuda, lambda: refinement_step(nets, optimizer, x, strong, config.refinement, 0.9, PRECISION[bits]))


def models_of(cuda: Cuda, config: TrainConfig) -> Models:
    nets = networks_of(cuda, override(config, {"refinement.labeller": "frozen"}))
    assert nets.labeller is not None
    localizers = {"lchp_i": nets.localizer, "lchp_r": nets.labeller}
    return Models(nets.classifier, nets.teacher, localizers, config.initialization)


def test_prediction_in_both_frames(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    config, images = config_of(), range(6)

    def batches(_images: Any, order: list[list[int]], **_: Any) -> Iterator[Batch]:
        for index in order:
            pixels = torch.zeros(len(index), 512, 512, 3, dtype=torch.uint8)
            yield Batch(torch.tensor(index), pixels.pin_memory(), torch.tensor(index).pin_memory())

    monkeypatch.setattr(inference, "batches", batches)
    models = models_of(cuda, config)
    how: dict[str, Any] = {"batch_size": 4, "workers": 0, "device": DEVICE, "autocast": PRECISION["bf16"]}
    found = inference.predict(models, images, FRAMES, SIZE, **how, show_progress=False)  # pyright: ignore
    assert list(found) == list(FRAMES)
    for p in found.values():
        assert p.top5.shape == p.top5_score.shape == (6, 5)
        assert {n: b.shape for n, b in p.boxes.items()} == dict.fromkeys(("pseudo_label", "lchp_i", "lchp_r"), (6, 4))
        assert p.confidence.dtype == p.masked_score.dtype == np.float32
    boxes = inference.view_boxes(models, images, SIZE, **how)  # pyright: ignore
    assert {b.shape for b in boxes.values()} == {(3, 6, 4)}


@pytest.mark.parametrize("frame", FRAMES)
def test_lchp_predict(cuda: Cuda, frame: Any) -> None:
    config = config_of(**TINY)
    models = models_of(cuda, config)
    names = tuple("abcde")
    trained = predict.TrainedRun(config, names, models.classifier, models.localizers["lchp_r"], "lchp_r", DEVICE)
    read = [
        predict._Read(f"{i}.jpg", Path(f"{i}.jpg"), np.zeros((512, 512, 3), np.uint8), (640, 480)) for i in range(3)
    ]
    found = predict._predict_batch(trained, read, frame, PRECISION["bf16"])
    assert [p.image for p in found] == ["0.jpg", "1.jpg", "2.jpg"]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_s_boxes(cuda: Cuda, name: str) -> None:
    found, config = METHODS[name], config_of(**TINY, **{"method.name": name})
    make = lambda: found.scheme.build(replace(config.model, head=found.head), CLASSES)  # noqa: E731
    classifier, (x, y) = cuda.take(cuda.made(make)).eval(), batch_of(cuda)
    maps = map_source(found, classifier)
    with PRECISION["bf16"]:
        if maps is not None:
            boxes = _of_map(config, maps)(x, y)
        else:
            features = classifier.get_submodule("trunk")(x)
            descriptors = Descriptors(features.shape[1], DEVICE)
            descriptors.add(features)
            transform = Transform.of([descriptors.principal()] * CLASSES, DEVICE)
            boxes = transform.boxes(features, y)
            with cuda.never_waits():
                transform.project(features, y)
    assert boxes.shape == (BATCH, 4)
    assert boxes.device == DEVICE


class OnCpu(nn.Module):
    """Weights that no `to` moves."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.ones(4)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weights


MISTAKES: dict[str, tuple[Callable[[Tensor], Any], type[BaseException]]] = {
    "two devices": (lambda box: box + torch.ones(4), FakeTensorDeviceMismatchError),
    "weights on the CPU": (lambda box: OnCpu()(box), FakeTensorDeviceMismatchError),
    "item": (lambda box: box * box.max().item(), DataDependentOutputException),
    "if": (lambda box: box if box.max() > 0 else -box, DataDependentOutputException),
    "mask": (lambda box: box[box[:, 0] > 0], DynamicOutputShapeException),
    "to the host": (lambda box: box * box.cpu().to(box.device), Waits),
    "blocking copy": (lambda box: box * torch.ones(4).to(box.device), Waits),
    "constant": (lambda box: box * torch.tensor([1.0, 2.0, 1.0, 2.0], device=box.device), Waits),
    "memory that is not pinned": (lambda box: box * torch.ones(4).to(box.device, non_blocking=True), Waits),
    "index on the CPU": (lambda box: box[torch.arange(4)], Waits),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_in_a_step_is_seen(cuda: Cuda, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mistake, error = MISTAKES[kind]
    config = config_of(**TINY, **{"refinement.augmenter": "tensor"})
    nets, (x, _) = networks_of(cuda, config), batch_of(cuda)
    strong = sample_strong(BATCH, config.refinement, torch.Generator().manual_seed(1))
    optimizer, real = sgd(nets.localizer), stages.predict_boxes
    monkeypatch.setattr(stages, "predict_boxes", lambda *a: mistake(real(*a)))
    with pytest.raises(error), cuda.never_waits():
        refinement_step(nets, optimizer, x, strong, config.refinement, 0.9, PRECISION["bf16"])
