"""Exactly the cells of Tables 3-6, in one sweep: 6 stage-1 and 17 stage-2 trainings per seed.

The recipe's own setting is a cell of all four tables, and trained once.
"""

import augmentations
import backbones

from lchp.config import Preset
from lchp.harness import Overrides, SweepResult, grid, main
from lchp.harness.cli import leave
from lchp.harness.tables import table_3, table_4


def cells(preset: Preset) -> list[Overrides]:
    """Table 3: delta at the recipe's tau; 4: tau at its delta; 5: localizers; 6: augmentations."""
    deltas = grid({"initialization.delta": preset.deltas})
    taus = grid({"refinement.tau": preset.taus})
    return [*deltas, *taus, *backbones.cells(preset), *augmentations.cells(preset)]


def closing(result: SweepResult, preset: Preset) -> str:
    """The measured halves of Tables 3 and 4, and what to do next."""
    tables = f"{table_3(result, preset.config)}\n\n{table_4(result, preset.config)}"
    return f"{tables}\n\nnext: python analysis/make_tables.py  (all tables, beside the paper's numbers)"


if __name__ == "__main__":
    leave(main("all_tables", cells, about=__doc__, closing=closing))
