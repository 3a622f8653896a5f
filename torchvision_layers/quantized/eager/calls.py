"""How a model calls its modules, recorded on one batch."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..._utils.inputs import Inputs
from ..._utils.structure import flatten, map_tensors
from ..checks import check_same_results
from ..report_row import Int8Support
from .stubs import is_float
from .support import int8_support
from .wrappers import Int8Child, named_user_modules

__all__ = ["Call", "find_difference", "record_calls"]


@dataclass(frozen=True)
class Call:
    """The calls of a module."""

    #: Whether each takes one tensor and returns one.
    is_plain: bool
    #: Whether the inputs of each have one shape.
    is_uniform: bool
    #: The largest number of floating-point tensors that one returns.
    outputs: int
    #: The number of values that the last returns for each image, if it returns a tensor.
    values: int = 0
    #: The number of calls.
    count: int = 1


def record_calls(model: nn.Module, inputs: Inputs) -> tuple[Any, dict[nn.Module, Call]]:
    """The output of ``model``, and the calls of each module that it reaches.

    Modules that would write into their input leave it alone, as they do in int8. ReLU writes in int8 too, and so does
    every module that a ``forward`` in float calls, but one in int8 gets a copy of its input there, and so does one in
    float that a ``forward`` in int8 calls.
    """
    calls: dict[nn.Module, Call] = {}

    def record(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> None:
        is_plain = len(args) == 1 and not kwargs and is_float(args[0]) and is_float(output)
        shapes = {argument.shape for argument in args if isinstance(argument, Tensor)}
        outputs = sum(map(is_float, flatten(output)[0]))
        values = output[:1].numel() if isinstance(output, Tensor) and output.dim() else 0
        before = calls.get(module, Call(True, True, 0, count=0))
        is_uniform = len(shapes) < 2 and before.is_uniform
        calls[module] = Call(
            is_plain and before.is_plain, is_uniform, max(outputs, before.outputs), values, before.count + 1
        )

    def copy_inputs(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return map_tensors(Tensor.clone, (args, kwargs))

    handles = [module.register_forward_hook(record, with_kwargs=True) for module in model.modules()]
    in_float = set(_called_in_float(model, False))
    unknown = [m for m in set(model.modules()) - in_float if int8_support(m) is Int8Support.UNKNOWN]
    children = [module for module in model.modules() if isinstance(module, Int8Child)]
    handles += [m.register_forward_pre_hook(copy_inputs, with_kwargs=True) for m in (*children, *unknown)]
    writers = [m for m in set(model.modules()) - in_float if getattr(m, "inplace", False) is True]
    writers = [m for m in writers if type(m) is not nn.ReLU]
    for module in writers:
        module.inplace = False  # type: ignore[assignment]  # a plain attribute
    modules = set(model.modules())
    try:
        output = inputs.run(model)
        for stub in set(model.modules()) - modules:  # added for the tensors of the first call
            calls[stub] = Call(is_plain=True, is_uniform=True, outputs=1)
        return output, calls
    finally:
        for handle in handles:
            handle.remove()
        for module in writers:
            module.inplace = True  # type: ignore[assignment]


def _called_in_float(module: nn.Module, is_in_float: bool) -> Iterator[nn.Module]:
    if is_in_float:
        yield module
    calls_in_float = getattr(module, "runs_in_float", False) or (is_in_float and not isinstance(module, Int8Child))
    for child in module.children():
        yield from _called_in_float(child, calls_in_float)


def find_difference(model: nn.Module, rewritten: nn.Module, inputs: Inputs) -> nn.Module:
    """The first module of ``rewritten`` with a ``forward`` of its own that returns something else than in ``model``."""
    paths = {module: path for path, module in named_user_modules(rewritten)}
    expected: dict[str, list[Any]] = {path: [] for path, module in model.named_modules()}
    different: list[nn.Module] = []

    def record(module: nn.Module, args: object, output: Any, path: str) -> None:
        expected[path].append(map_tensors(Tensor.clone, output))

    def compare(module: nn.Module, args: object, output: Any) -> None:
        outputs = expected.get(paths[module])
        if not outputs:
            return
        try:
            check_same_results(output, outputs.pop(0), "")
        except (RuntimeError, TypeError, ValueError):
            different.append(module)

    handles = [m.register_forward_hook(partial(record, path=path)) for path, m in model.named_modules()]
    handles += [m.register_forward_hook(compare) for m in paths if not type(m).__module__.startswith("torch.")]
    inputs.map(Tensor.clone).run(model)
    record_calls(rewritten, inputs)
    for handle in handles:
        handle.remove()
    return different[0] if different else rewritten
