"""Graphs of torch.export, read without torch.export, which takes seconds to load them."""

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch

from ..integrity.allowlist import is_operator
from ..lowering.source import function_of
from ..lowering.steps import Ref, Step

__all__ = ["Graph"]

_VERSION = 8  # of the schema in which torch.export stores graphs
_DTYPES = dict(
    enumerate(
        (
            *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32),
            *(torch.float64, torch.complex32, torch.complex64, torch.complex128, torch.bool, torch.bfloat16),
        ),
        start=1,
    )
)
_LAYOUTS = {7: torch.strided}
_MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}


@dataclass(frozen=True)
class Graph:
    """A graph of operators without control flow."""

    inputs: tuple[str, ...]
    #: For each parameter, buffer or constant, its key in the file.
    state: dict[str, str]
    steps: tuple[Step, ...]
    outputs: tuple[Any, ...]

    @classmethod
    def of(cls, program: Mapping[str, Any]) -> "Graph":
        """The graph in the JSON of a program.

        Errors: ``ValueError`` for a function that is not an operator of torch, and for what this reader does not know.
        """
        if program["schema_version"]["major"] != _VERSION:
            raise ValueError("another version of torch wrote it: load it with torch.export.load")
        module = program["graph_module"]
        inputs, state = list[str](), dict[str, str]()
        for spec in module["signature"]["input_specs"]:
            ((kind, value),) = spec.items()
            if kind in ("parameter", "buffer", "tensor_constant"):
                state[value["arg"]["name"]] = value[f"{kind}_name"]
            elif kind == "user_input" and "as_tensor" in value["arg"]:
                inputs.append(value["arg"]["as_tensor"]["name"])
            elif kind not in ("user_input", "constant_input"):
                raise ValueError(f"graphs with inputs of kind {kind!r} cannot be read")
        outputs = []
        for spec in module["signature"]["output_specs"]:
            ((kind, value),) = spec.items()
            if kind != "user_output":
                raise ValueError(f"graphs with outputs of kind {kind!r} cannot be read")
            outputs.append(_value(value["arg"]))
        steps = [step for node in module["graph"]["nodes"] for step in _steps(node)]
        return cls(tuple(inputs), state, tuple(steps), tuple(outputs))

    def bind(self, tensors: Mapping[str, Any]) -> Callable[..., tuple[Any, ...]]:
        """A function of the inputs that runs the graph with these parameters, buffers and constants, by key."""
        return function_of(
            self.inputs, self.steps, self.outputs, {name: tensors[key] for name, key in self.state.items()}
        )


def dtype_of(number: int) -> torch.dtype:
    """The dtype that torch.export stores as a number."""
    return _DTYPES[number]


def _steps(node: Mapping[str, Any]) -> list[Step]:
    """The call of a node, and one step for each of its outputs if there are several."""
    args = [_value(input["arg"]) for input in node["inputs"] if input["kind"] == 1]
    kwargs = {input["name"]: _value(input["arg"]) for input in node["inputs"] if input["kind"] != 1}
    (target,) = (_target(node["target"]),)
    outputs = node["outputs"]
    names = [_value(output) for output in outputs]
    if len(names) == 1 and isinstance(names[0], list):
        names = names[0]
    elif len(names) == 1:
        return [Step(names[0].name, target, tuple(args), kwargs)]
    call = Step(f"outputs of {names[0].name}" if names else "", target, tuple(args), kwargs)
    items = [(name, (Ref(call.name), i)) for i, name in enumerate(names) if name is not None]
    return [call, *(Step(name.name, operator.getitem, args, {}) for name, args in items)]


def _target(name: str) -> Callable[..., Any] | str:
    if not is_operator(name):
        raise ValueError(f"it calls a function that is not an operator of torch: {name!r}")
    if name.startswith("torch.ops."):
        return name.removeprefix("torch.ops.")
    module, _, rest = name.partition(".")
    function: Callable[..., Any] = attrgetter(rest)({"_operator": operator, "math": math, "torch": torch}[module])
    return function


def _value(argument: Mapping[str, Any]) -> Any:
    """The value of an argument, with references to the results of other nodes."""
    ((kind, value),) = argument.items()
    match kind:
        case "as_none":
            return None
        case "as_tensor" | "as_sym_int" | "as_sym_float" | "as_sym_bool":
            return _reference(value)
        case "as_tensors" | "as_sym_ints" | "as_sym_floats" | "as_sym_bools":
            return [_reference(item) for item in value]
        case "as_optional_tensors":
            return [_value(item) for item in value]
        case "as_scalar_type":
            return dtype_of(value)
        case "as_memory_format":
            return _MEMORY_FORMATS[value]
        case "as_layout":
            return _LAYOUTS[value]
        case "as_device":
            return torch.device(value["type"])
        case "as_float":
            return float(value)
        case "as_floats":
            return [float(item) for item in value]
        case "as_int" | "as_ints" | "as_bool" | "as_bools" | "as_string" | "as_strings":
            return value
    raise ValueError(f"arguments of kind {kind!r} cannot be read")


def _reference(value: Mapping[str, Any]) -> Any:
    """A tensor or a number by name, or a constant number."""
    if "name" in value:
        return Ref(value["name"])
    ((kind, item),) = value.items()
    return Ref(item) if kind == "as_name" else item
