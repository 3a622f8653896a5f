"""Memory formats, shapes and packed weights of a graph, from a run on the example."""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx

from ...quantized.pt2e.constants import erase_unused_ops
from .aliasing import alias_sets, is_write
from .kernels import conv1d, conv_sum, is_channels_last, linear_sum, to_channels_last
from .packing import pack_conv, pack_linear

__all__ = ["assign_layouts", "record_shapes"]

_CONV = torch.ops.mkldnn._convolution_pointwise.default
_LINEARS = {torch.ops.mkldnn._linear_pointwise.default: 1, linear_sum: 2}
_CONVS = {_CONV: 1, conv_sum: 2, conv1d: 1}


def assign_layouts(module: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
    """Lets convolutions read images in channels_last, and outputs be contiguous if those of the model are, in place.

    Each tensor is converted at most once, if the graph does not write into it. Nodes record the shapes of the run in
    ``meta["shape"]``, and packed weights are made for these shapes.
    """
    _Run(module).run(inputs)
    erase_unused_ops(module.graph)
    module.recompile()


def record_shapes(module: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
    """Runs a graph on the example, and records the shape of each tensor in ``meta["shape"]`` of its node."""
    _ShapeRecorder(module).run(*(tensor.clone() for tensor in inputs), enable_io_processing=False)


class _ShapeRecorder(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            n.meta["shape"] = list(value.shape)
        return value


class _Run:
    """Executes a graph node by node and changes what comes next."""

    def __init__(self, module: fx.GraphModule) -> None:
        self._module = module
        self._graph = module.graph
        self._values = dict[fx.Node, Any]()
        self._executed = set[fx.Node]()
        sets = alias_sets(self._graph)
        writes = [node for node in self._graph.nodes if is_write(node)]
        self._written = set[fx.Node]().union(
            *(sets.get(input, {input}) for w in writes for input in w.all_input_nodes[:1])
        )

    def run(self, inputs: Sequence[Tensor]) -> None:
        remaining = iter(inputs)
        last_reads = {input: node for node in self._graph.nodes for input in node.all_input_nodes}
        dead: dict[fx.Node, list[fx.Node]] = {}
        for input, node in last_reads.items():
            dead.setdefault(node, []).append(input)
        for node in list(self._graph.nodes):
            self._executed.add(node)
            if node.op == "output":
                self._make_contiguous(node)
            elif node.op == "placeholder":
                self._store(node, next(remaining).clone())
            elif node.op == "get_attr":
                self._store(node, attrgetter(node.target)(self._module).detach())
            elif node.op == "call_function":
                if node.target in (_CONV, conv_sum):
                    self._convert_input(node)
                self._pack(node)
                self._execute(node)
            for input in dead.get(node, []):
                if input.op != "get_attr":
                    self._values[input] = None if not isinstance(self._values.get(input), int) else self._values[input]

    def _execute(self, node: fx.Node) -> None:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._values.__getitem__)
        self._store(node, node.target(*args, **kwargs))  # type: ignore[operator]  # a function

    def _store(self, node: fx.Node, value: Any) -> None:
        self._values[node] = value
        if isinstance(value, Tensor):
            node.meta["shape"] = list(value.shape)
            node.meta["is_channels_last"] = value.dim() in (4, 5) and not value.is_mkldnn and is_channels_last(value)

    def _convert_input(self, conv: fx.Node) -> None:
        source = conv.args[0]
        assert isinstance(source, fx.Node)
        if is_channels_last(self._values[source]):
            return
        with self._graph.inserting_before(conv):
            converted = self._graph.call_function(to_channels_last, (source,))
        converted.meta["val"] = source.meta["val"]
        conv.replace_input_with(source, converted)
        if source not in self._written:  # a copy does not see later writes
            source.replace_all_uses_with(converted, lambda user: user is not converted and user not in self._executed)
        self._execute(converted)

    def _pack(self, node: fx.Node) -> None:
        """Adds the shape of the input to the node that packs the weight."""
        if node.target in _CONVS:
            shape = list(self._values[node.args[0]].shape)  # type: ignore[index]
            if node.target is conv1d:
                shape.insert(2, 1)
            pack: Any = node.args[_CONVS[node.target]]
            if pack.target is pack_conv:
                pack.args = (*pack.args[:5], shape)
        elif node.target in _LINEARS:
            shape = self._values[node.args[0]].shape  # type: ignore[index]
            pack = node.args[_LINEARS[node.target]]
            if pack.target is pack_linear:
                pack.args = (pack.args[0], shape[:-1].numel())

    def _make_contiguous(self, output: fx.Node) -> None:
        for node in output.all_input_nodes:
            value, original = self._values[node], node.meta["val"]
            if isinstance(value, Tensor) and not value.is_contiguous() and original.is_contiguous():
                with self._graph.inserting_before(output):
                    dense = self._graph.call_function(torch.ops.aten.contiguous.default, (node,))
                dense.meta = dict(node.meta)
                output.replace_input_with(node, dense)
