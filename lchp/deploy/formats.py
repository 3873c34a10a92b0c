"""What a prediction is, and how it is written: JSON lines, CSV, COCO, YOLO or Label Studio. Each writer streams."""

import codecs
import contextlib
import csv
import io
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TextIO
from urllib.parse import quote
from xml.etree import ElementTree

from PIL import Image

from lchp.data.decode import decode, seen_alike
from lchp.errors import ConfigError, DataError
from lchp.files.filesystem import sync
from lchp.files.targets import claim, require_new_folder

Format = Literal["jsonl", "csv", "coco", "yolo", "labelstudio"]
ANNOTATIONS: tuple[Format, ...] = ("coco", "yolo", "labelstudio")
"""The formats that a detector or a label tool reads."""
LEAST_AREA = 0.01
"""Share of the view that a region covers at least, to be an object."""


def check_options(
    source: Path, target: Path | None, format: str, shares: Mapping[str, float], *, pictures: bool, several: bool
) -> None:
    """Raises an LchpError for options of `lchp.deploy.predict.predict_to` that contradict each other, and for images or
    a target that cannot be. shares: min_confidence, least_confidence and least_area."""
    if target is None and (pictures or format in ("yolo", "labelstudio")):
        raise ConfigError(f"{'--pictures' if pictures else f'--format {format}'} needs --output DIR to write to")
    if target is not None:
        require_new_folder(target)
    elif sys.__stdout__ is None:
        raise ConfigError("standard output is closed; name --output DIR to write to")
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ConfigError(f"{name} = {share}: expected in [0, 1]")
    if not several and shares["least_area"] != LEAST_AREA:
        raise ConfigError("--least-area goes with --several")
    if format not in ANNOTATIONS and shares["min_confidence"]:
        raise ConfigError(f"--min-confidence goes with --format {', '.join(ANNOTATIONS)}")
    if not source.exists():
        raise DataError(f"{source}: no such image or folder")


@dataclass(frozen=True)
class Detected:
    """An object of an image: `box` in px of the original image, x1 y1 x2 y2 with exclusive ends; `confidence`: maximum
    softmax on the crop in the box (Eq. 4)."""

    box: tuple[float, float, float, float]
    confidence: float

    def record(self) -> dict[str, Any]:
        """Plain values, rounded to what is meant: 1/100 px, six digits of a probability."""
        return {"box": [round(v, 2) for v in self.box], "confidence": round(self.confidence, 6)}


@dataclass(frozen=True)
class Prediction:
    """One image's. `image`: its path relative to the folder asked for, with `/`; width, height in px of the original
    image; `score`: the class's softmax on the whole view; `box` and `confidence` as of `Detected`. `box` is None where
    nothing is there. `objects`: where several were asked for, all of them, the most confident first; its box and
    confidence are the image's."""

    image: str
    width: int
    height: int
    class_id: int
    class_name: str
    score: float
    box: tuple[float, float, float, float] | None
    confidence: float
    objects: tuple[Detected, ...] | None = None

    @property
    def found(self) -> tuple[Detected, ...]:
        """All objects of the image, from none up."""
        if self.objects is not None:
            return self.objects
        return () if self.box is None else (Detected(self.box, self.confidence),)

    def record(self) -> dict[str, Any]:
        """Plain values, rounded as those of `Detected`; `objects` only where several were asked for."""
        values = asdict(self) | {
            "score": round(self.score, 6),
            "box": None if self.box is None else [round(v, 2) for v in self.box],
            "confidence": round(self.confidence, 6),
        }
        del values["objects"]
        return values if self.objects is None else values | {"objects": [o.record() for o in self.objects]}


READ_BY_DETECTORS = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
"""Endings of the images that Ultralytics and YOLOv5 to YOLOv9 look for; they pass over others without a word (but for
TIFF's, see `seen_alike`)."""

_IMAGES = re.compile(r"(?<![^/])(_*images)(?=/)")
"""A folder `images` of the source. Detectors find a label by putting `labels` for the last folder `images` of an
image's path, which must be that of the output."""

Write = Callable[[Prediction, Path], object]
"""Writes one image's prediction; the path is the image file's."""


def open_writer(format: Format, folder: Path | None, class_names: tuple[str, ...]) -> AbstractContextManager[Write]:
    """A writer into files of `folder`, or to standard output (not for YOLO and Label Studio, which are several files).

    jsonl: predictions.jsonl. csv: predictions.csv. coco: annotations.json, where `score` is the confidence and category
    ids count from 1 and `segmentation` is the box. yolo: labels/*.txt with `class cx cy w h` in fractions, images/
    (copies; as PNG those that detectors would not read, or see turned), classes.txt and data.yaml, so that a detector
    trains on the folder as it is. There a folder `images` of the source is called `_images`.
    labelstudio: tasks.json, a task per image with the boxes as predictions, the least confident image first, and the
    labeling config label_config.xml. Label Studio finds the images by its local storage, whose document root is the
    folder that holds the source.
    """
    return _WRITERS[format](folder, class_names)


