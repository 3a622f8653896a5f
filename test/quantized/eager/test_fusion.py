"""Chains that are fused without a list of names, and modules that must not be fused."""

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from torchvision_layers import nn as tnn
from torchvision_layers import quantized
from torchvision_layers.testing._checks._quantization import decibels


class Stem(nn.Module):
    """The usual first layers of a model, outside any layer of this package."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.bn = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(3, 4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


def names(model: nn.Module) -> list[str]:
    return [type(module).__name__ for module in model.children()]


def test_any_forward_is_fused() -> None:
    """Chains follow the order of calls, not of definition."""
    model = Stem().eval()
    x = torch.randn(2, 3, 8, 8)
    expected = model(x)
    quantized.fuse_model(model)
    assert names(model) == ["Identity", "Identity", "ConvReLU2d"]
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)


def test_fusing_stops_at_unfusable_module() -> None:
    model = tnn.ConvNormAct(4, 8, norm_layer=lambda channels: nn.GroupNorm(2, channels)).eval()
    quantized.fuse_model(model)
    assert names(model) == ["Conv2d", "GroupNorm", "ReLU"]
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.BatchNorm2d(4), nn.ReLU()).eval()
    quantized.fuse_model(plain)
    assert names(plain) == ["Conv2d", "Dropout", "BatchNorm2d", "ReLU"]


def test_module_called_twice_is_not_fused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)
            self.bn = nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.conv(self.conv(x)))

    model = Twice().eval()
    quantized.fuse_model(model)
    assert names(model) == ["Conv2d", "BatchNorm2d"]


def test_norm_called_twice_is_not_fused() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.bn = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.second(self.bn(self.first(x))))

    model = Shared().eval()
    quantized.fuse_model(model)
    assert names(model) == ["Conv2d", "Conv2d", "BatchNorm2d"]


def test_output_with_two_consumers_is_not_fused() -> None:
    class Branch(Stem):
        def forward(self, x: Tensor) -> Tensor:
            features = self.conv(x)
            return self.relu(self.bn(features)) * features.mean()

    model = Branch().eval()
    expected = model(torch.ones(1, 3, 8, 8))
    quantized.fuse_model(model)
    assert names(model) == ["ReLU", "BatchNorm2d", "Conv2d"]
    assert torch.equal(model(torch.ones(1, 3, 8, 8)), expected)


def test_untraceable_forward_is_not_fused() -> None:
    class Branching(Stem):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > 0 else x

    model = Branching().eval()
    quantized.fuse_model(model)
    assert names(model) == ["ReLU", "BatchNorm2d", "Conv2d"]


def test_module_with_hook_is_not_fused() -> None:
    model, outputs = Stem().eval(), []
    model.bn.register_forward_hook(lambda module, args, output: outputs.append(output))
    quantized.fuse_model(model)
    model(torch.randn(1, 3, 8, 8))
    assert names(model) == ["ReLU", "BatchNorm2d", "Conv2d"]
    assert len(outputs) == 1


@pytest.mark.parametrize("is_qat", [False, True])
@pytest.mark.parametrize(("index", "function"), [(1, lambda x: 3 * x), (2, torch.abs)])
def test_module_with_a_forward_of_its_own_is_not_fused(
    index: int, function: Callable[[Tensor], Tensor], is_qat: bool
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    model[index].forward = function  # type: ignore[assignment]
    x = torch.randn(4, 3, 12, 12)
    for batch in ([], [x]) if is_qat else ([x],):
        if is_qat:
            prepared = quantized.prepare_qat(model.train(), *batch)
            output = prepared(x)
            assert decibels(model(x), output) > 20
            int8, expected = quantized.convert(prepared), prepared.eval()(x)
        else:
            int8, expected = quantized.quantize(model.eval(), batch), model(x)
        assert decibels(expected, int8(x)) > 28


def test_user_fuse_model_is_called() -> None:
    class Own(Stem):
        is_qat = None

        def fuse_model(self, is_qat: bool | None = None) -> None:
            self.is_qat = is_qat

    model = nn.Sequential(Own()).eval()
    quantized.fuse_model(model)
    assert model[0].is_qat is False
    assert names(model[0]) == ["ReLU", "BatchNorm2d", "Conv2d"]


@pytest.mark.parametrize("build", [Stem, lambda: quantized.QuantizableConvNormAct(3, 4)], ids=["any model", "twin"])
def test_folding_in_training_mode_raises(build) -> None:
    with pytest.raises(ValueError, match="is_qat must be True to fuse .* in training mode"):
        quantized.fuse_model(build().train(), is_qat=False)


def test_mixed_modes_raise() -> None:
    model = Stem().train()
    model.bn.eval()
    with pytest.raises(ValueError, match="conv, bn, relu must all be in training or all in eval mode"):
        quantized.fuse_model(model)


def test_linear_fuses_across_dropout_only_if_exact() -> None:
    """Dropout commutes with ReLU, but with ReLU6 and norms only in eval mode, as the identity."""
    relu = tnn.LinearDropoutAct(4, 4, dropout=0.5)
    quantized.fuse_model(relu.train())
    assert names(relu) == ["LinearReLU", "Dropout", "Identity"]
    relu6 = tnn.LinearDropoutAct(4, 4, dropout=0.5, activation_layer=nn.ReLU6)
    quantized.fuse_model(relu6.train())
    assert names(relu6) == ["Linear", "Dropout", "ReLU6"]
    quantized.fuse_model(relu6.eval())
    assert names(relu6) == ["FusedReLU6", "Dropout", "Identity"]
    norm = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.BatchNorm1d(4))
    quantized.fuse_model(norm.train())
    assert names(norm) == ["Linear", "Dropout", "BatchNorm1d"]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("norm_layer", [tnn.FrozenBatchNorm2d, torchvision.ops.FrozenBatchNorm2d])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6])
def test_frozen_norm_folds_in_both_modes(activation, norm_layer, training: bool) -> None:
    model = tnn.ConvNormAct(3, 4, norm_layer=norm_layer, activation_layer=activation).train(training)
    nn.init.uniform_(model[1].running_var, 0.2, 2.0)
    nn.init.uniform_(model[1].bias, -1.0, 1.0)
    x = torch.randn(2, 3, 8, 8)
    expected = model(x)
    quantized.fuse_model(model)
    assert names(model)[1:] == ["Identity", "Identity"]
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    converted = quantized.quantize(model.eval(), [x])
    assert {row.runs_in for row in quantized.report(converted).rows} == {"int8"}


def int8_model(model: nn.Module, batch: Tensor, backend: str, is_qat: bool) -> nn.Module:
    if not is_qat:
        return quantized.quantize(model.eval(), [batch], backend=backend)
    prepared = quantized.prepare_qat(model, backend=backend)
    prepared(batch)
    return quantized.convert(prepared)


@pytest.mark.parametrize("backend", ["x86", "onednn", "qnnpack"])
@pytest.mark.parametrize("is_qat", [False, True], ids=["post training", "quantization aware"])
def test_relu6_is_exact(backend: str, is_qat: bool) -> None:
    """No output exceeds 6, and inputs that ReLU6 clamps give exactly 6."""
    layer = tnn.ConvNormAct(1, 1, kernel_size=1, norm_layer=None, activation_layer=nn.ReLU6)
    with torch.no_grad():
        layer[0].weight.fill_(1.0)
        layer[0].bias.fill_(0.0)
    ramp = torch.linspace(-4, 20, 400).reshape(4, 1, 10, 10)
    model = int8_model(layer, ramp, backend, is_qat)
    (conv,) = [row for row in quantized.report(model).rows if row.before == "Conv2d"]
    assert conv.after == "ConvReLU2d"
    output = model(ramp)
    step = 24 / 255  # one scale covers the inputs, [-4, 20]
    assert float(output.max()) == pytest.approx(6.0, abs=1e-6)
    assert bool((output[ramp > 6 + step] == output.max()).all())
    torch.testing.assert_close(output, ramp.clamp(0, 6), rtol=0, atol=step)


class Repeated(nn.Module):
    """Calls a convolution with its norm and activation twice, the second time on much larger values."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(4, 4, 1), *layers)
        nn.init.normal_(self.block[0].weight, std=8.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.block(x))


