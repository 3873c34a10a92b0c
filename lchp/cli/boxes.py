"""`lchp boxes`."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lchp.cli.answers import Answers
from lchp.console import refuse
from lchp.errors import ConfigError

FLAGS = {
    "data.image_size": "--size",
    "data.resize": "--size",
    "model.classifier_weights": "--weights",
    "model.classifier": "--backbone",
    "method.name": "--method",
    "method.threshold": "--threshold",
}
"""Of the fields that the flags set."""


@contextmanager
def _as_typed() -> Iterator[None]:
    """Names the flag in place of the field that it set, where an error names the field."""
    try:
        yield
    except ConfigError as fault:
        raise ConfigError(re.sub("|".join(map(re.escape, FLAGS)), lambda m: FLAGS[m[0]], str(fault))) from None


@dataclass
class OwnBoxes:
    """Draw boxes by a classifier of your own: nothing is trained. Formats and pictures are those of lchp predict."""

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="IMAGE/FOLDER")]
    """An image, or a folder that is searched in full."""
    weights: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """The classifier with its class head, in torchvision's or timm's parameter names: .safetensors, or torch weights
    (read as data)."""
    backbone: Annotated[str, tyro.conf.arg(metavar="NAME")]
    """Architecture of the weights: resnet50, mobilenet_v2, ..., or timm:NAME."""
    method: str = "layer_cam"
    """Method that makes a map of an image: layer_cam, grad_cam, cam, ..."""
    classes: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Names of the head's classes, one per line, in the head's order; by default the names of the folders in FOLDER,
    where their number is the same."""
    labels: Annotated[Path | None, tyro.conf.arg(metavar="CSV")] = None
    """Classes of the images, with the header image,label: the map is of that class, not of the predicted one."""
    size: int = 224
    """Side of the network's input in px."""
    threshold: float = 0.2
    """Threshold on the map, which is stretched to [0, 1]: the box encloses what is above."""
    component: Literal["largest", "all"] = "largest"
    """The box encloses the largest connected component, or all that is above the threshold."""
    answers: Annotated[Answers, tyro.conf.arg(name="")] = field(default_factory=Answers)

    def run(self) -> int:
        """Carries the command out; the exit status."""
        self.answers.check(self.source)

        from lchp.deploy.own_classifier import OwnFlags, load_own
        from lchp.deploy.predict import find_images
        from lchp.training.chain import label

        if self.answers.several:
            refuse(self, ("component",), "does not go with --several, which takes every region")
        own = OwnFlags(
            self.weights, self.backbone, self.method, self.classes, self.size, self.threshold, self.component
        )
        with _as_typed():
            trained = load_own(own, self.source, self.answers.begin())
        labels: dict[str, int] = {}
        if self.labels is not None:
            from lchp.data.label_file import read_label_file

            names = (name for name, _ in find_images(self.source, self.answers.output))
            labels = read_label_file(self.labels, names, trained.class_names)
        of_class = f", of the class that {self.labels.name} has for {len(labels)}" if self.labels is not None else ""
        by = f"{label(trained.config)} of {self.weights.name}{of_class}"
        return self.answers.write(trained, self.source, by, labels=labels)
