"""Corrected biases of graphs cancel the error that rounded weights add to the mean of each channel."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from torchvision_layers import quantized
from torchvision_layers.quantized.bias_correction import significant_mean
from torchvision_layers.quantized.pt2e import workflow

from ._support import FunctionModule, call_nodes


def positive_inputs(*shape: int) -> Tensor:
    """Inputs far from zero, so that errors of the weights do not cancel."""
    return 3 + torch.rand(*shape)


@torch.no_grad()
def nearly_equal_weights(model: nn.Module) -> nn.Module:
    """One large weight per channel, and others that are all rounded in the same direction, by 0.4 steps."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.fill_(0.4 / 127)
            parameter[:, 0] = 1.0
    return model.eval()


def channel_errors(got: Tensor, expected: Tensor, is_image: bool) -> Tensor:
    """Differences of the means of channels, relative to the largest value of the channel."""
    axes = [axis for axis in range(expected.dim()) if axis != (1 if is_image else expected.dim() - 1)]
    return (got.mean(axes) - expected.mean(axes)).abs() / expected.abs().amax(axes)


def functional_layers(module: nn.Module, x: Tensor) -> Tensor:
    y = functional.conv2d(x, module.weight, module.bias, padding=1)
    return functional.conv2d(y, module.weight, module.bias, padding=1)


class OwnParameters(FunctionModule):
    def __init__(self) -> None:
        super().__init__(functional_layers)
        self.weight, self.bias = nn.Parameter(torch.randn(16, 16, 3, 3)), nn.Parameter(torch.randn(16))


MODELS = {
    "conv": (lambda: nn.Conv2d(16, 8, 1), (16, 5, 6)),
    "padded": (lambda: nn.Conv2d(16, 8, (3, 5), padding=(1, 2), bias=False), (16, 7, 6)),
    "strided": (lambda: nn.Conv2d(16, 8, 3, (2, 1), (0, 3), (1, 2), bias=False), (16, 9, 8)),
    "grouped": (lambda: nn.Conv2d(16, 8, 3, padding=1, groups=4), (16, 7, 6)),
    "conv1d": (lambda: nn.Conv1d(16, 8, 3, padding=2), (16, 9)),
    "conv3d": (lambda: nn.Conv3d(8, 8, 3, padding=1), (8, 3, 4, 5)),
    "relu": (lambda: nn.Sequential(nn.Conv2d(16, 8, 3), nn.ReLU()), (16, 7, 6)),
    "norm": (lambda: nn.Sequential(nn.Conv2d(16, 8, 3, bias=False), nn.BatchNorm2d(8)), (16, 7, 6)),
    "linear": (lambda: nn.Sequential(nn.Linear(16, 8), nn.ReLU()), (16,)),
    "sequence": (lambda: nn.Linear(16, 8, bias=False), (7, 16)),
    "called twice": (lambda: FunctionModule(lambda m, x: m.fc(m.fc(x)), fc=nn.Linear(16, 16)), (7, 16)),
    "own parameters": (OwnParameters, (16, 5, 6)),
}


@pytest.mark.parametrize("name", MODELS)
def test_channel_means_match_float(name: str) -> None:
    build, shape = MODELS[name]
    model = nearly_equal_weights(build())
    batches = [positive_inputs(1, *shape), positive_inputs(7, *shape)]  # the first must not count as much as the second
    inputs = torch.cat(batches)
    with torch.no_grad():
        expected, got = model(inputs), quantized.quantize(model, batches, engine="pt2e")(inputs)
    # Uncorrected errors are some percent of the range.
    assert (
        float(channel_errors(got, expected, is_image=name not in ("linear", "sequence", "called twice")).max()) < 4e-3
    )


