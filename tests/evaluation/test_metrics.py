"""Frames, floors and metrics on hand-made cases; and that none of it needs torch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lchp.boxes import FULL_BOX
from lchp.data import cub
from lchp.data.decode import image_size
from lchp.errors import ConfigError
from lchp.evaluation.frames import FRAMES, Frame, GroundTruth
from lchp.evaluation.metrics import (
    METRICS,
    RESULTS,
    TITLES,
    Metric,
    best_iou,
    classification,
    consistency,
    floors,
    hits,
    localization,
    macro_average,
    unboxed,
)
from lchp.evaluation.predictions import frame_table, summarize, summary_table


def boxes(*each: tuple[float, float, float, float]) -> np.ndarray:
    return np.array(each, np.float32)


def truth_of(each: list[np.ndarray]) -> GroundTruth:
    """Of images of 100 px, in full_image."""
    return Frame("full_image", 40, 32).truth(each, np.full((len(each), 2), 100))


def test_full_image_frame_is_the_box_over_the_image_size() -> None:
    truth = Frame("full_image", 40, 20).truth([boxes((10, 20, 60, 80))], np.array([[100, 200]]))
    np.testing.assert_allclose(truth.boxes[0, 0], [0.1, 0.1, 0.6, 0.4])
    assert truth.valid.all()


def test_centre_crop_frame_clips_ground_truth() -> None:
    """The crop keeps the middle 80 %: 0.1..0.9 of the image becomes 0..1."""
    truth = Frame("center_crop", 40, 32).truth([boxes((0, 30, 50, 95))], np.array([[100, 100]]))
    np.testing.assert_allclose(truth.boxes[0, 0], [0, 0.25, 0.5, 1], atol=1e-7)


def test_a_box_outside_of_the_crop_is_no_target() -> None:
    data = [boxes((0, 0, 10, 100), (20, 20, 60, 60)), boxes((0, 0, 100, 5))]
    truth = Frame("center_crop", 40, 32).truth(data, np.full((2, 2), 100))
    assert truth.valid.tolist() == [[False, True], [False, False]]
    full = np.tile([0.0, 0, 1, 1], (2, 1))
    assert best_iou(full, truth).tolist() == pytest.approx([0.25, 0])
    assert truth_of(data).valid.tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize("name", FRAMES)
def test_a_box_comes_back_in_px_of_the_image(name) -> None:
    """The way back of the way in, for any size of image; what reaches out of the crop is cut there."""
    frame, sizes = Frame(name, 40, 32), np.array([[100, 200], [37, 21]])
    inside = [boxes((20, 40, 70, 120)), boxes((8, 5, 30, 15))]
    truth = frame.truth(inside, sizes)
    np.testing.assert_allclose(frame.back(truth.boxes[:, 0], sizes), np.concatenate(inside), rtol=1e-6)
    whole = frame.back(np.tile(FULL_BOX, (2, 1)), sizes)
    edge = 0.1 if name == "center_crop" else 0
    np.testing.assert_allclose(whole, np.tile(sizes, 2) * [edge, edge, 1 - edge, 1 - edge])


@pytest.mark.parametrize("name", FRAMES)
def test_pixels_and_ground_truth_are_of_the_same_frame(name) -> None:
    """A white square on black is seen where its ground truth says."""
    frame = Frame(name, 40, 32)
    image = np.zeros((1, 40, 40, 3), np.uint8)
    image[0, 12:20, 16:36] = 255
    seen = frame.see(torch.from_numpy(image))
    assert seen.shape == (1, 3, 32, 32)
    assert seen.is_contiguous(memory_format=torch.channels_last)
    truth = frame.truth([boxes((16, 12, 36, 20))], np.array([[40, 40]])).boxes[0, 0]
    rows, columns = np.nonzero(seen[0, 0].numpy() > 0.5)
    found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 32
    np.testing.assert_allclose(found, truth, atol=0.5 / 32)
    np.testing.assert_array_equal(frame.part(image), frame.part(torch.from_numpy(image)))
    assert frame.part(image).shape[1] == frame.side == {"center_crop": 32, "full_image": 40}[name]


def test_unknown_frame() -> None:
    with pytest.raises(ConfigError, match="frame = 'centre_crop': expected one of center_crop, full_image"):
        Frame("centre_crop", 40, 32)


def test_ground_truth_of_any_counts() -> None:
    each = [np.zeros((0, 4)), boxes((0, 0, 0.5, 1), (0.25, 0, 1, 1)), boxes((0, 0, 1, 1))]
    truth = GroundTruth.of(each)
    assert truth.boxes.shape == (3, 2, 4)
    for a, b in zip(truth.each(), each, strict=True):
        np.testing.assert_array_equal(a, b)
    assert GroundTruth.of([]).boxes.shape == (0, 1, 4)


def test_a_metric_is_one_key() -> None:
    metric = Metric("lchp_r", "center_crop")
    assert metric.path == "results/lchp_r/center_crop/gt_known"
    assert metric.title == "GT-Known of LCHP-R in center_crop"
    assert metric.of({"results": {"lchp_r": {"center_crop": {"gt_known": 12.5}}}}) == 12.5
    assert metric.of({"results": {"lchp_i": {}}}) is None
    for wrong in (("lchp", "center_crop"), ("lchp_r", "centre_crop"), ("lchp_r", "full_image", "top2_loc")):
        with pytest.raises(ValueError, match="expected one of"):
            Metric(*wrong)
    assert tuple(TITLES) == RESULTS
    assert tuple(localization(np.ones(1), np.zeros((1, 5)), np.zeros(1))) == tuple(METRICS)


def test_any_of_many_boxes_counts() -> None:
    truth = truth_of([boxes((0, 0, 20, 20), (50, 50, 90, 90)), boxes((0, 0, 5, 5))])
    predicted = np.array([[0.5, 0.5, 0.9, 0.8], [0.5, 0.5, 0.9, 0.9]])
    assert best_iou(predicted, truth).tolist() == pytest.approx([0.75, 0])


def test_padding_rows_never_match() -> None:
    truth = GroundTruth(np.zeros((1, 3, 4)), np.array([[False, False, False]]))
    assert best_iou(np.zeros((1, 4)), truth).tolist() == [0]


def test_a_hit_is_at_least_one_half() -> None:
    truth = truth_of([boxes((0, 0, 100, 100))] * 2)
    assert hits(best_iou(np.array([[0, 0, 1, 0.5], [0, 0, 1, 0.4999]]), truth)).tolist() == [True, False]


def test_localization_metrics() -> None:
    ious = np.array([0.5, 0.9, 0.49, 0.7])
    labels = np.array([3, 4, 5, 6])
    top5 = np.array([[3, 0, 1, 2, 9], [0, 1, 2, 9, 4], [5, 0, 1, 2, 9], [0, 1, 2, 9, 8]])
    out = localization(ious, top5, labels)
    assert out == pytest.approx({"gt_known": 75, "top1_loc": 25, "top5_loc": 50, "mean_iou": 64.75})
    assert classification(top5, labels) == {"top1": 50, "top5": 75}


def test_micro_and_macro_average() -> None:
    ious, labels = np.array([0.9, 0.9, 0.9, 0.1]), np.array([0, 0, 0, 1])
    assert localization(ious, labels[:, None], labels)["gt_known"] == 75
    assert macro_average(ious, labels) == 50


def test_floors_by_hand() -> None:
    """Full box: IoU is the box's area. The 80 % box: 1 against 0.1..0.9, 0.64 against the whole, less below."""
    data = [boxes((0, 0, 100, 100)), boxes((10, 10, 90, 90)), boxes((0, 0, 100, 33)), boxes((40, 40, 60, 60))]
    out = floors(truth_of(data))
    assert out == {"full_box": 50.0, "centre_box": 50.0}


