"""Rows on values: what a layer computes, and on what its result may depend."""

import warnings

import numpy as np
import torch
from torch import Tensor

from .._cell import Cell
from .._row import NA, row
from ._applies import RANDOM_IN_TRAINING, TRAIN_EVAL, lacks

__all__ = ["batch_indep", "determinism", "out_shape", "reference"]


@row(
    "reference",
    variants=TRAIN_EVAL,
    not_applicable=(NA("no reference given", lambda cell: cell.sample.reference is None), RANDOM_IN_TRAINING),
)
def reference(cell: Cell) -> None:
    """The output is that of an independent reference in float64, to 1e-9, and in float32 to 1e-5."""
    layer = cell.layer(torch.float64)
    input = cell.input(torch.float64)
    weights = {key: value.numpy().copy() for key, value in layer.state_dict().items()}
    assert cell.sample.reference is not None
    expected = cell.sample.reference(input.numpy(), weights, cell.training)
    with torch.no_grad():
        np.testing.assert_allclose(layer(input).numpy(), expected, rtol=1e-9, atol=1e-9)
        single = cell.layer()
        single.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
        got = single(input.float()).double().numpy()
    # Relative to the largest value: sums of many terms cancel, and single elements then keep fewer digits.
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * max(1.0, float(np.abs(expected).max())))


@row(
    "out_shape",
    per_layer=True,
    not_applicable=(NA("no geometries given", lambda cell: cell.spec.geometries is None), lacks("hypothesis")),
)
def out_shape(cell: Cell) -> None:
    """Shape and dtype are those of the formula, for sizes (0 and 1 too) and arguments that hypothesis draws."""
    import hypothesis

    @hypothesis.settings(max_examples=60, deadline=None, database=None, derandomize=True)
    @hypothesis.given(cell.spec.geometries)
    def check(geometry) -> None:  # type: ignore[no-untyped-def]  # hypothesis reads annotations at run time
        layer = cell.spec.cls(**geometry.kwargs).eval()
        input = torch.zeros(geometry.shape)
        if geometry.out_shape is None:
            try:
                output = layer(input)
            except (ValueError, RuntimeError):  # torch's own convolutions raise the second for an image too small
                return
            raise AssertionError(f"takes {geometry.shape} and gives {tuple(output.shape)}, must refuse it: {geometry}")
        output = layer(input)
        assert tuple(output.shape) == tuple(geometry.out_shape), (
            f"gives {tuple(output.shape)}, the formula {geometry.out_shape}: {geometry}"
        )
        assert output.dtype == input.dtype, f"gives {output.dtype} for {input.dtype}: {geometry}"

    with warnings.catch_warnings():
        # It warns of slow machines, and of settings of the caller's.
        warnings.simplefilter("ignore", hypothesis.errors.HypothesisWarning)
        check()


@row("batch_indep")
def batch_indep(cell: Cell) -> None:
    """In eval no image sees another: a batch gives what its images give alone, in any order."""
    layer = cell.layer()
    input = cell.input()
    with torch.no_grad():
        whole = layer(input)
        for i in range(input.shape[0]):
            torch.testing.assert_close(layer(input[i : i + 1])[0], whole[i], rtol=1e-5, atol=1e-5)
        order = torch.arange(input.shape[0]).roll(1)
        torch.testing.assert_close(layer(input[order]), whole[order], rtol=1e-5, atol=1e-5)


@row("determinism", variants=TRAIN_EVAL)
def determinism(cell: Cell) -> None:
    """Eight calls give the same bits: in eval whatever the seed, in training from one seed."""
    layer = cell.layer()
    input = cell.input()
    first: Tensor | None = None
    for repeat in range(8):
        torch.manual_seed(1 if cell.training else repeat)
        output = layer(input).detach()
        if first is None:
            first = output
        elif not torch.equal(output, first):
            raise AssertionError(f"call {repeat + 1} gives other values than the first")
