"""Tables of boxes that others wrote, a row per box: CSV and Parquet, with the place of each row for messages."""

import csv
from collections.abc import Sequence
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from lchp.data.annotations import parse_box, read_bytes
from lchp.errors import DataError
from lchp.system.progress import tqdm

CORNERS = ["x1", "y1", "x2", "y2"]
TOP = [f"top{k}" for k in range(1, 6)]
ALIASES = {"image": "image_id", "class_id": "top1"}
"""Column names of `lchp predict --format csv` and of the data set `folder`'s boxes.csv -> those meant here."""

SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
"""What others put in the place of a CSV file's commas -> its name."""

INDEX = "__index_level_0__"
"""What pandas calls an index without a name when it writes it as a column."""


def read_table(path: Path, texts: Sequence[str] = (), *, show_progress: bool = False) -> pd.DataFrame:
    """Rows with image_id and x1 y1 x2 y2, all text or numbers as stored, and `where`: file and line, for messages.

    texts: further columns that hold a text in every row, where they are there. Raises DataError, one line, for what is
    no such table.
    """
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise DataError(f"{path}: expected a .csv or .parquet file{' or the folder of a split' * (not path.suffix)}")
    content = read_bytes(path)
    if path.suffix.lower() == ".csv":
        table = read_csv(path, content, show_progress=show_progress)
    else:
        table = _read_parquet(path, content)
        table = table.assign(where=[f"{storable(str(path))}: row {n}" for n in range(1, len(table) + 1)])
    if "frame" in table and "x1" not in table:
        raise DataError(f"{path}: the record of a run; lchp evaluate --run {path.parent} scores it")
    renamed = {old: new for old, new in ALIASES.items() if old in table and new not in table}
    table = table.rename(columns=renamed)
    require_columns(path, table, ("image_id", *CORNERS))
    if table.empty:
        raise DataError(f"{path}: no rows")
    names = [c for c in ("image_id", *texts) if c in table]
    empty = (table[names].isna().to_numpy() | (table[names].astype(str) == "").to_numpy()).any(axis=1)
    if empty.any():
        raise DataError(f"{table['where'].to_numpy()[empty][0]}: one of {', '.join(names)} is empty")
    return table.astype(dict.fromkeys(names, str))


def _read_parquet(path: Path, content: bytes) -> pd.DataFrame:
    """The columns, and those that pandas took for its index: by their name, or, where the index has none and holds
    texts, as the image ids that no column holds."""
    try:
        table = pd.read_parquet(BytesIO(content))
        named = [name for name in table.index.names if name is not None and name not in table]
        if named:
            table = table.reset_index(level=named)
        elif table.index.nlevels == 1 and INDEX not in table:
            table = table.reset_index(names=INDEX)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:  # also of metadata that do not fit
        raise DataError(f"{path}: not a table ({(str(error).splitlines() or [''])[0][:200]})") from None
    ids = {"image_id", *(old for old, new in ALIASES.items() if new == "image_id")}
    if INDEX in table and not ids & set(table) and pd.api.types.infer_dtype(table[INDEX].astype(object)) == "string":
        table = table.rename(columns={INDEX: "image_id"})
    return table


def read_csv(path: Path, content: bytes, *, show_progress: bool = False) -> pd.DataFrame:
    """All text. Not by pandas, which fills short rows up and takes the first column of long ones for an index."""
    try:
        lines = csv.reader(StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        seen = tqdm(lines, path.name, unit=" rows", leave=False, disable=None if show_progress else True)
        rows = [(lines.line_num, row) for row in seen if "".join(row).strip()]
    except UnicodeDecodeError as error:
        byte = f"byte {error.object[error.start]:#04x} at {error.start}"
        raise DataError(f"{path}: not in UTF-8 ({byte}); save it as a CSV file in UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{path}: not a table ({error})") from None
    if not rows:
        raise DataError(f"{path}: no rows")
    (_, header), *rest = rows
    columns = [name.strip() for name in header]
    if len(columns) == 1 and (found := next((s for s in SEPARATORS if s in columns[0]), None)):
        raise DataError(f"{path}: its columns are separated by {SEPARATORS[found]}; expected commas")
    if len(set(columns)) < len(columns):
        raise DataError(f"{path}: a column of {', '.join(columns)} is there twice")
    for line, row in rest:
        if len(row) != len(columns):
            raise DataError(f"{path}:{line}: {len(row)} values; the first line names {len(columns)} columns")
    cells, shown = [[cell.strip() for cell in row] for _, row in rest], storable(str(path))
    return pd.DataFrame(cells, columns=columns, dtype=str).assign(where=[f"{shown}:{line}" for line, _ in rest])


def require_columns(path: Path, table: pd.DataFrame, names: Sequence[str]) -> None:
    """Raises DataError for columns that a table lacks, with those that it has."""
    absent = [name for name in names if name not in table]
    if absent:
        has = ", ".join(str(name) for name in table if name != "where")
        raise DataError(f"{path}: lacks the column{'s' * (len(absent) > 1)} {', '.join(absent)}; it has {has[:200]}")


def storable(text: str) -> str:
    """Text as a table can hold it: what UTF-8 lacks (of a file's name, or escaped in JSON) as an escape."""
    return text.encode(errors="backslashreplace").decode()


def corners_of(table: pd.DataFrame) -> np.ndarray:
    """The corners of N rows, N x 4. Raises DataError for the first that are no finite numbers."""
    found = numeric(table)
    if np.isfinite(found).all():
        return found
    for fields, where in zip(cells_of(table), table["where"], strict=True):
        try:
            parse_box(fields)
        except ValueError as error:
            raise DataError(f"{where}: {error}") from None
    return found


def cells_of(table: pd.DataFrame) -> np.ndarray:
    """The corners of N rows as text, N x 4."""
    return table[CORNERS].astype(str).fillna("nan").to_numpy(object)  # which astype leaves as it is


def numeric(table: pd.DataFrame) -> np.ndarray:
    """The corners of N rows, N x 4; NaN for all of them where one is no number."""
    cells = cells_of(table)
    if "_" in "".join(cells.ravel()):  # Python reads 1_5 as 15
        return np.full(cells.shape, np.nan)
    try:
        return cells.astype(np.float64)
    except ValueError:
        return np.full(cells.shape, np.nan)
