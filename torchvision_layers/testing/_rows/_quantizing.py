"""What rows on quantization share, whichever engine quantizes."""

import torch
from torch import Tensor, nn

from .._spec import Sample

__all__ = ["calibration", "decibels", "train"]


def calibration(sample: Sample) -> list[Tensor]:
    """Two batches to calibrate or to train with."""
    rows = 32 if len(sample.shape) > 2 else 1024  # about the same number of values to observe
    return [torch.randn((rows, *sample.shape[1:])) for _ in range(2)]


def decibels(expected: Tensor, got: Tensor) -> float:
    """Signal to quantization noise."""
    expected, got = expected.detach().double(), got.detach().double()
    return float(10 * torch.log10(expected.square().sum() / (expected - got).square().sum()))


def train(model: nn.Module, batches: list[Tensor]) -> None:
    """Some steps, each with gradients that are finite, and of which something came."""
    before = [parameter.detach().clone() for parameter in model.parameters()]
    assert before, "nothing to train"
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for batch in batches:
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, f"no gradient reaches {name}"
            assert bool(parameter.grad.isfinite().all()), f"the gradient of {name} is not finite"
        optimizer.step()
    assert not all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)), "nothing was trained"
