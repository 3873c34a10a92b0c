"""What the loaders share: reading lists that others wrote, checking boxes, and putting splits together."""

import math
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lchp.data.base import DataSet, Problem, Split, WrittenBox, WrittenSize, require_regular
from lchp.data.decode import EXTENSIONS, PICTURES, is_image
from lchp.errors import DataError, printable

IMAGE_EXTENSIONS = EXTENSIONS

SYSTEM_FOLDERS = {
    "__macosx",
    "@eadir",
    "@recycle",
    "@recently-snapshot",
    "@tmp",
    "#recycle",
    "#snapshot",
    "~snapshot",
    "$recycle.bin",
    "recycler",
    "system volume information",
    "network trash folder",
    "temporary items",
    "__pycache__",
    "lost+found",
}
"""Folders that systems and network disks make, in lower case; their files, some called .jpg, are nobody's images."""
_LEFT_BY_SYSTEMS = {"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini", "icon\r"}

TOLERANCE = 1.0
"""How far in px a box may reach over the image's edge before it counts as a fault: annotations round differently."""

LARGEST = 1e6  # px; bounds boxes whose image size is not known, so that float32 holds them


@dataclass
class Listing:
    """A split while it is read: parallel lists, which for 1.28 million images cost far less than an object each."""

    ids: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)
    boxes: list[np.ndarray | None] = field(default_factory=list)
    written: dict[Path, tuple[WrittenBox, ...]] = field(default_factory=dict)

    def add(
        self,
        image_id: str,
        class_key: str,
        path: Path,
        boxes: np.ndarray | None = None,
        places: Sequence[tuple[str, int | None]] = (),
    ) -> None:
        """Appends one image; `boxes`: K x 4, or None where they are not known; `places`: file and line of each box."""
        self.ids.append(image_id)
        self.classes.append(class_key)
        self.paths.append(path)
        self.boxes.append(boxes)
        if boxes is not None and places:
            pairs = zip(places, boxes.tolist(), strict=True)
            self.written[path] = tuple(WrittenBox(*place, (x1, y1, x2, y2)) for place, (x1, y1, x2, y2) in pairs)


def read_lines(path: Path, problems: list[Problem]) -> Iterator[tuple[int, str]]:
    """Number (from 1) and stripped text of every line that is not blank, whatever its line ends, with or without a BOM.

    A line that is not UTF-8 goes to `problems`. Raises DataError where the file cannot be read.
    """
    content = read_bytes(path)
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        try:
            text = raw.decode().strip()
        except UnicodeDecodeError:
            problems.append(Problem(str(path), number, "not valid UTF-8; the line is ignored"))
            continue
        if text:
            yield number, text


def read_bytes(path: Path) -> bytes:
    """The content of a file that others wrote. Raises DataError where it cannot be read, or is no regular file."""
    try:
        require_regular(path)
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def read_keyed(path: Path, problems: list[Problem]) -> dict[str, tuple[int, str]]:
    """Lines `key value...` as key -> (line number, the rest). The first of several lines with a key counts."""
    table: dict[str, tuple[int, str]] = {}
    for number, text in read_lines(path, problems):
        key, *rest = text.split(maxsplit=1)
        if not rest:
            problems.append(Problem(str(path), number, f"expected an id and a value, found {shorten(text)}", key))
        elif key in table:
            problems.append(Problem(str(path), number, f"duplicate id {key}, first on line {table[key][0]}", key))
        else:
            table[key] = (number, rest[0])
    return table


def parse_box(fields: Sequence[str]) -> tuple[float, float, float, float]:
    """Four finite numbers. Raises ValueError saying what is wrong."""
    if len(fields) != 4:
        raise ValueError(f"expected 4 box coordinates, found {len(fields)}")
    try:
        a, b, c, d = (_number(f) for f in fields)
    except ValueError:
        raise ValueError(f"box {shorten(' '.join(fields))} is not numeric") from None
    if not all(map(math.isfinite, (a, b, c, d))):
        raise ValueError(f"box {' '.join(fields)} is not finite")
    return a, b, c, d


def _number(text: str) -> float:
    if "_" in text:  # Python reads 1_5 as 15
        raise ValueError
    return float(text)


