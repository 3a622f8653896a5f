"""Errors of the modules of an int8 graph, measured beside the float graph."""

from collections.abc import Container, Iterator, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, fx

from ..._utils.inputs import Inputs
from ..measurement import Int8Range, Measurement, OutputMeasurement
from ..precision import in_float32
from ..report_row import ReportRow
from .model import QuantizableGraph
from .nodes import excluded_by, is_dequantize, is_fused_into, is_quantize, module_class, module_path, operator_name
from .report import rows_with_nodes

__all__ = ["measure"]


def measure(
    int8: QuantizableGraph, reference: QuantizableGraph, batches: Iterator[Inputs]
) -> tuple[list[ReportRow], OutputMeasurement]:
    """The rows of ``int8`` with their errors on the batches, and the errors of its outputs.

    Both graphs run node by node, one beside the other, so no more tensors are in memory than in a run of each.

    Args:
        int8: the int8 graph.
        reference: the graph of the float model, with observers that are left out.
        batches: the inputs.
    """
    units = _units(int8)
    targets = {node.name: node.target for node in reference.body.graph.nodes}
    for unit in units:
        for node in unit.nodes:
            if targets.get(node.name) != node.target:
                raise ValueError(
                    f"model must be the model that int8 was made from, it has no {node.name} of {module_path(node)}"
                )
    outputs = OutputMeasurement()
    for batch in batches:
        tensors = [tensor.clone() for tensor in int8.signature.flatten(batch)]
        run = _PairedRun(int8.body, units, _Steps(reference.body, [tensor.clone() for tensor in tensors]))
        with torch.no_grad(), in_float32():
            actual = run.run(*tensors)
            exact = run.reference.finish()
        is_tensor = [isinstance(value, Tensor) for value in exact]
        outputs.add(*[[v for v, keep in zip(values, is_tensor, strict=True) if keep] for values in (exact, actual)])
    return [unit.measurement.fill(unit.row) if unit.nodes else unit.row for unit in units], outputs


class _Unit:
    """A row, the nodes that compute its output, and the last of each call."""

    def __init__(self, row: ReportRow, nodes: Sequence[fx.Node], fused: Container[fx.Node] = ()) -> None:
        self.row = row
        self.nodes = list(nodes)
        self.measurement = Measurement()
        inside = set(nodes)
        self.ends = [n for n in nodes if isinstance(n.meta.get("val"), Tensor) and not inside.issuperset(n.users)]
        for i, end in enumerate(self.ends):
            follower = next(iter(end.users))
            if follower in fused and is_fused_into(follower, end):  # the same int8 kernel computes it
                self.nodes.append(follower)
                self.ends[i] = follower
        arguments = [argument for node in self.nodes for argument in node.all_input_nodes]
        #: Whether a weight of the unit is in int8.
        self.has_weights = any(is_dequantize(argument) and _is_constant(argument) for argument in arguments)
        inputs = {_range(argument) for argument in arguments if is_dequantize(argument) and not _is_constant(argument)}
        outputs = {_range(user) for end in self.ends for user in end.users if is_quantize(user)}
        #: Whether its output has the range of its input, whose error belongs to an earlier unit.
        self.hands_on = not self.has_weights and bool(inputs & outputs)


def _units(int8: QuantizableGraph) -> list[_Unit]:
    """All rows of a graph, with those of inputs and of quantized values of modules without a row."""
    rows = rows_with_nodes(int8)
    fused = {node for row, nodes in rows if row.fused_with for node in nodes}
    units = {row.path: _Unit(row, nodes, fused) for row, nodes in rows if not row.fused_with}
    covered = {node for unit in units.values() for node in unit.nodes}
    all_units = [
        units.get(row.path) or _Unit(row, [node for node in nodes if node not in covered]) for row, nodes in rows
    ]
    covered = {node for unit in all_units for node in unit.nodes}
    inputs = [node for node in int8.body.graph.nodes if node.op == "placeholder"]
    for node in int8.body.graph.nodes:
        path = module_path(node) if node.op == "call_function" else None
        if path is not None and node not in covered and not is_dequantize(node) and _quantizer(node) is not None:
            by = excluded_by(node, int8.settings.excluded)
            runs_in, why = ("int8", "is quantized") if by is None else ("float", f"excluded by {by}")
            row = ReportRow(path, module_class(node), operator_name(node), runs_in, why)
            all_units.insert(_end_of(all_units, path), _Unit(row, [node]))
    names = [f"(input {i})" if len(inputs) > 1 else "(input)" for i in range(len(inputs))]
    return [
        _Unit(ReportRow(name, "", "quantize", "int8", "is an input"), [node])
        for name, node in zip(names, inputs, strict=True)
        if _quantizer(node) is not None
    ] + all_units


