"""Checkpoints of torchvision's blocks load into the corresponding layers and give the same outputs."""

from functools import partial

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import convnext, efficientnet, mobilenetv3

from torchvision_layers import nn as tnn


def mobilenet_v3(channels: int, kernel: int, expanded: int, out: int, se: bool, activation: str, stride: int):
    config = mobilenetv3.InvertedResidualConfig(channels, kernel, expanded, out, se, activation, stride, 1, 1.0)
    theirs = mobilenetv3.InvertedResidual(config, nn.BatchNorm2d)
    squeeze = partial(tnn.SqueezeExcitation, squeeze_channels=8, scale_activation=nn.Hardsigmoid)
    ours = tnn.InvertedResidual(
        channels,
        out,
        stride,
        expanded / channels,
        kernel_size=kernel,
        activation_layer=nn.Hardswish if activation == "HS" else nn.ReLU,
        se_layer=squeeze if se else None,
    )
    return ours, theirs


def mbconv(ratio: int, kernel: int, stride: int, channels: int, out: int):
    config = efficientnet.MBConvConfig(ratio, kernel, stride, channels, out, 1)
    return tnn.MBConv(channels, out, kernel, stride, ratio), efficientnet.MBConv(config, 0.0, nn.BatchNorm2d)


def fused_mbconv(ratio: int, kernel: int, stride: int, channels: int, out: int):
    config = efficientnet.FusedMBConvConfig(ratio, kernel, stride, channels, out, 1)
    return tnn.FusedMBConv(channels, out, kernel, stride, ratio), efficientnet.FusedMBConv(config, 0.0, nn.BatchNorm2d)


PAIRS = {
    "mobilenet v3 hardswish": lambda: mobilenet_v3(8, 5, 24, 8, True, "HS", 1),
    "mobilenet v3 relu": lambda: mobilenet_v3(8, 3, 8, 16, True, "RE", 2),
    "mobilenet v3 plain": lambda: mobilenet_v3(8, 3, 32, 8, False, "HS", 1),
    "mbconv": lambda: mbconv(6, 3, 1, 8, 8),
    "mbconv first": lambda: mbconv(1, 5, 2, 8, 16),
    "fused mbconv": lambda: fused_mbconv(4, 3, 1, 8, 8),
    "fused mbconv single": lambda: fused_mbconv(1, 3, 2, 8, 16),
    "convnext": lambda: (tnn.ConvNeXtBlock(8, layer_scale=0.3), convnext.CNBlock(8, 0.3, 0.0)),
    "layer norm": lambda: (tnn.LayerNorm2d(8, eps=1e-5), convnext.LayerNorm2d(8)),
    "frozen batch norm": lambda: (tnn.FrozenBatchNorm2d(8), torchvision.ops.FrozenBatchNorm2d(8)),
    "squeeze excitation": lambda: (tnn.SqueezeExcitation(8, 2), torchvision.ops.SqueezeExcitation(8, 2)),
    "mlp": lambda: (tnn.MLP(9, [16, 4]), torchvision.ops.MLP(9, [16, 4])),
    "conv norm act": lambda: (tnn.ConvNormAct(8, 4), torchvision.ops.Conv2dNormActivation(8, 4)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_checkpoints_load(name: str) -> None:
    ours, theirs = (module.eval() for module in PAIRS[name]())
    with torch.no_grad():
        for key, value in theirs.state_dict().items():
            if key.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif value.dim() == 1:
                value.uniform_(-0.5, 1.0)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 8, 7, 9)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def test_depthwise_separable_convolution_has_as_many_weights_as_in_the_paper() -> None:
    """C k² + C C' weights; a full convolution has C C' k² (MobileNets, section 3.1)."""
    layer = tnn.DepthwiseSeparableConv(12, 20, kernel_size=5, norm_layer=None)
    weights = sum(p.numel() for p in layer.parameters() if p.dim() > 1)
    assert weights == 12 * 5**2 + 12 * 20
