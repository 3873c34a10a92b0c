"""`lchp report`, and `python analysis/report.py`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from lchp.console import refuse
from lchp.report.flags import Recipe, Source


@dataclass
class ReportPage:
    """Write one HTML page of all that the storages hold: tables, figures, trials, failures, environment.

    lchp report                                       # of results/, into results/report.html
    lchp report --storage results/cub --output cub.html --where refinement.tau=0.8
    lchp report --no-figures                          # seconds less
    """

    source: Annotated[Source, tyro.conf.arg(name="")] = field(default_factory=Source)
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)
    output: Annotated[Path | None, tyro.conf.arg(aliases=("--out",))] = None
    """File to write; report.html in the first storage by default, or in the current folder where that is a URL. An
    earlier report there is replaced, any other file left alone."""
    figures: bool = True
    """Draw the figures too."""
    data_root: Path | None = None
    """Folder of the data set, for figures that show images; by default the one that the run read."""

    def run(self) -> int:
        """Carries the command out; the exit status."""
        from lchp.report.page.make import PageOptions, make_page

        if not self.figures:
            refuse(self, ("data_root",), "does not go with --no-figures")
        return make_page(PageOptions(self.source, self.output, self.figures, self.data_root, self.recipe))
