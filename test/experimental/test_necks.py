"""Necks and decoders against torchvision's layers, the published forms, and the claims of their papers."""

import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation.deeplabv3 import ASPP
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from torchvision_layers import nn as tnn
from torchvision_layers import quantized
from torchvision_layers.experimental import nn as enn
from torchvision_layers.testing._checks._quantization import decibels

CHANNELS = [4, 6, 8]
SIZES = [(25, 22), (13, 11), (5, 7)]  # the last is less than half


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pyramid(channels: Sequence[int] = CHANNELS) -> "OrderedDict[str, Tensor]":
    return OrderedDict((f"c{i}", seeded(2, c, *size)) for i, (c, size) in enumerate(zip(channels, SIZES, strict=True)))


def stirred(module: nn.Module) -> nn.Module:
    """With statistics and weights of norms that differ from their defaults."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.dim() == 1:
            low = -0.5 if name.endswith(("bias", "mean")) else 0.5
            tensor.data.uniform_(low, low + 1, generator=generator)
    return module.eval()


# FeaturePyramid

EXTRA_BLOCKS: dict[str, Callable[[], nn.Module] | None] = {
    "none": None,
    "max pool": LastLevelMaxPool,
    "p6 p7": partial(LastLevelP6P7, 5, 5),
    "p6 p7 of the input": partial(LastLevelP6P7, CHANNELS[-1], 5),
}


@pytest.mark.parametrize("norm_layer", [None, nn.BatchNorm2d])
@pytest.mark.parametrize("extra", EXTRA_BLOCKS)
def test_checkpoints_of_torchvisions_feature_pyramid_load(extra: str, norm_layer: Any) -> None:
    extra_blocks = EXTRA_BLOCKS[extra]
    other = FeaturePyramidNetwork(CHANNELS, 5, extra_blocks and extra_blocks(), norm_layer)
    layer = enn.FeaturePyramid(CHANNELS, 5, extra_blocks, norm_layer)
    layer.load_state_dict(stirred(other).state_dict(), strict=True)
    levels = pyramid()
    expected, named, listed = other(levels), layer.eval()(levels), layer(tuple(levels.values()))
    assert isinstance(named, OrderedDict)
    assert list(named) == list(expected)
    for got in (named.values(), listed):
        assert all(torch.equal(y, z) for y, z in zip(got, expected.values(), strict=True))
    assert list(levels) == ["c0", "c1", "c2"], "the input changed"


def test_checkpoints_of_an_old_feature_pyramid_load() -> None:
    """Before torchvision 0.13, blocks were convolutions."""
    layer = enn.FeaturePyramid(CHANNELS, 5)
    state = layer.state_dict()
    old = {key.replace(".0.weight", ".weight").replace(".0.bias", ".bias"): value for key, value in state.items()}
    assert "inner_blocks.0.weight" in old
    other = nn.ModuleDict({"fpn": enn.FeaturePyramid(CHANNELS, 5)})
    other.load_state_dict({f"fpn.{key}": value for key, value in old.items()}, strict=True)
    assert all(torch.equal(value, state[key.removeprefix("fpn.")]) for key, value in other.state_dict().items())


def reached(layer: nn.Module, levels: Sequence[Tensor]) -> list[list[bool]]:
    """For each output, the inputs that it depends on."""
    inputs = [level.clone().requires_grad_() for level in levels]
    outputs = layer(inputs)
    gradients = [torch.autograd.grad(y.sum(), inputs, allow_unused=True, retain_graph=True) for y in outputs]
    return [[g is not None and bool(g.any()) for g in row] for row in gradients]


@pytest.mark.parametrize("neck", [lambda: enn.FeaturePyramid([4, 4], 4), lambda: enn.PathAggregation(4, 2)])
def test_levels_must_be_of_one_batch(neck: Callable[[], nn.Module]) -> None:
    with pytest.raises(ValueError, match="^level 1 of input must have as many images as level 0, 1, got shape"):
        neck()([torch.randn(1, 4, 8, 8), torch.randn(4, 4, 4, 4)])


def test_coarse_levels_reach_all_finer_outputs() -> None:
    """arXiv 1612.03144: every level gets the semantics of the coarsest."""
    inputs = list(pyramid().values())
    assert reached(enn.FeaturePyramid(CHANNELS, 5), inputs) == [[i >= j for i in range(3)] for j in range(3)]


def test_fine_levels_reach_all_coarser_outputs() -> None:
    """arXiv 1803.01534: a short path takes the precise positions of fine levels to the coarsest."""
    inputs = list(pyramid([5, 5, 5]).values())
    layer = enn.PathAggregation(5, 3, activation_layer=nn.Softplus)
    assert reached(layer, inputs) == [[i <= j for i in range(3)] for j in range(3)]
    both = nn.Sequential(enn.FeaturePyramid(CHANNELS, 5), layer)
    assert reached(both, list(pyramid().values())) == [[True] * 3] * 3
    assert torch.equal(layer(inputs)[0], inputs[0])


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_any_number_of_levels(levels: int) -> None:
    channels = [3 + i for i in range(levels)]
    inputs = [seeded(1, c, 41 // (i + 1), 40 - 9 * i) for i, c in enumerate(channels)]
    outputs = enn.PathAggregation(4, levels)(enn.FeaturePyramid(channels, 4)(inputs))
    assert [y.shape for y in outputs] == [(1, 4, *x.shape[2:]) for x in inputs]


# CSPBlock: the published forms, in plain torch


def conv(in_channels: int, out_channels: int, kernel_size: int = 1) -> nn.Sequential:
    plain = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    return nn.Sequential(plain, nn.BatchNorm2d(out_channels), nn.SiLU())


class YoloBottleneck(nn.Module):
    def __init__(self, channels: int, _: int, kernels: tuple[int, int] = (3, 3)) -> None:
        super().__init__()
        self.cv1, self.cv2 = conv(channels, channels, kernels[0]), conv(channels, channels, kernels[1])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv2(self.cv1(x))


class C3(nn.Module):
    def __init__(self, c1: int, c2: int, n: int) -> None:
        super().__init__()
        self.cv1, self.cv2, self.cv3 = conv(c1, c2 // 2), conv(c1, c2 // 2), conv(c2, c2)
        self.m = nn.Sequential(*[YoloBottleneck(c2 // 2, c2 // 2, (1, 3)) for _ in range(n)])

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class C2f(nn.Module):
    def __init__(self, c1: int, c2: int, n: int) -> None:
        super().__init__()
        self.c = c2 // 2
        self.cv1, self.cv2 = conv(c1, 2 * self.c), conv((2 + n) * self.c, c2)
        self.m = nn.ModuleList([YoloBottleneck(self.c, self.c) for _ in range(n)])

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class ELAN(nn.Module):
    """The block of yolov7.yaml, which concatenates the last output first."""

    def __init__(self, c1: int, c2: int, n: int) -> None:
        super().__init__()
        self.left, self.right = conv(c1, c2 // 2), conv(c1, c2 // 2)
        self.m = nn.ModuleList([conv(c2 // 2, c2 // 2, 3) for _ in range(2 * n)])
        self.last = conv((2 + n) * (c2 // 2), c2)

    def forward(self, x: Tensor) -> Tensor:
        outputs = [self.left(x), self.right(x)]
        y = outputs[-1]
        for i, m in enumerate(self.m):
            y = m(y)
            if i % 2 == 1:
                outputs.append(y)
        return self.last(torch.cat(outputs[::-1], 1))


def load_split(layer: enn.CSPBlock, skip: nn.Module, chain: nn.Module) -> None:
    """Gives the first convolution the weights of two."""
    first, second = skip.state_dict(), chain.state_dict()
    layer.split.load_state_dict(
        {key: torch.cat([first[key], second[key]]) if value.dim() else value for key, value in first.items()}
    )


def test_it_is_c3() -> None:
    other = stirred(C3(6, 8, 2))
    layer = enn.CSPBlock(6, 8, partial(YoloBottleneck, kernels=(1, 3)), depth=2).eval()
    load_split(layer, other.cv2, other.cv1)
    layer.blocks.load_state_dict(other.m.state_dict())
    layer.project.load_state_dict(other.cv3.state_dict())
    x = seeded(2, 6, 9, 7)
    torch.testing.assert_close(layer(x), other(x), rtol=1e-5, atol=1e-5)


def test_it_is_c2f() -> None:
    other = stirred(C2f(6, 8, 2))
    layer = enn.CSPBlock(6, 8, YoloBottleneck, depth=2, aggregates=True).eval()
    layer.split.load_state_dict(other.cv1.state_dict())
    layer.blocks.load_state_dict(other.m.state_dict())
    layer.project.load_state_dict(other.cv2.state_dict())
    x = seeded(2, 6, 9, 7)
    torch.testing.assert_close(layer(x), other(x), rtol=1e-5, atol=1e-5)


def test_it_is_elan() -> None:
    other = stirred(ELAN(6, 8, 2))
    layer = enn.CSPBlock(6, 8, lambda c, o: nn.Sequential(conv(c, o, 3), conv(o, o, 3)), depth=2, aggregates=True)
    load_split(layer.eval(), other.left, other.right)
    layer.blocks.load_state_dict(
        {f"{int(k[0]) // 2}.{int(k[0]) % 2}{k[1:]}": v for k, v in other.m.state_dict().items()}
    )
    state = other.last.state_dict()
    state["0.weight"] = torch.cat(state["0.weight"].split(4, 1)[::-1], 1)
    layer.project.load_state_dict(state)
    x = seeded(2, 6, 9, 7)
    torch.testing.assert_close(layer(x), other(x), rtol=1e-5, atol=1e-5)


def test_half_of_the_channels_skip_the_blocks() -> None:
    """arXiv 1911.11929: the gradient reaches the input through the skip, even if the blocks let nothing through."""

    class Blocked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0 * x

    x = seeded(1, 4, 5, 5).requires_grad_()
    enn.CSPBlock(4, 4, Blocked()).eval()(x).sum().backward()
    assert x.grad is not None
    assert bool(x.grad.any())


# SPPF, ASPP


def test_repeated_maxima_are_those_of_larger_windows() -> None:
    layer = stirred(enn.SPPF(6, 4))
    x = seeded(2, 6, 17, 15)
    z = layer.reduce(x)
    pooled = [F.max_pool2d(z, kernel, 1, kernel // 2) for kernel in (5, 9, 13)]
    torch.testing.assert_close(layer(x), layer.project(torch.cat([z, *pooled], 1)), rtol=0, atol=0)


@pytest.mark.parametrize("training", [False, True])
def test_checkpoints_of_torchvisions_aspp_load(training: bool) -> None:
    other, layer = ASPP(6, [2, 4], 5), enn.ASPP(6, (2, 4), 5)
    layer.load_state_dict(stirred(other).state_dict(), strict=True)
    x = seeded(4, 6, 11, 9)
    outputs, gradients = [], []
    for module in (other, layer):
        module.train(training)
        torch.manual_seed(0)  # of the dropout
        leaf = x.clone().requires_grad_()
        outputs.append(module(leaf))
        outputs[-1].square().sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
    for key, value in other.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[key], value, rtol=1e-5, atol=1e-5)


def test_each_rate_sees_its_distance_and_the_mean_sees_everything() -> None:
    """arXiv 1706.05587, section 3: a dilated kernel sees pixels at its rate."""
    layer = enn.ASPP(1, (3, 5), 1, norm_layer=None, activation_layer=nn.Identity, dropout=0.0)
    for branch, distances in zip(layer.convs, ({0}, {0, 3}, {0, 5}, set(range(13))), strict=True):
        x = torch.zeros(1, 1, 25, 25, requires_grad=True)
        (gradient,) = torch.autograd.grad(branch(x)[0, 0, 12, 12], x)
        rows = gradient[0, 0].abs().sum(1).nonzero().flatten().tolist()
        assert {abs(row - 12) for row in rows} == distances


# UpBlock


class PublishedUp(nn.Module):
    """An up block of a widespread implementation of U-Net, which pads the upsampled image."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, in_channels // 2, kernel_size=2, stride=2)
        self.conv1, self.conv2 = (
            nn.Sequential(nn.Conv2d(c, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU())
            for c in (in_channels, out_channels)
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(x)
        rows, columns = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        x = F.pad(x, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
        return self.conv2(self.conv1(torch.cat([skip, x], dim=1)))


def test_weights_of_a_published_unet_load() -> None:
    other = stirred(PublishedUp(8, 4))
    layer = enn.UpBlock(8, 4, 4, up_layer=partial(nn.ConvTranspose2d, kernel_size=2, stride=2)).eval()
    layer.load_state_dict(other.state_dict(), strict=True)
    x, skip = seeded(2, 8, 5, 6), seeded(2, 4, 10, 12)
    torch.testing.assert_close(layer(x, skip), other(x, skip), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(10, 12), (11, 13), (5, 6), (23, 7), (1, 1)])
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_the_output_has_the_size_of_the_skip(size: tuple[int, int], mode: str) -> None:
    layer = enn.UpBlock(4, 3, 2, mode=mode).eval()
    x, skip = seeded(2, 4, 5, 6), seeded(2, 3, *size)
    expected = layer.conv2(layer.conv1(torch.cat([skip, F.interpolate(x, size, mode=mode)], 1)))
    assert torch.equal(layer(x, skip), expected)


# Concatenation


def test_concatenation_is_that_of_the_quantized_package() -> None:
    layer, other = enn.Concatenation, quantized.Concatenation
    assert inspect.signature(layer) == inspect.signature(other)
    tensors = [seeded(2, 3, 4), seeded(2, 5, 4)]
    for dim in (1, -2):
        assert torch.equal(layer(dim)(tensors), other(dim)(tensors))
    assert torch.equal(layer()(tuple(tensors)), torch.cat(tensors, 1))
    halves = [tensors[0].half(), tensors[1]]  # as under autocast
    assert torch.equal(layer()(halves), torch.cat(halves, 1))


# Int8


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.cat, self.last = tnn.ConvNormAct(3, 5), enn.Concatenation(), tnn.ConvNormAct(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.cat([x, self.conv(x)]))


class Decoder(nn.Module):
    def __init__(self, mode: str) -> None:
        super().__init__()
        self.stem, self.down = tnn.ConvNormAct(3, 8), tnn.ConvNormAct(8, 12, stride=2)
        self.up = enn.UpBlock(12, 8, 8, mode=mode)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.up(self.down(x), x)


class Neck(nn.Module):
    def __init__(self, named: bool) -> None:
        super().__init__()
        self.named = named
        self.stages = nn.ModuleList([tnn.ConvNormAct(3, 6, stride=2), tnn.ConvNormAct(6, 8, stride=2)])
        self.fpn, self.pan = enn.FeaturePyramid([6, 8], 6), enn.PathAggregation(6, 2)

    def forward(self, x: Tensor) -> Any:
        levels: OrderedDict[str, Tensor] = OrderedDict()
        for i, stage in enumerate(self.stages):
            x = stage(x)
            levels[f"c{i}"] = x
        return self.pan(self.fpn(levels if self.named else list(levels.values())))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "Concatenation": Dense,
    "ASPP": partial(enn.ASPP, 3, (2, 3), 8),
    "UpBlock": partial(Decoder, "nearest"),
    "UpBlock, bilinear": partial(Decoder, "bilinear"),
    "SPPF": partial(enn.SPPF, 3, 8, hidden_channels=6),
    "CSPBlock": partial(enn.CSPBlock, 3, 8, depth=2),
    "CSPBlock, aggregates": partial(enn.CSPBlock, 3, 8, tnn.ConvNormAct, depth=2, aggregates=True),
    "necks, listed": partial(Neck, False),
    "necks, named": partial(Neck, True),
}


@pytest.mark.parametrize("backend", ["x86", "onednn"])
@pytest.mark.parametrize("name", MODELS)
def test_int8_without_a_twin(name: str, backend: str) -> None:
    torch.manual_seed(0)
    model = stirred(MODELS[name]())
    batches = [seeded(8, 3, 27, 22, seed=i) for i in range(2)]
    int8 = quantized.quantize(model, batches, backend=backend)
    rows = quantized.report(int8).rows
    in_float = {row.before for row in rows if row.runs_in == "float"}
    assert in_float <= {"SiLU"}, in_float
    with torch.no_grad():
        expected, got = (m(batches[0]) for m in (model, int8))
    if isinstance(expected, Tensor):
        expected, got = [expected], [got]
    assert type(got) is type(expected)
    for y, z in zip(*((o.values() if isinstance(o, dict) else o) for o in (expected, got)), strict=True):
        assert decibels(y, z) >= 30


def test_an_int8_neck_requires_its_levels() -> None:
    int8 = quantized.quantize(Neck(False).eval(), [seeded(2, 3, 16, 16)])
    with pytest.raises(ValueError, match=r"input must hold \[0, 1\], as in the first call of this forward, got \[0\]"):
        int8.model.fpn([seeded(2, 6, 8, 8)])


# Attributes


@pytest.mark.parametrize(
    "layer",
    [
        enn.ASPP(3, (2,), 5),
        enn.CSPBlock(3, 5),
        enn.FeaturePyramid([3], 5),
        enn.PathAggregation(5, 2),
        enn.SPPF(3, 5),
        enn.UpBlock(3, 2, 5),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_every_block_says_its_channels_and_stride(layer: nn.Module) -> None:
    assert (layer.out_channels, layer.reduction) == (5, 1)
