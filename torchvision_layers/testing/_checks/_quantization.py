"""Helpers of the quantization checks of both engines."""

import copy
import io
from collections.abc import Container, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._spec import Sample

if TYPE_CHECKING:  # checks import `quantized` when they run
    from ...quantized import Report

__all__ = [
    "WEIGHTED",
    "assert_close",
    "assert_copies_are_equal",
    "assert_weighted_is_int8",
    "calibration",
    "constant_layers",
    "decibels",
    "trained_to_int8",
]

#: Modules with nearly all weights and run time of a network.
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def calibration(sample: Sample) -> list[Tensor]:
    """Two batches for calibration or training."""
    batch = 32 if len(sample.shape) > 2 else 1024  # similar numbers of values to observe
    return [torch.randn((batch, *sample.shape[1:])) for _ in range(2)]


def decibels(expected: Tensor, got: Tensor) -> float:
    """Signal-to-quantization-noise ratio; infinite for equal tensors."""
    expected, got = expected.detach().double(), got.detach().double()
    if torch.equal(expected, got):
        return float("inf")
    return float(10 * torch.log10(expected.square().sum() / (expected - got).square().sum()))


def assert_close(got: Tensor, expected: Tensor, bound: float, comparison: str) -> None:
    noise = decibels(expected, got)
    assert noise >= bound, f"{noise:.1f} dB {comparison}, expected at least {bound}"


def constant_layers(layer: nn.Module, batches: Iterable[Tensor]) -> set[str]:
    """The convolutions and linear layers whose input does not depend on the batch, so that a graph stores their result.

    Swin Transformer V2 computes its position bias with such layers.
    """
    inputs: dict[str, list[Tensor]] = {}
    weighted = {path: module for path, module in layer.named_modules() if isinstance(module, WEIGHTED)}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, path=path: inputs.setdefault(path, []).append(args[0].clone()))
        for path, module in weighted.items()
    ]
    for batch in batches:
        layer(batch)
    for hook in hooks:
        hook.remove()
    return {path for path, (first, *others) in inputs.items() if all(torch.equal(first, other) for other in others)}


def assert_weighted_is_int8(layer: nn.Module, report: "Report", stored: Container[str] = ()) -> None:
    """Assert that the report lists each convolution and linear layer of the float layer as int8.

    Those in ``stored`` may be left out of the program instead.
    """
    runs_in = {row.path: row.runs_in for row in report.rows}
    left_out = {row.path for row in report.rows if row.after == "-" and row.path in stored}
    left = [
        path
        for path, module in layer.named_modules()
        # A convolution that pads its input runs as padding and a convolution.
        if isinstance(module, WEIGHTED)
        and path not in left_out
        and "int8" not in (runs_in.get(path), runs_in.get(f"{path}.conv".lstrip(".")))
    ]
    assert not left, f"left in float: {left} of\n{report}"


def _train(model: nn.Module, batch: Tensor) -> None:
    """Take an optimizer step, and assert that gradients are finite and that parameters change."""
    before = [parameter.detach().clone() for parameter in model.parameters()]
    assert before, "no parameters to train"
    torch.manual_seed(1)  # random layers draw the same numbers after training is resumed
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model(batch).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"no gradient reaches {name}"
        assert bool(parameter.grad.isfinite().all()), f"the gradient of {name} is not finite"
    optimizer.step()
    optimizer.zero_grad()
    assert not all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)), "no parameter changed"


def trained_to_int8(model: Any, other: Any, batches: list[Tensor]) -> Any:
    """Train and convert a prepared model. Another one, resumed from its state, must become equal to it."""
    from ... import quantized

    _train_and_resume(model, other, batches)
    converted = []
    for prepared in (model, other):
        quantized.freeze(prepared)
        converted.append(quantized.convert(prepared))
    x = torch.cat(batches)
    assert torch.equal(converted[1](x), converted[0](x)), "after resuming from a state dict, int8 outputs differ"
    return converted[0]


def assert_copies_are_equal(model: nn.Module, other: nn.Module, x: Tensor) -> None:
    """Assert that a deep copy, and another model with the state dict of a file, equal an int8 model to the bit."""
    expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected), "outputs of the deep copy differ"
    state = io.BytesIO()
    torch.save(model.state_dict(), state)
    state.seek(0)
    assert not torch.equal(other(x), expected), "the other model is already equal"
    other.load_state_dict(torch.load(state, weights_only=True), strict=True)
    assert torch.equal(other(x), expected), "outputs differ after loading the state dict"


def _train_and_resume(model: nn.Module, other: nn.Module, batches: list[Tensor]) -> None:
    """Train for one step, load the state into another prepared model, and continue with both."""
    _train(model, batches[0])
    state = io.BytesIO()
    torch.save(model.state_dict(), state)
    state.seek(0)
    other.load_state_dict(torch.load(state, weights_only=True), strict=True)
    for batch in batches[1:]:
        _train(model, batch)
        _train(other, batch)
    states = model.state_dict(), other.state_dict()
    assert list(states[0]) == list(states[1]), "after resuming from a state dict, keys differ"
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), f"after resuming from a state dict, {key} differs"
