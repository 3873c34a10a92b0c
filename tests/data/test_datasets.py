"""Loaders on the real samples, and on small made-up copies that are spoilt in one way each."""

import shutil
from collections.abc import Callable
from dataclasses import replace as replace_fields
from pathlib import Path

import numpy as np
import pytest
from layouts import annotation, make_cub, make_imagenet, make_tiny, picture, write
from PIL import Image

from lchp.config import DataConfig
from lchp.data import cub, fingerprint, folder, imagenet, load, tiny_imagenet, training_fingerprint
from lchp.data.base import DataSet, Split, lone_class
from lchp.data.check import check, summary
from lchp.errors import DataError


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def found(dataset: DataSet) -> list[str]:
    return [str(p) for p in dataset.problems]


def assert_sound(dataset: DataSet) -> None:
    """What every loader promises of its splits."""
    classes = len(dataset.class_names)
    assert len(set(dataset.class_names)) == classes
    assert set(dataset.train.labels.tolist()) == set(range(classes))
    for split in (dataset.train, dataset.test):
        assert split.labels.dtype == np.int64
        assert split.labels.shape == (len(split),)
        assert 0 <= split.labels.min() <= split.labels.max() < classes
        assert len(set(split.image_ids)) == len(split)
        assert split.paths is not None
        assert len(split.paths) == len(split)
        if split.boxes is not None:
            assert len(split.boxes) == len(split)
            for boxes in split.boxes:
                assert boxes.dtype == np.float32
                assert boxes.ndim == 2
                assert boxes.shape[1] == 4
                assert (boxes[:, 2:] > boxes[:, :2]).all()
                assert (boxes >= 0).all()


def assert_same_training_images(got: DataSet, want: DataSet) -> None:
    """One training box is unknown in `got`: that is reported, and nothing else differs."""
    assert want.train.boxes is not None
    assert len(got.problems) == 1
    assert got.train.boxes is None
    assert got.class_names == want.class_names
    assert got.train.image_ids == want.train.image_ids
    assert got.train.labels.tolist() == want.train.labels.tolist()
    assert got.train.paths == want.train.paths
    assert got.test.image_ids == want.test.image_ids
    assert got.test.boxes is not None
    assert training_fingerprint(got) == training_fingerprint(want)
    assert fingerprint(got) != fingerprint(want)


# --- real samples


def test_cub50(cub50_root: Path) -> None:
    dataset = cub.load(cub50_root)
    assert_sound(dataset)
    assert found(dataset) == []
    assert (len(dataset.train), len(dataset.test), len(dataset.class_names)) == (1500, 702, 50)
    assert dataset.class_names[0] == "001.Black_footed_Albatross"
    assert dataset.train.image_ids[:2] == ("2", "4")  # ids have gaps
    assert dataset.train.boxes is not None
    np.testing.assert_allclose(dataset.train.boxes[0], [[105.92, 22.86, 222.51, 224.0]], atol=1e-3)
    assert check(dataset) == []
    assert "1,500 images, 1,500 boxes; per class min / median / max: 30 / 30 / 30" in summary(dataset)


def test_tiny20(tiny20_root: Path) -> None:
    dataset = tiny_imagenet.load(tiny20_root)
    assert_sound(dataset)
    assert found(dataset) == []
    assert (len(dataset.train), len(dataset.test), len(dataset.class_names)) == (2000, 1000, 20)
    assert dataset.class_names[0] == "goldfish, Carassius auratus"
    assert dataset.test.image_ids[0] == "val_2"
    assert dataset.test.boxes is not None
    assert dataset.test.boxes[0].tolist() == [[4, 0, 61, 56]]  # 4 0 60 55 in the file, inclusive
    assert check(dataset) == []


def test_ilsvrc10(ilsvrc10_root: Path) -> None:
    dataset = imagenet.load(ilsvrc10_root)
    assert_sound(dataset)
    assert found(dataset) == []
    assert (len(dataset.train), len(dataset.test), len(dataset.class_names)) == (1000, 500, 10)
    assert dataset.class_names[0] == "tench, Tinca tinca"
    assert dataset.train.boxes is None
    assert dataset.test.boxes is not None
    assert sum(map(len, dataset.test.boxes)) == 813
    assert dataset.test.boxes[0].tolist() == [[78, 110, 224, 205], [106, 77, 224, 168]]
    assert check(dataset) == []
    assert "500 images, 813 boxes" in summary(dataset)


def test_ilsvrc10_in_torchvisions_layout(ilsvrc10_root: Path, tmp_path: Path) -> None:
    """Boxes and classes from the csv alone equal those of the XML; val/ may be sorted into classes."""
    want = imagenet.load(ilsvrc10_root).test
    (tmp_path / "train").symlink_to(ilsvrc10_root / "Data" / "CLS-LOC" / "train")
    assert want.paths is not None
    for label, path in zip(want.labels, want.paths, strict=True):
        target = tmp_path / "val" / sorted(p.name for p in (tmp_path / "train").iterdir())[label] / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)
    unboxed = imagenet.load(tmp_path)
    assert unboxed.test.boxes is None
    assert "box metrics are off" in str(unboxed.problems)
    shutil.copy(ilsvrc10_root / "LOC_val_solution.csv", tmp_path)
    boxed = imagenet.load(tmp_path)
    assert boxed.problems == ()
    for split in (unboxed.test, boxed.test):
        assert split.image_ids == want.image_ids
        assert np.array_equal(split.labels, want.labels)
    assert boxed.test.boxes is not None
    assert want.boxes is not None
    for a, b in zip(boxed.test.boxes, want.boxes, strict=True):
        assert np.abs(a - b).max() <= 1  # the csv gives no image size to clip to


