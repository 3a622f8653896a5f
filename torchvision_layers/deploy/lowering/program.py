"""Lowered programs: steps that call operators, and the Python functions that run them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ...quantized.pt2e.constants import constant_nodes
from ...quantized.pt2e.writes import is_write
from .aliasing import alias_sets
from .bfloat16 import to_bfloat16
from .guards import Guards
from .source import function_of
from .steps import Ref, Step, refs, substitute

__all__ = ["Program"]


@dataclass(frozen=True)
class Program:
    """A model as a list of steps."""

    inputs: tuple[str, ...]
    #: The names of the inputs for readers, and their shapes in the example.
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    #: For each parameter or buffer that is read, its path.
    state: dict[str, str]
    #: Steps whose results are the same in each call, such as the packing of weights.
    setup: tuple[Step, ...]
    steps: tuple[Step, ...]
    outputs: tuple[Any, ...]
    guards: Guards

    @classmethod
    def of(cls, module: fx.GraphModule, names: Sequence[str]) -> "Program":
        """The program of a graph that takes tensors of these names and returns a tuple."""
        sets = alias_sets(module.graph)
        # Callers may write into the outputs.
        returned = set[fx.Node]().union(*(sets.get(n, ()) for n in module.graph.output_node().all_input_nodes))
        constants = constant_nodes(module.graph) - returned
        inputs, state, setup, steps = list[str](), dict[str, str](), list[Step](), list[Step]()
        shapes, outputs = list[tuple[int, ...]](), tuple[Any, ...]()
        guards = Guards()
        for node in module.graph.nodes:
            if node.op == "placeholder":
                inputs.append(node.name)
                shapes.append(tuple(node.meta["shape"]))
            elif node.op == "get_attr" and node.users:
                state[node.name] = str(node.target)
            elif node.op == "call_module":
                guards = Guards.of(module.get_submodule(str(node.target)), names)
            elif node.op == "output":
                outputs = tuple(_with_refs(node.args[0]))
            elif node.op == "call_function":
                (setup if node in constants and not is_write(node) else steps).append(_step(node))
        return cls(tuple(inputs), tuple(names), tuple(shapes), state, tuple(setup), tuple(steps), outputs, guards)

    @property
    def scales(self) -> list[float]:
        """All scales and zero points of activations, in the order of the steps; empty for a program in float."""
        numbers = [value for step in self.steps if step.is_int8() for value in step.args]
        return [float(value) for value in numbers if type(value) in (int, float)]

    @property
    def is_bfloat16(self) -> bool:
        """Whether the program rounds anything to bfloat16."""
        return any(step.target is to_bfloat16 for step in (*self.setup, *self.steps))

    def constants(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """The values that are the same in each call, by name, for these parameters and buffers, by path."""
        values: dict[str, Any] = {name: tensors[path] for name, path in self.state.items()}
        for step in self.setup:
            args, kwargs = substitute((step.args, step.kwargs), values.__getitem__)
            values[step.name] = step.operator()(*args, **kwargs)
        read = {*refs([self.outputs, *([step.args, step.kwargs] for step in self.steps)])}
        return {name: value for name, value in values.items() if name in read}  # weights that are packed are not

    def bind(self, tensors: Mapping[str, Tensor]) -> Callable[..., tuple[Any, ...]]:
        """A function of the inputs that runs the steps with these parameters and buffers, by path."""
        return function_of(self.inputs, self.steps, self.outputs, self.constants(tensors))

    def __str__(self) -> str:
        names = {**self.state, **dict(zip(self.inputs, self.names, strict=True))}
        for step in self.setup:  # a packed weight is shown under the path of the weight
            source = next(refs(step.args), None)
            names[step.name] = step.name if source is None else names.get(source, source)
        lines = [f"{name} = input  {list(shape)}" for name, shape in zip(self.names, self.shapes, strict=True)]
        lines += [step.describe(names) for step in self.steps if not step.is_arithmetic()]
        outputs = ", ".join(names.get(name, name) for name in refs(self.outputs))
        return "\n".join([*lines, f"return {outputs}"])


def _step(node: fx.Node) -> Step:
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        target = str(target)
    args, kwargs = _with_refs((node.args, node.kwargs))
    shape = node.meta.get("shape")
    return Step(node.name, target, args, kwargs, None if shape is None else tuple(shape))


def _with_refs(value: Any) -> Any:
    """``value`` with references in place of nodes, in ordinary containers."""
    if isinstance(value, fx.Node):
        return Ref(value.name)
    if isinstance(value, (tuple, list)):
        items = [_with_refs(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, slice):
        return slice(*map(_with_refs, (value.start, value.stop, value.step)))
    return {key: _with_refs(item) for key, item in value.items()} if isinstance(value, dict) else value
