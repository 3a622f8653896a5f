"""Layers without parameters."""

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch

from torchvision_layers import nn as tnn
from torchvision_layers.testing import BadArguments, BadInput, InvalidInput, LayerSpec, Sample

from .. import reference as ref
from . import invalid_inputs, shape_strategies

__all__ = ["SPECS"]


def _itself(x: np.ndarray, weights: Mapping[str, np.ndarray], training: bool) -> np.ndarray:
    return x


def _drop(p: float, mode: str, shape: tuple[int, ...]) -> Sample:
    dims = tuple(range(len(shape)))
    name = mode if p else "never"
    return Sample(name, {"p": p, "mode": mode}, shape, _itself, is_random=p > 0, reads_mode=True, dynamic_dims=dims)


def _dims(dims: object, error: type[Exception], message: str) -> BadArguments:
    return BadArguments(InvalidInput.CHOICE, {"dims": dims}, error, message)


SPECS = (
    LayerSpec(
        tnn.StochasticDepth,
        (_drop(0.3, "row", (2, 3, 5, 7)), _drop(0.3, "batch", (2, 3, 5)), _drop(0.0, "row", (2, 3, 5))),
        (
            *invalid_inputs.probability("p"),
            BadArguments(
                InvalidInput.CHOICE, {"mode": "column"}, ValueError, "mode must be 'batch' or 'row', got 'column'"
            ),
            BadArguments(
                InvalidInput.CHOICE,
                {"mode": "batch", "kept_rows_only": True},
                ValueError,
                "kept_rows_only needs mode='row', got 'batch'",
            ),
            BadArguments(InvalidInput.CHOICE, {"mode": None}, ValueError, "mode must be 'batch' or 'row', got None"),
        ),
        (
            BadInput(InvalidInput.RANK, (), ValueError, "input must have at least 1 dimension, got 0"),
            *invalid_inputs.no_tensors(),
            # torch would reject them in training only.
            *(
                BadInput(
                    InvalidInput.DTYPE,
                    torch.zeros(2, 3, 5, dtype=dtype),
                    TypeError,
                    f"input must have a floating-point dtype, got {dtype}",
                    training=training,
                )
                for dtype in (torch.uint8, torch.bool, torch.complex64)
                for training in (False, True)
            ),
        ),
        shape_strategy=shape_strategies.stochastic_depth(),
    ),
    LayerSpec(
        tnn.Permute,
        (
            Sample(
                "channels last",
                {"dims": (0, 2, 3, 1)},
                (2, 3, 6, 7),
                partial(ref.permute, dims=(0, 2, 3, 1)),
                reads_mode=False,
            ),
            Sample("swap", {"dims": [0, -1, 1]}, (2, 3, 7), partial(ref.permute, dims=(0, 2, 1)), reads_mode=False),
        ),
        (
            _dims((0, 1, 1), ValueError, r"dims must contain each dimension exactly once, got \(0, 1, 1\)"),
            _dims((), ValueError, r"dims must contain each dimension exactly once, got \(\)"),
            _dims((0, 2), ValueError, r"dims must contain each dimension exactly once, got \(0, 2\)"),
            _dims((0, -4, 1, 2), ValueError, r"dims must contain each dimension exactly once, got \(0, -4, 1, 2\)"),
            _dims((0, 1, -4), ValueError, "dims must be at least -3, got -4"),
            _dims((0.0, 1.0), TypeError, r"dims must be an int, got 0\.0"),
            _dims("0231", TypeError, "dims must be a list or tuple of ints, got '0231'"),
            _dims(None, TypeError, "dims must be a list or tuple of ints, got None"),
        ),
        (
            BadInput(InvalidInput.RANK, (2, 3, 6), ValueError, r"x must have 4 dimensions, got 3: shape \[2, 3, 6\]"),
            BadInput(InvalidInput.RANK, (1, 2, 3, 6, 7), ValueError, "x must have 4 dimensions, got 5"),
            *invalid_inputs.no_tensors(),
        ),
        shape_strategy=shape_strategies.permute(),
    ),
)