# --- CUB-200-2011, made up


@pytest.fixture
def small_cub(tmp_path: Path) -> Path:
    return make_cub(tmp_path / "CUB_200_2011")


def test_cub_remaps_ids_with_gaps(small_cub: Path) -> None:
    dataset = cub.load(small_cub)
    assert_sound(dataset)
    assert found(dataset) == []
    assert dataset.class_names == ("005.A bird", "010.A bird")
    assert dataset.train.image_ids == ("2", "6")
    assert dataset.train.labels.tolist() == [0, 1]
    assert dataset.train.boxes is not None
    assert dataset.train.boxes[1].tolist() == [[1.5, 2, 31.5, 8]]
    assert not dataset.train.exif
    assert check(dataset) == []
    assert cub.load(small_cub.parent).train.image_ids == dataset.train.image_ids


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_cub_with_crlf_and_bom(small_cub: Path, start: bytes) -> None:
    want = cub.load(small_cub)
    for file in small_cub.glob("*.txt"):
        file.write_bytes(start + file.read_bytes().replace(b"\n", b"\r\n") + b"\r\n \r\n")
    got = cub.load(small_cub)
    assert found(got) == []
    assert got.class_names == want.class_names
    assert got.test.paths == want.test.paths


SPOIL_CUB: list[tuple[str, str, str, str, str | None]] = [
    # file, what is replaced, by what, the message, the image that is lost
    ("bounding_boxes.txt", "4 1.5 2 30 4\n", "", "bounding_boxes.txt: image 4: no line", "4"),
    ("bounding_boxes.txt", "4 1.5", "4 one", "bounding_boxes.txt:2: image 4: box 'one 2 30 4' is not numeric", "4"),
    ("bounding_boxes.txt", "4 1.5", "4 nan", "bounding_boxes.txt:2: image 4: box nan 2 30 4 is not finite", "4"),
    ("bounding_boxes.txt", "4 1.5", "4 1e999", "is not finite", "4"),
    ("bounding_boxes.txt", "30 4\n", "1e30 4\n", "lies outside", "4"),
    ("bounding_boxes.txt", "4 1.5", "4", ":2: image 4: expected 4 box coordinates, found 3", "4"),
    ("bounding_boxes.txt", "4 1.5", "4 1 1.5", "expected 4 box coordinates, found 5", "4"),
    ("bounding_boxes.txt", "30 4\n", "0 4\n", "zero or negative size", "4"),
    ("bounding_boxes.txt", "30 4\n", "30 -4\n", "zero or negative size", "4"),
    ("bounding_boxes.txt", "4 1.5", "4 -7", "lies outside", "4"),
    ("bounding_boxes.txt", "4 1.5 2 30 4\n", "4\n", "bounding_boxes.txt:2: expected an id and a value", "4"),
    ("bounding_boxes.txt", "4 1.5 2 30 4\n", "4 1.5 2 30 4\n3 1 1 1 1\n", ":3: image 3 is not in images.txt", None),
    ("bounding_boxes.txt", "4 1.5 2 30 4\n", "4 1.5 2 30 4\n" * 2, ":3: duplicate id 4, first on line 2", None),
    ("images.txt", "4 005.A bird/im 4.jpg\n", "4\n", "images.txt:2: expected an id and a value", "4"),
    ("images.txt", "im 4.jpg", "gone.jpg", "images.txt:2: image 4: file '005.A bird/gone.jpg' does not exist", "4"),
    ("images.txt", "005.A bird/im 4.jpg", "../../secret.jpg", "does not exist in images/", "4"),
    ("images.txt", "im 4.jpg", "im 2.jpg", "images.txt:2: image 4: file '005.A bird/im 2.jpg' is listed under an", "4"),
    ("image_class_labels.txt", "4 5", "4 77", "image_class_labels.txt:2: image 4: class '77' is not in classes", "4"),
    ("train_test_split.txt", "4 0", "4 2", "train_test_split.txt:2: image 4: split '2' is not 0 (test) or 1", "4"),
    ("classes.txt", "10 0", "11 011.Nobody\n10 0", "classes.txt:1: class 11 (011.Nobody) has no images", None),
    ("classes.txt", "10 0", "ten 011.Nobody\n10 0", "classes.txt:1: expected a class number, found 'ten'", None),
]


