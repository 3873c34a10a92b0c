"""What is said of a batch of images, with networks small enough to follow by hand."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from squares import small_config, write_images
from torch import Tensor, nn

from lchp.cli import main
from lchp.config import InitializationConfig, TrainConfig
from lchp.data import load
from lchp.data.images import open_images
from lchp.deploy.second_classifier import _top5
from lchp.deploy.trained import load_run
from lchp.errors import RunError
from lchp.evaluation.inference import Models, each_score_map, predict, predict_batch, ranked, view_boxes
from lchp.files.runs import read_config
from lchp.method.networks import ClassifierOutput
from lchp.system.devices import prepare


class Fixed(nn.Module):
    """A classifier that says the same of every image."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.logits = logits

    def forward(self, x: Tensor) -> ClassifierOutput:
        return ClassifierOutput(self.logits.expand(len(x), -1), x[:, :0], x)


def whole(images: Tensor, _labels: Tensor) -> Tensor:
    return torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(len(images), 4)


@pytest.mark.parametrize("classes", [7, 1000])
def test_of_equal_scores_the_lowest_class_id_comes_first(classes) -> None:
    """As a stable sort of numpy's has it, whatever the number of classes (topk's order of ties hangs on it)."""
    scores = torch.randint(0, 4, (64, classes), generator=torch.Generator().manual_seed(0)).float()
    score, ids = ranked(scores)
    expected = np.argsort(-scores.numpy(), axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(ids, expected)
    torch.testing.assert_close(score, scores.gather(1, ids))
    assert ranked(scores[:, :3])[1].shape == (64, 3)


TIED = torch.zeros(300)
TIED[[290, 120, 7]] = 1.0


def test_tied_classes_are_predicted_in_order() -> None:
    classifier: Any = Fixed(TIED)
    models = Models(classifier, whole, {}, InitializationConfig())
    assert predict_batch(models, torch.rand(3, 3, 8, 8)).top5.tolist() == [[7, 120, 290, 0, 1]] * 3


@pytest.mark.parametrize("ten_crop", [False, True])
def test_tied_classes_of_a_second_classifier_are_in_order(tmp_path, ten_crop) -> None:
    config = small_config(write_images(tmp_path / "images"))
    images = open_images(load(config.data).test, config.data)
    found = _top5(Fixed(TIED), images, config, torch.device("cpu"), ten_crop=ten_crop)
    assert found.tolist() == [[7, 120, 290, 0, 1]] * len(images)


def too_much(*_: Any) -> Any:
    return torch.empty(2**60)


@pytest.mark.parametrize("what", ["predict", "view_boxes", "each_score_map", "second_classifier"])
def test_memory_that_runs_out_while_predicting_is_said_in_one_line(tmp_path, what) -> None:
    config = small_config(write_images(tmp_path / "images"))
    images, classifier = open_images(load(config.data).test, config.data), Fixed(TIED)
    models: Any = Models(classifier, too_much, {}, InitializationConfig())  # pyright: ignore
    how: dict[str, Any] = {"batch_size": 4, "workers": 0, "device": torch.device("cpu"), "autocast": nullcontext()}
    body = {
        "predict": lambda: predict(models, images, ["full_image"], 32, **how, show_progress=False),
        "view_boxes": lambda: view_boxes(models, images, 32, **how),
        "each_score_map": lambda: list(each_score_map(too_much, images, 32, **how)),
        "second_classifier": lambda: _top5(too_much, images, config, torch.device("cpu"), ten_crop=False),
    }[what]
    with pytest.raises(RunError, match=r"images at a time: the machine's memory ran out .*--evaluation.batch-size"):
        body()


def test_lchp_predict_says_in_one_line_that_memory_ran_out(squares_run: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("lchp.deploy.predict.predict_batch", too_much)
    source = Path(str(read_config(squares_run).data.root)) / "red"
    assert main(["predict", str(source), "--run", str(squares_run), "--batch-size", "3"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("lchp: error: predictions of 3 images at a time: the machine's memory ran out (")
    assert said.endswith("--batch-size)")


@pytest.mark.parametrize("how", ["train", "predict"])
def test_fp32_is_fp32_on_a_gpu(how, squares_run: Path, monkeypatch) -> None:
    """torch's own default is TF32 for convolutions, whose products keep 10 bits of 23."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.set_float32_matmul_precision("high")
    try:
        if how == "train":
            prepare(TrainConfig(), torch.device("cpu"))
        else:
            load_run(squares_run, torch.device("cpu"))
        assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision("highest")
