"""`lchp score`: against a slow reference and wsolevaluation's own figures, and how faulty input is answered."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from wsol_folder import write_lists

from lchp.boxes import iou
from lchp.cli import main
from lchp.errors import DataError
from lchp.evaluation.scoring import score_boxes, score_maps, score_masks
from lchp.evaluation.scoring.maps import contour_boxes, in_frame
from lchp.evaluation.scoring.masks import average_precision
from lchp.evaluation.scoring.scoremaps import FRAME, read_map

Split = tuple[Path, Path]
"""The folder of the maps, and that of the lists."""


def save(folder: Path, image_id: str, scoremap: np.ndarray) -> Path:
    path = folder / f"{image_id}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, scoremap)
    return path


def blocks(rng: np.random.Generator, side: int, values: int) -> np.ndarray:
    """A map of side x side squares, whose scores are multiples of 1 / values."""
    coarse = rng.integers(0, values + 1, (side, side)) / values
    return np.kron(coarse, np.ones((FRAME // side, FRAME // side)))


def made(root: Path) -> Split:
    """Fifteen images: blocks, equal blobs, rings, soft hills, constant and empty maps; one to three boxes each."""
    rng = np.random.default_rng(0)
    x = np.linspace(-1, 1, FRAME)
    maps: dict[str, np.ndarray] = {}
    for i in range(3):
        maps[f"val2/0/{i}.jpeg"] = blocks(rng, 4, 8)
        maps[f"val2/1/{i}.jpeg"] = blocks(rng, 8, 16).astype(np.float32)
        # rational, so that every platform has the same digits
        cx, cy = rng.integers(-4, 5, 2) / 8
        maps[f"val2/2/{i}.jpeg"] = 1 / (1 + 16 * ((x - cx) ** 2 + 2 * (x[:, None] - cy) ** 2))
        rings = np.zeros((FRAME, FRAME))
        for k, (left, top) in enumerate(((10, 10), (100, 30), (30, 130))):
            rings[top : top + 60, left : left + 70] = 1 - 0.25 * k * (i % 2)
            rings[top + 10 : top + 50, left + 10 : left + 50 - 10 * i] = 0.25
        maps[f"val2/3/{i}.jpeg"] = rings
        maps[f"val2/4/{i}.jpeg"] = np.full((FRAME, FRAME), (0.0, 0.3, 1.0)[i])
    labels, sizes, boxes = {}, {}, {}
    for image_id, scoremap in maps.items():
        save(root / "maps", image_id, scoremap)
        w, h = (int(v) for v in rng.integers(60, 700, 2))
        labels[image_id], sizes[image_id], boxes[image_id] = int(image_id.split("/")[1]), (w, h), []
        for share in rng.integers(2, 10, rng.integers(1, 4)) / 10:
            # around what is above some share of the maximum, a little off
            rows, columns = np.nonzero(scoremap >= share * scoremap.max())
            around = np.array([columns.min(), rows.min(), columns.max(), rows.max()]) + rng.integers(-12, 13, 4)
            x1, y1, x2, y2 = (around.clip(0, FRAME - 1) * [w, h, w, h] // FRAME).tolist()
            boxes[image_id].append((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)))
    return root / "maps", write_lists(root / "metadata" / "ILSVRC" / "val", labels, sizes, boxes)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return made(tmp_path_factory.mktemp("wsolevaluation"))


# --- MaxBoxAcc


def reference(split: Split, interval: float, *, multi_contour: bool) -> dict[str, list[float]]:
    """Accuracy at every threshold, by IoU, straight from the definition: each is drawn, IoU is a count of pixels."""
    maps, lists = split
    sizes = dict(line.split(",", 1) for line in (lists / "image_sizes.txt").read_text().split())
    boxes: dict[str, list[list[int]]] = {}
    for line in (lists / "localization.txt").read_text().split():
        image_id, *corners = line.split(",")
        w, h = (int(v) for v in sizes[image_id].split(","))
        scaled = [int(int(v) * 224.0 / side) for v, side in zip(corners, (w, h, w, h), strict=True)]
        boxes.setdefault(image_id, []).append(scaled)
    thresholds = [i * interval for i in range(10**6) if i * interval < 1]
    right = {str(percent): [0] * len(thresholds) for percent in (30, 50, 70)}
    for image_id, truth in boxes.items():
        values = np.load(maps / f"{image_id}.npy").astype(float)
        image = np.floor(values * 255).astype(int)
        for t, threshold in enumerate(thresholds):
            mask = (image > int(threshold * image.max())).astype(np.uint8)
            contours = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
            areas = [cv2.contourArea(c) for c in contours]
            kept = contours if multi_contour else [contours[areas.index(max(areas))]] if contours else []
            best = 0.0
            for x, y, w, h in [cv2.boundingRect(c) for c in kept] or [(0, 0, 0, 0)]:
                drawn = np.zeros((225, 225), bool)
                drawn[y : min(y + h, 223) + 1, x : min(x + w, 223) + 1] = True
                for x1, y1, x2, y2 in truth:
                    other = np.zeros_like(drawn)
                    other[y1 : y2 + 1, x1 : x2 + 1] = True
                    best = max(best, (drawn & other).sum() / (drawn | other).sum())
            for percent, counts in right.items():
                counts[t] += best >= int(percent) / 100
    return {percent: [count * 100 / len(boxes) for count in counts] for percent, counts in right.items()}


@pytest.mark.parametrize("multi_contour", [False, True])
def test_equals_the_slow_reference(split: Split, multi_contour: bool) -> None:
    interval = 0.05
    curves = reference(split, interval, multi_contour=multi_contour)
    got = score_maps(*split, multi_contour=multi_contour, interval=interval)
    assert got.maxboxacc == {percent: max(curve) for percent, curve in curves.items()}
    first = {percent: curve.index(max(curve)) * interval for percent, curve in curves.items()}
    assert got.best_threshold == pytest.approx(first, abs=1e-12)
    assert got.mean == pytest.approx(sum(got.maxboxacc.values()) / 3)
    for i in (0, 7, 19):
        fixed = score_maps(*split, multi_contour=multi_contour, interval=interval, threshold=i * interval)
        assert fixed.accuracy == {percent: curve[i] for percent, curve in curves.items()}
        assert fixed.maxboxacc == got.maxboxacc


# What clovaai/wsolevaluation at commit b98c7d1 (BoxEvaluator.compute) returns for `made`: contours, interval -> figures
GOLDEN: dict[tuple[bool, float], list[float]] = {
    (False, 0.001): [80.0, 60.0, 60.0, 66.66666666666667],
    (True, 0.01): [80.0, 66.66666666666667, 66.66666666666667, 71.11111111111113],
    (True, 0.3): [80.0, 60.0, 60.0, 66.66666666666667],
}


@pytest.mark.parametrize(("multi_contour", "interval"), GOLDEN)
def test_equals_wsolevaluation_to_the_last_digit(split: Split, multi_contour: bool, interval: float) -> None:
    got = score_maps(*split, multi_contour=multi_contour, interval=interval)
    assert [*got.maxboxacc.values(), got.mean] == GOLDEN[multi_contour, interval]


def test_contours_by_hand() -> None:
    ring = np.zeros((10, 12), bool)
    ring[1:9, 2:10] = True
    ring[3:6, 4:8] = False
    ring[9, 11] = True
    # the right and lower ends are one past the last pixel, and no further than the map; a hole's contour runs around it
    boxes, largest = contour_boxes(ring)
    assert boxes[largest].tolist() == [2, 1, 10, 9]
    assert sorted(boxes.tolist()) == [[2, 1, 10, 9], [3, 2, 9, 7], [11, 9, 11, 9]]
    assert contour_boxes(np.zeros((5, 5), bool))[0].tolist() == [[0, 0, 0, 0]]


def test_ground_truth_is_truncated_in_the_frame() -> None:
    assert in_frame(np.array([[1, 2, 99, 49], [0, 0, 0, 0]]), (100, 50)).tolist() == [[2, 8, 221, 219], [0, 0, 0, 0]]


def test_maps_of_another_size_are_prepared_and_counted(split: Split, tmp_path: Path) -> None:
    """As wsolevaluation's inference prepares a network's output: bicubic to 224 px, then least 0 and largest 1."""
    rng = np.random.default_rng(1)
    raw, ready = tmp_path / "raw", tmp_path / "ready"
    for image_id in (split[1] / "image_ids.txt").read_text().split():
        output = rng.normal(size=tuple(rng.integers(1, 40, 2)))
        resized = cv2.resize(output, (224, 224), interpolation=cv2.INTER_CUBIC)
        span = resized.max() - resized.min()
        save(raw, image_id, output)
        save(ready, image_id, (resized - resized.min()) / (span or 1))
    a, b = score_maps(raw, split[1], interval=0.02), score_maps(ready, split[1], interval=0.02)
    assert (a.maxboxacc, a.best_threshold) == (b.maxboxacc, b.best_threshold)
    assert (a.counted["resized"], b.counted["resized"]) == (15, 0)
    assert "15 score maps of another size than 224 x 224 were resized" in a.warnings()[0]


def test_a_map_of_the_frames_size_is_not_stretched(tmp_path: Path) -> None:
    scoremap = np.full((FRAME, FRAME), 0.2, np.float32)
    assert read_map(save(tmp_path, "a", scoremap)).scoremap.max() == np.float32(0.2)
    fortran = np.asfortranarray(np.arange(FRAME**2).reshape(FRAME, FRAME) / FRAME**2)
    assert (read_map(save(tmp_path, "b", fortran)).scoremap == fortran).all()


# --- the command


def mistake(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a wrong command is answered with."""
    capsys.readouterr()
    assert main(["score", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.replace("\r", "\n").split("\n") if line.strip() and "img/s" not in line]
    assert len(lines) == 1, err
    assert lines[0].startswith("lchp: error: ")
    assert not out
    return lines[0]


def on(split: Split) -> list[object]:
    maps, lists = split
    return ["--scoremaps", maps, "--metadata", lists.parents[1], "--dataset", "ILSVRC", "--split", "val"]


def test_command_prints_oracles_as_such_and_writes_json(split: Split, tmp_path: Path, capsys) -> None:
    save(split[0], "other/split.jpeg", np.zeros((FRAME, FRAME)))
    file = tmp_path / "score.json"
    flags = ["--interval", 0.02, "--threshold", 0.35, "--json", file]
    try:
        assert main(["score", *map(str, [*on(split), *flags])]) == 0
    finally:
        (split[0] / "other/split.jpeg.npy").unlink()
    out, err = capsys.readouterr()
    assert "MaxBoxAcc, % (oracle)" in out
    assert "best threshold (oracle)" in out
    assert "at threshold 0.35, %" in out
    assert "train-fullsup" in out
    assert "images/s" in out
    assert "lchp: 3 score maps are constant" in err
    assert "lchp: 1 score maps in the folder belong to no image of the split" in err
    record = json.loads(file.read_text())
    want = score_maps(*split, interval=0.02, threshold=0.35)
    assert record["maxboxacc"] == want.maxboxacc
    assert list(record["maxboxacc"]) == list(record["best_threshold"]) == ["30", "50", "70"]
    assert record["mean"] == want.mean
    assert (record["split"], record["multi_contour"], record["interval"]) == ("val", False, 0.02)
    assert record["best_threshold"] == want.best_threshold
    assert record["best_threshold_is"].startswith("an oracle")
    assert want.accuracy is not None
    assert record["at_threshold"]["50"] == want.accuracy["50"]
    assert record["warnings"] == {"resized": 0, "constant": 3, "unknown": 1}


def archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(3))


