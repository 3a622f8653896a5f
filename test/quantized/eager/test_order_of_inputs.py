"""Scales belong to inputs and results by their names, whatever their order is."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import quantized
from torchvision_layers.testing._checks._quantization import decibels

BATCHES = [torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
X = BATCHES[0]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.last = nn.Conv2d(8, 4, 3)


class TakesDict(Net):
    def forward(self, images: dict[str, Tensor]) -> Tensor:
        output: Tensor = self.last(self.first(images["image"]) + self.second(images["depth"]))
        return output


class Branch(Net):
    def forward(self, image: Tensor, depth: Tensor) -> Tensor:
        return self.first(image) + self.second(depth)


class CallsByName(nn.Module):
    """A single image is passed in another order; a branch on the batch makes the forward run in float."""

    def __init__(self, styles: tuple[str, str]) -> None:
        super().__init__()
        self.branch, self.last, self.styles = Branch(), nn.Conv2d(8, 4, 3), styles

    def forward(self, x: Tensor) -> Tensor:
        style = self.styles[0] if x.shape[0] > 1 else self.styles[1]
        match style:
            case "positions":
                y = self.branch(x, 20 * x)
            case "names":
                y = self.branch(image=x, depth=20 * x)
            case "other order":
                y = self.branch(depth=20 * x, image=x)
            case _:
                y = self.branch(x, depth=20 * x)
        output: Tensor = self.last(y)
        return output


class Results(nn.Module):
    """Returns two tensors, in a structure that depends on the batch."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        small, large = x.softmax(1) / 100, 50 * x
        if x.shape[0] > 1:
            return {"small": small, "large": large} if self.kind == "dict" else (small, large)
        return {"large": large, "small": small} if self.kind == "dict" else (None, large)


class ReadsResults(Net):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.results, self.key = Results(kind), "large" if kind == "dict" else 1

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.last(self.results(self.first(x))[self.key])
        return output


def swapped(x: Tensor) -> dict[str, Tensor]:
    return {"depth": 20 * x, "image": x}


@pytest.mark.parametrize("backend", ["x86", "onednn", "qnnpack"])
def test_keys_of_an_input(backend: str) -> None:
    model = TakesDict().eval()
    batches = [({"image": x, "depth": 20 * x},) for x in BATCHES]
    int8 = quantized.quantize(model, batches, backend=backend)
    for images in (*batches[0], swapped(X)):
        assert decibels(model(images), int8(images)) > 30
    mixed = quantized.quantize(model, [batches[0], (swapped(BATCHES[1]),)], backend=backend)
    assert decibels(model(*batches[0]), mixed(*batches[0])) > 30


def test_keys_of_an_input_in_training() -> None:
    prepared = quantized.prepare_qat(TakesDict(), ({"image": X, "depth": 20 * X},))
    for x in BATCHES:
        prepared({"image": x, "depth": 20 * x}).sum().backward()
    prepared.eval()
    assert decibels(prepared({"image": X, "depth": 20 * X}), prepared(swapped(X))) > 50  # ranges move in each call
    int8 = quantized.convert(prepared)
    assert decibels(prepared(swapped(X)), int8(swapped(X))) > 30


@pytest.mark.parametrize(
    "styles", [("names", "other order"), ("positions", "other order"), ("mixed", "names"), ("other order", "positions")]
)
def test_arguments_of_a_child(styles: tuple[str, str]) -> None:
    model = CallsByName(styles).eval()
    int8 = quantized.quantize(model, BATCHES)
    for x in (X, X[:1]):
        assert decibels(model(x), int8(x)) > 30


@pytest.mark.parametrize("kind", ["dict", "tuple"])
def test_results_of_a_child(kind: str) -> None:
    model = ReadsResults(kind).eval()
    int8 = quantized.quantize(model, BATCHES)
    for x in (X, X[:1]):
        assert decibels(model(x), int8(x)) > 30


def test_an_input_without_a_scale_is_refused() -> None:
    class Optional(Net):
        def forward(self, image: Tensor, depth: Tensor | None = None) -> Tensor:
            y = self.first(image)
            output: Tensor = self.last(y if depth is None else y + self.second(depth))
            return output

    prepared = quantized.prepare_qat(Optional())
    prepared(X).sum().backward()
    with pytest.raises(ValueError, match=r"prepared for 1 floating-point inputs, got another at \[1\]: calibrate"):
        prepared(X, depth=X)


class Float(Net):
    """Runs in float, because it branches on values."""

    def forward(self, image: Tensor, depth: Tensor) -> Tensor:
        y = self.first(image) + self.second(depth)
        if float(y.detach().mean()) > 1e3:
            y = y / 2
        output: Tensor = self.last(y)
        return output


def test_names_of_the_inputs_of_a_forward_in_float() -> None:
    model = Float().eval()
    int8 = quantized.quantize(model, [{"depth": 20 * x, "image": x} for x in BATCHES])
    for output in (int8(X, 20 * X), int8(X, depth=20 * X), int8(depth=20 * X, image=X)):
        assert decibels(model(X, 20 * X), output) > 30