def _end_of(units: list[_Unit], path: str) -> int:
    """The index after the last row of the module at ``path``."""
    below = [i for i, unit in enumerate(units) if not path or f"{unit.row.path}.".startswith(f"{path}.")]
    return below[-1] + 1 if below else len(units)


def _quantizer(node: fx.Node) -> fx.Node | None:
    """The node that quantizes the output of another."""
    return next((user for user in node.users if is_quantize(user)), None)


def _is_constant(node: fx.Node) -> bool:
    """Whether a node reads a tensor of the model, or dequantizes one."""
    while is_dequantize(node) or is_quantize(node):
        node = node.all_input_nodes[0]
    return node.op == "get_attr"


def _range(node: fx.Node) -> Int8Range:
    """The range of a node that quantizes or dequantizes."""
    scale, zero_point, low, high = node.args[1:5]
    return Int8Range(float(scale), int(zero_point), int(low), int(high))  # type: ignore[arg-type]


class _Steps(fx.Interpreter):
    """Runs a prepared graph node by node, without its observers."""

    def __init__(self, module: fx.GraphModule, inputs: list[Tensor]) -> None:
        super().__init__(module)
        self.args_iter = iter(inputs)
        self._nodes = iter(module.graph.nodes)
        self._next: fx.Node | None = next(self._nodes)
        self.by_name = {node.name: node for node in module.graph.nodes}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args[0]

    def go_before(self, name: str) -> None:
        """Runs all nodes before the one called ``name``."""
        while self._next is not None and self._next.name != name:
            self.step()

    def step(self) -> Any:
        """The value of the next node."""
        node = self._next
        assert node is not None
        value = self.env[node] = self.run_node(node)
        self._next = next(self._nodes, None)
        for dead in self.user_to_last_uses.get(node, []):
            del self.env[dead]
        return value

    def finish(self) -> Any:
        """The output of the graph."""
        value = None
        while self._next is not None:
            value = self.step()
        return value


class _PairedRun(fx.Interpreter):
    """Runs an int8 graph, and before each node that is measured the float graph up to that node."""

    def __init__(self, module: fx.GraphModule, units: list[_Unit], reference: _Steps) -> None:
        super().__init__(module)
        self.reference = reference
        self.units = {node: unit for unit in units for node in unit.nodes}
        #: The outputs of the nodes of the present unit for exact inputs.
        self.own: dict[fx.Node, Any] = {}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args[0]  # a guard of the export

    def run_node(self, n: fx.Node) -> Any:
        unit = self.units.get(n)
        if unit is None:
            return super().run_node(n)
        self.reference.go_before(n.name)
        if n.op == "call_function":
            self.own[n] = self._run_exact(unit, n)
        exact, actual = self.reference.step(), super().run_node(n)
        if n in unit.ends and exact.is_floating_point():
            self._add(unit, n, exact, actual)
            self.own = {node: value for node, value in self.own.items() if self.units[node] is not unit}
        return actual

    def _run_exact(self, unit: _Unit, node: fx.Node) -> Any:
        """The output of a node for the values of the float graph, and for the weights of the int8 graph."""
        reference = self.reference.by_name[node.name]

        def value(argument: Any, original: Any) -> Any:
            if isinstance(argument, (list, tuple)):
                originals = original if isinstance(original, (list, tuple)) else ()
                return [value(*pair) for pair in zip_longest(argument, originals[: len(argument)])]
            if not isinstance(argument, fx.Node):
                return argument
            if argument in self.own:
                return self.own[argument]
            if _is_constant(argument) or not isinstance(original, fx.Node):
                return self.env[argument]
            exact = self.reference.env[original]
            return _range(argument).rounded(exact) if unit.hands_on and is_dequantize(argument) else exact

        args = value(node.args, reference.args)
        kwargs = {name: value(argument, reference.kwargs.get(name)) for name, argument in node.kwargs.items()}
        if getattr(getattr(node.target, "_schema", None), "is_mutable", False):
            args[0] = args[0].clone()
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _add(self, unit: _Unit, node: fx.Node, exact: Tensor, actual: Tensor) -> None:
        """Adds an output of a unit."""
        quantizer, own = _quantizer(node), self.own.get(node, exact)
        if quantizer is None:
            unit.measurement.add(exact, actual, None)
            if unit.has_weights:
                unit.measurement.add_own(exact, own)
            return
        int8_range = _range(quantizer)
        unit.measurement.add(exact, int8_range.rounded(actual), int8_range)
        unit.measurement.add_own(own if unit.hands_on else exact, int8_range.rounded(own))
