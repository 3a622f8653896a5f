"""Memory formats, shapes and packed weights of a graph, from a run on the example."""

import math
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx

from ...quantized.pt2e.constants import erase_unused_ops
from .aliasing import written_nodes
from .bfloat16 import to_float32
from .int8_kernels import quantize, quantized_conv_sum
from .kernels import conv1d, conv_sum, is_channels_last, to_channels_last
from .packing import pack_conv, pack_linear, pack_quantized_conv, pack_quantized_linear

__all__ = ["assign_layouts", "record_shapes"]

#: Operators that read images. By name, because torch may be built without them.
_IMAGE_OPERATORS = {
    "mkldnn._convolution_pointwise.default",
    "onednn.qconv2d_pointwise.default",
    "onednn.qconv3d_pointwise.default",
}
#: The functions that pack weights of convolutions, and the numbers of their arguments.
_CONV_PACKS: dict[Any, int] = {pack_conv: 5, pack_quantized_conv: 8}


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


def _reads_images(node: fx.Node) -> bool:
    return node.target in (conv_sum, quantized_conv_sum) or str(node.target) in _IMAGE_OPERATORS


def _is_image(node: fx.Node) -> bool:
    """Whether an operator reads the result of a node as images."""
    return any(_reads_images(user) and user.args[0] is node for user in node.users)


class _ShapeRecorder(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            n.meta["shape"] = list(value.shape)
            n.meta.setdefault("val", value.to("meta"))  # a conversion to int8 adds nodes without it
        return value


class _Run:
    """Executes a graph node by node and changes what comes next."""

    def __init__(self, module: fx.GraphModule) -> None:
        self._module = module
        self._graph = module.graph
        self._values = dict[fx.Node, Any]()
        self._executed = set[fx.Node]()
        self._written = written_nodes(self._graph)

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
                # Numbers in float are converted faster than integers of 8 bits.
                if _reads_images(node) or (node.target is quantize and _is_image(node)):
                    self._convert_input(node)
                self._pack(node)
                self._execute(node)
            for input in dead.get(node, []):
                self._values[input] = None

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
        """Adds the shape of the input to the nodes that pack the weight."""
        for pack in node.all_input_nodes:
            if pack.target in _CONV_PACKS:
                shape = list(self._values[node.all_input_nodes[0]].shape)
                if node.target is conv1d:
                    shape.insert(2, 1)
                pack.args = (*pack.args[: _CONV_PACKS[pack.target]], shape)
            elif pack.target in (pack_linear, pack_quantized_linear):
                *rows, features = self._values[node.all_input_nodes[0]].shape
                count = math.prod(rows)
                pack.args = (pack.args[0], count if pack.target is pack_linear else [count, features])

    def _make_contiguous(self, output: fx.Node) -> None:
        for node in output.all_input_nodes:
            value, original = self._values[node], node.meta["val"]
            if isinstance(value, Tensor) and not value.is_contiguous() and original.is_contiguous():
                source, reader = node, output
                while _enlarges(source) and len(source.users) == 1:  # there is less to copy before it
                    source.meta["is_channels_last"] = False
                    source, reader = source.all_input_nodes[0], source
                with self._graph.inserting_before(reader):
                    dense = self._graph.call_function(torch.ops.aten.contiguous.default, (source,))
                dense.meta = {**source.meta, "is_channels_last": False}
                reader.replace_input_with(source, dense)


def _enlarges(node: fx.Node) -> bool:
    """Whether a node returns more bytes than it reads, in the same memory format."""
    return node.target is to_float32 or str(node.target).startswith("aten.upsample_")
