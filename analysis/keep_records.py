"""A copy of records to publish: summaries and predictions, without checkpoints and without a machine's paths.

python analysis/keep_records.py --storage results/cub --output records/cub
python analysis/make_tables.py --storage records/cub            # reads the copy as it read the original
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from lchp.config import counted
from lchp.console import guarded, parse
from lchp.report.publish import keep


@dataclass
class Flags:
    """Copy the records of finished runs and sweeps, small enough to publish."""

    output: Annotated[Path, tyro.conf.arg(aliases=("--out",))]
    """Folder to make; there must be none yet, or an empty one."""
    storage: tuple[Path, ...] = (Path("results"),)
    """Storages of sweeps, folders of run folders, or run folders."""
    predictions: bool = True
    """Keep predictions.parquet, most of the size: figures and comparisons need it, tables do not."""


def main(argv: Sequence[str] | None = None) -> int:
    """Copies the records; the exit status: 1 where something was left out."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def body() -> int:
        flags: Flags = parse(Flags, arguments, "keep_records.py")
        kept = keep(flags.storage, flags.output, predictions=flags.predictions)
        copied = f"{counted(kept.runs, 'run')} and {counted(kept.sweeps, 'sweep')}"
        print(f"{copied} in {flags.output}, {kept.size / 1e6:.1f} MB")
        for line in kept.problems:
            print(line, file=sys.stderr)
        return 1 if kept.problems else 0

    return guarded(body)


if __name__ == "__main__":
    raise SystemExit(main())
