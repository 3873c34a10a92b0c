"""`lchp predict`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from lchp.cli.answers import Answers
from lchp.files.schema import FrameName


@dataclass
class Predict:
    """Name the class and draw the box of any image, by a run or a model; also as annotations for a detector."""

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="IMAGE/FOLDER")]
    """An image, or a folder that is searched in full."""
    run_folder: Annotated[Path | None, tyro.conf.arg(name="run", metavar="DIR")] = None
    """Run folder; LCHP-R is used, or LCHP-I where stage 2 is not complete; of a method without a localizer, its map."""
    model: Annotated[str | None, tyro.conf.arg(metavar="MODEL")] = None
    """In place of --run: a folder that lchp publish wrote, or hf://USER/NAME[@REVISION] of Hugging Face's hub."""
    frame: FrameName = "full_image"
    """What the networks see: the whole image, or the centre crop of the training recipe."""
    answers: Annotated[Answers, tyro.conf.arg(name="")] = field(default_factory=Answers)

    def run(self) -> int:
        """Carries the command out; the exit status."""
        self.answers.check(self.source)

        from lchp.deploy.predictor import load
        from lchp.evaluation.metrics import TITLES
        from lchp.training.chain import label, method_of

        trained = load(self.run_folder, self.model, self.answers.begin(), several=self.answers.several)
        of = "" if method_of(trained.config).complete else f" of {label(trained.config)}"
        return self.answers.write(trained, self.source, f"{TITLES[trained.result]}{of}", frame=self.frame)