@pytest.mark.parametrize(("file", "old", "new", "message", "lost"), SPOIL_CUB)
def test_cub_spoilt(small_cub: Path, file: str, old: str, new: str, message: str, lost: str | None) -> None:
    replace(small_cub / file, old, new)
    dataset = cub.load(small_cub)
    assert_sound(dataset)
    assert len(dataset.problems) == 1
    assert message in found(dataset)[0]
    assert found(dataset)[0].startswith(str(small_cub))
    assert set(dataset.train.image_ids + dataset.test.image_ids) == {"2", "4", "6", "8"} - {lost}
    assert lost is None or dataset.problems[0].image_id == lost


def test_cub_line_that_is_not_utf8(small_cub: Path) -> None:
    file = small_cub / "images.txt"
    file.write_bytes(file.read_bytes().replace(b"4 005.A bird", b"4 005.\xff bird"))
    dataset = cub.load(small_cub)
    assert "images.txt:2: not valid UTF-8" in found(dataset)[0]
    assert dataset.test.image_ids == ("8",)


def test_cub_names_that_look_the_same(small_cub: Path) -> None:
    images = small_cub / "images" / "005.A bird"
    (images / "im 4.jpg").rename(images / "cafe\u0301.jpg")
    replace(small_cub / "images.txt", "im 4.jpg", "caf\u00e9.jpg")
    dataset = cub.load(small_cub)
    assert found(dataset) == []
    assert check(dataset) == []


def test_cub_class_without_training_image(small_cub: Path) -> None:
    replace(small_cub / "train_test_split.txt", "2 1", "2 0")
    dataset = cub.load(small_cub)
    assert_sound(dataset)
    assert dataset.class_names == ("010.A bird",)
    assert "class 5 has 2 test images but no training image" in found(dataset)[0]


@pytest.mark.parametrize("new", ["6 1.5 2 0 6\n", ""])
def test_cub_training_box_decides_nothing(small_cub: Path, new: str) -> None:
    want = cub.load(small_cub)
    replace(small_cub / "bounding_boxes.txt", "6 1.5 2 30 6\n", new)
    got = cub.load(small_cub)
    assert_same_training_images(got, want)
    assert got.problems[0].image_id == "6"


# --- Tiny-ImageNet, made up


@pytest.fixture
def small_tiny(tmp_path: Path) -> Path:
    return make_tiny(tmp_path / "tiny-imagenet-200")


def test_tiny_order_names_and_boxes(small_tiny: Path) -> None:
    dataset = tiny_imagenet.load(small_tiny.parent)
    assert_sound(dataset)
    assert found(dataset) == []  # n3 has neither a folder nor a line: a part of the data set
    assert dataset.class_names == ("crane (n2)", "crane (n1)")
    assert dataset.train.image_ids == ("n1_0", "n1_1", "n2_0", "n2_1")
    assert dataset.train.labels.tolist() == [1, 1, 0, 0]
    assert dataset.train.boxes is not None
    assert dataset.train.boxes[0].tolist() == [[5, 6, 6, 64]]
    assert dataset.test.image_ids == ("val n10", "val n11", "val n20", "val n21")


SPOIL_TINY: list[tuple[str, str, str, str, str | None]] = [
    ("val/val_annotations.txt", "n1\t0\t0", "n1\tx\t0", ":1: box 'x 0 63 63' is not numeric", "val n10"),
    (
        "val/val_annotations.txt",
        "n1\t0\t0\t63",
        "n1\t0\t0\t99",
        ":1: box 0 0 100 64 (x1 y1 x2 y2) lies outside",
        "val n10",
    ),
    ("val/val_annotations.txt", "n1\t0\t0\t63", "n1\t9\t0\t3", "zero or negative size", "val n10"),
    (
        "val/val_annotations.txt",
        "n1\t0\t0\t",
        "n8\t0\t0\t",
        "class 'n8' of val n10.JPEG is not in wnids.txt",
        "val n10",
    ),
    ("val/val_annotations.txt", "val n10.JPEG\tn1\t0\t0\t63\t63\n", "", "no line for image val n10.JPEG", "val n10"),
    (
        "val/val_annotations.txt",
        "val n10.JPEG",
        "val none.JPEG\tn1\t0\t0\t63\t63\nval n10.JPEG",
        ":1: image 'val none",
        None,
    ),
    ("train/n1/n1_boxes.txt", "n1_0.JPEG\t5", "n1_0.JPEG\tinf", "n1_boxes.txt:1: box inf 6 5 63 is not finite", None),
    ("train/n1/n1_boxes.txt", "n1_1", "n1_0", "n1_boxes.txt:2: duplicate image n1_0.JPEG", None),
    ("wnids.txt", "n2\n", "n2\nn2\n", "wnids.txt:2: duplicate class 'n2'", None),
    ("wnids.txt", "n3\n", "", "", None),
]


@pytest.mark.parametrize(("file", "old", "new", "message", "lost"), SPOIL_TINY)
def test_tiny_spoilt(small_tiny: Path, file: str, old: str, new: str, message: str, lost: str | None) -> None:
    replace(small_tiny / file, old, new)
    dataset = tiny_imagenet.load(small_tiny)
    assert_sound(dataset)
    assert message in "\n".join(found(dataset))
    assert bool(found(dataset)) == bool(message)
    assert len(dataset.train) + len(dataset.test) == 8 - (lost is not None)
    assert lost not in dataset.train.image_ids + dataset.test.image_ids


