"""An estimate of what rounding to int8 adds to the outputs of a float model, whatever the engine."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .._utils.inputs import Inputs
from .._utils.row_blocks import row_blocks
from .._utils.structure import flatten
from .steps import SMALLEST_STEP

__all__ = ["round_weights_", "rounded_outputs"]

#: Operators with weights, and those that may be fused with them. Nothing is rounded between the two.
_WEIGHTED = {"addmm", "baddbmm", "bmm", "convolution", "mm"}
_FUSED = {"clamp", "clamp_max", "clamp_min", "hardtanh", "relu"}
#: Operators whose results others divide by; no engine rounds them to zero.
_SIZES = {"linalg_vector_norm", "norm", "std", "var"}
#: Operators whose int8 kernels keep the step of their input, although the range of their output may be smaller. So do
#: those of ``_FUSED`` if no layer computes them.
_POOLS = {"_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "avg_pool2d", "avg_pool3d", "mean"}
#: Operators whose int8 kernels have a fixed step.
_FIXED_STEPS = {"hardsigmoid": 1 / 256, "sigmoid": 1 / 256, "tanh": 1 / 128}
#: Steps of an activation, and of each side of a weight: x86 may leave half of its steps out, and the largest weight
#: between two others.
_STEPS, _WEIGHT_STEPS = 255, 63.5
#: Views that repeat values, in which these cannot be rounded in place.
_OVERLAPPING = {"expand", "unfold"}


def round_weights_(model: nn.Module) -> None:
    """Rounds each parameter of two or more dimensions to int8 in place, with a scale for each row."""
    for parameter in model.parameters():
        if parameter.dim() > 1 and parameter.is_floating_point() and parameter.numel():
            dims = tuple(range(1, parameter.dim()))
            for rows in row_blocks(parameter):
                step = rows.abs().amax(dims, keepdim=True)
                step.div_(_WEIGHT_STEPS).clamp_(min=1e-30)
                rows.div_(step).round_().mul_(step)


def rounded_outputs(
    model: nn.Module,
    inputs: Inputs,
    generator: torch.Generator | None = None,
    is_symmetric: bool = False,
    widths: dict[int, float] | None = None,
) -> list[Tensor]:
    """All tensors that ``model`` returns if the values between its operators are rounded to int8.

    Each is rounded to its own range, as if every call of an operator had an observer of its own. The engines do no
    worse, so an error in how they share, choose or lose ranges is not part of the result.

    Args:
        model: in float and in eval mode.
        inputs: stay unchanged.
        generator: draws noise of up to half a step, which is added instead of rounding: multiples of a step would not
            change if they were rounded. Default: ``None``, values are rounded.
        is_symmetric: whether ranges reach equally far to both sides of zero. Default: ``False``.
        widths: for each value in turn, the width of its range in earlier calls of the same model, which counts if it is
            larger; this call updates them. Default: ``None``, each value has its own range.
    """
    rounding = _Rounding(generator, is_symmetric, {} if widths is None else widths)

    def rounded(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        rounding.round_(tensor)
        return tensor

    inputs = inputs.map(rounded)
    with rounding, _without_fast_attention():
        outputs = flatten(inputs.run(model))[0]
    for output in outputs:
        if getattr(output, "is_unrounded", False):
            rounding.round_(output)
    return outputs


@contextmanager
def _without_fast_attention() -> Iterator[None]:
    """Makes attention of torch call the operators that it consists of."""
    previous = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(previous)


def _has_own_statistics(batch_norm: Any, args: tuple[Any, ...]) -> bool:
    """Whether a batch norm computes the statistics of its input, as instance norms do."""
    names = [argument.name for argument in batch_norm._schema.arguments]
    return "training" in names and bool(args[names.index("training")])


def _is_clamp(name: str, args: tuple[Any, ...]) -> bool:
    """Whether an operator is a clamp to numbers. Engines run those to tensors in float, with ranges of their own."""
    return name in _FUSED and not any(isinstance(bound, Tensor) for bound in args[1:])


def _is_fused_clamp(name: str, args: tuple[Any, ...]) -> bool:
    """Whether an int8 layer may compute this clamp: the first after it, at zero, as ReLU and ReLU6 are."""
    if not _is_clamp(name, args) or getattr(args[0], "is_clamped", False):
        return False
    return name in ("relu", "clamp_max") or (len(args) > 1 and args[1] == 0)


class _Rounding(TorchDispatchMode):
    """Rounds tensors that depend on the inputs: they have an attribute that says whether they must still be rounded.

    The result of a layer is rounded when an operator reads it that cannot be fused, any other result at once. A second
    attribute of rounded tensors has the step.
    """

    def __init__(self, generator: torch.Generator | None, is_symmetric: bool, widths: dict[int, float]) -> None:
        super().__init__()
        self.generator = generator
        self.is_symmetric = is_symmetric
        self.widths = widths
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2].rstrip("_")
        inputs = [tensor for tensor in flatten((args, kwargs))[0] if hasattr(tensor, "is_unrounded")]
        if not inputs:
            return func(*args, **kwargs)
        is_view = func.is_view or name == "_unsafe_view"
        is_fused = _is_fused_clamp(name, args) or ("batch_norm" in name and not _has_own_statistics(func, args))
        is_unrounded = is_fused or name in _WEIGHTED or name in _SIZES
        if is_view and name not in _OVERLAPPING:
            is_unrounded = any(tensor.is_unrounded for tensor in inputs)
        elif not is_fused:
            for tensor in inputs:
                if tensor.is_unrounded and not (name == "div" and tensor is args[1]):
                    self.round_(tensor)
        step = getattr(inputs[0], "step", None) if not inputs[0].is_unrounded else None
        clamps_rounded = _is_clamp(name, args) and step is not None
        is_unrounded = is_unrounded and not clamps_rounded
        output = func(*args, **kwargs)
        for tensor in flatten(output)[0]:
            tensor.is_unrounded = is_unrounded
            tensor.is_clamped = _is_clamp(name, args) or (is_view and getattr(inputs[0], "is_clamped", False))
            if func._schema.is_mutable and tensor._base is not None:  # the tensor that a view belongs to
                tensor._base.is_unrounded = is_unrounded
            if is_view or clamps_rounded:
                tensor.step = step
            elif name in _POOLS:
                self.round_(tensor, step or self._step(inputs[0]))
            elif not is_unrounded:
                self.round_(tensor, _FIXED_STEPS.get(name))
        return output

    def round_(self, tensor: Any, step: float | None = None) -> None:
        """Rounds in place, to the steps of its range unless there is a ``step``."""
        tensor.is_unrounded, tensor.step = False, None
        if not tensor.is_floating_point() or tensor.is_meta or tensor.numel() < 2:
            return
        step = step or self._step(tensor)
        if not step < float("inf"):  # a mask has infinities
            return
        tensor.step = step
        if self.generator is None:
            tensor.div_(step).round_().mul_(step)
        else:
            noise = torch.rand(tensor.shape, generator=self.generator) - 0.5
            tensor.add_(noise.to(tensor), alpha=step)

    def _step(self, tensor: Tensor) -> float:
        """The step of the range of a tensor and zero."""
        if not tensor.numel():
            return SMALLEST_STEP
        low, high = map(float, tensor.aminmax())
        width = 2 * max(high, -low) if self.is_symmetric else max(high, 0.0) - min(low, 0.0)
        self.calls += 1
        if math.isfinite(width):
            width = self.widths[self.calls] = max(width, self.widths.get(self.calls, 0.0))
        return max(width / _STEPS, SMALLEST_STEP)
