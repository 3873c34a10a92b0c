"""Exactly the cells of Tables 3-6, in one sweep: per seed 4 classifiers, 6 localizers, 17 refinements.

The recipe's own setting is a cell of all four tables, and trained once.
"""

from pathlib import Path

import augmentations
import backbones

from lchp.config import Preset
from lchp.harness import Overrides, exit_program, grid, main, paper_tables

PAPER = Path(__file__).parents[1] / "analysis" / "paper.csv"


def cells(preset: Preset) -> list[Overrides]:
    """Table 3: delta at the recipe's tau; 4: tau at its delta; 5: localizers; 6: augmentations."""
    deltas = grid({"initialization.delta": preset.deltas})
    taus = grid({"refinement.tau": preset.taus})
    return [*deltas, *taus, *backbones.cells(preset), *augmentations.cells(preset)]


if __name__ == "__main__":
    then = "python analysis/report.py  (one page with all tables, figures and trials)"
    exit_program(main("all_tables", cells, about=__doc__, closing=paper_tables(PAPER, (3, 4, 5, 6), then)))
