"""How a model calls its modules, recorded on one batch."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .wrappers import is_float

__all__ = ["Call", "record_calls"]


@dataclass(frozen=True)
class Call:
    """The first call of a module."""

    #: Whether it takes one tensor and returns one.
    is_plain: bool
    #: Whether its inputs have one shape.
    is_uniform: bool
    #: The number of floating-point tensors that it returns.
    outputs: int


def record_calls(model: nn.Module, input: Tensor) -> tuple[Tensor, dict[nn.Module, Call]]:
    """The output of ``model``, and the first call of each module that it reaches."""
    calls: dict[nn.Module, Call] = {}

    def record(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> None:
        is_plain = len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and isinstance(output, Tensor)
        shapes = {argument.shape for argument in args if isinstance(argument, Tensor)}
        calls.setdefault(module, Call(is_plain, len(shapes) < 2, sum(map(is_float, tree_leaves(output)))))

    handles = [module.register_forward_hook(record, with_kwargs=True) for module in model.modules()]
    try:
        return model(input), calls
    finally:
        for handle in handles:
            handle.remove()