BAD_MAPS = {
    "is NaN": (lambda p: np.save(p, np.where(np.eye(FRAME), np.nan, 0.5)), "224 of 50176 values are NaN or infinite"),
    "is infinite": (lambda p: np.save(p, np.full((4, 4), np.inf)), "16 of 16 values are NaN or infinite"),
    "has a third axis": (lambda p: np.save(p, np.zeros((1, 4, 4))), "shape 1 x 4 x 4; expected H x W"),
    "is empty": (lambda p: np.save(p, np.zeros((0, 4))), ""),
    "is one number": (lambda p: np.save(p, np.float64(1)), ""),
    "is uint8": (lambda p: np.save(p, np.zeros((4, 4), np.uint8)), "dtype uint8; expected floats"),
    "is complex": (lambda p: np.save(p, np.zeros((4, 4), complex)), "dtype complex128; expected floats"),
    "is pickled": (lambda p: np.save(p, np.array([{}, 1]), allow_pickle=True), "not a whole .npy array of numbers"),
    "is above 1": (
        lambda p: np.save(p, np.full((FRAME, FRAME), 1.5)),
        "values from 1.5 to 1.5; a map of 224 x 224 must",
    ),
    "is below 0": (
        lambda p: np.save(p, np.eye(FRAME) - 1),
        "values from -1 to 0; a map of 224 x 224 must lie in [0, 1]",
    ),
    "is cut off": (lambda p: p.write_bytes(p.read_bytes()[:1000]), "not a whole .npy array of numbers"),
    "is no array": (lambda p: p.write_bytes(b"hello"), "not a whole .npy array of numbers"),
    "has no bytes": (lambda p: p.write_bytes(b""), "not a whole .npy array of numbers"),
    "is an archive": (archive, "an archive of arrays"),
    "is missing": (lambda p: p.unlink(), "no such score map; 1 of 15 are missing"),
}


