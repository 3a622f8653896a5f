"""Layers that compute what torch's own compute are folded by their behaviour, whatever their class."""

import math
from collections.abc import Callable

import pytest
import timm
import timm.layers
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchvision_layers import deploy

from ._support import FunctionModule, assert_folds, conv, norm, randomize, relative_error

SIZES = [(1, 1), (2, 3), (5, 4), (7, 8), (16, 9), (13, 17)]


def images(height: int = 9, width: int = 12) -> Tensor:
    return torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(0))


class DynamicSame(nn.Conv2d):
    """Pads as TensorFlow does, only if there is something to pad."""

    def forward(self, input: Tensor) -> Tensor:
        missing = []
        for size, k, s, d in zip(input.shape[2:], self.kernel_size, self.stride, self.dilation, strict=True):
            missing.append(max((math.ceil(size / s) - 1) * s + (k - 1) * d + 1 - size, 0))
        if any(missing):
            h, w = missing
            input = F.pad(input, [w // 2, w - w // 2, h // 2, h - h // 2])
        return F.conv2d(input, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class StaticSame(nn.Conv2d):
    def __init__(self, padding: tuple[int, ...], mode: str = "constant", value: float = 0.0) -> None:
        super().__init__(4, 4, 3, stride=2, bias=False)
        self.sides, self.mode, self.value = padding, mode, value

    def forward(self, input: Tensor) -> Tensor:
        padded = F.pad(input, self.sides, self.mode, self.value if self.mode == "constant" else None)
        return super().forward(padded)


class PaddingChild(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(4, 4, 3, stride=2)
        self.pad = nn.ZeroPad2d((0, 1, 0, 1))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(self.pad(input))


class Equalized(nn.Module):
    """Not a subclass of a convolution; computes its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 2, 3, 3))
        self.bias = nn.Parameter(torch.randn(6))
        self.gain = 0.3

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.gain, self.bias, padding=(1, 0), groups=2)


class ActivatedNorm(nn.BatchNorm2d):
    def __init__(self, channels: int = 4) -> None:
        super().__init__(channels)
        self.act = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class FixedNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.eps = 1e-3
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(4) + 0.5)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return self.act(x * scale[:, None, None] + shift.view(1, -1, 1, 1))


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "same": lambda: DynamicSame(4, 4, (3, 5), stride=(2, 3), dilation=(1, 2)),
    "static": lambda: StaticSame((0, 1, 1, 2)),
    "symmetric": lambda: StaticSame((2, 2, 1, 1)),
    "constant": lambda: StaticSame((1, 1, 1, 1), value=1.5),
    "replicate": lambda: StaticSame((1, 0, 0, 1), "replicate"),
    "child": PaddingChild,
    "equalized": Equalized,
    "even": lambda: type("Named", (nn.Conv2d,), {})(4, 4, 4, padding="same"),
    "timm same": lambda: timm.layers.Conv2dSame(4, 4, 3, stride=2),
    "timm standardized": lambda: timm.layers.StdConv2d(4, 4, 3, padding=1),
    "timm standardized, same": lambda: timm.layers.StdConv2dSame(4, 4, 3, stride=2),
    "timm scaled": lambda: timm.layers.ScaledStdConv2d(4, 4, 3, groups=2),
    "timm scaled, same": lambda: timm.layers.ScaledStdConv2dSame(4, 4, 5, stride=2),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(conv()),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", LAYERS)
def test_convolution(name: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]()
    model = randomize(nn.Sequential(layer, nn.BatchNorm2d(len(layer.weight)), nn.ReLU())).double()
    folded = assert_folds(model, images())
    assert not any(isinstance(m, nn.modules.batchnorm._NormBase) for m in folded.modules())
    assert any(type(m) is nn.Conv2d for m in folded.modules())
    assert name == "weight norm" or folded.state_dict().keys() - {"0.bias"} <= model.state_dict().keys()
    for size in SIZES:
        x = images(*size).double()
        try:
            expected = model(x).detach()
        except RuntimeError:  # smaller than the kernel
            continue
        assert relative_error(folded(x), expected) < 1e-10, size


def test_symmetric_padding_moves_into_the_convolution() -> None:
    folded = deploy.fold(nn.Sequential(StaticSame((2, 2, 1, 1)), nn.BatchNorm2d(4)))
    assert [type(m) for m in folded] == [nn.Conv2d]
    assert folded[0].padding == (1, 2)


@pytest.mark.parametrize("build", [ActivatedNorm, FixedNorm, lambda: timm.layers.BatchNormAct2d(4)])
def test_norm_with_activation(build: Callable[[], nn.Module]) -> None:
    model = randomize(nn.Sequential(conv(), build(), conv()))
    folded = assert_folds(model, images())
    assert not any("Norm" in type(m).__name__ for m in folded.modules())
    assert folded.state_dict().keys() <= model.state_dict().keys()
    alone = deploy.fold(nn.Sequential(build(), conv()))  # nothing before the norm
    assert list(alone.state_dict()) == list(nn.Sequential(build(), conv()).state_dict())


class Conditional(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * x.mean(), self.bias)


class ByValue(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * (1.0 if float(x.sum()) > 0 else 2.0), self.bias)


class LargeImages(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (1, 1, 1, 1)) if x.shape[-1] > 40 else x)


class Scaled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Noisy(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight + torch.randn_like(self.weight), self.bias)


class Counts(nn.Conv2d):
    count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return super().forward(x)


class ClampedNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(-1e6, 1e6)


class FirstSize(nn.Conv2d):
    pad = None

    def forward(self, x: Tensor) -> Tensor:
        if self.pad is None:
            self.pad = nn.ZeroPad2d((0, x.shape[-1] % 2, 0, x.shape[-2] % 2))
        return super().forward(self.pad(x))


@pytest.mark.parametrize("cls", [Conditional, ByValue, LargeImages, Scaled, Noisy, Counts, FirstSize])
def test_convolution_that_does_more_stays(cls: type[nn.Conv2d]) -> None:
    model = randomize(nn.Sequential(cls(4, 4, 3), norm()))
    folded = deploy.fold(model)
    assert [type(m) for m in folded] == [cls, nn.BatchNorm2d]


def test_norm_that_does_more_stays() -> None:
    folded = deploy.fold(randomize(nn.Sequential(conv(), ClampedNorm(4))))
    assert [type(m) for m in folded] == [nn.Conv2d, ClampedNorm]
    hooked = nn.Sequential(conv(), ActivatedNorm())
    hooked[1].act.register_forward_hook(lambda *args: None)
    with pytest.raises(ValueError, match="1.act has hooks"):
        deploy.fold(hooked)


def test_layer_whose_weight_a_forward_reads_stays() -> None:
    model = FunctionModule(
        lambda self, x: self.norm(self.conv(x)) + self.norm.weight.sum(), conv=conv(), norm=ActivatedNorm()
    )
    assert type(assert_folds(randomize(model), images()).norm) is ActivatedNorm


class ReturnsInput(nn.Module):
    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return x if not self.training else F.dropout(x, self.p)


def test_module_that_returns_its_input_is_removed() -> None:
    folded = assert_folds(randomize(nn.Sequential(conv(), ReturnsInput(), norm(), timm.layers.DropPath(0.2))), images())
    assert [type(m) for m in folded] == [nn.Conv2d]


def test_container_boundaries() -> None:
    """Convolution and norm at different depths, with containers that are and are not sequences."""
    first = FunctionModule(lambda self, x: self.conv(x + self.skip(x)), conv=conv(), skip=nn.Conv2d(4, 4, 1))
    second = FunctionModule(lambda self, x: (y := self.norm(x)) + y.relu(), norm=norm())
    model = nn.Sequential(nn.Sequential(nn.Sequential(first)), nn.Sequential(nn.Sequential(), second), nn.ReLU())
    folded = assert_folds(randomize(model), images())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())


@pytest.mark.parametrize("name", ["tinynet_e", "resnet10t"])
def test_timm_model(name: str) -> None:
    torch.manual_seed(0)
    model = randomize(timm.create_model(name, num_classes=3))
    folded = deploy.fold(model, x := torch.randn(1, 3, 64, 64))
    assert not any(isinstance(m, nn.modules.batchnorm._NormBase) for m in folded.modules())
    assert folded(x).shape == (1, 3)


# Forwards that cannot be traced, and shapes that are read


def untraceable(function: Callable[[nn.Module, Tensor], Tensor], **modules: nn.Module) -> nn.Module:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return function(self, x) if float(x.sum()) != 1.5 else x

    return FunctionModule(forward, **modules)


FORWARDS: dict[str, tuple[Callable[[nn.Module, Tensor], Tensor], int]] = {
    "chain": (lambda self, x: self.norm(self.conv(x)).relu(), 0),
    "shape": (lambda self, x: self.norm(y := self.conv(x)).view(y.shape[0], -1), 0),
    "other use": (lambda self, x: self.norm(y := self.conv(x)) + y, 1),
    "view of it": (lambda self, x: self.norm(y := self.conv(x)) + y[:, :1], 1),
    "called twice": (lambda self, x: self.norm(self.conv(self.conv(x))), 1),
    "written to": (lambda self, x: self.norm(self.conv(x).mul_(2)), 1),
    "returned": (lambda self, x: torch.stack([self.norm(y := self.conv(x)), y]), 1),
    "weight": (lambda self, x: self.norm(self.conv(x)) + self.norm.weight.sum(), 1),
}


@pytest.mark.parametrize("name", FORWARDS)
@pytest.mark.parametrize("traced", [True, False], ids=["traced", "recorded"])
def test_forward(name: str, traced: bool) -> None:
    function, norms = FORWARDS[name]
    model = (FunctionModule if traced else untraceable)(function, conv=conv(), norm=norm())
    batch = None if traced else images().double()
    folded = assert_folds(randomize(nn.Sequential(model)), images(), batch=batch)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in folded.modules()) == norms


def test_recorded_forward_is_called_in_different_ways() -> None:
    """The convolution feeds the norm in one call and something else in another."""

    def either(self: nn.Module, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) if float(x.max()) > 0 else self.conv(x)

    inner = FunctionModule(either, conv=conv(), norm=norm())
    outer = FunctionModule(lambda self, x: self.inner(x.abs()) + self.inner(-x.abs()), inner=inner)
    folded = assert_folds(randomize(outer), images(), batch=images().double())
    assert type(folded.inner.norm) is nn.BatchNorm2d


def test_norm_across_a_recorded_forward() -> None:
    """The module around it is traced."""
    inner = untraceable(lambda self, x: self.conv(x * 2), conv=conv())
    folded = assert_folds(randomize(nn.Sequential(nn.Sequential(inner), norm())), images(), batch=images().double())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())


def test_norm_of_rows() -> None:
    def flat(view: Callable[[Tensor], Tensor]) -> nn.Module:
        modules = {"linear": nn.Linear(12, 4), "norm": nn.BatchNorm1d(4)}
        return FunctionModule(lambda self, x: self.norm(view(y := self.linear(x))).reshape_as(y), **modules)

    x = images().flatten(1, 2)
    for view in (lambda y: y.flatten(0, 1), lambda y: y.view(-1, 4), lambda y: y.reshape(y.shape[0] * y.shape[1], -1)):
        folded = assert_folds(randomize(flat(view)), x)
        assert type(folded.norm) is nn.Identity
    mixed = FunctionModule(  # the view mixes rows and channels
        lambda self, x: self.norm(self.conv(x).view(-1, 4)), conv=nn.Conv1d(36, 4, 1), norm=nn.BatchNorm1d(4)
    )
    assert type(assert_folds(randomize(mixed), x).norm) is nn.BatchNorm1d
