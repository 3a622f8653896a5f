"""RepConv: the folded convolution, in every combination of branches, and the layers of timm."""

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from torchvision_layers import deploy, quantized
from torchvision_layers import nn as tnn
from torchvision_layers.experimental import nn as enn


def stirred(layer: nn.Module) -> nn.Module:
    """The layer in eval mode, with random statistics and affine parameters."""
    with torch.no_grad():
        for module in layer.modules():
            for name in ("weight", "bias", "running_mean", "running_var"):
                value = getattr(module, name, None)
                if isinstance(value, Tensor) and value.dim() == 1:
                    value.uniform_(0.5, 2) if name in ("weight", "running_var") else value.normal_()
    return layer.eval()


def relative_error(output: Tensor, expected: Tensor) -> float:
    return float((output - expected).norm() / expected.norm())


def convolutions(layer: nn.Module) -> list[nn.Module]:
    return [module for module in layer.modules() if isinstance(module, nn.Conv2d)]


@pytest.mark.parametrize("channels", [(6, 6), (6, 9)], ids=str)
@pytest.mark.parametrize("branches", [1, 4])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kernel_size": 1},
        {"kernel_size": (5, 1), "stride": 2},
        {"kernel_size": 5, "dilation": (2, 1), "groups": 3, "padding_mode": "reflect"},
        {"stride": 3, "pointwise": False, "padding_mode": "circular"},
        {"identity": False, "norm_layer": None, "activation_layer": None},
        {"norm_layer": tnn.FrozenBatchNorm2d, "activation_layer": nn.GELU, "padding_mode": "replicate"},
        {"norm_layer": FrozenBatchNorm2d, "pointwise": False},
        {"norm_layer": partial(nn.BatchNorm2d, affine=False), "se_layer": tnn.SqueezeExcitation},
        {"norm_layer": None, "pointwise": False},
    ],
    ids=str,
)
def test_folded_layer_is_one_equal_convolution(channels: tuple[int, int], branches: int, options: dict) -> None:
    """To 1e-5 of the largest value in float32: RepVGG, section 3.3."""
    layer, x = stirred(enn.RepConv(*channels, branches=branches, **options)), torch.randn(2, 6, 11, 13)
    with torch.no_grad():
        expected = layer(x)
        tolerance = 1e-5 * expected.abs().max().item()
        for folded in (layer.folded(), deploy.fold(layer, x)):
            torch.testing.assert_close(folded(x), expected, rtol=0, atol=tolerance)
            attention = 2 if "se_layer" in options else 0
            assert len(convolutions(folded)) == 1 + attention
    assert type(convolutions(folded)[0]) is nn.Conv2d


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_folded_convolution_keeps_dtype_and_layout(dtype: torch.dtype, layout: torch.memory_format) -> None:
    layer = stirred(enn.RepConv(4, 4, dtype=dtype)).to(memory_format=layout)
    (conv,) = convolutions(layer.folded())
    assert conv.weight.dtype == conv.bias.dtype == dtype
    assert conv.weight.is_contiguous(memory_format=layout)
    weight = layer.double().folded()[0].weight
    torch.testing.assert_close(conv.weight, weight.to(dtype), rtol=0, atol=0)  # rounded once


def test_training_mode_and_other_norms_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be in eval mode to be folded, its BatchNorm2d is in.*call eval\(\)"):
        enn.RepConv(4, 4).folded()
    layer = enn.RepConv(4, 4, norm_layer=partial(nn.GroupNorm, 2)).eval()
    with pytest.raises(ValueError, match="norm_layer must scale and shift each channel by constants.*got GroupNorm"):
        layer.folded()
    without_statistics = partial(nn.BatchNorm2d, track_running_stats=False)
    with pytest.raises(ValueError, match="norm_layer must scale and shift.*got BatchNorm2d"):
        enn.RepConv(4, 4, norm_layer=without_statistics).eval().folded()


def test_layers_without_a_folded_form_stay() -> None:
    """Other convolutions compute something else with their weight."""
    layers = [
        enn.RepConv(4, 4, norm_layer=partial(nn.GroupNorm, 2)),
        *(tnn.replace(enn.RepConv(4, 4), nn.Conv2d, conv) for conv in (tnn.WSConv2d, tnn.Conv2dSame)),
    ]
    model = stirred(nn.Sequential(*layers, enn.RepConv(4, 4)))
    for layer in layers[1:]:
        with pytest.raises(ValueError, match=r"convolutions must be nn.Conv2d to be folded, got (WS|)Conv2d"):
            layer.folded()
    x = torch.randn(2, 4, 9, 9)
    with torch.no_grad():
        folded = deploy.fold(model, x)
        expected = model(x)
        assert relative_error(folded(x), expected) < 1e-5
        int8 = quantized.quantize(model, [x])
        assert relative_error(int8(x), expected) < 0.1
    # Standardized weights are computed first, and leave plain convolutions.
    assert [len(convolutions(layer)) for layer in folded] == [2, 1, 2, 1]


