"""Reads boxes of a data set's images out of a file: of any detector, any annotator (`method.boxes`)."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from lchp.config import counted
from lchp.data.annotations import TOLERANCE, checked_box, parse_box, read_bytes, same_looking, shorten
from lchp.data.base import Problem
from lchp.data.box_file import BoxFile
from lchp.data.box_tables import CORNERS, cells_of, numeric, read_table, storable
from lchp.data.images import Images
from lchp.errors import DataError

SCORES = ("confidence", "score")
"""Columns that say which of an image's boxes is best, the first of them that is there (`lchp predict` writes both)."""
ENDINGS = (".csv", ".parquet", ".json")


def read_box_file(path: Path, splits: Sequence[Images]) -> BoxFile:
    """The boxes of the images of some splits.

    path: .csv or .parquet with the columns image_id (or image), x1, y1, x2, y2 in px of the original image and, where
    an image has several boxes, score (or confidence); or COCO's .json with its lists images and annotations. An image
    is named by its id in the data set, or by the end of its path.
    Raises DataError, one line, for a file that is no such table, for boxes in fractions, and for several boxes of an
    image without scores.
    """
    if path.suffix.lower() not in ENDINGS:
        raise DataError(f"{path}: expected a file of boxes, {', '.join(ENDINGS)}")
    problems: list[Problem] = []
    table = _read_coco(path, problems) if path.suffix.lower() == ".json" else read_table(path)
    # an image without a box has a row without corners, as `lchp predict --least-confidence` writes it
    empty = [not "".join(cells).strip() for cells in cells_of(table)]
    table = table.iloc[np.flatnonzero(~np.array(empty, bool))].reset_index(drop=True)
    listed = _Listed(splits)
    places, unknown = np.full(len(table), -1), list[Problem]()
    for text, rows in table.groupby("image_id", sort=False).indices.items():
        place = listed.place(str(text))
        if isinstance(place, int) and "size" in table:
            place = listed.held_against(table["size"].iloc[rows[0]], place)
        if isinstance(place, int):
            places[rows] = place
        else:
            spoiled = unknown if place is None else problems
            said = place or f"image {shorten(str(text))} is not in the data set"
            spoiled += [Problem(where, None, said) for where in table["where"].iloc[rows]]
    boxes, scores = _boxes(table, places, listed, problems), _scores(table, places, problems)
    sound = np.flatnonzero((places >= 0) & ~np.isnan(boxes[:, 0]) & ~np.isnan(scores))
    best = pd.DataFrame({"row": sound, "place": places[sound], "score": scores[sound]})
    several = best["place"].value_counts()
    several = several[several > 1]
    if len(several) and not set(SCORES) & set(table):
        first = table["where"].iloc[int(best["row"].to_numpy()[best["place"].duplicated().to_numpy().argmax()])]
        raise DataError(
            f"{first}: several boxes in {counted(len(several), 'image')}, and the file has no column score to choose by"
        )
    best = best.sort_values("score", ascending=False, kind="stable").drop_duplicates("place")
    found = {listed.ids[place]: boxes[row] for row, place in zip(best["row"], best["place"], strict=True)}
    return BoxFile(path, found, len(several), tuple(unknown), tuple(problems))


class _Listed:
    """The images of some splits by all that a file may call them."""

    def __init__(self, splits: Sequence[Images]) -> None:
        self.ids = [i for images in splits for i in images.split.image_ids]
        self.sizes = np.concatenate([images.sizes() for images in splits]).astype(np.float64)
        self._paths = [
            path and path.absolute() for images in splits for path in images.split.paths or [None] * len(images)
        ]
        self._of_ids = {same_looking(image_id): n for n, image_id in enumerate(self.ids)}
        self._ends: dict[int, dict[str, list[int]]] = {}

    def place(self, text: str) -> int | str | None:
        """The image that is called so: its place among all; what is wrong where there are several; None without any."""
        name = same_looking(text.strip())
        if name in self._of_ids:
            return self._of_ids[name]
        parts = PurePosixPath(name).parts
        found = self._ending(len(parts)).get("/".join(parts), [])
        if len(found) < 2:
            return found[0] if found else None
        first, second = (self.ids[n] for n in found[:2])
        return f"image {shorten(text)} is the end of several images' paths ({first}, {second}); write more of the path"

    def held_against(self, size: tuple[float, float] | None, place: int) -> int | str:
        """The place of an image whose size a file states, or what is wrong: boxes in px of another size are none of
        the image's."""
        has = tuple(self.sizes[place])
        if size is None or size == has:
            return place
        said, real = (f"{w:g} x {h:g}" for w, h in (size, has))
        return (
            f"image {self.ids[place]}: the file says {said} px, the image has {real}; boxes are in px of the original"
        )

    def _ending(self, parts: int) -> dict[str, list[int]]:
        """The last so many parts of paths -> places of the images."""
        if parts not in self._ends:
            found: dict[str, list[int]] = defaultdict(list)
            for n, path in enumerate(self._paths):
                if path is not None:
                    found[same_looking("/".join(path.parts[-parts:]))].append(n)
            self._ends[parts] = dict(found)
        return self._ends[parts]


