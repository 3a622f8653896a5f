"""Files of models whose sizes torch would reason about for minutes take images of one size."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchvision_layers import deploy

from ._support import FunctionModule

X = torch.randn(2, 3, 18, 20, generator=torch.Generator().manual_seed(0))


def in_windows(x: Tensor, side: int) -> Tensor:
    """The means of windows after padding."""
    height, width = x.shape[2:]
    x = F.pad(x, (0, (side - width % side) % side, 0, (side - height % side) % side))
    return x.view(x.shape[0], x.shape[1], x.shape[2] // side, side, x.shape[3] // side, side).mean((3, 5))


def padding_model(count: int) -> nn.Module:
    """Pads to multiples of windows several times."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.conv(x)
        return torch.cat([in_windows(x, side).flatten(2) for side in range(7, 7 + count)], 2).mean(2)

    torch.manual_seed(0)
    return FunctionModule(forward, conv=nn.Conv2d(3, 4, 3, padding=1)).eval()


@pytest.mark.parametrize("format", ["pt2", "onnx"])
def test_slow_sizes_are_fixed_with_a_warning(format: str, tmp_path: Path) -> None:
    model = padding_model(4)
    with pytest.warns(UserWarning, match="the file takes images of 18 x 20 only") as caught:
        exported = deploy.export(model, X, tmp_path / "model", format=format)
    assert Path(caught[0].filename).name == Path(__file__).name
    assert exported.shapes == ((2, 3, 18, 20), (1, 3, 18, 20), (3, 3, 18, 20))
    loaded = deploy.load(tmp_path / "model")
    assert loaded.metadata["input_shape"] == [None, 3, 18, 20]
    images = torch.cat([X, X.flip(2), X.flip(3)])
    for x in (images, X[:1]):
        torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="input must have size 18 in dimension 2"):
        loaded(torch.randn(2, 3, 19, 20))


def test_sizes_that_take_seconds_stay_variable(tmp_path: Path) -> None:
    model = padding_model(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        deploy.export(model, X, tmp_path / "model.pt2", format="pt2")
    loaded, x = deploy.load(tmp_path / "model.pt2"), torch.randn(1, 3, 15, 29)
    assert loaded.metadata["input_shape"] == [None, 3, None, None]
    torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-5)
