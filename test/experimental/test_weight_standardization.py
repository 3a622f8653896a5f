"""What the papers of the two weight standardizations claim, and the gain by numerical integration."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from torchvision_layers import nn as tnn
from torchvision_layers.experimental import nn as enn


def standardized(weight: Tensor, eps: float, scale: float = 1.0) -> np.ndarray:
    """Each filter less its mean, over its standard deviation, in float64."""
    filters = weight.detach().double().numpy().copy()
    for o, filter in enumerate(filters):
        filters[o] = (filter - filter.mean()) / math.sqrt(((filter - filter.mean()) ** 2).mean() + eps) * scale
    return filters


def moments(weight: Tensor) -> tuple[Tensor, Tensor]:
    filters = weight.detach().double().flatten(1)
    return filters.mean(1), filters.var(1, correction=0)


# The standardized filters

WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "drawn": lambda w: w,
    "tiny": lambda w: 1e-3 * w / w.std(),
    "large mean": lambda w: w / w.std() + 100,
    "uneven": lambda w: w * torch.logspace(-1, 3, len(w)).view(-1, 1, 1, 1) - 0.1,
}


@pytest.mark.parametrize("change", WEIGHTS)
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_filter_has_mean_0_and_variance_1(
    change: str, groups: int, memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    layer = enn.WSConv2d(8, 12, (3, 5), groups=groups, dtype=dtype)
    scaled = enn.SWSConv2d(8, 12, (3, 5), groups=groups, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(WEIGHTS[change](layer.weight))
    layer = layer.to(memory_format=memory_format)
    scaled.load_state_dict(layer.state_dict())
    scaled = scaled.to(memory_format=memory_format)

    _, raw = moments(layer.weight)
    expected = raw / (raw + 1e-10)  # variance 1, but for eps under the root
    atol = 1e-12 if dtype == torch.float64 else 3e-6
    if change == "large mean":  # the mean itself is only known to the rounding of 100
        atol *= 100
    mean, variance = moments(layer.standardized_weight())
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=atol)
    torch.testing.assert_close(variance, expected, rtol=0, atol=3 * atol)

    fan_in = 8 // groups * 15
    mean, variance = moments(scaled.standardized_weight())
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=atol)
    gamma_squared = 2 / (1 - 1 / math.pi)
    torch.testing.assert_close(variance * fan_in, expected * gamma_squared, rtol=0, atol=10 * atol + 1e-7)


@pytest.mark.parametrize("make", [enn.WSConv2d, partial(enn.SWSConv2d, activation=None)], ids=["ws", "sws"])
def test_a_step_of_the_optimizer_moves_filters_and_keeps_their_moments(make: Callable[..., enn.WSConv2d]) -> None:
    layer = make(4, 6, 3)
    before = layer.standardized_weight().detach()
    layer(torch.randn(2, 4, 8, 8)).square().mean().backward()
    torch.optim.SGD(layer.parameters(), lr=1.0, momentum=0.9).step()
    after = layer.standardized_weight().detach()
    assert bool((after - before).abs().flatten(1).amax(1).gt(1e-3).all())
    mean, variance = moments(after)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-6)
    torch.testing.assert_close(variance, torch.full_like(variance, layer.scale**2), rtol=1e-6, atol=0)


GEOMETRIES: list[dict[str, Any]] = [
    {},
    {"stride": (2, 1), "padding": 1, "bias": False},
    {"padding": "same", "dilation": 2},
    {"groups": 3, "padding": (0, 2), "padding_mode": "reflect"},
]


@pytest.mark.parametrize("arguments", GEOMETRIES, ids=str)
def test_it_is_the_convolution_by_filters_standardized_by_hand(arguments: dict[str, Any]) -> None:
    x = torch.randn(2, 6, 9, 10, dtype=torch.float64)
    eps = 1e-3  # large enough to be seen, where it stands
    for make, scale in (
        (enn.WSConv2d, 1.0),
        (partial(enn.SWSConv2d, gamma=1.5), 1.5 / math.sqrt(6 // arguments.get("groups", 1) * 6)),
    ):
        layer = make(6, 9, (3, 2), eps=eps, dtype=torch.float64, **arguments)
        plain = nn.Conv2d(6, 9, (3, 2), dtype=torch.float64, **arguments)
        plain.load_state_dict(layer.state_dict())
        with torch.no_grad():
            plain.weight.copy_(torch.from_numpy(standardized(layer.weight, eps, scale)))
        torch.testing.assert_close(layer(x), plain(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("cls", [enn.WSConv2d, enn.SWSConv2d])
def test_scale_and_shift_of_a_filter_change_nothing(cls: type[enn.WSConv2d]) -> None:
    layer = cls(5, 7, 3, bias=False, dtype=torch.float64)
    x = torch.randn(2, 5, 8, 8, dtype=torch.float64)
    expected = layer(x)
    scales = torch.linspace(0.3, 40, 7, dtype=torch.float64)
    scales[2] = -2.0  # turns the filter round
    with torch.no_grad():
        layer.weight.mul_(scales.view(-1, 1, 1, 1)).add_(torch.randn(7, 1, 1, 1))
    torch.testing.assert_close(layer(x), expected * scales.sign().view(-1, 1, 1), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("cls", [enn.WSConv2d, enn.SWSConv2d])
def test_gradients_are_projected(cls: type[enn.WSConv2d]) -> None:
    """What follows from the invariance, and by which the paper explains that the loss gets smoother (section 3.3)."""
    layer = cls(5, 7, 3, dtype=torch.float64)
    x = torch.randn(2, 5, 8, 8, dtype=torch.float64)
    F.cross_entropy(layer(x).amax((2, 3)), torch.tensor([1, 4])).backward()
    assert layer.weight.grad is not None
    gradient, weight = layer.weight.grad.flatten(1), layer.standardized_weight().detach().flatten(1)
    size = gradient.norm(dim=1) * weight.norm(dim=1)
    assert bool((size > 0).all())
    assert bool((gradient.sum(1).abs() < 1e-9 * size).all())
    assert bool(((gradient * weight).sum(1).abs() < 1e-6 * size).all())  # but for eps


# Micro-batches


def accuracy_after_single_images(conv_layer: type[nn.Conv2d], norm_layer: Callable[[int], nn.Module]) -> float:
    """Trains a small network on one digit at a time; the share of other digits that it then gets right."""
    digits = load_digits()
    images = torch.from_numpy(digits.images / 16).float().unsqueeze(1)
    labels = torch.from_numpy(digits.target)
    held_out = torch.arange(len(images)) % 4 == 0
    stage = partial(tnn.ConvNormAct, conv_layer=conv_layer, norm_layer=norm_layer)
    net = nn.Sequential(
        stage(1, 16),
        stage(16, 16, stride=2),
        stage(16, 32, stride=2),
        stage(32, 32, stride=(2, 1)),  # two pixels are left, which batch normalization sets to 1 and -1
        stage(32, 32),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    order = torch.randperm(int((~held_out).sum())).tolist()
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, len(order))
    for i in order:
        loss = F.cross_entropy(net(images[~held_out][i : i + 1]), labels[~held_out][i : i + 1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    net.eval()
    with torch.no_grad():
        return float((net(images[held_out]).argmax(1) == labels[held_out]).float().mean())


def test_it_trains_on_single_images_where_batch_normalization_cannot() -> None:
    assert accuracy_after_single_images(enn.WSConv2d, partial(nn.GroupNorm, 4)) > 0.88
    assert accuracy_after_single_images(nn.Conv2d, nn.BatchNorm2d) < 0.3


# The gain of scaled weight standardization


def gamma(activation: Any) -> float:
    return enn.SWSConv2d(2, 2, 3, activation=activation).gamma


def integrated_gamma(function: Callable[[np.ndarray], np.ndarray]) -> float:
    """By Gauss-Legendre quadrature between the points where an activation may bend."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    ends = np.array([-13.0, -6.0, -3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0, 6.0, 13.0])
    half = np.diff(ends)[:, None] / 2
    z = (ends[:-1, None] + half * (nodes + 1)).ravel()
    density = (half * weights).ravel() * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    mean = (density * function(z)).sum()
    return float((density * (function(z) - mean) ** 2).sum() ** -0.5)


