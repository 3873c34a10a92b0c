"""`lchp figures` under its own name: the paper's figures, from the records of sweeps and runs."""

import sys
from collections.abc import Sequence

from lchp.cli import script


def main(argv: Sequence[str] | None = None) -> int:
    """Makes them; the exit status."""
    return script("figures", "make_figures.py", sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    raise SystemExit(main())
