"""Sweeps on Ray: grids and searches that train nothing twice and survive what happens to a machine.

A sweep is a base config, cells (overrides of it) and a name; `run` trains what the store does not have yet:

    from pathlib import Path
    from lchp import preset
    from lchp.harness import Options, Sweep, grid, run

    cells = grid({"initialization.alpha": [5.0, 20.0], "refinement.tau": [0.5, 0.9]})
    result = run(Sweep("alpha", preset("parts"), cells), Options(storage=Path("results")))
    for cell in result.cells:
        print(cell.cell.overrides, cell.summary["results"]["lchp_r"]["center_crop"]["gt_known"])

`main` makes the same a script with the flags that all sweeps share. Everything that imports Ray is in this package.
"""

import lchp.system.imports  # noqa: F401  (before all that it explains)
from lchp.console import exit_program
from lchp.harness.cells import Overrides, Sweep, grid
from lchp.harness.grids import run_named
from lchp.harness.options import Options
from lchp.harness.record import Outcome
from lchp.harness.script import main, paper_tables
from lchp.harness.sweep import SweepResult, run

__all__ = [
    "Options",
    "Outcome",
    "Overrides",
    "Sweep",
    "SweepResult",
    "exit_program",
    "grid",
    "main",
    "paper_tables",
    "run",
    "run_named",
]
