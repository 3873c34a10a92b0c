"""The data sets of wsolevaluation (Choe et al., CVPR 2020; clovaai/wsolevaluation): lists and images in a clone of it.

Its three splits are folders of the same lists: `train` (train-weaksup in the paper: class labels alone are used), `val`
(train-fullsup: a few images per class whose boxes or masks may be used to choose thresholds and settings) and `test`.
What was chosen on `val` was chosen with boxes, though not with those of the test images.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np

from lchp.data.annotations import (
    Listing,
    assemble,
    checked_box,
    list_folders,
    list_images,
    parse_box,
    read_lines,
    same_looking,
    shorten,
)
from lchp.data.base import DataSet, Problem, WrittenSize, require_folder
from lchp.errors import DataError

IDS, LABELS, SIZES, LOCALIZATION = "image_ids.txt", "class_labels.txt", "image_sizes.txt", "localization.txt"
SPLITS = {"train": "train-weaksup", "val": "train-fullsup", "test": "test"}
"""Folder of a split -> its name in the paper."""
WITH_MASKS = "OpenImages"
"""The data set that is annotated by masks instead of boxes."""
EXPECTED = (
    "a clone of wsolevaluation with metadata/NAME/{train,val,test}/ and images in dataset/NAME/, or its metadata/NAME"
)

Size = tuple[int, int]
"""Width, height in px."""


class ListedBoxes(NamedTuple):
    """An image's boxes as listed, K x 4 int64 inclusive px x1 y1 x2 y2, and the line of each."""

    lines: tuple[int, ...]
    corners: np.ndarray

    def exclusive(self) -> np.ndarray:
        """K x 4 float32 whose x2 y2 are the first px outside, as in the rest of lchp."""
        return (self.corners + np.array([0, 0, 1, 1])).astype(np.float32)


@dataclass(frozen=True)
class Masks:
    """An image's mask files, relative to the folder of the data set: one per object, and what is to be ignored."""

    objects: tuple[str, ...]
    ignore: str


def load(root: Path, evaluated: Literal["val", "test"] = "test") -> DataSet:
    """A data set of wsolevaluation; the images of the split `evaluated` are the test split.

    `root` is a clone with the images of one data set in dataset/NAME/, or the folder metadata/NAME of a clone. Image
    ids are the listed paths, in their order; labels follow the listed class numbers over the classes that have training
    images, named by the folder that a class's training images lie in. Listed boxes are inclusive px: x2 y2 + 1 here.
    OpenImages has masks, so its splits have no boxes.

    The listed sizes are held against the files when these are opened. An image with a fault is left out; a training
    image stays where only its box is faulty or missing, and then there are no training boxes at all (they are for
    diagnostics only). Raises DataError where the layout is another.
    """
    lists, images = _find(root)
    problems: list[Problem] = []
    left_out: list[Path] = []
    sizes: dict[Path, WrittenSize] = {}
    train, test = (_read_split(lists / name, images, problems, left_out, sizes) for name in ("train", evaluated))
    name = "wsol" if evaluated == "test" else "wsol_fullsup"
    return assemble(name, root, _class_names(train, test), train, test, problems, left_out=left_out, sizes=sizes)


def read_ids(folder: Path, problems: list[Problem]) -> dict[str, int]:
    """image_ids.txt of a split's folder: id -> line number, in the file's order."""
    ids: dict[str, int] = {}
    for line, image_id in read_lines(folder / IDS, problems):
        if image_id in ids:
            message = f"duplicate image {shorten(image_id)}, first on line {ids[image_id]}"
        elif not _inside(image_id):
            message = f"image {shorten(image_id)} is not a path inside of the data set"
        else:
            ids[image_id] = line
            continue
        problems.append(Problem(str(folder / IDS), line, message))
    if not ids:
        problems.append(Problem(str(folder / IDS), None, "lists no image"))
    return ids


def read_labels(folder: Path, ids: Collection[str], problems: list[Problem]) -> dict[str, str]:
    """class_labels.txt: id -> class number as text."""
    labels: dict[str, str] = {}
    for at, (number,) in _rows(folder / LABELS, 1, ids, problems):
        assert at.image_id is not None
        if not (number.isascii() and number.isdigit()):
            problems.append(_said(at, f"class {shorten(number)} is not a number from 0"))
        elif at.image_id in labels:
            problems.append(_said(at, f"duplicate image {shorten(at.image_id)}"))
        else:
            labels[at.image_id] = str(int(number))
    _report_unlisted(folder / LABELS, ids, labels, problems)
    return labels


