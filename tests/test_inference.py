"""What is said of a batch of images, with networks small enough to follow by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from squares import small_config, write_images
from torch import Tensor, nn

from lchp.config import InitializationConfig
from lchp.data import load
from lchp.data.images import open_images
from lchp.inference import Models, predict_batch, ranked
from lchp.networks import ClassifierOutput
from lchp.second_classifier import _top5


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
    models = Models(classifier, None, {}, InitializationConfig(), map_boxes=whole)
    assert predict_batch(models, torch.rand(3, 3, 8, 8)).top5.tolist() == [[7, 120, 290, 0, 1]] * 3


@pytest.mark.parametrize("ten_crop", [False, True])
def test_tied_classes_of_a_second_classifier_are_in_order(tmp_path, ten_crop) -> None:
    config = small_config(write_images(tmp_path / "images"))
    images = open_images(load(config.data).test, config.data)
    found = _top5(Fixed(TIED), images, config, torch.device("cpu"), ten_crop=ten_crop)
    assert found.tolist() == [[7, 120, 290, 0, 1]] * len(images)
