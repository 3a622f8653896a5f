"""The table of modules with int8 support, compared with torch's kernels."""

import pytest
import torch
import torchvision.ops
from torch import Tensor, nn

from torchvision_layers import nn as tnn
from torchvision_layers import quantized
from torchvision_layers._utils.plain.padding import SamePadding
from torchvision_layers.layers.channel_cap import ChannelCap
from torchvision_layers.layers.positional_conv import PositionMap
from torchvision_layers.quantized.eager.support import _CONVERTED, _FLOAT_FALLBACKS, _PASS_THROUGH

SCALE = 0.05

ARGUMENTS = {
    PositionMap: (nn.Conv2d(2, 8, 3, padding=1, bias=False), False),
    SamePadding: ([3, 3], [2, 2], [1, 1]),
    tnn.FrozenBatchNorm2d: (8,),
    tnn.LayerNorm2d: (8,),
    tnn.LayerScale: (8, 0.5),
    tnn.Permute: ((0, 2, 3, 1),),
    tnn.StochasticDepth: (0.3, "row"),
    nn.AdaptiveAvgPool1d: (2,),
    nn.AdaptiveAvgPool2d: (2,),
    nn.AdaptiveAvgPool3d: (2,),
    nn.AdaptiveMaxPool1d: (2,),
    nn.AdaptiveMaxPool2d: (2,),
    nn.AvgPool1d: (2,),
    nn.AvgPool2d: (2,),
    nn.AvgPool3d: (2,),
    nn.BatchNorm1d: (8,),
    nn.BatchNorm2d: (8,),
    nn.BatchNorm3d: (8,),
    nn.ChannelShuffle: (2,),
    nn.CircularPad1d: (1,),
    nn.CircularPad2d: (1,),
    nn.CircularPad3d: (1,),
    nn.ConstantPad1d: (1, 0.5),
    nn.ConstantPad2d: (1, 0.5),
    nn.ConstantPad3d: (1, 0.5),
    nn.Conv1d: (8, 4, 3),
    nn.Conv2d: (8, 4, 3),
    nn.Conv3d: (8, 4, 3),
    nn.GLU: (1,),
    nn.GroupNorm: (2, 8),
    nn.InstanceNorm1d: (8,),
    nn.InstanceNorm2d: (8,),
    nn.InstanceNorm3d: (8,),
    nn.LayerNorm: (6,),
    nn.Linear: (6, 3),
    nn.LogSoftmax: (1,),
    nn.MaxPool1d: (2,),
    nn.MaxPool2d: (2,),
    nn.MaxPool3d: (2,),
    nn.PixelShuffle: (2,),
    nn.PixelUnshuffle: (2,),
    nn.ReflectionPad1d: (1,),
    nn.ReflectionPad2d: (1,),
    nn.ReflectionPad3d: (1,),
    nn.ReplicationPad1d: (1,),
    nn.ReplicationPad2d: (1,),
    nn.ReplicationPad3d: (1,),
    nn.Softmax: (1,),
    nn.Unflatten: (1, (2, 4)),
    nn.Upsample: (None, 2),
    nn.UpsamplingNearest2d: (None, 2),
    nn.ZeroPad1d: (1,),
    nn.ZeroPad2d: (1,),
    nn.ZeroPad3d: (1,),
    torchvision.ops.FrozenBatchNorm2d: (8,),
    torchvision.ops.Permute: ([0, 2, 3, 1],),
    ChannelCap: (torch.linspace(0.5, 2, 8), 2),
    torchvision.ops.StochasticDepth: (0.3, "row"),
}


def build(cls: type[nn.Module]) -> nn.Module:
    return cls(*ARGUMENTS.get(cls, ())).eval()


def random_input(cls: type[nn.Module]) -> Tensor:
    sizes = {"1d": (6,), "3d": (6, 6, 6)}.get(cls.__name__[-2:], (6, 6))
    return torch.randn(2, 8, *sizes)


def params(classes: set[type[nn.Module]]) -> list[object]:
    return [pytest.param(cls, id=f"{cls.__module__}.{cls.__name__}") for cls in sorted(classes, key=str)]


@pytest.mark.parametrize("cls", params(_PASS_THROUGH))
def test_pass_through_module_accepts_int8(cls: type[nn.Module]) -> None:
    """The output is int8 and within one quantization step of the float result."""
    module = build(cls)
    input = torch.quantize_per_tensor(random_input(cls), SCALE, 100, torch.quint8)
    output = module(input)
    assert output.is_quantized
    torch.testing.assert_close(output.dequantize(), module(input.dequantize()), rtol=0, atol=SCALE)


@pytest.mark.parametrize("cls", params(_CONVERTED))
def test_converted_module_runs_in_int8(cls: type[nn.Module]) -> None:
    module, input = build(cls), random_input(cls)
    model = quantized.quantize(nn.Sequential(module), [input], backend="onednn")
    (row,) = quantized.report(model).rows
    assert (row.path, row.before, row.runs_in) == ("0", cls.__name__, "int8")
    expected = module(input).detach()
    noise = (model(input) - expected).square().mean() / expected.square().mean()
    assert noise < 10 ** (-28 / 10)


@pytest.mark.parametrize("cls", params(_CONVERTED | _FLOAT_FALLBACKS))
def test_state_holds_every_range(cls: type[nn.Module]) -> None:
    module, input = build(cls), random_input(cls)
    model, other = (quantized.quantize(nn.Sequential(module), [x], check=False) for x in (input, 3 * input))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(input), model(input))


@pytest.mark.parametrize("cls", params(_FLOAT_FALLBACKS))
def test_unsupported_module_runs_in_float(cls: type[nn.Module]) -> None:
    module, input = build(cls), random_input(cls)
    model = quantized.quantize(nn.Sequential(module), [input], backend="onednn")
    (row,) = quantized.report(model).rows
    assert row == quantized.ReportRow(
        "0", cls.__name__, f"FloatFallback({cls.__name__})", "float", "has no int8 kernel"
    )
    assert (model(input) - module(input)).abs().mean() < SCALE
