"""The paper's values: paper.csv beside this file, `table,row,column,value`, values as printed there."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lchp.errors import DataError

PAPER = Path(__file__).with_name("paper.csv")
HEAD = ["table", "row", "column", "value"]


@dataclass(frozen=True)
class Paper:
    """values: (table, row, column) -> text, e.g. (3, "0.7", "LCHP-R") -> "94.36"; none where it gives none."""

    values: Mapping[tuple[int, str, str], str]

    def value(self, table: int, row: str, column: str) -> str | None:
        """As printed: a number, or `failed`; None where the paper gives none."""
        return self.values.get((table, row, column))

    def at(self, table: int, axis: float, column: str) -> str | None:
        """Of the row whose name is the number `axis` (Tables 3 and 4), however it is written."""
        return next((self.values.get((table, r, column)) for r in self.rows(table) if float(r) == axis), None)

    def rows(self, table: int) -> tuple[str, ...]:
        """Rows of a table, in the paper's order."""
        return tuple(dict.fromkeys(row for number, row, _ in self.values if number == table))

    def curve(self, table: int, column: str) -> dict[float, float]:
        """Axis value -> value of Tables 3 and 4, without what is not a number."""
        texts = {float(r): self.value(table, r, column) for r in self.rows(table)}
        return {axis: v for axis, text in texts.items() if (v := number(text)) is not None}


def number(text: str | None) -> float | None:
    """A value of the paper as a number; None where it gives none or says `failed`."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def read_paper(path: Path = PAPER) -> Paper:
    """Reads paper.csv. Raises DataError naming file and line."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); it holds the paper's values") from None
    if not lines or lines[0] != HEAD:
        raise DataError(f"{path}, line 1: expected {','.join(HEAD)}")
    values: dict[tuple[int, str, str], str] = {}
    for at, line in enumerate(lines[1:], 2):
        if len(line) != len(HEAD) or not line[0].isdigit() or not line[3]:
            raise DataError(f"{path}, line {at}: expected {','.join(HEAD)}, found {','.join(line)!r}")
        key = (int(line[0]), line[1], line[2])
        if key in values:
            raise DataError(f"{path}, line {at}: table {key[0]}, {key[1]}, {key[2]} stands there twice")
        values[key] = line[3]
    return Paper(values)
