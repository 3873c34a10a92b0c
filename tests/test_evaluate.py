"""Frames, floors and metrics on hand-made cases; and that none of it needs torch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lchp.data import cub
from lchp.data.decode import image_size
from lchp.evaluate import (
    GroundTruth,
    best_iou,
    classification,
    consistency,
    floors,
    ground_truth,
    hits,
    localization,
    macro_average,
    unboxed,
)
from lchp.records import frame_table, summarize, summary_table


def boxes(*each: tuple[float, float, float, float]) -> np.ndarray:
    return np.array(each, np.float32)


def test_full_image_frame_is_the_box_over_the_image_size() -> None:
    truth = ground_truth([boxes((10, 20, 60, 80))], np.array([[100, 200]]), "full_image", crop=0.5)
    np.testing.assert_allclose(truth.boxes[0, 0], [0.1, 0.1, 0.6, 0.4])
    assert truth.valid.all()


def test_centre_crop_frame_clips_ground_truth() -> None:
    """The crop keeps the middle 80 %: 0.1..0.9 of the image becomes 0..1."""
    truth = ground_truth([boxes((0, 30, 50, 95))], np.array([[100, 100]]), "center_crop", crop=0.8)
    np.testing.assert_allclose(truth.boxes[0, 0], [0, 0.25, 0.5, 1], atol=1e-7)


def test_a_box_outside_of_the_crop_is_no_target() -> None:
    data = [boxes((0, 0, 10, 100), (20, 20, 60, 60)), boxes((0, 0, 100, 5))]
    truth = ground_truth(data, np.array([[100, 100], [100, 100]]), "center_crop", crop=0.8)
    assert truth.valid.tolist() == [[False, True], [False, False]]
    full = np.tile([0.0, 0, 1, 1], (2, 1))
    assert best_iou(full, truth).tolist() == pytest.approx([0.25, 0])
    assert ground_truth(data, np.array([[100, 100]] * 2), "full_image").valid.tolist() == [[True, True], [True, False]]


def test_unknown_frame() -> None:
    with pytest.raises(ValueError, match="expected one of center_crop, full_image"):
        ground_truth([boxes((0, 0, 1, 1))], np.array([[2, 2]]), "centre_crop")


def test_any_of_many_boxes_counts() -> None:
    truth = ground_truth(
        [boxes((0, 0, 20, 20), (50, 50, 90, 90)), boxes((0, 0, 5, 5))], np.full((2, 2), 100), "full_image"
    )
    predicted = np.array([[0.5, 0.5, 0.9, 0.8], [0.5, 0.5, 0.9, 0.9]])
    assert best_iou(predicted, truth).tolist() == pytest.approx([0.75, 0])


def test_padding_rows_never_match() -> None:
    truth = GroundTruth(np.zeros((1, 3, 4)), np.array([[False, False, False]]))
    assert best_iou(np.zeros((1, 4)), truth).tolist() == [0]


def test_a_hit_is_at_least_one_half() -> None:
    truth = ground_truth([boxes((0, 0, 100, 100))] * 2, np.full((2, 2), 100), "full_image")
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
    out = floors(ground_truth(data, np.full((4, 2), 100), "full_image"))
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
    found = {f: floors(ground_truth(split.boxes, sizes, f, crop=160 / 192)) for f in ("center_crop", "full_image")}
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
    tables = [table(f, ground_truth(data, np.full((2, 2), 100), f, crop=0.5)) for f in ("center_crop", "full_image")]
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
    assert "floor" in text


def test_summary_without_ground_truth() -> None:
    import pyarrow as pa

    summary = summarize(pa.concat_tables([table("center_crop", None), table("full_image", None)]))
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
import lchp.evaluate, lchp.records, lchp.runs, lchp.config, lchp.boxes
lchp.evaluate.floors(lchp.evaluate.ground_truth([np.ones((1, 4))], np.ones((1, 2)), "full_image"))
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
