"""Lowered programs as modules that torch.export can trace, and the calls that pack their weights."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..._utils.inputs import Inputs
from ..._utils.structure import rebuild
from .model import LoweredModel, check_inputs, state_of
from .steps import refs, substitute

__all__ = ["Packing", "TraceableProgram", "shape_kernels"]


@dataclass(frozen=True)
class Packing:
    """The call of an operator that packs a weight."""

    #: The name of the operator below ``torch``.
    operator: str
    args: tuple[Any, ...]

    def run(self) -> Tensor:
        """The packed weight."""
        packed: Tensor = attrgetter(self.operator)(torch)(*self.args)
        return packed


class TraceableProgram(nn.Module):
    """The program of a lowered model, called by the parameters in ``signature``, with its weights before packing.

    Attributes:
        packings: for each weight that the program needs packed, the call that packs it.
    """

    def __init__(self, lowered: LoweredModel, signature: inspect.Signature) -> None:
        super().__init__()
        program = lowered._program
        with _PackingRecord() as record:
            values = program.constants(state_of(lowered))
        steps = [[*step.args, *step.kwargs.values()] for step in program.steps]
        self._names = {name: f"value_{name}" for name in refs([*steps, *program.outputs]) if name in values}
        self.packings: dict[str, Packing] = {}
        for name, key in self._names.items():
            value = values[name]
            if isinstance(value, Tensor) and value.layout is not torch.strided:
                self.packings[key] = packing = record.packing(value)
                value = _shaped_like(value, packing)
            self.register_buffer(key, value.detach())

        def forward(*args: Any, **kwargs: Any) -> Any:
            tensors = check_inputs(lowered, Inputs(args, kwargs))
            values = {name: getattr(self, key) for name, key in self._names.items()}
            values.update(zip(program.inputs, tensors, strict=True))
            for step in program.steps:
                args, kwargs = substitute((step.args, step.kwargs), values.__getitem__)
                values[step.name] = step.operator()(*args, **kwargs)
            return rebuild(lowered._output_template, substitute(program.outputs, values.__getitem__))

        forward.__signature__ = signature  # type: ignore[attr-defined]
        self.forward = forward
        self.eval()


def _shaped_like(packed: Tensor, packing: Packing) -> Tensor:
    """The weight before packing. Linear layers in int8 are packed from the transposed matrix."""
    weight: Tensor = packing.args[0]
    return weight.t() if packed.shape == weight.shape[::-1] and weight.dim() == 2 else weight


class _PackingRecord(TorchDispatchMode):
    """Records the call that makes each packed weight."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Tensor, Packing]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor) and output.layout is not torch.strided:
            assert not kwargs, func
            self._calls.append((output, Packing(f"ops.{func}", args)))
        return output

    def packing(self, packed: Tensor) -> Packing:
        return next(packing for output, packing in self._calls if output is packed)


@contextmanager
def shape_kernels() -> Iterator[None]:
    """Lets operators of oneDNN run without values, if torch cannot do so."""
    with ExitStack() as stack:
        for name, kernel in _SHAPE_KERNELS.items():
            if not torch._C._dispatch_has_kernel_for_dispatch_key(name, "Meta"):
                library = stack.enter_context(torch.library._scoped_library(name.partition("::")[0], "IMPL", "Meta"))
                library.impl(name.partition("::")[2], kernel)
        yield


def _shape_of_sum(input: Tensor, other: Tensor, *args: Any) -> Tensor:
    return torch.empty_like(other)


def _shape_of_sum_in_place(other: Tensor, *args: Any) -> Tensor:
    return other


def _shape_of_quantized_conv(*args: Any) -> Tensor:
    output: Tensor = torch.ops.onednn.qconv_pointwise.default(*args)
    return output


_SHAPE_KERNELS: dict[str, Callable[..., Tensor]] = {
    "mkldnn::_convolution_pointwise.binary": _shape_of_sum,
    "mkldnn::_convolution_pointwise_.binary": _shape_of_sum_in_place,
    "mkldnn::_linear_pointwise.binary": _shape_of_sum,
    "onednn::qconv1d_pointwise": _shape_of_quantized_conv,
    "onednn::qconv3d_pointwise": _shape_of_quantized_conv,
}
