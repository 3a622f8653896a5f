"""Softmax over neighbours, relative positions and parameter counts of stand-alone self-attention."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from torchvision_layers import nn as tnn
from torchvision_layers.experimental import nn as enn

from ..conformance import staged_reference as ref

Attention = enn.MultiHeadedSpatialAttention


def window(layer: Attention, row: int, column: int, height: int, width: int) -> list[tuple[int, int, int, int]]:
    """Neighbours of a query inside the image: row and column in the image and in the kernel."""
    top = row * layer.stride[0] - layer.padding[0]
    left = column * layer.stride[1] - layer.padding[1]
    return [
        (top + a * layer.dilation[0], left + b * layer.dilation[1], a, b)
        for a in range(layer.kernel_size[0])
        for b in range(layer.kernel_size[1])
        if 0 <= top + a * layer.dilation[0] < height and 0 <= left + b * layer.dilation[1] < width
    ]


def reference(layer: Attention, image: Tensor) -> np.ndarray:
    """Equations 2 and 3, pixel by pixel."""
    weights = {name: value.detach().numpy() for name, value in layer.state_dict().items()}
    geometry = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    return ref.spatial_attention(image.detach().numpy(), weights, False, kernel=layer.kernel_size, **geometry)


@torch.no_grad()
def attention_weights(layer: Attention, input: Tensor) -> Tensor:
    """Weight of each query for each pixel: (batch, head, row, column, row of the pixel, column of the pixel).

    If each channel of the values of a head is an image of a single pixel, the output is the weights.
    """
    height, width = input.shape[2:]
    assert layer.out_channels == layer.groups * height * width
    pixels = torch.eye(height * width, dtype=input.dtype).view(1, -1, height, width)
    values = pixels.repeat(len(input), layer.groups, 1, 1)
    hook = layer.value.register_forward_hook(lambda *_: values)
    output = layer(input)
    hook.remove()
    return output.unflatten(1, (layer.groups, height, width)).permute(0, 1, 4, 5, 2, 3)


CASES: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 7, "padding": 3, "groups": 2},
    {"kernel_size": (1, 5), "padding": (0, 2), "stride": (1, 2)},
    {"kernel_size": (4, 2), "padding": (1, 0), "groups": 2},
    {"kernel_size": 3, "padding": 2, "dilation": 2, "stride": 3},
    {"kernel_size": (3, 2), "dilation": (2, 3), "stride": (2, 2), "padding": (1, 0), "bias": False},
    {"kernel_size": 3, "stride": 2},
]


# The softmax


@pytest.mark.parametrize("arguments", CASES, ids=str)
@pytest.mark.parametrize("size", [(9, 7), (8, 12), (7, 5)], ids=str)
def test_values_of_1_give_1_even_at_the_borders(arguments: dict[str, Any], size: tuple[int, int]) -> None:
    """Zero padding inside the softmax would reduce the mean."""
    layer = Attention(2, 8, **{**arguments, "bias": True}).double()
    nn.init.zeros_(layer.value.weight)
    nn.init.ones_(layer.value.bias)
    output = layer(torch.randn(2, 2, *size, dtype=torch.float64))
    torch.testing.assert_close(output, torch.ones_like(output), rtol=0, atol=1e-12)


@pytest.mark.parametrize("arguments", CASES, ids=str)
def test_weights_are_a_distribution_over_the_neighbours_inside(arguments: dict[str, Any]) -> None:
    height, width = 7, 6
    groups = arguments.get("groups", 1)
    layer = Attention(2, groups * height * width, **arguments).double()
    weights = attention_weights(layer, torch.randn(2, 2, height, width, dtype=torch.float64))
    inside = torch.zeros(weights.shape[2:], dtype=torch.bool)
    for i, j in np.ndindex(*inside.shape[:2]):
        for row, column, _, _ in window(layer, i, j, height, width):
            inside[i, j, row, column] = True
    inside = inside.expand_as(weights)
    assert bool((weights[~inside] == 0).all())
    assert bool((weights[inside] > 0).all())
    total = weights.sum((-2, -1))
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)

    # By content and by position, and of each head its own.
    uniform = inside / inside.sum((-2, -1), keepdim=True)
    excess = (weights / uniform).nan_to_num(1.0).amax((-2, -1))
    assert float(excess.min()) > 1.01
    assert float(excess.mean()) > 1.2
    assert float((weights[0] - weights[1]).abs().max()) > 0.02
    if groups > 1:
        assert float((weights[:, 0] - weights[:, 1]).abs().max()) > 0.02


@pytest.mark.parametrize("arguments", CASES, ids=str)
def test_a_query_depends_on_its_window_alone(arguments: dict[str, Any]) -> None:
    layer = Attention(2, 4, **arguments).double()
    x = torch.randn(1, 2, 11, 10, dtype=torch.float64, requires_grad=True)
    output = layer(x)
    for i, j in {(0, 0), (output.shape[2] // 2, output.shape[3] // 2), (output.shape[2] - 1, output.shape[3] - 1)}:
        (gradient,) = torch.autograd.grad(output[0, :, i, j].sum(), x, retain_graph=True)
        seen = {(row, column) for row, column, _, _ in window(layer, i, j, 11, 10)}
        assert {(int(r), int(c)) for r, c in gradient[0].abs().sum(0).nonzero()} == seen


@pytest.mark.parametrize("stride", [1, 2])
def test_inside_it_is_equivariant_to_translation(stride: int) -> None:
    layer = Attention(4, 8, 5, padding=2, stride=stride, groups=2).double()
    x = torch.randn(1, 4, 17, 18, dtype=torch.float64)
    for rows, columns in ((1, 0), (0, 1), (2, 3)):
        moved = layer(x.roll((rows * stride, columns * stride), (2, 3)))
        expected = layer(x).roll((rows, columns), (2, 3))
        inner = (..., slice(4, -3), slice(5, -3))
        torch.testing.assert_close(moved[inner], expected[inner], rtol=0, atol=1e-12)


# The equations


def assert_equal_to_the_loop(in_channels: int, size: tuple[int, int], **arguments: Any) -> None:
    layer = Attention(in_channels, dtype=torch.float64, **arguments)
    x = torch.randn(2, in_channels, *size, dtype=torch.float64)
    torch.testing.assert_close(layer(x), torch.from_numpy(reference(layer, x)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("arguments", CASES, ids=str)
@pytest.mark.parametrize("size", [(9, 7), (8, 8)], ids=str)
def test_it_equals_the_loop_over_pixels(arguments: dict[str, Any], size: tuple[int, int]) -> None:
    assert_equal_to_the_loop(4, size, out_channels=8, **arguments)


def test_it_equals_the_loop_on_a_single_pixel() -> None:
    for kernel_size in (1, 3, (7, 5)):
        half = np.array(kernel_size) // 2
        padding = tuple(int(p) for p in np.broadcast_to(half, 2))
        assert_equal_to_the_loop(3, (1, 1), out_channels=6, kernel_size=kernel_size, padding=padding, groups=3)


@st.composite
def axes(draw: st.DrawFn) -> tuple[int, ...]:
    """Kernel, stride, padding, dilation and size in one dimension."""
    kernel, stride, dilation = draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    padding = draw(st.integers(0, dilation * ((kernel - 1) // 2)))
    smallest = max(1, dilation * (kernel - 1) + 1 - 2 * padding)
    assume(smallest <= 13)
    return kernel, stride, padding, dilation, draw(st.integers(smallest, 13))


@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(axes(), axes(), st.sampled_from([1, 2, 3]), st.sampled_from([2, 4]), st.booleans())
def test_it_equals_the_loop_for_any_shape(
    vertical: tuple[int, ...], horizontal: tuple[int, ...], heads: int, head_channels: int, bias: bool
) -> None:
    torch.manual_seed(0)
    kernel_size, stride, padding, dilation, size = zip(vertical, horizontal, strict=True)
    assert_equal_to_the_loop(
        heads,
        size,
        out_channels=heads * head_channels,
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=heads,
        bias=bias,
    )


# Relative positions


@pytest.mark.parametrize("arguments", CASES, ids=str)
def test_embeddings_of_occurring_offsets_have_gradients(arguments: dict[str, Any]) -> None:
    layer = Attention(2, 4, **arguments).double()
    layer(torch.randn(2, 2, 12, 11, dtype=torch.float64)).square().sum().backward()
    for embedding in (layer.row_embedding, layer.column_embedding):
        assert embedding.grad is not None
        # The softmax over a single offset is constant.
        assert bool((embedding.grad.abs() > 1e-9).all()) == (embedding.shape[-1] > 1)


def test_embeddings_of_other_offsets_have_no_gradients() -> None:
    layer = Attention(2, 4, 7, padding=3).double()
    layer(torch.randn(2, 2, 2, 12, dtype=torch.float64)).square().sum().backward()
    assert layer.row_embedding.grad is not None
    occurs = layer.row_embedding.grad.abs().amax((0, 1)) > 0
    assert occurs.tolist() == [False, False, True, True, True, False, False]


def error_in_shifting_an_image(offset: tuple[int, int], learns_positions: bool) -> float:
    """Squared error after training to shift white noise by ``offset``, which requires relative positions."""
    layer = Attention(1, 4, 3, padding=1)
    if not learns_positions:
        for embedding in (layer.row_embedding, layer.column_embedding):
            nn.init.zeros_(embedding).requires_grad_(False)
    net = nn.Sequential(layer, nn.Conv2d(4, 1, 1))
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=0.1)
    inner = (..., slice(1, -1), slice(1, -1))
    for _ in range(120):
        x = torch.randn(8, 1, 8, 10)
        loss = F.mse_loss(net(x)[inner], x.roll(offset, (2, 3))[inner])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize("offset", [(0, 1), (1, 0), (-1, 1)], ids=str)
def test_it_learns_to_shift_an_image(offset: tuple[int, int]) -> None:
    assert error_in_shifting_an_image(offset, learns_positions=True) < 0.01


def test_without_positions_it_does_not_learn_to_shift() -> None:
    assert error_in_shifting_an_image((0, 1), learns_positions=False) > 0.5


# Parameters


def parameters(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.mark.parametrize("kernel_size", [3, 7, (5, 2)])
def test_parameter_count_matches_the_formula(kernel_size: int | tuple[int, int]) -> None:
    height, width = kernel_size if isinstance(kernel_size, tuple) else (kernel_size, kernel_size)
    for bias in (True, False):
        layer = Attention(18, 24, kernel_size, groups=3, bias=bias)
        assert parameters(layer) == 3 * 18 * 24 + 24 * (height + width) / 2 + (72 if bias else 0)


@pytest.mark.parametrize("channels", [8, 64, 512])
@pytest.mark.parametrize("bias", [True, False])
def test_attention_over_7_pixels_has_fewer_parameters_than_a_3_convolution(channels: int, bias: bool) -> None:
    attention = Attention(channels, channels, 7, padding=3, groups=4, bias=bias, device="meta")
    assert parameters(attention) < parameters(nn.Conv2d(channels, channels, 3, bias=bias, device="meta"))


def resnet(blocks: list[int], conv_layer: Callable[..., nn.Module]) -> nn.Sequential:
    stages: list[nn.Module] = [nn.Conv2d(3, 64, 7, bias=False), nn.BatchNorm2d(64)]
    channels = 64
    for stage, count in enumerate(blocks):
        for _ in range(count):
            stages.append(tnn.Bottleneck(channels, 64 * 2**stage, conv_layer=conv_layer))
            channels = 256 * 2**stage
    return nn.Sequential(*stages, nn.Linear(channels, 1000))


# Table 1, rows with a convolutional stem.
@pytest.mark.parametrize(
    ("blocks", "convolutional", "attentive"),
    [([1, 2, 4, 1], 13.7, 10.3), ([2, 3, 5, 2], 19.6, 14.1), ([3, 4, 6, 3], 25.6, 18.0)],
    ids=["26", "38", "50"],
)
def test_parameter_counts_of_the_paper(blocks: list[int], convolutional: float, attentive: float) -> None:
    with torch.device("meta"):
        plain = resnet(blocks, nn.Conv2d)
        attention = resnet(blocks, partial(Attention, kernel_size=7, padding=3, groups=8))
    assert parameters(plain) / 1e6 == pytest.approx(convolutional, rel=0.02)
    assert parameters(attention) / 1e6 == pytest.approx(attentive, rel=0.02)


# Layouts and graphs


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(("groups", "size"), [(1, (4, 3)), (2, (4, 3)), (1, (8, 12)), (1, (7, 9))], ids=str)
def test_memory_layout_is_preserved(layout: torch.memory_format, groups: int, size: tuple[int, int]) -> None:
    """Also for a single block and head, where all permutations are views."""
    x = torch.randn(2, 4, *size).to(memory_format=layout)
    assert Attention(4, 8, 3, padding=1, groups=groups)(x).is_contiguous(memory_format=layout)


@pytest.mark.parametrize(
    "arguments",
    [
        {"stride": 1},
        pytest.param({"stride": 2}, marks=pytest.mark.slow),
        {"stride": 2, "dilation": 2, "padding": 2},
    ],
    ids=str,
)
def test_an_exported_program_accepts_sizes_of_every_remainder(arguments: dict[str, Any]) -> None:
    layer = Attention(2, 4, 3, **{"padding": 1, **arguments}).eval()
    dims = ({0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(layer, (torch.randn(2, 2, 19, 22),), dynamic_shapes=dims).module()
    for size in ((19, 22), (16, 24), (17, 17), (20, 21), (33, 32), (12, 11)):
        x = torch.randn(3, 2, *size)
        torch.testing.assert_close(program(x), layer(x), rtol=0, atol=1e-6)


def test_it_compiles_into_one_graph() -> None:
    """At one size, with gradients; the conformance check does so at all sizes, which takes longer."""
    layer = Attention(2, 4, 3, padding=1)
    x = torch.randn(2, 2, 7, 9)
    program = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager", dynamic=False)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [model(input) for model, input in zip((program, layer), inputs, strict=True)]
    torch.testing.assert_close(*outputs, rtol=1e-6, atol=1e-6)
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-5, atol=1e-5)
