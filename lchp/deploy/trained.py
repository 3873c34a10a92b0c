"""A finished run's networks, read from its folder: what predicts, and what is exported."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lchp.config import TrainConfig
from lchp.errors import RunError
from lchp.evaluation.inference import Models
from lchp.files import runs
from lchp.files.schema import Environment
from lchp.method.choice import ROUNDS, Choice
from lchp.method.networks import Classifier, Localizer
from lchp.method.pseudo_boxes import make_teacher
from lchp.system.devices import switch_off_tf32
from lchp.training.chain import STAGES, Kind, kinds_of, method_of
from lchp.training.checkpoints import load_checkpoint
from lchp.training.links import build_classifier
from lchp.training.map_boxes import Directions, PseudoSource, ddt_trunk, source_of


@dataclass(frozen=True)
class TrainedRun:
    """The networks of a run folder, in eval mode. `result`: whose boxes they give: of a localizer (`lchp_r`, `lchp_i`),
    or, where `localizer` is None, of `source` (`pseudo_label`), which gives all objects of an image as well."""

    config: TrainConfig
    class_names: tuple[str, ...]
    classifier: Classifier
    localizer: Localizer | None
    result: str
    device: torch.device
    source: PseudoSource | None = None

    @property
    def models(self) -> Models:
        """What predicts."""
        localizers = {} if self.localizer is None else {self.result: self.localizer}
        pseudo = self.source.boxes if self.source is not None and self.localizer is None else None
        margin = self.config.refinement.crop_margin
        return Models(self.classifier, pseudo, localizers, self.config.initialization, margin)


def load_run(run: str | Path, device: torch.device, *, localizer: bool = True) -> TrainedRun:
    """What a run folder predicts by: its classifier and its best localizer, LCHP-R where stage 2 is complete, else
    LCHP-I; of a method without one, or with `localizer` False, what made its pseudo boxes: a map, DDT, LCHP's teacher.

    No weights are downloaded or read but the checkpoints'; and for DDT ImageNet's, whose features it goes by.
    Raises RunError, one line, where the folder, its stage 1 or the class names are missing, stage 1 is unfinished, or a
    checkpoint is damaged or of other networks.
    """
    run = Path(run)
    if not localizer or "localizer" not in kinds_of(runs.read_config(_run_folder(run))):
        return _load_source(run, device)
    config, class_names, classifier, _ = _opened_run(run)
    loc = Localizer(replace(config.model, pretrained=False, weights_dir=None), config.data.image_size)
    path = _checkpoint(run, "refinement")
    state = load_checkpoint(path) if path.exists() else None
    result = "lchp_r" if state is not None and state["epoch"] >= config.refinement.epochs else "lchp_i"
    if state is None or result == "lchp_i":
        path, state = localizer_checkpoint(run, config)
    _fill(loc, state, "localizer", path)
    return TrainedRun(config, class_names, _ready(classifier, device), _ready(loc, device), result, device)


def _load_source(run: Path, device: torch.device) -> TrainedRun:
    config, class_names, classifier, state = _opened_run(run)
    found, done = method_of(config), dict[Kind, dict[str, Any]]()
    if found.boxes == "teacher":
        teacher = make_teacher(classifier)
        _fill(teacher, state, "teacher", _checkpoint(run, "classifier"))
        done["classifier"] = {"teacher": _ready(teacher, device)}
    if "choice" in kinds_of(config):
        choice, path = Choice(config.initialization, config.model.head), _checkpoint(run, "choice")
        _fill(choice, _finished(path, len(ROUNDS)), "choice", path)
        done["choice"] = {"choice": choice}
    classifier = _ready(classifier, device)
    if found.boxes == "ddt":
        trunk, path = ddt_trunk(classifier, config.model, device), _checkpoint(run, "boxes")
        directions = Directions(trunk, config.data.image_size, len(class_names), device)
        _fill(directions, _finished(path, 1), "directions", path)
        done["boxes"] = {"directions": directions.to(device)}
    source = source_of(config, found, classifier, done)
    return TrainedRun(config, class_names, classifier, None, "pseudo_label", device, source)


def localizer_checkpoint(run: Path, config: TrainConfig) -> tuple[Path, dict[str, Any]]:
    """LCHP-I's checkpoint of a run and its path. In records of before there were links, LCHP's lies in stage 1's."""
    path = _checkpoint(run, "localizer")
    if not path.exists() and "boxes" not in kinds_of(config):
        older = _checkpoint(run, "classifier")
        state = load_checkpoint(older)
        if "localizer" in state["modules"]:
            return older, state
    return path, _finished(path, config.initialization.epochs)


def _checkpoint(run: Path, kind: Kind) -> Path:
    return runs.link_folder(run, kind) / runs.CHECKPOINTS / f"{STAGES[kind]}.pt"


def load_classifier(run: Path, device: torch.device) -> tuple[Any, TrainConfig, tuple[str, ...]]:
    """The classifier of a run folder, in eval mode, with its config and class names; errors as in `load_run`."""
    config, class_names, classifier, _ = _opened_run(run)
    return _ready(classifier, device), config, class_names


def _ready(net: Any, device: torch.device) -> Any:
    switch_off_tf32()
    return net.eval().requires_grad_(False).to(device=device, memory_format=torch.channels_last)


def _run_folder(run: Path) -> Path:
    if not run.is_dir():
        raise RunError(f"{run}: no such run folder")
    return run


def _opened_run(run: Path) -> tuple[TrainConfig, tuple[str, ...], Any, dict[str, Any]]:
    """Config, class names, the trained classifier, and its checkpoint."""
    config = runs.read_config(_run_folder(run))
    environment = runs.read_environment(run)
    class_names = environment["class_names"]
    path = _checkpoint(run, "classifier")
    state = load_checkpoint(path, _taken_as(environment))
    if state["epoch"] < config.initialization.epochs:
        raise RunError(
            f"{path}: stage 1 stopped after {state['epoch']} of {config.initialization.epochs} epochs; "
            "finish it with lchp train and --resume first"
        )
    quiet = replace(config, model=replace(config.model, pretrained=False, weights_dir=None))
    classifier = build_classifier(quiet, method_of(config), len(class_names))
    _fill(classifier, state, "classifier", path)
    return config, tuple(class_names), classifier, state


def _taken_as(environment: Environment) -> str | None:
    """The identity of a classifier that was taken from another run; None where it is the run's own."""
    if "links" in environment:
        place = environment["links"].get("classifier")
        return None if place is None or place["run"] is None else place["key"]
    stage1 = environment.get("stage1")
    return None if stage1 is None else stage1["identity"]


def _finished(path: Path, epochs: int) -> dict[str, Any]:
    state = load_checkpoint(path)
    if state["epoch"] < epochs:
        raise RunError(f"{path}: stopped after {state['epoch']} of {epochs} epochs; finish it with --resume first")
    return state


def _fill(net: nn.Module, state: dict[str, Any], name: str, path: Path) -> None:
    try:
        net.load_state_dict(state["modules"][name])
    except (KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise RunError(f"{path}: does not fit the {name} of its config.json ({reason[:200]})") from None
