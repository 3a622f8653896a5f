"""CoordConv2d against a concatenation, and the generalization across positions that its paper claims."""

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
    """The channels of each group, each followed by the coordinates."""
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
def test_it_equals_the_convolution_of_the_concatenation(arguments: dict[str, Any], with_r: bool) -> None:
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
        expected_gradients = torch.autograd.grad(expected, [x, *plain.parameters()], upstream)
        torch.testing.assert_close(gradients, expected_gradients, rtol=0, atol=1e-11)


def extracted_coordinates(input: Tensor) -> Tensor:
    """The coordinates themselves, from a layer that only returns them."""
    layer = enn.CoordConv2d(input.shape[1], 3, 1, bias=False, with_r=True, dtype=input.dtype)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[:, -3:, 0, 0] = torch.eye(3)
        return layer(input)[0]


@pytest.mark.parametrize("size", [(1, 6), (5, 1), (1, 1), (2, 3)], ids=str)
def test_a_single_row_or_column_is_at_0(size: tuple[int, int]) -> None:
    x = torch.zeros(1, 2, *size, dtype=torch.float64)
    coordinate_maps = extracted_coordinates(x)
    torch.testing.assert_close(coordinate_maps, torch.from_numpy(coordinates(*size, True)), rtol=0, atol=1e-15)
    x.requires_grad_()
    layer = enn.CoordConv2d(2, 4, 3, padding=1, with_r=True, dtype=torch.float64)
    layer(x).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in (x, *layer.parameters()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(301, 3), (2, 700), (5, 3000)], ids=str)
def test_half_precision_rounds_coordinates_once(dtype: torch.dtype, size: tuple[int, int]) -> None:
    """bfloat16 cannot count beyond 256, and float16 ends at 65504."""
    coordinate_maps = extracted_coordinates(torch.zeros(1, 1, *size, dtype=dtype))
    exact = torch.from_numpy(coordinates(*size, True))
    # They are rounded correctly, except for ties that the computation in float32 decides.
    nearest = exact.to(dtype)
    assert float((coordinate_maps != nearest).float().mean()) < 1e-3
    half_a_unit = torch.finfo(dtype).eps / 2 * exact.abs() + 1e-6
    assert bool(((coordinate_maps.double() - exact).abs() <= half_a_unit).all())


def test_vmap_over_a_single_parameter() -> None:
    layer, x = enn.CoordConv2d(2, 3, 3), torch.randn(2, 2, 5, 6)
    for name, parameter in layer.named_parameters():
        values = torch.randn(2, *parameter.shape)
        outputs = torch.vmap(lambda value, name=name: torch.func.functional_call(layer, {name: value}, (x,)))(values)
        for value, output in zip(values, outputs, strict=True):
            torch.testing.assert_close(output, torch.func.functional_call(layer, {name: value}, (x,)))


# The task of the paper is to predict a pixel from its coordinates, with one quadrant of the image held out.


def accuracies(conv_layer: Callable[..., nn.Conv2d], kernel_size: int) -> tuple[float, float]:
    """Accuracy after training in the three quadrants used for training, and in the fourth."""
    side = 16
    positions = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    inputs = positions / (side - 1) * 2 - 1
    pixels = positions[:, 0] * side + positions[:, 1]
    held_out = (positions >= side // 2).all(1)

    conv = partial(nn.Conv2d, kernel_size=kernel_size, padding=kernel_size // 2)
    net = nn.Sequential(
        conv_layer(2, 32, 1), nn.ReLU(), conv(32, 32), nn.ReLU(), conv(32, 64), nn.ReLU(), conv(64, 64), nn.ReLU(),
        nn.Conv2d(64, 1, 1), nn.Flatten(),
    )  # fmt: skip

    def scores(batch: Tensor) -> Tensor:
        """Scores of all pixels, for images filled with the two coordinates of a position."""
        return net(inputs[batch].view(-1, 2, 1, 1).expand(-1, -1, side, side))

    train = (~held_out).nonzero().flatten()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=1.0)
    batches = [batch for _ in range(60) for batch in train[torch.randperm(len(train))].split(32)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, len(batches))
    for batch in batches:
        loss = F.cross_entropy(scores(batch), pixels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        is_correct = (scores(torch.arange(side**2)).argmax(1) == pixels).float()
    return float(is_correct[~held_out].mean()), float(is_correct[held_out].mean())


def test_with_coordinates_the_network_generalizes_to_the_held_out_quadrant() -> None:
    assert accuracies(enn.CoordConv2d, kernel_size=1) == (1.0, 1.0)


@pytest.mark.parametrize(("kernel_size", "most"), [(1, 0.02), pytest.param(3, 0.5, marks=pytest.mark.slow)])
def test_without_coordinates_it_does_not_generalize(kernel_size: int, most: float) -> None:
    """The same network fails, and so does a larger one that could infer positions from the zero padding."""
    train, held_out = accuracies(nn.Conv2d, kernel_size)
    assert train < most
    assert held_out < 0.1
