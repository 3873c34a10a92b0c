"""Backbones of the localizer: Table 5 (on the embedded data set, three small stand-ins)."""

from pathlib import Path

from lchp.config import Preset
from lchp.harness import Overrides, exit_program, grid, main, paper_tables

PAPER = Path(__file__).parents[1] / "analysis" / "paper.csv"


def cells(preset: Preset) -> list[Overrides]:
    """The preset's localizers; the classifier stays."""
    return grid({"model.localizer": preset.localizers})


if __name__ == "__main__":
    exit_program(main("backbones", cells, about=__doc__, closing=paper_tables(PAPER, (5,))))
