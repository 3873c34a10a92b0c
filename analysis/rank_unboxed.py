"""Settings ranked without any box, for images that have none, and to see what such a choice would have cost.

python analysis/rank_unboxed.py --storage results/mine
python analysis/rank_unboxed.py --storage results/cub --where refinement.tau=0.9
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from lchp.console import guarded, parse
from lchp.report.read import collect
from lchp.report.select import parse_where, require
from lchp.report.unboxed import rank, rank_text


@dataclass
class Flags:
    """Rank the settings of sweeps by what the classifier makes of their boxes; no true box is read."""

    storage: tuple[Path, ...] = (Path("results"),)
    """Storages of sweeps, folders of run folders, or run folders."""
    where: tyro.conf.UseAppendAction[Annotated[tuple[str, ...], tyro.conf.arg(metavar="FIELD=VALUE")]] = ()
    """What the runs must have; may be given several times."""


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the ranking; the exit status: 1 where something could not be read."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def body() -> int:
        flags: Flags = parse(Flags, arguments, "rank_unboxed.py")
        records, where = collect(flags.storage), parse_where(flags.where)
        require(records, where)
        print(rank_text(rank(records, where)))
        for line in records.problems:
            print(line, file=sys.stderr)
        return 1 if records.problems else 0

    return guarded(body)


if __name__ == "__main__":
    raise SystemExit(main())