def test_known_gains() -> None:
    known = {nn.ReLU: 1.7129, nn.SiLU: 1.7872, nn.GELU: 1.7009, nn.Mish: 1.5920}
    for activation, value in known.items():
        assert gamma(activation) == pytest.approx(value, abs=1e-3)
    assert enn.SWSConv2d(2, 2, 3).gamma == gamma(nn.ReLU)
    assert enn.SWSConv2d(2, 2, 3, activation=nn.SiLU, gamma=1.25).gamma == 1.25


def leaky(slope: float) -> float:
    return ((1 + slope**2) / 2 - (1 - slope) ** 2 / (2 * math.pi)) ** -0.5


CLOSED_FORMS = [
    (None, 1.0),
    (nn.Identity, 1.0),
    (nn.ReLU, math.sqrt(2 / (1 - 1 / math.pi))),
    (nn.ReLU(inplace=True), math.sqrt(2 / (1 - 1 / math.pi))),
    (nn.LeakyReLU, leaky(0.01)),
    (partial(nn.LeakyReLU, 0.3, inplace=True), leaky(0.3)),
    (nn.PReLU(init=-0.5), leaky(-0.5)),
    (nn.RReLU(0.1, 0.5), leaky(0.3)),  # as in eval mode: nothing is drawn
    (nn.Hardtanh, (1 - 2 * math.exp(-0.5) / math.sqrt(2 * math.pi)) ** -0.5),
]