def test_tiny_folders_and_lists_that_differ(small_tiny: Path) -> None:
    (small_tiny / "train" / "n7" / "images").mkdir(parents=True)
    (small_tiny / "train" / "n1" / "n1_boxes.txt").unlink()
    dataset = tiny_imagenet.load(small_tiny)
    assert dataset.class_names == ("crane (n2)", "crane (n1)")
    assert "n7: folder of a class that is not in wnids.txt" in found(dataset)[1]
    assert "n1_boxes.txt: missing; the 2 images of class n1 have no boxes" in found(dataset)[0]
    assert len(dataset.problems) == 2


@pytest.mark.parametrize("new", ["5\t6\t4\t63", "", None])
def test_tiny_training_box_decides_nothing(small_tiny: Path, new: str | None) -> None:
    want = tiny_imagenet.load(small_tiny)
    file = small_tiny / "train" / "n1" / "n1_boxes.txt"
    if new is None:
        file.unlink()
    else:
        replace(file, "n1_0.JPEG\t5\t6\t5\t63\n", new and f"n1_0.JPEG\t{new}\n")
    assert_same_training_images(tiny_imagenet.load(small_tiny), want)


# --- ImageNet, made up


@pytest.fixture
def small_imagenet(tmp_path: Path) -> Path:
    return make_imagenet(tmp_path)


def xml_of(root: Path, wnid: str = "n1") -> Path:
    return root / "ILSVRC" / "Annotations" / "CLS-LOC" / "val" / f"val_{wnid}.xml"


@pytest.mark.parametrize("inner", ["", "ILSVRC"])
def test_imagenet_as_kaggle_packs_it(small_imagenet: Path, inner: str) -> None:
    dataset = imagenet.load(small_imagenet / inner)
    assert_sound(dataset)
    assert found(dataset) == []
    assert dataset.class_names == ("crane (n1)", "crane (n2)")
    assert dataset.test.image_ids == ("val_n1", "val_n2")
    assert dataset.test.boxes is not None
    assert dataset.test.boxes[0].tolist() == [[0, 1, 64, 63], [10, 10, 64, 21]]


def test_imagenet_class_from_xml_without_the_list(small_imagenet: Path) -> None:
    (small_imagenet / "LOC_val_solution.csv").unlink()
    dataset = imagenet.load(small_imagenet)
    assert found(dataset) == []
    assert dataset.test.labels.tolist() == [0, 1]
    write(xml_of(small_imagenet), annotation([("n1", 0, 0, 9, 9), ("n2", 0, 0, 9, 9)]))
    assert "objects of several classes (n1, n2)" in found(imagenet.load(small_imagenet))[0]


BOMB = '<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><annotation><object><name>&b;</name></object></annotation>'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid XML"),
        ("<annotation>", "not valid XML"),
        (BOMB, "document type declarations are refused"),
        ("<annotation/>", "no usable box of class n1"),
        (annotation([("n1", 0, 0, 9, 9)]).replace("<xmin>0</xmin>", ""), "is not numeric"),
        (annotation([("n1", 9, 9, 3, 3)]), "zero or negative size"),
        (annotation([("n1", 0, 0, 99, 9)]), "lies outside of the image of 64 x 64"),
        (annotation([("n2", 0, 0, 9, 9)]), "no usable box of class n1"),
    ],
)
def test_imagenet_spoilt_xml(small_imagenet: Path, text: str, message: str) -> None:
    write(xml_of(small_imagenet), text)
    dataset = imagenet.load(small_imagenet)
    assert_sound(dataset)
    assert dataset.test.image_ids == ("val_n2",)
    assert any(str(xml_of(small_imagenet)) in p and message in p for p in found(dataset))
    assert {p.image_id for p in dataset.problems} == {"val_n1"}


def test_imagenet_one_bad_box_of_two(small_imagenet: Path) -> None:
    write(xml_of(small_imagenet), annotation([("n1", 5, 5, 1, 9), ("n1", 0, 0, 9, 9)]))
    dataset = imagenet.load(small_imagenet)
    assert len(dataset.problems) == 1
    assert dataset.test.boxes is not None
    assert dataset.test.boxes[0].tolist() == [[0, 0, 10, 10]]


@pytest.mark.parametrize("scale", [0.5, 3])
def test_imagenet_boxes_are_pixels_of_the_xmls_size(small_imagenet: Path, scale: float) -> None:
    """Of images that were made smaller, say, to squares."""
    want = imagenet.load(small_imagenet).test
    assert want.paths is not None
    assert want.boxes is not None
    width, height = int(64 * scale), 32
    Image.new("RGB", (width, height)).save(want.paths[0])
    dataset = imagenet.load(small_imagenet)
    assert found(dataset) == []
    assert dataset.test.boxes is not None
    assert dataset.test.boxes[0].dtype == np.float32
    np.testing.assert_allclose(dataset.test.boxes[0], want.boxes[0] * [scale, 0.5, scale, 0.5])
    assert np.array_equal(dataset.test.boxes[1], want.boxes[1])
    assert check(dataset) == []


