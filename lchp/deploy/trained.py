"""Networks that predict and are exported: of a finished run's folder, or of a model that was made of one."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from lchp.backbones import build_trunk
from lchp.config import TrainConfig
from lchp.errors import RunError
from lchp.evaluation.inference import Models
from lchp.files import runs
from lchp.files.schema import Environment
from lchp.method.choice import ROUNDS, Choice
from lchp.method.networks import Classifier, Localizer
from lchp.method.pseudo_boxes import make_teacher
from lchp.system.devices import switch_off_tf32
from lchp.training.chain import STAGES, Kind, kinds_of, method_of, of_stage1
from lchp.training.checkpoints import load_checkpoint
from lchp.training.map_boxes import Directions, PseudoSource, ddt_backbone, ddt_trunk, source_of
from lchp.training.networks import build_classifier

ModuleName = Literal["classifier", "teacher", "choice", "directions", "trunk", "localizer"]
"""A module with a state of its own. `trunk`: the one whose features DDT goes by, where it is not the classifier's."""


@dataclass(frozen=True)
class TrainedRun:
    """The networks of a run, in eval mode. `result`: whose boxes they give: of a localizer (`lchp_r`, `lchp_i`), or,
    where `localizer` is None, of `source` (`pseudo_label`), which gives all objects of an image as well."""

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


