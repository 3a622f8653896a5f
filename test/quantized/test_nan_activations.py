"""Activations that become NaN inside an int8 model are refused, as the float model shows them in its outputs."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import deploy, quantized
from torchvision_layers.quantized.eager.torch_ao.checked_rounding import CheckedQuantize
from torchvision_layers.testing._checks._quantization import decibels

X = 2 * torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - 1
#: All activations of the first convolution are negative for them.
DARK = torch.full((2, 3, 8, 8), -0.9)


class Between(nn.Module):
    """Calls a function between two layers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.function = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 4, 1), function
        nn.init.uniform_(self.first.weight, 0, 0.2)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.last(self.function(self.first(x).relu()))
        return output


class Normalize(nn.Module):
    """A layer of a user that divides by a sum."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.sum((1, 2, 3), keepdim=True)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "division": lambda x: x / x.sum((1, 2, 3), keepdim=True),
    "in place": lambda x: x.div_(x.amax((2, 3), keepdim=True)),
    "later": lambda x: (x / x.amax((2, 3), keepdim=True)).sqrt() + 1,
    "layer": Normalize(),
}


def int8_models(model: nn.Module) -> dict[str, nn.Module]:
    graph = quantized.quantize(model, [X], engine="pt2e")
    return {"eager": quantized.quantize(model, [X]), "pt2e": graph, "lowered": deploy.lower(graph, X)}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nan_is_refused(name: str) -> None:
    model = Between(FUNCTIONS[name]).eval()
    assert model(DARK).isnan().all()
    for kind, int8 in int8_models(model).items():
        assert decibels(model(X), int8(X)) > 25, kind
        with pytest.raises(ValueError, match=r"must not become NaN, .* in a tensor of shape \[2, 8, 6, 6\]: clamp div"):
            int8(DARK)
        assert int8(X[:0]).shape == (0, 4, 6, 6), kind  # which runs on zeros


def test_clamped_divisors_are_right() -> None:
    model = Between(lambda x: x / x.sum((1, 2, 3), keepdim=True).clamp(min=1e-3)).eval()
    for kind, int8 in int8_models(model).items():
        assert decibels(model(X), int8(X)) > 25, kind
        assert float((model(DARK) - int8(DARK)).detach().abs().max()) < 0.02, kind


@pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated")
def test_scripts_check_nothing() -> None:
    quantize = CheckedQuantize(0.1, 3, torch.quint8)
    with pytest.raises(ValueError, match="must not become NaN"):
        quantize(torch.tensor([1.0, float("nan")]))
    assert torch.equal(torch.jit.script(quantize)(X).int_repr(), quantize(X).int_repr())
