"""`lchp publish`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from lchp.config import counted
from lchp.system import streams


@dataclass
class Publish:
    """Make a model to hand on of a finished run: its networks as data, and a card with figures, recipe and licences.

    lchp predict --model takes the folder. No path and no name of this machine is in it.
    """

    run_folder: Annotated[Path, tyro.conf.arg(name="run", metavar="DIR")]
    """Run folder; LCHP-R is used, or LCHP-I where stage 2 is not complete; of a method without a localizer, its map."""
    output: Annotated[Path, tyro.conf.arg(metavar="MODEL")]
    """Folder to write. An earlier model there is replaced, nothing else."""
    license: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """The model's licence, by its name on Hugging Face's hub: apache-2.0, cc-by-4.0, ... The card also states what is
    known of the licences of the data and the pretrained weights."""

    def run(self) -> int:
        """Carries the command out; the exit status."""
        from lchp.deploy.publish import publish
        from lchp.evaluation.metrics import TITLES
        from lchp.training.chain import label, method_of

        streams.outlast()
        trained = publish(self.run_folder, self.output, licence=self.license)
        of = "" if method_of(trained.config).complete else f" of {label(trained.config)}"
        size = sum(path.stat().st_size for path in self.output.iterdir()) / 1e6
        print(
            f"{self.output}: {TITLES[trained.result]}{of}, {counted(len(trained.class_names), 'class')}, {size:.1f} MB"
        )
        return 0
