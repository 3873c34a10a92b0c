"""The methods that the paper compares LCHP with, beside LCHP itself: Tables 1, 2 and 8."""

from pathlib import Path

from lchp.compared import cells as cells_of_methods
from lchp.config import Preset
from lchp.harness import Overrides, main
from lchp.harness.cli import leave, paper_tables

PAPER = Path(__file__).parents[1] / "analysis" / "paper.csv"


def cells(preset: Preset) -> list[Overrides]:
    """Each method on the preset's classifiers, a localizer on CAM's boxes, LCHP's refinement of PSOL, and LCHP itself,
    which other sweeps train too."""
    return [*cells_of_methods(preset), {"method.name": "lchp"}]


if __name__ == "__main__":
    leave(main("methods", cells, about=__doc__, closing=paper_tables(PAPER, (1, 2, 8))))
