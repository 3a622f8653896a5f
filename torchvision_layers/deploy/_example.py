"""The example of an export: the inputs of one call of the model."""

from collections.abc import Mapping
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from .._utils.checks import check_float32
from .._utils.input_remedies import remedy
from .._utils.inputs import Inputs, accepts
from ._signature import describe_structure, forward_signature, plain

__all__ = ["check_example"]

_DTYPES = (torch.float32, torch.int64, torch.int32, torch.uint8, torch.bool)


def check_example(example: Any, model: nn.Module) -> Inputs:
    """The inputs of ``model`` in ``example``: a tensor, a tuple of positional inputs, or a mapping of keyword inputs.

    Keyword inputs are in the order of the parameters of ``forward``.

    Errors: ``TypeError`` for inputs that ``forward`` does not accept, or of another type, and for integers alone if the
    model does not run on them; ``ValueError`` for tensors that are empty, not finite or not on the CPU.
    """
    inputs = _inputs(example, model)
    signature = forward_signature(model)
    bound = inputs.bind("example", signature)
    order = [*bound.arguments, *inputs.kwargs]
    inputs = Inputs(inputs.args, {key: inputs.kwargs[key] for key in sorted(inputs.kwargs, key=order.index)})
    try:
        describe_structure([inputs.args, inputs.kwargs], repeat(""))
    except TypeError as error:
        raise TypeError(f"example must hold {error}") from error
    tensors = inputs.tensors()
    for tensor in tensors:
        _check_tensor(tensor)
    floats = [tensor for tensor in tensors if tensor.dtype == torch.float32]
    if all(tensor.dim() < 2 for tensor in floats or tensors):
        shape = list(tensors[0].shape)
        raise ValueError(f"example must be a batch of at least one input, got shape {shape}")
    dense = inputs.map(lambda tensor: tensor.detach().contiguous())
    return Inputs(plain(dense.args), plain(dense.kwargs))


def _inputs(example: Any, model: nn.Module) -> Inputs:
    if isinstance(example, Tensor):
        inputs = Inputs((example,))
    elif isinstance(example, tuple):
        inputs = Inputs(example)
    elif isinstance(example, Mapping) and all(isinstance(name, str) for name in example):
        inputs = Inputs(kwargs=dict(example))
    else:
        raise TypeError(
            "example must be a float32 tensor, a tuple of positional inputs, or a mapping of keyword inputs, got "
            f"{type(example).__name__}{remedy(example)}"
        )
    tensors = inputs.tensors()
    # A model may take integers and scale them itself.
    if not any(tensor.dtype == torch.float32 for tensor in tensors) and not (tensors and accepts(model, inputs)):
        if isinstance(example, Tensor):
            check_float32("example", example)
        raise TypeError(f"example must hold a float32 tensor, got {example!r:.100}")
    return inputs


def _check_tensor(tensor: Tensor) -> None:
    if tensor.layout is not torch.strided:
        raise TypeError(f"example must hold dense tensors, got {tensor.layout}: convert it with .to_dense()")
    if tensor.dtype not in _DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
        raise TypeError(f"example must hold tensors of {names}, got {tensor.dtype}")
    if tensor.numel() == 0:
        raise ValueError(f"example must be a batch of at least one input, got shape {list(tensor.shape)}")
    if tensor.device.type != "cpu":
        raise ValueError(f"example must be on the CPU, got {tensor.device}")
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise ValueError("example must be finite, got NaN or infinity")
