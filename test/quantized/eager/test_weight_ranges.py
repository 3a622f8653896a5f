"""Ranges of int8 weights: no overflow on x86, no shift, and exact largest weights."""

import copy
import ctypes
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.ao.nn.quantized import Conv2d as TorchConv2d
from torch.ao.quantization import HistogramObserver, PerChannelMinMaxObserver, QConfig
from torch.ao.quantization import convert as torch_convert
from torch.ao.quantization import prepare as torch_prepare

from torchvision_layers import nn as tnn
from torchvision_layers import quantized
from torchvision_layers.quantized.eager.int8_modules import use_backend

BACKENDS = ("x86", "onednn", "qnnpack")

# Layers with weights, and the shapes of their inputs.
LAYERS = {
    "conv1d": (lambda: tnn.Conv1dNormAct(4, 6), (8, 4, 9)),
    "conv2d": (lambda: tnn.ConvNormAct(4, 6), (8, 4, 9, 8)),
    "conv2d with ReLU6": (lambda: tnn.ConvNormAct(4, 6, activation_layer=nn.ReLU6), (8, 4, 9, 8)),
    "conv2d without norm": (lambda: nn.Conv2d(4, 6, 3), (8, 4, 9, 8)),
    "depthwise": (lambda: tnn.ConvNormAct(8, 8, groups=8), (8, 8, 9, 8)),
    "one weight a channel": (lambda: nn.Conv2d(4, 4, 1, groups=4), (8, 4, 9, 8)),
    "sum": (lambda: tnn.BasicBlock(4, 4), (8, 4, 9, 8)),
    "SiLU": (lambda: tnn.ConvNormAct(4, 6, activation_layer=nn.SiLU), (8, 4, 9, 8)),
    "linear": (lambda: tnn.LinearDropoutAct(8, 6), (32, 8)),
    "linear with norm": (lambda: tnn.LinearDropoutAct(8, 6, norm_layer=nn.BatchNorm1d), (32, 8)),
}
CONV3D = (lambda: tnn.Conv3dNormAct(4, 6), (4, 4, 5, 6, 7))  # qnnpack gives no access to its weights