@pytest.mark.parametrize("name", BAD_MAPS)
def test_a_faulty_map_is_one_line(name: str, tmp_path: Path, capsys) -> None:
    spoil, message = BAD_MAPS[name]
    split = made(tmp_path)
    path = split[0] / "val2/0/1.jpeg.npy"
    spoil(path)
    assert f"{path}: {message}" in mistake(capsys, *on(split), "--interval", 0.5)


BAD_LISTS = {
    "box outside": (
        "localization.txt",
        "val2/0/0.jpeg,",
        "val2/0/0.jpeg,0,0,9999,1\nval2/0/0.jpeg,",
        "outside of the image",
    ),
    "unknown id": (
        "localization.txt",
        "val2/0/0.jpeg",
        "val2/0/9.jpeg",
        "image 'val2/0/9.jpeg' is not in image_ids.txt",
    ),
    "duplicate id": (
        "image_ids.txt",
        "val2/0/0.jpeg",
        "val2/0/1.jpeg\nval2/0/0.jpeg",
        "duplicate image 'val2/0/1.jpeg'",
    ),
    "no size": ("image_sizes.txt", "val2/0/0.jpeg", "", "image_sizes.txt:1:"),
    "path outside": ("image_ids.txt", "val2/0/0.jpeg", "../secret", "image '../secret' is not a path inside"),
}


