"""The steps of lowered programs."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .int8_kernels import dequantize, quantize, quantize_affine, quantized_conv_sum
from .kernels import conv1d, conv_sum, linear_sum

__all__ = ["Ref", "Step", "refs", "substitute"]

_CONV, _LINEAR = "mkldnn._convolution_pointwise.default", "mkldnn._linear_pointwise.default"


@dataclass(frozen=True)
class Ref:
    """The place of a value in the arguments of a step."""

    name: str


@dataclass(frozen=True)
class Step:
    """One call of an operator."""

    #: The name of its result.
    name: str
    #: A function, or the name of an operator of torch.
    target: Callable[..., Any] | str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    #: The shape of the result for the example; ``None`` if that is no tensor.
    shape: tuple[int, ...] | None = None

    def operator(self) -> Callable[..., Any]:
        """The function to call.

        Errors: ``RuntimeError`` if this version of torch has no such operator.
        """
        if not isinstance(self.target, str):
            return self.target
        namespace, name, overload = self.target.split(".")
        try:
            found: Callable[..., Any] = getattr(getattr(getattr(torch.ops, namespace), name), overload)
        except (AttributeError, RuntimeError):
            raise RuntimeError(f"this version of torch has no operator {self.target}: lower the model again") from None
        return found

    def describe(self, names: Mapping[str, str]) -> str:
        """A line with the operator, its inputs under their names for readers, its post-operations and its shape."""
        inputs = ", ".join(names.get(name, name) for name in dict.fromkeys(refs([*self.args, *self.kwargs.values()])))
        shape = "" if self.shape is None else f"  {list(self.shape)}"
        return f"{self.name} = {_operator_name(self)}({inputs}){_post_operations(self)}{shape}"

    def is_int8(self) -> bool:
        """Whether the step takes or returns integers for numbers in steps of a scale."""
        is_kernel = self.target in (quantize, quantize_affine, dequantize, quantized_conv_sum)
        return is_kernel or str(self.target).startswith("onednn.q")

    def is_arithmetic(self) -> bool:
        """Whether the step computes a number from sizes."""
        is_size = isinstance(self.target, str) and self.target.startswith("aten.sym_")
        return is_size or getattr(self.target, "__module__", "") in ("_operator", "math", "torch")


def substitute(value: Any, get: Callable[[str], Any]) -> Any:
    """``value`` with the result of ``get`` in place of each reference."""
    if isinstance(value, Ref):
        return get(value.name)
    if isinstance(value, (tuple, list)):
        return type(value)(substitute(item, get) for item in value)
    if isinstance(value, slice):
        return slice(*(substitute(item, get) for item in (value.start, value.stop, value.step)))
    return {key: substitute(item, get) for key, item in value.items()} if isinstance(value, dict) else value


def refs(value: Any) -> Iterator[str]:
    """The names of all references in ``value``."""
    if isinstance(value, Ref):
        yield value.name
    elif isinstance(value, slice):
        yield from refs([value.start, value.stop, value.step])
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from refs(item)
    elif isinstance(value, dict):
        yield from refs(list(value.values()))


def _operator_name(step: Step) -> str:
    if step.target is conv_sum:
        return f"mkldnn._convolution_pointwise{'_' if step.args[-1] else ''}.binary"
    if step.target is quantized_conv_sum:
        return "onednn.qconv2d_pointwise.binary"
    if step.target is linear_sum:
        return "mkldnn._linear_pointwise.binary"
    name = step.target if isinstance(step.target, str) else step.target.__name__
    return name.removeprefix("aten.").rpartition(".")[0] if name.startswith("aten.") else name.removesuffix(".default")


def _post_operations(step: Step) -> str:
    """The sum and the activation that a layer computes, for readers."""
    if step.target in (_CONV, _LINEAR, conv1d) or str(step.target).startswith("onednn.q"):
        name, scalars, algorithm = step.args[-3:]
        numbers = [*(f"{number:g}" for number in scalars), *([algorithm] if algorithm not in ("", "none") else [])]
        return "" if name == "none" else f" + {name}{'(' + ', '.join(numbers) + ')' if numbers else ''}"
    if step.target is conv_sum:
        post_op, in_place = step.args[-2:]
        return f" + sum{' in place' if in_place else ''}" + (f" + {post_op}" if post_op else "")
    if step.target is quantized_conv_sum:
        post_op, in_place = step.args[-2:]
        return f" + sum{' in place' if in_place else ''}" + ("" if post_op == "none" else f" + {post_op}")
    return " + sum" if step.target is linear_sum else ""
