"""--track tensorboard: every number of every epoch, pictures with boxes, and the summary beside the config."""

import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboardX.proto import event_pb2

from lchp import TrainConfig, override
from lchp.config import to_dict
from lchp.evaluation.predictions import read_predictions
from lchp.files import runs
from lchp.pictures import STYLES, Style, draw_box, draw_label
from lchp.tracking.samples import sample_grid
from lchp.tracking.to_tensorboard import FOLDER
from lchp.training.run import train


@pytest.fixture(scope="module")
def board_run(squares_config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("board") / "run"
    train(squares_config, output=run, track=["tensorboard"])
    return run


def read(folder: Path) -> Iterator[tuple[int, Any]]:
    """The step and the value of each summary in a folder's files of events (TFRecords)."""
    made: Any = event_pb2  # its classes are built when it is imported
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = made.Event.FromString(data[12 : 12 + length])
            yield from ((event.step, value) for value in event.summary.value)
            data = data[16 + length :]


def test_every_number_is_a_scalar_once(board_run: Path) -> None:
    found = [(v.tag, step, v.simple_value) for step, v in read(board_run / FOLDER) if v.HasField("simple_value")]
    epochs = {(tag, step): value for tag, step, value in found if step}
    assert len(epochs) == len([step for _, step, _ in found if step])
    expected = {
        (f"{line['stage']}/{name}", line["epoch"]): value
        for line in runs.read_metrics(board_run)
        for name, value in line.items()
        if name not in ("stage", "epoch", "epochs")
    }
    assert epochs == pytest.approx(expected, rel=1e-5)
    figures = {tag: value for tag, step, value in found if not step}
    gt_known = runs.read_summary(board_run)["results"]["lchp_r"]["full_image"]["gt_known"]
    assert figures["results/lchp_r/full_image/gt_known"] == pytest.approx(gt_known)


def test_the_config_is_told(board_run: Path, squares_config: TrainConfig) -> None:
    values = {value.tag: value for _, value in read(board_run / FOLDER)}
    (text,) = values["config/text_summary"].tensor.string_val
    assert json.loads(text.decode().strip("`\n")) == json.loads(json.dumps(to_dict(squares_config)))
    assert "_hparams_/session_start_info" in values


def test_pictures_after_each_link_with_a_result(board_run: Path) -> None:
    images = {v.tag: v.image for _, v in read(board_run / FOLDER) if v.HasField("image")}
    assert sorted(images) == ["initialization/boxes", "refinement/boxes", "regression/boxes"]
    for stage, results in (("initialization", 1), ("regression", 2), ("refinement", 3)):
        with Image.open(io.BytesIO(images[f"{stage}/boxes"].encoded_image_string)) as picture:
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
    assert not (squares_run / runs.TRACKERS).exists()


def test_the_field_of_before_is_the_same(squares_config: TrainConfig, board_run: Path, tmp_path: Path) -> None:
    """A run that it began goes on in its board, with what it lacks."""
    train(override(squares_config, {"tensorboard": True}), output=tmp_path / "run", stage="init")
    train(override(squares_config, {"tensorboard": True}), output=tmp_path / "run", resume=True)
    found, whole = (
        sorted((v.tag, step) for step, v in read(run / FOLDER) if step) for run in (tmp_path / "run", board_run)
    )
    assert found == whole


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
        picture = sample_grid(
            np.zeros((n, 32, 32, 3), np.uint8), {"lchp_i": [np.array([[0.1, 0.1, 0.9, 0.9]])] * n}, 192
        )
        assert picture.shape[1] == 4 * 192
        assert picture.shape[0] == 24 + -(-n // 4) * 192