@contextlib.contextmanager
def _opened(folder: Path | None, name: str) -> Iterator[TextIO]:
    if folder is None:
        out = sys.stdout
        errors = out.errors
        if isinstance(out, io.TextIOWrapper):
            # a file's name need not be UTF-8, and then comes out as it is; what another encoding lacks, as an escape
            utf8 = codecs.lookup(out.encoding).name == "utf-8"
            out.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")
        try:
            yield out
            out.flush()
        finally:
            if isinstance(out, io.TextIOWrapper):
                out.reconfigure(errors=errors)
    else:
        with (folder / name).open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            yield file
            file.flush()
            sync(file.fileno())


@contextlib.contextmanager
def _json_lines(folder: Path | None, class_names: tuple[str, ...]) -> Iterator[Write]:  # noqa: ARG001
    with _opened(folder, "predictions.jsonl") as file:
        yield lambda prediction, _: file.write(json.dumps(prediction.record()) + "\n")


@contextlib.contextmanager
def _csv(folder: Path | None, class_names: tuple[str, ...]) -> Iterator[Write]:  # noqa: ARG001
    columns = ["image", "width", "height", "class_id", "class_name", "score", "x1", "y1", "x2", "y2", "confidence"]
    with _opened(folder, "predictions.csv") as file:
        rows = csv.DictWriter(file, columns, lineterminator="\n")
        rows.writeheader()

        def write(prediction: Prediction, _: Path) -> None:
            values = {name: value for name, value in prediction.record().items() if name in columns}
            for detected in prediction.found:
                corners = dict(zip(("x1", "y1", "x2", "y2"), detected.record()["box"], strict=True))
                rows.writerow(values | corners | {"confidence": detected.record()["confidence"]})
            if not prediction.found:
                rows.writerow(values)

        yield write


@contextlib.contextmanager
def _coco(folder: Path | None, class_names: tuple[str, ...]) -> Iterator[Write]:
    categories = [{"id": k + 1, "name": name, "supercategory": ""} for k, name in enumerate(class_names)]
    info = {"description": "classes and boxes predicted by lchp; score is the confidence of Eq. 4"}
    # images go straight into the file, annotations into a nameless spool beside it that is appended at the end
    with (
        _opened(folder, "annotations.json") as file,
        tempfile.TemporaryFile("w+", encoding="utf-8", dir=folder) as spool,
    ):
        head = {"info": info, "licenses": [], "categories": categories}
        file.write(json.dumps(head).removesuffix("}") + ',\n"images": [')
        images = annotations = 0

        def write(prediction: Prediction, _: Path) -> None:
            nonlocal images, annotations
            r = prediction.record()
            comma, images = (",\n" if images else "\n"), images + 1
            image = {"id": images, "file_name": r["image"], "width": r["width"], "height": r["height"]}
            file.write(comma + json.dumps(image))
            for detected in prediction.found:
                comma, annotations = (",\n" if annotations else "\n"), annotations + 1
                about = detected.record()
                x1, y1, x2, y2 = about["box"]
                w, h = round(x2 - x1, 2), round(y2 - y1, 2)
                annotation = {
                    "id": annotations,
                    "image_id": images,
                    "category_id": r["class_id"] + 1,
                    "bbox": [x1, y1, w, h],
                    "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],  # the box: pycocotools draws and masks no other
                    "area": round(w * h, 2),
                    "iscrowd": 0,
                    "score": about["confidence"],
                    "class_score": r["score"],
                }
                spool.write(comma + json.dumps(annotation))

        yield write
        file.write('],\n"annotations": [')
        spool.seek(0)
        shutil.copyfileobj(spool, file)
        file.write("]}\n")


