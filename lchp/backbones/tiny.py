"""Small networks of our own for the embedded data set; no weights of theirs exist."""

from collections.abc import Callable

from torch import nn

from lchp.backbones.entry import SYMMETRIC, Backbone, Role


def _tiny(*widths: int, halvings: int = 2) -> Callable[[], nn.Module]:
    """3x3 convolutions of the given widths with BatchNorm and ReLU, the first `halvings` of them 4x4 with stride 2.

    Even kernels keep a feature centred on its pixels; 3x3 ones with stride 2 shift the upsampled attention by 1.5 px,
    which on 64 px images leaves a good part of a small object outside its box.
    """

    def build() -> nn.Module:
        layers: list[nn.Module] = []
        for i, (c_in, c_out) in enumerate(zip((3, *widths[:-1]), widths, strict=True)):
            stride = 2 if i < halvings else 1
            conv = nn.Conv2d(c_in, c_out, 4 if stride == 2 else 3, stride, padding=1, bias=False)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            layers += [conv, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers)

    return build


def _whole(net: nn.Module, _role: Role) -> nn.Module:
    return net


TINY: dict[str, Backbone] = {
    "tiny": Backbone(_tiny(16, 32, 48), _whole, SYMMETRIC),
    "tiny_wide": Backbone(_tiny(24, 48, 72), _whole, SYMMETRIC),
    "tiny_coarse": Backbone(_tiny(16, 32, 64, 64, halvings=3), _whole, SYMMETRIC),
    "tiny_deep": Backbone(_tiny(16, 32, 48, 48, 48), _whole, SYMMETRIC),
}
