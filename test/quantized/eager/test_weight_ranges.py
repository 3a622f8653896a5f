"""Ranges of int8 weights: no sum overflows on x86, none is shifted, the largest weight is exact."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.ao.nn.quantized import Conv2d as TorchConv2d
from torch.ao.quantization import HistogramObserver, PerChannelMinMaxObserver, QConfig
from torch.ao.quantization import convert as convert_by_torch
from torch.ao.quantization import prepare as prepare_by_torch

from torchvision_layers import nn as tnn
from torchvision_layers import quantized

BACKENDS = ("x86", "onednn", "qnnpack")

# Each with weights, and a shape of inputs.
LAYERS = {
    "conv1d": (lambda: tnn.Conv1dNormAct(4, 6), (8, 4, 9)),
    "conv2d": (lambda: tnn.ConvNormAct(4, 6), (8, 4, 9, 8)),
    "conv2d with ReLU6": (lambda: tnn.ConvNormAct(4, 6, activation_layer=nn.ReLU6), (8, 4, 9, 8)),
    "conv2d without norm": (lambda: nn.Conv2d(4, 6, 3), (8, 4, 9, 8)),
    "depthwise": (lambda: tnn.ConvNormAct(4, 4, groups=4), (8, 4, 9, 8)),
    "one weight a channel": (lambda: nn.Conv2d(4, 4, 1, groups=4), (8, 4, 9, 8)),
    "sum": (lambda: tnn.BasicBlock(4, 4), (8, 4, 9, 8)),
    "SiLU": (lambda: tnn.ConvNormAct(4, 6, activation_layer=nn.SiLU), (8, 4, 9, 8)),
    "linear": (lambda: tnn.LinearDropoutAct(8, 6), (32, 8)),
    "linear with norm": (lambda: tnn.LinearDropoutAct(8, 6, norm_layer=nn.BatchNorm1d), (32, 8)),
}
CONV3D = (lambda: tnn.Conv3dNormAct(4, 6), (4, 4, 5, 6, 7))  # of which qnnpack does not tell the weights


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
    """The int8 weights, by their keys."""
    found = {}
    for path, module in model.named_modules():
        if callable(getattr(module, "_weight_bias", None)) and not path.endswith("_packed_params"):
            found[path] = module._weight_bias()[0]
        elif isinstance(getattr(module, "weight", None), Tensor) and module.weight.dtype is torch.qint8:
            found[path] = module.weight
    assert found, "nothing in int8"
    return {path: weight for path, weight in found.items() if weight.is_quantized}


@pytest.mark.parametrize("is_qat", [False, True], ids=["calibrated", "trained"])
@pytest.mark.parametrize("name", [*LAYERS, "conv3d"])
def test_no_two_weights_overflow_on_x86(name: str, is_qat: bool) -> None:
    """Without VNNI the kernels add two products of a byte and a weight in sixteen bits: 255 * 128 fits."""
    build, shape = LAYERS.get(name, CONV3D)
    found = weights(int8(build(), torch.randn(shape), "x86", is_qat))
    for weight in found.values():
        magnitudes = weight.int_repr().int().abs().flatten(1).sort(dim=1, descending=True).values
        pairs = magnitudes[:, :2].sum(1)
        assert int(pairs.max()) <= 128
        assert 255 * int(pairs.max()) < 2**15
        assert int(pairs.min()) >= 126, "no more of the range is given away than that"


def test_without_vnni_a_larger_pair_would_overflow() -> None:
    """Why there is a bound: sums of products of two bytes in sixteen bits."""
    assert 255 * (64 + 64) < 2**15 <= 255 * (64 + 65)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LAYERS)
def test_the_largest_weight_is_exact(name: str, backend: str) -> None:
    """To some rounding of floats: not half a step lower, as with one more step below zero than above."""
    build, shape = LAYERS[name]
    model = quantized.quantizable(build().eval())
    for parameter in model.parameters():
        with torch.no_grad():  # the largest of each channel is positive, and twice the second
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
    found = list(weights(converted).values())
    assert len(found) == len(floats)
    for weight, exact in zip(found, floats.values(), strict=True):
        assert int(weight.q_per_channel_zero_points().abs().max()) == 0
        steps = weight.q_per_channel_scales().float()
        error = (weight.dequantize() - exact).flatten(1)[:, 0] / steps
        if backend == "x86" and exact[0].numel() > 1:
            # The range ends at the sum of the two largest, so it is exact only by chance; it is rounded all the same.
            assert float(error.abs().max()) <= 0.5 + 1e-3
        else:
            assert float(error.abs().max()) < 1e-2
            assert int(weight.int_repr().max()) == 127


def by_torch(conv: nn.Conv2d, x: Tensor, backend: str) -> nn.Module:
    """The same convolution by torch's own flow, with the weight observer of its default configuration."""
    observer = PerChannelMinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_channel_symmetric)
    model = torch.ao.quantization.QuantWrapper(copy.deepcopy(conv)).eval()
    model.qconfig = QConfig(HistogramObserver.with_args(reduce_range=False), observer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = prepare_by_torch(model)
        prepared(x)
        converted = convert_by_torch(prepared)
    assert isinstance(converted.module, TorchConv2d)
    return converted


def test_largest_weights_are_not_shifted() -> None:
    """They are the end of their range, and stay; torch's default takes each a step's half towards zero."""
    conv, x = nn.Conv2d(8, 512, 1, bias=False), torch.rand(4, 8, 6, 6)
    with torch.no_grad():
        conv.weight[:, 0] = conv.weight[:, 0].abs() + 0.5
    ours = quantized.quantize(conv.eval(), [x], backend="onednn").model.weight().dequantize()
    torch.testing.assert_close(ours[:, 0], conv.weight[:, 0].detach(), rtol=1e-6, atol=0)

    torch.backends.quantized.engine, engine = "onednn", torch.backends.quantized.engine
    try:
        theirs = by_torch(conv, x, "onednn").module.weight().dequantize()
    finally:
        torch.backends.quantized.engine = engine
    step = conv.weight[:, 0].detach() / 127.5
    torch.testing.assert_close(theirs[:, 0], conv.weight[:, 0].detach() - step / 2, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["conv2d", "linear", "sum"])
def test_weights_that_overflow_are_not_loaded(name: str) -> None:
    build, shape = LAYERS[name]
    x = torch.randn(shape)
    model = quantized.quantize(build().eval(), [x])
    expected, state = model(x), model.state_dict()
    key, weight = next(
        (key, value if isinstance(value, Tensor) else value[0])
        for key, value in state.items()
        if (isinstance(value, Tensor) and value.dtype is torch.qint8) or isinstance(value, tuple)
    )
    pair = torch.zeros_like(weight.int_repr()).flatten(1)
    pair[:, 0], pair[:, -1] = 64, -65
    scales, zeros = weight.q_per_channel_scales(), weight.q_per_channel_zero_points()
    bad = torch._make_per_channel_quantized_tensor(pair.view_as(weight), scales, zeros, 0)
    state[key] = bad if isinstance(state[key], Tensor) else (bad, state[key][1])
    with pytest.raises(ValueError, match=r"has weights made for another backend, whose products overflow on x86"):
        model.load_state_dict(state)
    assert torch.equal(model(x), expected), "nothing was loaded"
    pair[:, -1] = -64
    good = torch._make_per_channel_quantized_tensor(pair.view_as(weight), scales, zeros, 0)
    state[key] = good if isinstance(state[key], Tensor) else (good, state[key][1])
    model.load_state_dict(state)
    assert not torch.equal(model(x), expected)
