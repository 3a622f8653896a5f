"""What the paper of CoordConv claims: places are learned from some parts of an image for the others."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchvision_layers.experimental import nn as enn

from ..conformance.staged_reference import coordinates


def with_coordinates(x: Tensor, groups: int, with_r: bool) -> Tensor:
    """The channels of each group, followed by those of the coordinates."""
    maps = torch.from_numpy(coordinates(*x.shape[2:], with_r)).expand(len(x), -1, -1, -1)
    return torch.cat([part for group in x.chunk(groups, 1) for part in (group, maps)], 1)


CASES: list[dict[str, Any]] = [
    {"kernel_size": 1},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": (2, 3), "padding": (0, 2), "dilation": (2, 1), "bias": False},
    {"kernel_size": 3, "padding": "same", "dilation": 2},
    {"kernel_size": (3, 2), "padding": "same", "groups": 2},
    {"kernel_size": 3, "padding": "valid", "groups": 4, "stride": (1, 2)},
    {"kernel_size": 3, "padding": (1, 2), "padding_mode": "reflect", "groups": 2},
    {"kernel_size": 3, "padding": "same", "padding_mode": "replicate"},
    {"kernel_size": 5, "padding": 2, "padding_mode": "circular"},
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("with_r", [False, True])
@pytest.mark.parametrize("arguments", CASES, ids=str)
def test_it_is_the_convolution_of_the_concatenation(arguments: dict[str, Any], with_r: bool) -> None:
    groups = arguments.get("groups", 1)
    layer = enn.CoordConv2d(4, 8, with_r=with_r, dtype=torch.float64, **arguments)
    plain = nn.Conv2d(4 + (3 if with_r else 2) * groups, 8, dtype=torch.float64, **arguments)
    plain.load_state_dict(layer.state_dict())
    for size in ((7, 9), (8, 6)):
        x = torch.randn(2, 4, *size, dtype=torch.float64, requires_grad=True)
        output, expected = layer(x), plain(with_coordinates(x, groups, with_r))
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
        upstream = torch.randn_like(output)
        gradients = torch.autograd.grad(output, [x, *layer.parameters()], upstream)
        wanted = torch.autograd.grad(expected, [x, *plain.parameters()], upstream)
        torch.testing.assert_close(gradients, wanted, rtol=0, atol=1e-11)


def shown_coordinates(input: Tensor) -> Tensor:
    """The coordinates themselves, by a layer that gives them out."""
    layer = enn.CoordConv2d(input.shape[1], 3, 1, bias=False, with_r=True, dtype=input.dtype)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[:, -3:, 0, 0] = torch.eye(3)
        return layer(input)[0]


@pytest.mark.parametrize("size", [(1, 6), (5, 1), (1, 1), (2, 3)], ids=str)
def test_a_single_row_or_column_is_at_0(size: tuple[int, int]) -> None:
    x = torch.zeros(1, 2, *size, dtype=torch.float64)
    shown = shown_coordinates(x)
    torch.testing.assert_close(shown, torch.from_numpy(coordinates(*size, True)), rtol=0, atol=1e-15)
    x.requires_grad_()
    layer = enn.CoordConv2d(2, 4, 3, padding=1, with_r=True, dtype=torch.float64)
    layer(x).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in (x, *layer.parameters()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(301, 3), (2, 700), (5, 3000)], ids=str)
def test_half_precision_rounds_coordinates_once(dtype: torch.dtype, size: tuple[int, int]) -> None:
    """Counted in bfloat16 columns would be the same from 256 on; float16 ends at 65504."""
    shown = shown_coordinates(torch.zeros(1, 1, *size, dtype=dtype))
    exact = torch.from_numpy(coordinates(*size, True))
    # Exactly rounded, but where float32, in which they are computed, decides between two neighbours.
    nearest = exact.to(dtype)
    assert float((shown != nearest).float().mean()) < 1e-3
    half_a_unit = torch.finfo(dtype).eps / 2 * exact.abs() + 1e-6
    assert bool(((shown.double() - exact).abs() <= half_a_unit).all())


def test_several_layers_at_once_may_differ_in_one_parameter() -> None:
    layer, x = enn.CoordConv2d(2, 3, 3), torch.randn(2, 2, 5, 6)
    for name, parameter in layer.named_parameters():
        drawn = torch.randn(2, *parameter.shape)
        outputs = torch.vmap(lambda value, name=name: torch.func.functional_call(layer, {name: value}, (x,)))(drawn)
        for value, output in zip(drawn, outputs, strict=True):
            torch.testing.assert_close(output, torch.func.functional_call(layer, {name: value}, (x,)))


# The task of the paper: from a place to the pixel there, with one quadrant of all places held out


def accuracies(conv_layer: Callable[..., nn.Conv2d], kernel_size: int) -> tuple[float, float]:
    """After training: of the three quadrants that were shown, and of the fourth."""
    side = 16
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    inputs = places / (side - 1) * 2 - 1
    pixels = places[:, 0] * side + places[:, 1]
    held_out = (places >= side // 2).all(1)

    conv = partial(nn.Conv2d, kernel_size=kernel_size, padding=kernel_size // 2)
    net = nn.Sequential(
        conv_layer(2, 32, 1), nn.ReLU(), conv(32, 32), nn.ReLU(), conv(32, 64), nn.ReLU(), conv(64, 64), nn.ReLU(),
        nn.Conv2d(64, 1, 1), nn.Flatten(),
    )  # fmt: skip

    def scores(batch: Tensor) -> Tensor:
        """Of each pixel, for images that hold the two numbers of a place everywhere."""
        return net(inputs[batch].view(-1, 2, 1, 1).expand(-1, -1, side, side))

    shown = (~held_out).nonzero().flatten()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=1.0)
    batches = [batch for _ in range(60) for batch in shown[torch.randperm(len(shown))].split(32)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, len(batches))
    for batch in batches:
        loss = F.cross_entropy(scores(batch), pixels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        is_right = (scores(torch.arange(side**2)).argmax(1) == pixels).float()
    return float(is_right[~held_out].mean()), float(is_right[held_out].mean())


def test_with_coordinates_places_are_learned_for_the_quadrant_held_out() -> None:
    assert accuracies(enn.CoordConv2d, kernel_size=1) == (1.0, 1.0)


@pytest.mark.parametrize(("kernel_size", "most"), [(1, 0.02), pytest.param(3, 0.5, marks=pytest.mark.slow)])
def test_without_coordinates_they_are_not(kernel_size: int, most: float) -> None:
    """Not by the same network, nor by a larger one that could find its way from the zeros around the image."""
    shown, held_out = accuracies(nn.Conv2d, kernel_size)
    assert shown < most
    assert held_out < 0.1