def test_channel_means_match_float_behind_many_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounded activations shift channels too, which shows behind some layers."""
    layers = [nn.Sequential(nn.Conv2d(8, 8, 3), nn.Tanh()) for _ in range(5)]
    model, inputs = nn.Sequential(*layers, nn.Conv2d(8, 8, 1)).eval(), torch.randn(4, 8, 40, 40)
    with torch.no_grad():
        expected = model(inputs)
        corrected = quantized.quantize(model, [inputs], engine="pt2e")(inputs)
        monkeypatch.setattr(workflow, "correct_int8_biases", lambda *args: None)
        uncorrected = quantized.quantize(model, [inputs], engine="pt2e")(inputs)
    errors = [float(channel_errors(got, expected, is_image=True).square().mean()) for got in (corrected, uncorrected)]
    assert errors[0] < errors[1] / 2


@pytest.mark.parametrize("count", [18, 2000])
def test_correction_shrinks_by_chance(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    noise, shifts = torch.randn(count, 300, generator=generator), torch.randn(300, generator=generator)
    assert float(significant_mean(noise).square().mean()) < 0.1 / count, "a tenth of the variance of a mean"
    got = significant_mean(noise + shifts)
    assert float((got - shifts).square().mean()) < 1.2 / count
    assert not significant_mean(shifts[None]).any(), "one value says nothing about its error"


def test_shared_bias_is_corrected_per_layer() -> None:
    """Layers with one bias have different inputs, hence different corrections; the float model is unchanged."""
    model = nn.Sequential(nn.Conv2d(16, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 1))
    model[2].bias = model[0].bias
    nearly_equal_weights(model)
    before, inputs = model[0].bias.clone(), positive_inputs(4, 16, 5, 5)
    graph = quantized.quantize(model, [inputs], engine="pt2e")
    assert torch.equal(model[0].bias, before)
    assert model[2].bias is model[0].bias
    with torch.no_grad():
        assert float(channel_errors(graph(inputs), model(inputs), is_image=True).max()) < 4e-3
    first, second = (node.args[2] for node in call_nodes(graph, "conv2d"))
    assert first.target != second.target


def test_state_of_shared_bias_is_loaded() -> None:
    model = nearly_equal_weights(OwnParameters())
    graph, other = (
        quantized.quantize(model, [scale * positive_inputs(2, 16, 5, 5)], engine="pt2e") for scale in (1, 3)
    )
    x = positive_inputs(2, 16, 5, 5)
    assert not torch.equal(graph(x), other(x))
    assert "bias" not in graph.state_dict(), "no layer reads the shared bias any more"
    other.load_state_dict(graph.state_dict(), strict=True)
    assert torch.equal(graph(x), other(x))


def test_bias_that_depends_on_the_input_is_left_alone() -> None:
    model = FunctionModule(lambda m, x: functional.linear(x, m.fc.weight, x.mean((0, 1))[:8]), fc=nn.Linear(16, 8))
    inputs = positive_inputs(4, 7, 16)
    graph = quantized.quantize(model.eval(), [inputs], engine="pt2e")
    assert graph(inputs).shape == model(inputs).shape


def test_training_is_not_corrected() -> None:
    """Quantization-aware training already learns biases for rounded weights."""
    model = nearly_equal_weights(nn.Sequential(nn.Conv2d(16, 8, 1)))
    prepared = quantized.prepare_qat(model, positive_inputs(4, 16, 5, 5), engine="pt2e")
    prepared(positive_inputs(4, 16, 5, 5))
    assert torch.equal(quantized.convert(prepared).state_dict()["0.bias"], model[0].bias)


@pytest.mark.parametrize("images", [8, 9])
def test_float_outputs_come_from_the_first_run(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small first batch runs once in float; of a large one, the first images run again."""
    model, batch = (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1)).eval(),
        positive_inputs(images, 3, 8, 8),
    )
    seen = []
    correct = workflow.correct_int8_biases
    monkeypatch.setattr(
        workflow,
        "correct_int8_biases",
        lambda module, expected, tensors: seen.append(expected) or correct(module, expected, tensors),
    )
    runs = []
    run = workflow.float_outputs
    monkeypatch.setattr(workflow, "float_outputs", lambda *args: runs.append(args) or run(*args))
    quantized.quantize(model, [batch], engine="pt2e", backend="x86")
    assert len(runs) == (images > 8)
    (first, _), (last, _) = seen[0].values()
    torch.testing.assert_close(first, model[0](batch[:8]).mean((2, 3)), rtol=0, atol=1e-5)
    torch.testing.assert_close(last, model(batch[:8]).mean((2, 3)), rtol=0, atol=1e-1)


def test_positions_of_an_image_count_once() -> None:
    """Two images, each shifted as a whole, say little about the mean."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(3 if i == 0 else 16, 16, 3), nn.ReLU6()) for i in range(4)]
    model, levels = nn.Sequential(*layers, nn.Conv2d(16, 8, 1)).eval(), 3 * torch.randn(64, 3, 1, 1)
    images = levels + 0.1 * torch.randn(64, 3, 24, 24)
    with torch.no_grad():
        expected = model(images[8:])
        corrected = quantized.quantize(model, [images[:2], images], engine="pt2e")(images[8:])
        uncorrected_graph = quantized.quantize(model, [images], engine="pt2e")(images[8:])
    first, second = ((got - expected).square().mean() for got in (corrected, uncorrected_graph))
    assert float(first) < 1.3 * float(second)


def test_variance_is_that_of_all_channels() -> None:
    values = 5 + torch.randn(30, 7, generator=torch.Generator().manual_seed(0))
    mean = values.mean(0)
    expected = mean * (1 - values.var(0).mean() / 30 / mean.square().mean())
    torch.testing.assert_close(significant_mean(values), expected)
