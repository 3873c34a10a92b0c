"""Depthwise 3x3 convolution that trains fast on a CPU in bf16.

torch's own input gradient of a strided depthwise convolution in bf16 took most of a MobileNetV2 step on the CPUs it was
measured on, and came back in a layout that slowed down the layers before it. The gradient is written here as the plain
depthwise convolution that it is: of the output gradient, spread to the input's grid, with the flipped kernel.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _Depthwise(torch.autograd.Function):
    """x: B x C x H x W and weight: C x 1 x 3 x 3, padding 1, stride 1 or 2, all in channels_last."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = x.contiguous(memory_format=torch.channels_last), weight.to(x.dtype)
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return F.conv2d(x, weight, stride=stride, padding=1, groups=x.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        stride, channels = ctx.stride, x.shape[1]
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_weight = torch.ops.aten.convolution_backward(
            grad, x, weight, None, [stride] * 2, [1, 1], [1, 1], False, [0, 0], channels, [False, True, False]
        )[1]
        spread = grad
        if stride > 1:
            spread = torch.zeros_like(x)
            spread[:, :, ::stride, ::stride] = grad
        return F.conv2d(spread, weight.flip(2, 3), padding=1, groups=channels), grad_weight.float(), None


class DepthwiseConv2d(nn.Conv2d):
    """A `Conv2d` whose gradients on a CPU under autocast are computed as above; elsewhere it is torch's own."""

    def forward(self, input: Tensor) -> Tensor:
        """B x C x H x W to B x C x H/stride x W/stride."""
        if not (torch.is_grad_enabled() and input.device.type == "cpu" and torch.is_autocast_enabled("cpu")):
            return super().forward(input)
        dtype = torch.get_autocast_dtype("cpu")
        with torch.autocast("cpu", enabled=False):
            return _Depthwise.apply(input.to(dtype), self.weight, self.stride[0])


def speed_up(module: nn.Module) -> None:
    """Turns the 3x3 depthwise convolutions of a network into `DepthwiseConv2d`, in place; parameters and names stay."""
    for conv in module.modules():
        if (
            type(conv) is nn.Conv2d
            and conv.groups == conv.in_channels == conv.out_channels > 1
            and conv.kernel_size == (3, 3)
            and conv.padding == (1, 1)
            and conv.dilation == (1, 1)
            and conv.stride in ((1, 1), (2, 2))
            and conv.bias is None
            and conv.padding_mode == "zeros"
        ):
            conv.__class__ = DepthwiseConv2d
