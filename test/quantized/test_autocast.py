"""Under autocast, models are quantized, trained and run as without it."""

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import nn as tnn
from torchvision_layers import quantized

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
