"""The delta x tau grid: Tables 3 and 4. Classifier and localizer are trained once per delta, for all taus."""

from pathlib import Path

from lchp.config import Preset
from lchp.harness import Overrides, exit_program, grid, main, paper_tables

PAPER = Path(__file__).parents[1] / "analysis" / "paper.csv"


def cells(preset: Preset) -> list[Overrides]:
    """Every delta with every tau of the preset; first those with the recipe's delta or tau, which make the tables."""
    cells = grid({"initialization.delta": preset.deltas, "refinement.tau": preset.taus})
    delta, tau = preset.config.initialization.delta, preset.config.refinement.tau
    return sorted(cells, key=lambda c: c["initialization.delta"] != delta and c["refinement.tau"] != tau)


if __name__ == "__main__":
    then = "python sweeps/all_tables.py  (the other cells of Tables 3-6; what is trained already is taken)"
    exit_program(main("delta_tau", cells, about=__doc__, closing=paper_tables(PAPER, (3, 4), then)))
