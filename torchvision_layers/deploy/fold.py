"""A model for inference: what is constant there is computed once, into the weights."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.utils._pytree import tree_leaves

from ..quantized import QuantizableGraph, QuantizableModel
from ..quantized._kernels import has_hooks
from ._folding import Folding

__all__ = ["fold"]


def fold(model: nn.Module, batch: Tensor | tuple[Tensor, ...] | None = None) -> nn.Module:
    """A copy of ``model`` for inference that computes the same with less.

    Batch norms go into the convolutions, transposed convolutions and projections before them, layer scale into the
    projection before or after it, standardized weights are standardized, a CoordConv becomes a convolution plus a map
    that is kept for each size of image, and what does nothing in eval mode goes. A layer of your own takes part if it
    has a method ``folded()`` that gives a module which computes the same.

    What runs after what is found by tracing each ``forward``, not by order of definition. Where a module stands at
    several places, or its output goes to several, nothing is folded into it. ``nn.BatchNorm1d`` after ``nn.Linear`` is
    taken to see inputs of two dimensions.

    Args:
        model: any float model; in whichever mode, it is left as it is.
        batch: an input of the model, or a tuple of its inputs, on which the copy is compared with it, to 1e-5 of the
            largest output or, where that is more, four times what rounding does to the model itself. Needed where
            there is something to fold below a ``forward`` that cannot be traced. Default: ``None``.

    Returns a copy in eval mode, without gradients, on the device, in the type and the memory format of ``model``. In
    the ``state_dict`` what is left keeps its keys.

    Errors: ``TypeError`` for what is no module, or a lazy layer without channels; ``ValueError`` for a module with
    hooks, which would see something else, for a model that is quantized, for a ``batch`` that is missing, or for
    outputs that are not finite; ``RuntimeError`` where the copy gives something else.

    Examples::

        >>> model = tnn.ConvNormAct(3, 8).eval()
        >>> deploy.fold(model)
        ConvNormAct(
          (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
          (2): ReLU(inplace=True)
        )
    """
    _check_model(model)
    in_eval = copy.deepcopy(model).eval()
    folded = Folding(in_eval, is_checked=batch is not None).fold(in_eval, "").requires_grad_(False)
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
        if isinstance(module, LazyModuleMixin):
            raise TypeError(
                f"{where} is a {type(module).__name__} without channels yet: run one batch through it first"
            )
        if has_hooks(module):
            raise ValueError(f"{where} has hooks, which would see something else in a folded model: remove them first")


def _check_same(folded: nn.Module, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    reference = copy.deepcopy(model).eval()
    with torch.no_grad():
        expected, got = _outputs(reference, inputs), _outputs(folded, inputs)
        if not all(bool(torch.isfinite(output).all()) for output in expected):
            raise ValueError("model must give finite outputs for batch, it gives NaN or infinity")
        for i, (want, have) in enumerate(zip(expected, got, strict=True)):
            allowed = 1e-5 * _largest(want)
            if have.shape == want.shape and _largest(have - want) > allowed:
                # Rounding grows from layer to layer; by how much, the model itself shows.
                exact = _outputs(reference.double(), tuple(input.double() for input in inputs))[i]
                allowed = max(allowed, 4 * _largest(want - exact))
            if have.shape != want.shape or _largest(have - want) > allowed:
                raise RuntimeError(
                    f"folding changed an output by {_largest(have - want):.3g}, at most {allowed:.3g} are rounding: a "
                    "forward that cannot be traced calls only parts of a child, or nn.BatchNorm1d runs on sequences"
                )


def _outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(model(*inputs)) if isinstance(leaf, Tensor)]


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0
