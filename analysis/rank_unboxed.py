"""Settings ranked without any box, for images that have none, and to see what such a choice would have cost.

python analysis/rank_unboxed.py --storage results/mine
python analysis/rank_unboxed.py --storage results/cub --where refinement.tau=0.9
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from lchp.console import guarded, parse
from lchp.report.flags import Source
from lchp.report.select import require
from lchp.report.unboxed import rank, rank_text


@dataclass
class Flags:
    """Rank the settings of sweeps by what the classifier makes of their boxes; no true box is read."""

    source: Annotated[Source, tyro.conf.arg(name="")] = field(default_factory=Source)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the ranking; the exit status: 1 where something could not be read."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def body() -> int:
        flags: Flags = parse(Flags, arguments, "rank_unboxed.py")
        records, where = flags.source.read(), flags.source.conditions
        require(records, where)
        print(rank_text(rank(records, where)))
        for line in records.problems:
            print(line, file=sys.stderr)
        return 1 if records.problems else 0

    return guarded(body)


if __name__ == "__main__":
    raise SystemExit(main())