def test_imagenet_missing_files(small_imagenet: Path) -> None:
    xml_of(small_imagenet).unlink()
    (small_imagenet / "ILSVRC" / "Data" / "CLS-LOC" / "train" / "n3").mkdir()
    csv = small_imagenet / "LOC_val_solution.csv"
    csv.write_text(csv.read_text() + "val_gone,n2 1 2 3 4\nval_gone,n2 1 2 3 4\nval_odd,n2 1 2\nval_odd,n1 a b c d\n")
    dataset = imagenet.load(small_imagenet)
    messages = "\n".join(found(dataset))
    for message in (
        "val_n1.xml: annotation file missing",
        "class n3 has no images",
        "csv:5: image 'val_gone' does not exist in val/",
        "csv:6: duplicate image val_gone",
        "csv:7: expected groups of a class and 4 numbers",
        "csv:8: box 'a b c d' is not numeric",
    ):
        assert message in messages
    assert len(dataset.problems) == 6


# --- a folder of one's own


@pytest.fixture
def small_folder(tmp_path: Path) -> Path:
    root = tmp_path / "my pictures"
    for name in ("a cat", "dog"):
        for i in range(30):
            picture(root / name / ("deep/er" if i % 2 else "") / f"{i} ü.png", 40, 30)
    return root


def test_folder_split_by_hash(small_folder: Path) -> None:
    dataset = folder.load(small_folder)
    assert_sound(dataset)
    assert found(dataset) == []
    assert dataset.class_names == ("a cat", "dog")
    assert len(dataset.train) + len(dataset.test) == 60
    assert 4 <= len(dataset.test) <= 24
    assert dataset.train.boxes is None
    assert dataset.test.boxes is None
    assert dataset.test.exif
    assert dataset.test.paths is not None
    assert dataset.test.paths[0] == small_folder / dataset.test.image_ids[0]
    for i in range(30, 40):
        picture(small_folder / "dog" / f"{i}.png")
    more = folder.load(small_folder)
    assert set(dataset.test.image_ids) <= set(more.test.image_ids)
    assert set(dataset.train.image_ids) <= set(more.train.image_ids)


def test_folder_split_of_small_classes() -> None:
    assert folder.split_class(["a/1.jpg"]) == set()
    for i in range(50):
        assert len(folder.split_class([f"a/{i}.jpg", f"b/{i}.jpg"])) == 1
    # Pinned: a changed hash would silently reshuffle everybody's splits.
    assert sorted(folder.split_class([f"a/{i}.jpg" for i in range(20)])) == ["a/14.jpg", "a/15.jpg", "a/6.jpg"]


@pytest.mark.parametrize("name", ["test", "val"])
def test_folder_with_its_own_split(tmp_path: Path, name: str) -> None:
    for part, count in (("train", 3), (name, 2)):
        for key in ("x", "y"):
            for i in range(count):
                picture(tmp_path / part / key / f"{i}.jpg")
    picture(tmp_path / name / "z" / "0.jpg")
    (tmp_path / "train" / "empty").mkdir()
    write(tmp_path / "train" / ".hidden" / "a.jpg", "no image")
    picture(tmp_path / "train" / "loose.jpg").rename(tmp_path / "train" / "x" / "0.txt")
    dataset = folder.load(tmp_path)
    assert_sound(dataset)
    assert dataset.class_names == ("x", "y")
    assert dataset.test.image_ids == (f"{name}/x/0.jpg", f"{name}/x/1.jpg", f"{name}/y/0.jpg", f"{name}/y/1.jpg")
    messages = "\n".join(found(dataset))
    assert "class empty has no images" in messages
    assert "class z has 1 test images but no training image" in messages
    assert len(dataset.problems) == 2


def test_folder_with_a_class_called_train(tmp_path: Path) -> None:
    for key in ("train", "bus"):
        for i in range(3):
            picture(tmp_path / key / f"{i}.jpg")
    assert folder.load(tmp_path).class_names == ("bus", "train")


def test_folder_loose_images_and_link_to_itself(small_folder: Path) -> None:
    picture(small_folder / "loose.jpg")
    (small_folder / "dog" / "again").symlink_to(small_folder)
    dataset = folder.load(small_folder)
    assert len(dataset.train) + len(dataset.test) == 60
    assert len(dataset.problems) == 1
    assert "1 images outside of any class folder ('loose.jpg', ...)" in found(dataset)[0]


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ("Train", "Test"),
        ("training", "validation"),
        ("TRAIN", "val"),
        ("train", "valid"),
        ("Training_Set", "Test set"),
        ("01_train", "02-testing"),
        ("train2017", "val2017"),
        ("train_images", "eval"),
        ("trn", "tst"),
    ],
)
def test_folder_splits_by_any_usual_name(tmp_path: Path, train: str, held_out: str) -> None:
    for part, count in ((train, 3), (held_out, 2)):
        for key in ("x", "y"):
            for i in range(count):
                picture(tmp_path / part / key / f"{i}.jpg")
    dataset = folder.load(tmp_path)
    assert found(dataset) == []
    assert dataset.class_names == ("x", "y")
    assert (len(dataset.train), len(dataset.test)) == (6, 4)
    assert dataset.test.image_ids[0] == f"{held_out}/x/0.jpg"