def test_branches_where_shapes_allow() -> None:
    """Section 3.1 of RepVGG: the identity needs equal shapes. A pointwise branch needs larger kernels beside it."""
    assert enn.RepConv(4, 4).identity is not None
    assert enn.RepConv(4, 6).identity is enn.RepConv(4, 4, stride=2).identity is None
    assert enn.RepConv(4, 4, kernel_size=1).pointwise is None
    assert enn.RepConv(4, 4, kernel_size=(1, 3)).pointwise is not None
    assert len(enn.RepConv(4, 4, branches=3).convs) == 3


def test_attributes() -> None:
    layer = enn.RepConv(4, 6, stride=2)
    assert (layer.out_channels, layer.reduction) == (6, 2)


def test_trained_layer_still_folds_and_the_original_stays() -> None:
    layer, x = enn.RepConv(4, 4, branches=2), torch.randn(4, 4, 9, 9)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(3):
        layer(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    before = copy.deepcopy(layer.eval().state_dict())
    torch.testing.assert_close(layer.folded()(x), layer(x), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


def test_training_differs_from_one_convolution() -> None:
    """The reason for the branches, MobileOne section 3.3: the gradient of the sum moves the folded weight otherwise."""
    torch.manual_seed(0)
    layer, x = enn.RepConv(4, 4, norm_layer=None, activation_layer=None), torch.randn(2, 4, 6, 6)
    plain = layer.eval().folded().requires_grad_()
    before = plain.weight.detach().clone()
    for model in (layer, plain):
        model(x).square().mean().backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    steps = [model.weight - before for model in (layer.folded(), plain)]
    others = torch.ones(3, 3, dtype=torch.bool)
    others[1, 1] = False
    torch.testing.assert_close(steps[0][..., others], steps[1][..., others])
    torch.testing.assert_close(steps[0][..., 1, 1], 2 * steps[1][..., 1, 1])


@pytest.mark.parametrize("engine", ["eager", "pt2e"])
def test_quantize_joins_the_branches(engine: str) -> None:
    torch.manual_seed(0)
    model = stirred(nn.Sequential(enn.RepConv(3, 8, stride=2), enn.RepConv(8, 8, branches=2, activation_layer=None)))
    x = torch.randn(8, 3, 12, 12)
    int8 = quantized.quantize(model, [x], engine=engine)
    rows = {row.path: row.runs_in for row in quantized.report(int8, [x]).rows if row.before == "Conv2d"}
    assert rows == {"0.conv": "int8", "1": "int8"}
    assert decibels(model(x), int8(x)) >= 30
    assert len(convolutions(model)) == 5  # the model itself did not change


def test_excluded_branch_prevents_joining() -> None:
    model, x = stirred(nn.Sequential(enn.RepConv(3, 8), nn.Conv2d(8, 4, 1))), torch.randn(8, 3, 12, 12)
    int8 = quantized.quantize(model, [x], exclude=["0.pointwise"])
    rows = {row.path: row.runs_in for row in quantized.report(int8).rows if row.before in ("Conv2d", "ConvNormAct")}
    assert rows == {"0.convs.0.0": "int8", "0.pointwise": "float", "1": "int8"}


def test_tolerance_leaves_joined_convolutions_in_float() -> None:
    torch.manual_seed(0)
    model, x = stirred(nn.Sequential(enn.RepConv(3, 8), enn.RepConv(8, 4))), torch.randn(8, 3, 12, 12)
    plain = quantized.report(quantized.quantize(model, [x], backend="x86"), [x])
    int8 = quantized.quantize(model, [x], backend="x86", tolerance=plain.db + 0.5)
    report = quantized.report(int8, [x])
    assert report.db >= plain.db + 0.5
    rows = {row.path: row.runs_in for row in report.rows if row.before == "Conv2d"}
    assert sorted(rows) == ["0.conv", "1.conv"]
    assert sorted(rows.values()) == ["float", "int8"]


def test_a_layer_whose_parts_are_used_is_not_joined() -> None:
    class FirstBranch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rep = enn.RepConv(3, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.rep.convs[0](x)

    torch.manual_seed(0)
    model, x = stirred(FirstBranch()), torch.randn(8, 3, 12, 12)
    assert decibels(model(x), quantized.quantize(model, [x])(x)) >= 30


def test_a_folded_that_computes_something_else_is_found() -> None:
    class Wrong(enn.RepConv):
        def folded(self) -> nn.Module:
            return nn.Conv2d(self.in_channels, self.out_channels, 3, padding=1)

    with pytest.raises(RuntimeError, match=r"a folded\(\) computes something else"):
        quantized.quantize(nn.Sequential(Wrong(3, 4)), [torch.randn(4, 3, 8, 8)])


def test_quantization_aware_training_keeps_the_branches() -> None:
    model, x = enn.RepConv(3, 8), torch.randn(4, 3, 8, 8)
    prepared = quantized.prepare_qat(model, x, backend="x86")
    for _ in range(2):
        prepared(x).mean().backward()
    int8 = quantized.convert(prepared)
    assert [row.path for row in quantized.report(int8).rows if row.before == "Conv2d"] == [
        "convs.0.0",
        "pointwise.0",
    ]


def decibels(expected: Tensor, output: Tensor) -> float:
    return 10 * (expected.square().sum() / (expected - output).square().sum()).log10().item()
