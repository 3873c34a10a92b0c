"""The paper's figures from run folders, as PNG and PDF with captions.

python analysis/make_figures.py                                 # of results/, into results/figures
python analysis/make_figures.py --storage results/cub --figure grid --pick gained lost --against pseudo_label
python analysis/make_figures.py --run RUN --figure panel --image 1234
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lchp.console import guarded, parse
from lchp.report.figures.grids import Against, Pick
from lchp.report.figures.make import FigureOptions, Name, make_figures
from lchp.report.flags import Source

PAPER = Path(__file__).with_name("paper.csv")
SHOWN = ("run", "frame", "pick", "against", "seed", "images", "image", "data_root")
"""Flags that say what figures of one run show."""


@dataclass
class Flags:
    """Draw the paper's figures from the records of sweeps and runs."""

    source: Annotated[Source, tyro.conf.arg(name="")] = field(default_factory=Source)
    output: Annotated[Path | None, tyro.conf.arg(aliases=("--out",))] = None
    """Folder to write to; figures/ in the first storage by default, or in the current folder with --run."""
    figure: tuple[Name, ...] = ()
    """Figures to draw; all by default, and with --run those that show one run."""
    run: Path | None = None
    """Run folder to show; by default that of the recipe with the lowest seed."""
    frame: Literal["center_crop", "full_image"] = "center_crop"
    """Frame of the grids and of the panel."""
    pick: tuple[Pick, ...] = ("random",)
    """Images of the grids: drawn at random, LCHP-R's best or worst, gained (LCHP-R right, --against wrong) or lost."""
    against: Against = "lchp_i"
    """Result that LCHP-R is compared with, for gained and lost."""
    seed: int = 0
    """Of the draws of images, and of the panel's strong view."""
    images: int = 12
    """Images per grid."""
    image: str | None = None
    """Id of the panel's test image; by default the first that --pick picks."""
    data_root: Path | None = None
    """Where the data set lies; by default where the run read it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Draws the figures; the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def body() -> int:
        f: Flags = parse(Flags, arguments, "make_figures.py")
        given = {name: getattr(f, name) for name in SHOWN}
        wanted = FigureOptions(f.source.storage, f.source.preset, f.figure, f.source.where, **given)
        out = f.output or (f.source.storage[0] if f.run is None else Path()) / "figures"
        return make_figures(wanted, out, PAPER)

    return guarded(body)


if __name__ == "__main__":
    raise SystemExit(main())