@pytest.mark.parametrize("name", BAD_LISTS)
def test_faulty_lists_are_one_line(name: str, tmp_path: Path, capsys) -> None:
    file, old, new, message = BAD_LISTS[name]
    split = made(tmp_path)
    text = (split[1] / file).read_text()
    assert old in text
    (split[1] / file).write_text(text.replace(old, new, 1))
    assert message in mistake(capsys, *on(split))


def test_lists_without_images_or_missing(tmp_path: Path, capsys) -> None:
    split = made(tmp_path)
    for file in split[1].iterdir():
        file.write_text("")
    assert "image_ids.txt: lists no image" in mistake(capsys, *on(split))
    assert "image_ids.txt: lists no image" in mistake(
        capsys, "--boxes", text(tmp_path / "p.csv", PREDICTIONS), *on(split)[2:]
    )
    (split[1] / "image_sizes.txt").unlink()
    assert "image_sizes.txt: cannot be read" in mistake(capsys, *on(split))


def test_options_that_do_not_fit(split: Split, tmp_path: Path, capsys) -> None:
    assert "--scoremaps DIR or --boxes FILE" in mistake(capsys)
    assert "--scoremaps DIR or --boxes FILE" in mistake(capsys, *on(split), "--boxes", "a.csv")
    assert "--metadata DIR and --dataset NAME" in mistake(capsys, "--scoremaps", split[0])
    assert "no folder CUB/test in it" in mistake(
        capsys, "--scoremaps", split[0], "--metadata", split[1].parents[1], "--dataset", "CUB"
    )
    assert "interval = 0: expected a step" in mistake(capsys, *on(split), "--interval", 0)
    assert "threshold = 1.5: expected a share" in mistake(capsys, *on(split), "--threshold", 1.5)
    assert "--masks does not go with a data set with boxes" in mistake(capsys, *on(split), "--masks", tmp_path)
    assert "--annotations does not go with --scoremaps" in mistake(capsys, *on(split), "--annotations", "a.csv")
    assert "--threshold does not go with --boxes" in mistake(capsys, "--boxes", "a.csv", "--threshold", 0.5)
    assert "--interval does not go with --boxes" in mistake(capsys, "--boxes", "a.csv", "--interval", 0.5)
    of_file = ("--boxes", "a.csv", "--annotations", "b.csv")
    assert "--split does not go with --annotations" in mistake(capsys, *of_file, "--split", "val")
    assert "--boxes needs --annotations FILE, or --metadata" in mistake(capsys, "--boxes", "a.csv")
    assert "no such folder of score maps" in mistake(capsys, *on((tmp_path / "none", split[1])))


# --- PxAP


