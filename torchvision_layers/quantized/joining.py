"""Joins parallel convolutions before a model is quantized."""

from collections.abc import Callable, Container

import torch
from torch import Tensor, nn

from .._utils.folded_forms import join_branches
from .._utils.inputs import Inputs
from .._utils.modules import copy_module
from .checks import check_same_results
from .wrapper import QuantizableWrapper

__all__ = ["joined"]


def joined(
    model: nn.Module,
    batch: Inputs,
    excluded: Container[str],
    needs_form: Callable[[nn.Module], bool] = lambda module: False,
) -> nn.Module:
    """``model``, or a copy in which each layer whose ``folded()`` has fewer convolutions is replaced by that.

    One convolution is faster than a sum of several, and rounds once.

    Args:
        model: in float.
        batch: inputs, on which the copy must compute the same as ``model`` in eval mode.
        excluded: paths of modules that stay as they are.
        needs_form: whether a layer is replaced even if its ``folded()`` has as many convolutions.

    Errors: ``RuntimeError`` if the copy computes something else.
    """
    if isinstance(model, QuantizableWrapper):  # its layers are rewritten
        return model
    copied = join_branches(model, excluded, needs_form)
    if copied is not model:
        original = copy_module(model).eval()
        with torch.no_grad():
            check_same_results(
                batch.map(Tensor.clone).run(copied),
                batch.map(Tensor.clone).run(original),
                "model must compute the same with each layer replaced by its folded(), a folded() computes something "
                "else",
                original,
                batch,
            )
    return copied
