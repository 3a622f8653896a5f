"""How a model calls its modules, recorded on one batch."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..._utils.inputs import Inputs
from .wrappers import is_float

__all__ = ["Call", "record_calls"]


@dataclass(frozen=True)
class Call:
    """The calls of a module."""

    #: Whether each takes one tensor and returns one.
    is_plain: bool
    #: Whether the inputs of each have one shape.
    is_uniform: bool
    #: The largest number of floating-point tensors that one returns.
    outputs: int


def record_calls(model: nn.Module, inputs: Inputs) -> tuple[Any, dict[nn.Module, Call]]:
    """The output of ``model``, and the calls of each module that it reaches.

    Modules that would write into their input leave it alone, as they do in int8; ReLU writes in int8 too.
    """
    calls: dict[nn.Module, Call] = {}

    def record(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> None:
        is_plain = len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and isinstance(output, Tensor)
        shapes = {argument.shape for argument in args if isinstance(argument, Tensor)}
        outputs = sum(map(is_float, tree_leaves(output)))
        before = calls.get(module, Call(True, True, 0))
        is_uniform = len(shapes) < 2 and before.is_uniform
        calls[module] = Call(is_plain and before.is_plain, is_uniform, max(outputs, before.outputs))

    handles = [module.register_forward_hook(record, with_kwargs=True) for module in model.modules()]
    writers = [m for m in model.modules() if getattr(m, "inplace", False) is True and type(m) is not nn.ReLU]
    for module in writers:
        module.inplace = False  # type: ignore[assignment]  # a plain attribute
    try:
        return inputs.run(model), calls
    finally:
        for handle in handles:
            handle.remove()
        for module in writers:
            module.inplace = True  # type: ignore[assignment]
