"""Under autocast, models are quantized, trained and run as without it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from torchvision_layers import nn as tnn
from torchvision_layers import quantized
from torchvision_layers.testing._checks._quantization import decibels

ENGINES = [("eager", "x86"), ("eager", "onednn"), ("pt2e", "x86")]
DTYPES = [torch.bfloat16, torch.float16]
X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """Int8 layers, a norm and an attention in float, and a head that does not run."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = tnn.ConvNormAct(3, 8, stride=2)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 4)
        self.unused = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(self.conv(x).flatten(2).mT)
        return self.head(tokens + self.attention(tokens, tokens, tokens)[0])


def autocast(dtype: torch.dtype | None) -> AbstractContextManager[object]:
    return nullcontext() if dtype is None else torch.autocast("cpu", dtype)


def trained_outputs(engine: str, backend: str, dtype: torch.dtype | None) -> list[Tensor]:
    torch.manual_seed(0)
    with autocast(dtype):
        prepared = quantized.prepare_qat(Attention(), X, engine=engine, backend=backend)
    optimizer = torch.optim.SGD(prepared.parameters(), 0.1)
    outputs = []
    for _ in range(2):
        with autocast(dtype):
            outputs.append(prepared(X))
        outputs[-1].square().mean().backward()
        optimizer.step()
    with autocast(dtype):
        return [*outputs, quantized.convert(prepared)(X)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("engine", "backend"), ENGINES)
def test_training_is_in_float32(engine: str, backend: str, dtype: torch.dtype) -> None:
    for expected, output in zip(
        trained_outputs(engine, backend, None), trained_outputs(engine, backend, dtype), strict=True
    ):
        assert torch.equal(output, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("engine", "backend"), ENGINES)
def test_int8_is_the_same(engine: str, backend: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Attention().eval()
    expected = quantized.quantize(model, [X], engine=engine, backend=backend)(X)
    with autocast(dtype):
        assert torch.equal(quantized.quantize(model, [X], engine=engine, backend=backend)(X), expected)


class Regions(nn.Module):
    """Calls ``outer`` and, within it, ``inner`` under autocasting or not."""

    def __init__(self, outer: bool, inner: bool | None) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.outer, self.inner = outer, inner

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.outer):
            x = self.first(x)
            if self.inner is not None:
                with torch.autocast("cpu", torch.bfloat16, enabled=self.inner):
                    return self.last(x.float())
        return self.last(x.float())


@pytest.mark.parametrize("inner", [None, False])
@pytest.mark.parametrize("engine", ["eager", "pt2e"])
def test_training_with_regions_that_turn_autocasting_off(engine: str, inner: bool | None) -> None:
    torch.manual_seed(0)
    model = Regions(False, inner)
    prepared = quantized.prepare_qat(model, X, engine=engine)
    prepared(X).sum().backward()
    assert all(parameter.grad is not None for parameter in prepared.parameters())
    int8 = quantized.convert(prepared.eval())
    expected = model.eval()(X).detach()
    assert (int8(X) - expected).square().sum() < 1e-3 * expected.square().sum()


@pytest.mark.parametrize("allow_float", [False, True])
@pytest.mark.parametrize("inner", [None, False, True])
def test_training_in_eager_mode_names_layers_under_autocasting(inner: bool | None, allow_float: bool) -> None:
    with pytest.raises(ValueError, match=r"^model must not turn autocasting on .*, first runs within torch\.autocast"):
        quantized.prepare_qat(Regions(True, inner), X, allow_float=allow_float)


@pytest.mark.parametrize("inner", [False, True])
def test_regions_within_others_are_refused_before_calibration(inner: bool) -> None:
    def batches() -> Iterator[Tensor]:
        yield X
        raise AssertionError("calibration began")

    with pytest.raises(TypeError, match="switches autocasting in 1 place within a region that turns it on"):
        quantized.quantize(Regions(True, inner).eval(), batches(), engine="pt2e", allow_float=True)


@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize("ranges", ["histogram", "minmax", "mse"])
def test_activations_in_bfloat16_are_observed(ranges: str, batches: int) -> None:
    torch.manual_seed(0)
    model = Regions(True, None).eval()
    int8 = quantized.quantize(model, [X] * batches, ranges=ranges)
    assert decibels(model(X), int8(X)) > 30


class Checkpoint(nn.Module):
    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.use_reentrant = use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(self.last, self.first(x), use_reentrant=self.use_reentrant)


@pytest.mark.parametrize("allow_float", [False, True])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
def test_checkpoints_whose_gradients_are_lost(allow_float: bool) -> None:
    """``torch.export`` drops the recomputation of reentrant checkpoints, so that nothing would be trained."""
    with pytest.raises(TypeError, match="call torch.utils.checkpoint with use_reentrant=False"):
        quantized.prepare_qat(Checkpoint(True), X, engine="pt2e", allow_float=allow_float)
    prepared = quantized.prepare_qat(Checkpoint(False), X, engine="pt2e")
    prepared(X).sum().backward()
    assert all(parameter.grad is not None for parameter in prepared.parameters())
