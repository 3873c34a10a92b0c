"""What strangers' files can do to the programs: broken and odd images, faulty lists, and files that mean harm.

`lchp data check` lists every fault with its place; a training stops before its first step, or with --data.skip-bad
trains on the rest and says what it dropped; `lchp predict` names what it cannot read and predicts the rest.
"""

import contextlib
import errno
import io
import json
import os
import pickle
import re
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import annotation, make_cub, make_imagenet, make_tiny, picture, write
from PIL import Image
from squares import small_config, small_values

from lchp.backbones import load_weights
from lchp.cli import main
from lchp.config import DataConfig
from lchp.data import DATASETS, fingerprint, load, read, training_fingerprint
from lchp.data.images import open_dataset, open_images
from lchp.errors import DataError, WeightsError, printable
from lchp.files import runs
from lchp.training.context import open_context
from lchp.training.run import train

# --- images

Make = Callable[[Path], object]


@dataclass(frozen=True)
class Odd:
    """An image file: how to make it, and what is said of it (None: it is used, with this width and height)."""

    name: str
    make: Make
    message: str | None = None
    size: tuple[int, int] = (24, 20)


def noise(width: int = 24, height: int = 20) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def saved(image: Image.Image, form: str, **options: object) -> Make:
    return lambda path: image.save(path, form, **options)  # pyright: ignore[reportArgumentType]


def content(data: bytes) -> Make:
    return lambda path: path.write_bytes(data)


