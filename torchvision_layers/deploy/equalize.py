"""Cross-layer equalization: the same model, whose weights have channels of similar ranges."""

from functools import partial
from typing import Any

from torch import Tensor, nn

from .._utils.inputs import Inputs
from .fold import fold_call, run_on
from .folding.comparison import check_same
from .folding.equalizing import EqualizingPass, equalize_pairs, measure_activations

__all__ = ["equalize"]

_CAUSES = "possible causes: a forward reads an activation between two layers, or a forward that cannot be traced does"


def equalize(model: nn.Module, batch: Tensor | tuple[Any, ...] | None = None) -> nn.Module:
    """A folded copy of ``model`` that computes the same with channels of similar ranges, for int8 with one scale.

    Between two layers, a channel can be divided by a number if the next layer multiplies by it. The numbers that give
    both layers weights of the same range are those of `Data-Free Quantization Through Weight Equalization and Bias
    Correction <https://arxiv.org/abs/1906.04721>`_ (eq. 10 to 12), repeated until they converge over chains of layers.
    Scales that suit the weights make the channels of activations less similar, and these share one scale in int8 as
    well. If ``batch`` shows the activations, both count. ``quantize(..., per_channel=False)`` needs equalization; with
    a scale for each channel of a weight it gains little, except for re-parameterized networks such as RepVGG.

    Layers are convolutions, transposed convolutions and linear layers, grouped and depthwise ones included. Between
    them may be ReLU, leaky ReLU and PReLU, pooling, padding, upsampling, flattening, and whatever does nothing in eval
    mode. The cap of a ReLU6 moves with the channels: it becomes a ReLU and a largest value for each channel. Two layers
    are left alone if anything else is between them, such as another activation, or if their result is also read
    elsewhere, as by a residual connection. The order of modules is found as in :func:`fold`, and the
    copy follows the same rules.

    Args:
        model: any float model in any mode; it stays unchanged.
        batch: an input of the model, or a tuple of its inputs, on which activations are measured, and the copy is
            compared with the model, as in :func:`fold`. Required below a ``forward`` that cannot be traced.
            Default: ``None``, which equalizes weights alone.

    Errors: as in :func:`fold`.

    Examples::

        >>> model = nn.Sequential(tnn.ConvNormAct(3, 8), nn.Conv2d(8, 4, 1)).eval()
        >>> ranges = [layer.weight.abs().amax((1, 2, 3)) for layer in (deploy.equalize(model)[0][0],)]
    """
    if batch is not None and not isinstance(batch, (Tensor, tuple)):
        raise TypeError(f"batch must be a tensor, or a tuple with the inputs of model, got {type(batch).__name__}")
    inputs = None if batch is None else Inputs(batch if isinstance(batch, tuple) else (batch,))
    equalized = fold_call(model, inputs)
    search = EqualizingPass(equalized, None if inputs is None else partial(run_on, inputs))
    search.fold(equalized)
    pairs = list(search.pairs.values())
    equalize_pairs(pairs, None if inputs is None else measure_activations(pairs, partial(run_on, inputs, equalized)))
    equalized.requires_grad_(False)
    if inputs is not None:
        check_same(equalized, model, inputs, "equalization", _CAUSES)
    return equalized