@pytest.mark.parametrize(("activation", "expected"), CLOSED_FORMS, ids=str)
def test_gains_in_closed_form(activation: Any, expected: float) -> None:
    assert gamma(activation) == pytest.approx(expected, rel=1e-6)


QUADRATURES: list[tuple[Any, Callable[[np.ndarray], np.ndarray]]] = [
    (nn.Hardswish, lambda z: z * np.clip(z + 3, 0, 6) / 6),
    (nn.Hardsigmoid, lambda z: np.clip(z + 3, 0, 6) / 6),
    (partial(nn.ELU, 0.7), lambda z: np.where(z > 0, z, 0.7 * np.expm1(z))),
    (nn.Tanh, np.tanh),
    (nn.Sigmoid, lambda z: 1 / (1 + np.exp(-z))),
    (nn.Softplus, lambda z: np.log1p(np.exp(z))),
    (nn.SiLU, lambda z: z / (1 + np.exp(-z))),
    (nn.Mish, lambda z: z * np.tanh(np.log1p(np.exp(z)))),
    (nn.GELU("tanh"), lambda z: z / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))),
    (nn.Softshrink, lambda z: np.sign(z) * np.maximum(np.abs(z) - 0.5, 0)),
    (nn.ReLU6, lambda z: np.clip(z, 0, 6)),
]


@pytest.mark.parametrize(("activation", "function"), QUADRATURES, ids=lambda value: str(value)[:30])
def test_gains_by_quadrature(activation: Any, function: Callable[[np.ndarray], np.ndarray]) -> None:
    assert gamma(activation) == pytest.approx(integrated_gamma(function), rel=1e-6)


def test_jumps_anywhere_are_integrated() -> None:
    kept = math.erfc(0.3337 / math.sqrt(2)) + 2 * 0.3337 * math.exp(-(0.3337**2) / 2) / math.sqrt(2 * math.pi)
    assert gamma(partial(nn.Hardshrink, 0.3337)) == pytest.approx(kept**-0.5, rel=1e-4)