def masks(root: Path, shapes: list[tuple[list[np.ndarray], np.ndarray]]) -> tuple[Path, Path]:
    """The lists and the masks of images 0.jpg, 1.jpg, ...: per image the masks of its objects, and what to ignore."""
    lists = root / "metadata" / "OpenImages" / "test"
    lists.mkdir(parents=True)
    (root / "masks").mkdir()
    (lists / "image_ids.txt").write_text("".join(f"{i}.jpg\n" for i in range(len(shapes))))
    lines = []
    for i, (objects, ignore) in enumerate(shapes):
        cv2.imwrite(str(root / "masks" / f"{i}_ignore.png"), ignore)
        for k, mask in enumerate(objects):
            cv2.imwrite(str(root / "masks" / f"{i}_{k}.png"), mask)
            lines.append(f"{i}.jpg,{i}_{k}.png,{'' if k else f'{i}_ignore.png'}\n")
    (lists / "localization.txt").write_text("".join(lines))
    return lists, root / "masks"


def drawn(height: int, width: int, left: int, top: int, right: int, bottom: int) -> np.ndarray:
    out = np.zeros((height, width), np.uint8)
    out[top:bottom, left:right] = 255
    return out


@pytest.fixture
def two_objects(tmp_path: Path) -> tuple[Path, Path]:
    """One image of 224 x 112 px (w x h) with two objects; what is to be ignored covers half of the second."""
    objects = [drawn(112, 224, 0, 0, 56, 112), drawn(112, 224, 100, 0, 120, 56)]
    return masks(tmp_path, [(objects, drawn(112, 224, 110, 0, 150, 112))])


def test_pxap_by_hand(two_objects: tuple[Path, Path], tmp_path: Path) -> None:
    lists, folder = two_objects
    foreground = np.zeros((FRAME, FRAME), bool)
    foreground[:, :56] = foreground[:112, 100:120] = True
    ignored = np.zeros_like(foreground)
    ignored[:, 110:150] = True
    ignored &= ~foreground  # an object counts although a region to be ignored covers it
    for other in (0.0, 1.0):
        save(tmp_path / "maps", "0.jpg", np.where(ignored, other, foreground.astype(float)))
        assert score_masks(tmp_path / "maps", lists, folder).pxap == 100
    save(tmp_path / "maps", "0.jpg", np.full((FRAME, FRAME), 0.5))
    share = 100 * foreground.sum() / (~ignored).sum()
    assert score_masks(tmp_path / "maps", lists, folder).pxap == pytest.approx(share)


def test_pxap_from_the_definition() -> None:
    """Every bin is a threshold: precision at it, times the recall that it adds."""
    rng = np.random.default_rng(0)
    inside, outside = rng.integers(0, 5, (2, 12)).astype(float)
    inside[3] = outside[3] = inside[-1] = outside[-1] = 0
    want = 0.0
    for i in range(11):
        true, false = inside[i:].sum(), outside[i:].sum()
        want += inside[i] / inside.sum() * true / max(true + false, 1)
    assert average_precision(inside, outside) == pytest.approx(100 * want)


# What clovaai/wsolevaluation at commit b98c7d1 (MaskEvaluator.compute) returns for the folder of the test below
PXAP: dict[float, float] = {0.001: 16.71895746864721, 0.05: 16.67519408201579, 0.3: 16.55394776294451}


@pytest.mark.parametrize("interval", PXAP)
def test_pxap_equals_wsolevaluation_to_the_last_digit(interval: float, tmp_path: Path) -> None:
    assert score_masks(*many_masks(tmp_path), interval=interval).pxap == PXAP[interval]


