"""Convolutions, linear layers, and the activations that oneDNN computes with them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchvision_layers import nn as tnn

from .._support import FunctionModule
from ._support import assert_lowers, images, stir

POST_OPS = [
    (nn.ReLU(), "relu"),
    (nn.ReLU(inplace=True), "relu"),
    (nn.ReLU6(), "hardtanh(0, 6)"),
    (nn.Hardtanh(-0.5, 0.25, inplace=True), "hardtanh(-0.5, 0.25)"),
    (nn.Hardswish(inplace=True), "hardswish"),
    (nn.Hardsigmoid(), "hardsigmoid"),
    (nn.SiLU(inplace=True), "swish"),
    (nn.GELU(), "gelu"),
    (nn.GELU("tanh"), "gelu(tanh)"),
    (nn.Sigmoid(), "sigmoid"),
    (nn.Tanh(), "tanh"),
    (nn.LeakyReLU(0.3, inplace=True), "leaky_relu(0.3)"),
]
OTHER_ACTIVATIONS = [nn.ELU(), nn.Mish(), nn.Softplus(), nn.PReLU(4), nn.SELU(inplace=True), nn.Softmax(1), nn.GLU(1)]


@pytest.mark.parametrize(("activation", "name"), POST_OPS, ids=lambda value: str(value))
def test_activations_after_convolutions(activation: nn.Module, name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), activation, nn.Conv2d(4, 2, 3))
    lowered = assert_lowers(model, images(2, 3, 9, 7), others=[(images(3, 3, 8, 12),)], contains=[f"+ {name}  ["])
    assert len(repr(lowered).splitlines()) == 8


@pytest.mark.parametrize(("activation", "name"), POST_OPS, ids=lambda value: str(value))
def test_activations_after_linear_layers(activation: nn.Module, name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), activation, nn.Linear(96, 8))
    assert_lowers(
        model,
        images(128, 64),
        others=[(images(3, 64),)],
        contains=[f"_linear_pointwise(input, 0.weight, 0.bias) + {name}"],
    )


@pytest.mark.parametrize("activation", OTHER_ACTIVATIONS, ids=str)
def test_other_activations_stay_operators_of_their_own(activation: nn.Module) -> None:
    torch.manual_seed(0)
    assert_lowers(nn.Sequential(nn.Conv2d(3, 4, 3), activation), images(2, 3, 9, 7), others=[(images(1, 3, 5, 6),)])


FUNCTIONS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "relu": lambda self, x: F.relu(self.conv(x)),
    "relu_": lambda self, x: self.conv(x).relu_(),
    "clamp": lambda self, x: self.conv(x).clamp(0, 6),
    "clamp_": lambda self, x: self.conv(x).clamp_(-0.5, 0.5),
    "clamp from below": lambda self, x: self.conv(x).clamp(min=0),
    "clamp from above": lambda self, x: self.conv(x).clamp(max=0.1),
    "clamp with tensors": lambda self, x: torch.clamp(self.conv(x), torch.zeros(()), torch.ones(())),
    "empty clamp": lambda self, x: self.conv(x).clamp(2, 1),
    "leaky_relu": lambda self, x: F.leaky_relu(self.conv(x)),
    "relu twice": lambda self, x: F.relu(self.conv(x)).sigmoid(),
    "activation before a read": lambda self, x: (lambda y: F.relu(y) + y)(self.conv(x)),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_functions(function: Callable[[nn.Module, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = FunctionModule(function, conv=nn.Conv2d(3, 4, 3, padding=1))
    assert_lowers(model, images(2, 3, 6, 6), others=[(images(1, 3, 5, 9),)])


CONVS: dict[str, tuple[nn.Module, Tensor, Tensor]] = {
    "grouped": (nn.Conv2d(4, 8, 3, groups=2), images(2, 4, 9, 7), images(1, 4, 6, 6)),
    "depthwise": (nn.Conv2d(4, 4, 5, padding=2, groups=4), images(2, 4, 9, 7), images(3, 4, 5, 6)),
    "depthwise multiplier": (nn.Conv2d(4, 12, 3, groups=4), images(2, 4, 9, 7), images(3, 4, 5, 6)),
    "dilated": (nn.Conv2d(4, 8, 3, dilation=(2, 3), padding=1), images(2, 4, 9, 8), images(1, 4, 12, 9)),
    "strided": (nn.Conv2d(4, 8, (3, 2), stride=(2, 3), padding=(0, 1)), images(2, 4, 9, 7), images(1, 4, 4, 4)),
    "pointwise": (nn.Conv2d(4, 8, 1, bias=False), images(2, 4, 3, 5), images(1, 4, 1, 1)),
    "same": (nn.Conv2d(4, 8, (3, 4), padding="same"), images(2, 4, 9, 7), images(1, 4, 5, 5)),
    "reflect": (nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect"), images(2, 4, 9, 7), images(1, 4, 5, 5)),
    "transposed": (nn.ConvTranspose2d(4, 8, 3, 2, 1, 1), images(2, 4, 5, 7), images(1, 4, 3, 3)),
    "transposed depthwise": (nn.ConvTranspose2d(4, 4, 2, 2, groups=4), images(2, 4, 5, 7), images(1, 4, 3, 3)),
    "1d": (nn.Conv1d(4, 8, 3, 2, 1, 2), images(2, 4, 19), images(3, 4, 11)),
    "1d depthwise": (nn.Conv1d(4, 4, 3, groups=4), images(2, 4, 19), images(3, 4, 11)),
    "3d": (nn.Conv3d(3, 8, (1, 3, 2), padding=(0, 1, 1)), images(2, 3, 4, 6, 5), images(1, 3, 3, 4, 4)),
    "one channel": (nn.Conv2d(1, 8, 3), images(2, 1, 9, 7), images(1, 1, 5, 5)),
    "one filter": (nn.Conv2d(4, 1, 3), images(2, 4, 9, 7), images(1, 4, 5, 5)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(("conv", "x", "other"), CONVS.values(), ids=CONVS)
def test_convolutions(conv: nn.Module, x: Tensor, other: Tensor) -> None:
    width = conv.out_channels
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[x.dim() - 3](width)
    assert_lowers(conv, x, others=[(other,)])
    assert_lowers(stir(nn.Sequential(conv, norm, nn.ReLU(inplace=True))), x, others=[(other,)])


LINEARS = {
    "matrix": images(30, 48),
    "vector batch of 1": images(1, 48),
    "3d": images(2, 5, 48),
    "4d": images(2, 3, 4, 48),
    "transposed": images(48, 6).t(),
}


@pytest.mark.parametrize("x", LINEARS.values(), ids=LINEARS)
@pytest.mark.parametrize("width", [16, 4096])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers(x: Tensor, width: int, bias: bool) -> None:
    torch.manual_seed(0)
    others = [(images(7, *x.shape[1:]),), (images(1, *x.shape[1:]),)]
    lowered = assert_lowers(nn.Sequential(nn.Linear(48, width, bias), nn.ReLU()), x, others=others)
    # oneDNN takes longer to start than a small product takes.
    assert ("_linear_pointwise" in repr(lowered)) == (len(x.flatten(0, -2)) * 48 * width >= 2**18)


BLOCKS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "squeeze": (tnn.SqueezeExcitation(8, 4), (2, 8, 6, 5)),
    "inverted residual": (tnn.InvertedResidual(8, 8, 1, 2), (2, 8, 6, 5)),
    "MBConv": (tnn.MBConv(8, 8), (2, 8, 6, 5)),
    "basic block": (tnn.BasicBlock(8, 8), (2, 8, 6, 5)),
    "bottleneck": (tnn.Bottleneck(8, 16), (2, 8, 6, 5)),
    "ConvNeXt": (tnn.ConvNeXtBlock(8), (2, 8, 6, 5)),
    "MLP": (tnn.MLP(8, [16, 8]), (4, 8)),
}


@pytest.mark.parametrize(("block", "shape"), BLOCKS.values(), ids=BLOCKS)
def test_own_layers(block: nn.Module, shape: tuple[int, ...]) -> None:
    assert_lowers(stir(block), images(*shape), others=[(images(1, *shape[1:]),), (images(3, *shape[1:]),)])


def pool(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1)


PIXELS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "gate": lambda self, x: x * self.b(F.relu(self.a(pool(x)))).sigmoid(),
    "gate of a mean": lambda self, x: x * self.a(x.mean((-1, -2), keepdim=True)).sigmoid(),
    "gate before": lambda self, x: self.a(pool(x)).sigmoid() * x,
    "pixels that are read twice": lambda self, x: (lambda y: self.a(y) + y)(pool(x)),
    "head": lambda self, x: self.head(pool(x).flatten(1)),
    "head of a layer": lambda self, x: self.head(F.hardswish(self.a(pool(x))).flatten(1)),
    "head and image": lambda self, x: (lambda y: self.head(y.flatten(1)) + y.sum())(self.a(pool(x))),
    "returned": lambda self, x: self.a(pool(x)),
    "returned activation": lambda self, x: F.gelu(self.a(pool(x)), approximate="tanh"),
    "padded": lambda self, x: self.padded(pool(x)),
    "grouped": lambda self, x: self.grouped(pool(x)),
    "strided": lambda self, x: self.strided(pool(x)),
    "larger kernel": lambda self, x: self.larger(pool(x)),
    "in double": lambda self, x: x.mean((2, 3), keepdim=True, dtype=torch.float64).float() * self.a(pool(x)),
    "mean of rows": lambda self, x: self.a(x.mean(3, keepdim=True)),
    "written": lambda self, x: (lambda y: (y[:, :2].zero_(), self.a(y))[1])(pool(x)),
    "written after a layer": lambda self, x: (lambda y: (y[:, :2].zero_(), self.b(y))[1])(self.a(pool(x))),
    "many filters": lambda self, x: self.many(pool(x)).relu(),
}


@pytest.mark.parametrize("function", PIXELS.values(), ids=PIXELS)
def test_layers_on_single_pixels(function: Callable[[Any, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    layers = {
        "a": nn.Conv2d(8, 8, 1),
        "b": nn.Conv2d(8, 8, 1, bias=False),
        "head": nn.Linear(8, 5),
        "padded": nn.Conv2d(8, 4, 1, padding=1),
        "grouped": nn.Conv2d(8, 4, 1, groups=2),
        "strided": nn.Conv2d(8, 4, 1, stride=2),
        "larger": nn.Conv2d(8, 4, 3, padding=1),
        "many": nn.Conv2d(8, 20000, 1),
    }
    others = [(images(1, 8, 5, 7),), (images(3, 8, 1, 1),)]
    lowered = assert_lowers(FunctionModule(function, **layers), images(2, 8, 6, 6), others=others)
    single = {"gate", "gate of a mean", "gate before", "head", "head of a layer", "returned", "many filters"}
    if any(function is PIXELS[name] for name in single):
        assert "_convolution_pointwise" not in repr(lowered)
        assert "to_channels_last" not in repr(lowered)
