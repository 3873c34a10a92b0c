"""`lchp scoremaps`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lchp.system import streams


@dataclass
class ScoreMaps:
    """Write the score maps of a compared method's run in wsolevaluation's format, for lchp score and other tools.

    DIR/<image id>.npy of every test image, 224 x 224 floats in [0, 1], of the image's own class. Image ids are those of
    predictions.parquet: with data sets other than wsol and wsol_fullsup, wsolevaluation's lists have others.
    """

    run_folder: Annotated[Path, tyro.conf.arg(name="run", metavar="DIR")]
    """Run folder."""
    output: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder to write to; it must be new or empty."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device that the classifier runs on."""

    def run(self) -> int:
        """Carries the command out; the exit status."""
        from lchp.deploy.score_maps import write_score_maps
        from lchp.system.devices import resolve_device

        streams.outlast()
        count = write_score_maps(self.run_folder, self.output, resolve_device(self.device), show_progress=True)
        print(f"{count} score maps in {self.output}")
        return 0
