"""A classifier of the user's own as what predicts: its class, and the box of its map. Nothing is trained."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from lchp.backbones.own import OwnClassifier, read_own
from lchp.baselines import method
from lchp.baselines.cam import PLAIN
from lchp.config import DataConfig, InitializationConfig, MethodConfig, ModelConfig, TrainConfig
from lchp.data.annotations import list_folders
from lchp.deploy.trained import TrainedRun
from lchp.errors import ConfigError
from lchp.method.networks import Classifier
from lchp.system.devices import switch_off_tf32
from lchp.training.chain import method_of, with_own_classifier
from lchp.training.map_boxes import source_of
from lchp.training.own_classifier import fill_classifier, read_classes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OwnFlags:
    """Which classifier, and what makes a box of its map. weights, backbone: as of `lchp.backbones.own.read_own`;
    classes: file of the head's class names; method: of a map; size: side in px of what the network sees; threshold,
    component: see `lchp.config.MethodConfig`."""

    weights: Path
    backbone: str
    method: str = "layer_cam"
    classes: Path | None = None
    size: int = 224
    threshold: float = 0.2
    component: str = "largest"


def load_own(own: OwnFlags, photos: Path, device: torch.device) -> TrainedRun:
    """What predicts. Where no file names the classes, the folders in `photos` do, if they are as many; else they have
    numbers, from 0.

    Raises ConfigError for a method whose boxes are of no map or whose classifier is none that a file can hold, an
    unknown backbone, or one whose head does not serve; WeightsError or DataError for files that do not fit.
    """
    config = TrainConfig(
        data=DataConfig(name="folder", resize=own.size, image_size=own.size, cache="off"),
        model=ModelConfig(own.backbone, head="gap", pretrained=False, classifier_weights=str(own.weights)),
        method=MethodConfig(own.method, threshold=own.threshold, component=own.component),  # pyright: ignore
        initialization=InitializationConfig(epochs=0),
    )
    found = method(own.method)
    # CutMix and its like train a classifier for CAM's map; here nothing is trained
    fit = [name for name in with_own_classifier() if method(name).boxes == "map" and method(name).scheme is PLAIN]
    if found.name not in fit:
        raise ConfigError(f"--method {own.method}: expected one whose map is of a plain classifier: {', '.join(fit)}")
    method_of(config)  # for what else contradicts it
    read = read_own(own.weights, own.backbone)
    names = _class_names(own, read, photos)
    classifier = Classifier(config.model, len(names), own.size)
    fill_classifier(classifier, read, range(len(names)))
    switch_off_tf32()
    classifier.eval().requires_grad_(False).to(device=device, memory_format=torch.channels_last)  # pyright: ignore
    source = source_of(config, found, classifier, {})
    return TrainedRun(config, names, classifier, None, "pseudo_label", device, source)


def _class_names(own: OwnFlags, read: OwnClassifier, photos: Path) -> tuple[str, ...]:
    count = len(read.weight)
    if own.classes is not None:
        return tuple(read_classes(own.classes, own.weights, count))
    folders = list_folders(photos, []) if photos.is_dir() else []
    if len(folders) == count:
        log.warning("the classes have the names of the folders in %s, in sorted order", photos)
        return tuple(folders)
    log.warning("the %d classes of %s have numbers for names; --classes FILE names them", count, own.weights)
    return tuple(map(str, range(count)))