def test_folder_prefers_the_test_split(tmp_path: Path) -> None:
    for part in ("Train", "Val", "Test"):
        picture(tmp_path / part / "x" / "0.jpg")
    dataset = folder.load(tmp_path)
    assert dataset.test.image_ids == ("Test/x/0.jpg",)
    assert dataset.notes == (f"{tmp_path}: passed over 1 folders beside those of the splits: Val/ 1",)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["Train/x/0.jpg", "training/x/0.jpg", "test/x/0.jpg"], "Train/ and training/ name the same split"),
        (["train/x/0.jpg", "Val/x/0.jpg", "valid/x/0.jpg"], "Val/ and valid/ name the same split"),
        (["Test/x/0.jpg", "Test/y/0.jpg"], "Test/ but no train/ beside it"),
        (["Val/0.jpg", "test/0.jpg"], "test/ but no train/ beside it"),
        (["Train/0.jpg", "Test/0.jpg"], "no class folders in Train/"),
        (["Train/x/0.jpg", "Test/0.jpg"], "no class folders in Test/"),
        (["TRAINING/x/0.jpg", "x/0.jpg"], "TRAINING/ but neither test/ nor val/"),
        (["cat/0.jpg", "dog/0.jpg", "Test/cat/0.jpg"], "Test/ but no train/ beside it"),
        (["cat/0.jpg", "dog/0.jpg", "valid/dog/0.jpg"], "valid/ but no train/ beside it"),
        (["data/Train/x/0.jpg", "data/test/x/0.jpg"], "data/ is no class but holds Train/ and test/; name it"),
        (["images/train/x/0.jpg", "images/val2017/x/0.jpg"], "images/ is no class but holds train/ and val2017/; name"),
        (
            ["seg_train/seg_train/x/0.jpg", "seg_test/seg_test/x/0.jpg"],
            "seg_train/ and seg_test/ are called like splits",
        ),
        (["myTrain/x/0.jpg", "holdout_val/x/0.jpg"], "myTrain/ and holdout_val/ are called like splits"),
        (["train_x/0.jpg", "train_y/0.jpg", "test_x/0.jpg", "test_y/0.jpg"], "train_x/ and test_x/ are called like"),
        (
            ["train/images/x/0.jpg", "train/images/y/0.jpg", "test/x/0.jpg"],
            "images/ is its only folder, and holds",
        ),
    ],
)
def test_folder_splits_that_are_refused(tmp_path: Path, files: list[str], message: str) -> None:
    for file in files:
        picture(tmp_path / file)
    with pytest.raises(
        DataError, match=f"{message}.*(expected|must lie)|{message}; keep one|is no class.*name it"
    ) as error:
        folder.load(tmp_path)
    assert "\n" not in str(error.value)


def test_folder_classes_that_are_called_like_splits(tmp_path: Path) -> None:
    for key in ("invalid", "valid", "train station", "trains", "test tube"):
        for i in range(2):
            picture(tmp_path / key / f"{i}.jpg")
    assert folder.load(tmp_path).class_names == ("invalid", "test tube", "train station", "trains", "valid")


FORMATS = {
    "jfif": "JPEG",
    "JPE": "JPEG",
    "mpo": "MPO",
    "gif": "GIF",
    "jp2": "JPEG2000",
    "avif": "AVIF",
    "pbm": "PPM",
    "heic": "AVIF",
    "HEIF": "AVIF",
    "tga": "TGA",
    "ico": "ICO",
    "pcx": "PCX",
    "sgi": "SGI",
    "vda": "TGA",
    "dds": "DDS",
    "jif": "JPEG",
    "pjpeg": "JPEG",
}


def test_folder_formats(tmp_path: Path) -> None:
    """What Pillow decodes is used; what it does not is said once, with its number."""
    here = tmp_path / "train" / "a"
    for i in range(3):
        picture(here / f"{i}.jpg")
        picture(tmp_path / "test" / "a" / f"{i}.jpg")
    for extension, name in FORMATS.items():
        Image.new("RGB", (20, 16), "red").save(here / f"x.{extension}", format=name)
    Image.new("RGB", (20, 16)).save(here / "IMG_1", format="JPEG")
    for name in ("p.HEIC", "sub/q.heic", "r.jxl", "notes.txt", "Makefile", ".DS_Store", "Thumbs.db", "._0.jpg"):
        write(here / name, "")
    picture(here / "@eaDir" / "0.jpg" / "SYNOPHOTO_THUMB_M.jpg")
    picture(tmp_path / "train" / "#snapshot" / "0.jpg")
    dataset = folder.load(tmp_path)
    assert len(dataset.train) == 3 + len(FORMATS) + 1
    assert check(dataset) == [lone_class(dataset)]
    assert dataset.notes == (
        f"{tmp_path}: passed over 3 pictures that cannot be decoded here: .heic 2, .jxl 1; convert them to JPEG or PNG",
        f"{tmp_path}: passed over 2 files that are no images: .txt 1, Makefile 1",
        f"{tmp_path}: passed over 4 hidden files and what systems leave (thumbnails): "
        ".DS_Store 1, ._* 1, @eaDir 1, Thumbs.db 1",
    )
    assert all(note in summary(dataset) for note in dataset.notes)


