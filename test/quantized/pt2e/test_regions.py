"""Layers within a region of a forward that turns off gradients or autocasting."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import deploy, quantized

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Region(nn.Module):
    """A convolution and a sum in the region, and another region in it."""

    def __init__(self, context: Callable[[], AbstractContextManager[object]]) -> None:
        super().__init__()
        self.context = context
        self.first, self.second, self.third = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        with self.context():
            y = self.second(y) + y
            with torch.autocast("cpu", enabled=False):
                z, size = y.softmax(1), y.shape[-1]
        return self.third(y) * z / size


CONTEXTS = {
    "autocast": partial(torch.autocast, "cpu", enabled=False),
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_layers_become_int8(name: str) -> None:
    torch.manual_seed(0)
    model = Region(CONTEXTS[name]).eval()
    int8 = quantized.quantize(model, [X], engine="pt2e")
    convs = [row for row in quantized.report(int8, [X]).rows if row.before == "Conv2d"]
    assert {row.path for row in convs if row.runs_in == "int8"} == {"first", "second", "third"}
    with torch.no_grad():
        expected = model(X)
        assert float((int8(X) - expected).square().mean().sqrt()) < 0.03 * float(expected.square().mean().sqrt())


def test_layers_that_stay_in_float_are_named() -> None:
    class Autocast(Region):
        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            with self.context():
                y = self.second(y)
            return self.third(y.float())

    torch.manual_seed(0)
    model = Autocast(partial(torch.autocast, "cpu", dtype=torch.bfloat16)).eval()
    message = r"^second \(Conv2d, .*\) would stay in float, because its forward turns autocasting on, or gradients"
    with pytest.raises(TypeError, match=message):
        quantized.quantize(model, [X], engine="pt2e")
    int8 = quantized.quantize(model, [X], engine="pt2e", allow_float=True)
    with pytest.raises(RuntimeError, match="model cannot be lowered: its graph contains wrap_with_autocast"):
        deploy.lower(int8, X)
    with pytest.raises(TypeError, match=message):
        quantized.prepare_qat(Autocast(torch.no_grad).train(), X, engine="pt2e")


@pytest.mark.parametrize("name", CONTEXTS)
@pytest.mark.parametrize("is_int8", [False, True])
def test_models_are_lowered(name: str, is_int8: bool) -> None:
    torch.manual_seed(0)
    model = Region(CONTEXTS[name]).eval()
    subject = quantized.quantize(model, [X], engine="pt2e", backend="x86") if is_int8 else model
    lowered = deploy.lower(subject, X)
    with torch.no_grad():
        torch.testing.assert_close(lowered(X), subject(X), rtol=0, atol=2e-2 if is_int8 else 1e-6)
