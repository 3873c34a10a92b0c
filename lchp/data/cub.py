"""CUB-200-2011 in its original layout (Wah et al., 2011), or a part of its classes laid out the same way."""

import re
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from lchp.data.annotations import (
    Listing,
    assemble,
    checked_box,
    list_folders,
    list_images,
    parse_box,
    read_keyed,
    same_looking,
    shorten,
)
from lchp.data.base import DataSet, Problem, require_folder
from lchp.errors import DataError

BOXES = "bounding_boxes.txt"
FILES = ("images.txt", "image_class_labels.txt", "train_test_split.txt", BOXES, "classes.txt")
EXPECTED = "the folder CUB_200_2011 with images/, images.txt, bounding_boxes.txt and so on"


def load(root: Path) -> DataSet:
    """Lists and boxes of CUB-200-2011; `root` holds images.txt, or is the parent of such a CUB_200_2011/.

    Image ids are the official ones as text, in the order of images.txt. Labels run over the classes that have training
    images, in the order of the official class ids, which may have gaps. The files give x y width height in px.
    An image with a fault in any of the files is left out; a training image stays where only its box is faulty or
    missing, and then there are no training boxes at all (they are for diagnostics only).
    Raises DataError where the layout is another.
    """
    root = _find(root)
    problems: list[Problem] = []
    tables = {name: read_keyed(root / name, problems) for name in FILES}
    classes = _in_order(root, tables["classes.txt"], problems)
    parsers: dict[str, Callable[[str], Any]] = {
        "images.txt": _existing_file(_files(root / "images", problems)),
        "image_class_labels.txt": lambda text: _member(text, classes, "class", "in classes.txt"),
        "train_test_split.txt": lambda text: _member(text, ("0", "1"), "split", "0 (test) or 1 (training)"),
        BOXES: _box,
    }
    reported = {(p.file, p.image_id) for p in problems}
    train, test, left_out = Listing(), Listing(), list[Path]()
    for image_id in tables["images.txt"]:
        values = {}
        for name, parse in parsers.items():
            line, text = tables[name].get(image_id, (None, ""))
            try:
                values[name] = parse(text) if line else _no_line()
            except ValueError as error:
                if line or (str(root / name), image_id) not in reported:
                    problems.append(Problem(str(root / name), line, f"image {image_id}: {error}", image_id))
        is_train, box = values.get("train_test_split.txt") == "1", values.pop(BOXES, None)
        path = root / "images" / values["images.txt"] if "images.txt" in values else None
        if path is not None and len(values) == len(parsers) - 1 and (is_train or box is not None):
            places = [] if box is None else [(str(root / BOXES), tables[BOXES][image_id][0])]
            (train if is_train else test).add(image_id, values["image_class_labels.txt"], path, box, places)
        elif path is not None:
            left_out.append(path)
    problems += _strangers(root, tables, {image_id for file, image_id in reported if file == str(root / "images.txt")})
    with_images = {text for _, text in tables["image_class_labels.txt"].values()}
    for class_id, name in classes.items():
        if class_id not in with_images:
            line, _ = tables["classes.txt"][class_id]
            problems.append(Problem(str(root / "classes.txt"), line, f"class {class_id} ({name}) has no images"))
    return assemble("cub", root, classes, train, test, problems, left_out=left_out)


def _find(root: Path) -> Path:
    root = require_folder(root, "CUB-200-2011", EXPECTED)
    for folder in (root, root / "CUB_200_2011"):
        if (folder / "images.txt").is_file():
            missing = [name for name in (*FILES, "images") if not (folder / name).exists()]
            if missing:
                raise DataError(f"{folder}: {', '.join(missing)} missing; expected {EXPECTED}")
            return folder
    raise DataError(
        f"{root}: not CUB-200-2011 (no images.txt); expected {EXPECTED}; `lchp data download cub` fetches it"
    )


def _files(folder: Path, problems: list[Problem]) -> set[str]:
    """All image files as `class folder/name`. Paths that leave the folder are never among them."""
    return {f"{sub}/{name}" for sub in list_folders(folder, problems) for name in list_images(folder / sub, problems)}


def _existing_file(files: set[str]) -> Callable[[str], str]:
    unused, alike = set(files), {same_looking(file): file for file in files}

    def parse(relative: str) -> str:
        relative = relative if relative in files else alike.get(same_looking(relative), relative)
        if relative not in files:
            raise ValueError(f"file {shorten(relative)} does not exist in images/")
        if relative not in unused:
            raise ValueError(f"file {shorten(relative)} is listed under another id already")
        unused.remove(relative)
        return relative

    return parse


def _member(text: str, allowed: Container[str], what: str, expected: str) -> str:
    if text not in allowed:
        raise ValueError(f"{what} {shorten(text)} is not {expected}")
    return text


def _box(text: str) -> np.ndarray:
    x, y, width, height = parse_box(text.split())
    return checked_box(x, y, x + width, y + height)[None]


def _no_line() -> NoReturn:
    raise ValueError("no line for it in this file")


def _strangers(root: Path, tables: dict[str, dict[str, tuple[int, str]]], reported: set[str | None]) -> list[Problem]:
    """Lines about images that images.txt does not name."""
    known = tables["images.txt"].keys() | reported
    return [
        Problem(str(root / name), line, f"image {image_id} is not in images.txt", image_id)
        for name in ("image_class_labels.txt", "train_test_split.txt", BOXES)
        for image_id, (line, _) in tables[name].items()
        if image_id not in known
    ]


def _in_order(root: Path, classes: dict[str, tuple[int, str]], problems: list[Problem]) -> dict[str, str]:
    """Class id -> name, by ascending number; an id that is no number is reported and left out."""
    numbers = [class_id for class_id in classes if re.fullmatch("[0-9]{1,9}", class_id)]
    for class_id in classes.keys() - set(numbers):
        message = f"expected a class number, found {shorten(class_id)}"
        problems.append(Problem(str(root / "classes.txt"), classes[class_id][0], message))
    return {class_id: classes[class_id][1] for class_id in sorted(numbers, key=int)}
