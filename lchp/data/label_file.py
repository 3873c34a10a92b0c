"""Classes of images out of a file: CSV with the columns image and label."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from lchp.data.annotations import read_bytes, same_looking, shorten
from lchp.data.base import Problem, listing
from lchp.data.box_tables import read_csv, require_columns
from lchp.errors import DataError

HEADER = ("image", "label")


def read_label_file(file: Path, images: Iterable[str], class_names: Sequence[str]) -> dict[str, int]:
    """Class ids of images by their names. Rows of other images are passed over; an image may lack a row.

    images: the names that are known; class_names: those that a label may be. Raises DataError, with the first lines
    that are at fault: a label that is no class, an image that has another label above; and where no image has one.
    """
    table = read_csv(file, read_bytes(file))
    require_columns(file, table, HEADER)
    known = {same_looking(name): name for name in images}
    ids = {same_looking(name): k for k, name in enumerate(class_names)}
    found: dict[str, int] = {}
    problems: list[Problem] = []
    for image, label, where in zip(table["image"], table["label"], table["where"], strict=True):
        name, k = known.get(same_looking(image)), ids.get(same_looking(label))
        if name is None:
            continue
        if k is None:
            problems.append(Problem(where, None, f"image {shorten(name)}: {shorten(label)} is none of the classes"))
        elif found.setdefault(name, k) != k:
            problems.append(Problem(where, None, f"image {shorten(name)} has another label above"))
    if problems:
        raise DataError(listing(tuple(problems), f"in {file}"))
    if not found:
        first = shorten(table["image"].iloc[0]) if len(table) else "no row"
        raise DataError(
            f"{file}: no label of any image; it has {first}, and an image is {shorten(next(iter(known), ''))}"
        )
    return found
