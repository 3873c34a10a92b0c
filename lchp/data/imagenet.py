"""ImageNet-1k (ILSVRC2012 CLS-LOC) in its original layout or torchvision's; validation images are the test split."""

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

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
from lchp.data.base import DataSet, Problem, require_folder, require_regular, stem
from lchp.data.decode import image_size
from lchp.errors import DataError

EXPECTED = "Data/CLS-LOC/{train,val} with Annotations/CLS-LOC/val, or train/<class>/ and val/"

Object = tuple[str, tuple[float, float, float, float]]
"""Class and inclusive x1 y1 x2 y2 of one annotated object."""


def load(root: Path) -> DataSet:
    """Lists and validation boxes of ImageNet-1k.

    `root` is ILSVRC/ (with Data/ and Annotations/), its parent as Kaggle packs it, or a folder with torchvision's
    train/<wnid>/ and val/<wnid>/ or val/. Classes are the folders of train/ in sorted order, named by
    LOC_synset_mapping.txt where there is one; image ids are file names without extension, sorted.

    A validation image's class comes from LOC_val_solution.csv, else from its XML, else from its folder; its boxes (any
    number, inclusive px in the files) from the XML, or from that csv where there is no folder of XML. An XML's boxes
    are px of its <size>: where the image's file has another (its header is read), they are scaled to it. Training boxes
    are not read. An image with a fault is left out. Raises DataError where the layout is another.
    """
    root = require_folder(root, "ImageNet-1k", EXPECTED)
    base, images = _find(root)
    problems: list[Problem] = []
    train = Listing()
    names = _class_names(_beside(root, base, "LOC_synset_mapping.txt"), problems)
    wnids = list_folders(images / "train", problems)
    for wnid in wnids:
        folder = images / "train" / wnid
        files = list_images(folder, problems)
        if not files:
            problems.append(Problem(str(folder), None, f"class {wnid} has no images"))
        for file in files:
            train.add(stem(file), wnid, folder / file)
    test, left_out = _read_val(root, base, images / "val", set(wnids), problems)
    return assemble("imagenet", root, {w: names.get(w, w) for w in wnids}, train, test, problems, left_out=left_out)


def _find(root: Path) -> tuple[Path, Path]:
    """The folder that holds the annotations and the one that holds train/ and val/."""
    for base in (root, root / "ILSVRC"):
        for images in (base / "Data" / "CLS-LOC", base):
            if (images / "train").is_dir() and (images / "val").is_dir():
                return base, images
    raise DataError(f"{root}: not ImageNet-1k; expected {EXPECTED}; `lchp data download imagenet` says how to get it")


def _beside(root: Path, base: Path, name: str) -> Path | None:
    folders = [root, base] + ([base.parent] if base.name == "ILSVRC" else [])
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _class_names(file: Path | None, problems: list[Problem]) -> dict[str, str]:
    return {} if file is None else {wnid: name for wnid, (_, name) in read_keyed(file, problems).items()}


def _read_val(
    root: Path, base: Path, folder: Path, wnids: set[str], problems: list[Problem]
) -> tuple[Listing, list[Path]]:
    """The test images, and the image files that are left out."""
    csv = _beside(root, base, "LOC_val_solution.csv")
    solution = {} if csv is None else _read_solution(csv, problems)
    annotations = base / "Annotations" / "CLS-LOC" / "val"
    has_xml = annotations.is_dir()
    if csv is None and not has_xml:
        message = "no validation boxes (Annotations/CLS-LOC/val/*.xml or LOC_val_solution.csv); box metrics are off"
        problems.append(Problem(str(base), None, message))
    test, left_out, found = Listing(), list[Path](), set()
    files = sorted((stem(path.name), path) for path in _val_files(folder, problems))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        annotated = pool.map(lambda file: _annotation(annotations, *file) if has_xml else None, files)
    for (image_id, path), annotation in zip(files, annotated, strict=True):
        found.add(image_id)
        source, line = (annotations / f"{image_id}.xml", None) if has_xml else (csv or path, None)
        try:
            size: tuple[float, float] | None = None
            actual: tuple[int, int] | None = None
            objects: list[Object] = []
            if isinstance(annotation, ValueError):
                raise annotation
            if annotation is not None:
                size, objects, actual = annotation
            elif image_id in solution:
                line, _, objects = solution[image_id]
            in_csv = {solution[image_id][1]} if image_id in solution else set()
            in_folder = {path.parent.name} if path.parent != folder else set()
            wnid = _only_class(in_csv or {name for name, _ in objects} or in_folder)
            boxes = _boxes(objects, wnid, size, actual, Problem(str(source), line, "", image_id), problems)
            if boxes is None and (has_xml or csv):
                raise ValueError(f"no usable box of class {wnid}")
            places = [] if boxes is None else [(str(source), line)] * len(boxes)
            test.add(image_id, wnid, path, boxes, places)
        except ValueError as error:
            problems.append(Problem(str(source), line, str(error), image_id))
            left_out.append(path)
    for image_id, (line, wnid, _) in solution.items():
        # The list names all 50,000 images; a copy with some of the classes lacks the others rightly.
        if image_id not in found and wnid in wnids:
            problems.append(Problem(str(csv), line, f"image {shorten(image_id)} does not exist in val/", image_id))
    return test, left_out


