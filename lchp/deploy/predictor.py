"""What predicts, from Python and the command line alike: of a run folder, or of a model that was handed on."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lchp.deploy import hub
from lchp.deploy.formats import Prediction
from lchp.deploy.model_folder import load_model
from lchp.deploy.predict import find_images, predict
from lchp.deploy.trained import TrainedRun, load_run
from lchp.errors import ConfigError, DataError
from lchp.system.devices import resolve_device


@dataclass(frozen=True)
class Predictor:
    """Names the class of an image and draws the box around its object; with `several` around all its objects."""

    trained: TrainedRun
    several: bool = False

    @classmethod
    def from_folder(cls, model: str | Path, *, device: str = "auto", several: bool = False) -> "Predictor":
        """Of a folder that `lchp publish` wrote, or `hf://USER/NAME[@REVISION]`; read as data, nothing of it is run.

        device: auto, cpu or cuda. several: for all objects of an image, in place of one box. Raises LchpError, one
        line, where the model is damaged, lacking, or no model.
        """
        return cls(load(None, model, resolve_device(device), several=several), several)

    @classmethod
    def from_run(cls, run: str | Path, *, device: str = "auto", several: bool = False) -> "Predictor":
        """Of a run folder; as `from_folder`."""
        return cls(load(run, None, resolve_device(device), several=several), several)

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of `Prediction.class_id`."""
        return self.trained.class_names

    def predict(self, source: str | Path, **options: Any) -> Iterator[Prediction]:
        """Predictions of an image or of all images below a folder, in a fixed order. options: those of
        `lchp.deploy.predict.predict`. Raises DataError for an image that cannot be read."""
        source = Path(source)
        if not source.exists():
            raise DataError(f"{source}: no such image or folder")
        for found, _ in predict(self.trained, find_images(source), several=self.several, **options):
            yield found


def load(
    run: str | Path | None, model: str | Path | None, device: torch.device, *, several: bool = False
) -> TrainedRun:
    """What predicts, of a run folder or else of a model. several: what gives all objects of an image, in place of a
    localizer. Raises ConfigError unless one of both is given, and what reading it raises."""
    if run is not None and model is None:
        return load_run(run, device, localizer=not several)
    if model is None or run is not None:
        raise ConfigError("expected --run DIR or --model MODEL, one of both")
    place = os.fspath(model)
    if not place.startswith(hub.PREFIX):
        return load_model(hub.require_path(place), device, localizer=not several)
    folder = hub.fetch(place)  # .../models--USER--NAME/snapshots/COMMIT
    again = f"delete {folder.parents[1]} and fetch it again"
    return load_model(folder, device, localizer=not several, again=again)