def read_sizes(folder: Path, ids: Collection[str], problems: list[Problem]) -> dict[str, Size]:
    """image_sizes.txt: id -> width, height in px."""
    return {image_id: (size.width, size.height) for image_id, size in _written_sizes(folder, ids, problems).items()}


def _written_sizes(folder: Path, ids: Collection[str], problems: list[Problem]) -> dict[str, WrittenSize]:
    sizes: dict[str, WrittenSize] = {}
    for at, fields in _rows(folder / SIZES, 2, ids, problems):
        assert at.image_id is not None
        if not all(f.isascii() and f.isdigit() and int(f) > 0 for f in fields):
            problems.append(_said(at, f"expected a width and a height in px, found {shorten(','.join(fields))}"))
        elif at.image_id in sizes:
            problems.append(_said(at, f"duplicate image {shorten(at.image_id)}"))
        else:
            sizes[at.image_id] = WrittenSize(at.file, at.line, int(fields[0]), int(fields[1]))
    _report_unlisted(folder / SIZES, ids, sizes, problems)
    return sizes


def read_boxes(
    folder: Path, ids: Collection[str], sizes: Mapping[str, Size], problems: list[Problem]
) -> dict[str, ListedBoxes]:
    """localization.txt with boxes: id -> its boxes, one per line.

    A box without area, with broken pixels, or outside of its image (where the size is known) is reported, left out.
    """
    found: dict[str, dict[int, tuple[float, float, float, float]]] = {}
    for at, fields in _rows(folder / LOCALIZATION, 4, ids, problems):
        assert at.image_id is not None
        assert at.line is not None
        try:
            x1, y1, x2, y2 = box = parse_box(fields)
            checked_box(x1, y1, x2 + 1, y2 + 1, *sizes.get(at.image_id, ()))
            if any(v != int(v) for v in box):
                raise ValueError(f"box {' '.join(fields)} is not in whole px")
            found.setdefault(at.image_id, {})[at.line] = box
        except ValueError as error:
            problems.append(_said(at, str(error)))
    _report_unlisted(folder / LOCALIZATION, ids, found, problems)
    return {i: ListedBoxes(tuple(boxes), np.array(list(boxes.values()), np.int64)) for i, boxes in found.items()}


def read_masks(folder: Path, ids: Collection[str], problems: list[Problem]) -> dict[str, Masks]:
    """localization.txt with masks: lines `id,mask,ignore`, one per object, of which an image's first names `ignore`."""
    found: dict[str, Masks] = {}
    for at, (mask, ignore) in _rows(folder / LOCALIZATION, 2, ids, problems):
        assert at.image_id is not None
        first = found.get(at.image_id)
        if not _inside(mask) or (ignore and not _inside(ignore)):
            problems.append(_said(at, f"{shorten(f'{mask},{ignore}')}: expected paths of a mask and of what to ignore"))
        elif bool(ignore) == (first is not None):
            problems.append(
                _said(at, "expected the mask of what to ignore on the first line of an image, and only there")
            )
        else:
            objects = (*(first.objects if first else ()), mask)
            found[at.image_id] = Masks(objects, first.ignore if first else ignore)
    _report_unlisted(folder / LOCALIZATION, ids, found, problems)
    return found


def _find(root: Path) -> tuple[Path, Path]:
    """The folder of the three splits, and that of the images."""
    root = require_folder(root, "wsolevaluation", EXPECTED)
    if (root / "train" / IDS).is_file():
        lists = root.absolute()
        images = lists.parents[1] / "dataset" / lists.name
        if not images.is_dir():
            raise DataError(f"{images}: no such folder, where the images of {root} should lie; expected {EXPECTED}")
        return lists, images
    names = sorted(p.parents[1].name for p in root.glob(f"metadata/*/train/{IDS}"))
    with_images = [name for name in names if (root / "dataset" / name).is_dir()]
    if len(with_images) > 1:
        raise DataError(
            f"{root}: images of {', '.join(with_images)}; name one: --data.root {root}/metadata/{with_images[0]}"
        )
    if not with_images:
        missing = (
            f"lists of {', '.join(names)}, but no dataset/{names[0]}" if names else f"no metadata/NAME/train/{IDS}"
        )
        raise DataError(f"{root}: {missing}; expected {EXPECTED}")
    return root / "metadata" / with_images[0], root / "dataset" / with_images[0]


