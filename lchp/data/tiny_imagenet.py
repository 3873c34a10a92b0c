"""Tiny-ImageNet (Stanford CS231n) in its original layout; the validation images are the test split."""

from pathlib import Path

import numpy as np

from lchp.data.annotations import (
    Listing,
    assemble,
    checked_box,
    list_folders,
    list_images,
    parse_box,
    read_keyed,
    read_lines,
    shorten,
)
from lchp.data.base import DataSet, Problem, require_folder, stem
from lchp.errors import DataError

SIDE = 64  # px; the frame that all boxes refer to
EXPECTED = "the folder tiny-imagenet-200 with train/, val/ and wnids.txt"


def load(root: Path) -> DataSet:
    """Lists and boxes of Tiny-ImageNet; `root` holds wnids.txt, or is the parent of such a tiny-imagenet-200/.

    Image ids are file names without extension. Labels follow wnids.txt over the classes that have training images, so a
    copy with some of the classes loads too. The files give x1 y1 x2 y2 as inclusive pixels of the 64 x 64 frame.
    A test image with a fault is left out. A training image stays where its box is faulty or missing, and then there are
    no training boxes at all (they are for diagnostics only). Raises DataError where the layout is another.
    """
    root = _find(root)
    problems: list[Problem] = []
    wnids: dict[str, int] = {}
    for line, wnid in read_lines(root / "wnids.txt", problems):
        if wnid in wnids:
            message = f"duplicate class {shorten(wnid)}, first on line {wnids[wnid]}"
            problems.append(Problem(str(root / "wnids.txt"), line, message))
        wnids.setdefault(wnid, line)
    train = Listing()
    for wnid in list_folders(root / "train", problems):
        if wnid in wnids:
            _read_train(root, wnid, train, problems)
        else:
            problems.append(Problem(str(root / "train" / wnid), None, "folder of a class that is not in wnids.txt"))
    test, left_out = _read_val(root, wnids, problems)
    return assemble("tiny_imagenet", root, _names(root, wnids, problems), train, test, problems, left_out=left_out)


def _find(root: Path) -> Path:
    root = require_folder(root, "Tiny-ImageNet", EXPECTED)
    for folder in (root, root / "tiny-imagenet-200"):
        if (folder / "wnids.txt").is_file():
            missing = [p for p in ("train", "val/images", "val/val_annotations.txt") if not (folder / p).exists()]
            if missing:
                raise DataError(f"{folder}: {', '.join(missing)} missing; expected {EXPECTED}")
            return folder
    raise DataError(
        f"{root}: not Tiny-ImageNet (no wnids.txt); expected {EXPECTED}; `lchp data download tiny_imagenet` fetches it"
    )


def _names(root: Path, wnids: dict[str, int], problems: list[Problem]) -> dict[str, str]:
    words: dict[str, tuple[int, str]] = {}
    if (root / "words.txt").is_file():
        words = read_keyed(root / "words.txt", problems)
    return {wnid: words[wnid][1] if wnid in words else wnid for wnid in wnids}


def _read_train(root: Path, wnid: str, train: Listing, problems: list[Problem]) -> None:
    folder, file = root / "train" / wnid / "images", root / "train" / wnid / f"{wnid}_boxes.txt"
    names = list_images(folder, problems)
    if not names:
        problems.append(Problem(str(folder), None, f"class {wnid} has no images"))
    lines: dict[str, tuple[int, list[str]]] = {}
    if file.is_file():
        lines = _read_annotations(file, 0, set(names), problems)
        _report_unlisted(file, names, lines, problems)
    else:
        problems.append(Problem(str(file), None, f"missing; the {len(names)} images of class {wnid} have no boxes"))
    for name in names:
        line, fields = lines.get(name, (None, []))
        box = None if line is None else _box(file, name, line, fields, problems)
        train.add(stem(name), wnid, folder / name, box, [] if box is None else [(str(file), line)])


def _read_val(root: Path, wnids: dict[str, int], problems: list[Problem]) -> tuple[Listing, list[Path]]:
    """The test images, and the image files that are left out."""
    folder, file = root / "val" / "images", root / "val" / "val_annotations.txt"
    names = list_images(folder, problems)
    lines = _read_annotations(file, 1, set(names), problems)
    _report_unlisted(file, names, lines, problems)
    test = Listing()
    for name, (line, (wnid, *fields)) in lines.items():
        if wnid not in wnids:
            message = f"class {shorten(wnid)} of {name} is not in wnids.txt"
            problems.append(Problem(str(file), line, message, stem(name)))
        elif (box := _box(file, name, line, fields, problems)) is not None:
            test.add(stem(name), wnid, folder / name, box, [(str(file), line)])
    used = set(test.paths)
    return test, [folder / name for name in names if folder / name not in used]


def _read_annotations(
    file: Path, columns: int, names: set[str], problems: list[Problem]
) -> dict[str, tuple[int, list[str]]]:
    """File name -> (line number, `columns` fields and 4 box fields), for the images that exist, in the file's order."""
    lines: dict[str, tuple[int, list[str]]] = {}
    for number, text in read_lines(file, problems):
        name, *fields = text.rsplit(maxsplit=columns + 4)  # from the right: a name may hold spaces
        message = ""
        if len(fields) != columns + 4:
            message = f"expected a file name and {columns + 4} values, found {shorten(text)}"
        elif name in lines:
            message = f"duplicate image {name}, first on line {lines[name][0]}"
        elif name not in names:
            message = f"image {shorten(name)} does not exist in images/"
        if message:
            problems.append(Problem(str(file), number, message, stem(name)))
        else:
            lines[name] = (number, fields)
    return lines


def _report_unlisted(
    file: Path, names: list[str], lines: dict[str, tuple[int, list[str]]], problems: list[Problem]
) -> None:
    spoilt = {p.image_id for p in problems if p.file == str(file)}
    for name in names:
        if name not in lines and stem(name) not in spoilt:
            problems.append(Problem(str(file), None, f"no line for image {name}", stem(name)))


def _box(file: Path, name: str, line: int, fields: list[str], problems: list[Problem]) -> np.ndarray | None:
    try:
        x1, y1, x2, y2 = parse_box(fields)
        return checked_box(x1, y1, x2 + 1, y2 + 1, SIDE, SIDE)[None]
    except ValueError as error:
        problems.append(Problem(str(file), line, str(error), stem(name)))
        return None