def checked_box(
    x1: float, y1: float, x2: float, y2: float, width: float | None = None, height: float | None = None
) -> np.ndarray:
    """The box (exclusive x2 y2, px) as 4 float32, clipped to the image where its size is known.

    Raises ValueError for a box without area or one that leaves the image by more than `TOLERANCE`.
    """
    shown = f"box {x1:g} {y1:g} {x2:g} {y2:g}"
    if x2 <= x1 or y2 <= y1:
        raise ValueError(f"{shown} (x1 y1 x2 y2) has zero or negative size")
    right, bottom = width or LARGEST, height or LARGEST
    if min(x1, y1) < -TOLERANCE or x2 > right + TOLERANCE or y2 > bottom + TOLERANCE:
        size = f" of {width:g} x {height:g}" if width and height else ""
        raise ValueError(f"{shown} (x1 y1 x2 y2) lies outside of the image{size}")
    box = np.array([max(x1, 0.0), max(y1, 0.0), min(x2, right), min(y2, bottom)], np.float32)
    if box[2] <= box[0] or box[3] <= box[1]:
        raise ValueError(f"{shown} (x1 y1 x2 y2) lies outside of the image")
    return box


def against_lists(dataset: DataSet, path: Path, width: int, height: int, image_id: str) -> Iterator[Problem]:
    """A problem for all that a data set's lists say of an image file which its size (px) denies."""
    yield from outside(dataset.written.get(path, ()), width, height, image_id)
    if (size := dataset.sizes.get(path)) is not None and size[2:] != (width, height):
        message = f"image {image_id}: listed as {size.width} x {size.height}, but the file has {width} x {height}"
        yield Problem(size.file, size.line, message, image_id)


def outside(boxes: Iterable[WrittenBox], width: int, height: int, image_id: str) -> Iterator[Problem]:
    """A problem for each box that leaves its image of that size (px) by more than `TOLERANCE`."""
    for file, line, (x1, y1, x2, y2) in boxes:
        if min(x1, y1) < -TOLERANCE or x2 > width + TOLERANCE or y2 > height + TOLERANCE:
            box = f"box {x1:g} {y1:g} {x2:g} {y2:g} (x1 y1 x2 y2)"
            yield Problem(
                file, line, f"image {image_id}: {box} lies outside of the image of {width} x {height}", image_id
            )


def list_images(folder: Path, problems: list[Problem]) -> list[str]:
    """Sorted names of the image files directly in `folder` (see `is_image`); hidden files are passed over."""
    return sorted(e.name for e in _scan(folder, problems) if not _is_folder(e) and is_image(folder / e.name))


def list_folders(folder: Path, problems: list[Problem]) -> list[str]:
    """Sorted names of the folders in `folder`; hidden ones and those that systems make are passed over."""
    return sorted(e.name for e in _scan(folder, problems) if _is_folder(e) and e.name.lower() not in SYSTEM_FOLDERS)


@dataclass
class PassedOver:
    """Files that are not taken for images, by kind -> number; `folders`: that are neither classes nor splits."""

    undecodable: Counter[str] = field(default_factory=Counter)
    system: Counter[str] = field(default_factory=Counter)
    other: Counter[str] = field(default_factory=Counter)
    folders: Counter[str] = field(default_factory=Counter)

    def count(self, folder: Path) -> Counter[str]:
        """Counts what `list_images` and `list_folders` pass over in a folder; its pictures that cannot be decoded."""
        pictures: Counter[str] = Counter()
        try:
            with os.scandir(folder) as found:
                entries = [(e.name, _is_folder(e)) for e in found]
        except OSError:  # list_images has reported it
            return pictures
        for name, is_folder in entries:
            lower, kind = name.lower(), os.path.splitext(name)[1].lower()
            if lower.startswith(".") or lower in (SYSTEM_FOLDERS if is_folder else _LEFT_BY_SYSTEMS):
                self.system["._*" if lower.startswith("._") else name] += 1
            elif not is_folder and not is_image(folder / name):
                (pictures if kind and kind in PICTURES else self.other)[kind or name] += 1
        self.undecodable += pictures
        return pictures

    def notes(self, root: Path) -> tuple[str, ...]:
        """A line for each kind of which there are some."""
        kinds = (
            (
                self.undecodable,
                "pictures that cannot be decoded here",
                "; convert them to JPEG or PNG",
            ),
            (self.other, "files that are no images", ""),
            (self.folders, "folders beside those of the splits", ""),
            (self.system, "hidden files and what systems leave (thumbnails)", ""),
        )
        return tuple(
            printable(f"{root}: passed over {sum(some.values()):,} {what}: {by_kind(some)}{advice}")
            for some, what, advice in kinds
            if some
        )


