"""Folds a model for inference: computes everything that is constant there once, into the weights."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .._utils.failed_runs import explaining
from .._utils.hooked_weights import compute_hooked_weights
from .._utils.input_remedies import remedy
from .._utils.inputs import Inputs
from .._utils.model_checks import check_module, check_not_lazy, check_unwrapped
from .._utils.modules import copy_module, has_hooks
from .._utils.plain.model import make_plain_
from ..quantized import QuantizableGraph, QuantizableModel
from .folding.comparison import check_same
from .folding.folding_pass import FoldingPass
from .folding.readers import find_read_modules, graphs_of_forwards
from .folding.replacement import remove_parametrizations

__all__ = ["fold", "fold_call", "run_on"]

_CAUSES = (
    "possible causes: a forward that cannot be traced calls only parts of a child, a forward reads an attribute of a "
    "norm or a dropout, nn.BatchNorm1d runs on sequences, or a folded() computes something else"
)


def fold(model: nn.Module, batch: Tensor | tuple[Any, ...] | None = None) -> nn.Module:
    """A copy of ``model`` for inference that computes the same with fewer operations.

    Batch norms move into the convolutions, transposed convolutions and linear layers before them, and layer scales
    into the layer before or after them. Weights that standardization, parametrizations, pruning or the hooks of
    ``torch.nn.utils`` compute are computed once. A CoordConv becomes a convolution plus a map that is cached for each
    image size. Modules that do nothing in eval mode are
    removed. This holds for layers of any class that compute what torch's own layers compute: convolutions that pad by
    themselves, for example, or batch norms that apply an activation. Give any other layer of your own a method
    ``folded()`` that returns a module which computes the same; a subclass with another ``forward`` needs its own. The
    layer stays as it is if the method raises ``ValueError``.

    The order of modules is traced from each ``forward``, or recorded on ``batch`` if it cannot be traced. A module is
    left alone if it is registered in several places, has several consumers, or has its parameters read by a
    ``forward``. So is a child, with all below it, if a ``forward`` above it would compute something else: one that
    reads its attributes, its class or its length, for example. A second trace finds this, except in a module without
    children that reads other modules, and inside a module with a method ``folded()``: pass a ``batch`` for these.
    ``nn.BatchNorm1d`` after ``nn.Linear`` is assumed to receive inputs of two dimensions.

    Args:
        model: any float model in any mode; it stays unchanged.
        batch: an input of the model, or a tuple of its inputs, on which the copy is compared with the model. The
            tolerance is 1e-5 of the largest output or, if that is more, eight times the model's own rounding error.
            Required if there is something to fold below a ``forward`` that cannot be traced. Default: ``None``.

    Returns a copy in eval mode, without gradients, with the device, dtype and memory format of ``model``. The remaining
    ``state_dict`` keys are the same, except that the constant filter of a blur pooling becomes a ``weight``.

    Errors: ``TypeError`` for an argument of another type, a lazy layer without channels, or a ``folded()`` that returns
    no module; ``ValueError`` for a module with other hooks, for a model that is quantized, scripted, compiled or
    wrapped, for a missing ``batch``, and for outputs that are not finite or contain no numbers to compare;
    ``RuntimeError`` if the copy computes something else.

    Examples::

        >>> model = tnn.ConvNormAct(3, 8).eval()
        >>> deploy.fold(model)
        ConvNormAct(
          (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
          (2): ReLU(inplace=True)
        )
    """
    if batch is not None and not isinstance(batch, (Tensor, tuple)):
        raise TypeError(
            f"batch must be a tensor, or a tuple with the inputs of model, got {type(batch).__name__}{remedy(batch)}"
        )
    return fold_call(model, None if batch is None else Inputs(batch if isinstance(batch, tuple) else (batch,)))


def fold_call(model: nn.Module, inputs: Inputs | None, name: str = "batch") -> nn.Module:
    """:func:`fold` for positional and keyword inputs, which errors call ``name``."""
    _check_model(model)
    if inputs is not None:
        inputs.bind(name, inspect.signature(model.forward))
    with explaining(model, [] if inputs is None else [(name, inputs)]):
        kept = set[str]()
        while True:
            folded = _with_plain_weights(model)
            read = _fold(folded, model, None if inputs is None else partial(run_on, inputs), kept)
            if not read:
                break
            kept |= read
        folded.requires_grad_(False)
        if inputs is not None:
            check_same(folded, model, inputs, "folding", _CAUSES)
    return folded


def _with_plain_weights(model: nn.Module) -> nn.Module:
    """A copy in eval mode, whose weights are parameters that hold what hooks and parametrizations compute."""
    copied = copy_module(model).eval()
    compute_hooked_weights(copied)
    _check_no_hooks(copied)
    remove_parametrizations(copied)
    return copied


def _fold(folded: nn.Module, model: nn.Module, run: Callable[[nn.Module], object] | None, kept: set[str]) -> set[str]:
    """Folds a copy of ``model`` in place, except for the modules at the paths ``kept`` and those below them.

    Returns the paths of further modules to leave alone, because a ``forward`` now reads something else from them.
    """
    modules = {module for path in kept for module in folded.get_submodule(path).modules()}
    classes = [*map(type, folded.modules())]
    find = partial(find_read_modules, graphs_of_forwards(folded), folded, partial(_with_plain_weights, model), kept)
    make_plain_(folded, kept=modules)
    read = find() if [*map(type, folded.modules())] != classes else set[str]()
    if not read:
        FoldingPass(folded, run, modules).fold(folded)
        read = find()
    return read


def _check_model(model: nn.Module) -> None:
    for path, module in check_module("model", model).named_modules():
        name = path or "model"
        if isinstance(module, (QuantizableGraph, QuantizableModel)):
            raise ValueError(f"{name} is a {type(module).__name__}: fold the float model, then quantize it")
    check_unwrapped("model", model)
    check_not_lazy("model", model)


def _check_no_hooks(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if has_hooks(module):
            name = path or "model"
            raise ValueError(f"{name} has hooks, which would see other values in a folded model: remove them first")


@torch.no_grad()
def run_on(inputs: Inputs, model: nn.Module) -> object:
    """Runs a model on copies of the inputs."""
    return inputs.map(Tensor.clone).run(model)  # a model may write to its inputs
