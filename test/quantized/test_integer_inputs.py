"""Models that take integers, such as uint8 images that they normalize themselves, or token ids."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import deploy, quantized
from torchvision_layers.testing._checks._quantization import decibels


class Normalizing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([123.0, 117.0, 104.0]).view(3, 1, 1))
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv((x.float() - self.mean) / 57).relu().mean((2, 3)))


class ChannelsLast(Normalizing):
    def forward(self, x: Tensor) -> Tensor:
        y = x.permute(0, 3, 1, 2).float()
        return self.head(self.conv((y - self.mean) / 57).relu().mean((2, 3)))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.body = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        embedded = self.embedding(tokens)
        return self.head((embedded + self.body(embedded)).mean(1))


def _uint8(*shape: int) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "images": (Normalizing, _uint8(2, 3, 16, 16)),
    "channels last": (ChannelsLast, _uint8(2, 16, 20, 3)),
    "tokens": (Tokens, torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))),
}


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    make, x = MODELS[request.param]
    torch.manual_seed(0)
    return make().eval(), x


@pytest.mark.parametrize("engine", ["eager", "pt2e"])
def test_quantize(engine: str, case: tuple[nn.Module, Tensor]) -> None:
    model, x = case
    int8 = quantized.quantize(model, [x], engine=engine)
    assert decibels(model(x), int8(x)) > 30
    again = quantized.quantize(model, [x], engine=engine)
    again.load_state_dict(int8.state_dict())
    assert torch.equal(again(x[:1]), int8(x[:1]))
    report = quantized.report(int8, [x], model=model)
    assert "(input)" not in [row.path for row in report.rows]


@pytest.mark.parametrize(("engine", "has_example"), [("eager", True), ("eager", False), ("pt2e", True)])
def test_train(engine: str, has_example: bool, case: tuple[nn.Module, Tensor]) -> None:
    model, x = case
    prepared = quantized.prepare_qat(copy.deepcopy(model).train(), x if has_example else None, engine=engine)
    if engine == "eager":
        with pytest.raises(ValueError, match="must have run on batches"):
            quantized.convert(prepared)
    prepared(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in prepared.parameters())
    assert decibels(model(x), quantized.convert(prepared)(x)) > 25


def test_fold_lower_and_equalize(case: tuple[nn.Module, Tensor]) -> None:
    model, x = case
    for made in (deploy.fold(model), deploy.lower(model, x), deploy.equalize(model, x)):
        torch.testing.assert_close(made(x), model(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(TypeError, match=rf"must be a {str(x.dtype)[6:]} tensor, got torch.float32"):
        deploy.lower(model, x)(x.float())


@pytest.mark.parametrize("format", ["pt2", "torchscript", "onnx", "lowered"])
def test_float_files(format: str, case: tuple[nn.Module, Tensor], tmp_path: Path) -> None:
    model, x = case
    arguments = {"lowered": True} if format == "lowered" else {"format": format}
    loaded = deploy.load(deploy.export(model, x, tmp_path / "model", **arguments).path)
    dtype = str(x.dtype).removeprefix("torch.")
    assert [spec["dtype"] for spec in loaded.metadata["inputs"]] == [dtype]
    for batch in (x, x[:1], torch.cat([x, x])):
        torch.testing.assert_close(loaded(batch), model(batch), rtol=1e-4, atol=1e-5)
    with pytest.raises(TypeError, match=rf"must be a {dtype} tensor, got torch.float32"):
        loaded(x.float())


@pytest.mark.parametrize("format", ["pt2", "onnx-qdq", "lowered"])
def test_int8_files(format: str, case: tuple[nn.Module, Tensor], tmp_path: Path) -> None:
    model, x = case
    backend = "onnxruntime" if format == "onnx-qdq" else "x86"
    int8 = quantized.quantize(model, [x], engine="pt2e", backend=backend)
    arguments = {"lowered": True} if format == "lowered" else {"format": format}
    loaded = deploy.load(deploy.export(int8, x, tmp_path / "model", **arguments).path)
    assert decibels(int8(x), loaded(x)) > 30


def test_models_that_take_floats() -> None:
    """The error shows how to scale integers for a model that does not run on them."""
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), _uint8(2, 3, 8, 8)
    for call in (
        lambda: quantized.quantize(model, [x]),
        lambda: deploy.lower(model, x),
        lambda: deploy.export(model, x, "model.onnx"),
    ):
        with pytest.raises(TypeError, match="must be a float32 tensor, got torch.uint8: scale and normalize it"):
            call()