def _boxes(table: pd.DataFrame, places: np.ndarray, listed: _Listed, problems: list[Problem]) -> np.ndarray:
    """N x 4 float64 in px, clipped to their images; NaN for rows of unknown images, and for faulty ones, which become
    problems. Only those are looked at one by one."""
    found = numeric(table)
    known = places >= 0
    limits = np.tile(listed.sizes[places], 2)
    sound = np.isfinite(found).all(1)
    with np.errstate(invalid="ignore"):
        sound &= (found[:, 2:] > found[:, :2]).all(1) & (found >= -TOLERANCE).all(1)
        sound &= (found <= limits + TOLERANCE).all(1)
    clipped = np.clip(found, 0, limits)
    sound &= (clipped[:, 2:] > clipped[:, :2]).all(1)
    doubtful, cells = np.flatnonzero(known & ~sound), cells_of(table)
    clipped[~known] = np.nan
    read = [_row(cells[row], table["where"].iloc[row], listed, int(places[row]), problems) for row in doubtful]
    clipped[doubtful] = np.array(read).reshape(-1, 4)
    largest = np.nanmax(clipped, initial=0)
    if 0 < largest <= 1 and listed.sizes.max() > 2:
        raise DataError(
            f"{table['where'].iloc[0]}: no coordinate is above 1 in the file; expected px of the original image, not "
            "fractions"
        )
    return clipped


def _row(cells: Sequence[str], where: str, listed: _Listed, place: int, problems: list[Problem]) -> np.ndarray:
    try:
        return checked_box(*parse_box(cells), *listed.sizes[place]).astype(np.float64)
    except ValueError as error:
        problems.append(Problem(where, None, f"image {listed.ids[place]}: {error}", listed.ids[place]))
        return np.full(4, np.nan)


def _scores(table: pd.DataFrame, places: np.ndarray, problems: list[Problem]) -> np.ndarray:
    """N float64, 0 in a file without; NaN for those that are no finite numbers, which become problems."""
    name = next((name for name in SCORES if name in table), None)
    if name is None:
        return np.zeros(len(table))
    texts = table[name].astype(str).fillna("nan")
    values: Any = pd.to_numeric(texts.where(~texts.str.contains("_")), errors="coerce")
    scores = np.array(values, np.float64)
    scores[~np.isfinite(scores)] = np.nan
    for row in np.flatnonzero(np.isnan(scores) & (places >= 0)):
        problems.append(
            Problem(table["where"].iloc[row], None, f"{name} {shorten(texts.iloc[row])} is no finite number")
        )
    return scores


def _read_coco(path: Path, problems: list[Problem]) -> pd.DataFrame:
    """COCO's annotations as a table like that of `read_table`."""
    try:
        record = json.loads(read_bytes(path).removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    lists: list[Any] = [record.get(name) for name in ("images", "annotations")] if isinstance(record, dict) else []
    if not lists or not all(isinstance(found, list) for found in lists):
        why = "; a list of results names no files" if isinstance(record, list) else ""
        raise DataError(f"{path}: expected COCO's object with the lists images and annotations{why}")
    images, annotations = lists
    names: dict[Any, str] = {}
    sizes: dict[str, tuple[float, float] | None] = {}
    for n, image in enumerate(images):
        match image:
            case {"id": (int() | str()) as key, "file_name": str(name)} if key not in names and name.strip():
                names[key] = storable(name)
                sizes[names[key]] = _size(image)
            case {"id": (int() | str()) as key, "file_name": str(name)} if name.strip():
                problems.append(Problem(f"{path}: images[{n}]", None, f"the id {shorten(str(key))} is there twice"))
            case _:
                problems.append(Problem(f"{path}: images[{n}]", None, "expected an id and a file_name"))
    rows: list[list[Any]] = []
    for n, annotation in enumerate(annotations):
        where = f"{storable(str(path))}: annotations[{n}]"
        try:
            rows.append([*_annotation(annotation, names), where])
        except ValueError as error:
            problems.append(Problem(where, None, str(error)))
    if not annotations:
        raise DataError(f"{path}: no annotations")
    table = pd.DataFrame(rows, columns=["image_id", *CORNERS, "score", "where"])
    table["size"] = pd.Series([sizes[name] for name in table["image_id"]], table.index, object)
    return table if any(isinstance(a, dict) and "score" in a for a in annotations) else table.drop(columns="score")


def _size(image: Mapping[str, Any]) -> tuple[float, float] | None:
    """Width and height that an entry of COCO's images states; None where it states none (some tools write 0)."""
    match image:
        case {"width": (int() | float()) as width, "height": (int() | float()) as height} if min(width, height) > 0:
            return width, height
    return None


def _annotation(annotation: Any, names: Mapping[Any, str]) -> list[Any]:
    """File name, x1 y1 x2 y2 and score of one. Raises ValueError saying what is wrong."""
    match annotation:
        case {"image_id": (int() | str()) as key, "bbox": list(bbox)}:
            if key not in names:
                raise ValueError(f"no image has the id {shorten(str(key))}")
            x, y, w, h = parse_box(list(map(str, bbox)))
            score = annotation.get("score")
            return [names[key], x, y, x + w, y + h, storable(score) if isinstance(score, str) else score]
    raise ValueError("expected an image_id and a bbox of x y width height")
