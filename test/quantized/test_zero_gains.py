"""Training with batch norms whose gains are zero, as of residual branches and slimmed networks, or almost zero."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.ao.quantization as taoq
from torch import Tensor, nn

from torchvision_layers import quantized
from torchvision_layers.quantized.steps import FineSteps
from torchvision_layers.testing._checks._quantization import decibels

from .pt2e._support import without_quantization

LAYERS: dict[str, tuple[Callable[[], list[nn.Module]], tuple[int, ...]]] = {
    "conv1d": (lambda: [nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU()], (6, 3, 9)),
    "conv2d": (lambda: [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)], (6, 3, 7, 8)),
    "conv2d, relu": (lambda: [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()], (6, 3, 7, 8)),
    "conv2d, relu6": (lambda: [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6()], (6, 3, 7, 8)),
    "depthwise": (lambda: [nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8, eps=0.01)], (6, 4, 7, 8)),
    "conv3d": (lambda: [nn.Conv3d(3, 8, 2, bias=False), nn.BatchNorm3d(8), nn.ReLU()], (6, 3, 4, 5, 4)),
    "linear": (lambda: [nn.Linear(6, 8), nn.BatchNorm1d(8)], (16, 6)),
    "transposed": (lambda: [nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 8, 2), nn.BatchNorm2d(8)], (6, 3, 5, 6)),
}
GAINS = {
    "zero": torch.zeros(8),
    "some zero": torch.tensor([0.0, 0.0, 1.0, 0.4, -0.7, 0.0, 2.0, -0.0]),
    "tiny": torch.tensor([1e-42, -1e-42, 1e-30, -1e-20, 1e-12, 1e-7, 0.9, -1.2]),
    "all tiny": torch.full((8,), 1e-41),
}


def model_of(layer: str, gains: str) -> tuple[nn.Module, Tensor]:
    """A model in training mode whose first channel has no variance, and a batch."""
    torch.manual_seed(0)
    build, shape = LAYERS[layer]
    modules = build()
    for module in modules:
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.weight.data = GAINS[gains].clone()
            nn.init.normal_(module.bias)
            nn.init.uniform_(module.running_var, 0.5, 2)
            module.running_var[0] = 0
        elif isinstance(module.weight if hasattr(module, "weight") else None, Tensor):
            module.weight.data[0] = 0
    return nn.Sequential(*modules).train(), torch.randn(shape)


def unquantized(prepared: nn.Module, engine: str) -> nn.Module:
    if engine == "pt2e":
        return without_quantization(prepared)
    return prepared.apply(taoq.disable_observer).apply(taoq.disable_fake_quant)


def gradients(model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The output, and the gradients of the parameters in their order."""
    output = model(x)
    (output * torch.linspace(-1, 1, output.numel()).reshape(output.shape).to(output)).sum().backward()
    return output.detach(), [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("engine", ["eager", "pt2e"])
@pytest.mark.parametrize("gains", GAINS)
@pytest.mark.parametrize("layer", LAYERS)
def test_same_gradients_as_float(layer: str, gains: str, engine: str) -> None:
    model, x = model_of(layer, gains)
    expected, expected_grads = gradients(copy.deepcopy(model).double(), x.double())
    prepared = unquantized(quantized.prepare_qat(model, x, engine=engine, allow_float=True), engine)
    output, grads = gradients(prepared, x)
    torch.testing.assert_close(output, expected.float(), rtol=1e-5, atol=1e-5)
    largest = max(float(grad.abs().max()) for grad in expected_grads)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad.float(), rtol=1e-4, atol=2e-5 * largest)


def train(model: nn.Module, x: Tensor, target: Tensor, steps: int) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - target).square().sum().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("gains", GAINS)
@pytest.mark.parametrize(
    ("engine", "backend"), [("eager", "x86"), ("eager", "onednn"), ("eager", "qnnpack"), ("pt2e", "x86")]
)
def test_gains_grow_as_in_float(engine: str, backend: str, gains: str) -> None:
    """And int8 computes what was trained."""
    model, x = model_of("conv2d", gains)
    with torch.no_grad():
        target = nn.functional.conv2d(x, torch.randn(8, 3, 3, 3))
        target /= target.std()
    prepared = quantized.prepare_qat(model, x, engine=engine, backend=backend)
    expected = train(copy.deepcopy(model).double(), x.double(), target.double(), 8)
    # The moving average of the output would follow the growing gains too late.
    outputs = [module for module in prepared.modules() if isinstance(module, FineSteps)]
    for module in outputs:
        module.disable_fake_quant()
    train(prepared, x, target, 8)
    for module in outputs:
        module.enable_fake_quant()
    start, end = model[1].weight, expected[1].weight
    grown = list(prepared.parameters())[1]
    assert float((grown - end).detach().norm()) <= 0.15 * float((end - start).detach().norm())
    quantized.freeze(prepared)
    assert decibels(prepared.eval()(x), quantized.convert(prepared)(x)) >= 40