def test_floors_on_real_images(cub50_root: Path) -> None:
    """Against the annotation files read anew: a full box's IoU is the share of the frame its object covers."""
    split = cub.load(cub50_root).test
    assert split.paths is not None
    assert split.boxes is not None
    lines = {
        n: (cub50_root / n).read_text().split("\n")
        for n in ("images.txt", "bounding_boxes.txt", "train_test_split.txt")
    }
    tables = {n: dict(line.split(maxsplit=1) for line in ls if line) for n, ls in lines.items()}
    covered, in_crop = [], []
    for image_id, name in tables["images.txt"].items():
        if tables["train_test_split.txt"][image_id] == "0":
            width, height = Image.open(cub50_root / "images" / name).size
            x, y, w, h = map(float, tables["bounding_boxes.txt"][image_id].split())
            covered.append(w * h / (width * height))
            # in units of the 160 px crop of 192 px
            across, down = (
                np.clip((192 * np.array([a, a + s]) / side - 16) / 160, 0, 1)
                for a, s, side in ((x, w, width), (y, h, height))
            )
            in_crop.append((across[1] - across[0]) * (down[1] - down[0]))
    sizes = np.array([image_size(p) for p in split.paths])
    found = {f: floors(Frame(f, 192, 160).truth(split.boxes, sizes)) for f in FRAMES}
    assert found["full_image"]["full_box"] == pytest.approx(100 * np.mean(np.array(covered) >= 0.5))
    assert found["center_crop"]["full_box"] == pytest.approx(100 * np.mean(np.array(in_crop) >= 0.5))
    assert round(found["full_image"]["full_box"], 1) == 19.9
    assert round(found["center_crop"]["full_box"], 1) == 41.0


