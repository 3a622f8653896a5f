"""Models that combine our layers with user-defined forwards, containers and modules: no silent errors."""

import pickle

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import nn as tnn
from torchvision_layers import quantized
from torchvision_layers.testing._checks._quantization import decibels


def features() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), tnn.ConvNormAct(4, 4), nn.Conv2d(4, 2, 1))


class ReadsInside(nn.Module):
    """Iterates over a container and uses an intermediate output."""

    def __init__(self) -> None:
        super().__init__()
        self.features = features()

    def forward(self, x: Tensor) -> Tensor:
        mean = 0.0
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i == 0:
                mean = x.mean()
        return x + mean


class Slice(ReadsInside):
    def forward(self, x: Tensor) -> Tensor:
        return self.features[:2](x)


class PartialCall(ReadsInside):
    def forward(self, x: Tensor) -> Tensor:
        return self.features[3][0](self.features[0](x))


class UntraceablePartialCall(ReadsInside):
    def forward(self, x: Tensor) -> Tensor:
        return self.features[0](x) if x.sum() < 1e9 else self.features(x)


class ReadsWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.relu = nn.Linear(4, 4), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.fc(x)) * self.fc.weight.mean()


class Concatenates(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = tnn.ConvNormAct(3, 4), tnn.ConvNormAct(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.left(x), self.right(x)], dim=1)


class StoresOutput(ReadsInside):
    def forward(self, x: Tensor) -> Tensor:
        self.last = self.features(x)
        return self.last


def with_running_stats(model: nn.Module) -> nn.Module:
    """Set running statistics and biases so that the batch norms are far from the identity."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_var, 0.2, 2.0)
            nn.init.uniform_(module.running_mean, -1.0, 1.0)
            nn.init.uniform_(module.bias, -1.0, 1.0)
    return model.eval()


IMAGES = torch.randn(4, 3, 8, 8)


@pytest.mark.parametrize("cls", [ReadsInside, Slice, PartialCall, StoresOutput])
def test_fusing_keeps_results_of_partial_calls(cls: type[nn.Module]) -> None:
    model = with_running_stats(cls())
    expected = model(IMAGES)
    quantized.fuse_model(model)
    torch.testing.assert_close(model(IMAGES), expected, rtol=1e-5, atol=1e-5)


def test_untraceable_partial_call_raises() -> None:
    with pytest.raises(RuntimeError, match="whose result changed when the model was rewritten and fused"):
        quantized.quantize(with_running_stats(UntraceablePartialCall()), [IMAGES])


def test_weight_read_by_forward_is_unchanged() -> None:
    model, x = ReadsWeight().eval(), torch.randn(2, 4)
    expected = model(x)
    quantized.fuse_model(model)
    assert torch.equal(model(x), expected)


def test_tracing_leaves_no_attributes() -> None:
    model = with_running_stats(StoresOutput())
    quantized.fuse_model(model)
    assert not hasattr(model, "last")
    pickle.dumps(model)


def test_concatenation_is_int8() -> None:
    model = nn.Sequential(nn.Identity(), Concatenates()).eval()
    converted = quantized.quantize(model, [IMAGES])
    assert decibels(model(IMAGES), converted(IMAGES)) >= 30
    assert {row.runs_in for row in quantized.report(converted).rows if row.path.startswith("1.")} == {"int8"}


def test_norm_after_linear_on_sequences_is_not_folded() -> None:
    """On 3-dimensional inputs nn.BatchNorm1d normalizes the second dimension, not the features of the linear layer."""
    with pytest.raises(ValueError, match=r"input must have 2 dimensions with norm_layer=nn.BatchNorm1d, got 3"):
        tnn.LinearDropoutAct(5, 4, norm_layer=nn.BatchNorm1d)(torch.randn(2, 4, 5))
    model = with_running_stats(nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(4)))
    x = torch.randn(2, 4, 5)
    expected = model(x)
    quantized.fuse_model(model)
    assert torch.equal(model(x), expected)
    with pytest.raises(RuntimeError, match="whose result changed when the model was rewritten and fused"):
        quantized.quantize(
            with_running_stats(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))), [torch.randn(2, 4, 5)]
        )


def test_second_fusing_changes_nothing() -> None:
    model = with_running_stats(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)))
    quantized.fuse_model(model)
    quantized.fuse_model(model)
    assert [type(module).__name__ for module in model] == ["Conv2d", "Identity", "BatchNorm2d"]


def test_final_activation_keeps_hooks_and_can_be_replaced() -> None:
    block, outputs = tnn.BasicBlock(3, 3).eval(), []
    block.act.register_forward_hook(lambda module, args, output: outputs.append(output))
    twin = quantized.quantizable(block)
    quantized.fuse_model(twin)
    twin(IMAGES)
    assert len(outputs) == 1
    twin = quantized.QuantizableBasicBlock(3, 3).eval()
    twin.act = nn.SiLU()
    expected = twin(IMAGES)
    twin.fuse_model()
    torch.testing.assert_close(twin(IMAGES), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(3, 4, 3, padding="same"),
        nn.Conv2d(3, 4, 3, padding="valid"),
        nn.Conv2d(3, 4, 2, padding="same"),
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
        nn.BatchNorm2d(3, affine=False),
        nn.BatchNorm2d(3, track_running_stats=False),
        nn.Upsample(scale_factor=2, mode="bicubic"),
        tnn.ConvNormAct(3, 4, padding="same"),
    ],
    ids=str,
)
# For asymmetric "same" padding torch copies the input.
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("is_qat", [False, True], ids=["post training", "quantization aware"])
def test_arguments_without_int8_kernel_are_close_to_float(module: nn.Module, is_qat: bool) -> None:
    """Such modules run as float fallbacks or with equivalent arguments."""
    model = nn.Sequential(nn.Identity(), module).eval()
    if is_qat:
        prepared = quantized.prepare_qat(model)
        prepared(IMAGES)
        converted, expected = quantized.convert(prepared), prepared.eval()(IMAGES)
    else:
        converted, expected = quantized.quantize(model, [IMAGES]), model(IMAGES)
    error = (converted(IMAGES) - expected).abs().max() / expected.abs().max()
    assert error < 0.05


def test_relu6_inside_float_fallback() -> None:
    class Gamma(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma, self.body = nn.Parameter(torch.ones(())), tnn.InvertedResidual(3, 3, 1, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.gamma * self.body(x)

    model = nn.Sequential(tnn.ConvNormAct(3, 3), Gamma()).eval()
    converted = quantized.quantize(model, [IMAGES], allow_float=True)
    assert (converted(IMAGES) - model(IMAGES)).abs().max() < 0.1


class Gated(nn.Module):
    """A user-defined layer that multiplies tensors."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.block = tnn.ConvNormAct(in_channels, out_channels)

    def forward(self, input: Tensor) -> Tensor:
        return self._gate(self.block(input))

    def _gate(self, output: Tensor) -> Tensor:
        return output * output.sigmoid()


