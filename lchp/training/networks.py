"""The networks of a run at their start, and the rates that their parts learn at."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from lchp.backbones import Trunk
from lchp.baselines import Method
from lchp.config import TrainConfig
from lchp.errors import ConfigError
from lchp.method.networks import Classifier, Localizer
from lchp.system.distributed import share_batch_statistics
from lchp.training.chain import Chain


@dataclass(frozen=True)
class Networks:
    """The networks of a run: theta_1 and Loc, whose weights the links train one after the other. Loc is built where a
    link of the chain trains it."""

    classifier: Any
    loc: Localizer | None

    @property
    def localizer(self) -> Localizer:
        """Loc of a chain that has one."""
        assert self.loc is not None
        return self.loc


def build_classifier(config: TrainConfig, found: Method, num_classes: int) -> nn.Module:
    """The method's classifier at its start. Raises ConfigError where its trunk leaves nothing of data.image_size."""
    model, size = config.model, config.data.image_size
    if found.head is not None:
        model = replace(model, head=found.head)
    if found.scheme.build is Classifier:
        return Classifier(model, num_classes, size)
    classifier = found.scheme.build(model, num_classes)
    try:
        with torch.no_grad():
            classifier.eval()(torch.zeros(1, 3, size, size))
    except RuntimeError as error:  # a pooling or convolution larger than what is left to it
        reason = str(error).splitlines()[0]
        raise ConfigError(f"data.image_size = {size}: too small for {config.model.classifier} ({reason})") from None
    return classifier.train()


def build(chain: Chain, num_classes: int, device: torch.device) -> Networks:
    """The networks of a chain at their start, drawn from the seed."""
    config = chain.config
    torch.manual_seed(config.seed)
    layout: dict[str, Any] = {"device": device, "memory_format": torch.channels_last}
    classifier = share_batch_statistics(build_classifier(config, chain.method, num_classes).to(**layout))
    if "localizer" not in chain:
        return Networks(classifier, None)
    return Networks(classifier, share_batch_statistics(Localizer(config.model, config.data.image_size).to(**layout)))


def by_rate(classifier: nn.Module, config: TrainConfig, found: Method) -> list[dict[str, Any]]:
    """A classifier's parameters with the rates they learn at: first those that ImageNet weights hold, then the others,
    faster; one rate where there are no such weights, or those of a trained classifier, and where the method has one."""
    parameters, lr = list(classifier.parameters()), config.initialization.lr
    if config.model.classifier_weights is not None:
        return [{"params": parameters, "lr": lr}]
    trunk = next(m for m in classifier.modules() if isinstance(m, Trunk))
    held = {id(p) for n, p in trunk.named_parameters() if n not in trunk.from_random}
    if not held or found.scheme.teach is not None:
        return [{"params": parameters, "lr": lr}]
    faster = lr * config.method.lr_classifier_ratio
    return [
        {"params": [p for p in parameters if id(p) in held], "lr": lr},
        {"params": [p for p in parameters if id(p) not in held], "lr": faster},
    ]
