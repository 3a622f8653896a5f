"""Int8 graphs as programs of oneDNN's quantized operators, compared with the float model and with the graph."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchvision_layers import deploy, quantized
from torchvision_layers import nn as tnn
from torchvision_layers.deploy.lowering import int8_kernels
from torchvision_layers.deploy.lowering.int8 import quantize_layers
from torchvision_layers.quantized.engine import load_engine
from torchvision_layers.testing._checks._quantization import decibels

from .._support import FunctionModule
from ._support import assert_rounds_like, images, stir


def lower(
    model: nn.Module, *inputs: Tensor, others: tuple[tuple[Tensor, ...], ...] = (), **options: Any
) -> deploy.LoweredModel:
    model = model.eval()
    batch = inputs if len(inputs) > 1 else inputs[0]
    graph = quantized.quantize(model, [batch], engine="pt2e", **options)
    state = copy.deepcopy(graph.state_dict())
    lowered = deploy.lower(graph, batch)
    for call in (inputs, *others):
        assert_rounds_like(lowered, graph, model, *call)
        assert_rounds_like(lowered, graph, model, *call)  # nothing is left behind by the first call
    assert all(torch.equal(value, state[key]) for key, value in graph.state_dict().items())
    return lowered


POST_OPS = [
    (nn.ReLU(inplace=True), "relu", "relu"),
    (nn.ReLU6(inplace=True), "hardtanh(0, 6)", None),
    (nn.Hardswish(), "hardswish", None),
    (nn.SiLU(inplace=True), "swish", None),
    (nn.GELU(), None, "gelu"),
    (nn.LeakyReLU(0.2), None, "leaky_relu(0.2)"),
    (nn.Tanh(), None, "tanh"),
    (nn.Sigmoid(), None, None),
]


@pytest.mark.parametrize(("activation", "name", "_"), POST_OPS, ids=str)
def test_activations_after_convolutions(activation: nn.Module, name: str | None, _: object) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), activation, nn.Conv2d(8, 4, 3))
    lowered = lower(model, images(4, 3, 9, 7), others=((images(1, 3, 8, 12),),))
    assert repr(lowered).count("onednn.qconv2d_pointwise(") == 2
    assert name is None or f"+ {name}  [" in repr(lowered)


@pytest.mark.parametrize(("activation", "_", "name"), POST_OPS, ids=str)
def test_activations_after_linear_layers(activation: nn.Module, _: object, name: str | None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 64), activation, nn.Linear(64, 8))
    lowered = lower(model, images(6, 48), others=((images(1, 48),),))
    assert repr(lowered).count("onednn.qlinear_pointwise(") == 2
    assert name is None or f"+ {name}  [" in repr(lowered)


LAYERS: dict[str, tuple[nn.Module, Tensor, Tensor]] = {
    "grouped": (nn.Conv2d(4, 8, 3, groups=2), images(4, 4, 9, 7), images(1, 4, 6, 6)),
    "depthwise": (nn.Conv2d(4, 4, 5, padding=2, groups=4), images(4, 4, 9, 7), images(3, 4, 5, 6)),
    "dilated": (nn.Conv2d(4, 8, 3, dilation=(2, 3), padding=1), images(4, 4, 9, 8), images(1, 4, 12, 9)),
    "strided": (nn.Conv2d(4, 8, (3, 2), stride=(2, 3), padding=(0, 1)), images(4, 4, 9, 7), images(1, 4, 4, 4)),
    "same": (nn.Conv2d(4, 8, (3, 4), padding="same"), images(4, 4, 9, 7), images(1, 4, 5, 5)),
    "without bias": (nn.Conv2d(4, 8, 1, bias=False), images(4, 4, 3, 5), images(1, 4, 1, 1)),
    "1d": (nn.Conv1d(4, 8, 3, 2, 1, 2), images(4, 4, 19), images(3, 4, 11)),
    "3d": (nn.Conv3d(3, 8, (1, 3, 2), padding=(0, 1, 1)), images(4, 3, 4, 6, 5), images(1, 3, 3, 4, 4)),
    "linear on tokens": (nn.Linear(16, 24), images(2, 5, 16), images(1, 5, 16)),
    "linear on images": (nn.Linear(16, 24), images(2, 3, 4, 16), images(1, 3, 4, 16)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(("layer", "x", "other"), LAYERS.values(), ids=LAYERS)
def test_layers(layer: nn.Module, x: Tensor, other: Tensor) -> None:
    lowered = lower(nn.Sequential(layer, nn.ReLU()), x, others=((other,),))
    assert "onednn.q" in repr(lowered)


def test_layers_equal_a_computation_with_integers() -> None:
    torch.manual_seed(0)
    conv, x = nn.Conv2d(3, 8, 3, padding=1).eval().requires_grad_(False), images(4, 3, 8, 8)
    graph = quantized.quantize(nn.Sequential(conv), [x], engine="pt2e")
    state = graph.state_dict()
    scale, zero_point = state["activation_scales"][0], int(state["activation_zero_points"][0])
    weight = next(value for value in state.values() if value.dtype == torch.int8).double()
    steps = weight.abs().amax((1, 2, 3))
    steps = conv.weight.abs().amax((1, 2, 3)).double() / steps
    integers = (torch.round(x * float(1 / scale)) + zero_point).clamp(0, 255).double() - zero_point
    bias = next(value for key, value in state.items() if "bias" in key)  # corrected in the calibration
    expected = F.conv2d(integers, weight, padding=1) * float(scale) * steps[:, None, None] + bias[:, None, None]
    output = deploy.lower(graph, x)(x)
    assert float((output - expected).abs().max() / expected.abs().max()) < 1e-6


def two_uses(self: Any, x: Tensor) -> Tensor:
    y = F.relu(self.a(x))
    return F.relu(self.b(y) + y) * self.c(y)


def chain(self: Any, x: Tensor) -> Tensor:
    y = F.relu(self.a(x))
    y = F.relu(self.b(y) + y)
    return self.a(y) + self.c(y)


SUMS: dict[str, Callable[..., Any]] = {
    "residual": lambda self, x: self.c(F.relu(self.b(x) + F.relu(self.a(x)))),
    "without relu": lambda self, x: self.c(self.b(F.relu(self.a(x))) + x),
    "in place": lambda self, x: self.c(self.b(F.relu(self.a(x))).add_(x).relu_()),
    "both convolutions": lambda self, x: self.c(F.relu(self.a(x) + self.b(x))),
    "other activation": lambda self, x: self.c(F.silu(self.a(x) + x)),
    "read again": two_uses,
    "chain": chain,
    "returned": lambda self, x: self.a(x) + x,
    "per channel": lambda self, x: self.c(F.relu(self.a(x) + x.mean((2, 3), keepdim=True))),
    "per batch": lambda self, x: self.c(self.a(x) + x[:1]),
    "three dimensions": lambda self, x: self.c(self.a(x) + x[0]),
    "convolution is smaller": lambda self, x: self.c(self.narrow(x.mean((2, 3), keepdim=True)) + x),
    "number": lambda self, x: self.c(self.a(x) + 1.5),
    "itself": lambda self, x: self.c((lambda y: y + y)(self.a(x))),
    "alpha": lambda self, x: self.c(torch.add(self.a(x), self.b(x), alpha=2)),
}


@pytest.mark.parametrize("function", SUMS.values(), ids=SUMS)
def test_sums(function: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    convs = {name: nn.Conv2d(4, 4, 3, padding=1) for name in "abc"}
    model = FunctionModule(function, **convs, narrow=nn.Conv2d(4, 4, 1))
    lower(model, images(4, 4, 6, 6), others=((images(1, 4, 5, 5),), (images(3, 4, 1, 1),)))


MIDDLES: dict[str, Callable[..., Any]] = {
    "max pool": lambda self, x: F.max_pool2d(F.relu(x), 3, 2, 1),
    "max pool of negative values": lambda self, x: F.max_pool2d(x, 3, 1, 1),
    "max pool of other sizes": lambda self, x: F.max_pool2d(x, (3, 2), (2, 1), (1, 0)),
    "max pool with dilation": lambda self, x: F.max_pool2d(x, 2, 1, 0, 2),
    "max pool of rows": lambda self, x: F.max_pool2d(x, (1, 3), 1, (0, 1)),
    "max pool up to the border": lambda self, x: F.max_pool2d(x, 3, 2, 0, ceil_mode=True),
    "max pool and a sum": lambda self, x: (lambda y: F.max_pool2d(y, 3, 1, 1) + y)(F.relu(x)),
    "average pool": lambda self, x: F.avg_pool2d(F.relu(x), 2),
    "concatenation": lambda self, x: torch.cat([F.relu(x), self.other(F.relu(x))], 1),
    "shuffle": lambda self, x: torch.cat([x[:, 4:], x[:, :4]], 1),
    "channel shuffle": lambda self, x: x.view(x.shape[0], 2, 4, *x.shape[2:]).transpose(1, 2).reshape(x.shape),
    "gate": lambda self, x: x * self.other(x.mean((2, 3), keepdim=True)).sigmoid(),
    "flatten": lambda self, x: x.flatten(2).unsqueeze(2),
    "interpolation": lambda self, x: F.interpolate(x, scale_factor=2),
    "padding": lambda self, x: F.pad(x, (1, 2, 0, 1)),
    "layer norm": lambda self, x: F.layer_norm(x.permute(0, 2, 3, 1), (8,)).permute(0, 3, 1, 2),
    "batch norm": lambda self, x: F.relu(self.norm(torch.cat([x, x], 1)[:, 4:12])),
    "write": lambda self, x: (lambda y: (y[:, :2].zero_(), y)[1])(F.relu(x)),
}


@pytest.mark.parametrize("middle", MIDDLES.values(), ids=MIDDLES)
def test_between_convolutions(middle: Callable[..., Any]) -> None:
    torch.manual_seed(0)

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.after(middle(self, self.before(x)))

    wide = 16 if middle is MIDDLES["concatenation"] else 8
    layers = {"before": nn.Conv2d(3, 8, 3, padding=1), "other": nn.Conv2d(8, 8, 1), "norm": nn.BatchNorm2d(8)}
    model = stir(FunctionModule(forward, **layers, after=nn.Conv2d(wide, 4, 1)))
    lower(model, images(4, 3, 8, 8), others=((images(1, 3, 8, 8),), (images(3, 3, 8, 8),)))


POOLS = [((3, 3), (2, 2), (1, 1)), ((2, 3), (1, 2), (0, 1)), ((5, 5), (1, 1), (2, 2)), ((2, 2), (3, 3), (0, 0))]


@pytest.mark.parametrize(("kernel", "stride", "padding"), POOLS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_maximum_of_integers(
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], memory_format: torch.memory_format
) -> None:
    x = torch.randint(256, (2, 3, 9, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    output = int8_kernels.quantized_max_pool(x.to(memory_format=memory_format), kernel, stride, padding)
    assert output.dtype == torch.uint8
    assert torch.equal(output.float(), F.max_pool2d(x.float(), kernel, stride, padding))


@pytest.mark.parametrize("zero_point", [0, 3, 128, 255])
@pytest.mark.parametrize(
    ("low", "high", "dtype"), [(0, 255, torch.uint8), (0, 127, torch.uint8), (-128, 127, torch.int8)]
)
def test_quantization_rounds_half_to_even(zero_point: int, low: int, high: int, dtype: torch.dtype) -> None:
    x = torch.cat([torch.arange(-600, 600) / 4, images(1000) * 50, torch.tensor([1e9, -1e9])])
    zero_point = min(zero_point, high)
    expected = (torch.round(x * 2) + zero_point).clamp(low, high)
    output = int8_kernels.quantize(x, 0.5, zero_point, low, high, dtype)
    assert output.dtype == dtype
    assert torch.equal(output.float(), expected)


def _layouts(x: Tensor) -> dict[str, Tensor]:
    """The same images in several layouts of memory."""
    wide = torch.stack([x, x], -1)
    return {"contiguous": x, "channels_last": x.to(memory_format=torch.channels_last), "strided": wide[..., 0]}


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("block", [4, 100, 2**17])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
def test_large_tensors_are_rounded_in_blocks(
    layout: str, block: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_kernels, "_BLOCK", block)
    x = _layouts(images(3, 7, 5, 6))[layout]
    offset, factor = images(1, 7, 1, 1), images(1, 7, 1, 1) + 2
    low, high = (3, 255) if dtype == torch.uint8 else (-128, 127)
    output = int8_kernels.quantize(x, 0.1, 3, low, high, dtype)
    expected = (torch.round(x.double() / 0.1) + 3).clamp(low, high)
    assert (output.shape, output.dtype) == (x.shape, dtype)
    assert torch.equal(output.double(), expected)
    output = int8_kernels.quantize_affine(x, offset, factor, 0.1, 3, low, high, dtype)
    expected = (torch.round((offset.double() + factor.double() * x.double()) / 0.1) + 3).clamp(low, high)
    assert (output.shape, output.dtype) == (x.shape, dtype)
    assert torch.equal(output.double(), expected)


@pytest.mark.parametrize("has_relu", [True, False])
@pytest.mark.parametrize("has_two_readers", [True, False])
def test_norms_before_layers_are_part_of_the_rounding(
    has_relu: bool, has_two_readers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in DenseNet and in residual blocks with activations first."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(11), nn.ReLU()
            self.first, self.second = nn.Conv2d(11, 4, 1), nn.Conv2d(11, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(torch.cat([x, self.stem(x)], 1))
            x = self.relu(x) if has_relu else x
            return self.first(x) + self.second(x) if has_two_readers else self.second(x)

    torch.manual_seed(0)
    lowered = lower(stir(Net()), images(4, 3, 12, 12), others=((images(1, 3, 16, 9),),))
    program = repr(lowered)
    assert "quantize_affine(" in program
    assert "addcmul(" not in program
    assert "relu_(" not in program
    x = images(4, 3, 12, 12)
    expected = lowered(x)
    monkeypatch.setattr(int8_kernels, "_BLOCK", 16)
    assert torch.equal(lowered(x), expected)


@pytest.mark.parametrize(("shape", "width"), [((1, 8), 1), ((1, 1), 8), ((8,), 8)])
def test_sums_and_products_of_other_shapes_stay(shape: tuple[int, ...], width: int) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.offset, self.factor = nn.Parameter(torch.randn(1, 8)), nn.Parameter(torch.randn(shape))
            self.linear = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(torch.addcmul(self.offset, x[:, :width], self.factor))

    torch.manual_seed(0)
    assert "addcmul(" in repr(lower(Net(), images(6, 8), others=((images(3, 8),),)))


def test_norms_that_something_else_reads_stay() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(x)
            return torch.tanh(self.conv(x)) * torch.tanh(x)

    torch.manual_seed(0)
    assert "addcmul(" in repr(lower(stir(Net()), images(4, 3, 12, 12)))


def test_pools_read_integers() -> None:
    torch.manual_seed(0)
    pools = [nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *pools, nn.Linear(8, 5))
    program = repr(lower(model, images(4, 3, 12, 12), others=((images(1, 3, 9, 16),),)))
    assert "quantized_max_pool(conv2d)" in program
    assert "mean(conv2d_1)" in program
    # Images are converted once, before they are rounded.
    assert program.index("to_channels_last(") < program.index("quantize(to_channels_last)")


def test_networks() -> None:
    torch.manual_seed(0)
    blocks = [tnn.BasicBlock(8, 8), tnn.InvertedResidual(8, 8, 1, 2), tnn.MBConv(8, 8)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)]
    model = stir(nn.Sequential(tnn.ConvNormAct(3, 8, stride=2), *blocks, *head))
    lowered = lower(model, images(8, 3, 32, 32), others=((images(8, 3, 48, 40),),))
    program = repr(lowered)
    assert not any(name in program for name in (" conv2d(", " linear(", "quantized_decomposed", "mkldnn"))
    assert program.count("+ sum in place") == 3
    for clone in (copy.deepcopy(lowered), pickle.loads(pickle.dumps(lowered))):
        assert torch.equal(clone(images(2, 3, 32, 32)), lowered(images(2, 3, 32, 32)))
    fresh = pickle.loads(pickle.dumps(lowered))
    fresh.load_state_dict(lowered.state_dict())
    assert torch.equal(fresh(images(2, 3, 32, 32)), lowered(images(2, 3, 32, 32)))


def test_blocks_with_sums_in_float() -> None:
    torch.manual_seed(0)
    model = stir(nn.Sequential(nn.Conv2d(3, 8, 3), tnn.ConvNeXtBlock(8), tnn.ConvNeXtBlock(8)))
    lowered = lower(model, images(4, 3, 12, 12), others=((images(1, 3, 16, 9),),))
    assert repr(lowered).count("onednn.qlinear_pointwise(") == 4


def test_states_of_other_scales() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)), images(4, 3, 8, 8)
    first, second = (deploy.lower(quantized.quantize(model, [x * i], engine="pt2e"), x) for i in (1, 3))
    with pytest.raises(RuntimeError, match="activation_scales must be those of the program"):
        first.load_state_dict(second.state_dict())
    state = first.state_dict()
    del state["activation_scales"]
    with pytest.raises(RuntimeError, match="Missing key"):
        second.load_state_dict(state)


def test_models_after_training() -> None:
    torch.manual_seed(0)
    model = stir(nn.Sequential(tnn.ConvNormAct(3, 8), tnn.BasicBlock(8, 8)))
    x = images(4, 3, 12, 12)
    prepared = quantized.prepare_qat(model, x, engine="pt2e")
    with pytest.raises(TypeError, match=r"it is prepared: call quantized.convert\(model\) first"):
        deploy.lower(prepared, x)
    prepared(x).sum().backward()
    graph = quantized.convert(prepared)
    lowered = deploy.lower(graph, x)
    assert decibels(graph(x), lowered(x)) > 60
    assert "onednn.qconv2d_pointwise.binary" in repr(lowered)


def test_layers_that_stay_in_float() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(8, 4, 1))
    lower(model, images(4, 3, 8, 8), allow_float=True)


def test_other_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    x = images(4, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    lower(model, x, backend="onnxruntime")
    graph = quantized.quantize(model, [x], engine="pt2e")
    monkeypatch.setattr(graph, "backend", "xnnpack")
    with pytest.raises(TypeError, match="it is made for 'xnnpack': call quantized.quantize"):
        deploy.lower(graph, x)


def test_processors_without_exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    x = images(4, 3, 8, 8)
    graph = quantized.quantize(nn.Sequential(nn.Conv2d(3, 8, 3)), [x], engine="pt2e")
    lowered = deploy.lower(graph, x)
    monkeypatch.setattr(int8_kernels, "_has_exact_products", lambda: False)
    for call in (lambda: deploy.lower(graph, x), lambda: copy.deepcopy(lowered)(x)):
        with pytest.raises(RuntimeError, match="here they overflow: lower the float model"):
            call()


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rgb, self.depth = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(1, 4, 1)

    def forward(self, image: Tensor, depth: Tensor) -> Tensor:
        return F.relu(self.rgb(image) + self.depth(depth))


def test_several_inputs() -> None:
    torch.manual_seed(0)
    lowered = lower(Two(), images(2, 3, 8, 8), images(2, 1, 8, 8), others=((images(1, 3, 6, 9), images(1, 1, 6, 9)),))
    with pytest.raises((RuntimeError, ValueError)):
        lowered(images(1, 3, 6, 9), images(1, 1, 6, 8))


def test_sums_and_products_of_onednn_are_wrong_above_127() -> None:
    """The reason why programs do not use them. Once torch has fixed them, they can replace steps in float."""
    if "AVX512" not in torch.backends.cpu.get_cpu_capability():
        return
    x = torch.full((1, 64), 200, dtype=torch.uint8)
    total = torch.ops.onednn.qadd.tensor(x, 1.0, 0, torch.zeros_like(x), 1.0, 0, 1.0, 0, torch.uint8)
    assert not torch.equal(total, x)


def test_moved_tensor_that_is_read_twice() -> None:
    """Only one of its readers takes integers."""

    class Moved(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            decomposed = torch.ops.quantized_decomposed
            moved = decomposed.dequantize_per_tensor(x, 0.1, 3, 0, 255, torch.uint8).permute(1, 0)
            rounded = decomposed.quantize_per_tensor(moved, 0.1, 3, 0, 255, torch.uint8)
            return decomposed.dequantize_per_tensor(rounded, 0.1, 3, 0, 255, torch.uint8), moved.sigmoid()

    load_engine("pt2e")  # registers the operators
    x = torch.arange(8, dtype=torch.uint8).reshape(2, 4)
    program = torch.export.export(Moved(), (x,)).module()
    quantize_layers(program)
    expected = (x.T.float() - 3) * 0.1
    assert torch.allclose(program(x)[0], expected)
    assert torch.allclose(program(x)[1], expected.sigmoid())


def test_integers_in_other_steps_are_not_moved() -> None:
    class Requantized(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            decomposed = torch.ops.quantized_decomposed
            x = decomposed.dequantize_per_tensor(x, 0.1, 3, 0, 255, torch.uint8)
            y = decomposed.dequantize_per_tensor(y, 0.2, 3, 0, 255, torch.uint8)
            z = decomposed.quantize_per_tensor(torch.cat([x, y]), 0.2, 3, 0, 255, torch.uint8)
            return decomposed.dequantize_per_tensor(z, 0.2, 3, 0, 255, torch.uint8)

    load_engine("pt2e")  # registers the operators
    x, y = (torch.arange(8, dtype=torch.uint8) + i for i in (0, 20))
    program = torch.export.export(Requantized(), (x, y)).module()
    expected = torch.cat([(x.float() - 3) * 0.1, (y.float() - 3) * 0.2])
    quantize_layers(program)
    assert float((program(x, y) - expected).abs().max()) <= 0.1001  # half a step
