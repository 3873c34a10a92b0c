"""What runs on a GPU, rehearsed without one at 448 px (see fake_cuda.py): steps of both stages, prediction in both
frames, and every method's boxes. tests/training/test_no_sync.py does so with the views and the methods' losses."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_cuda import DEVICE, Autocast, Cuda, Waits
from stepping import batch_of, step_of, trainings
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from lchp.baselines import METHODS
from lchp.baselines.ddt import Descriptors, Transform
from lchp.config import TrainConfig, override
from lchp.data.base import Split
from lchp.data.images import ImageBatch, Images
from lchp.deploy import predict
from lchp.deploy.trained import TrainedRun
from lchp.evaluation import inference
from lchp.evaluation.inference import Models
from lchp.evaluation.metrics import FRAMES
from lchp.method import steps as stages
from lchp.method.networks import Classifier, Localizer
from lchp.method.pseudo_boxes import make_teacher
from lchp.method.steps import pseudo_boxes
from lchp.training.map_boxes import map_source, of_map
from lchp.training.networks import Networks

CLASSES, BATCH, SIZE = 5, 4, 448
PRECISION: dict[str, Any] = {"bf16": Autocast(), "fp32": nullcontext()}
TINY = {"model.classifier": "tiny", "model.localizer": "tiny"}


def config_of(**values: Any) -> TrainConfig:
    small = {"model.classifier": "mobilenet_v2", "model.localizer": "mobilenet_v2", "model.pretrained": False}
    return override(TrainConfig(), {"data.image_size": SIZE, "data.resize": 512} | small | values)


def networks_of(cuda: Cuda, config: TrainConfig) -> Networks:
    """Classifier and localizer on the device."""
    make = lambda: (Classifier(config.model, CLASSES, SIZE), Localizer(config.model, SIZE))  # noqa: E731
    return Networks(*map(cuda.take, cuda.made(make)))


def images_of(cuda: Cuda) -> tuple[Tensor, Tensor]:
    images = torch.rand(BATCH, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    return cuda.take(images), cuda.take(torch.arange(BATCH))


def twice(cuda: Cuda, step: Callable[[], Any]) -> None:
    """What is worked out once, such as the positions of an upsampling, is not part of a step."""
    step()
    with cuda.never_waits():
        step()


@pytest.mark.parametrize(
    ("bits", "values"),
    [
        ("bf16", {"model.classifier": "tiny"}),  # a real backbone, depthwise convolutions and all, in one place
        ("fp32", {**TINY, "initialization.second_pass": "raw", "refinement.labeller": "ema"}),
        ("bf16", {**TINY, "refinement.labeller": "frozen"}),
    ],
    ids=str,
)
def test_the_steps_of_every_link(cuda: Cuda, bits: str, values: dict[str, Any]) -> None:
    config = config_of(**{"refinement.augmenter": "tensor"}, **values)
    nets, batch = networks_of(cuda, config), batch_of(config, *images_of(cuda), cuda.take)
    for training in trainings(config, nets, BATCH, DEVICE, PRECISION[bits]).values():
        twice(cuda, step_of(training, batch))
        if training.optimizer is not None:  # every weight has had a gradient
            net = training.modules[training.network or ""]
            assert all(p in training.optimizer.state for p in net.parameters())


def models_of(cuda: Cuda, config: TrainConfig) -> Models:
    first, second = (networks_of(cuda, config) for _ in range(2))
    teacher = make_teacher(second.classifier)
    source = lambda images, _labels: pseudo_boxes(teacher, images, config.initialization).box.float()  # noqa: E731
    localizers = {"lchp_i": first.localizer, "lchp_r": second.localizer}
    return Models(first.classifier, source, localizers, config.initialization)


def test_prediction_in_both_frames(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(**TINY)
    images: Any = Images(Split(tuple("abcdef"), np.arange(6)), 512, None, np.arange(6))

    def batches(_images: Any, order: list[list[int]], **_: Any) -> Iterator[ImageBatch]:
        for index in order:
            pixels = torch.zeros(len(index), 512, 512, 3, dtype=torch.uint8)
            yield ImageBatch(torch.tensor(index), pixels.pin_memory(), torch.tensor(index).pin_memory())

    monkeypatch.setattr(inference, "batches", batches)
    models = models_of(cuda, config)
    how: dict[str, Any] = {"batch_size": 4, "workers": 0, "device": DEVICE, "autocast": PRECISION["bf16"]}
    found = inference.predict(models, images, FRAMES, SIZE, **how, show_progress=False)
    assert list(found) == list(FRAMES)
    for p in found.values():
        assert p.top5.shape == p.top5_score.shape == (6, 5)
        assert {n: b.shape for n, b in p.boxes.items()} == dict.fromkeys(("pseudo_label", "lchp_i", "lchp_r"), (6, 4))
        assert p.confidence.dtype == p.masked_score.dtype == np.float32
    how["batch_size"] = len(images)
    boxes = inference.view_boxes(models, images, SIZE, **how)
    assert {b.shape for b in boxes.values()} == {(3, 6, 4)}


@pytest.mark.parametrize("frame", FRAMES)
def test_lchp_predict(cuda: Cuda, frame: Any) -> None:
    config = config_of(**TINY)
    models = models_of(cuda, config)
    names = tuple("abcde")
    trained = TrainedRun(config, names, models.classifier, models.localizers["lchp_r"], "lchp_r", DEVICE)
    read = [
        predict._Read(f"{i}.jpg", Path(f"{i}.jpg"), np.zeros((512, 512, 3), np.uint8), (640, 480)) for i in range(3)
    ]
    what = predict._Asked(frame, False, 0.01, 0.0, {})
    found = predict._predict_batch(trained, read, what, PRECISION["bf16"])
    assert [p.image for p in found] == ["0.jpg", "1.jpg", "2.jpg"]


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.boxes != "teacher"])
def test_every_method_s_boxes(cuda: Cuda, name: str) -> None:
    found, config = METHODS[name], config_of(**TINY, **{"method.name": name})
    make = lambda: found.scheme.build(replace(config.model, head=found.head), CLASSES)  # noqa: E731
    classifier, (x, y) = cuda.take(cuda.made(make)).eval(), images_of(cuda)
    maps = map_source(found, classifier)
    with PRECISION["bf16"]:
        if maps is not None:
            boxes = of_map(config, maps)(x, y)
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
    "two devices": (lambda box: box + torch.ones(4), RuntimeError),
    "weights on the CPU": (lambda box: OnCpu()(box), RuntimeError),
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
    batch, real = batch_of(config, *images_of(cuda), cuda.take), stages.predict_boxes
    step = step_of(trainings(config, networks_of(cuda, config), BATCH, DEVICE, PRECISION["bf16"])["refinement"], batch)
    monkeypatch.setattr(stages, "predict_boxes", lambda *a: mistake(real(*a)))
    of = "(?i)device" if error is RuntimeError else None  # PyTorch has no class for it before 2.12
    with pytest.raises(error, match=of), cuda.never_waits():
        step()