def test_consistency() -> None:
    plain = np.array([[0, 0, 1, 1], [0, 0, 0.5, 1]])
    views = np.stack([plain, np.array([[0, 0, 0.5, 1], [0.5, 0, 1, 1]])])
    assert consistency(plain, views) == pytest.approx(100 * (1 + 1 + 0.5 + 0) / 4)


def table(frame: str, truth: GroundTruth | None):
    b = np.array([[0, 0, 1, 0.6], [0.2, 0.2, 0.4, 0.4]])
    top = np.array([[0, 1], [0, 1]])
    return frame_table(
        ("a", "b"), frame, np.array([0, 1]), top, top / 2, {"lchp_i": b}, {"confidence": np.array([0.9, 0.1])}, truth
    )


def test_summary_is_computed_from_the_table() -> None:
    import pyarrow as pa

    data = [boxes((0, 0, 100, 100)), boxes((0, 0, 100, 10), (20, 20, 40, 40))]
    tables = [table(f, Frame(f, 40, 20).truth(data, np.full((2, 2), 100))) for f in FRAMES]
    summary = summarize(pa.concat_tables(tables))
    assert summary["results"]["lchp_i"]["full_image"] == pytest.approx(
        {"gt_known": 100, "top1_loc": 50, "top5_loc": 100, "mean_iou": 80}
    )
    # in the crop the second box is 0..0.3, against a predicted 0.2..0.4
    assert summary["results"]["lchp_i"]["center_crop"]["gt_known"] == 50
    assert summary["classification"] == {"top1": 50, "top5": 100}
    assert summary["floors"]["full_image"]["full_box"] == 50
    text = summary_table(summary)
    assert "LCHP-I" in text
    assert "floor: 80 % box" in text
    assert "GT-Known of LCHP-I in center_crop (50.00 %) is not above that of the 80 % box (50.00 %)" in text
    assert "GT-Known of LCHP-I in full_image (" not in text


def test_summary_without_ground_truth() -> None:
    import pyarrow as pa

    summary = summarize(pa.concat_tables([table(frame, None) for frame in FRAMES]))
    assert summary["results"]["lchp_i"]["full_image"]["gt_known"] is None
    assert summary["floors"]["center_crop"]["full_box"] is None
    assert "No ground-truth boxes" in summary_table(summary)


def test_metrics_need_no_torch() -> None:
    code = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "ray"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
import numpy as np
import lchp.boxes, lchp.config, lchp.evaluation.predictions, lchp.files.runs
from lchp.evaluation import frames, metrics
metrics.floors(frames.Frame("full_image", 40, 32).truth([np.ones((1, 4))], np.ones((1, 2))))
assert lchp.preset("cub").refinement.tau == 0.9
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unboxed_score_by_hand() -> None:
    """The centred half-size box holds all the classifier goes by; the whole view does too, and is larger; a corner of
    the object is neither enough nor all."""
    one = np.ones((2, 1))
    good = unboxed(one * [0.25, 0.25, 0.75, 0.75], np.array([0.9, 0.7]), np.array([0.1, 0.3]))
    assert good == pytest.approx({"crop": 80, "masked": 20, "area": 25, "score": 35})
    whole = unboxed(one * [0, 0, 1, 1], np.array([0.9, 0.7]), np.array([0.0, 0.0]))
    assert whole == pytest.approx({"crop": 80, "masked": 0, "area": 100, "score": -20})
    corner = unboxed(one * [0.25, 0.25, 0.35, 0.35], np.array([0.4, 0.2]), np.array([0.7, 0.5]))
    assert corner["score"] == pytest.approx(30 - 60 - 1)
