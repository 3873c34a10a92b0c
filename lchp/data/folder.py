"""The user's own images, one sub-folder per class (torchvision's ImageFolder layout); boxes are optional."""

import csv
import hashlib
import io
import itertools
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lchp.data.annotations import (
    Listing,
    PassedOver,
    assemble,
    by_kind,
    checked_box,
    list_folders,
    list_images,
    parse_box,
    read_bytes,
    same_looking,
    shorten,
)
from lchp.data.base import DataSet, Problem, require_folder
from lchp.errors import DataError

EXPECTED = "train/<class>/ and test/<class>/ (or val/<class>/), or <class>/ folders of images"
TRAIN, TEST, VAL = (
    {"train", "training", "trn"},
    {"test", "tests", "testing", "tst"},
    {"val", "valid", "validation", "validate", "dev", "eval", "evaluation"},
)
"""What the folder of a split is called, in any case, also with an ending such as `_set`."""
HEADER = ["image", "x1", "y1", "x2", "y2"]
TEST_SHARE = 0.2

BoxRows = dict[str, list[tuple[int, np.ndarray]]]
"""Image path relative to the root -> line and box of each of its rows."""


def load(root: Path) -> DataSet:
    """Images and, where `root`/boxes.csv exists, boxes.

    Layouts: `root`/train/<class>/ with `root`/test/<class>/ (or val/; see `TRAIN`, `TEST`, `VAL`), or `root`/<class>/
    alone, where `TEST_SHARE` of every class becomes the test split (see `split_class`). Class folders are searched in
    full; what is passed over there is noted. Labels follow the sorted class names of the training split; image ids are
    paths relative to `root` with `/`. Names that look the same are the same class, or image of boxes.csv, whatever
    their Unicode form. EXIF orientation is applied.

    boxes.csv has the header `image,x1,y1,x2,y2`: relative path, px of the upright picture with exclusive x2 y2, one
    row per box. If it names any test image, test images without a valid box are reported and left out, so that box
    metrics are about annotated images only; training boxes (diagnostics) are set if every training image has one.
    Raises DataError where there are no class folders.
    """
    root = require_folder(root, "your images", EXPECTED)
    problems, passed = list[Problem](), PassedOver()
    train, test = _list_splits(root, problems, passed)
    file, left_out = root / "boxes.csv", list[Path]()
    if os.path.lexists(file):
        rows = _read_boxes(file, {*train.ids, *test.ids}, problems)
        train = _with_boxes(train, rows, file)
        if any(image_id in rows for image_id in test.ids):
            test, left_out = _only_boxed(test, rows, file, problems)
            test = _with_boxes(test, rows, file)
        else:
            problems.append(Problem(str(file), None, "no valid row for any test image; box metrics are off"))
    classes = sorted({*train.classes, *test.classes})
    return assemble(
        "folder", root, {c: c for c in classes}, train, test, problems, True, left_out, notes=passed.notes(root)
    )


def split_class(image_ids: list[str]) -> set[str]:
    """Which images of one class are for testing: those whose path's hash falls into the first `TEST_SHARE`.

    So an image keeps its side when others are added. Each side has at least one image where a class has two.
    """
    if len(image_ids) < 2:
        return set()
    ranked = sorted(image_ids, key=_position)
    count = sum(_position(image_id) < TEST_SHARE for image_id in ranked)
    return set(ranked[: min(max(count, 1), len(ranked) - 1)])


def _position(image_id: str) -> float:
    """A fixed place in [0, 1) for a path."""
    return int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "big") / 2**64


