"""Gains of SWSConv2d for each activation, and the preserved variance that its paper claims."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from torchvision_layers import nn as tnn

# The gain


def gamma(activation: Any) -> float:
    return tnn.SWSConv2d(2, 2, 3, activation=activation).gamma


def integrated_gamma(function: Callable[[np.ndarray], np.ndarray]) -> float:
    """Gain by Gauss-Legendre quadrature between the points where an activation may have a kink."""
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
    assert tnn.SWSConv2d(2, 2, 3).gamma == gamma(nn.ReLU)
    assert tnn.SWSConv2d(2, 2, 3, activation=nn.SiLU, gamma=1.25).gamma == 1.25


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
    (nn.RReLU(0.1, 0.5), leaky(0.3)),  # as in eval mode, without random numbers
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


@pytest.mark.parametrize(("activation", "function"), QUADRATURES, ids=[str(first) for first, _ in QUADRATURES])
def test_gains_by_quadrature(activation: Any, function: Callable[[np.ndarray], np.ndarray]) -> None:
    assert gamma(activation) == pytest.approx(integrated_gamma(function), rel=1e-6)


def test_jumps_anywhere_are_integrated() -> None:
    variance = math.erfc(0.3337 / math.sqrt(2)) + 2 * 0.3337 * math.exp(-(0.3337**2) / 2) / math.sqrt(2 * math.pi)
    assert gamma(partial(nn.Hardshrink, 0.3337)) == pytest.approx(variance**-0.5, rel=1e-4)


def test_the_activation_is_neither_stored_nor_changed() -> None:
    activation = nn.Sequential(nn.PReLU(init=0.1), nn.Dropout(0.5), nn.ReLU(inplace=True))
    before, seed = copy.deepcopy(activation), torch.get_rng_state()
    layer = tnn.SWSConv2d(4, 4, 3, activation=activation)
    torch.set_rng_state(seed)
    plain = tnn.SWSConv2d(4, 4, 3, activation=None)
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
def test_gain_does_not_depend_on_device_dtype_or_mode(activation: Any) -> None:
    expected = gamma(activation)
    with torch.device("meta"):
        layer = tnn.SWSConv2d(2, 2, 3, activation=activation)
    assert layer.weight.is_meta
    assert layer.gamma == expected
    assert tnn.SWSConv2d(2, 2, 3, activation=activation, device="meta", dtype=torch.float16).gamma == expected
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert gamma(activation) == expected
    finally:
        torch.set_default_dtype(default)
    with torch.inference_mode():
        assert gamma(activation) == expected


def test_a_module_that_a_function_shares_is_unchanged() -> None:
    shared = nn.PReLU().train()
    assert tnn.SWSConv2d(2, 2, 3, activation=lambda: shared).gamma > 1
    assert shared.training
    assert shared.weight.dtype == torch.float32


# Signal propagation


def variances(make: Callable[[], nn.Module], activation: nn.Module, channels: int = 256) -> list[float]:
    """Variance after each of 30 pairs of activation and convolution, for an input of unit variance.

    The convolutions pad circularly, since zeros at the borders would reduce the variance.
    """
    x = torch.randn(2048 // channels, channels, 16, 16)
    variances = []
    with torch.no_grad():
        for _ in range(30):
            x = make()(activation(x))
            variances.append(float(x.var()))
    return variances


def variance_after(activation: nn.Module, before: float) -> float:
    """Variance of the activation of a normal variable with variance ``before``, by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(180)
    output = activation(torch.from_numpy(nodes * math.sqrt(before))).numpy()
    weights = weights / weights.sum()
    return float((weights * (output - (weights * output).sum()) ** 2).sum())


# With finitely many channels the variance deviates from 1. Each layer multiplies the deviation by 1.10 with SiLU (1.06
# with GELU, 1.00 with Mish and ReLU), by 18 after 30 layers, so SiLU needs more channels.
@pytest.mark.parametrize(("activation", "channels"), [(nn.ReLU, 256), (nn.SiLU, 512), (nn.GELU, 256), (nn.Mish, 256)])
def test_variance_is_preserved_through_30_convolutions(activation: type[nn.Module], channels: int) -> None:
    conv = partial(tnn.SWSConv2d, channels, channels, 3, padding=1, padding_mode="circular", activation=activation)
    signal = variances(conv, activation(), channels)
    assert len(signal) == 30
    assert min(signal) > 0.8
    assert max(signal) < 1.25
    unit = variance_after(activation(), 1.0)
    for before, after in zip([1.0, *signal], signal, strict=False):
        assert after == pytest.approx(variance_after(activation(), before) / unit, rel=0.03)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU])
def test_variance_of_plain_convolutions_is_not_preserved(activation: type[nn.Module]) -> None:
    def standard_normal() -> nn.Module:
        conv = nn.Conv2d(64, 64, 3, padding=1, padding_mode="circular")
        nn.init.normal_(conv.weight)
        return conv

    vanished = variances(partial(nn.Conv2d, 64, 64, 3, padding=1, padding_mode="circular"), activation(), 64)
    assert vanished[-1] < 0.01
    exploded = variances(standard_normal, activation(), 64)
    assert not exploded[9] < 1e10
