"""Python functions that run the steps of a program."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ...quantized.finite import all_finite
from .amx_sizes import checking_sizes
from .nan_checks import checking_nan, may_begin_nan
from .steps import Ref, Step, refs

__all__ = ["function_of"]


def function_of(
    inputs: Sequence[str], steps: Sequence[Step], outputs: Sequence[Any], constants: Mapping[str, Any]
) -> Callable[..., tuple[Any, ...]]:
    """A function of the inputs that runs the steps and returns the outputs, with these values of other names.

    It refuses activations with NaN that a kernel would hide. These are looked for if an operator may give NaN, and in
    calls with inputs that are not finite.
    """
    checked = checking_nan(steps)
    if checked is steps or may_begin_nan(steps):
        return _Source(constants).function(inputs, checked, outputs)
    run = _Source(constants).function(inputs, steps, outputs)

    @cache
    def checking() -> Callable[..., tuple[Any, ...]]:
        return _Source(constants).function(inputs, checked, outputs)

    def run_checked(*tensors: Tensor) -> tuple[Any, ...]:
        return (run if all_finite(tensors) else checking())(*tensors)

    return run_checked


class _Source:
    """The source code of a program: a line for each step, and for each value that is not needed any longer."""

    def __init__(self, constants: Mapping[str, Any]) -> None:
        self._namespace: dict[str, Any] = {}
        self._names: dict[str, str] = {}
        self._objects: dict[int, str] = {}
        for name, value in constants.items():
            self._names[name] = self._constant(value)

    def function(
        self, inputs: Sequence[str], steps: Sequence[Step], outputs: Sequence[Any]
    ) -> Callable[..., tuple[Any, ...]]:
        for i, name in enumerate(inputs):
            self._names[name] = f"x{i}"
        last_reads: dict[str, int] = {}
        for i, step in enumerate(steps):
            last_reads |= dict.fromkeys(refs([*step.args, *step.kwargs.values()]), i)
        returned = {*refs(outputs)}
        dead: dict[int, list[str]] = {}
        for name, i in last_reads.items():
            if name not in returned and self._names.get(name, "x").startswith("x"):
                dead.setdefault(i, []).append(name)
        lines = [f"def run({', '.join(self._names[name] for name in inputs)}):"]
        for i, step in enumerate(steps):
            args = [*map(self._expression, step.args)]
            args += [f"{key}={self._expression(value)}" for key, value in step.kwargs.items()]
            is_read = step.name in last_reads or step.name in returned
            self._names[step.name] = f"v{i}"
            operator = checking_sizes(step.operator())
            if isinstance(operator, torch._ops.OpOverload):
                operator = operator._op  # the overload calls nothing else, in Python
            call = f"{self._constant(operator)}({', '.join(args)})"
            lines.append(f"    v{i} = {call}" if is_read else f"    {call}")
            if i in dead:
                lines.append(f"    {' = '.join(self._names[name] for name in dead[i])} = None")
        lines.append(f"    return ({''.join(self._expression(value) + ', ' for value in outputs)})")
        exec(compile("\n".join(lines), "<lowered>", "exec"), self._namespace)
        function: Callable[..., tuple[Any, ...]] = self._namespace["run"]
        return function

    def _constant(self, value: Any) -> str:
        if id(value) not in self._objects:
            self._objects[id(value)] = f"c{len(self._objects)}"
            self._namespace[f"c{len(self._objects) - 1}"] = value  # keeps it alive, and its id unique
        return self._objects[id(value)]

    def _expression(self, value: Any) -> str:
        if isinstance(value, Ref):
            return self._names[value.name]
        if isinstance(value, (tuple, list)):
            items = ", ".join(map(self._expression, value))
            return f"[{items}]" if isinstance(value, list) else f"({items}{',' if len(value) == 1 else ''})"
        if isinstance(value, slice):
            return f"slice({', '.join(map(self._expression, (value.start, value.stop, value.step)))})"
        return repr(value) if value is None or isinstance(value, (bool, int, str)) else self._constant(value)
