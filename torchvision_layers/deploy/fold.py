"""A model for inference: what is constant there is computed once, into the weights."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.utils._pytree import tree_leaves, tree_map_only

from .._utils.modules import has_hooks
from ..quantized import QuantizableGraph, QuantizableModel
from ._becoming import settle_parameters
from ._folding import Folding

__all__ = ["fold"]

# They run another module, into which nobody looks.
_WRAPPERS = (torch.jit.ScriptModule, nn.DataParallel, nn.parallel.DistributedDataParallel)

_REASONS = (
    "a forward that cannot be traced calls only parts of a child, a forward reads something of a norm or a dropout, "
    "nn.BatchNorm1d runs on sequences, or a folded() gives something else"
)


def fold(model: nn.Module, batch: Tensor | tuple[Any, ...] | None = None) -> nn.Module:
    """A copy of ``model`` for inference that computes the same with less.

    Batch norms go into the convolutions, transposed convolutions and projections before them, layer scale into the
    projection before or after it, standardized weights are standardized, a CoordConv becomes a convolution plus a map
    that is kept for each size of image, parametrized weights become plain ones, and what does nothing in eval mode
    goes. A layer of your own takes part if it has a method ``folded()`` that gives a module which computes the same;
    a subclass with another ``forward`` needs its own.

    What runs after what is found by tracing each ``forward``, not by order of definition. Where a module stands at
    several places, or its output goes to several, or a ``forward`` reads its parameters, nothing is folded into it.
    ``nn.BatchNorm1d`` after ``nn.Linear`` is taken to see inputs of two dimensions.

    Args:
        model: any float model; in whichever mode, it is left as it is.
        batch: an input of the model, or a tuple of its inputs, on which the copy is compared with it, to 1e-5 of the
            largest output or, where that is more, four times what rounding does to the model itself. Needed where
            there is something to fold below a ``forward`` that cannot be traced. Default: ``None``.

    Returns a copy in eval mode, without gradients, on the device, in the type and the memory format of ``model``. In
    the ``state_dict`` what is left keeps its keys.

    Errors: ``TypeError`` for what is no module, a lazy layer without channels, a ``batch`` of another type, or a
    ``folded()`` that gives no module; ``ValueError`` for a module with hooks, which would see something else, for a
    model that is quantized, scripted, compiled or wrapped, for a ``batch`` that is missing, or for outputs that are not
    finite or hold no numbers to compare; ``RuntimeError`` where the copy gives something else.

    Examples::

        >>> model = tnn.ConvNormAct(3, 8).eval()
        >>> deploy.fold(model)
        ConvNormAct(
          (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
          (2): ReLU(inplace=True)
        )
    """
    _check_model(model)
    if batch is not None and not isinstance(batch, (Tensor, tuple)):
        raise TypeError(f"batch must be a tensor, or a tuple of the inputs of model, got {type(batch).__name__}")
    folded = copy.deepcopy(model).eval()
    settle_parameters(folded)
    Folding(folded, is_checked=batch is not None).fold(folded)
    folded.requires_grad_(False)
    if batch is not None:
        _check_same(folded, model, batch if isinstance(batch, tuple) else (batch,))
    return folded


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module, got {model!r}")
    for path, module in model.named_modules():
        where = path or "model"
        if isinstance(module, (QuantizableGraph, QuantizableModel)):
            raise ValueError(f"{where} is a {type(module).__name__}: fold the float model, then quantize it")
        if isinstance(module, _WRAPPERS) or type(module).__name__ == "OptimizedModule":  # what torch.compile makes
            raise ValueError(f"{where} is a {type(module).__name__}: fold the module that it was made from")
        if isinstance(module, LazyModuleMixin):
            raise TypeError(
                f"{where} is a {type(module).__name__} without channels yet: run one batch through it first"
            )
        if has_hooks(module):
            raise ValueError(f"{where} has hooks, which would see something else in a folded model: remove them first")


def _check_same(folded: nn.Module, model: nn.Module, inputs: tuple[Any, ...]) -> None:
    reference = copy.deepcopy(model).eval()
    expected = _outputs(reference, inputs)
    if not any(output.numel() for output in expected):
        raise ValueError("model must give tensors for batch, with numbers to compare, it gives none")
    if not all(bool(torch.isfinite(output).all()) for output in expected):
        raise ValueError("model must give finite outputs for batch, it gives NaN or infinity")
    try:
        got = _outputs(folded, inputs)
    except Exception as error:  # of whatever kind, where shapes or names do not fit any more
        raise RuntimeError(f"the folded model cannot run: {error}; {_REASONS}") from error
    if [output.shape for output in got] != [output.shape for output in expected]:
        raise RuntimeError(f"folding changed the number or the shapes of the outputs: {_REASONS}")
    for i, (want, have) in enumerate(zip(expected, got, strict=True)):
        changed, allowed = _largest(have, want), 1e-5 * _largest(want)
        if not changed <= allowed:
            # Rounding grows from layer to layer; by how much, the model itself shows.
            exact = _outputs(reference.double(), tree_map_only(Tensor, _in_double, inputs))[i]
            allowed = max(allowed, 4 * _largest(want, exact))
        if not changed <= allowed:  # nor is NaN
            raise RuntimeError(
                f"folding changed an output by {changed:.3g}, at most {allowed:.3g} are rounding: {_REASONS}"
            )


@torch.no_grad()
def _outputs(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    copies = tree_map_only(Tensor, torch.clone, inputs)  # a model may write to its inputs
    return [leaf for leaf in tree_leaves(model(*copies)) if isinstance(leaf, Tensor)]


def _in_double(input: Tensor) -> Tensor:
    return input.double() if input.is_floating_point() else input


def _largest(values: Tensor, others: Tensor | None = None) -> float:
    """The largest absolute value, or difference between two tensors, also of truth values and whole numbers."""
    wide = [tensor if tensor.is_complex() else tensor.double() for tensor in (values, others) if tensor is not None]
    if not values.numel():
        return 0.0
    return float((wide[0] if others is None else wide[0] - wide[1]).abs().max())