def _list_splits(root: Path, problems: list[Problem], passed: PassedOver) -> tuple[Listing, Listing]:
    folders = list_folders(root, problems)
    train, test, val = (_of_split(root, folders, names) for names in (TRAIN, TEST, VAL))
    held_out = test or val
    if train and held_out:
        for name in (train, held_out):
            if not list_folders(root / name, problems):
                raise DataError(f"{root}: no class folders in {name}/; expected {EXPECTED}")
        passed.folders.update(f"{name}/" for name in folders if name not in (train, held_out))
        return _list_classes(root, f"{train}/", problems, passed), _list_classes(root, f"{held_out}/", problems, passed)
    # A class may itself be called "train" or "test": then images lie directly in it.
    if train and not list_images(root / train, problems):
        raise DataError(f"{root}: {train}/ but neither test/ nor val/ beside it; expected {EXPECTED}")
    if held_out and ({*folders} <= {test, val} or not list_images(root / held_out, problems)):
        raise DataError(f"{root}: {held_out}/ but no train/ beside it; expected {EXPECTED}")
    if not folders:
        raise DataError(f"{root}: no class folders; expected {EXPECTED}")
    if alike := _like_splits(root, folders, problems):
        raise DataError(f"{root}: {alike[0]}/ and {alike[1]}/ are called like splits; expected {EXPECTED}")
    for name in folders:
        below = list_folders(root / name, problems)
        inner = [_of_split(root / name, below, names) for names in (TRAIN, TEST, VAL)]
        if inner[0] and any(inner[1:]):
            raise DataError(f"{root}: {name}/ is no class but holds {inner[0]}/ and {inner[1] or inner[2]}/; name it")
    everything = _list_classes(root, "", problems, passed)
    of_train, of_test = Listing(), Listing()
    by_class: dict[str, list[str]] = {}
    for image_id, key in zip(everything.ids, everything.classes, strict=True):
        by_class.setdefault(key, []).append(image_id)
    for_test = set().union(*map(split_class, by_class.values()))
    for image_id, key, path in zip(everything.ids, everything.classes, everything.paths, strict=True):
        (of_test if image_id in for_test else of_train).add(image_id, key, path)
    return of_train, of_test


def _of_split(root: Path, folders: list[str], names: set[str]) -> str | None:
    """The folder of a split that is called by one of `names`, if there is one. Raises DataError for several."""
    found = [folder for folder in folders if _word(folder) in names]
    if len(found) > 1:
        raise DataError(f"{root}: {' and '.join(f'{name}/' for name in found)} name the same split; keep one of them")
    return found[0] if found else None


def _like_splits(root: Path, folders: list[str], problems: list[Problem]) -> tuple[str, str] | None:
    """Two folders whose names hold the word of a training split and that of another (`seg_train`, `seg_test`), where
    the names are the same but for it, or no image lies directly in them."""
    of_train, held_out = (
        [(folder, words - names) for folder in folders if (words := _words(folder)) & names]
        for names in (TRAIN, TEST | VAL)
    )
    for (one, rest), (other, of_other) in itertools.product(of_train, held_out):
        if rest == of_other or not any(list_images(root / name, problems) for name in (one, other)):
            return one, other
    return None


def _words(name: str) -> set[str]:
    """`train` and `birds` of `trainBirds-2`, in lower case."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFKC", name))
    return {*re.split(r"[\W\d_]+", name.casefold())} - {""}


def _word(name: str) -> str:
    """`training` for `01 Training_Set`: the letters of a folder's name, in lower case, without what adds nothing."""
    letters = re.sub(r"[\W\d_]+", "", unicodedata.normalize("NFKC", name).casefold())
    return re.sub(r"(?<=.)(set|data|split|images|imgs)$", "", letters)


