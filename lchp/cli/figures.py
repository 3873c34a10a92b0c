"""`lchp figures`, and `python analysis/make_figures.py`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from lchp.console import refuse
from lchp.report.flags import FigureName, Recipe, Shown, Source


@dataclass
class Figures:
    """Draw the paper's figures from the records of sweeps and runs, as PNG and PDF with captions.

    lchp figures                                      # of results/, into results/figures
    lchp figures --storage results/cub --figure grid --pick gained lost --against pseudo_label
    lchp figures --run RUN --figure panel --image 1234
    """

    source: Annotated[Source, tyro.conf.arg(name="")] = field(default_factory=Source)
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)
    output: Annotated[Path | None, tyro.conf.arg(aliases=("--out",))] = None
    """Folder to write to; figures/ in the first storage by default, or in the current folder with --run or where the
    storage is a URL."""
    figure: tuple[FigureName, ...] = ()
    """Figures to draw; all by default, and with --run those that show one run."""
    of_run: Annotated[Path | None, tyro.conf.arg(name="run")] = None
    """Run folder to show; by default the recipe's run with the lowest seed."""
    shown: Annotated[Shown, tyro.conf.arg(name="")] = field(default_factory=Shown)

    def run(self) -> int:
        """Carries the command out; the exit status."""
        from lchp.report.figures.make import FigureOptions, make_figures

        source, of_run = self.source, self.of_run
        if of_run is not None:
            refuse(source, ("storage", "where", "sweep"), "does not go with --run")
        for name, asked in (("image", ("panel",)), ("images", ("grid",)), ("pick", ("grid", "panel"))):
            if self.figure and not {*asked} & {*self.figure}:
                refuse(self.shown, (name,), f"goes with --figure {' or '.join(asked)}")
        if not {"gained", "lost"} & {*self.shown.pick}:
            refuse(self.shown, ("against",), "goes with --pick gained or lost")
        wanted = FigureOptions(source, self.figure, of_run, self.shown, self.recipe)
        return make_figures(wanted, self.output or (source.beside if of_run is None else Path()) / "figures")
