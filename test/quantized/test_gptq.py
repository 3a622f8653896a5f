"""Rounding by GPTQ: the algorithm as written in the paper, measured second moments, and less error in int8 models."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchvision_layers import nn as tnn
from torchvision_layers import quantized
from torchvision_layers.quantized import gptq
from torchvision_layers.quantized.gptq import InputMoments, round_columns


def samples(columns: int, count: int, groups: int = 1) -> Tensor:
    """Correlated inputs, of shape (groups, columns, count)."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(groups, columns, columns, generator=generator) @ torch.randn(
        groups, columns, count, generator=generator
    )
    return (mixed + 2 * torch.randn(groups, 1, count, generator=generator)).double()


def moments_of(x: Tensor) -> Tensor:
    return x @ x.mT / x.shape[-1]


def reference(weights: np.ndarray, moments: np.ndarray, damping: float) -> np.ndarray:
    """Equations 2 and 3 of the paper, with the inverse Hessian of the columns that are left computed each time."""
    order = np.argsort(-np.diag(moments))
    weights, moments = weights[:, order], moments[order][:, order]
    hessian = moments + damping * np.diag(moments).mean() * np.eye(len(moments))
    for column in range(weights.shape[1]):
        inverse = np.linalg.inv(hessian[column:, column:])
        rounded = np.clip(np.round(weights[:, column]), -127, 127)
        error = (weights[:, column] - rounded) / inverse[0, 0]
        weights[:, column:] -= error[:, None] * inverse[0]
        weights[:, column] = rounded
    return weights[:, np.argsort(order)]


@pytest.mark.parametrize("block", [1, 5, 128])
def test_rounding_is_that_of_the_paper(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gptq, "_BLOCK", block)
    moments = moments_of(samples(12, 60)).expand(3, 12, 12) * torch.tensor([1.0, 2.0, 5.0])[:, None, None]
    weights = 20 * torch.randn(3, 7, 12, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    got = round_columns(weights, [moments], 127)
    for group in range(3):
        expected = reference(weights[group].numpy(), moments[group].numpy(), gptq._DAMPING)
        np.testing.assert_array_equal(got[group].numpy(), expected)


def test_error_is_between_the_nearest_and_the_best() -> None:
    """The best is found by trying all 2 ** 6 ways to round a row up or down."""
    moments = moments_of(samples(6, 100))[0]
    weights = 9 * torch.randn(30, 6, dtype=torch.double, generator=torch.Generator().manual_seed(2))

    def error(rounded: Tensor) -> Tensor:
        return torch.einsum("ri,ij,rj->r", rounded - weights, moments, rounded - weights)

    choices = [weights.floor() + torch.tensor(ups) for ups in itertools.product((0.0, 1.0), repeat=6)]
    best = torch.stack([error(choice) for choice in choices]).amin(0).sum()
    learned, nearest = error(round_columns(weights[None], [moments[None]], 127)[0]).sum(), error(weights.round()).sum()
    assert learned < 0.7 * nearest
    assert learned < 2 * best


LAYERS = {
    "conv2d": (nn.Conv2d(4, 6, 3, padding=1), (4, 9, 8)),
    "strided": (nn.Conv2d(4, 6, (3, 2), (2, 1), (0, 2), (1, 2)), (4, 9, 8)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (4, 9, 8)),
    "depthwise": (nn.Conv2d(4, 8, 3, padding=1, groups=4), (4, 9, 8)),
    "conv1d": (nn.Conv1d(4, 6, 3, padding=2), (4, 9)),
    "conv3d": (nn.Conv3d(2, 6, (1, 3, 2)), (2, 4, 5, 4)),
    "linear": (nn.Linear(8, 6), (8,)),
    "sequence": (nn.Linear(8, 6), (5, 8)),
}


def input_moments(layer: nn.Module) -> InputMoments:
    if isinstance(layer, nn.Linear):
        return InputMoments()
    return InputMoments(layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups)


def patches(layer: nn.Module, x: Tensor) -> Tensor:
    """The columns that the weights multiply, of shape (columns, patches), by convolutions with one-hot kernels."""
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1]).T
    columns = layer.in_channels * layer.weight[0, 0].numel()
    kernels = torch.eye(columns).reshape(columns, layer.in_channels, *layer.kernel_size)
    convolve = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[x.dim()]
    return convolve(x, kernels, None, layer.stride, layer.padding, layer.dilation).movedim(1, 0).flatten(1)