@pytest.mark.parametrize("backend", ["x86", "onednn", "qnnpack"])
@pytest.mark.parametrize("layers", [[], [nn.BatchNorm2d(4)]], ids=["conv", "conv and norm"])
def test_relu6_of_a_block_that_is_called_twice_is_trained(layers: list[nn.Module], backend: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 4, 8, 8)
    for norm in layers:
        nn.init.constant_(norm.weight, 8.0)  # type: ignore[arg-type]
    model = Repeated(*layers, nn.ReLU6())
    prepared = quantized.prepare_qat(model, x, backend=backend)
    assert float(prepared(x).detach().max()) == pytest.approx(6.0, abs=1e-6)
    int8 = quantized.convert(prepared)
    assert float(int8(x).max()) == pytest.approx(6.0, abs=1e-6)


class SumUpToSix(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.constant_(self.conv.weight, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(self.conv(x) + x)


@pytest.mark.parametrize("backend", ["x86", "onednn", "qnnpack"])
@pytest.mark.parametrize("is_qat", [False, True], ids=["post training", "quantization aware"])
def test_sum_and_relu6_have_the_steps_of_the_relu6(backend: str, is_qat: bool) -> None:
    ramp = torch.linspace(-40, 40, 6400).reshape(1, 1, 80, 80)
    int8 = int8_model(SumUpToSix(), ramp, backend, is_qat)
    addition = int8.get_submodule("model.addition")
    assert addition.scale == pytest.approx(6 / 255, rel=1e-3)
    output = int8(ramp)
    assert float(output.max()) == pytest.approx(6.0, abs=1e-6)
    assert float(output.min()) == 0
    step = 80 / 255  # of each term
    torch.testing.assert_close(output, (2 * ramp).clamp(0, 6), rtol=0, atol=1.1 * step)
