"""One self-contained HTML page of everything that some storages hold: tables, figures, trials, failures, environment.

python analysis/report.py                                       # of results/, into results/report.html
python analysis/report.py --storage results/cub --output cub.html --where refinement.tau=0.8
python analysis/report.py --no-figures                          # seconds less
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from lchp.console import guarded, parse
from lchp.report.flags import Source
from lchp.report.page.make import PageOptions, make_page

PAPER = Path(__file__).with_name("paper.csv")


@dataclass
class Flags:
    """Write one HTML page from the records of sweeps and runs."""

    source: Annotated[Source, tyro.conf.arg(name="")] = field(default_factory=Source)
    output: Annotated[Path | None, tyro.conf.arg(aliases=("--out",))] = None
    """File to write; report.html in the first storage by default. Over an earlier report alone."""
    figures: bool = True
    """Draw the figures too."""
    data_root: Path | None = None
    """Where the data set lies, for figures that show images; by default where the run read it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page; the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def body() -> int:
        f: Flags = parse(Flags, arguments, "report.py")
        source = f.source
        asked = PageOptions(
            source.storage, f.output, source.preset, source.where, figures=f.figures, data_root=f.data_root
        )
        return make_page(asked, PAPER)

    return guarded(body)


if __name__ == "__main__":
    raise SystemExit(main())