def test_folder_class_of_pictures_that_cannot_be_decoded(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / "a" / f"{i}.jpg")
        write(tmp_path / "b" / f"{i}.HEIC", "")
    (problem,) = found(folder.load(tmp_path))
    assert "class b has no images that can be decoded here (.heic 3); convert them to JPEG or PNG" in problem


def test_folder_names_that_look_the_same(tmp_path: Path) -> None:
    """macOS writes an accent as a character of its own; a list written elsewhere does not."""
    composed, apart = "caf\u00e9", "cafe\u0301"
    picture(tmp_path / "train" / composed / "0.jpg", 40, 30)
    picture(tmp_path / "test" / apart / f"{apart}.jpg", 40, 30)
    write(tmp_path / "boxes.csv", boxes_csv((f"test/{composed}/{composed}.jpg",)))
    dataset = folder.load(tmp_path)
    assert found(dataset) == []
    assert dataset.class_names == (composed,)
    assert dataset.test.labels.tolist() == [0]
    assert dataset.test.boxes is not None
    assert check(dataset) == [lone_class(dataset)]


def boxes_csv(image_ids: tuple[str, ...]) -> str:
    return "image,x1,y1,x2,y2\n" + "".join(f'"{i}",1,2.5,40,30\n' for i in image_ids)


def test_folder_boxes(small_folder: Path) -> None:
    plain = folder.load(small_folder)
    file = write(small_folder / "boxes.csv", boxes_csv(plain.test.image_ids + plain.test.image_ids[:1]))
    dataset = folder.load(small_folder)
    assert_sound(dataset)
    assert found(dataset) == []
    assert dataset.train.boxes is None
    assert dataset.test.boxes is not None
    assert dataset.test.boxes[0].tolist() == [[1, 2.5, 40, 30]] * 2
    file.write_bytes(
        b"\xef\xbb\xbf" + boxes_csv(plain.test.image_ids + plain.train.image_ids).replace("\n", "\r\n").encode()
    )
    dataset = folder.load(small_folder)
    assert found(dataset) == []
    assert dataset.train.boxes is not None
    assert check(dataset) == []


def test_folder_boxes_for_a_part_of_the_test_images(small_folder: Path) -> None:
    ids = folder.load(small_folder).test.image_ids
    write(small_folder / "boxes.csv", boxes_csv(ids[:2]))
    dataset = folder.load(small_folder)
    assert_sound(dataset)
    assert dataset.test.image_ids == ids[:2]
    assert len(dataset.problems) == len(ids) - 2
    assert "no valid row for test image" in found(dataset)[0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("nowhere.png,1,2,3,4", "no such image 'nowhere.png'"),
        ("ID,1,2,3", "expected 4 box coordinates, found 3"),
        ("ID,1,2,3,4,5", "expected 4 box coordinates, found 5"),
        ("ID,1,2,three,4", "is not numeric"),
        ("ID,1,2,inf,4", "is not finite"),
        ("ID,3,2,3,4", "zero or negative size"),
        ("ID,-9,2,3,4", "lies outside"),
        ("\udcff.png,1,2,3,4", r"no such image '\udcff.png'"),
    ],
)
def test_folder_bad_row(small_folder: Path, row: str, message: str) -> None:
    ids = folder.load(small_folder).test.image_ids
    text = boxes_csv(ids) + row.replace("ID", f'"{ids[0]}"') + "\n"
    (small_folder / "boxes.csv").write_bytes(text.encode(errors="surrogateescape"))
    dataset = folder.load(small_folder)
    assert len(dataset.problems) == 1
    assert dataset.problems[0].line == len(ids) + 2
    assert message in found(dataset)[0]
    assert dataset.test.image_ids == ids  # it has a good row as well


@pytest.mark.parametrize("text", ["", "image;x1;y1;x2;y2\n", "image,x,y,w,h\n", "image,x1,y1,x2,y2\n"])
def test_folder_boxes_without_header_or_rows(small_folder: Path, text: str) -> None:
    write(small_folder / "boxes.csv", text)
    dataset = folder.load(small_folder)
    assert dataset.test.boxes is None
    assert "box metrics are off" in found(dataset)[-1]


# --- wrong layouts


LOADERS: list[tuple[Callable[[Path], DataSet], str]] = [
    (cub.load, "images.txt"),
    (tiny_imagenet.load, "wnids.txt"),
    (imagenet.load, "Annotations/CLS-LOC/val"),
    (folder.load, "<class>/"),
]


@pytest.mark.parametrize(("load", "expected"), LOADERS)
def test_missing_root_and_wrong_layout(tmp_path: Path, load: Callable[[Path], DataSet], expected: str) -> None:
    write(tmp_path / "a file", "")
    for root in (tmp_path / "gone", tmp_path / "a file", tmp_path):
        with pytest.raises(DataError) as error:
            load(root)
        assert str(root) in str(error.value)
        assert expected in str(error.value)
        assert "\n" not in str(error.value)