def many_masks(root: Path) -> tuple[Path, Path, Path]:
    """Maps, lists and masks of nine images of any size."""
    rng = np.random.default_rng(3)
    shapes = []
    for i in range(9):
        h, w = (int(v) for v in rng.integers(30, 400, 2))
        objects = [
            drawn(h, w, *(int(v) for v in (w * a, h * b, w * (a + 0.4), h * (b + 0.3))))
            for a, b in rng.random((i % 3 + 1, 2))
        ]
        shapes.append((objects, drawn(h, w, w // 3, h // 4, w // 2, h)))
        save(root / "maps", f"{i}.jpg", blocks(rng, 16, 100))
    return root / "maps", *masks(root, shapes)


def test_faulty_masks_are_one_line(two_objects: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    lists, folder = two_objects
    save(tmp_path / "maps", "0.jpg", np.eye(FRAME))
    flags = ["--scoremaps", tmp_path / "maps", "--metadata", lists.parents[1], "--dataset", "OpenImages"]
    assert "needs --masks DIR" in mistake(capsys, *flags)
    assert "--threshold does not go with" in mistake(capsys, *flags, "--masks", folder, "--threshold", 0.5)
    assert main(["score", *map(str, [*flags, "--masks", folder, "--json", tmp_path / "a.json"])]) == 0
    assert "PxAP: " in capsys.readouterr().out
    assert 0 < json.loads((tmp_path / "a.json").read_text())["pxap"] < 100
    (folder / "0_1.png").write_bytes(b"no picture")
    assert "0_1.png: the mask cannot be read as an image" in mistake(capsys, *flags, "--masks", folder)
    (folder / "0_1.png").unlink()
    assert "0_1.png: no such mask" in mistake(capsys, *flags, "--masks", folder)
    for k in range(2):
        cv2.imwrite(str(folder / f"0_{k}.png"), np.zeros((9, 9), np.uint8))
    assert "no mask has any foreground" in mistake(capsys, *flags, "--masks", folder)
    (lists / "localization.txt").write_text("0.jpg,0_0.png,\n")
    assert "localization.txt:1: expected the mask of what to ignore on the first" in mistake(
        capsys, *flags, "--masks", folder
    )


# --- boxes

ANNOTATIONS = "image_id,x1,y1,x2,y2,label\na,0,0,10,10,3\na,50,50,90,90,3\nb,0,0,10,10,4\nc,0,0,10,10,4\n"
# a: right by the second box, class second; b: IoU 0.5, class first; c: IoU 0.4, class first
PREDICTIONS = (
    "image_id,x1,y1,x2,y2,top1,top2,top3,top4,top5\n"
    "a,50,50,90,90,1,3,2,0,4\nb,0,0,10,5,4,3,2,1,0\nc,0,0,10,4,4,3,2,1,0\nz,0,0,1,1,0,1,2,3,4\n"
)


def text(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def test_boxes_by_hand(tmp_path: Path, capsys) -> None:
    predictions, annotations = text(tmp_path / "p.csv", PREDICTIONS), text(tmp_path / "a.csv", ANNOTATIONS)
    got = score_boxes(predictions, annotations)
    micro = {"gt_known": 200 / 3, "top1_loc": 100 / 3, "top5_loc": 200 / 3, "mean_iou": 190 / 3}
    macro = {"gt_known": 75.0, "top1_loc": 25.0, "top5_loc": 75.0, "mean_iou": 72.5}
    assert got.micro == pytest.approx(micro)
    assert got.macro == pytest.approx(macro)
    assert got.counted == {"outside": 0, "empty": 0, "unknown": 1}
    flags = ["--boxes", predictions, "--annotations", annotations, "--json", tmp_path / "s.json"]
    assert main(["score", *map(str, flags)]) == 0
    out, err = capsys.readouterr()
    assert "GT-Known" in out
    assert "over classes (macro)" in out
    assert "1 boxes are of images without annotations" in err
    assert json.loads((tmp_path / "s.json").read_text())["micro"] == got.micro
    for file in (predictions, annotations):
        pd.read_csv(file).to_parquet(file.with_suffix(".parquet"))
    again = score_boxes(predictions.with_suffix(".parquet"), annotations.with_suffix(".parquet"))
    assert again == got


def test_boxes_are_not_taken_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million took minutes: only a faulty table is looked at row by row. Several boxes, in any order, as by hand."""
    rng = np.random.default_rng(0)
    low = rng.integers(0, 50, (300, 2))
    truth = pd.DataFrame(
        np.concatenate([low, low + rng.integers(1, 50, (300, 2))], 1), columns=["x1", "y1", "x2", "y2"]
    )
    truth = truth.assign(image_id=[f"i{k:03d}" for k in rng.permutation(np.arange(300) % 100)])
    truth["label"] = truth["image_id"].str[-1]
    truth.to_csv(tmp_path / "a.csv", index=False)
    guess = truth.groupby("image_id").first().reset_index().sample(frac=1, random_state=0)
    guess[["x2", "top1"]] = np.stack([guess["x2"] + 9, rng.integers(0, 10, 100)], 1)
    guess.drop(columns="label").to_csv(tmp_path / "p.csv", index=False)
    for name in ("data.box_tables.parse_box", "evaluation.scoring.boxes.checked_box"):
        monkeypatch.setattr(f"lchp.{name}", None)
    got = score_boxes(tmp_path / "p.csv", tmp_path / "a.csv")
    best, known, top1 = {}, {}, {}
    for row in guess.to_dict("records"):
        image_id, corners = row["image_id"], ["x1", "y1", "x2", "y2"]
        box = np.array([row[c] for c in corners], np.float64)
        boxes = truth.loc[truth["image_id"] == image_id, corners].to_numpy(np.float64)
        best[image_id] = max(float(iou(box, one)) for one in boxes)
        known[image_id] = best[image_id] >= 0.5
        top1[image_id] = known[image_id] and str(row["top1"]) == image_id[-1]
    values = {"gt_known": known, "mean_iou": best, "top1_loc": top1}
    assert got.micro == pytest.approx({n: 100 * np.mean(list(v.values())) for n, v in values.items()})
    of_class = {n: [np.mean([x for i, x in v.items() if i[-1] == c]) for c in "0123456789"] for n, v in values.items()}
    assert got.macro == pytest.approx({n: 100 * np.mean(each) for n, each in of_class.items()})


@pytest.mark.parametrize(
    "kind", ["named", "image", "without a name", "categories", "of two", "without metadata", "and a column"]
)
def test_a_key_column_that_became_the_index_of_a_parquet_file(tmp_path: Path, kind: str) -> None:
    files = [text(tmp_path / "p.csv", PREDICTIONS), text(tmp_path / "a.csv", ANNOTATIONS)]
    made = [file.with_suffix(".parquet") for file in files]
    for file, parquet in zip(files, made, strict=True):
        table = pd.read_csv(file).set_index(["image_id", "y2"] if kind == "of two" else "image_id")
        if kind in ("without a name", "without metadata"):
            table.index.name = None
        elif kind == "image":
            table.index.name = "image"
        elif kind == "categories":
            table.index = pd.CategoricalIndex(table.index, name=None)
        elif kind == "and a column":
            table = table.assign(image_id=table.index).set_index(pd.Index(["row"] * len(table)))
        table.to_parquet(parquet)
        if kind == "without metadata":
            pq.write_table(pq.read_table(parquet).replace_schema_metadata({}), parquet)
    assert score_boxes(*made) == score_boxes(*files)


def test_row_numbers_are_no_image_ids(tmp_path: Path) -> None:
    predictions, annotations = text(tmp_path / "p.csv", PREDICTIONS), text(tmp_path / "a.csv", ANNOTATIONS)
    table = pd.read_csv(predictions).drop(columns="image_id")
    table.iloc[::-1].to_parquet(predictions.with_suffix(".parquet"))
    with pytest.raises(DataError, match="lacks the column image_id"):
        score_boxes(predictions.with_suffix(".parquet"), annotations)


def test_boxes_without_classes_or_labels(tmp_path: Path) -> None:
    bare = text(tmp_path / "p.csv", "".join(",".join(row.split(",")[:5]) + "\n" for row in PREDICTIONS.split()))
    labelled = score_boxes(bare, text(tmp_path / "a.csv", ANNOTATIONS))
    assert list(labelled.micro) == ["gt_known", "mean_iou"]
    assert labelled.macro == pytest.approx({"gt_known": 75.0, "mean_iou": 72.5})
    unlabelled = text(tmp_path / "u.csv", "".join(row.rpartition(",")[0] + "\n" for row in ANNOTATIONS.split()))
    got = score_boxes(text(tmp_path / "q.csv", PREDICTIONS), unlabelled)
    assert (list(got.micro), got.macro) == (["gt_known", "mean_iou"], None)
    assert "have no column label" in got.warnings()[-1]


def test_output_of_predict_and_a_folders_boxes_are_understood(tmp_path: Path) -> None:
    """Their columns are image and class_id, and there is one class: no Top-5."""
    predicted = (
        "image,width,height,class_id,class_name,score,x1,y1,x2,y2,confidence\n\na/1.jpg,40,40,7,x,0.5,1,1,9,9,1\n"
    )
    boxes = "image,x1,y1,x2,y2,label\na/1.jpg,1,1,9,9,7\n"
    got = score_boxes(text(tmp_path / "p.csv", predicted), text(tmp_path / "boxes.csv", boxes))
    assert got.micro == {"gt_known": 100, "top1_loc": 100, "mean_iou": 100}


def test_boxes_against_a_split_of_wsolevaluation(tmp_path: Path, capsys) -> None:
    """Its boxes are inclusive; the image sizes say which predictions reach out of theirs."""
    lists = write_lists(
        tmp_path / "metadata" / "CUB" / "test",
        {"a.jpg": 0, "b.jpg": 1},
        {"a.jpg": (20, 30), "b.jpg": (20, 30)},
        {"a.jpg": [(0, 0, 9, 9)], "b.jpg": [(5, 5, 9, 9), (10, 10, 19, 29)]},
    )
    file = text(tmp_path / "p.csv", "image_id,x1,y1,x2,y2,top1\na.jpg,0,0,10,10,0\nb.jpg,10,10,20,35,0\n")
    got = score_boxes(file, lists)
    assert got.micro == pytest.approx({"gt_known": 100, "top1_loc": 50, "mean_iou": 90})
    assert got.counted == {"outside": 1, "empty": 0, "unknown": 0}
    assert main(["score", "--boxes", str(file), "--metadata", str(tmp_path / "metadata"), "--dataset", "CUB"]) == 0
    out, err = capsys.readouterr()
    assert "90.00" in out
    assert "1 boxes reach out of their image" in err


def test_a_box_without_area_is_counted(tmp_path: Path) -> None:
    predictions = text(tmp_path / "p.csv", PREDICTIONS.replace("b,0,0,10,5", "b,10,5,0,0"))
    got = score_boxes(predictions, text(tmp_path / "a.csv", ANNOTATIONS))
    assert got.counted["empty"] == 1
    assert got.micro["gt_known"] == pytest.approx(100 / 3)


BAD_BOXES = [
    # in which file, what is replaced, by what, the message
    ("p.csv", "b,0,0,10,5,4,3,2,1,0\n", "", "p.csv: no box for image 'b'; 1 of 3 annotated images have none"),
    ("p.csv", "c,0,0", "b,0,0", "p.csv:4: image 'b' has a box already"),
    ("p.csv", "x1", "y1", "is there twice"),
    ("p.csv", "1,3,2,0,4", "1,3,2,,4", "p.csv:2: one of image_id, top1, top2, top3, top4, top5 is empty"),
    ("p.csv", "b,0,0", "b,,0", "p.csv:3: box ' 0 10 5' is not numeric"),
    ("p.csv", "b,0,0", "b,nan,0", "p.csv:3: box nan 0 10 5 is not finite"),
    ("p.csv", "b,0,0,10,5", "b,0", "p.csv:3: 7 values; the first line names 10 columns"),
    ("p.csv", ",x2,", ",right,", "p.csv: lacks the column x2"),
    ("p.csv", "top1", "best", "p.csv: has the column top5, but not all of top1, top2, top3, top4"),
    ("p.csv", PREDICTIONS, "", "p.csv: no rows"),
    ("p.csv", PREDICTIONS, "image_id,x1,y1,x2,y2\n", "p.csv: no rows"),
    ("p.csv", PREDICTIONS, "image_id,frame,lchp_r_box\n", "p.csv: the record of a run; lchp evaluate --run"),
    (
        "p.csv",
        PREDICTIONS,
        "image_id,x1,y1,x2,y2\na,0,0,1,1\nb,0,0,1,1\nc,0,0,1,.5\n",
        "expected px of the original image",
    ),
    ("a.csv", ",3\n", ",cat\n", "p.csv: "),
    ("a.csv", "90,90,3", "90,90,5", "a.csv:3: image 'a' has another label above: '3'"),
    ("a.csv", "b,0,0,10", "b,12,0,10", "a.csv:4: box 12 0 10 10 (x1 y1 x2 y2) has zero or negative size"),
    ("a.csv", "b,0,0", "b,-9,0", "a.csv:4: box -9 0 10 10 (x1 y1 x2 y2) lies outside of the image"),
]


@pytest.mark.parametrize(("file", "old", "new", "message"), BAD_BOXES)
def test_faulty_boxes_are_one_line(file: str, old: str, new: str, message: str, tmp_path: Path, capsys) -> None:
    contents = {"p.csv": PREDICTIONS, "a.csv": ANNOTATIONS}
    assert old in contents[file]
    if message == "p.csv: ":  # labels as names: none of the predicted numbers is one
        contents["a.csv"] = ANNOTATIONS.replace(",4\n", ",dog\n")
        message = "p.csv: no predicted class is the label of any image ('1', ... and 'cat', ...)"
    contents[file] = contents[file].replace(old, new)
    for name, content in contents.items():
        text(tmp_path / name, content)
    assert message in mistake(capsys, "--boxes", tmp_path / "p.csv", "--annotations", tmp_path / "a.csv")


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    annotations = text(tmp_path / "a.csv", ANNOTATIONS)
    for name, message in (("p.parquet", "not a table"), ("p.txt", r"expected a \.csv or \.parquet file")):
        with pytest.raises(DataError, match=message):
            score_boxes(text(tmp_path / name, "PAR1 and so on"), annotations)
    with pytest.raises(DataError, match=r"none\.csv: cannot be read"):
        score_boxes(tmp_path / "none.csv", annotations)
