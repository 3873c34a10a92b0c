"""ADL: attention-based dropout layer (Choe and Shim, CVPR 2019, arXiv 1908.10028).

A layer in the trunk, in training only. Its attention is the mean of the features F over channels; with probability
`drop_rate` the whole batch is multiplied by the drop mask, else by the importance map:

    A = mean_c F;    drop mask = 1[A < gamma * max A] (of each image);    importance map = sigmoid(A)

At drop rate 0 no feature is dropped, and what remains is the importance map; without it too, training is plain
classification. In inference mode the network always is the plain classifier, and the score map is CAM.

Drop rate and gamma are those of the authors' CUB command (github.com/junsukchoe/ADL, run_train.sh: keep probability
0.25, threshold 0.9). Where it goes: after the first unit of each of the trunk's last two resolutions and after its last
unit (`positions`). On ResNet50 those are run_train.sh's three, one resolution earlier since the trunk ends there; on
VGG16 pool3, pool4 and conv5_3, where wsolevaluation has conv4_3 instead of pool4; vgg16_gap's third is after conv6.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lchp.backbones.spine import Unit, resolutions
from lchp.baselines.cam import inner_cam
from lchp.config import ModelConfig
from lchp.method.definition import Batch, Method, Scheme
from lchp.method.networks import Classifier, ClassifierOutput

DROP_RATE = 0.75
GAMMA = 0.9


@dataclass(frozen=True)
class Dropout:
    """The layer: how often the drop mask is taken, its threshold as a share of the maximum, and whether the importance
    map is used the other times."""

    drop_rate: float = DROP_RATE
    gamma: float = GAMMA
    importance: bool = True

    def __call__(self, features: Tensor, generator: torch.Generator) -> Tensor:
        """Features B x C x h x w as the layer lets them through; one draw of the generator, which is the CPU's."""
        attention = features.mean(1, keepdim=True)  # A: B x 1 x h x w
        if torch.rand((), generator=generator) < self.drop_rate:
            return features * (attention < self.gamma * attention.amax((2, 3), keepdim=True))
        return features * attention.sigmoid() if self.importance else features


LAYER = Dropout()


class Adl(nn.Module):
    """A classifier, and where its trunk is dropped from; outside `dropping` it is the plain one."""

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        super().__init__()
        self.classifier = Classifier(replace(config, head="gap"), num_classes)
        self.positions = positions(self.classifier.trunk)

    @property
    def mean(self) -> Tensor:
        """The colour that input normalisation maps to 0 (3 values in [0, 1])."""
        return self.classifier.mean

    def forward(self, x: Tensor) -> ClassifierOutput:
        """Logits and features of B x 3 x H x W images in [0, 1]."""
        return self.classifier(x)

    @contextmanager
    def dropping(self, layer: Dropout, generator: torch.Generator) -> Iterator[None]:
        """Within the context, the layer is at each of the positions."""

        def drop(_module: nn.Module, _inputs: object, features: Tensor) -> Tensor:
            return layer(features, generator)

        with ExitStack() as hooks:
            for unit in self.positions:
                hooks.enter_context(self.classifier.trunk.get_submodule(unit.name).register_forward_hook(drop))
            yield


def positions(trunk: nn.Module) -> tuple[Unit, ...]:
    """Where the layer goes, in order; fewer than three places where some coincide."""
    last_two = resolutions(trunk)[-2:]
    return tuple(dict.fromkeys([*(group[0] for group in last_two), last_two[-1][-1]]))


def adl_loss(model: nn.Module, batch: Batch, layer: Dropout = LAYER) -> Tensor:
    """Cross-entropy of the classifier with the layer in its trunk."""
    assert isinstance(model, Adl)
    with model.dropping(layer, batch.draws):
        # past the outer module's __call__: compiled, it would keep the hooks of its first step
        return F.cross_entropy(model.classifier(batch.images).logits.float(), batch.labels)


METHOD = Method("adl", "ADL", Scheme("adl", adl_loss, Adl), inner_cam)
