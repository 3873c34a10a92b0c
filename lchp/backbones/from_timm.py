"""Any model of timm (an optional package) as a backbone, by the name `timm:NAME` or `timm:NAME.TAG`.

The trunk is cut by timm's own `prune_intermediate_layers` and `forward_intermediates`, at a feature that its
`feature_info` lists: the last one at stride 16 or finer for the classifier, the last of all for the localizer.
Checked with timm 1.0.31.
"""

from functools import partial
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from lchp.backbones.entry import IMAGENET, Backbone, Normalization, Role
from lchp.config import suggest
from lchp.errors import ConfigError

PREFIX = "timm:"
STRIDE = 16
"""The coarsest that a classifier's trunk may be."""


def timm_entry(name: str) -> Backbone:
    """The entry of `timm:NAME`. Raises ConfigError where timm is not installed, or has no such model or tag."""
    model = name.removeprefix(PREFIX)
    timm = _timm(model)
    architecture, _, tag = model.partition(".")
    if not timm.is_model(architecture):
        near = suggest(name, [PREFIX + n for n in timm.list_models()])
        raise ConfigError(f"backbone {name!r}: timm {timm.__version__} has no model {architecture!r}{near}")
    tagged = list(timm.models.get_arch_pretrained_cfgs(architecture))
    if tag and model not in tagged:
        tags = ", ".join(n.partition(".")[2] for n in tagged) or "none"
        raise ConfigError(f"backbone {name!r}: timm {timm.__version__} knows no such weights; its tags: {tags}")
    about = timm.get_pretrained_cfg(model)
    if about is None:  # an architecture that nobody published weights of
        return _entry(model, IMAGENET, (), None)
    heads = (about.classifier,) if isinstance(about.classifier, str) else about.classifier or ()
    download = f"{architecture}.{about.tag}" if about.has_weights else None
    return _entry(model, (about.mean, about.std), tuple(f"{head}." for head in heads), download)


def _entry(model: str, normalization: Normalization, discard: tuple[str, ...], download: str | None) -> Backbone:
    return Backbone(
        partial(_create, model, pretrained=False),
        partial(_cut, model),
        normalization,
        discard,
        download,
        source="timm",
        head=discard[0].removesuffix(".") if len(discard) == 1 else None,
    )


def download(model: str) -> dict[str, Tensor]:
    """timm's own weights of `model`, NAME.TAG, in timm's parameter names.

    Raises ConfigError where timm is not installed, and whatever timm raises where the download fails.
    """
    return _create(model, pretrained=True).state_dict()


def licence_of(model: str | None) -> str | None:
    """The licence that timm states of its weights of `model`, NAME.TAG; None where it states none."""
    about = None if model is None else _timm(model).get_pretrained_cfg(model)
    return getattr(about, "license", None)


def _timm(model: str) -> ModuleType:
    try:
        import timm
    except ImportError:
        raise ConfigError(
            f"backbone {PREFIX + model!r} needs timm, an optional package: pip install timm, or install lchp[timm]"
        ) from None
    return timm


def _create(model: str, *, pretrained: bool) -> nn.Module:
    """The whole model. One of a fixed input size is asked to take any, in the two ways that timm knows."""
    timm = _timm(model)
    about = timm.get_pretrained_cfg(model)
    if about is None or not about.fixed_input_size:
        return timm.create_model(model, pretrained=pretrained)
    options = ({"dynamic_img_size": True, "dynamic_img_pad": True}, {"strict_img_size": False})
    for option in options:
        try:
            return timm.create_model(model, pretrained=pretrained, **option)
        except TypeError as error:
            if not any(key in str(error) for key in option):
                raise
    raise ConfigError(
        f"backbone {PREFIX + model!r}: its input is fixed at {about.input_size[-1]} px, and timm cannot change that; "
        "take a convolutional network, or one of the vit or swin models"
    )


