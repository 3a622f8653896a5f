"""Batches without images, on which kernels lose dimensions, give outputs of the right shapes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import deploy, quantized


class Pixels(nn.Module):
    """A linear layer on the channels of each pixel; oneDNN's int8 kernel merges the other dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Detector(nn.Module):
    """Outputs without a batch, with the batch in the second dimension, and with two batches."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("anchors", torch.rand(5, 4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features, rows = self.conv(x), x.flatten(1)
        return {
            "maps": features,
            "columns": features.flatten(2).transpose(0, 1),
            "anchors": self.anchors * 2,
            "pairs": rows @ rows.T,
        }


class Clips(nn.Module):
    """Takes the frames of all clips as one batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv(x)
        return features.view(-1, 3, *features.shape[1:]).mean(1)


MODELS: dict[str, Callable[[], nn.Module]] = {"pixels": Pixels, "detector": Detector, "clips": Clips}


def shapes(output: Tensor | dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    outputs = {"": output} if isinstance(output, Tensor) else output
    return {key: tuple(tensor.shape) for key, tensor in outputs.items()}


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, dict[str, tuple[int, ...]]]:
    """A model, a batch, and the shapes of the outputs of the model itself without images."""
    torch.manual_seed(0)
    model, x = MODELS[request.param]().eval(), torch.rand(6, 3, 8, 8)
    return model, x, shapes(model(x[:0]))


@pytest.mark.parametrize("engine", ["eager", "pt2e"])
def test_int8(case: tuple, engine: str) -> None:
    model, x, expected = case
    assert shapes(quantized.quantize(model, [x], engine=engine)(x[:0])) == expected


@pytest.mark.parametrize("is_int8", [False, True])
def test_lowered(case: tuple, is_int8: bool) -> None:
    model, x, expected = case
    subject = quantized.quantize(model, [x], engine="pt2e", backend="x86") if is_int8 else model
    lowered = deploy.lower(subject, x)
    assert shapes(lowered(x[:0])) == expected
    assert shapes(lowered(x)) == shapes(model(x))


@pytest.mark.parametrize("name", ["pixels", "detector"])
def test_file(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = MODELS[name]().eval(), torch.rand(6, 3, 8, 8)
    file = deploy.export(model, x, tmp_path / "model.pt2")
    assert shapes(deploy.load(file.path)(x[:0])) == shapes(model(x[:0]))
