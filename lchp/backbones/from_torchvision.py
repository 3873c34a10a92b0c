"""torchvision's ImageNet architectures, and where each is cut."""

from collections.abc import Callable, Iterable

from torch import nn

from lchp.backbones.entry import IMAGENET, SYMMETRIC, Backbone, Role


def _named(name: str, **options: bool) -> Callable[[], nn.Module]:
    """How torchvision builds a network of its own, without weights."""

    def build() -> nn.Module:
        from torchvision import models

        return getattr(models, name)(weights=None, **options)

    return build


def _children(net: nn.Module, names: Iterable[str]) -> nn.Module:
    return nn.Sequential(*map(net.get_submodule, names))


def _cut_inception_v3(net: nn.Module, role: Role) -> nn.Module:
    stem = ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2"]
    fine = [f"Mixed_{n}" for n in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e")]
    coarse = [] if role == "classifier" else [f"Mixed_{n}" for n in ("7a", "7b", "7c")]
    return _children(net, (*stem, *fine, *coarse))


def _cut_resnet50(net: nn.Module, role: Role) -> nn.Module:
    names = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"]
    return _children(net, names[:7] if role == "classifier" else names)


def _cut_vgg(net: nn.Module, role: Role) -> nn.Module:
    layers = net.get_submodule("features")
    assert isinstance(layers, nn.Sequential)
    return layers[:-1] if role == "classifier" else layers  # the last pooling would make stride 32


def _cut_densenet161(net: nn.Module, role: Role) -> nn.Module:
    layers = net.get_submodule("features")
    assert isinstance(layers, nn.Sequential)
    if role != "classifier":
        return nn.Sequential(layers, nn.ReLU(inplace=True))
    # up to denseblock3, then transition3's norm and ReLU, which close that block's pre-activation features
    names = [n for n, _ in layers.named_children()]
    kept = [layers.get_submodule(n) for n in names[: names.index("transition3")]]
    return nn.Sequential(*kept, layers.get_submodule("transition3.norm"), nn.ReLU(inplace=True))


def _cut_mobilenet_v2(net: nn.Module, role: Role) -> nn.Module:
    """Classifier and localizer: features up to the ReLU6 expansion of block 14, stride 16, 576 channels."""
    layers = net.get_submodule("features")
    assert isinstance(layers, nn.Sequential)
    if role == "whole":
        return layers
    return nn.Sequential(*layers[:14], layers.get_submodule("14.conv.0"))


def _vgg16() -> nn.Module:
    """Without the layers that are discarded: they are 124 of its 138 million parameters."""
    from torchvision.models.vgg import cfgs, make_layers

    return nn.ModuleDict({"features": _kaiming(make_layers(cfgs["D"]))})


def _cut_googlenet(net: nn.Module, role: Role) -> nn.Module:
    """The classifier's after inception4e (stride 16, 832 channels), as CAM's is; the localizer's after inception5b."""
    stem = ["conv1", "maxpool1", "conv2", "conv3", "maxpool2", "inception3a", "inception3b", "maxpool3"]
    fine = [f"inception4{letter}" for letter in "abcde"]
    coarse = [] if role == "classifier" else ["maxpool4", "inception5a", "inception5b"]
    return _children(net, (*stem, *fine, *coarse))


def _with_conv6(build: Callable[[], nn.Module], channels: int) -> Callable[[], nn.Module]:
    """The network and CAM's added convolution: 3x3, 1024 units (Zhou et al. 2016, section 3; the name is
    wsolevaluation's, in wsol/vgg.py). ImageNet weights do not hold it."""

    def build_with_conv6() -> nn.Module:
        net = build()
        net.add_module("conv6", _kaiming(nn.Conv2d(channels, 1024, 3, padding=1)))
        return net

    return build_with_conv6


def _cut_gap(cut: Callable[[nn.Module, Role], nn.Module]) -> Callable[[nn.Module, Role], nn.Module]:
    """Both roles: the classifier's trunk of `cut`, conv6 and ReLU; stride 16, 1024 channels."""

    def cut_with_conv6(net: nn.Module, _role: Role) -> nn.Module:
        # not in place: methods that hook the ReLU's input would see its output
        return nn.Sequential(cut(net, "classifier"), net.get_submodule("conv6"), nn.ReLU())

    return cut_with_conv6


def _kaiming(module: nn.Module) -> nn.Module:
    """Starts convolutions as torchvision's VGG does."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d) and conv.bias is not None:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(conv.bias)
    return module


INCEPTION = {"aux_logits": False, "transform_input": False, "init_weights": True}
VGG16 = "VGG16_Weights.IMAGENET1K_V1"
GOOGLENET = "GoogLeNet_Weights.IMAGENET1K_V1"
GOOGLENET_HEADS = ("fc.", "aux1.", "aux2.")

TORCHVISION: dict[str, Backbone] = {
    "inception_v3": Backbone(
        _named("inception_v3", **INCEPTION),
        _cut_inception_v3,
        SYMMETRIC,
        ("fc.", "AuxLogits."),
        "Inception_V3_Weights.IMAGENET1K_V1",
        head="fc",
    ),
    "resnet50": Backbone(
        _named("resnet50"), _cut_resnet50, IMAGENET, ("fc.",), "ResNet50_Weights.IMAGENET1K_V1", head="fc"
    ),
    "vgg19_bn": Backbone(_named("vgg19_bn"), _cut_vgg, IMAGENET, ("classifier.",), "VGG19_BN_Weights.IMAGENET1K_V1"),
    "densenet161": Backbone(
        _named("densenet161"),
        _cut_densenet161,
        IMAGENET,
        ("classifier.",),
        "DenseNet161_Weights.IMAGENET1K_V1",
        head="classifier",
    ),
    "mobilenet_v2": Backbone(
        _named("mobilenet_v2"),
        _cut_mobilenet_v2,
        IMAGENET,
        ("classifier.",),
        "MobileNet_V2_Weights.IMAGENET1K_V1",
        head="classifier.1",
    ),
    "vgg16": Backbone(_vgg16, _cut_vgg, IMAGENET, ("classifier.",), VGG16),
    "vgg16_gap": Backbone(
        _with_conv6(_vgg16, 512), _cut_gap(_cut_vgg), IMAGENET, ("classifier.",), VGG16, added=("conv6.",), file="vgg16"
    ),
    # torchvision's weights were ported from TensorFlow, and want its input
    "googlenet": Backbone(
        _named("googlenet", **INCEPTION), _cut_googlenet, SYMMETRIC, GOOGLENET_HEADS, GOOGLENET, head="fc"
    ),
    "googlenet_gap": Backbone(
        _with_conv6(_named("googlenet", **INCEPTION), 832),
        _cut_gap(_cut_googlenet),
        SYMMETRIC,
        GOOGLENET_HEADS,
        GOOGLENET,
        added=("conv6.",),
        file="googlenet",
    ),
}
