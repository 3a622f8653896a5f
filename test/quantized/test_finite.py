"""Activations that are NaN or infinite: one error, with the batch and the module that they begin in."""

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import quantized

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ENGINES = [("eager", "x86"), ("eager", "qnnpack"), ("pt2e", "x86")]


class Log(nn.Module):
    """NaN for inputs below -3."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.log(x + 3)


class Exp(nn.Module):
    """Infinity for large inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(5 * x)


class Known(nn.Module):
    """Finite, whatever its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x.nan_to_num(0, 0, 0)


class Function(nn.Module):
    """The operation is in a forward of its own, between two children."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(torch.log(self.first(x) + 3)))


MODELS = {
    "module": (lambda: nn.Sequential(nn.Conv2d(3, 8, 1), Log(), nn.Conv2d(8, 8, 1), Known()), r"1 \(Log\)"),
    "infinity": (lambda: nn.Sequential(nn.Conv2d(3, 8, 1), Exp(), nn.Conv2d(8, 8, 1), Known()), r"1 \(Exp\)"),
    "function": (lambda: Function(Known()), r"the forward of model \(Function\)"),
    "function in a child": (lambda: nn.Sequential(Function(nn.Identity()), Known()), r"0 \(Function\)"),
    "ReLU6": (
        lambda: nn.Sequential(Log(), nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU6(), Known()),
        r"0 \(Log\)",
    ),
}


@pytest.mark.parametrize(("engine", "backend"), ENGINES)
@pytest.mark.parametrize("name", MODELS)
def test_observed_values(name: str, engine: str, backend: str) -> None:
    make, where = MODELS[name]
    torch.manual_seed(0)
    model = make().eval()
    for batches, index in (([200 * X], 0), ([X.clamp(-1, 1), 200 * X], 1)):
        with pytest.raises(ValueError, match=rf"^activations must be finite.*batch {index} .*first in {where}: clamp"):
            quantized.quantize(model, batches, engine=engine, backend=backend)
    assert torch.isfinite(quantized.quantize(model, [X.clamp(-1, 1)], engine=engine, backend=backend)(X)).all()


@pytest.mark.parametrize(("engine", "backend"), ENGINES)
def test_outputs(engine: str, backend: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), Log()).eval()
    match = r"^model must give finite outputs, for the first batch it gives NaN or infinity, first in 1 \(Log\)$"
    with pytest.raises(ValueError, match=match):
        quantized.quantize(model, [200 * X], engine=engine, backend=backend)
