"""Stubs that quantize tensors at the border between parts in float and in int8."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..._utils.inputs import Inputs
from ..._utils.structure import Place, flatten, places, rebuild
from ..layers.observed import QuantStub

__all__ = ["Stubs", "dequantize", "dequantize_contiguous", "is_float", "through_stubs"]


class Stubs(nn.ModuleList):
    """A stub for each place of a tensor in nested containers, whatever the order of their keys is."""

    def __init__(self, count: int) -> None:
        super().__init__(QuantStub() for _ in range(count))
        #: The places of the first stubs; the others get theirs when they run.
        self.places: list[Place] = []

    def is_prepared(self) -> bool:
        """Whether the stubs observe, or quantize already."""
        return type(getattr(self[0], "activation_post_process", None)) is not nn.Identity

    def quantize(self, value: Any) -> Any:
        """``value`` with its floating-point tensors quantized. Before they observe, stubs are added.

        Errors: ``RuntimeError`` for a tensor at a place without a stub.
        """
        tensors, template = flatten(value)
        for i, (place, tensor) in enumerate(zip(places(value), tensors, strict=True)):
            if not (is_float(tensor) or tensor.is_quantized):
                continue
            index = _find_stub(self.places, place, len(self))
            if index is None:
                if not len(self) or self.is_prepared():
                    raise RuntimeError(
                        f"a part in float has a tensor to quantize at {list(place)}, and those at "
                        f"{[*map(list, self.places)]} were observed; pass an example to prepare_qat"
                    )
                self.append(QuantStub())
                index = _find_stub(self.places, place, len(self))
                assert index is not None
            if is_float(tensor):
                source = _int8_source(tensor)
                tensors[i] = self[index](tensor) if source is None else source
        return rebuild(template, tensors)


def through_stubs(inputs: Inputs, stubs: Sequence[nn.Module], known: list[Place], is_prepared: bool) -> Inputs:
    """The inputs of a model, each floating-point one through the stub for its place.

    Errors: ``ValueError`` for an input without a stub if the model ``is_prepared``.
    """
    tensors, template = flatten((inputs.args, inputs.kwargs))
    for i, place in enumerate(places((inputs.args, inputs.kwargs))):
        if not tensors[i].is_floating_point():
            continue
        index = _find_stub(known, place, len(stubs))
        if index is not None:
            tensors[i] = stubs[index](tensors[i])
        elif is_prepared:
            raise ValueError(
                f"model was prepared for {len(stubs)} floating-point inputs, got another at {list(place[1:])}: "
                "calibrate with all inputs, or pass an example with all inputs to prepare_qat"
            )
    return Inputs(*rebuild(template, tensors))


def _find_stub(known: list[Place], place: Place, count: int) -> int | None:
    """The index of the stub for ``place``, which is added to ``known`` if there are more stubs; ``None`` if not."""
    if place not in known:
        if len(known) == count:
            return None
        known.append(place)
    return known.index(place)


def is_float(value: object) -> bool:
    """Whether ``value`` is a float32 tensor, which int8 observes; only functions in float take others."""
    return isinstance(value, Tensor) and value.dtype is torch.float32


def dequantize(tensor: Tensor) -> Tensor:
    """The tensor in float, which remembers the int8 tensor: rounding it once more would add an error."""
    if not tensor.is_quantized:
        return tensor
    output = tensor.dequantize()
    if not output.is_inference():  # otherwise writes are not counted
        output.int8_source = (tensor, tensor._version, output._version)  # type: ignore[attr-defined]
    return output


def dequantize_contiguous(tensor: Tensor) -> Tensor:
    """Like :func:`dequantize`, in contiguous memory.

    Int8 convolutions return channels_last memory. Which calls of ``view`` are valid, and whether ``contiguous`` and
    ``reshape`` copy, depends on that, so a ``forward`` in float gets what convolutions in float would return.
    """
    output = dequantize(tensor)
    if not tensor.is_quantized or output.is_contiguous():
        return output
    output, source = output.contiguous(), getattr(output, "int8_source", None)
    if source is not None:
        output.int8_source = (*source[:2], output._version)  # type: ignore[attr-defined]
    return output


def _int8_source(tensor: Tensor) -> Tensor | None:
    """The int8 tensor that ``tensor`` was dequantized from, unless one of them was written to since."""
    source, *versions = getattr(tensor, "int8_source", (None,))
    return source if source is not None and [source._version, tensor._version] == versions else None