def int8(model: nn.Module, x: Tensor, backend: str, is_qat: bool) -> quantized.QuantizableModel:
    if not is_qat:
        return quantized.quantize(model.eval(), [x], backend=backend)
    prepared = quantized.prepare_qat(model, backend=backend)
    optimizer = torch.optim.SGD(prepared.parameters(), 0.05)
    for _ in range(2):
        prepared(x).square().mean().backward()
        optimizer.step()
    return quantized.convert(prepared)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The int8 weights by module path."""
    by_path = {}
    for path, module in model.named_modules():
        if callable(getattr(module, "_weight_bias", None)) and not path.endswith("_packed_params"):
            by_path[path] = module._weight_bias()[0]
        elif isinstance(getattr(module, "weight", None), Tensor) and module.weight.dtype is torch.qint8:
            by_path[path] = module.weight
    assert by_path, "no int8 weights"
    return {path: weight for path, weight in by_path.items() if weight.is_quantized}


@pytest.mark.parametrize("is_qat", [False, True], ids=["calibrated", "trained"])
@pytest.mark.parametrize("name", [*LAYERS, "conv3d"])
def test_weights_do_not_overflow_on_x86(name: str, is_qat: bool) -> None:
    """Without VNNI, kernels add two uint8-int8 products in 16 bits, so two weights of one sign may sum to 128."""
    build, shape = LAYERS.get(name, CONV3D)
    for weight in weights(int8(build(), torch.randn(shape), "x86", is_qat)).values():
        largest = [largest_sum(channel) for channel in weight.int_repr()]
        assert max(largest) <= 128
        assert min(largest) >= 126, "the range is smaller than necessary"


def largest_sum(channel: Tensor, any_order: bool = False) -> int:
    """The largest magnitude of the sum of two weights of one sign that a kernel adds, in plain Python."""
    row = channel.int().movedim(0, -1).flatten().tolist()  # positions, then input channels
    sums = []
    for sign in (1, -1):
        side = [max(sign * weight, 0) for weight in row]
        if any_order:
            side.sort(reverse=True)
        sums += [sum(side[i : i + 2]) for i in range(0, len(side), 2)]
    return max(sums)


@pytest.mark.parametrize("is_qat", [False, True], ids=["calibrated", "trained"])
def test_any_two_weights_are_bounded_where_convolutions_move_to_onednn(is_qat: bool) -> None:
    """oneDNN adds weights in another order than FBGEMM."""
    conv = nn.Conv2d(16, 32, 3, groups=16, bias=False)  # without padding, FBGEMM has no fast kernel
    model = nn.Sequential(conv, nn.BatchNorm2d(32), nn.ReLU6())
    (weight,) = weights(int8(model, torch.randn(8, 16, 9, 8), "x86", is_qat)).values()
    sums = [largest_sum(channel, any_order=True) for channel in weight.int_repr()]
    assert 126 <= min(sums) <= max(sums) <= 128


@pytest.fixture(params=["avx2", "avx512", "native"])
def instructions(request: pytest.FixtureRequest) -> Iterator[str]:
    """Lets FBGEMM use these instructions only, none of which is VNNI in the first two cases."""
    library = ctypes.CDLL(str(next((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"))))
    force = getattr(library, "_ZN6fbgemm14fbgemmForceIsaENS_10inst_set_tE", None)
    if force is None:
        pytest.skip("this build of torch does not export the function")
    force({"native": 0, "avx2": 1, "avx512": 2}[request.param])
    yield request.param
    force(0)


# Input channels, output channels, kernel size, groups.
GEOMETRIES = [
    (8, 16, 3, 1),
    (3, 16, 3, 1),
    (5, 8, 1, 1),
    (16, 16, 3, 16),
    (16, 16, 5, 16),
    (16, 32, 3, 16),
    (16, 16, 3, 4),
]


@pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="needs an x86 CPU")
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_weights_at_the_bound_are_exact(geometry: tuple[int, ...], instructions: str) -> None:
    """Inputs of 255 times pairs of 64 and 64, 127 and 1, or 127 and -127: the bias takes off the exact sum."""
    inputs, outputs, size, groups = geometry
    channels = inputs // groups
    length = channels * size * size
    patterns = torch.tensor(
        [
            [64, 64, 64, 64],
            [127, 1, 1, 127],
            [127, -127, 127, -127],
            [-64, -64, -127, -1],
            [-127, 127, -127, 127],
            [1, 127, 127, 1],
            [127, -127, -127, 127],
            [-64, -64, 64, 64],
        ]
    )
    rows = patterns.repeat(-(-outputs // 8), -(-length // 4))[:outputs, :length]
    weight = rows.view(outputs, size, size, channels).movedim(3, 1)
    assert max(map(largest_sum, weight)) == 128
    x = torch.full((1, inputs, 7, 7), 255)
    expected = nn.functional.conv2d(x, weight, padding=size // 2, groups=groups)[0, :, 3, 3]  # int64
    quantized_weight = torch._make_per_channel_quantized_tensor(
        weight.to(torch.int8), torch.ones(outputs, dtype=torch.double), torch.zeros(outputs, dtype=torch.long), 0
    )
    quantized_x = torch._make_per_tensor_quantized_tensor(x.to(torch.uint8), 1.0, 0)
    with use_backend("fbgemm"):
        packed = torch.ops.quantized.conv2d_prepack(
            quantized_weight, -expected.float(), [1, 1], [size // 2] * 2, [1, 1], groups
        )
        result = torch.ops.quantized.conv2d(quantized_x, packed, 1.0, 128)
    assert result.int_repr()[0, :, 3, 3].tolist() == [128] * outputs, instructions


def test_overflow_limit_is_tight() -> None:
    """With a pair that sums to 129, two products no longer fit in 16 bits."""
    assert 255 * (64 + 64) < 2**15 <= 255 * (64 + 65)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LAYERS)
def test_largest_weight_is_exact(name: str, backend: str) -> None:
    """A range of 127 steps on both sides of zero avoids the half step that [-128, 127] takes off the largest weight."""
    build, shape = LAYERS[name]
    model = quantized.quantizable(build().eval())
    for parameter in model.parameters():
        with torch.no_grad():  # makes the largest weight of each channel positive and twice the second
            rows = parameter.flatten(1) if parameter.dim() > 1 else None
            if rows is not None:
                rows[:, 0] = 2 * rows.abs().amax(1) + 0.1
    quantized.fuse_model(model)
    floats = {
        path: module.weight.detach()
        for path, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))
    }
    converted = quantized.quantize(model, [torch.randn(shape)], backend=backend)
    int8_weights = list(weights(converted).values())
    assert len(int8_weights) == len(floats)
    for weight, exact in zip(int8_weights, floats.values(), strict=True):
        assert int(weight.q_per_channel_zero_points().abs().max()) == 0
        steps = weight.q_per_channel_scales().float()
        error = (weight.dequantize() - exact).flatten(1)[:, 0] / steps
        if backend == "x86" and exact[0].numel() > 1:
            # The sum of two weights sets the range, so the largest is rounded like any other.
            assert float(error.abs().max()) <= 0.5 + 1e-3
        else:
            assert float(error.abs().max()) < 1e-2
            assert int(weight.int_repr().max()) == 127


def torch_int8(conv: nn.Conv2d, x: Tensor, backend: str) -> nn.Module:
    """Quantize the convolution with torch's own workflow and the weight observer of its default configuration."""
    observer = PerChannelMinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_channel_symmetric)
    model = torch.ao.quantization.QuantWrapper(copy.deepcopy(conv)).eval()
    model.qconfig = QConfig(HistogramObserver.with_args(reduce_range=False), observer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = torch_prepare(model)
        prepared(x)
        converted = torch_convert(prepared)
    assert isinstance(converted.module, TorchConv2d)
    return converted


def test_largest_weights_are_not_shifted() -> None:
    """Each largest weight is the end of its range; torch's default moves it half a step towards zero."""
    conv, x = nn.Conv2d(8, 512, 1, bias=False), torch.rand(4, 8, 6, 6)
    with torch.no_grad():
        conv.weight[:, 0] = conv.weight[:, 0].abs() + 0.5
    own = quantized.quantize(conv.eval(), [x], backend="onednn").model.weight().dequantize()
    torch.testing.assert_close(own[:, 0], conv.weight[:, 0].detach(), rtol=1e-6, atol=0)

    torch.backends.quantized.engine, engine = "onednn", torch.backends.quantized.engine
    try:
        reference = torch_int8(conv, x, "onednn").module.weight().dequantize()
    finally:
        torch.backends.quantized.engine = engine
    step = conv.weight[:, 0].detach() / 127.5
    torch.testing.assert_close(reference[:, 0], conv.weight[:, 0].detach() - step / 2, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["conv2d", "linear", "sum"])
def test_loading_overflowing_weights_raises(name: str) -> None:
    build, shape = LAYERS[name]
    x = torch.randn(shape)
    model = quantized.quantize(build().eval(), [x], backend="x86")
    expected, state = model(x), model.state_dict()
    key, weight = next(
        (key, value if isinstance(value, Tensor) else value[0])
        for key, value in state.items()
        if (isinstance(value, Tensor) and value.dtype is torch.qint8) or isinstance(value, tuple)
    )
    pair = torch.zeros_like(weight.int_repr())
    pair[:, 0], pair[:, 1] = -64, -65
    scales, zeros = weight.q_per_channel_scales(), weight.q_per_channel_zero_points()
    bad = torch._make_per_channel_quantized_tensor(pair, scales, zeros, 0)
    state[key] = bad if isinstance(state[key], Tensor) else (bad, state[key][1])
    with pytest.raises(ValueError, match=r"has weights made for another backend, whose products overflow on x86"):
        model.load_state_dict(state)
    assert torch.equal(model(x), expected), "the failed load changed the model"
    pair[:, 1] = -64
    good = torch._make_per_channel_quantized_tensor(pair, scales, zeros, 0)
    state[key] = good if isinstance(state[key], Tensor) else (good, state[key][1])
    model.load_state_dict(state)
    assert not torch.equal(model(x), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [0.0, 1e-9])
def test_biases_of_vanishing_filters(size: float, backend: str) -> None:
    """A step of almost zero would let the integer biases of qnnpack overflow."""
    layers = [nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 1), nn.Linear(8, 6)]
    for layer in layers:
        with torch.no_grad():
            layer.weight[: 6 if layer is layers[1] else 2] *= size
            nn.init.uniform_(layer.bias, 1.0, 2.0)
        x = 0.05 * torch.randn((32, 8) if isinstance(layer, nn.Linear) else (8, 4, 6, 6))
        converted = int8(nn.Sequential(layer), x, backend, False)
        expected = layer(x)
        assert (converted(x) - expected).abs().max() <= 0.02 * expected.abs().max()
