"""Modules that are excluded from int8, and the outputs that need not be rounded between two of them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..._utils.inputs import Inputs
from ..._utils.scaling import CONV_AND_LINEAR
from ..._utils.structure import flatten
from ..layers.observed import Addition, Multiplication, QuantStub
from ..layers.same_conv import QuantizableConv2dSame
from ..report_row import Int8Support
from .support import int8_support
from .wrappers import FloatOperation

__all__ = ["exclude_", "mark_float_chains_"]


def exclude_(model: nn.Module, excluded: Mapping[str, str]) -> None:
    """Marks modules to stay in float with all below them, in place.

    An ``nn.Sequential`` that ends in a convolution or linear layer, or a twin that does, is not marked itself; each of
    its modules is, so that a norm after it fuses with that layer.
    """
    for path, by in excluded.items():
        for module in model.get_submodule(path).modules():
            if _ends_in_layer(module):
                continue
            module.stays_in_float, module.excluded_by = True, by  # type: ignore[assignment]  # plain attributes


def _ends_in_layer(module: nn.Module) -> bool:
    if isinstance(module, QuantizableConv2dSame):
        return True
    if type(module) is not nn.Sequential or len(module) == 0:
        return False
    return isinstance(module[-1], CONV_AND_LINEAR) or _ends_in_layer(module[-1])


@torch.no_grad()
def mark_float_chains_(model: nn.Module, inputs: Inputs) -> None:
    """Marks, in place, what else stays in float because of excluded modules, as far as one batch shows it.

    Sums and products of their outputs run in float too. The outputs of all these, and the inputs of a model with
    several, such as coordinates of boxes, stay in float if only modules in float read them. Otherwise eight bits would
    still round every tensor between two of them.

    Args:
        model: fused, without observers.
        inputs: the batch.
    """
    excluded = {module for module in model.modules() if hasattr(module, "excluded_by")}
    if not excluded and sum(map(Tensor.is_floating_point, inputs.tensors())) < 2:
        return
    in_float = excluded - {child for module in excluded for child in module.modules() if child is not module}
    float_kinds = (Int8Support.FLOAT_FALLBACK, Int8Support.FLOAT_FORWARD)
    takes_float = {m for m in model.modules() if isinstance(m, FloatOperation) or int8_support(m) in float_kinds}
    stubs = {module for module in model.modules() if isinstance(module, QuantStub)}
    arithmetic = {module for module in model.modules() if isinstance(module, (Addition, Multiplication))} - excluded
    reads = _Reads()
    handles = []
    for module in in_float | takes_float | stubs | arithmetic:
        handles.append(module.register_forward_pre_hook(reads.enter, with_kwargs=True))
        handles.append(module.register_forward_hook(reads.leave, always_call=True))
    try:
        with reads:
            inputs.map(Tensor.clone).run(model)  # tensors get an attribute
    finally:
        for handle in handles:
            handle.remove()
    pending = True
    while pending:
        pending = False
        for module in arithmetic - in_float:
            source = next((source for source in in_float if module in reads.readers.get(source, ())), None)
            if source is not None:
                exclude_(module, {"": source.excluded_by})  # type: ignore[dict-item]  # a string
                in_float.add(module)
                pending = True
    for module, readers in reads.readers.items():
        if module in in_float | stubs and readers <= in_float | takes_float:
            module.returns_float = True  # type: ignore[assignment]  # a plain attribute


class _Reads(TorchFunctionMode):
    """Records which of the modules with its hooks read the outputs of others."""

    def __init__(self) -> None:
        super().__init__()
        #: The readers of the outputs of each module; ``None`` is a function that none of the modules calls.
        self.readers: dict[nn.Module, set[nn.Module | None]] = {}
        self._depth = 0

    def enter(self, module: nn.Module, args: object, kwargs: object) -> None:
        if self._depth == 0:
            self._read((args, kwargs), module)
        self._depth += 1

    def leave(self, module: nn.Module, args: object, output: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.readers.setdefault(module, set())
            for tensor in flatten(output)[0]:
                tensor.returned_by = module

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        is_size = getattr(func, "__name__", "") in ("__get__", "dim", "size")
        if self._depth == 0 and not is_size:
            self._read((args, kwargs or {}), None)
        return func(*args, **(kwargs or {}))

    def _read(self, values: object, reader: nn.Module | None) -> None:
        for tensor in flatten(values)[0]:
            if hasattr(tensor, "returned_by"):
                self.readers[tensor.returned_by].add(reader)