def _annotation(
    annotations: Path, image_id: str, path: Path
) -> tuple[tuple[float, float] | None, list[Object], tuple[int, int] | None] | ValueError:
    """What an image's XML says (see `read_xml`) and the size of its file; or what is wrong with the XML."""
    try:
        size, objects = read_xml(annotations / f"{image_id}.xml")
    except ValueError as error:
        return error
    try:
        return size, objects, image_size(path)
    except DataError:  # reported, or dropped, when it is to be decoded
        return size, objects, None


def _val_files(folder: Path, problems: list[Problem]) -> Iterator[Path]:
    yield from (folder / name for name in list_images(folder, problems))
    for sub in list_folders(folder, problems):
        yield from (folder / sub / name for name in list_images(folder / sub, problems))


def _only_class(names: set[str]) -> str:
    if not names:
        raise ValueError("no class: neither LOC_val_solution.csv, nor an XML object, nor a class folder gives one")
    if len(names) > 1:
        raise ValueError(f"objects of several classes ({', '.join(sorted(names))}), and no list says which counts")
    return next(iter(names))


def _boxes(
    objects: list[Object],
    wnid: str,
    size: tuple[float, float] | None,
    actual: tuple[int, int] | None,
    at: Problem,
    problems: list[Problem],
) -> np.ndarray | None:
    """K x 4 of the class's objects, exclusive ends; a faulty box is reported and left out; None if none remains.

    The objects are px of an image of `size`; the boxes, of its file of size `actual`, where both are known.
    """
    boxes = []
    for name, (x1, y1, x2, y2) in objects:
        try:
            if name == wnid:
                boxes.append(checked_box(x1, y1, x2 + 1, y2 + 1, *(size or ())))
        except ValueError as error:
            problems.append(Problem(at.file, at.line, str(error), at.image_id))
    if not boxes:
        return None
    found = np.stack(boxes)
    if size is None or actual is None or actual == size:
        return found
    return (found * np.tile(np.array(actual) / np.array(size), 2)).astype(np.float32)


def _read_solution(file: Path, problems: list[Problem]) -> dict[str, tuple[int, str, list[Object]]]:
    """LOC_val_solution.csv, lines `id,wnid x1 y1 x2 y2 wnid x1 y1 x2 y2 ...`: id -> (line number, class, objects)."""
    solution: dict[str, tuple[int, str, list[Object]]] = {}
    for number, text in read_lines(file, problems):
        image_id, _, rest = text.partition(",")
        if number == 1 and image_id.lower() == "imageid":
            continue
        fields = rest.split()
        try:
            if not fields or len(fields) % 5:
                raise ValueError(f"expected groups of a class and 4 numbers, found {shorten(rest)}")
            if image_id in solution:
                raise ValueError(f"duplicate image {image_id}, first on line {solution[image_id][0]}")
            groups = [fields[i : i + 5] for i in range(0, len(fields), 5)]
            if len({group[0] for group in groups}) > 1:
                raise ValueError("an image has one class; found several")
            solution[image_id] = (number, fields[0], [(group[0], parse_box(group[1:])) for group in groups])
        except ValueError as error:
            problems.append(Problem(str(file), number, str(error), image_id))
    return solution


def read_xml(file: Path) -> tuple[tuple[float, float] | None, list[Object]]:
    """Width and height (None if not given) and the objects of one annotation in PASCAL VOC's form.

    A document type is refused, so that no entity is expanded or fetched. Raises ValueError saying what is wrong.
    """
    try:
        require_regular(file)
        tree = _parse_xml(file.read_bytes())
    except FileNotFoundError:
        raise ValueError("annotation file missing") from None
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
    except (expat.ExpatError, LookupError) as error:
        raise ValueError(f"not valid XML ({error})") from error
    width, height = (_length(tree.findtext(f"size/{side}")) for side in ("width", "height"))
    size = (width, height) if width and height else None
    objects: list[Object] = []
    for item in tree.iterfind("object"):
        corners = [(item.findtext(f"bndbox/{c}") or "").strip() or "nothing" for c in ("xmin", "ymin", "xmax", "ymax")]
        objects.append(((item.findtext("name") or "").strip(), parse_box(corners)))
    return size, objects


def _parse_xml(content: bytes) -> ElementTree.Element:
    def refuse(*_: object) -> None:
        raise ValueError("document type declarations are refused")

    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.Parse(content, True)
    return builder.close()


def _length(text: str | None) -> float | None:
    return float(text) if text and re.fullmatch(r"\s*\d{1,6}\s*", text) else None
