"""Calls and states that int8 has no form of are refused before calibration, in words of the package."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import quantized
from torchvision_layers.testing._checks._quantization import decibels

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ENGINES = ["eager", "pt2e"]


class Calling(nn.Module):
    """Calls a convolution and a linear layer, and something else."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.linear, self.function = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), function
        self.register_buffer("calls", torch.zeros(()))
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def of_single_images(module: Calling, x: Tensor) -> Tensor:
    return torch.stack([module.conv(image) for image in x])


def of_vectors(module: Calling, x: Tensor) -> Tensor:
    return torch.stack([module.linear(vector) for vector in module.conv(x).mean((2, 3))])


def layer_in_vmap(module: Calling, x: Tensor) -> Tensor:
    output: Tensor = torch.vmap(module.linear)(module.conv(x).mean((2, 3)))
    return output


def depending_on_buffer(module: Calling, x: Tensor) -> Tensor:
    module.calls += 1
    output: Tensor = module.conv(x) * module.calls
    return output


def depending_on_number(module: Calling, x: Tensor) -> Tensor:
    module.count += 1
    output: Tensor = module.conv(x) * module.count
    return output


def counting(module: Calling, x: Tensor) -> Tensor:
    module.calls += 1
    output: Tensor = module.conv(x)
    return output


@pytest.mark.parametrize("allow_float", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (layer_in_vmap, TypeError, "torch.vmap"),
        (depending_on_buffer, RuntimeError, "changes its own state"),
        (depending_on_number, RuntimeError, "changes its own state"),
    ],
)
def test_forward_is_refused(
    function: Callable[..., Tensor], error: type[Exception], message: str, engine: str, allow_float: bool
) -> None:
    with pytest.raises(error, match=message):
        quantized.quantize(Calling(function).eval(), [X], engine=engine, allow_float=allow_float)


@pytest.mark.parametrize("backend", ["x86", "onednn", "qnnpack"])
def test_linear_layer_on_vectors_is_refused(backend: str) -> None:
    model = Calling(of_vectors).eval()
    with pytest.raises(ValueError, match=r"linear gets shape \[8\]: pass batches"):
        quantized.quantize(model, [X], backend=backend)
    assert decibels(model(X), quantized.quantize(model, [X], backend=backend, exclude=["linear"])(X)) > 35


def test_convolution_of_single_images_is_refused() -> None:
    with pytest.raises(ValueError, match=r"conv gets shape \[3, 8, 8\]: pass batches"):
        quantized.quantize(Calling(of_single_images).eval(), [X])

    def in_float(module: Calling, x: Tensor) -> Tensor:
        output: Tensor = module.linear(of_single_images(module, x).mean((2, 3)))
        return output

    model = Calling(in_float).eval()
    assert decibels(model(X), quantized.quantize(model, [X], exclude=["conv"])(X)) > 35


@pytest.mark.parametrize("engine", ENGINES)
def test_counting_changes_nothing(engine: str) -> None:
    model = Calling(counting).eval()
    assert decibels(model(X), quantized.quantize(model, [X], engine=engine)(X)) > 35


def test_vmap_of_arithmetic_runs_in_float() -> None:
    def centered(module: Calling, x: Tensor) -> Tensor:
        output: Tensor = module.linear(torch.vmap(lambda image: image.mean((1, 2)))(module.conv(x)))
        return output

    model = Calling(centered).eval()
    assert decibels(model(X), quantized.quantize(model, [X])(X)) > 30
    with pytest.raises(TypeError, match=r"\(Calling, torch.vmap in .*use engine='eager'"):
        quantized.quantize(model, [X], engine="pt2e")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (X.to_sparse(), TypeError, r"dense tensor, got torch.sparse_coo: convert it with .to_dense\(\)"),
        (X[0], (ValueError, RuntimeError), r"\[3, 8, 8\].*unsqueeze\(0\)"),
    ],
)
def test_batch_is_refused(batch: Tensor, error: type[Exception], message: str, engine: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
    with pytest.raises(error, match=message):
        quantized.quantize(model, [batch], engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_lazy_layer_in_container_is_refused(engine: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.LazyBatchNorm2d())).eval()
    with pytest.raises(TypeError, match=r"lazy modules, got LazyBatchNorm2d at 1.0: initialize it with model\(batch\)"):
        quantized.quantize(model, [X], engine=engine)


class OfList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, images: list[Tensor]) -> Tensor:
        output: Tensor = self.last(sum(self.first(image) for image in images))
        return output


class Scaled(OfList):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:  # type: ignore[override]
        output: Tensor = self.last(self.first(x) * scale)
        return output


def test_other_arguments_than_those_of_calibration() -> None:
    int8 = quantized.quantize(OfList().eval(), [([X, X],)])
    with pytest.raises(ValueError, match=r"prepared for 2 floating-point inputs, got another at \[0, 2\]"):
        int8([X, X, X])
    int8 = quantized.quantize(Scaled().eval(), [X])
    for call in (lambda: int8(X, 2.0), lambda: int8(X, scale=2.0)):
        with pytest.raises(ValueError, match=r"scale must be 1\.0, as in the first call"):
            call()
