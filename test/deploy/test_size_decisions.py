"""TorchScript of int8 models by tracing: decisions on sizes fix the sizes that they depend on."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchvision_layers import deploy, quantized

X = torch.randn(2, 3, 15, 16, generator=torch.Generator().manual_seed(0))


class Decides(nn.Module):
    """Its last operations run in float, so that it cannot be scripted."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.GroupNorm(2, 4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.norm(self.conv(x)))


#: Functions, and an input on which the traced program would return something else.
DECISIONS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "odd": (lambda x: F.pad(x, (0, 0, 0, 1)) if x.shape[-2] % 2 else x, (2, 3, 14, 16)),
    "multiple of three": (lambda x: x * (1 if x.size(2) % 3 else 2), (2, 3, 14, 16)),
    "large": (lambda x: x + 1 if min(x.shape[2:]) > 64 else x, (2, 3, 65, 65)),
    "square": (lambda x: x + 1 if x.shape[2] == x.shape[3] else x, (2, 3, 16, 16)),
    "number of values": (lambda x: x + 1 if x.numel() > 2**15 else x, (2, 3, 99, 99)),
    "loop": (lambda x: torch.stack([x + i for i in range(x.shape[3] // 8)]).sum(0), (2, 3, 15, 32)),
    "square root": (lambda x: x / math.sqrt(x.shape[2]), (2, 3, 60, 16)),
    "flattened": (lambda x: x.flatten(2)[:, :, : int(x.shape[2] * 0.5)], (2, 3, 30, 16)),
    "batch": (lambda x: x + 1 if x.shape[0] > 7 else x, (8, 3, 15, 16)),
    "length of the batch": (lambda x: x + 1 if len(x) > 7 else x, (8, 3, 15, 16)),
}


@pytest.mark.parametrize("name", DECISIONS)
def test_other_sizes_are_refused(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    function, other = DECISIONS[name]
    int8 = quantized.quantize(Decides(function).eval(), [X])
    deploy.export(int8, X, tmp_path / "model.pt", format="torchscript")
    loaded = deploy.load(tmp_path / "model.pt")
    assert torch.equal(loaded(X), int8(X))
    with pytest.raises(ValueError, match=r"must have|batch"):
        loaded(torch.zeros(other))


KEPT: dict[str, Callable[[Tensor], Tensor]] = {
    "half": lambda x: x[:, :, : x.shape[2] // 2],
    "number of channels": lambda x: x + 1 if x.shape[1] == 4 else x,
    "interpolation": lambda x: F.interpolate(F.adaptive_avg_pool2d(x, 3), size=x.shape[2:]),
    "tokens": lambda x: x.flatten(2).transpose(1, 2).reshape(x.shape[0], -1, 2, 2),
}


@pytest.mark.parametrize("name", KEPT)
def test_other_sizes_stay_allowed(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    int8 = quantized.quantize(Decides(KEPT[name]).eval(), [X])
    deploy.export(int8, X, tmp_path / "model.pt", format="torchscript")
    loaded = deploy.load(tmp_path / "model.pt")
    for shape in ((2, 3, 15, 16), (3, 3, 20, 26)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        assert torch.equal(loaded(x), int8(x))


def test_parametrized_weights_are_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1))).eval()
    with pytest.raises(
        RuntimeError, match=r"1 computes its weight by a parametrization or a hook: call deploy.fold\(model\)"
    ):
        deploy.export(model, X, tmp_path / "model.pt", format="torchscript")
    deploy.export(deploy.fold(model), X, tmp_path / "model.pt", format="torchscript")
    assert torch.allclose(deploy.load(tmp_path / "model.pt")(X), model(X), atol=1e-6)
