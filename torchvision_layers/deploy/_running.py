"""Outputs of a model, and how much those of a file differ from them."""

from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from .._utils.failed_runs import check_first_layer
from .._utils.inputs import Inputs
from .._utils.modules import copy_module
from .._utils.outputs import outputs_of
from .._utils.structure import flatten
from ._signature import describe_structure, plain

__all__ = ["describe_shapes", "exact_outputs", "max_difference", "perturb", "run_model", "shapes_of"]


def run_model(model: nn.Module, inputs: Inputs) -> Any:
    """The output of ``model`` in tuples, lists and dicts; ``inputs`` are not changed.

    Errors: ``RuntimeError`` if the model cannot run; ``TypeError`` if it returns no tensor, or anything that a file
    cannot; ``ValueError`` if the output is not finite.
    """
    try:
        output = plain(inputs.map(Tensor.clone).run(model))
    except Exception as error:  # a forward may raise anything
        check_first_layer(model, "example", inputs, error)
        raise RuntimeError(f"model must run {describe_shapes(inputs)}: {error}") from error
    try:
        describe_structure(output, repeat(""))
    except TypeError as error:
        raise TypeError(f"model must return {error}") from error
    tensors, _ = flatten(output)
    if not tensors:
        raise TypeError(f"model must return at least one tensor, got {output!r:.100}")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise ValueError(f"model must give finite outputs, got NaN or infinity for {describe_shapes(inputs)}")
    return output


def exact_outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The tensors that a copy of ``model`` in float64 returns.

    Rounding errors grow from layer to layer; the difference to these is how large those of ``model`` are.
    """
    exact = copy_module(model).double()
    return outputs_of(exact, inputs.map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor))


def shapes_of(inputs: Inputs) -> tuple[Any, ...]:
    """The shape of the only tensor, or a tuple with that of each."""
    shapes = inputs.shapes()
    return shapes[0] if len(shapes) == 1 else tuple(shapes)


def describe_shapes(inputs: Inputs) -> str:
    """The shapes of all tensors, for errors."""
    shapes = list(map(list, inputs.shapes()))
    if len(shapes) == 1:
        return f"float32 inputs of shape {shapes[0]}"
    return f"inputs of shapes {', '.join(map(str, shapes))}"


def perturb(inputs: Inputs, scales: tuple[float, ...], seed: int = 0) -> Inputs:
    """``inputs`` with every floating-point value half a quantization step higher or lower, at random."""
    generator, remaining = torch.Generator().manual_seed(seed), iter(scales)

    def move(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        signs = 2 * torch.randint(0, 2, tensor.shape, generator=generator) - 1
        return tensor + signs * (next(remaining, 0.0) / 2)

    return inputs.map(move)


def max_difference(output: Tensor, expected: Tensor) -> float:
    """The largest absolute difference, or the share of different integers; infinite if it is NaN."""
    if not expected.numel():
        return 0.0
    if not expected.is_floating_point() and not expected.is_complex():
        return float((output != expected).double().mean())
    value = float((output - expected).abs().max())
    return value if value == value else float("inf")
