"""Checks of inputs: dtypes, layouts, empty batches, no mutation, no accidental broadcasting."""

import copy
import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .._case import Case, loss_of, run_seeded
from .._check import check
from ._not_applicable import NOT_AN_IMAGE, TRAIN_EVAL, VIEW, trainable

__all__ = ["channels_last", "dtypes", "empty_batch", "no_broadcast", "no_mutation", "relative_l2"]


def _takes(case: Case, argument: str) -> bool:
    """Whether the constructor has this argument."""
    return argument in inspect.signature(case.spec.cls).parameters


def relative_l2(got: Tensor, expected: Tensor) -> float:
    """Distance relative to the expected norm, in float64."""
    got, expected = got.detach().double(), expected.detach().double()
    return float((got - expected).norm() / expected.norm().clamp(min=1e-12))


_BOUNDS = {"bfloat16": 1e-2, "float16": 2e-3, "autocast": 1e-2}


@check("dtypes", variants=tuple(_BOUNDS))
def dtypes(case: Case) -> None:
    """In bfloat16, float16 and under autocast, outputs are close to float64 and gradients keep their dtype."""
    for training in (True, False):
        if case.variant == "autocast":
            for dtype in (torch.bfloat16, torch.float16):
                _check_dtype(case, training, torch.float32, torch.autocast(case.device.type, dtype))
        else:
            _check_dtype(case, training, getattr(torch, case.variant), nullcontext())


def _check_dtype(case: Case, training: bool, dtype: torch.dtype, mode: AbstractContextManager[object]) -> None:
    # From the rounded weights and input, whose rounding is not an error of the layer.
    layer, input = case.layer(dtype).train(training), case.input().to(dtype).requires_grad_()
    exact = copy.deepcopy(layer).double()
    with mode:
        output = run_seeded(layer, input)
    assert case.variant == "autocast" or output.dtype is dtype, f"returns {output.dtype} for {dtype}"
    # GPUs draw other random numbers in float64.
    if case.device.type == "cpu" or not (training and case.sample.is_random):
        distance = relative_l2(output, run_seeded(exact, input.detach().double()))
        assert distance <= _BOUNDS[case.variant], f"relative distance {distance:.1e}"
    output.float().square().sum().backward()
    for name, tensor in [("input", input), *trainable(layer)]:
        assert tensor.grad is not None, f"no gradient reaches {name}"
        assert tensor.grad.dtype is tensor.dtype, f"the gradient of {name} is {tensor.grad.dtype}"
        assert bool(tensor.grad.isfinite().all()), f"the gradient of {name} is not finite"


@check("channels_last", variants=TRAIN_EVAL, not_applicable=(NOT_AN_IMAGE, VIEW))
def channels_last(case: Case) -> None:
    """Outputs are equal for all layouts of input and layer, and a channels_last input gives a channels_last output."""
    plain, input = case.layer(), case.input()
    moved = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    expected = run_seeded(copy.deepcopy(plain), input)
    for layer, format in ((plain, "contiguous"), (moved, "channels_last")):
        for layout in (torch.contiguous_format, torch.channels_last):
            x = input.clone(memory_format=layout).requires_grad_()
            output = run_seeded(copy.deepcopy(layer), x)
            if not (case.training and case.sample.is_random):  # random numbers are drawn in memory order
                torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
            if layout is torch.channels_last and output.dim() == 4:
                assert output.is_contiguous(memory_format=layout), f"a {format} layer returns another layout"
            output.backward(torch.ones_like(output))
            assert x.grad is not None
            assert x.grad.is_contiguous(memory_format=layout), f"a {format} layer returns a gradient of another layout"


@check("no_mutation", variants=TRAIN_EVAL)
def no_mutation(case: Case) -> None:
    """The input is not written to, and ``inplace`` changes neither outputs nor gradients."""
    layer, input = case.layer(), case.input()
    before = input.clone()
    run_seeded(layer, input)
    assert torch.equal(input, before), "the input changed"
    assert input._version == 0, "the input was written to"
    if not _takes(case, "inplace"):
        return
    results = []
    for inplace in (True, False):
        other = case.place(case.spec.cls(**{**case.kwargs(), "inplace": inplace})).train(case.training)
        other.load_state_dict(layer.state_dict())
        x = before.clone().requires_grad_()
        output = run_seeded(other, x * 1.0)  # not a leaf: in-place operations on leaves raise
        loss_of(output).backward()
        results.append([output, x.grad, *(parameter.grad for parameter in other.parameters())])
    for in_place, out_of_place in zip(*results, strict=True):
        assert torch.equal(in_place, out_of_place), "inplace=True and inplace=False differ"


_SUMS = frozenset(
    getattr(owner, name)
    for owner, names in (
        (torch, ("add", "sub", "subtract")),
        (Tensor, ("add", "add_", "sub", "sub_", "__add__", "__radd__", "__iadd__", "__sub__", "__rsub__", "__isub__")),
    )
    for name in names
)
_PRODUCTS = frozenset(
    getattr(owner, name)
    for owner, names in (
        (torch, ("mul", "multiply")),
        (Tensor, ("mul", "mul_", "__mul__", "__rmul__", "__imul__")),
    )
    for name in names
)


class _NoBroadcast(TorchFunctionMode):
    """Raises if a sum broadcasts an image of the batch, or a product both of its operands."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        values = (*args[:2], *(kwargs or {}).values())
        operands = [arg for arg in values if isinstance(arg, Tensor) and arg.dim() == 4]
        if len(operands) == 2 and function in _SUMS | _PRODUCTS:
            shapes = [tuple(operand.shape) for operand in operands]
            full = torch.broadcast_shapes(*shapes)
            if shapes[0] != shapes[1]:
                small = shapes[0] if shapes[1] == full else shapes[1]
                is_bias = small[0] == 1 or small[2:] == (1, 1)  # equal for all images, or for all pixels
                if full not in shapes or (function in _SUMS and not is_bias):
                    raise AssertionError(f"{getattr(function, '__name__', function)} broadcasts {shapes}")
        return function(*args, **(kwargs or {}))


@check("no_broadcast", variants=TRAIN_EVAL, reads_values=False)
def no_broadcast(case: Case) -> None:
    """No sum broadcasts an image of the batch, except by one value per channel; no product broadcasts both operands."""
    layer, input = case.layer(), case.input()
    with _NoBroadcast():
        layer(input)


def _statistics(layer: torch.nn.Module) -> dict[str, Tensor]:
    """All float buffers. Counters are excluded, because torch counts an empty batch."""
    return {name: buffer.clone() for name, buffer in layer.named_buffers() if buffer.is_floating_point()}


@check("empty_batch", variants=TRAIN_EVAL)
def empty_batch(case: Case) -> None:
    """An empty batch passes forward and backward, and does not change statistics."""
    layer = case.layer()
    full = layer(case.input())
    before = _statistics(layer)
    input = case.input()[:0].requires_grad_()
    output = layer(input)
    assert output.shape == (0, *full.shape[1:]), f"returns shape {tuple(output.shape)}"
    output.sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is None or not bool(parameter.grad.any()), f"{name} gets a gradient from an empty batch"
    for name, buffer in _statistics(layer).items():
        assert torch.equal(buffer, before[name]), f"an empty batch changed {name}"
