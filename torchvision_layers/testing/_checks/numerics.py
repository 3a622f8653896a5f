"""Checks of values: results, shapes, independence of the batch, determinism."""

import copy
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from .._case import Case, loss_of, run_seeded
from .._check import NotApplicable, check
from ._not_applicable import RANDOM_IN_TRAINING, TRAIN_EVAL, lacks

__all__ = ["batch_indep", "determinism", "deterministic", "out_shape", "reference"]


@check(
    "reference",
    variants=TRAIN_EVAL,
    not_applicable=(
        NotApplicable("no reference specified", lambda case: case.sample.reference is None),
        RANDOM_IN_TRAINING,
    ),
)
def reference(case: Case) -> None:
    """The output equals an independent reference, to 1e-9 in float64 and to 1e-5 in float32."""
    layer = case.layer(torch.float64)
    input = case.input(torch.float64)
    weights = {key: value.cpu().numpy().copy() for key, value in layer.state_dict().items()}
    assert case.sample.reference is not None
    expected = case.sample.reference(input.cpu().numpy(), weights, case.training)
    with torch.no_grad():
        np.testing.assert_allclose(layer(input).cpu().numpy(), expected, rtol=1e-9, atol=1e-9)
        single = case.layer()
        single.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
        got = single(input.float()).double().cpu().numpy()
    # Relative to the largest value: where sums of many terms cancel, single elements keep fewer digits.
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * max(1.0, float(np.abs(expected).max())))


@check(
    "out_shape",
    per_layer=True,
    not_applicable=(
        NotApplicable("no shape strategy specified", lambda case: case.spec.shape_strategy is None),
        lacks("hypothesis"),
    ),
)
def out_shape(case: Case) -> None:
    """Shape and dtype follow the documented formula, for arguments and sizes (0 and 1 too) drawn by hypothesis."""
    import hypothesis

    @hypothesis.settings(max_examples=60, deadline=None, database=None, derandomize=True)
    @hypothesis.given(case.spec.shape_strategy)
    def run(example) -> None:  # type: ignore[no-untyped-def]  # hypothesis reads annotations at run time
        layer = case.place(case.sample.adapt(case.spec.cls(**example.kwargs))).eval()
        input = torch.zeros(example.shape, device=case.device)
        if example.out_shape is None:
            try:
                output = layer(input)
            except (ValueError, RuntimeError):  # torch's convolutions raise RuntimeError for a small image
                return
            raise AssertionError(f"returns {tuple(output.shape)} for {example.shape}, must raise an error: {example}")
        output = layer(input)
        assert tuple(output.shape) == tuple(example.out_shape), (
            f"returns {tuple(output.shape)}, expected by the formula {example.out_shape}: {example}"
        )
        assert output.dtype == input.dtype, f"returns {output.dtype} for {input.dtype}: {example}"

    with warnings.catch_warnings():
        # hypothesis warns about slow machines, and about settings of the caller.
        warnings.simplefilter("ignore", hypothesis.errors.HypothesisWarning)
        run()


@check("batch_indep")
def batch_indep(case: Case) -> None:
    """In eval mode, images do not affect each other: a batch equals its images one by one, in any order."""
    layer = case.layer()
    input = case.input()
    with torch.no_grad():
        whole = layer(input)
        for i in range(input.shape[0]):
            torch.testing.assert_close(layer(input[i : i + 1])[0], whole[i], rtol=1e-5, atol=1e-5)
        order = torch.arange(input.shape[0]).roll(1)
        torch.testing.assert_close(layer(input[order]), whole[order], rtol=1e-5, atol=1e-5)


@check("determinism", variants=TRAIN_EVAL)
def determinism(case: Case) -> None:
    """Eight calls are bit-equal: in eval mode for any seed, in training from one seed."""
    layer = case.layer()
    input = case.input()
    first: Tensor | None = None
    for repeat in range(8):
        torch.manual_seed(1 if case.training else repeat)
        output = layer(input).detach()
        if first is None:
            first = output
        elif not torch.equal(output, first):
            raise AssertionError(f"call {repeat + 1} differs from the first")


@contextmanager
def _deterministic_algorithms() -> Iterator[None]:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, torch raises at each product on a GPU
    mode, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode, warn_only=warns)


@check("deterministic", variants=TRAIN_EVAL)
def deterministic(case: Case) -> None:
    """With deterministic algorithms, which fill empty memory, no operator raises, and two passes are bit-equal."""
    passes = []
    layer, input = case.layer(), case.input().requires_grad_()
    with _deterministic_algorithms():
        for _ in range(2):
            output = run_seeded(copy.deepcopy(layer), input)
            passes.append((output, *torch.autograd.grad(loss_of(output), input)))
    for name, first, second in zip(("output", "gradient of the input"), *passes, strict=True):
        assert bool(first.isfinite().all()), f"the {name} is not finite"
        assert torch.equal(first, second), f"two passes differ in the {name}"
