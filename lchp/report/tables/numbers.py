"""Which tables there are: the paper's 1-6, and two that it does not have, 7 and 8."""

from collections.abc import Mapping, Sequence
from typing import Any

from lchp.config import OPEN_CHOICES, Preset
from lchp.errors import ConfigError
from lchp.report.paper import Paper
from lchp.report.read import Records
from lchp.report.select import choose_around
from lchp.report.tables import open_choices as choices
from lchp.report.tables import score_maps as scoremaps
from lchp.report.tables.grid import AXES, Table, axis_table
from lchp.report.tables.methods import METRICS_OF, find, recipe_table

OF_PAPER = (1, 2, 3, 4, 5, 6)
NUMBERS = (*OF_PAPER, choices.NUMBER, scoremaps.NUMBER)


def check(number: int) -> int:
    """A number that a table has. Raises ConfigError for another."""
    if number not in NUMBERS:
        raise ConfigError(
            f"--table {number}: the paper has Tables 1 to 6; {choices.NUMBER} is of the choices it leaves open, "
            f"{scoremaps.NUMBER} of score maps"
        )
    return number


def table(records: Records, number: int, preset: Preset, paper: Paper, where: Mapping[str, Any] | None = None) -> Table:
    """One table. All are of the preset's data set, and 3-6 of its grid; Table 1 is of CUB and ImageNet too, and Table 2
    of Tiny-ImageNet alone. `where`: values of fields that the runs must have.

    Raises ConfigError for another number.
    """
    if check(number) in METRICS_OF:
        return recipe_table(records, number, preset, paper, where)
    if number in AXES:
        return axis_table(records, number, preset, paper, where)
    made = choices.choices_table if number == choices.NUMBER else scoremaps.score_map_table
    return made(records, preset, where)


def tables(
    records: Records,
    preset: Preset,
    paper: Paper,
    numbers: Sequence[int] | None = None,
    where: Mapping[str, Any] | None = None,
) -> tuple[Table, ...]:
    """Several tables, in the order of `numbers`; None for 1-6, 7 where there is a run of an alternative, and 8 where
    the score maps of a compared method were scored."""
    if numbers is None:
        around = choose_around(records, preset, tuple(OPEN_CHOICES), where)
        varied = around is not None and len(around.runs) > len(around.recipe.runs)
        scored = bool(scoremaps.scored(find(records, preset, where)))
        numbers = [*OF_PAPER, *[choices.NUMBER] * varied, *[scoremaps.NUMBER] * scored]
    return tuple(table(records, number, preset, paper, where) for number in numbers)
