"""The plain form of a convolution or linear layer that pads its input itself or computes its weight."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..tensor_writes import TensorWrites
from .padding import SamePadding, padding_module, same_padding
from .recording import Recording, light_copy, record_steps

__all__ = ["PlainWeighted", "find_plain_weighted"]

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_DEFAULTS = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1}

#: For each function its module, and the names of its arguments.
_MODULES: dict[Any, tuple[Any, tuple[str, ...]]] = {
    F.conv1d: (nn.Conv1d, _CONV),
    F.conv2d: (nn.Conv2d, _CONV),
    F.conv3d: (nn.Conv3d, _CONV),
    F.conv_transpose1d: (nn.ConvTranspose1d, _TRANSPOSED),
    F.conv_transpose2d: (nn.ConvTranspose2d, _TRANSPOSED),
    F.conv_transpose3d: (nn.ConvTranspose3d, _TRANSPOSED),
    F.linear: (nn.Linear, _CONV[:3]),
}


@dataclass(frozen=True)
class PlainWeighted:
    """A plain layer, and the padding before it."""

    padding: nn.Module | None
    layer: nn.Module
    #: Names of the children that run before and after them.
    before: tuple[str, ...]
    after: tuple[str, ...]
    #: Whether the weight and the bias are parameters of the original, which it does not write, in both modes.
    can_train: bool
    #: Shapes of small inputs.
    examples: list[tuple[int, ...]]


@dataclass(frozen=True)
class _Call:
    """A call of a function with a weight."""

    function: Any
    #: Stride, dilation and the other arguments that are no tensors.
    numbers: dict[str, Any]
    before: tuple[str, ...]
    after: tuple[str, ...]
    #: The shape of the input, and the padding before the call, which is empty if there is none.
    shape: torch.Size
    padding: tuple[int, ...]
    mode: str
    value: float
    weight: Tensor
    bias: Tensor | None

    def has_geometry_of(self, other: "_Call") -> bool:
        own, others = (
            (call.function, call.numbers, call.before, call.after, call.weight.shape, call.bias is None)
            for call in (self, other)
        )
        has_style = not (self.padding and other.padding) or (self.mode, self.value) == (other.mode, other.value)
        return own == others and has_style


def find_plain_weighted(module: nn.Module, input: Tensor) -> PlainWeighted | None:
    """The plain form of ``module``; ``None`` if its ``forward`` is not one call of a function with a weight.

    Args:
        module: any layer.
        input: an input without values that it accepts.
    """
    copied = light_copy(module, "meta").eval()
    first = _read(record_steps(copied, input))
    if first is None:
        return None
    calls, shapes = [first], []
    for shape in _shapes(input, first):
        try:
            call = _read(record_steps(copied, input.new_empty(shape)))
        except RuntimeError:  # the image is smaller than the kernel
            continue
        if call is None or not call.has_geometry_of(first):
            return None
        calls.append(call)
        shapes.append(shape)
    padding, numbers = _common_padding(calls)
    if numbers is None:
        return None
    examples = sorted(shapes[:12], key=math.prod)[:2]
    tensor = next(iter([*module.parameters(), *module.buffers()]))
    values = torch.randn(examples[0], dtype=input.dtype).to(tensor.device)
    call = _read(record_steps(light_copy(module).eval(), values))
    if call is None or not call.has_geometry_of(first):
        return None
    layer = _layer(replace(call, numbers=numbers), module)
    is_own = layer.weight is module._parameters.get("weight") and layer.bias is module._parameters.get("bias")
    can_train = is_own and _trains(module, input, first)
    return PlainWeighted(padding, layer, first.before, first.after, can_train, examples)


def _shapes(input: Tensor, first: _Call) -> Iterator[tuple[int, ...]]:
    """Shapes of images smaller and larger than the kernel, with all remainders of small strides."""
    channels, *image = input.shape[1:]
    if not image:
        yield from ((1, channels), (2, 3, channels), (2, 2, 3, channels))
        return
    dilation = first.numbers["dilation"]
    kernel = max((k - 1) * d + 1 for k, d in zip(first.weight.shape[2:], dilation, strict=True))
    large = [kernel + i for i in (0, 1, 2, 3, 4, 5, 6, 7, kernel, kernel + 1, 31, 32)]
    sizes = [(size, large[i * 5 % 12], large[i * 7 % 12]) for i, size in enumerate(large)]
    sizes += [(1, 1, 1), (2, 5, 3), (large[1], 3, 2), (4, large[6], 5)]
    for i, size in enumerate(sizes):
        yield (1 + i % 3, channels, *size[: len(image)])


def _read(recording: Recording | None) -> _Call | None:
    """The call with a weight in a run; ``None`` if the run does anything else but padding before it."""
    if recording is None or recording.writes:
        return None
    targets = [step.target for step in recording.steps]
    index = next((i for i, target in enumerate(targets) if not isinstance(target, str) and target in _MODULES), None)
    if index is None:
        return None
    start = next(i for i, target in enumerate(targets) if not isinstance(target, str))
    before, pads, after = targets[:start], recording.steps[start:index], targets[index + 1 :]
    if any(step.target is not F.pad for step in pads) or not all(isinstance(target, str) for target in after):
        return None
    function, call = targets[index], recording.steps[index]
    arguments = dict(zip(_MODULES[function][1], call.args, strict=False)) | call.kwargs
    input, weight, bias = arguments.pop("input"), arguments.pop("weight"), arguments.pop("bias", None)
    dims = 0 if function is F.linear else weight.dim() - 2
    numbers = {
        name: _tuple(arguments.get(name, _DEFAULTS[name]), dims) for name in _MODULES[function][1] if name in _DEFAULTS
    }
    if dims:
        numbers["groups"] = arguments.get("groups", 1)
    padding, style = (0,) * (2 * dims), ("constant", 0.0)
    for step in pads:
        bound = dict(zip(("input", "pad", "mode", "value"), step.args, strict=False)) | step.kwargs
        sizes = tuple(bound["pad"])
        if not any(sizes):
            continue
        new_style = (bound.get("mode", "constant"), float(bound.get("value") or 0))
        if len(sizes) > 2 * dims or (any(padding) and {style, new_style} != {("constant", 0.0)}):
            return None
        style = new_style
        padding = tuple(a + b for a, b in zip(padding, sizes + (0,) * (2 * dims - len(sizes)), strict=True))
    shape = (pads[0].args[0] if pads else input).shape
    return _Call(
        function,
        numbers,
        tuple(before),
        tuple(after),
        shape,
        padding if any(padding) else (),
        *style,
        weight,
        bias,
    )


def _tuple(value: Any, dims: int) -> Any:
    if isinstance(value, (str, int)):
        return value if isinstance(value, str) else (value,) * dims
    return tuple(value) * (dims if len(value) == 1 else 1)


def _common_padding(calls: list[_Call]) -> tuple[nn.Module | None, dict[str, Any] | None]:
    """The module that pads as all calls do, and the arguments of the layer after it, ``None`` if there is none."""
    first, numbers = calls[0], dict(calls[0].numbers)
    dims = len(numbers.get("stride", ()))
    none = (0,) * (2 * dims)
    paddings = {call.padding or none for call in calls}
    style = next(((call.mode, call.value) for call in calls if call.padding), ("constant", 0.0))
    is_transposed = "output_padding" in numbers
    if paddings == {none} and not isinstance(numbers.get("padding"), str):
        return None, numbers
    if len(calls) < 12:
        return None, None
    if len(paddings) > 1:
        geometry = list(first.weight.shape[2:]), numbers["stride"], numbers["dilation"]
        is_same = all((call.padding or none) == tuple(same_padding(call.shape, *geometry)) for call in calls)
        fits = is_same and style == ("constant", 0.0) and not any(numbers["padding"]) and not is_transposed
        return (SamePadding(*geometry), numbers) if fits else (None, None)
    (padding,) = paddings
    own = _sides(numbers["padding"], first.weight.shape[2:], numbers["dilation"])
    if style == ("constant", 0.0) and not is_transposed:
        padding = tuple(a + b for a, b in zip(padding, own, strict=True))
        numbers["padding"] = padding[::-2] if padding[::2] == padding[1::2] else (0,) * dims
        if any(numbers["padding"]) or not any(padding):
            return None, numbers
    elif isinstance(numbers["padding"], str):
        numbers["padding"] = own[::-2]
        if own[::2] != own[1::2]:
            return None, None
    module = padding_module(padding, *style)
    return module, None if module is None else numbers


def _sides(padding: Any, kernel_size: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    """A convolution's own padding in the order of ``torch.nn.functional.pad``."""
    sides: list[int] = []
    for i in reversed(range(len(kernel_size))):
        total = dilation[i] * (kernel_size[i] - 1) if padding == "same" else 0
        sides += [total // 2, total - total // 2] if isinstance(padding, str) else [padding[i], padding[i]]
    return tuple(sides)


def _layer(call: _Call, module: nn.Module) -> Any:
    """The plain layer. It shares the parameters of ``module``, and has copies of what ``module`` computes."""
    cls, weight = _MODULES[call.function][0], call.weight
    channels: list[Any] = [weight.shape[1], len(weight)]
    if call.function is not F.linear:
        channels[0] *= call.numbers["groups"]
        if "output_padding" in call.numbers:
            channels = [len(weight), channels[0]]
        channels.append(weight.shape[2:])
    layer = cls(*channels, **call.numbers, bias=call.bias is not None, device="meta")
    for name, value in (("weight", weight), ("bias", call.bias)):
        if value is not None and not any(value is parameter for parameter in module._parameters.values()):
            value = nn.Parameter(value.detach().clone(), requires_grad=False)
        setattr(layer, name, value)
    return layer


def _trains(module: nn.Module, input: Tensor, first: _Call) -> bool:
    """Whether a layer does the same in training mode, and writes into no parameter."""
    copied = light_copy(module, "meta").train()
    with TensorWrites(dict(copied.named_parameters())) as writes:
        call = _read(record_steps(copied, input))
    if writes.found or call is None or not call.has_geometry_of(first) or call.padding != first.padding:
        return False
    return call.weight is copied._parameters.get("weight") and call.bias is copied._parameters.get("bias")
