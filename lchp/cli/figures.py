"""`lchp figures`, and `python analysis/make_figures.py`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lchp.report.flags import Against, FigureName, Pick, Source

SHOWN = ("frame", "pick", "against", "seed", "images", "image", "data_root")
"""Flags that say what figures of one run show."""


@dataclass
class Figures:
    """Draw the paper's figures from the records of sweeps and runs, as PNG and PDF with captions.

    lchp figures                                      # of results/, into results/figures
    lchp figures --storage results/cub --figure grid --pick gained lost --against pseudo_label
    lchp figures --run RUN --figure panel --image 1234
    """

    source: Annotated[Source, tyro.conf.arg(name="")] = field(default_factory=Source)
    output: Annotated[Path | None, tyro.conf.arg(aliases=("--out",))] = None
    """Folder to write to; figures/ in the first storage by default, or in the current folder with --run or where the
    storage is a URL."""
    figure: tuple[FigureName, ...] = ()
    """Figures to draw; all by default, and with --run those that show one run."""
    of_run: Annotated[Path | None, tyro.conf.arg(name="run")] = None
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

    def run(self) -> int:
        """Carries the command out; the exit status."""
        from lchp.report.figures.make import FigureOptions, make_figures

        shown = {name: getattr(self, name) for name in SHOWN}
        source, of_run = self.source, self.of_run
        wanted = FigureOptions(source.storage, source.preset, self.figure, source.where, of_run, **shown)
        return make_figures(wanted, self.output or (source.beside if of_run is None else Path()) / "figures")