def by_kind(numbers: Counter[str], most: int = 6) -> str:
    """`.heic 8, .jxl 1`, the most frequent first."""
    shown = ", ".join(f"{kind} {number:,}" for kind, number in sorted(numbers.items(), key=lambda k: (-k[1], k))[:most])
    return f"{shown}, ..." if len(numbers) > most else shown


def same_looking(text: str) -> str:
    """The one spelling of names that look the same but are written in different Unicode forms, as macOS does."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _scan(folder: Path, problems: list[Problem]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            entries = [e for e in found if not e.name.startswith(".")]
    except OSError as error:
        problems.append(Problem(str(folder), None, f"folder cannot be listed ({error.strerror})"))
        return []
    valid = [e for e in entries if _is_utf8(e.name)]
    if len(valid) < len(entries):
        # Such a name could not be written to JSON or Parquet later on.
        count = len(entries) - len(valid)
        problem = Problem(str(folder), None, f"{count} names are not valid UTF-8; those files are left out")
        if problem not in problems:  # a folder is searched for images, then for folders
            problems.append(problem)
    return valid


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def shorten(text: str, length: int = 80) -> str:
    """`text` quoted for a message, cut to `length` characters."""
    return repr(text if len(text) <= length else text[: length - 3] + "...")


def assemble(
    name: str,
    root: Path,
    classes: Mapping[str, str],
    train: Listing,
    test: Listing,
    problems: Sequence[Problem],
    exif: bool = False,
    left_out: Sequence[Path] = (),
    sizes: Mapping[Path, WrittenSize] | None = None,
    notes: tuple[str, ...] = (),
) -> DataSet:
    """The data set of two listings.

    `classes` maps class keys, in the order of their labels, to names; those without a training image get no label, and
    their test images are left out and reported. Equal names are told apart by their key (ImageNet has two cranes).
    A split has boxes where those of all its images are known; that it is empty is a problem like others.
    `left_out`: image files that the loader itself left out. `sizes` and `notes` are those of the data set.
    """
    trained = set(train.classes)
    present = [key for key in classes if key in trained]
    lost = Counter(key for key in test.classes if key not in trained)
    unseen = [
        Problem(str(root), None, f"class {key} has {count} test images but no training image; they are left out")
        for key, count in lost.items()
    ]
    all_problems = [*problems, *unseen]
    names = Counter(classes[key] for key in present)
    labels = {key: label for label, key in enumerate(present)}
    class_names = tuple(classes[key] if names[classes[key]] == 1 else f"{classes[key]} ({key})" for key in present)
    others = list(left_out)
    train_split = _split("training", root, train, labels, all_problems, others, exif)
    test_split = _split("test", root, test, labels, all_problems, others, exif)
    written = train.written | test.written
    return DataSet(
        name, class_names, train_split, test_split, tuple(all_problems), written, tuple(others), sizes or {}, notes
    )


def _split(
    what: str,
    root: Path,
    listing: Listing,
    labels: Mapping[str, int],
    problems: list[Problem],
    left_out: list[Path],
    exif: bool,
) -> Split:
    keep, seen = [], set()
    for i, image_id in enumerate(listing.ids):
        if image_id in seen:
            problems.append(Problem(str(listing.paths[i]), None, f"another {what} image has the id {image_id} already"))
        if image_id not in seen and listing.classes[i] in labels:
            keep.append(i)
        else:
            left_out.append(listing.paths[i])
        seen.add(image_id)
    if not keep:
        problems.append(Problem(str(root), None, f"no usable {what} image"))
    boxes = [known for i in keep if (known := listing.boxes[i]) is not None]
    return Split(
        tuple(listing.ids[i] for i in keep),
        np.array([labels[listing.classes[i]] for i in keep], np.int64),
        paths=tuple(listing.paths[i] for i in keep),
        boxes=tuple(boxes) if keep and len(boxes) == len(keep) else None,
        exif=exif,
    )
