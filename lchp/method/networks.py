"""The classifier (a trunk with a BAP or GAP head) and the localizer (a backbone with a small head for one box)."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lchp.backbones import Normalize, build_trunk
from lchp.backbones.modes import inference_mode_of
from lchp.boxes import CENTRE_BOX
from lchp.config import ModelConfig
from lchp.errors import ConfigError


class Fp32Linear(nn.Linear):
    """A last layer: in fp32 under autocast, too. In bf16 a box is a multiple of 1/256, and scores of classes tie."""

    def forward(self, input: Tensor) -> Tensor:
        """B x inputs to B x outputs, float32."""
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())


class Fp32Conv2d(nn.Conv2d):
    """A last convolution, to maps: in fp32 as `Fp32Linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """B x inputs x h x w to B x outputs x h x w, float32."""
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())


WSDAN_EPS = 1e-3
"""Of the BatchNorm of the attention maps (GuYuc/WS-DAN.PyTorch, models/inception.py, `BasicConv2d`)."""


class ClassifierOutput(NamedTuple):
    """logits B x classes; attention_maps B x M x h x w (empty M for a GAP head); features B x C x h x w."""

    logits: Tensor
    attention_maps: Tensor
    features: Tensor

    def attention(self, source: str) -> Tensor:
        """A: mean over channels of the BAP maps or of the trunk's features, B x h x w."""
        return (self.attention_maps if source == "attention_maps" else self.features).float().mean(1)


def bilinear_attention_pooling(attention_maps: Tensor, features: Tensor) -> Tensor:
    """BAP: for each map m the mean over pixels of map_m * features; signed square root; L2 normalisation.

    attention_maps: B x M x h x w, features: B x C x h x w -> B x (M * C). Source: WS-DAN (arXiv 1901.09891).
    """
    h, w = features.shape[2:]
    pooled = torch.einsum("bmhw,bchw->bmc", attention_maps, features).flatten(1).float() / (h * w)
    pooled = pooled.sign() * (pooled.abs() + 1e-6).sqrt()  # WS-DAN's offset; a smaller one spikes the gradient near 0
    return F.normalize(pooled, dim=1)


class Classifier(nn.Module):
    """Trunk and head; images B x 3 x H x W in [0, 1] to `ClassifierOutput`."""

    _version = 2  # kept in checkpoints; those of 1 were trained with the eps below

    def __init__(self, config: ModelConfig, num_classes: int, image_size: int = 160) -> None:
        """image_size: side in px of the images to come; ConfigError where the trunk leaves nothing of them."""
        super().__init__()
        if config.classifier_weights is None:
            self.trunk = build_trunk(
                config.classifier, "classifier", pretrained=config.pretrained, weights_dir=config.weights_dir
            )
        else:  # of whoever starts it from these weights
            self.trunk = build_trunk(config.classifier, "whole", pretrained=False, weights_dir=None)
        channels = _output_shape(self.trunk, config.classifier, image_size)[0]
        self.head, self.scale = config.head, config.bap_scale
        if config.head == "bap":
            m = config.attention_maps
            self.attend = nn.Sequential(nn.Conv2d(channels, m, 1, bias=False), nn.BatchNorm2d(m, WSDAN_EPS), nn.ReLU())
            self.linear = Fp32Linear(m * channels, num_classes, bias=False)
        else:
            self.attend = nn.Identity()
            self.linear = Fp32Linear(channels, num_classes)

    @property
    def mean(self) -> Tensor:
        """The colour that input normalisation maps to 0 (3 values in [0, 1])."""
        return _mean(self.trunk)

    def forward(self, x: Tensor) -> ClassifierOutput:
        """Logits, attention maps and features of B x 3 x H x W images in [0, 1]."""
        features = self.trunk(x)  # B x C x h x w
        if self.head == "gap":
            return ClassifierOutput(self.linear(features.mean((2, 3), dtype=torch.float32)), features[:, :0], features)
        maps = self.attend(features)  # B x M x h x w
        pooled = bilinear_attention_pooling(maps, features)  # B x M*C
        return ClassifierOutput(self.linear(pooled * self.scale), maps, features)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any) -> None:
        for module in self.attend.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eps = WSDAN_EPS if local_metadata.get("version", 1) > 1 else 1e-5
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


class Localizer(nn.Module):
    """Backbone and a small head; images B x 3 x H x W in [0, 1] to one box each, B x 4 (x1 y1 x2 y2 in [0, 1]).

    Under the linear encoding nothing bounds the box while it trains; whoever uses it as a box clips it.
    """

    HEAD_CHANNELS = 128

    def __init__(self, config: ModelConfig, image_size: int) -> None:
        super().__init__()
        self.backbone = build_trunk(
            config.localizer, "localizer", pretrained=config.pretrained, weights_dir=config.weights_dir
        )
        channels, h, w = _output_shape(self.backbone, config.localizer, image_size)
        self.pixels, self.image_size = h * w, image_size
        if config.localizer_head == "spatial":
            squeezed = nn.Conv2d(channels, self.HEAD_CHANNELS, 1, bias=False)
            last = Fp32Linear(self.HEAD_CHANNELS * h * w, 4)
            self.head = nn.Sequential(
                squeezed,
                nn.BatchNorm2d(self.HEAD_CHANNELS),
                nn.ReLU(inplace=True),
                nn.Flatten(),
                _Scale(last.in_features),
                last,
            )
        else:
            last = Fp32Linear(channels, 4)
            self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)
        self.sigmoid = config.box_encoding == "sigmoid"
        start = torch.tensor(CENTRE_BOX)  # every image starts from the centred box, so no corner starts crossed
        with torch.no_grad():
            nn.init.normal_(last.weight, std=0.05 if config.localizer_head == "spatial" else 0.001)
            last.bias.copy_(start.logit() if self.sigmoid else start)

    @property
    def mean(self) -> Tensor:
        """The colour that input normalisation maps to 0 (3 values in [0, 1])."""
        return _mean(self.backbone)

    def forward(self, x: Tensor) -> Tensor:
        """Boxes (B x 4) of B x 3 x H x W images in [0, 1]. ConfigError for a batch that BatchNorm cannot train on."""
        if self.training and len(x) * self.pixels == 1:
            raise ConfigError(
                f"data.batch_size = {len(x)}: expected at least 2 images in a batch, since at data.image_size = "
                f"{self.image_size} the localizer's features are one pixel, and BatchNorm needs two values"
            )
        box = self.head(self.backbone(x)).float()
        return box.sigmoid() if self.sigmoid else box


class _Scale(nn.Module):
    """Multiplies by 2 / sqrt(inputs). A step moves a linear layer's output by lr * |input|^2, which grows with the
    grid: unscaled, regression at the paper's rates diverges on any grid worth having."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.factor = 2 * inputs**-0.5

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def _mean(trunk: nn.Module) -> Tensor:
    normalize = trunk.get_submodule("0")
    assert isinstance(normalize, Normalize)
    return normalize.mean


def _output_shape(trunk: nn.Module, name: str, size: int) -> tuple[int, int, int]:
    """C, h, w of a trunk's features for a size x size image, by one forward pass in eval mode."""
    try:
        with inference_mode_of(trunk), torch.no_grad():
            shape = trunk(torch.zeros(1, 3, size, size)).shape[1:]
    except RuntimeError as error:  # a pooling or convolution larger than what is left to it
        reason = str(error).splitlines()[0]
        raise ConfigError(f"data.image_size = {size}: too small for {name} ({reason})") from None
    return shape[0], shape[1], shape[2]