class _Features(nn.Module):
    """B x 3 x H x W to the feature `index` of a timm model, B x C x h x w; `norm`: with the model's final norm.

    Raises ConfigError when it is trained on images that its patches do not cover evenly: timm pads those on two sides,
    which would shift the attention.
    """

    def __init__(self, net: nn.Module, index: int, *, norm: bool) -> None:
        super().__init__()
        model = cast(Any, net)
        model.prune_intermediate_layers([index], prune_norm=not norm, prune_head=True)
        self.net, self.index, self.norm = net, index, norm
        embed: Any = getattr(net, "patch_embed", None)
        self.patch: int = embed.patch_size[0] if getattr(embed, "dynamic_img_pad", False) else 1

    def forward(self, x: Tensor) -> Tensor:
        """The feature."""
        if self.training and x.shape[-1] % self.patch:
            raise ConfigError(
                f"data.image_size = {x.shape[-1]}: expected a multiple of {self.patch}, the patch of this backbone"
            )
        model = cast(Any, self.net)
        return model.forward_intermediates(
            x, indices=[self.index], norm=self.norm, output_fmt="NCHW", intermediates_only=True
        )[0]


def _cut(model: str, net: nn.Module, role: Role) -> nn.Module:
    """The trunk, checked by one forward pass."""
    name = PREFIX + model
    if role == "whole":
        return _whole(name, net)
    strides = [info["reduction"] for info in getattr(net, "feature_info", ())]
    fine = [i for i, stride in enumerate(strides) if stride <= STRIDE]
    if not strides or not hasattr(net, "forward_intermediates"):
        raise ConfigError(f"backbone {name!r}: timm gives no intermediate features of this model")
    if role == "classifier" and not fine:
        raise ConfigError(
            f"backbone {name!r}: its finest features have stride {min(strides)}, too coarse for a classifier, "
            f"which needs {STRIDE} or less; as a localizer it will do"
        )
    index = fine[-1] if role == "classifier" else len(strides) - 1
    try:
        # a final norm belongs to the last feature: in a ViT, what goes by without it has no scale of its own
        trunk = _Features(net, index, norm=index == len(strides) - 1)
        with torch.no_grad():
            shape = trunk.eval()(torch.zeros(1, 3, 160, 160)).shape
    except (
        AssertionError,
        AttributeError,
        IndexError,
        NotImplementedError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(f"backbone {name!r}: timm cannot cut features out of this model ({reason})") from None
    if len(shape) != 4:
        raise ConfigError(f"backbone {name!r}: its features are no map of the image (shape {tuple(shape)})")
    split_activations(trunk)
    return trunk.train()


class _Whole(nn.Module):
    """B x 3 x H x W to what a timm model pools for its class head, B x C x h x w."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        cast(Any, net).reset_classifier(0)
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """The features."""
        return cast(Any, self.net).forward_features(x)


def _whole(name: str, net: nn.Module) -> nn.Module:
    """All before the class head. Raises ConfigError where that is more than global average pooling and a linear
    layer: a forward pass through these gives other logits than the model."""
    model, x = cast(Any, net).eval(), torch.linspace(-1, 1, 3 * 160 * 160).view(1, 3, 160, 160)
    head = model.get_classifier()
    with torch.no_grad():
        features, logits = model.forward_features(x), model(x)
        plain = isinstance(head, nn.Linear) and features.dim() == 4 and features.shape[1] == head.in_features
        if not plain or not torch.allclose(head(features.mean((2, 3))), logits, rtol=1e-3, atol=1e-4):
            raise ConfigError(
                f"model.classifier = {name!r}: its class head is more than global average pooling and one linear "
                "layer, as a classifier of one's own needs (most ResNets, RegNets, DenseNets and EfficientNets have it)"
            )
    trunk = _Whole(net)
    split_activations(trunk)
    return trunk.train()


def split_activations(net: nn.Module) -> None:
    """Makes every BatchNorm of timm's that applies an activation itself a plain `BatchNorm2d` followed by it, in place.

    For several workers torch turns the fused one into a `SyncBatchNorm` without its activation, and
    lchp.system.distributed would leave it out.
    """
    from timm.layers.norm_act import BatchNormAct2d

    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if type(child) is BatchNormAct2d:
                parts = [child, *(p for p in (child.drop, child.act) if not isinstance(p, nn.Identity))]
                del child.drop, child.act
                child.__class__ = nn.BatchNorm2d
                setattr(parent, name, nn.Sequential(*parts))


SE_RESNET50 = "seresnet50.ra2_in1k"
"""SE-ResNet50 with one of timm's weights by its tag, since timm's choice of a default may change."""

TIMM: dict[str, Backbone] = {"se_resnet50": _entry(SE_RESNET50, IMAGENET, ("fc.",), SE_RESNET50)}
