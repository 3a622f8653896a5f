"""Padding as in TensorFlow: the layer beside timm's, in blocks, folded, in ONNX and in int8."""

from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import timm.layers
import torch
from torch import Tensor, nn

from torchvision_layers import deploy, quantized
from torchvision_layers import nn as tnn
from torchvision_layers.testing._checks._quantization import decibels


def stirred(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize("kernel_size", [1, 2, 3, 5, (3, 4)])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_equals_timm(kernel_size: Any, stride: int, dilation: int) -> None:
    ours = tnn.Conv2dSame(4, 6, kernel_size, stride, dilation=dilation, groups=2)
    theirs = timm.layers.Conv2dSame(4, 6, kernel_size, stride, dilation=dilation, groups=2)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    for size in ((1, 1), (7, 8), (12, 15)):
        x = torch.randn(2, 4, *size)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)


def test_even_images_are_padded_at_the_end() -> None:
    """Padding on both sides, as in torch, would sample other pixels."""
    conv = tnn.Conv2dSame(1, 1, 3, stride=2, bias=False)
    nn.init.ones_(conv.weight)
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert conv(image).flatten().tolist() == [45, 39, 66, 50]


@pytest.mark.parametrize(
    "block",
    [
        partial(tnn.DepthwiseSeparableConv, 8, 12, stride=2),
        partial(tnn.InvertedResidual, 8, 12, 2, 2),
        partial(tnn.MBConv, 8, 12, 5, 2, se_layer=None, activation_layer=nn.ReLU6),
        partial(tnn.FusedMBConv, 8, 12, 3, 2, activation_layer=nn.ReLU),
        partial(tnn.BasicBlock, 8, 12, 2),
        partial(tnn.ConvNormAct, 8, 12, 4, 2, padding="same"),
    ],
    ids=lambda block: block.func.__name__,
)
def test_blocks(block: Any) -> None:
    """They round the size up, fold their norms, and run in int8 without a norm or convolution in float."""
    model = stirred(block(conv_layer=tnn.Conv2dSame))
    x = torch.randn(4, 8, 9, 14)
    assert model(x).shape == (4, 12, 5, 7)
    folded = deploy.fold(model, x)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    int8 = quantized.quantize(model, [x])
    assert decibels(model(x), int8(x)) > 30
    rows = [row for row in quantized.report(int8).rows if row.before in ("Conv2d", "BatchNorm2d")]
    assert {row.runs_in for row in rows} == {"int8"}
    assert all(row.fused_with for row in rows if row.before == "BatchNorm2d")


class PadInModule(nn.Sequential):
    """The padding for even images as a module of its own."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any, **others: Any) -> None:
        others.pop("padding")
        total = kernel_size[0] - stride[0]
        pad = nn.ZeroPad2d((total // 2, total - total // 2) * 2)
        super().__init__(pad, nn.Conv2d(in_channels, out_channels, kernel_size, stride, **others))


def network(conv_layer: Any) -> nn.Module:
    torch.manual_seed(0)
    block = partial(tnn.ConvNormAct, activation_layer=nn.ReLU6, conv_layer=conv_layer)
    layers = [block(3, 16, stride=2), block(16, 16, 5, 2, groups=16), tnn.ConvNormAct(16, 24, 1), block(24, 24, 3, 2)]
    return stirred(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10)))


@pytest.mark.parametrize(("engine", "backend"), [("eager", "x86"), ("eager", "onednn"), ("pt2e", "onnxruntime")])
def test_padding_as_a_module_costs_nothing_in_int8(engine: str, backend: str) -> None:
    """Within 0.3 dB of the layer."""
    x = torch.randn(16, 3, 32, 32)
    results = []
    for conv_layer in (tnn.Conv2dSame, PadInModule):
        model = network(conv_layer)
        int8 = quantized.quantize(model, [x], engine=engine, backend=backend)
        results.append((model(x), int8(x)))
    torch.testing.assert_close(results[1][0], results[0][0])
    noise = [decibels(*result) for result in results]
    assert min(noise) > 25
    assert noise[1] == pytest.approx(noise[0], abs=0.3)


def test_padding_keeps_the_range_of_its_input_in_graphs() -> None:
    """Padded images are not rounded twice, and a lowered graph pads integers."""
    model, x = network(tnn.Conv2dSame), torch.randn(8, 3, 32, 32)
    int8 = quantized.quantize(model, [x], engine="pt2e", backend="onnxruntime")
    pads = [node for node in int8.body.graph.nodes if str(node.target).startswith("aten.pad")]
    assert len(pads) == 3
    for node in pads:
        (quantize,) = node.users
        assert quantize.args[1:] == node.args[0].args[1:]
    assert {row.runs_in for row in quantized.report(int8).rows if row.before == "Conv2dSame"} == {"int8"}
    lowered = deploy.lower(int8, x)
    assert "constant_pad_nd(quantize" in str(lowered)
    assert decibels(int8(x), lowered(x)) > 40


@pytest.mark.parametrize("is_int8", [False, True])
def test_onnx_at_other_sizes(is_int8: bool, tmp_path: Path) -> None:
    model: Any = network(tnn.Conv2dSame)
    x = torch.randn(4, 3, 32, 32)
    if is_int8:
        model = quantized.quantize(model, [x], engine="pt2e", backend="onnxruntime", dynamic_sizes=True)
    deploy.export(model, x, tmp_path / "model.onnx", format="onnx-qdq" if is_int8 else "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for shape in ((1, 3, 32, 32), (3, 3, 27, 40), (2, 3, 33, 21)):
        image = torch.randn(shape)
        (output,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
        with torch.no_grad():
            expected = model(image)
        assert decibels(expected, Tensor(output)) > (35 if is_int8 else 100)