@pytest.mark.parametrize("elements", [1, 2**24])
@pytest.mark.parametrize("name", LAYERS)
def test_moments_are_those_of_the_patches(name: str, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gptq, "_ELEMENTS", elements)
    layer, shape = LAYERS[name]
    batches = [torch.randn(1, *shape), torch.randn(3, *shape)]
    measured = input_moments(layer)
    for batch in batches:
        measured(batch)
    rows = torch.cat([patches(layer, batch) for batch in batches], 1)
    expected = torch.stack([part @ part.T for part in rows.chunk(getattr(layer, "groups", 1))])
    torch.testing.assert_close(measured._moments[0], expected, rtol=1e-4, atol=1e-4)


def smooth_images(*shape: int) -> Tensor:
    """Positive images whose pixels and channels are alike, as activations are."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    for dim in range(1, x.dim()):
        x = x.cumsum(dim) / x.shape[dim] ** 0.5
    return (x - x.amin()) / x.std()


@pytest.mark.parametrize(
    ("engine", "backend"),
    [("eager", "onednn"), ("eager", "x86"), ("eager", "qnnpack"), ("pt2e", "x86"), ("pt2e", "onnxruntime")],
)
@pytest.mark.parametrize("name", ["conv2d", "grouped", "depthwise", "conv1d", "linear", "sequence"])
def test_learned_weights_have_less_error(name: str, engine: str, backend: str) -> None:
    """The weights are compared in float: the mean error of each channel, which biases correct, does not count."""
    layer, shape = LAYERS[name]
    batches = [smooth_images(6, *shape), smooth_images(10, *shape)]
    rows, errors = torch.cat([patches(layer, batch) for batch in batches], 1), {}
    for rounding in ("nearest", "gptq"):
        int8 = quantized.quantize(
            nn.Sequential(layer).eval(), batches, engine=engine, backend=backend, rounding=rounding, check=False
        )
        error = int8_weight(int8) - layer.weight.detach()
        groups = getattr(layer, "groups", 1)
        shifts = torch.stack([e.flatten(1) @ r for e, r in zip(error.chunk(groups), rows.chunk(groups), strict=True)])
        errors[rounding] = float(shifts.var(-1).sum())
    assert errors["gptq"] < 0.8 * errors["nearest"]


def int8_weight(model: nn.Module) -> Tensor:
    """The weight of the only layer, in float."""
    if isinstance(model, quantized.QuantizableGraph):
        state = model.state_dict()
        (weight,) = (value for value in state.values() if value.dtype is torch.int8)
        (steps,) = (v for k, v in state.items() if "scale" in k and k != "activation_scales")
        return weight.float() * steps.float().reshape(-1, *[1] * (weight.dim() - 1))
    module = model.model[0]
    weight = module.weight if isinstance(getattr(module, "weight", None), Tensor) else module._weight_bias()[0]
    return weight.dequantize().reshape(len(weight), *weight.shape[1:])


@pytest.mark.parametrize("groups", [1, 16])
def test_pairs_are_bounded_on_x86(groups: int) -> None:
    conv = nn.Conv2d(16, 16, 3, groups=groups)  # the grouped one moves to oneDNN, which adds any two weights
    int8 = quantized.quantize(nn.Sequential(conv).eval(), [smooth_images(8, 16, 9, 8)], backend="x86", rounding="gptq")
    weight = int8.model[0]._weight_bias()[0].int_repr().int().movedim(1, -1).flatten(1)
    for channel in torch.cat([weight, -weight]).clamp(min=0):
        ordered = channel.sort(descending=True).values if groups > 1 else channel
        assert int(F.pad(ordered, (0, len(ordered) % 2)).view(-1, 2).sum(1).max()) <= 128


def test_weights_of_many_inputs_are_rounded_in_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is proportional to the weights; correlations within a span still count."""
    layer, batch = nn.Linear(40, 10), smooth_images(300, 40)
    weights = layer.weight.detach().double()[None] * 100
    exact = InputMoments()
    exact(batch)
    monkeypatch.setattr(gptq, "_SPAN", 16)
    spans = InputMoments()
    spans(batch)
    assert [moments.shape[-1] for moments in spans._moments] == [16, 16, 8]
    covariance, errors = torch.cov(batch.T.double()), []
    for rounded in (weights[0].round(), spans.round_steps(weights[0], 127)):
        errors.append(float(torch.einsum("ri,ij,rj->", rounded - weights[0], covariance, rounded - weights[0])))
    assert errors[1] < 0.5 * errors[0]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.other = nn.Linear(8, 8), nn.Linear(8, 8)
        self.other.weight = self.fc.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.fc(self.fc(x)))


