"""--tensorboard: every number of every epoch, and pictures with boxes."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lchp import TrainConfig, override
from lchp.evaluation.predictions import read_predictions
from lchp.files import runs
from lchp.pictures import STYLES, Style, draw_box, draw_label
from lchp.training.board import FOLDER, _compose
from lchp.training.run import train


@pytest.fixture(scope="module")
def board_run(squares_config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("board") / "run"
    train(override(squares_config, {"tensorboard": True}), output=run)
    return run


def read(run: Path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run / FOLDER))
    events.Reload()
    return events


def test_every_number_is_a_scalar(board_run: Path) -> None:
    events = read(board_run)
    for metrics in runs.read_metrics(board_run):
        for name, value in metrics.items():
            if name in ("stage", "epoch", "epochs"):
                continue
            (scalar,) = events.Scalars(f"{metrics['stage']}/{name}")
            assert scalar.step == metrics["epoch"]
            assert scalar.value == pytest.approx(value, rel=1e-5)


def test_pictures_after_each_link_with_a_result(board_run: Path) -> None:
    events = read(board_run)
    assert sorted(events.Tags()["images"]) == ["initialization/boxes", "refinement/boxes", "regression/boxes"]
    for stage, results in (("initialization", 1), ("regression", 2), ("refinement", 3)):
        (image,) = events.Images(f"{stage}/boxes")
        with Image.open(io.BytesIO(image.encoded_image_string)) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        seen = {name for name, style in STYLES.items() if (pixels == style.colour).all(2).sum() > 20}
        assert "ground_truth" in seen
        assert len(seen) == results + 1


def test_the_board_changes_no_result(board_run: Path, squares_run: Path) -> None:
    assert read_predictions(board_run).equals(read_predictions(squares_run))
    for name in ("initialization", "regression", "refinement"):
        a, b = (torch.load(r / "checkpoints" / f"{name}.pt", weights_only=True) for r in (board_run, squares_run))
        for module, state in a["modules"].items():
            torch.testing.assert_close(b["modules"][module], state, atol=0, rtol=0, equal_nan=True)


def test_no_board_unless_asked(squares_run: Path) -> None:
    assert not (squares_run / FOLDER).exists()


def test_boxes_are_drawn_where_they_are() -> None:
    image = Image.new("RGB", (40, 30), (128, 128, 128))
    style = Style((255, 0, 0), 2)
    draw_box(image, (10, 5, 30, 25), style)
    pixels = np.asarray(image)
    rows, columns = np.nonzero((pixels == style.colour).all(2))
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (10, 5, 30, 25)
    assert (pixels[15, 20] == 128).all()
    assert (pixels[15, 9] == 0).all()


@pytest.mark.parametrize(
    "box", [(0, 0, 40, 30), (-5, -5, 60, 50), (39.9, 29.9, 40, 30), (20, 10, 20, 10), (7, 0, 8, 30)]
)
@pytest.mark.parametrize("style", STYLES.values())
def test_no_box_is_too_odd_to_draw(box, style: Style) -> None:
    image = Image.new("RGB", (40, 30), (128, 128, 128))
    draw_box(image, box, style)
    assert (np.asarray(image) == style.colour).all(2).any()


def test_labels_stay_inside_of_the_picture() -> None:
    image = Image.new("RGB", (120, 60), (128, 128, 128))
    draw_label(image, (115, 0), "class 0.93", (255, 221, 0))
    rows, columns = np.nonzero((np.asarray(image) == (255, 221, 0)).all(2))
    assert columns.max() == 119
    assert rows.min() == 0


def test_the_grid_holds_any_number_of_images() -> None:
    for n in (1, 5, 16):
        picture = _compose(np.zeros((n, 32, 32, 3), np.uint8), {"lchp_i": [np.array([[0.1, 0.1, 0.9, 0.9]])] * n})
        assert picture.shape[1] == 4 * 192
        assert picture.shape[0] == 24 + -(-n // 4) * 192
