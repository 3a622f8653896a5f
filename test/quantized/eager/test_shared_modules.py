"""A module that is registered below a ``forward`` in float, and called by others in int8, becomes int8."""

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import quantized
from torchvision_layers.testing._checks._quantization import decibels

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Shared(nn.Module):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.activation = activation
        self.second = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.activation(self.first(x))) + x


class Block(nn.Module):
    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)
        self.shared = shared

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(self.conv(x)).relu()


class Branches(nn.Module):
    """Its ``forward`` cannot be traced. It holds the shared module before or after its users, and calls only these."""

    def __init__(self, activation: nn.Module, is_first: bool) -> None:
        super().__init__()
        shared = Shared(activation)
        if is_first:
            self.shared = shared
        self.stem = nn.Conv2d(3, 8, 1)
        self.blocks = nn.ModuleList([Block(shared), Block(shared)])
        if not is_first:
            self.shared = shared
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if x.sum() > 1e9:
            return x
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Hardswish, nn.GELU])
@pytest.mark.parametrize("backend", ["x86", "onednn"])
def test_every_layer_is_int8(backend: str, activation: type[nn.Module], is_first: bool) -> None:
    torch.manual_seed(0)
    model = Branches(activation(), is_first).eval()
    int8 = quantized.quantize(model, [X], backend=backend)
    assert not any(isinstance(module, (nn.Conv2d, nn.Linear)) for module in int8.modules())
    assert decibels(model(X), int8(X)) > 35


@pytest.mark.parametrize("is_first", [True, False])
def test_trained_model_is_converted(is_first: bool) -> None:
    torch.manual_seed(0)
    prepared = quantized.prepare_qat(Branches(nn.GELU(), is_first), X, backend="onednn")
    prepared(X)
    quantized.freeze(prepared)
    int8 = quantized.convert(prepared)
    assert not any(isinstance(module, (nn.Conv2d, nn.Linear)) for module in int8.modules())
    assert decibels(prepared.eval()(X), int8(X)) > 35
