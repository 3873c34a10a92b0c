"""Runs on an NVIDIA GPU: `pytest -m gpu`. Elsewhere a fake GPU stands in (test_fake_cuda.py)."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from squares import assert_same_run, small_config, write_images

from lchp import Predictor
from lchp.baselines import METHODS
from lchp.config import TrainConfig
from lchp.deploy.publish import publish
from lchp.errors import RunError
from lchp.evaluation.predictions import read_predictions
from lchp.files import runs
from lchp.training.run import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, and `pytest -m gpu`"),
]
GPU: dict[str, Any] = {"device": "cuda"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def config(root: Path) -> TrainConfig:
    return small_config(root, GPU)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """A GPU of which this process may have two GB more than it has."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2e9) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def losses(run: Path) -> list[float]:
    return [m["loss"] for m in runs.read_metrics(run) if "loss" in m]


def test_it_trains_what_a_cpu_trains(root: Path, tmp_path: Path) -> None:
    """Views are drawn on the CPU, so that the first epochs are the same up to rounding."""
    short = {"initialization.epochs": 1, "refinement.epochs": 1, "initialization.lr": 1e-4}
    here = train(small_config(root, short), output=tmp_path / "cpu").run
    there = train(small_config(root, GPU | short), output=tmp_path / "gpu").run
    assert losses(there) == pytest.approx(losses(here), rel=0.02)
    machine = json.loads((there / runs.ENVIRONMENT).read_text())
    assert machine["device"] == torch.cuda.get_device_name(0)
    assert machine["peak_memory_mb"]["gpu"] > 0


def test_a_deterministic_run_is_the_same_twice_and_when_broken_off(root: Path, tmp_path: Path) -> None:
    config = small_config(root, GPU | {"deterministic": True})
    straight = train(config, output=tmp_path / "straight").run
    again = tmp_path / "again"
    ends = iter(range(99))

    def leave(_metrics: Any) -> None:
        if next(ends) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, output=again, on_epoch=leave)
    train(config, output=again, resume=True)
    assert_same_run(straight, again)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "boxes"])
def test_every_method_trains_and_predicts(root: Path, tmp_path: Path, method: str) -> None:
    values: dict[str, Any] = {"method.name": method, "precision": "bf16", "initialization.epochs": 1}
    run = train(small_config(root, GPU | values), output=tmp_path / "run").run
    assert all(math.isfinite(loss) for loss in losses(run))
    assert len(read_predictions(run)) > 0


def test_compiled_networks_train_and_settle_their_statistics(root: Path, tmp_path: Path) -> None:
    values: dict[str, Any] = {"compile": True, "refinement.bn_statistics": "general", "refinement.labeller": "frozen"}
    run = train(small_config(root, GPU | values), output=tmp_path / "run").run
    assert all(math.isfinite(loss) for loss in losses(run))


@pytest.mark.usefixtures("little_memory")
def test_memory_that_runs_out_is_one_line_or_a_batch_in_parts(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values: dict[str, Any] = GPU | {
        "data.batch_size": 24,
        "data.resize": 256,
        "data.image_size": 224,
        "model.classifier": "resnet50",
        "initialization.epochs": 1,
        "refinement.epochs": 1,
    }
    with pytest.raises(RunError, match=r"memory ran out.*--auto-batch"):
        train(small_config(root, values), output=tmp_path / "whole")
    run = train(small_config(root, values | {"auto_batch": True}), output=tmp_path / "parts").run
    assert "each batch goes in" in caplog.text
    assert all(math.isfinite(loss) for loss in losses(run))


def test_a_model_of_a_gpu_predicts_on_either_device(root: Path, config: TrainConfig, tmp_path: Path) -> None:
    run = train(config, output=tmp_path / "run").run
    publish(run, tmp_path / "model")
    photo = next((root / "test").rglob("*.png"))
    boxes = []
    for device in ("cuda", "cpu"):
        (found,) = Predictor.from_folder(tmp_path / "model", device=device).predict(photo)
        boxes.append(found.box)
    assert boxes[0] == pytest.approx(boxes[1], abs=0.2)  # pixels
