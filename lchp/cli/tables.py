"""`lchp tables`, and `python analysis/make_tables.py`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from lchp.console import refuse
from lchp.report.flags import Recipe, Source


@dataclass
class Tables:
    """Write the paper's tables from the records of sweeps and runs, beside the paper's values.

    lchp tables                                       # of results/, into results/tables
    lchp tables --storage results/cub --table 3 --where refinement.tau=0.8
    lchp tables --watch 30                            # while a sweep runs
    lchp tables --compare RUN RUN:lchp_i              # two results, on the same test images
    """

    source: Annotated[Source, tyro.conf.arg(name="")] = field(default_factory=Source)
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)
    output: Annotated[Path | None, tyro.conf.arg(aliases=("--out",))] = None
    """Folder to write to; tables/ in the first storage by default, or in the current folder where that is a URL."""
    table: tuple[int, ...] = ()
    """Numbers of the tables to make; by default 1-6, and, where there are runs for them, 7 (the choices the paper
    leaves open) and 8 (score maps)."""
    watch: float | None = None
    """Look again every so many seconds, until the sweeps in the storages are finished."""
    compare: Annotated[tuple[str, ...], tyro.conf.arg(metavar="A B")] = ()
    """Compare two results on the same test images instead. Each is RUN[:RESULT] (pseudo_label, lchp_i, lchp_r; by
    default the run's last), or FIELD=VALUE with all its seeds."""

    def run(self) -> int:
        """Carries the command out; the exit status."""
        from lchp.report.compare import compared
        from lchp.report.tables.write import TableOptions, make_tables

        if self.compare:
            refuse(self, ("table", "watch", "output"), "does not go with --compare, which prints")
            refuse(self.recipe, ("preset",), "does not go with --compare, which prints")
            print(compared(self.compare, self.source))
            return 0
        numbers = tuple(dict.fromkeys(self.table)) or None
        out = self.output or self.source.beside / "tables"
        return make_tables(TableOptions(self.source, out, numbers, self.watch, self.recipe))
