"""Tables 1-6 from run folders, beside the paper's values, 7, of the choices it leaves open, and 8, of score maps; or
two results compared on the same test images.

python analysis/make_tables.py                                  # of results/, into results/tables
python analysis/make_tables.py --storage results/cub --table 3 --where refinement.tau=0.8
python analysis/make_tables.py --watch 30                       # while a sweep runs
python analysis/make_tables.py --compare RUN RUN:lchp_i
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from lchp.console import guarded, parse
from lchp.errors import ConfigError
from lchp.report.compare import compare, comparison_text, parse_side
from lchp.report.flags import Source
from lchp.report.tables.write import TableOptions, make_tables

PAPER = Path(__file__).with_name("paper.csv")


@dataclass
class Flags:
    """Write the paper's tables from the records of sweeps and runs, beside the paper's values."""

    source: Annotated[Source, tyro.conf.arg(name="")] = field(default_factory=Source)
    output: Annotated[Path | None, tyro.conf.arg(aliases=("--out",))] = None
    """Folder to write to; tables/ in the first storage by default."""
    table: tuple[int, ...] = ()
    """Numbers of the tables to make; by default 1-6, and where such runs are 7 (the choices the paper leaves open) and
    8 (score maps)."""
    watch: float | None = None
    """Look again every so many seconds, until the sweeps in the storages are finished."""
    compare: Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN[:RESULT] RUN[:RESULT]")] = ()
    """Compare two results (pseudo_label, lchp_i, lchp_r; by default a run's last) on the same test images instead."""


def main(argv: Sequence[str] | None = None) -> int:
    """Makes the tables; the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def body() -> int:
        flags: Flags = parse(Flags, arguments, "make_tables.py")
        if flags.compare:
            if len(flags.compare) != 2:
                raise ConfigError("--compare: expected two results, RUN[:RESULT] RUN[:RESULT]")
            a, b = map(parse_side, flags.compare)
            print(comparison_text(a, b, compare(a, b)))
            return 0
        wanted = {"numbers": tuple(dict.fromkeys(flags.table))} if flags.table else {}
        out = flags.output or flags.source.storage[0] / "tables"
        return make_tables(
            TableOptions(
                flags.source.storage, out, flags.source.preset, where=flags.source.where, watch=flags.watch, **wanted
            ),
            PAPER,
        )

    return guarded(body)


if __name__ == "__main__":
    raise SystemExit(main())
