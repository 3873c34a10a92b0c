"""The data sets of wsolevaluation: made-up clones, spoilt in one way each, and CUB's real images in its layout."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from wsol_folder import write_clone, write_lists

from lchp.boxes import iou
from lchp.config import DataConfig
from lchp.data import DATASETS, cub, wsol
from lchp.data.base import DataSet
from lchp.data.check import check
from lchp.data.images import open_dataset
from lchp.errors import DataError


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    return write_clone(tmp_path / "wsolevaluation")


def lists(clone: Path, split: str = "test") -> Path:
    return clone / "metadata" / "CUB" / split


def found(dataset: DataSet) -> list[str]:
    return [str(p) for p in dataset.problems]


def test_a_clone_and_its_metadata_are_the_same_data_set(clone: Path) -> None:
    dataset = wsol.load(clone)
    assert found(dataset) == []
    assert dataset.name == "wsol"
    assert dataset.class_names == ("001.Red", "002.Blue")
    assert (len(dataset.train), len(dataset.test)) == (12, 6)
    assert dataset.test.image_ids[:2] == ("001.Red/test0.jpg", "001.Red/test1.jpg")
    assert dataset.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.train.boxes is not None
    assert not dataset.test.exif
    assert check(dataset, workers=1) == []
    named = wsol.load(clone / "metadata" / "CUB")
    assert named.test.image_ids == dataset.test.image_ids
    assert named.test.paths is not None
    assert named.test.paths[0].samefile(clone / "dataset" / "CUB" / "001.Red" / "test0.jpg")


def test_boxes_become_exclusive(clone: Path) -> None:
    """A square of 20 x 16 px is listed by its last pixels."""
    dataset = wsol.load(clone)
    assert dataset.test.boxes is not None
    assert dataset.test.paths is not None
    for boxes, path in zip(dataset.test.boxes, dataset.test.paths, strict=True):
        assert boxes.dtype == np.float32
        x1, y1, x2, y2 = boxes[0].astype(int)
        assert (x2 - x1, y2 - y1) == (20, 16)
        pixels = np.asarray(Image.open(path)).astype(int)
        inside = np.abs(pixels[y1:y2, x1:x2, 0] - pixels[y1:y2, x1:x2, 2]).min()
        assert inside > 100  # red or blue up to the last row and column


def test_the_fully_supervised_split_is_named_in_the_data_set(clone: Path) -> None:
    """What is evaluated on train-fullsup says so in its name, and is trained on the same images."""
    config = DataConfig(root=str(clone))
    test, fullsup = DATASETS["wsol"].load(config), DATASETS["wsol_fullsup"].load(config)
    assert fullsup.name == "wsol_fullsup"
    assert fullsup.train.image_ids == test.train.image_ids
    assert fullsup.test.image_ids == ("001.Red/val0.jpg", "001.Red/val1.jpg", "002.Blue/val0.jpg", "002.Blue/val1.jpg")


def test_training_lists_need_no_boxes(clone: Path) -> None:
    for name in ("localization.txt", "image_sizes.txt"):
        (lists(clone, "train") / name).unlink()
    dataset = wsol.load(clone)
    assert found(dataset) == []
    assert dataset.train.boxes is None
    assert dataset.test.boxes is not None


def test_open_images_have_masks_and_no_boxes(tmp_path: Path) -> None:
    clone = write_clone(tmp_path, "OpenImages")
    for split in ("train", "test"):
        folder = clone / "metadata" / "OpenImages" / split
        (folder / "image_sizes.txt").unlink()
        ids = (folder / "image_ids.txt").read_text().split()
        (folder / "localization.txt").write_text("".join(f"{i},{i}_m.png,{i}_ignore.png\n" for i in ids))
    dataset = wsol.load(clone)
    assert found(dataset) == []
    assert (len(dataset.train), len(dataset.test), dataset.test.boxes) == (12, 6, None)


def test_class_names_fall_back_to_numbers(clone: Path) -> None:
    """Where the folders of the training images do not tell the classes apart."""
    file = lists(clone, "train") / "class_labels.txt"
    file.write_text(file.read_text().replace("002.Blue/train0.jpg,1", "002.Blue/train0.jpg,0"))
    assert wsol.load(clone).class_names == ("0", "1")


SPOIL = [
    # file, what is replaced, by what, the message, whether the image is lost
    ("image_ids.txt", "001.Red/test0.jpg\n", "001.Red/test0.jpg\n001.Red/test0.jpg\n", ":2: duplicate image", False),
    (
        "image_ids.txt",
        "001.Red/test1.jpg\n",
        "001.Red/test1.jpg\n../up.jpg\n",
        ":3: image '../up.jpg' is not a path",
        False,
    ),
    (
        "image_ids.txt",
        "001.Red/test1.jpg\n",
        "001.Red/test1.jpg\n/up.jpg\n",
        ":3: image '/up.jpg' is not a path",
        False,
    ),
    ("class_labels.txt", "test0.jpg,0\n", "test0.jpg,red\n", ":1: class 'red' is not a number", True),
    ("class_labels.txt", "test0.jpg,0\n", "test0.jpg\n", "class_labels.txt:1: expected an image and 1 values", True),
    ("class_labels.txt", "001.Red/test0.jpg,0\n", "", "class_labels.txt: no line for image '001.Red/test0.jpg'", True),
    ("image_sizes.txt", "test0.jpg,48,40", "test0.jpg,48,tall", ":1: expected a width and a height in px", False),
    ("image_sizes.txt", "test0.jpg,48,40", "test0.jpg,12,40", "lies outside of the image of 12 x 40", True),
    (
        "localization.txt",
        "001.Red/test0.jpg",
        "001.Red/none.jpg",
        "image '001.Red/none.jpg' is not in image_ids.txt",
        True,
    ),
    ("localization.txt", "test0.jpg,", "test0.jpg,nan,1,9,9\n001.Red/test1.jpg,", "is not finite", True),
    ("localization.txt", "test0.jpg,", "test0.jpg,1.5,1,9,9\n001.Red/test1.jpg,", "is not in whole px", True),
    ("localization.txt", "test0.jpg,", "test0.jpg,9,9,7,9\n001.Red/test1.jpg,", "zero or negative size", True),
]


@pytest.mark.parametrize(("file", "old", "new", "message", "lost"), SPOIL)
def test_spoilt(clone: Path, file: str, old: str, new: str, message: str, lost: bool) -> None:
    path = lists(clone) / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    dataset = wsol.load(clone)
    assert message in "\n".join(found(dataset))
    assert all(line.startswith(str(clone)) for line in found(dataset))
    assert ("001.Red/test0.jpg" in dataset.test.image_ids) is not lost
    assert len(dataset.test) == 6 - lost


def test_an_image_that_is_missing_and_one_that_is_broken(clone: Path) -> None:
    folder = clone / "dataset" / "CUB" / "001.Red"
    (folder / "test0.jpg").unlink()
    (folder / "test1.jpg").write_bytes((folder / "test1.jpg").read_bytes()[:200])
    problems = [str(p) for p in check(wsol.load(clone), workers=1)]
    assert len(problems) == 2
    assert "image_ids.txt:1: image '001.Red/test0.jpg' does not exist in" in problems[0]
    assert "test1.jpg" in problems[1]


def test_wrong_layouts_say_what_is_expected(clone: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no metadata/NAME/train/image_ids\.txt; expected a clone"):
        wsol.load(tmp_path / "empty")
    write_clone(clone, "ILSVRC", {"train": 1, "test": 1})
    with pytest.raises(DataError, match=r"images of CUB, ILSVRC; name one: --data\.root .*metadata/CUB"):
        wsol.load(clone)
    assert len(wsol.load(clone / "metadata" / "ILSVRC").test) == 2
    with pytest.raises(DataError, match=r"ILSVRC/val/image_ids\.txt: no such file"):
        wsol.load(clone / "metadata" / "ILSVRC", "val")
    (clone / "dataset").rename(clone / "elsewhere")
    with pytest.raises(DataError, match=r"lists of CUB, ILSVRC, but no dataset/CUB"):
        wsol.load(clone)
    with pytest.raises(DataError, match="no such folder, where the images of"):
        wsol.load(clone / "metadata" / "CUB")


def test_real_birds_in_this_layout(cub50_root: Path, tmp_path: Path) -> None:
    """The lists as wsolevaluation wrote CUB's: x + width and y + height truncated, clipped to the last pixel."""
    want = cub.load(cub50_root)
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "CUB").symlink_to(cub50_root / "images")
    for name, split in (("train", want.train), ("test", want.test)):
        assert split.paths is not None
        assert split.boxes is not None
        labels, sizes, boxes = {}, {}, {}
        for path, label, box in zip(split.paths, split.labels, split.boxes, strict=True):
            image_id = path.relative_to(cub50_root / "images").as_posix()
            with Image.open(path) as image:
                w, h = image.size
            x1, y1, x2, y2 = (int(v) for v in box[0])
            labels[image_id], sizes[image_id] = int(label), (w, h)
            boxes[image_id] = [(x1, y1, min(x2, w - 1), min(y2, h - 1))]
        write_lists(tmp_path / "metadata" / "CUB" / name, labels, sizes, boxes)
    got = wsol.load(tmp_path)
    assert found(got) == []
    assert got.class_names == want.class_names
    for split, other in ((got.train, want.train), (got.test, want.test)):
        assert split.labels.tolist() == other.labels.tolist()
        assert split.boxes is not None
        assert other.boxes is not None
        each = iou(np.concatenate(split.boxes), np.concatenate(other.boxes))
        assert each.min() > 0.9
        assert each.mean() > 0.985