class TrainedNetworks(Protocol):
    """Where networks are read from. `result`: whose boxes its localizer gives, if it has one."""

    @property
    def config(self) -> TrainConfig: ...  # noqa: D102
    @property
    def class_names(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def result(self) -> str: ...  # noqa: D102

    def state(self, name: ModuleName) -> tuple[Mapping[str, Tensor], Path]:
        """A module's state, and the file that it is from. Raises RunError."""
        ...


def modules_of(config: TrainConfig) -> tuple[ModuleName, ...]:
    """The modules that a run of this config predicts by, one way or another."""
    found, kinds = method_of(config), kinds_of(config)
    there: dict[ModuleName, bool] = {
        "classifier": True,
        "teacher": found.boxes == "teacher",
        "choice": "choice" in kinds,
        "directions": found.boxes == "ddt",
        "trunk": found.boxes == "ddt" and config.model.pretrained,
        "localizer": "localizer" in kinds,
    }
    return tuple(name for name in get_args(ModuleName) if there[name])


def load_run(run: str | Path, device: torch.device, *, localizer: bool = True) -> TrainedRun:
    """What a run folder predicts by: its classifier and its best localizer, LCHP-R where stage 2 is complete, else
    LCHP-I; of a method without one, or with `localizer` False, what made its pseudo boxes: a map, DDT, LCHP's teacher.

    No weights are downloaded or read but the checkpoints'; and for DDT ImageNet's, whose features it goes by.
    Raises RunError, one line, where the folder, its stage 1 or the class names are missing, stage 1 is unfinished, or a
    checkpoint is damaged or of other networks.
    """
    return load_networks(open_run(Path(run)), device, localizer=localizer)


def load_networks(networks: TrainedNetworks, device: torch.device, *, localizer: bool = True) -> TrainedRun:
    """What networks predict by; see `load_run`."""
    config, names = networks.config, networks.class_names
    classifier = _classifier(networks)
    if localizer and "localizer" in kinds_of(config):
        loc = _filled(Localizer(_unfilled(config).model, config.data.image_size), networks, "localizer")
        return TrainedRun(config, names, _ready(classifier, device), _ready(loc, device), networks.result, device)
    found, done = method_of(config), dict[Kind, dict[str, Any]]()
    if found.boxes == "teacher":
        teacher = _filled(make_teacher(classifier), networks, "teacher")
        done["classifier"] = {"teacher": _ready(teacher, device)}
    if "choice" in kinds_of(config):
        choice = Choice(config.initialization, config.model.head)
        done["choice"] = {"choice": _filled(choice, networks, "choice")}
    classifier = _ready(classifier, device)
    if found.boxes == "ddt":
        trunk = classifier.get_submodule("trunk")
        if "trunk" in modules_of(config):
            trunk = build_trunk(ddt_backbone(config.model), "classifier", pretrained=False, weights_dir=None)
            trunk = _ready(_filled(trunk, networks, "trunk"), device)
        directions = Directions(trunk, config.data.image_size, len(names), device)
        done["boxes"] = {"directions": _filled(directions, networks, "directions").to(device)}
    source = source_of(config, found, classifier, done)
    return TrainedRun(config, names, classifier, None, "pseudo_label", device, source)


def load_classifier(run: Path, device: torch.device) -> tuple[Any, TrainConfig, tuple[str, ...]]:
    """The classifier of a run folder, in eval mode, with its config and class names; errors as in `load_run`."""
    networks = open_run(run)
    return _ready(_classifier(networks), device), networks.config, networks.class_names


def _classifier(networks: TrainedNetworks) -> Any:
    config, count = networks.config, len(networks.class_names)
    state = networks.state("classifier")  # first: an unfinished run says so before networks are built
    return _fill(build_classifier(_unfilled(config), method_of(config), count), *state, "classifier")


def _unfilled(config: TrainConfig) -> TrainConfig:
    """A config whose networks wait for weights, and read none."""
    return replace(config, model=replace(config.model, pretrained=False, weights_dir=None))


def _ready(net: Any, device: torch.device) -> Any:
    switch_off_tf32()
    return net.eval().requires_grad_(False).to(device=device, memory_format=torch.channels_last)


def _filled(net: Any, networks: TrainedNetworks, name: ModuleName) -> Any:
    return _fill(net, *networks.state(name), name)


def _fill(net: nn.Module, state: Mapping[str, Tensor], path: Path, name: str) -> Any:
    try:
        net.load_state_dict(state)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise RunError(f"{path}: does not fit the {name} of its config.json ({reason[:200]})") from None
    return net


@dataclass(frozen=True)
class RunNetworks:
    """Those of a run folder, by their checkpoints. `identity`: of a classifier that was taken from another run; None
    where it is the run's own."""

    folder: Path
    config: TrainConfig
    class_names: tuple[str, ...]
    identity: str | None

    @property
    def result(self) -> str:
        """LCHP-R where stage 2 is complete, else LCHP-I."""
        return self._localizer[0]

    def state(self, name: ModuleName) -> tuple[Mapping[str, Tensor], Path]:
        """Of the module, as its link's checkpoint holds it. Raises RunError, also where the link is unfinished."""
        if name == "trunk":
            trunk = ddt_trunk(nn.Module(), self.config.model, torch.device("cpu"))
            return trunk.state_dict(), self.folder / runs.CONFIG
        if name == "localizer":
            checkpoint, path = self._localizer[1:]
        elif name in ("classifier", "teacher"):
            checkpoint, path = self._first
        else:
            path = _checkpoint(self.folder, "choice" if name == "choice" else "boxes")
            checkpoint = _finished(path, len(ROUNDS) if name == "choice" else 1)
        if name not in checkpoint["modules"]:
            raise RunError(f"{path}: does not fit the {name} of its config.json ({name!r})")
        return checkpoint["modules"][name], path

    @cached_property
    def _first(self) -> tuple[dict[str, Any], Path]:
        path, epochs = _checkpoint(self.folder, "classifier"), self.config.initialization.epochs
        checkpoint = load_checkpoint(path, self.identity)
        if checkpoint["epoch"] < epochs:
            raise RunError(
                f"{path}: stage 1 stopped after {checkpoint['epoch']} of {epochs} epochs; "
                "finish it with lchp train and --resume first"
            )
        return checkpoint, path

    @cached_property
    def _localizer(self) -> tuple[str, dict[str, Any], Path]:
        path = _checkpoint(self.folder, "refinement")
        checkpoint = load_checkpoint(path) if path.exists() else None
        if checkpoint is not None and checkpoint["epoch"] >= self.config.refinement.epochs:
            return "lchp_r", checkpoint, path
        path, checkpoint = localizer_checkpoint(self.folder, self.config)
        return "lchp_i", checkpoint, path


def open_run(run: Path) -> RunNetworks:
    """The networks of a run folder, none of which is read yet. Raises RunError."""
    if not run.is_dir():
        raise RunError(f"{run}: no such run folder")
    if (run / runs.MODEL).exists() and not (run / runs.ENVIRONMENT).exists():
        raise RunError(f"{run}: is a model, and no run folder; give it by --model")
    config, environment = runs.read_config(run), runs.read_environment(run)
    if "localizer" not in environment.get("links", ("localizer",)):  # of a compared method that ended with stage 1
        config = of_stage1(config)
    return RunNetworks(run, config, tuple(environment["class_names"]), _taken_as(environment))


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