def test_layouts_that_lack_a_part(small_cub: Path, tmp_path: Path) -> None:
    (small_cub / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"classes\.txt missing"):
        cub.load(small_cub)
    picture(tmp_path / "mine" / "train" / "a" / "1.jpg")
    with pytest.raises(DataError, match="neither test/ nor val/"):
        folder.load(tmp_path / "mine")


def test_nothing_usable_is_one_line(small_cub: Path) -> None:
    write(small_cub / "bounding_boxes.txt", "")
    config = DataConfig(name="cub", root=str(small_cub))
    with pytest.raises(DataError, match=r"5 problems in the data"):
        load(config)
    match = r"2 training and 0 test images; .* first of 5 problems: .*bounding_boxes\.txt: image 2: no line"
    with pytest.raises(DataError, match=match) as error:
        load(replace_fields(config, skip_bad=True))
    assert "\n" not in str(error.value)
    assert "test:              0 images, no boxes" in summary(cub.load(small_cub))


# --- check


def test_check_opens_every_image(small_cub: Path) -> None:
    images = small_cub / "images"
    (images / "005.A bird" / "im 2.jpg").write_bytes(b"")
    picture(images / "005.A bird" / "im 4.jpg", 20, 20)  # the box reaches to x = 31.5
    (images / "010.A bird" / "im 6.jpg").write_bytes((images / "010.A bird" / "im 8.jpg").read_bytes()[:-200])
    replace(small_cub / "bounding_boxes.txt", "8 1.5 2 30 8", "8 1.5 2 63.4 8")  # 0.9 px over the edge
    problems = check(cub.load(small_cub), workers=2)
    assert [p.image_id for p in problems] == ["2", "6", "4"]
    assert "im 2.jpg: not a readable image (empty" in str(problems[0])
    assert "im 6.jpg: not a readable image" in str(problems[1])
    assert str(problems[2]).endswith("box 1.5 2 31.5 6 (x1 y1 x2 y2) lies outside of the image of 20 x 20")


def test_check_repeats_the_loaders_problems(small_cub: Path) -> None:
    replace(small_cub / "bounding_boxes.txt", "4 1.5", "4 nan")
    dataset = cub.load(small_cub)
    assert check(dataset) == list(dataset.problems)
    assert "1 problems in its lists" in summary(dataset)


def test_check_of_upright_boxes(small_folder: Path) -> None:
    """With EXIF orientation the box is that of the picture as seen: 30 x 40 here, stored as 40 x 30."""
    ids = folder.load(small_folder).test.image_ids
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(small_folder / ids[0], exif=exif)
    write(small_folder / "boxes.csv", boxes_csv(ids))
    problems = check(folder.load(small_folder))
    assert [p.image_id for p in problems] == [ids[0]]
    assert "outside of the image of 30 x 40" in str(problems[0])


def test_check_of_generated_images() -> None:
    boxes = tuple(np.array([[0, 0, side, 8]], np.float32) for side in (8, 20))
    split = Split(("a", "b"), np.array([0, 0]), images=np.zeros((2, 8, 8, 3), np.uint8), boxes=boxes)
    misplaced, alone = check(DataSet("made", ("one",), split, split.select(np.array([0]))))
    assert misplaced.image_id == "b"
    assert str(alone).startswith(
        "made: all 2 training images are of one class (one); training needs two or more, since"
    )


def test_fingerprints_of_files(small_cub: Path) -> None:
    """A replaced file counts; the test split counts for the whole alone."""
    dataset, images = cub.load(small_cub), small_cub / "images" / "005.A bird"
    whole, training = [fingerprint(dataset)], [training_fingerprint(dataset)]
    for change in (
        lambda: picture(images / "im 4.jpg", 80, 90),  # a test image
        lambda: picture(images / "im 2.jpg", 80, 90),
        (images / "im 2.jpg").unlink,
    ):
        change()
        whole.append(fingerprint(dataset))
        training.append(training_fingerprint(dataset))
    assert len(set(whole)) == 4
    assert training[0] == training[1]
    assert len(set(training)) == 3


def test_fingerprints_of_pixels() -> None:
    images = np.zeros((2, 8, 8, 3), np.uint8)
    split = Split(("a", "b"), np.array([0, 0]), images=images)
    made = DataSet("made", ("one",), split, split)
    other = replace_fields(made, train=replace_fields(split, images=images + 1))
    relabelled = replace_fields(made, train=replace_fields(split, labels=np.array([0, 1])))
    assert len({training_fingerprint(d) for d in (made, other, relabelled)}) == 3
    assert len({fingerprint(d) for d in (made, other, relabelled)}) == 3
    untested = replace_fields(made, test=split.select(np.array([1])))
    assert training_fingerprint(untested) == training_fingerprint(made)


def test_select_keeps_exif() -> None:
    split = Split(("a", "b"), np.array([0, 1]), paths=(Path("a"), Path("b")), exif=True)
    assert split.select(np.array([1])).exif
