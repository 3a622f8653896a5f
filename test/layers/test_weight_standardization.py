"""Moments and invariances of standardized filters, and training on single images."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from torchvision_layers import deploy
from torchvision_layers import nn as tnn

from ..conformance.reference import standardized


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
    layer = tnn.WSConv2d(8, 12, (3, 5), groups=groups, dtype=dtype)
    scaled = tnn.SWSConv2d(8, 12, (3, 5), groups=groups, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(WEIGHTS[change](layer.weight))
    layer = layer.to(memory_format=memory_format)
    scaled.load_state_dict(layer.state_dict())
    scaled = scaled.to(memory_format=memory_format)

    _, raw = moments(layer.weight)
    expected = raw / (raw + 1e-10)  # variance 1, except for eps
    atol = 1e-12 if dtype == torch.float64 else 3e-6
    if change == "large mean":  # values near 100 are rounded more coarsely
        atol *= 100
    mean, variance = moments(layer.standardized_weight())
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=atol)
    torch.testing.assert_close(variance, expected, rtol=0, atol=3 * atol)

    fan_in = 8 // groups * 15
    mean, variance = moments(scaled.standardized_weight())
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=atol)
    gamma_squared = 2 / (1 - 1 / math.pi)
    torch.testing.assert_close(variance * fan_in, expected * gamma_squared, rtol=0, atol=10 * atol + 1e-7)


@pytest.mark.parametrize("make", [tnn.WSConv2d, partial(tnn.SWSConv2d, activation=None)], ids=["ws", "sws"])
def test_an_optimizer_step_changes_filters_and_preserves_their_moments(make: Callable[..., tnn.WSConv2d]) -> None:
    layer = make(4, 6, 3)
    before = layer.standardized_weight().detach()
    layer(torch.randn(2, 4, 8, 8)).square().mean().backward()
    torch.optim.SGD(layer.parameters(), lr=1.0, momentum=0.9).step()
    after = layer.standardized_weight().detach()
    assert bool((after - before).abs().flatten(1).amax(1).gt(1e-3).all())
    mean, variance = moments(after)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-6)
    torch.testing.assert_close(variance, torch.full_like(variance, layer.scale**2), rtol=1e-6, atol=0)


ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"stride": (2, 1), "padding": 1, "bias": False},
    {"padding": "same", "dilation": 2},
    {"groups": 3, "padding": (0, 2), "padding_mode": "reflect"},
]


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_it_equals_the_convolution_with_filters_standardized_by_hand(arguments: dict[str, Any]) -> None:
    x = torch.randn(2, 6, 9, 10, dtype=torch.float64)
    eps = 1e-3  # large enough to make a difference
    for make, scale in (
        (tnn.WSConv2d, 1.0),
        (partial(tnn.SWSConv2d, gamma=1.5), 1.5 / math.sqrt(6 // arguments.get("groups", 1) * 6)),
    ):
        layer = make(6, 9, (3, 2), eps=eps, dtype=torch.float64, **arguments)
        plain = nn.Conv2d(6, 9, (3, 2), dtype=torch.float64, **arguments)
        plain.load_state_dict(layer.state_dict())
        with torch.no_grad():
            plain.weight.copy_(torch.from_numpy(standardized(layer.weight.detach().numpy(), eps, scale)))
        torch.testing.assert_close(layer(x), plain(x), rtol=0, atol=1e-12)
        output = layer.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        torch.testing.assert_close(output, plain(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("cls", [tnn.WSConv2d, tnn.SWSConv2d])
def test_invariance_to_scale_and_shift_of_a_filter(cls: type[tnn.WSConv2d]) -> None:
    layer = cls(5, 7, 3, bias=False, dtype=torch.float64)
    x = torch.randn(2, 5, 8, 8, dtype=torch.float64)
    expected = layer(x)
    scales = torch.linspace(0.3, 40, 7, dtype=torch.float64)
    scales[2] = -2.0  # changes the sign of the filter
    with torch.no_grad():
        layer.weight.mul_(scales.view(-1, 1, 1, 1)).add_(torch.randn(7, 1, 1, 1))
    torch.testing.assert_close(layer(x), expected * scales.sign().view(-1, 1, 1), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("cls", [tnn.WSConv2d, tnn.SWSConv2d])
def test_gradients_are_orthogonal_to_constants_and_to_the_filter(cls: type[tnn.WSConv2d]) -> None:
    """This follows from the invariance; the paper explains the smoother loss by it (section 3.3)."""
    layer = cls(5, 7, 3, dtype=torch.float64)
    x = torch.randn(2, 5, 8, 8, dtype=torch.float64)
    F.cross_entropy(layer(x).amax((2, 3)), torch.tensor([1, 4])).backward()
    assert layer.weight.grad is not None
    gradient, weight = layer.weight.grad.flatten(1), layer.standardized_weight().detach().flatten(1)
    size = gradient.norm(dim=1) * weight.norm(dim=1)
    assert bool((size > 0).all())
    assert bool((gradient.sum(1).abs() < 1e-9 * size).all())
    assert bool(((gradient * weight).sum(1).abs() < 1e-6 * size).all())  # not exactly, because of eps


# The gain


def test_a_learned_gain_is_a_layer_scale_that_folds_into_the_weight() -> None:
    """The gain of arXiv 2102.06171, which is no argument: it multiplies each filter after its standardization."""
    layer, scale = tnn.SWSConv2d(5, 7, 3, bias=False), tnn.LayerScale(7, 1.0)
    x, gain = torch.randn(2, 5, 8, 8), torch.linspace(-1, 2, 7)
    with torch.no_grad():
        scale.weight.copy_(gain)
    filters = standardized(layer.weight.detach().numpy(), 1e-10, math.sqrt(2 / (1 - 1 / math.pi) / 45))
    expected = F.conv2d(x, gain.view(-1, 1, 1, 1) * torch.from_numpy(filters))
    model = nn.Sequential(layer, scale).eval()
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-5)
    folded = deploy.fold(model, x)
    assert [type(m) for m in folded.modules() if not isinstance(m, (nn.Sequential, nn.Identity))] == [nn.Conv2d]
    torch.testing.assert_close(folded(x), expected, rtol=0, atol=1e-5)


# Micro-batches


def accuracy_after_single_images(conv_layer: type[nn.Conv2d], norm_layer: Callable[[int], nn.Module]) -> float:
    """Accuracy on held-out digits of a small network trained on one digit at a time."""
    digits = load_digits()
    images = torch.from_numpy(digits.images / 16).float().unsqueeze(1)
    labels = torch.from_numpy(digits.target)
    held_out = torch.arange(len(images)) % 4 == 0
    stage = partial(tnn.ConvNormAct, conv_layer=conv_layer, norm_layer=norm_layer)
    net = nn.Sequential(
        stage(1, 16),
        stage(16, 16, stride=2),
        stage(16, 32, stride=2),
        stage(32, 32, stride=(2, 1)),  # leaves two pixels, which batch normalization sets to 1 and -1
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


def test_it_trains_on_single_images_and_batch_normalization_does_not() -> None:
    assert accuracy_after_single_images(tnn.WSConv2d, partial(nn.GroupNorm, 4)) > 0.88
    assert accuracy_after_single_images(nn.Conv2d, nn.BatchNorm2d) < 0.3