@pytest.mark.parametrize("engine", ["eager", "pt2e"])
def test_shared_weights(engine: str) -> None:
    """The float model is unchanged, and int8 is no worse than rounding to the nearest."""
    torch.manual_seed(0)
    model, x = Twice().eval(), smooth_images(64, 8)
    before = model.fc.weight.clone()
    int8 = [quantized.quantize(model, [x], engine=engine, rounding=rounding) for rounding in ("nearest", "gptq")]
    assert torch.equal(model.fc.weight, before)
    with torch.no_grad():
        nearest, learned = (float((each(x) - model(x)).square().mean()) for each in int8)
    assert learned < 1.5 * nearest


@pytest.mark.parametrize("engine", ["eager", "pt2e"])
@pytest.mark.filterwarnings("ignore:batches must hold typical inputs")
def test_inputs_of_zero(engine: str) -> None:
    """Columns that no batch reaches are rounded to the nearest, and constant inputs have no moments."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    x = torch.rand(4, 3, 6, 6)
    x[:, 1] = 0
    for batch in (x, torch.zeros_like(x)):
        int8 = quantized.quantize(model, [batch], engine=engine, rounding="gptq")
        assert bool(int8(batch).isfinite().all())


@pytest.mark.parametrize("engine", ["eager", "pt2e"])
@pytest.mark.parametrize("mean", [3e3, 1e25])
def test_inputs_with_a_large_mean(mean: float, engine: str) -> None:
    """Their second moments in float32 are not positive definite; the largest overflow."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(64, 8, 1)).eval(), mean + mean / 1e3 * torch.randn(4, 64, 6, 6)
    int8 = [quantized.quantize(model, [x], engine=engine, rounding=rounding) for rounding in ("nearest", "gptq")]
    with torch.no_grad():
        nearest, learned = (float((each(x) - model(x)).double().square().mean()) for each in int8)
    assert learned < 1.1 * nearest


@pytest.mark.parametrize("engine", ["eager", "pt2e"])
def test_blocks_with_norms_and_activations(engine: str) -> None:
    """Learned rounding and corrected biases together keep a block with a depthwise convolution near float."""
    torch.manual_seed(0)
    model, x = nn.Sequential(tnn.ConvNormAct(3, 8), tnn.MBConv(8, 8)).eval(), torch.randn(4, 3, 16, 16)
    int8 = quantized.quantize(model, [x], engine=engine, rounding="gptq")
    with torch.no_grad():
        expected = model(x)
        assert float((int8(x) - expected).square().sum()) < 1e-3 * float(expected.square().sum())


def test_unknown_rounding_raises() -> None:
    with pytest.raises(ValueError, match="rounding must be 'nearest' or 'gptq', got 'adaround'"):
        quantized.quantize(nn.Conv2d(3, 4, 1), [torch.rand(1, 3, 4, 4)], rounding="adaround")