@contextlib.contextmanager
def _yolo(folder: Path | None, class_names: tuple[str, ...]) -> Iterator[Write]:
    assert folder is not None
    labels, images = folder / "labels", folder / "images"
    for made in (labels, images):
        made.mkdir()

    def write(prediction: Prediction, path: Path) -> None:
        w, h = prediction.width, prediction.height
        lines = []
        for detected in prediction.found:
            x1, y1, x2, y2 = detected.box
            values = ((x1 + x2) / 2 / w, (y1 + y2) / 2 / h, (x2 - x1) / w, (y2 - y1) / h)
            lines.append(f"{prediction.class_id} " + " ".join(f"{v:.6f}" for v in values) + "\n")
        name = _IMAGES.sub(r"_\1", prediction.image)
        stem, suffix = os.path.splitext(name)
        read = suffix.lower() in READ_BY_DETECTORS and seen_alike(path)
        if not read:
            stem, suffix = name, ".png"
        label = claim(labels, stem, ".txt", suffix)  # a.jpg beside a.png: a label is named by the stem alone
        label.write_text("".join(lines))
        stem = label.relative_to(labels).as_posix().removesuffix(".txt")
        image = images / f"{stem}{suffix}"
        image.parent.mkdir(parents=True, exist_ok=True)
        if read:
            shutil.copyfile(path, image)  # no link: some detectors repair images in their place
        else:
            encoded = io.BytesIO()  # an encoder that writes into the file does not say why it cannot
            Image.fromarray(decode(path, None, exif=True)).save(encoded, "PNG")
            image.write_bytes(encoded.getvalue())

    yield write
    names = [" ".join(name.splitlines()) for name in class_names]  # a line each
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in names), "utf-8", "backslashreplace")
    # without `path`, detectors take the folder of data.yaml
    listed = "".join(f"  {k}: {_yaml(name)}\n" for k, name in enumerate(class_names))
    (folder / "data.yaml").write_text(f"train: images\nval: images\nnames:\n{listed}")


LOCAL_FILES = "/data/local-files/?d="
"""Where Label Studio serves what lies below its document root."""


@contextlib.contextmanager
def _label_studio(folder: Path | None, class_names: tuple[str, ...]) -> Iterator[Write]:
    assert folder is not None
    names = _label_names(class_names)
    places: list[tuple[float, int, int]] = []  # confidence, start, and end of each task in the spool
    with tempfile.TemporaryFile("w+b", dir=folder) as spool:

        def write(prediction: Prediction, path: Path) -> None:
            task = json.dumps(_task(prediction, names[prediction.class_id], path)).encode()
            start = spool.tell()
            spool.write(task)
            places.append((prediction.confidence, start, start + len(task)))

        yield write
        with _opened(folder, "tasks.json") as file:
            for n, (_, start, end) in enumerate(sorted(places)):
                spool.seek(start)
                file.write(("[\n" if n == 0 else ",\n") + spool.read(end - start).decode())
            file.write("\n]\n" if places else "[]\n")
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name="image", value="$image")
    labels = ElementTree.SubElement(view, "RectangleLabels", name="label", toName="image")
    for name in names:
        ElementTree.SubElement(labels, "Label", value=name)
    ElementTree.indent(view)
    (folder / "label_config.xml").write_bytes(ElementTree.tostring(view) + b"\n")


def _label_names(class_names: tuple[str, ...]) -> list[str]:
    """What Label Studio calls the classes. Names that its config would hold alike get their class's number."""
    found: dict[str, None] = {}
    for k, class_name in enumerate(class_names):
        name = _plain(class_name) or f"class {k}"
        while name in found:
            name = f"{name} ({k})"
        found[name] = None
    return list(found)


def _plain(text: str) -> str:
    """Text as an attribute of XML can hold it, and as it is read from there."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _task(prediction: Prediction, name: str, path: Path) -> dict[str, Any]:
    """Label Studio's of an image: a box is x, y, width and height in percent of the image."""
    w, h = prediction.width, prediction.height
    result = []
    for n, detected in enumerate(prediction.found):
        x1, y1, x2, y2 = detected.box
        corner = {"x": 100 * x1 / w, "y": 100 * y1 / h, "width": 100 * (x2 - x1) / w, "height": 100 * (y2 - y1) / h}
        result.append(
            {
                "id": f"box{n + 1}",
                "type": "rectanglelabels",
                "from_name": "label",
                "to_name": "image",
                "original_width": w,
                "original_height": h,
                "image_rotation": 0,
                "value": {k: round(v, 4) for k, v in corner.items()} | {"rotation": 0, "rectanglelabels": [name]},
                "score": detected.record()["confidence"],
            }
        )
    record = prediction.record()
    said = {"model_version": "lchp", "score": record["confidence"], "result": result}
    about = {"class": name, "class_score": record["score"]}
    # the storage must lie below the document root: so that is the folder that holds the source
    source = Path(os.path.abspath(path)).parents[prediction.image.count("/")].name
    place = quote(f"{source}/{prediction.image}".lstrip("/"), errors="surrogateescape")
    return {"data": {"image": LOCAL_FILES + place, **about}, "predictions": [said]}


def _yaml(text: str) -> str:
    """Text as YAML, in ASCII. That is JSON's, except that YAML takes JSON's two escapes of one sign beyond 16 bits for
    two signs."""
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(c if " " <= c <= "~" else f"\\U{ord(c):08X}" for c in quoted)


_WRITERS: dict[str, Callable[[Path | None, tuple[str, ...]], AbstractContextManager[Write]]] = {
    "jsonl": _json_lines,
    "csv": _csv,
    "coco": _coco,
    "yolo": _yolo,
    "labelstudio": _label_studio,
}
