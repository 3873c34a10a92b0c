"""The delta x tau grid: Tables 3 and 4. Stage 1 is trained once per delta, whatever the number of taus."""

from lchp.config import Preset
from lchp.harness import Overrides, SweepResult, grid, main
from lchp.harness.cli import leave
from lchp.harness.tables import table_3, table_4


def cells(preset: Preset) -> list[Overrides]:
    """Every delta with every tau of the preset; first those with the recipe's delta or tau, which make the tables."""
    cells = grid({"initialization.delta": preset.deltas, "refinement.tau": preset.taus})
    delta, tau = preset.config.initialization.delta, preset.config.refinement.tau
    return sorted(cells, key=lambda c: c["initialization.delta"] != delta and c["refinement.tau"] != tau)


def closing(result: SweepResult, preset: Preset) -> str:
    """The measured halves of both tables, and what to do next."""
    tables = f"{table_3(result, preset.config)}\n\n{table_4(result, preset.config)}"
    return f"{tables}\n\nnext: python sweeps/all_tables.py  (the cells of Tables 3-6; what is trained already is taken)"


if __name__ == "__main__":
    leave(main("delta_tau", cells, about=__doc__, closing=closing))