def test_user_defined_twin() -> None:
    class QuantizableGated(quantized.QuantizableLayer, Gated):
        float_class = Gated

        def _add_observed_ops(self) -> None:
            self.skip_mul = torch.ao.nn.quantized.FloatFunctional()

        def _gate(self, output: Tensor) -> Tensor:
            return self.skip_mul.mul(output, output.sigmoid())

    model = nn.Sequential(Gated(3, 4)).eval()
    assert type(quantized.quantizable(model).model[0]) is QuantizableGated
    converted = quantized.quantize(model, [IMAGES])
    assert (converted(IMAGES) - model(IMAGES)).abs().max() < 0.1


class PlainAddition(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


def test_plain_addition_is_trained_in_int8() -> None:
    prepared = quantized.prepare_qat(PlainAddition())
    prepared(IMAGES)
    converted = quantized.convert(prepared)
    assert decibels(prepared.eval()(IMAGES).detach(), converted(IMAGES)) >= 30
    assert [row.runs_in for row in quantized.report(converted).rows] == ["int8", "int8"]


def test_report_names_fused_modules_across_containers() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)])

        def forward(self, x: Tensor) -> Tensor:
            return self.layers[1](self.layers[0](x))

    model = quantized.quantize(nn.Sequential(Listed()).eval(), [IMAGES])
    assert [row.why for row in quantized.report(model).rows] == ["has an int8 form", "fused into 0.layers.0"]
    (row,) = quantized.report(quantized.quantize(nn.Conv2d(3, 4, 1), [IMAGES])).rows
    assert row.runs_in == "int8"