def _list_classes(root: Path, prefix: str, problems: list[Problem], passed: PassedOver) -> Listing:
    """All images below the class folders of `root`/`prefix`."""
    listing, top = Listing(), root / prefix
    if loose := list_images(top, problems):
        message = f"{len(loose)} images outside of any class folder ({shorten(loose[0])}, ...); they are left out"
        problems.append(Problem(str(top), None, message))
    folders = list_folders(top, problems)
    if len(folders) == 1 and not list_images(top / folders[0], problems):
        below = list_folders(top / folders[0], problems)
        if len(below) > 1:
            raise DataError(
                f"{top}: {folders[0]}/ is its only folder, and holds folders ({shorten(below[0])}, ...); the folders "
                f"of the classes must lie directly in {top}"
            )
    for name in folders:
        # followlinks is off: a link to a parent folder would never end. A class folder itself may be a link.
        parents = _walk(top / name, problems)
        found = sorted(
            f"{parent.relative_to(root).as_posix()}/{file}"
            for parent in parents
            for file in list_images(parent, problems)
        )
        pictures = sum((passed.count(parent) for parent in parents), Counter[str]())
        if not found:
            why = f" that can be decoded here ({by_kind(pictures)}); convert them to JPEG or PNG" if pictures else ""
            problems.append(Problem(str(top / name), None, f"class {name} has no images{why}"))
        for image_id in found:
            listing.add(image_id, same_looking(name), root / image_id)
    return listing


def _walk(folder: Path, problems: list[Problem]) -> list[Path]:
    """`folder` and all folders below it."""
    folders = [folder]
    for parent in folders:
        subs = (parent / name for name in list_folders(parent, problems))
        folders += [sub for sub in subs if not sub.is_symlink()]
    return folders


def _read_boxes(file: Path, known: set[str], problems: list[Problem]) -> BoxRows:
    alike: dict[str, list[str]] = {}
    for image_id in known:
        alike.setdefault(same_looking(image_id), []).append(image_id)

    def image_of(written: str) -> str | None:
        for name in (written, written.strip()):  # a name may begin with a space
            if name in known:
                return name
        found = alike.get(same_looking(written.strip()), [])
        return found[0] if len(found) == 1 else None

    text = read_bytes(file).removeprefix(b"\xef\xbb\xbf").decode(errors="surrogateescape")
    rows: BoxRows = {}
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        header = [column.strip().lower() for column in next(reader, [])]
        if header != HEADER:
            found = shorten(",".join(header))
            message = f"the first line must be {','.join(HEADER)}, found {found}; the file is ignored"
            problems.append(Problem(str(file), 1, message))
            return rows
        for row in reader:
            _read_row(row, image_of, rows, file, reader.line_num, problems)
    except csv.Error as error:
        problems.append(Problem(str(file), reader.line_num, f"not valid CSV ({error}); the rest is ignored"))
    return rows


def _read_row(
    row: list[str],
    image_of: Callable[[str], str | None],
    rows: BoxRows,
    file: Path,
    line: int,
    problems: list[Problem],
) -> None:
    if not "".join(row).strip():
        return
    image_id = image_of(row[0])
    try:
        if image_id is None:
            raise ValueError(f"no such image {shorten(row[0].strip())}")
        box = checked_box(*parse_box(row[1:]))
        rows.setdefault(image_id, []).append((line, box))
    except ValueError as error:
        problems.append(Problem(str(file), line, str(error), image_id))


def _with_boxes(listing: Listing, rows: BoxRows, file: Path) -> Listing:
    """The same images with the boxes that boxes.csv gives them."""
    boxed = Listing()
    for image_id, key, path in zip(listing.ids, listing.classes, listing.paths, strict=True):
        given = rows.get(image_id, [])
        boxes = np.stack([box for _, box in given]) if given else None
        boxed.add(image_id, key, path, boxes, [(str(file), line) for line, _ in given])
    return boxed


def _only_boxed(test: Listing, rows: BoxRows, file: Path, problems: list[Problem]) -> tuple[Listing, list[Path]]:
    """The test images that have boxes, and the files of the others."""
    boxed, left_out = Listing(), list[Path]()
    for image_id, key, path in zip(test.ids, test.classes, test.paths, strict=True):
        if image_id in rows:
            boxed.add(image_id, key, path)
        else:
            message = f"no valid row for test image {shorten(image_id)}; it is left out"
            problems.append(Problem(str(file), None, message, image_id))
            left_out.append(path)
    return boxed, left_out