def swap_sizes(clone: Path, split: str) -> None:
    file = lists(clone, split) / "image_sizes.txt"
    file.write_text(file.read_text().replace(",48,40", ",40,48", 1))


@pytest.mark.parametrize("split", ["train", "test"])
def test_listed_sizes_are_held_against_the_files(clone: Path, split: str) -> None:
    """A map is laid over an image of the listed size: right maps score nothing where that is wrong."""
    swap_sizes(clone, split)
    image_id = f"001.Red/{split}0.jpg"
    said = f"{lists(clone, split)}/image_sizes.txt:1: image {image_id}: listed as 40 x 48, but the file has 48 x 40"
    assert said in [str(problem) for problem in check(wsol.load(clone))]
    config = DataConfig(name="wsol", root=str(clone), cache="off", resize=16, image_size=12)
    with pytest.raises(DataError) as error:
        open_dataset(wsol.load(clone), config, show_progress=False)
    assert said in str(error.value)
    kept, train, test = open_dataset(wsol.load(clone), replace(config, skip_bad=True), show_progress=False)
    assert len(train) == 12
    assert (image_id in kept.test.image_ids, len(test)) == (False, 6 - (split == "test"))
    assert (train.split.boxes is None) == (split == "train")


def test_names_that_look_the_same(clone: Path) -> None:
    """Lists in composed characters, files as macOS writes them."""
    images = clone / "dataset" / "CUB"
    (images / "001.Red").rename(images / "Cafe\u0301")
    (images / "Cafe\u0301" / "test0.jpg").rename(images / "Cafe\u0301" / "te\u0301st0.jpg")
    for file in (clone / "metadata").glob("CUB/*/*.txt"):
        text = file.read_text().replace("001.Red/test0", "001.Red/t\u00e9st0").replace("001.Red", "Caf\u00e9")
        file.write_text(text)
    dataset = wsol.load(clone)
    assert found(dataset) == []
    assert check(dataset) == []
    assert dataset.test.image_ids[0] == "Caf\u00e9/t\u00e9st0.jpg"