def cut(form: str) -> Make:
    """The first half of an image file."""
    buffer = io.BytesIO()
    noise().save(buffer, form)
    return content(buffer.getvalue()[: len(buffer.getvalue()) // 2])


def deep(extension: str) -> Make:
    """16-bit RGB, which Pillow cannot write."""
    pixels = np.full((20, 24, 3), 40_000, np.uint16)
    return lambda path: path.write_bytes(cv2.imencode(extension, pixels)[1].tobytes())


def bomb(path: Path) -> None:
    """A PNG of a few bytes that says it has 3.6e9 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(1000))), chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def sideways() -> Make:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(noise(20, 24).transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif)


FRAMES = {"save_all": True, "append_images": [Image.new("RGB", (24, 20), "lime")]}
ODD = [
    Odd("cmyk.jpg", saved(noise().convert("CMYK"), "JPEG")),
    Odd("gray.png", saved(noise().convert("L"), "PNG")),
    Odd("gray16.png", saved(Image.fromarray(np.full((20, 24), 40_000, np.uint16)), "PNG")),
    Odd("gray16.tif", saved(Image.fromarray(np.full((20, 24), 40_000, np.uint16)), "TIFF")),
    Odd("rgb16.png", deep(".png")),
    Odd("rgb16.tif", deep(".tif")),
    Odd("palette.png", saved(noise().convert("P"), "PNG")),
    Odd("palette, transparent.png", saved(noise().convert("P"), "PNG", transparency=0)),
    Odd("alpha.png", saved(noise().convert("RGBA"), "PNG")),
    Odd("sideways.jpg", sideways(), size=(20, 24)),
    Odd("animated gif.jpg", saved(noise(), "GIF", **FRAMES)),
    Odd("animated.png", saved(noise(), "PNG", **FRAMES)),
    Odd("animated.webp", saved(noise(), "WEBP", **FRAMES)),
    Odd("a png.jpg", saved(noise(), "PNG")),
    Odd("one pixel.png", saved(noise(1, 1), "PNG"), size=(1, 1)),
    Odd("tall.jpg", saved(noise(1, 5000), "JPEG"), size=(1, 5000)),
    Odd("wide.png", saved(noise(5000, 1), "PNG"), size=(5000, 1)),
    Odd("-x.jpg", saved(noise(), "JPEG")),
    Odd("two\nlines.png", saved(noise(), "PNG")),
    Odd("\"quoted\" 'twice', <b>ü\x1b[31m.png", saved(noise(), "PNG")),
    Odd("a folder.jpg/inside.png", saved(noise(), "PNG")),
    Odd("linked.png", lambda path: path.symlink_to(saved_beside(path))),
    Odd("cut.jpg", cut("JPEG"), "not a readable image"),
    Odd("cut.png", cut("PNG"), "not a readable image"),
    Odd("cut.webp", cut("WEBP"), "not a readable image"),
    Odd("cut.tif", cut("TIFF"), "not a readable image"),
    Odd("empty.jpg", content(b""), "empty, or of no known image type"),
    Odd("text.jpg", content(b"not an image"), "empty, or of no known image type"),
    Odd("program.png", content(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "no known image type"),
    Odd("bomb.png", bomb, "exceeds limit"),
    Odd("float.tif", saved(Image.fromarray(np.zeros((20, 24), np.float32)), "TIFF"), "floating-point"),
    Odd("pipe.jpg", os.mkfifo, "not a regular file"),
    Odd("leads nowhere.jpg", lambda path: path.symlink_to("nowhere"), "no such image file"),
    Odd("leads to itself.jpg", lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
    Odd("broken\nname.png", content(b""), "empty, or of no known image type"),
]
GOOD = [odd for odd in ODD if odd.message is None]
BAD = [odd for odd in ODD if odd.message is not None]


def saved_beside(path: Path) -> Path:
    target = path.with_name("target")
    noise().save(target, "PNG")
    return target


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    status: int
    out: list[str]
    err: list[str]

    def about(self, odd: Odd) -> list[str]:
        """Lines that name the file of an image."""
        return [line for line in self.out + self.err if f"/{printable(odd.name)}: " in line]


def command(*arguments: str | Path) -> Said:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(a) for a in arguments])
    assert "Traceback" not in err.getvalue()
    return Said(status, out.getvalue().splitlines(), err.getvalue().replace("\r", "\n").splitlines())


def flags(config: dict[str, object]) -> list[str]:
    """Values by dotted name as options."""
    out = []
    for name, value in config.items():
        section, _, leaf = name.replace("_", "-").rpartition(".")
        out += (
            [f"--{section}.{'' if value else 'no-'}{leaf}"]
            if isinstance(value, bool)
            else [f"--{section}.{leaf}".replace("--.", "--"), str(value)]
        )
    return out


ONE_EPOCH: dict[str, object] = {"initialization.epochs": 1, "refinement.epochs": 1}


@pytest.fixture(scope="module")
def odd_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of `ODD` among the training images of class a; class `lost` has a broken training image alone."""
    root = tmp_path_factory.mktemp("odd") / "images"
    for part, count in (("train", 4), ("test", 2)):
        for key in ("a", "b"):
            for i in range(count):
                picture(root / part / key / f"{i}.png", 24, 20)
    for odd in ODD:
        path = root / "train" / "a" / odd.name
        path.parent.mkdir(parents=True, exist_ok=True)
        odd.make(path)
    picture(root / "test" / "lost" / "0.png")
    cut("PNG")(write(root / "train" / "lost" / "0.png", ""))
    return root


@pytest.fixture(scope="module")
def clean_root(odd_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without what is bad."""
    root = tmp_path_factory.mktemp("clean") / "images"

    def bad(folder: str, names: list[str]) -> list[str]:
        spoilt = {odd.name for odd in BAD} if Path(folder).name == "a" else set()
        return [name for name in names if name == "lost" or name in spoilt]

    return Path(shutil.copytree(odd_root, root, symlinks=True, ignore=bad))


@pytest.fixture(scope="module")
def checked(odd_root: Path) -> Said:
    return command("data", "check", "folder", odd_root)


@pytest.fixture(scope="module")
def refused(odd_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Said, Path]:
    """The answer to a training without --data.skip-bad, and its run folder."""
    run = tmp_path_factory.mktemp("refused") / "run"
    options = flags({**small_values(odd_root), **ONE_EPOCH})
    return command("train", "--preset", "cub", *options, "--output", run), run


@pytest.fixture(scope="module")
def skipping(odd_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a training with --data.skip-bad."""
    run = tmp_path_factory.mktemp("skipping") / "run"
    options = flags({**small_values(odd_root), **ONE_EPOCH, "data.skip_bad": True})
    said = command("train", "--preset", "cub", *options, "--output", run)
    assert said.status == 0, said.err
    return run


@pytest.fixture(scope="module")
def predicted(odd_root: Path, skipping: Path) -> Said:
    return command("predict", odd_root / "train", "--run", skipping, "--device", "cpu")


@pytest.mark.parametrize("odd", BAD, ids=lambda odd: repr(odd.name))
def test_bad_image(
    odd: Odd, odd_root: Path, checked: Said, refused: tuple[Said, Path], skipping: Path, predicted: Said
) -> None:
    assert odd.message is not None
    skipped = [line for line in runs.read_json(skipping / runs.ENVIRONMENT)["skipped"] if printable(odd.name) in line]
    listed = [line for line in refused[0].err if printable(odd.name) in line]
    for lines in (checked.about(odd), predicted.about(odd), skipped, listed[:1] or skipped):
        assert len(lines) == 1
        assert printable(str(odd_root / "train" / "a" / odd.name)) in lines[0]
        assert odd.message in lines[0]


@pytest.mark.parametrize("odd", GOOD, ids=lambda odd: repr(odd.name))
def test_odd_image_is_used(odd: Odd, checked: Said, skipping: Path, predicted: Said) -> None:
    assert checked.about(odd) == []
    assert not [line for line in runs.read_json(skipping / runs.ENVIRONMENT)["skipped"] if printable(odd.name) in line]
    (row,) = [r for r in map(json.loads, predicted.out) if r["image"] == f"a/{odd.name}"]
    assert (row["width"], row["height"]) == odd.size
    assert np.isfinite([*row["box"], row["score"], row["confidence"]]).all()


def test_check_counts_all_of_them(checked: Said) -> None:
    assert checked.status == 1
    assert checked.out[-1] == f"{len(BAD) + 1} problems"


def test_training_stops_before_its_first_step(refused: tuple[Said, Path]) -> None:
    said, run = refused
    assert said.status == 2
    lines = [line for line in said.err if line.strip() and "img/s" not in line]
    assert lines[0].startswith(f"lchp: error: {len(BAD) + 2} problems in the data")  # the lost class's test image, too
    assert len(lines) == 12
    assert lines[-1] == f"  ... and {len(BAD) + 2 - 10} more"
    assert not run.exists()


def test_skipping_trains_on_exactly_the_rest(odd_root: Path, clean_root: Path, skipping: Path, tmp_path: Path) -> None:
    """Same key, same predictions as without the bad images; and another key than that of the set as listed."""
    skipped = runs.read_json(skipping / runs.ENVIRONMENT)["skipped"]
    assert len(skipped) == len(BAD) + 2
    assert any("class lost: 1 test images but no training image that decodes" in line for line in skipped)
    clean = train(small_config(clean_root, ONE_EPOCH), output=tmp_path / "clean").run
    assert runs.read_json(clean / runs.ENVIRONMENT)["skipped"] == []
    assert runs.read_json(skipping / runs.ENVIRONMENT)["class_names"] == ["a", "b"]
    assert (skipping / runs.PREDICTIONS).read_bytes() == (clean / runs.PREDICTIONS).read_bytes()
    dataset = open_context(small_config(odd_root, {"data.skip_bad": True}), show_progress=False).dataset
    expected = load(small_config(clean_root).data)
    assert fingerprint(dataset) == fingerprint(expected)
    assert training_fingerprint(dataset) == training_fingerprint(expected)
    assert training_fingerprint(dataset) != training_fingerprint(read(small_config(odd_root).data))


def test_a_mended_image_of_the_same_size_gives_another_key(tmp_path: Path) -> None:
    """Its file's size, which stands for its content otherwise, cannot tell."""
    for part in ("train", "test"):
        for i in range(2):
            picture(tmp_path / part / "a" / f"{i}.png")
    path = tmp_path / "train" / "a" / "0.png"
    whole = path.read_bytes()
    config = replace(small_config(tmp_path).data, skip_bad=True)
    keys = []
    for data in (whole, bytes(len(whole)), whole):
        path.write_bytes(data)
        keys.append(training_fingerprint(open_dataset(read(config), config, show_progress=False)[0]))
    assert keys[0] == keys[2] != keys[1]


@pytest.mark.parametrize("cache", ["off", "cache"])
def test_lists_and_images_are_counted_together(odd_root: Path, tmp_path: Path, cache: str) -> None:
    config = replace(small_config(odd_root).data, cache=cache if cache == "off" else str(tmp_path / cache))
    (odd_root / "test" / "none").mkdir()
    try:
        with pytest.raises(DataError, match=rf"^{len(BAD) + 3} problems in the data"):
            open_dataset(read(config), config, show_progress=False)
    finally:
        (odd_root / "test" / "none").rmdir()


def test_names_that_are_not_utf8(skipping: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff.png")
    for part in ("train", "test"):
        for i in ("0.png", "1.png", name):
            picture(tmp_path / part / "a" / i)
    said = command("data", "check", "folder", tmp_path)
    assert said.status == 1
    assert sum("1 names are not valid UTF-8; those files are left out" in line for line in said.out) == 2
    (row,) = map(json.loads, command("predict", tmp_path / "train" / "a" / name, "--run", skipping).out)
    assert row["image"] == name


def test_a_root_that_is_not_utf8(tmp_path: Path) -> None:
    root = tmp_path / os.fsdecode(b"\xff")
    for part in ("train", "test"):
        for i in range(2):
            picture(root / part / "a" / f"{i}.png")
            picture(root / part / "b" / f"{i}.png")
    (root / "train" / "a" / "2.png").write_bytes(b"")
    said = command("data", "check", "folder", root)
    assert said.out[-1] == "1 problem"
    assert r"\udcff/train/a/2.png: not a readable image" in said.out[-2]
    config = replace(small_config(root).data, cache=str(tmp_path / "cache"), skip_bad=True)
    assert len(open_images(load(config).train, config, show_progress=False)) == 4


# --- lists


@dataclass(frozen=True)
class Fault:
    """A fault of a data set's lists: the file, what is done to it, and what `lchp data check` says, a line each.

    fatal: nothing else can be said then: one line, status 2.
    """

    data: str
    file: str
    change: Callable[[Path], object]
    says: tuple[str, ...] = ()
    fatal: bool = False


def put(old: bytes, new: bytes) -> Make:
    def change(path: Path) -> None:
        text = path.read_bytes()
        assert old in text
        path.write_bytes(text.replace(old, new, 1))

    return change


def add(end: bytes) -> Make:
    return lambda path: path.write_bytes(path.read_bytes() + end)


def both(first: Make, second: Make) -> Make:
    return lambda path: (first(path), second(path))


def instead(make: Make) -> Make:
    """Something else by the name of the file."""
    return lambda path: (path.unlink(), make(path))


def crlf(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


def bom(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


CUB_BOXES, CUB_IMAGES, CUB_LABELS, CUB_SPLIT = (
    "bounding_boxes.txt",
    "images.txt",
    "image_class_labels.txt",
    "train_test_split.txt",
)
VAL = "val/val_annotations.txt"
XML = "ILSVRC/Annotations/CLS-LOC/val/val_n1.xml"
LAUGHS = b'<!DOCTYPE l [<!ENTITY a "ha">' + b"".join(
    b'<!ENTITY %c "%s">' % (98 + i, b"&%c;" % (97 + i) * 10) for i in range(9)
)
EXTERNAL = (
    b'<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><annotation><object><name>&e;</name></object></annotation>'
)
BOX_1 = annotation([("n1", 0, 0, 9, 9)]).encode()

FAULTS = [
    Fault("cub", CUB_BOXES, crlf),
    Fault("cub", CUB_BOXES, bom),
    Fault("cub", CUB_IMAGES, put(b"4 005", b"4   005")),
    Fault("cub", CUB_BOXES, put(b"4 1.5 2 30 4\n", b""), (": image 4: no line for it",)),
    Fault("cub", CUB_IMAGES, put(b"4 005.A bird/im 4.jpg\n", b""), (":2: image 4 is not in images.txt",) * 3),
    Fault("cub", CUB_BOXES, put(b"6 1.5", b"3 1 1 1 1\n6 1.5"), (":3: image 3 is not in images.txt",)),
    Fault("cub", CUB_BOXES, put(b"4 1.5", b"4 one"), (":2: image 4: box 'one 2 30 4' is not numeric",)),
    Fault("cub", CUB_BOXES, put(b"4 1.5", b"4 1_5"), (":2: image 4: box '1_5 2 30 4' is not numeric",)),
    Fault("cub", CUB_BOXES, put(b"4 1.5", b"4 nan"), (":2: image 4: box nan 2 30 4 is not finite",)),
    Fault("cub", CUB_BOXES, put(b"30 4\n", b"0 4\n"), ("zero or negative size",)),
    Fault("cub", CUB_BOXES, put(b"30 4\n", b"-30 4\n"), ("zero or negative size",)),
    Fault("cub", CUB_BOXES, put(b"30 4\n", b"80 4\n"), (":2: image 4: box 1.5 2 81.5 6 (x1 y1 x2 y2) lies outside",)),
    Fault("cub", CUB_BOXES, put(b"30 6\n", b"80 6\n"), (":3: image 6: box 1.5 2 81.5 8 (x1 y1 x2 y2) lies outside",)),
    Fault(
        "cub",
        CUB_BOXES,
        both(put(b"2 1.5", b"2 nan"), put(b"30 6\n", b"80 6\n")),
        (":1: image 2: box nan", ":3: image 6: box 1.5 2 81.5 8 (x1 y1 x2 y2) lies outside of the image of 64 x 64"),
    ),
    Fault("cub", CUB_BOXES, put(b"4 1.5", b"4 1.5 2 30 4\n4 1.5"), (":3: duplicate id 4, first on line 2",)),
    Fault("cub", CUB_LABELS, put(b"4 5", b"4 \xff"), (":2: not valid UTF-8", ": image 4: no line for it")),
    Fault("cub", CUB_LABELS, put(b"4 5", b"4 5\0"), (r":2: image 4: class '5\x00' is not in classes.txt",)),
    Fault("cub", CUB_SPLIT, put(b"4 0", b"4 2"), (":2: image 4: split '2' is not 0 (test) or 1 (training)",)),
    Fault(
        "cub", CUB_BOXES, put(b"4 1.5", b"\x1b[2J 1.5"), (r":2: image \x1b[2J is not in images.txt", "image 4: no line")
    ),
    Fault("cub", "classes.txt", bom),
    Fault("cub", "classes.txt", add(b"9 009.None\n"), (":3: class 9 (009.None) has no images",)),
    Fault("cub", "classes.txt", add(b"9" * 5000 + b" x\n"), (":3: expected a class number, found '999",)),
    Fault(
        "cub",
        CUB_SPLIT,
        put(b"2 1", b"2 0"),
        ("class 5 has 2 test images but no training image", "cub: all 1 training images are of one class"),
    ),
    Fault("cub", CUB_SPLIT, content(b""), ("no line for it",) * 4 + ("no usable training", "no usable test")),
    Fault(
        "cub", CUB_SPLIT, instead(os.mkfifo), ("train_test_split.txt: cannot be read (not a regular file)",), fatal=True
    ),
    Fault(
        "cub", CUB_SPLIT, instead(os.mkdir), ("train_test_split.txt: cannot be read (not a regular file)",), fatal=True
    ),
    Fault("tiny_imagenet", VAL, crlf),
    Fault("tiny_imagenet", VAL, bom),
    Fault("tiny_imagenet", VAL, put(b"val n10.JPEG\tn1\t0\t0\t63\t63\n", b""), ("no line for image val n10.JPEG",)),
    Fault("tiny_imagenet", VAL, put(b"val n11", b"x 1 2\nval n11"), (":2: expected a file name and 5 values",)),
    Fault("tiny_imagenet", VAL, put(b"\t63\n", b"\t99\n"), (":1: box 0 0 64 100 (x1 y1 x2 y2) lies outside",)),
    Fault("tiny_imagenet", VAL, put(b"0\t0\t63", b"0\t\xb2\t63"), (":1: not valid UTF-8", "no line for image")),
    Fault("tiny_imagenet", "wnids.txt", put(b"n2\n", b"n2\nn2\n"), (":2: duplicate class 'n2'",)),
    Fault(
        "tiny_imagenet",
        "train/n1/n1_boxes.txt",
        put(b"n1_1", b"n1_0"),
        (":2: duplicate image n1_0.JPEG", "no line for image n1_1.JPEG"),
    ),
    Fault("tiny_imagenet", "train/n1/n1_boxes.txt", put(b"\t5", b"\t6"), (":1: box 6 6 6 64 (x1 y1 x2 y2) has zero",)),
    Fault("imagenet", XML, crlf),
    Fault("imagenet", XML, bom),
    Fault("imagenet", XML, content(BOX_1.decode().encode("utf-16"))),
    Fault("imagenet", XML, content(b'<?xml version="1.0" encoding="latin-1"?><!-- \xff -->' + BOX_1)),
    Fault("imagenet", XML, content(LAUGHS + b"]><l>&j;</l>"), (".xml: document type declarations are refused",)),
    Fault("imagenet", XML, content(EXTERNAL), (".xml: document type declarations are refused",)),
    Fault("imagenet", XML, content(b'<?xml version="1.0" encoding="utf-7"?>' + BOX_1), ("val_n1.xml: ",)),
    Fault("imagenet", XML, content(b"\xff\xfe\xff"), ("not valid XML",)),
    Fault("imagenet", XML, content(b"<a>" * 20_000 + b"</a>" * 20_000), ("no usable box of class n1",)),
    Fault("imagenet", XML, put(b"<xmax>63", b"<xmax>&lt;63"), ("val_n1.xml: box '0 1 <63 62' is not numeric",)),
    Fault("imagenet", XML, put(b"<width>64", b"<width>99"), ()),
    Fault("imagenet", XML, both(put(b"<width>64", b"<width>99"), put(b"<xmax>63", b"<xmax>90")), ()),  # by its size
    Fault(
        "imagenet",
        XML,
        put(b"<xmax>63", b"<xmax>90"),
        ("val_n1.xml: box 0 1 91 63 (x1 y1 x2 y2) lies outside of the image of 64 x 64",),
    ),
    Fault("imagenet", XML, instead(os.mkfifo), ("val_n1.xml: cannot be read (not a regular file)",)),
    Fault("imagenet", "LOC_val_solution.csv", crlf),
    Fault("imagenet", "LOC_val_solution.csv", put(b"0 1 63 62", b"0 1 63"), (":2: expected groups of a class",)),
    Fault("imagenet", "LOC_synset_mapping.txt", put(b"n1 crane", b"n1"), (":1: expected an id and a value",)),
    Fault("folder", "boxes.csv", crlf),
    Fault("folder", "boxes.csv", bom),
    Fault("folder", "boxes.csv", put(b"train/a/0.png,1,2,30,40\n", b"")),
    Fault(
        "folder", "boxes.csv", put(b"test/a/0.png,1,2,30,40\n", b""), ("no valid row for test image 'test/a/0.png'",)
    ),
    Fault("folder", "boxes.csv", put(b"test/a/0.png,", b"test/a/9.png,"), ("no such image", "no valid row for test")),
    Fault(
        "folder", "boxes.csv", put(b"test/a/0.png,1", b"test/a/0.png,x"), ("is not numeric", "no valid row for test")
    ),
    Fault("folder", "boxes.csv", put(b"train/a/0.png,1", b"train/a/0.png,nan"), (":2: box nan 2 30 40 is not finite",)),
    Fault(
        "folder", "boxes.csv", put(b"a/0.png,1,2,30", b"a/0.png,1,2,1"), (":2: box 1 2 1 40 (x1 y1 x2 y2) has zero",)
    ),
    Fault(
        "folder", "boxes.csv", put(b"a/0.png,1,2,30", b"a/0.png,1,2,99"), (":2: image train/a/0.png: box 1 2 99 40",)
    ),
    Fault(  # of some images only
        "folder",
        "boxes.csv",
        both(put(b"train/a/1.png,1,2,30,40\n", b""), put(b"a/0.png,1,2,30", b"a/0.png,1,2,99")),
        (":2: image train/a/0.png: box 1 2 99 40 (x1 y1 x2 y2) lies outside of the image of 64 x 64",),
    ),
    Fault(
        "folder", "boxes.csv", put(b"x1", b"left"), (":1: the first line must be", "no valid row for any test image")
    ),
    Fault("folder", "boxes.csv", add(b'"x,1,2'), (":10: no such image 'x,1,2'",)),
    Fault("folder", "boxes.csv", add(b"\xff,1,2,3,4\n"), (r":10: no such image '\udcff'",)),
    Fault("folder", "boxes.csv", add(b"x" * 200_000 + b"\n"), (":10: not valid CSV",)),
    Fault("folder", "boxes.csv", instead(os.mkfifo), ("boxes.csv: cannot be read (not a regular file)",), fatal=True),
    Fault(
        "folder",
        "boxes.csv",
        instead(lambda p: p.symlink_to("no")),
        ("boxes.csv: cannot be read (No such file",),
        fatal=True,
    ),
]


def make_folder(root: Path) -> Path:
    """Two training and two test images of each of two classes, with a box each; line 2 is train/a/0.png's."""
    rows = [f"{part}/{key}/{i}.png" for part in ("train", "test") for key in ("a", "b") for i in range(2)]
    for row in rows:
        picture(root / row)
    write(root / "boxes.csv", "image,x1,y1,x2,y2\n" + "".join(f"{row},1,2,30,40\n" for row in rows))
    return root


LAYOUTS = {"cub": make_cub, "tiny_imagenet": make_tiny, "imagenet": make_imagenet, "folder": make_folder}


@pytest.mark.parametrize(
    "fault", FAULTS, ids=lambda f: f"{f.data} {Path(f.file).name} {(f.says or ('fine',))[0][:40]!r}"
)
def test_faulty_list(fault: Fault, tmp_path: Path) -> None:
    """Everything that is wrong, each thing once, and what is odd but right is not reported."""
    root = LAYOUTS[fault.data](tmp_path / "data")
    fault.change(root / fault.file)
    said = command("data", "check", fault.data, root)
    if fault.fatal:
        assert (said.status, said.out) == (2, [])
        lines = [line for line in said.err if line.strip()]
    else:
        count = len(fault.says)
        assert said.out[-1] == f"{count} problem{'' if count == 1 else 's'}", said.out
        assert said.status == (1 if count else 0)
        lines = [line for line in said.out if line.startswith((str(tmp_path), "cub: all "))]
    assert len(lines) == len(fault.says)
    for words in fault.says:
        assert sum(words in line for line in lines) == fault.says.count(words), lines


def test_an_image_that_is_left_out_is_looked_at_all_the_same(tmp_path: Path) -> None:
    """Its list is at fault and so is its file: both are said at once."""
    broken = {
        "cub": ("bounding_boxes.txt", put(b"4 1.5", b"4 nan"), "images/005.A bird/im 4.jpg"),
        "tiny_imagenet": (VAL, put(b"val n10.JPEG\tn1\t0", b"val n10.JPEG\tn1\tx"), "val/images/val n10.JPEG"),
        "imagenet": (XML, content(b""), "ILSVRC/Data/CLS-LOC/val/val_n1.JPEG"),
        "folder": ("boxes.csv", put(b"test/a/0.png,1,2,30,40\n", b""), "test/a/0.png"),
    }
    for name, (file, change, image) in broken.items():
        root = LAYOUTS[name](tmp_path / name)
        change(root / file)
        (root / image).write_bytes(b"")
        said = command("data", "check", name, root)
        assert said.out[-1] == "2 problems"
        assert said.out[-2].startswith(f"{root / image}: not a readable image")


def test_misplaced_boxes_when_training(tmp_path: Path) -> None:
    """A test image with a box outside of it is dropped; a training image stays, and there are no training boxes."""
    root = make_folder(tmp_path / "data")
    for image in ("train/a/0.png", "test/a/0.png"):
        put(f"{image},1,2,30".encode(), f"{image},1,2,99".encode())(root / "boxes.csv")
    config = small_config(root).data
    with pytest.raises(
        DataError, match=r"2 problems in the data(.|\n)*boxes\.csv:2: image train/a/0\.png: box 1 2 99 40"
    ):
        open_dataset(read(config), config, show_progress=False)
    dataset, train_images, test_images = open_dataset(read(config), replace(config, skip_bad=True), show_progress=False)
    assert [p.line for p in dataset.problems] == [2, 6]
    assert (len(train_images), train_images.split.boxes) == (4, None)
    assert test_images.split.image_ids == ("test/a/1.png", "test/b/0.png", "test/b/1.png")
    assert dataset.test is test_images.split


FUZZED = [(name, file) for name, file in sorted({(f.data, f.file) for f in FAULTS})]


@pytest.mark.parametrize(("name", "file"), FUZZED)
@settings(
    max_examples=int(os.environ.get("LCHP_FUZZ", "25")),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_bytes_give_problems_or_one_line(name: str, file: str, tmp_path: Path, data: st.DataObject) -> None:
    """Bytes and lines flipped, put in and taken out of a list: problems of one line each, or a DataError; and what is
    left of the data set is sound."""
    root = tmp_path / "data"
    if not root.exists():
        LAYOUTS[name](root)
    path = root / file
    original = path.read_bytes()
    try:
        path.write_bytes(data.draw(damaged(original)))
        dataset = DATASETS[name].load(DataConfig(name=name, root=str(root)))  # pyright: ignore[reportArgumentType]
    except DataError as error:
        dataset = str(error)
    finally:
        path.write_bytes(original)
    if isinstance(dataset, str):
        assert "\n" not in dataset
        return
    assert all("\n" not in str(problem) and problem.message for problem in dataset.problems)
    for split in (dataset.train, dataset.test):
        assert set(split.labels.tolist()) <= set(range(len(dataset.class_names)))
        for boxes in split.boxes or ():
            assert np.isfinite(boxes).all()
            assert (boxes[:, 2:] > boxes[:, :2]).all()
    fingerprint(dataset)


@st.composite
def damaged(draw: st.DrawFn, text: bytes) -> bytes:
    """`text` after one to four changes of a byte or a line."""
    for _ in range(draw(st.integers(1, 4))):
        lines = text.splitlines(keepends=True)
        at, line = draw(st.integers(0, len(text))), draw(st.integers(0, max(len(lines) - 1, 0)))
        bytes_ = draw(
            st.one_of(st.binary(min_size=1, max_size=3), st.sampled_from([b"\n", b" ", b",", b'"', b"-", b"9" * 400]))
        )
        text = draw(
            st.sampled_from(
                [
                    text[:at] + bytes_ + text[at:],
                    text[:at] + bytes_ + text[at + len(bytes_) :],
                    text[:at] + text[at + 1 :],
                    b"".join(lines[:line] + lines[line + 1 :]),
                    b"".join(lines[:line] + lines[line : line + 1] * 2 + lines[line + 1 :]),
                    b"".join(lines[line:] + lines[:line]),
                ]
            )
        )
    return text


# --- files that mean harm


class Harm:
    """Its pickle, when it is loaded by pickle, creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.marker), "w")


def as_pickle(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps({"identity": "x", "modules": Harm(marker)}))


def as_checkpoint(path: Path, marker: Path) -> None:
    torch.save({"identity": "x", "epoch": 1, "modules": Harm(marker)}, path)


def as_old_checkpoint(path: Path, marker: Path) -> None:
    torch.save({"identity": "x", "epoch": 1, "modules": Harm(marker)}, path, _use_new_zipfile_serialization=False)


HARMFUL = [as_pickle, as_checkpoint, as_old_checkpoint]


def test_the_harm_would_be_done(tmp_path: Path) -> None:
    for number, write_to in enumerate(HARMFUL):
        marker = tmp_path / str(number)
        write_to(tmp_path / "file", marker)
        (
            pickle.loads((tmp_path / "file").read_bytes())
            if number == 0
            else torch.load(tmp_path / "file", weights_only=False)
        )
        assert marker.exists()


@pytest.mark.parametrize("write_to", HARMFUL)
@pytest.mark.parametrize("use", ["predict", "export", "refine", "resume", "sweep's link", "older sweep's stage 1"])
def test_a_checkpoint_runs_nothing(
    use: str, write_to: Callable[[Path, Path], None], skipping: Path, odd_root: Path, tmp_path: Path
) -> None:
    run, marker = Path(shutil.copytree(skipping, tmp_path / "run")), tmp_path / "harm"
    for file in (run / runs.CHECKPOINTS).iterdir():
        write_to(file, marker)
    values = {**small_values(odd_root), **ONE_EPOCH, "data.skip_bad": True}
    options = ["--preset", "cub", "--no-forecast", *flags(values)]
    if "sweep" in use:  # a run names the folders of the links that it took from others
        second = Path(shutil.copytree(run, tmp_path / "second"))
        shutil.rmtree(second / runs.CHECKPOINTS)
        environment = runs.read_json(second / runs.ENVIRONMENT)
        if use == "sweep's link":
            environment["links"] = {kind: {"key": "x", "run": str(run)} for kind in environment["links"]}
        else:
            del environment["links"]
            path = run / runs.CHECKPOINTS / "initialization.pt"
            environment["stage1"] = {"checkpoint": str(path), "identity": "x"}
        runs.write_json(second / runs.ENVIRONMENT, environment)
        run = second
    arguments: dict[str, list[str | Path]] = {
        "predict": ["predict", odd_root / "test", "--run", run, "--device", "cpu"],
        "sweep's link": ["predict", odd_root / "test", "--run", run, "--device", "cpu"],
        "older sweep's stage 1": ["predict", odd_root / "test", "--run", run, "--device", "cpu"],
        "export": ["export", "--run", run, "--output", tmp_path / "model.pt"],
        "refine": ["train", *options, "--stage", "refine", "--from", run, "--output", tmp_path / "new"],
        "resume": ["train", *options, "--resume", "--output", run],
    }
    said = command(*arguments[use])
    assert said.status == 2
    (line,) = [line for line in said.err if line.startswith("lchp: error")]
    assert "initialization.pt: damaged or not a checkpoint of lchp" in line
    assert not marker.exists()


def test_weights_run_nothing(odd_root: Path, tmp_path: Path) -> None:
    marker, match = tmp_path / "harm", r"mobilenet_v2\.safetensors: not a readable safetensors file"
    for write_to in HARMFUL:
        write_to(tmp_path / "mobilenet_v2.safetensors", marker)
        with pytest.raises(WeightsError, match=match):
            load_weights(torch.nn.Identity(), "mobilenet_v2", str(tmp_path))
    values = {**small_values(odd_root), "model.classifier": "mobilenet_v2", "model.localizer": "mobilenet_v2"}
    values |= {"model.pretrained": True, "model.weights_dir": tmp_path, "data.skip_bad": True}
    said = command("train", "--preset", "cub", *flags(values), "--no-forecast", "--output", tmp_path / "run")
    assert said.status == 2
    (line,) = [line for line in said.err if line.startswith("lchp: error")]
    assert re.search(match, line)
    assert not marker.exists()


def test_predictions_run_nothing(skipping: Path, tmp_path: Path) -> None:
    run, marker = Path(shutil.copytree(skipping, tmp_path / "run")), tmp_path / "harm"
    as_pickle(run / runs.PREDICTIONS, marker)
    said = command("evaluate", "--run", run)
    assert (said.status, len(said.err)) == (2, 1)
    assert "predictions.parquet" in said.err[0]
    assert not marker.exists()


def pickled_array(folder: Path, marker: Path) -> None:
    np.save(folder / "images.npy", np.array([Harm(marker)]), allow_pickle=True)


CACHE_FAULTS: dict[str, Callable[[Path, Path], object]] = {
    "pickle": pickled_array,
    "cut": lambda folder, _: os.truncate(folder / "images.npy", 999),
    "empty": lambda folder, _: os.truncate(folder / "images.npy", 0),
    "other shape": lambda folder, _: np.save(folder / "images.npy", np.zeros((1, 2, 2, 3), np.uint8)),
    "no about": lambda folder, _: (folder / "about.json").unlink(),
    "about of another kind": lambda folder, _: (folder / "about.json").write_text("[1]"),
    "about cut": lambda folder, _: os.truncate(folder / "about.json", 9),
    "nothing in it": lambda folder, _: [file.unlink() for file in folder.iterdir()],
}


@pytest.mark.parametrize("fault", CACHE_FAULTS)
def test_a_damaged_cache_is_made_anew(fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root, marker = make_folder(tmp_path / "data"), tmp_path / "harm"
    config = replace(small_config(root).data, cache=str(tmp_path / "cache"))
    split = load(config).train
    want = np.array(open_images(split, config, show_progress=False).pixels)
    (folder,) = (tmp_path / "cache" / "images").iterdir()
    CACHE_FAULTS[fault](folder, marker)
    got = open_images(split, config, show_progress=False)
    assert got.pixels is not None
    assert np.array_equal(got.pixels, want)
    assert "damaged cache, made anew" in caplog.text
    assert not marker.exists()
    assert list((tmp_path / "cache" / "images").iterdir()) == [folder]


def test_the_cache_forgets_that_an_image_was_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing disk leaves neither its file's size nor its time changed."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    root = make_folder(tmp_path / "data")
    config = replace(small_config(root).data, cache=str(tmp_path / "cache"))
    split = load(config).train
    with monkeypatch.context() as patch:
        patch.setattr("lchp.data.decode.Image.open", fail)
        with pytest.raises(DataError, match="4 problems in the data"):
            open_images(split, config, show_progress=False)
    assert len(open_images(split, config, show_progress=False)) == 4
