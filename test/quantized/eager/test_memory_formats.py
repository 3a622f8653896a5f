"""Int8 convolutions return channels_last memory; the model's own code and its callers must not notice."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchvision_layers.quantized import quantize

X = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
FORMATS = [torch.contiguous_format, torch.channels_last]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 8, 3, padding=1)


class OneLayer(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.first(x)


class Pooled(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.max_pool2d(F.relu(self.first(x)), 2))


class WritesToContiguous(Net):
    """``contiguous`` copies or not, according to memory."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        y.contiguous().mul_(0.5)
        return self.last(y) + y


class WritesToChannelsLast(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        y.contiguous(memory_format=torch.channels_last).mul_(0.5)
        return self.last(y) + y


class WritesToPermuted(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        y.permute(0, 2, 3, 1).contiguous().mul_(0.5)
        return self.last(y) + y


class WritesToReshaped(Net):
    """Branches on a value, so its ``forward`` runs in float."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if y.isfinite().all():
            y.reshape(len(y), -1)[:, :200] *= 0.5
        return self.last(y)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize(
    "model", [OneLayer, Pooled, WritesToContiguous, WritesToChannelsLast, WritesToPermuted, WritesToReshaped]
)
def test_outputs_are_laid_out_as_those_of_the_model(model: type[Net], memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    net = model().eval().requires_grad_(False)
    x = X.contiguous(memory_format=memory_format)
    output, expected = quantize(net, [x])(x), net(x)
    assert output.stride() == expected.stride()
    assert (output - expected).square().sum() < 1e-3 * expected.square().sum()


class Flatten(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1) if x.isfinite().all() else x.flatten(1)


class FlattenWithLayer(Flatten):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8 * 12 * 12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(super().forward(x))


@pytest.mark.parametrize("last", [Flatten(), nn.Sequential(Flatten(), nn.Linear(8 * 12 * 12, 4)), FlattenWithLayer()])
def test_views_in_modules_that_cannot_be_traced(last: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), last).eval().requires_grad_(False)
    output, expected = quantize(model, [X])(X), model(X)
    assert (output - expected).square().sum() < 1e-3 * expected.square().sum()


def test_views_in_excluded_modules() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), FlattenWithLayer()).eval().requires_grad_(False)
    output, expected = quantize(model, [X], exclude=["2"])(X), model(X)
    assert (output - expected).square().sum() < 1e-3 * expected.square().sum()
