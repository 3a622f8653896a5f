"""Corrected biases cancel the error that rounded weights add to the mean of each channel."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from torchvision_layers import quantized
from torchvision_layers.quantized.eager import workflow


class KeywordCall(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(64, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(input=x)


def positive_inputs(*shape: int) -> Tensor:
    """Inputs far from zero, so that errors of the weights do not cancel."""
    return 3 + torch.rand(*shape)


def nearly_equal_weights(model: nn.Module) -> nn.Module:
    """One large weight per channel, and others that are all rounded in the same direction, by 0.4 steps."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.weight.fill_(0.4 / 64)
                module.weight[:, 0] = 1.0
    return model.eval()


@pytest.mark.parametrize("backend", ["x86", "onednn", "qnnpack"])
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Conv2d(64, 16, 1)), (64, 5, 5)),
        (nn.Sequential(nn.Conv2d(64, 16, 3, padding=1, bias=False)), (64, 5, 5)),
        (nn.Sequential(nn.Conv2d(64, 16, 1), nn.ReLU()), (64, 5, 5)),
        (nn.Sequential(nn.Linear(64, 16), nn.ReLU6()), (64,)),
        (nn.Sequential(nn.Linear(64, 16, bias=False)), (7, 64)),
        (KeywordCall(), (64, 5, 5)),
    ],
    ids=["conv", "without_bias", "with_relu", "linear", "sequence", "by_keyword"],
)
def test_channel_means_match_float(model: nn.Module, shape: tuple[int, ...], backend: str) -> None:
    batches = [positive_inputs(1, *shape), positive_inputs(7, *shape)]  # the first must not count as much as the second
    inputs = torch.cat(batches)
    with torch.no_grad():
        expected = nearly_equal_weights(model)(inputs)
        outputs = quantized.quantize(model, batches, backend=backend)(inputs)
    axes = [axis for axis in range(expected.dim()) if axis != (1 if len(shape) == 3 else expected.dim() - 1)]
    error = (outputs.mean(axes) - expected.mean(axes)).abs() / expected.abs().amax(axes)
    # Uncorrected errors are some percent of the range; the remainder comes from rounding the outputs.
    assert float(error.max()) < 4e-3


@pytest.mark.parametrize("images", [4, 12])
@pytest.mark.parametrize("backend", ["x86", "onednn"])
def test_channel_means_match_float_behind_many_layers(
    backend: str, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clipped activations shift channels too, which shows behind some layers."""
    layers = [nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()) for _ in range(5)]
    model, inputs = nn.Sequential(*layers, nn.Conv2d(8, 8, 1)).eval(), torch.randn(images, 8, 40, 40)

    def error() -> float:
        int8 = quantized.quantize(model, [inputs], backend=backend, ranges=quantized.Percentile(99.0))
        return float((int8(inputs) - model(inputs)).mean((0, 2, 3)).square().mean())

    with torch.no_grad():
        corrected = error()
        monkeypatch.setattr(workflow, "correct_in_turn", lambda *args: None)
        assert corrected < error() / 3


def test_rounded_activations_are_those_of_the_first_eight_images(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval(), torch.randn(12, 3, 9, 9)
    seen: list[list[Tensor]] = []
    original = workflow.correct_in_turn
    monkeypatch.setattr(
        workflow, "correct_in_turn", lambda *args: (seen.append(list(args[1].values())), original(*args))
    )
    kept = batch.clone()
    quantized.quantize(model, [batch, 100 * batch])
    assert torch.equal(batch, kept)
    ((first, last),) = seen
    with torch.no_grad():
        torch.testing.assert_close(first, model[0](batch[:8]).mean((2, 3)), rtol=0, atol=1e-5)
        torch.testing.assert_close(last, model(batch[:8]).mean((2, 3)), rtol=0, atol=1e-5)


def test_layer_that_runs_twice_is_corrected_for_its_weights_only() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(10 * torch.tanh(self.conv(x)))

    model, inputs = Twice().eval(), torch.randn(4, 8, 20, 20)
    with torch.no_grad():
        expected, got = model(inputs), quantized.quantize(model, [inputs])(inputs)
    error = 10 * torch.log10(expected.square().sum() / (got - expected).square().sum())
    assert float(error) > 25


def test_shared_bias_is_corrected_per_module() -> None:
    """The two modules have different inputs, hence different corrections; the float model is unchanged."""
    model = nn.Sequential(nn.Conv2d(64, 64, 1), nn.ReLU(), nn.Conv2d(64, 64, 1))
    model[2].bias = model[0].bias
    nearly_equal_weights(model)
    before = model[0].bias.clone()
    input = positive_inputs(4, 64, 5, 5)
    int8 = quantized.quantize(model, [input])
    assert torch.equal(model[0].bias, before)
    assert model[2].bias is model[0].bias
    with torch.no_grad():
        expected = model(input)
    error = (int8(input).mean((0, 2, 3)) - expected.mean((0, 2, 3))).abs() / expected.abs().amax((0, 2, 3))
    assert float(error.max()) < 8e-3


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("engine", ["eager", "pt2e"])
def test_computed_bias_stays_zero(engine: str, rounding: str) -> None:
    """A norm turns the smallest shift of zero rows, as padding has them, into a vector of length one."""

    class Normalized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.keys = nn.Linear(64, 16)

        def forward(self, x: Tensor) -> Tensor:
            return functional.normalize(functional.linear(x, self.keys.weight, torch.zeros(16)), dim=-1)

    model, inputs = nearly_equal_weights(Normalized()), positive_inputs(4, 8, 64)
    inputs[:, 0] *= -1  # so that the outputs have both signs
    inputs[:, -1] = 0
    int8 = quantized.quantize(model, [inputs], engine=engine, rounding=rounding)
    with torch.no_grad():
        assert not int8(inputs)[:, -1].any()
        assert float((int8(inputs) - model(inputs)).abs().max()) < 0.05


def test_training_is_not_corrected() -> None:
    """Quantization-aware training already learns biases for rounded weights."""
    model = nearly_equal_weights(nn.Sequential(nn.Conv2d(64, 16, 1)))
    prepared = quantized.prepare_qat(model)
    prepared(positive_inputs(4, 64, 5, 5))
    _, bias = quantized.convert(prepared).model[0]._weight_bias()
    assert torch.equal(bias, model[0].bias)