def _read_split(
    lists: Path, images: Path, problems: list[Problem], left_out: list[Path], sizes: dict[Path, WrittenSize]
) -> Listing:
    """A split; `sizes` gets what it lists of its files."""
    if not (lists / IDS).is_file():
        raise DataError(f"{lists / IDS}: no such file; expected {EXPECTED}")
    is_train, masks = lists.name == "train", images.name == WITH_MASKS
    ids = read_ids(lists, problems)
    labels = read_labels(lists, ids, problems)
    listed = _written_sizes(lists, ids, problems) if (lists / SIZES).is_file() else {}
    boxes: dict[str, ListedBoxes] = {}
    # boxes of training images are diagnostics: a list without them is complete
    if not masks and (not is_train or (lists / LOCALIZATION).is_file()):
        boxes = read_boxes(lists, ids, {i: (size.width, size.height) for i, size in listed.items()}, problems)
    folders = {parent: _folder(images, parent) for parent in {PurePosixPath(i).parent for i in ids}}
    files: dict[Path, dict[str, str]] = {}
    listing = Listing()
    for image_id, line in ids.items():
        folder = folders[PurePosixPath(image_id).parent]
        if folder not in files:
            names = list_images(folder, problems) if folder.is_dir() else []
            files[folder] = {same_looking(name): name for name in names} | {name: name for name in names}
        name = PurePosixPath(image_id).name
        path = folder / files[folder].get(name, files[folder].get(same_looking(name), name))
        if image_id in listed:
            sizes[path] = listed[image_id]
        known = boxes.get(image_id)
        if path.name not in files[folder]:
            message = f"image {shorten(image_id)} does not exist in {images}"
            problems.append(Problem(str(lists / IDS), line, message, image_id))
        elif image_id not in labels or not (is_train or masks or known):
            left_out.append(path)
        elif known:
            places = [(str(lists / LOCALIZATION), n) for n in known.lines]
            listing.add(image_id, labels[image_id], path, known.exclusive(), places)
        else:
            listing.add(image_id, labels[image_id], path)
    return listing


def _folder(images: Path, relative: PurePosixPath) -> Path:
    """The folder of that name, or the one whose name looks the same."""
    if relative == PurePosixPath():
        return images
    parent = _folder(images, relative.parent)
    if not (parent / relative.name).is_dir() and parent.is_dir():
        for name in list_folders(parent, []):
            if same_looking(name) == same_looking(relative.name):
                return parent / name
    return parent / relative.name


def _class_names(train: Listing, test: Listing) -> dict[str, str]:
    """Class number -> name, by ascending number: the folder of its training images, where it is theirs alone."""
    folders: dict[str, set[str]] = {key: set() for key in sorted({*train.classes, *test.classes}, key=int)}
    for image_id, key in zip(train.ids, train.classes, strict=True):
        folders[key].add(PurePosixPath(image_id).parent.name)
    used = Counter(name for names in folders.values() for name in names)
    own = {key: next(iter(names)) for key, names in folders.items() if len(names) == 1}
    return {key: own[key] if key in own and own[key] and used[own[key]] == 1 else key for key in folders}


def _rows(
    file: Path, columns: int, ids: Collection[str], problems: list[Problem]
) -> Iterator[tuple[Problem, list[str]]]:
    """Where a line is (a problem without a message), and its fields, of every line `id,field,...` of a known image."""
    for line, text in read_lines(file, problems):
        image_id, *fields = text.rsplit(",", columns)  # from the right: a path may hold commas
        if len(fields) != columns:
            problems.append(Problem(str(file), line, f"expected an image and {columns} values, found {shorten(text)}"))
        elif image_id not in ids:
            problems.append(Problem(str(file), line, f"image {shorten(image_id)} is not in {IDS}"))
        else:
            yield Problem(str(file), line, "", image_id), [f.strip() for f in fields]


def _said(at: Problem, message: str) -> Problem:
    return Problem(at.file, at.line, message, at.image_id)


def _report_unlisted(file: Path, ids: Collection[str], found: Collection[str], problems: list[Problem]) -> None:
    spoilt = {p.image_id for p in problems if p.file == str(file)}
    problems += [
        Problem(str(file), None, f"no line for image {shorten(image_id)}", image_id)
        for image_id in ids
        if image_id not in found and image_id not in spoilt
    ]


def _inside(path: str) -> bool:
    """Whether a listed path stays below the folder that it is relative to."""
    parts = PurePosixPath(path)
    return bool(parts.parts) and not parts.is_absolute() and ".." not in parts.parts