def test_the_activation_is_neither_kept_nor_changed() -> None:
    activation = nn.Sequential(nn.PReLU(init=0.1), nn.Dropout(0.5), nn.ReLU(inplace=True))
    before, seed = copy.deepcopy(activation), torch.get_rng_state()
    layer = enn.SWSConv2d(4, 4, 3, activation=activation)
    torch.set_rng_state(seed)
    plain = enn.SWSConv2d(4, 4, 3, activation=None)
    assert torch.equal(layer.weight, plain.weight)  # no number was drawn for the gain
    assert layer.gamma == pytest.approx(gamma(nn.ReLU), rel=1e-6)
    assert list(layer.modules()) == [layer]
    assert activation[0] not in vars(layer).values()
    assert activation.training
    assert all(module.training for module in activation)
    assert str(activation) == str(before)
    for parameter, other in zip(activation.parameters(), before.parameters(), strict=True):
        assert torch.equal(parameter, other)
        assert parameter.dtype == other.dtype
        assert parameter.requires_grad
        assert parameter.grad is None


@pytest.mark.parametrize("activation", [nn.SiLU, nn.PReLU, partial(nn.ReLU, inplace=True)], ids=str)
def test_surroundings_do_not_disturb_the_gain(activation: Any) -> None:
    expected = gamma(activation)
    with torch.device("meta"):
        layer = enn.SWSConv2d(2, 2, 3, activation=activation)
    assert layer.weight.is_meta
    assert layer.gamma == expected
    assert enn.SWSConv2d(2, 2, 3, activation=activation, device="meta", dtype=torch.float16).gamma == expected
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert gamma(activation) == expected
    finally:
        torch.set_default_dtype(default)
    with torch.inference_mode():
        assert gamma(activation) == expected


def test_a_module_that_a_function_shares_is_left_alone() -> None:
    shared = nn.PReLU().train()
    gamma(lambda: shared)
    assert shared.training
    assert shared.weight.dtype == torch.float32


# Signal propagation


def variances(make: Callable[[], nn.Module], activation: nn.Module, width: int = 256) -> list[float]:
    """Of the signal after each of 30 convolutions that an activation precedes, for an input of unit variance.

    At the borders zeros would take from it; on a circle there are none.
    """
    x = torch.randn(2048 // width, width, 16, 16)
    found = []
    with torch.no_grad():
        for _ in range(30):
            x = make()(activation(x))
            found.append(float(x.var()))
    return found


def variance_after(activation: nn.Module, before: float) -> float:
    """Variance of the activation of a normal variable of that variance, by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(180)
    output = activation(torch.from_numpy(nodes * math.sqrt(before))).numpy()
    weights = weights / weights.sum()
    return float((weights * (output - (weights * output).sum()) ** 2).sum())


# SiLU multiplies by 1.10, from layer to layer, what a network of finite width has too much or too little (GELU by 1.06,
# Mish and ReLU by 1.00), which is 18 times the first deviation after 30: it takes a wider one.
@pytest.mark.parametrize(("activation", "width"), [(nn.ReLU, 256), (nn.SiLU, 512), (nn.GELU, 256), (nn.Mish, 256)])
def test_variance_is_kept_through_30_convolutions(activation: type[nn.Module], width: int) -> None:
    conv = partial(enn.SWSConv2d, width, width, 3, padding=1, padding_mode="circular", activation=activation)
    found = variances(conv, activation(), width)
    assert len(found) == 30
    assert min(found) > 0.8
    assert max(found) < 1.25
    unit = variance_after(activation(), 1.0)
    for before, after in zip([1.0, *found], found, strict=False):
        assert after == pytest.approx(variance_after(activation(), before) / unit, rel=0.03)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU])
def test_variance_of_plain_convolutions_is_not_kept(activation: type[nn.Module]) -> None:
    def standard_normal() -> nn.Module:
        conv = nn.Conv2d(256, 256, 3, padding=1, padding_mode="circular")
        nn.init.normal_(conv.weight)
        return conv

    vanished = variances(partial(nn.Conv2d, 256, 256, 3, padding=1, padding_mode="circular"), activation())
    assert vanished[-1] < 0.01
    exploded = variances(standard_normal, activation())
    assert not exploded[9] < 1e10
