"""Lowered graphs in bfloat16."""

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx

from ...quantized.pt2e.constants import constant_nodes, erase_unused_ops
from ...quantized.pt2e.nodes import COMPUTE_OPS
from .aliasing import written_nodes
from .packing import pack_conv, pack_linear

__all__ = ["check_bfloat16", "to_bfloat16", "to_float32", "use_bfloat16"]

#: The functions that make weights of layers.
_PACKS = {pack_conv, pack_linear}
#: Operators that compute in float32 and round once, whatever the dtype of their parameters.
_NORMS = {"group_norm", "layer_norm", "softmax"}
#: Operators that move or select values, or compute in float32 and round once. All others read and return float32.
_FOLLOWERS = {
    *("alias", "cat", "channel_shuffle", "chunk", "clone", "constant_pad_nd", "contiguous", "expand", "expand_as"),
    *("flatten", "flip", "getitem", "index_select", "movedim", "narrow", "pad", "permute", "pixel_shuffle"),
    *("pixel_unshuffle", "repeat", "reshape", "reshape_as", "roll", "select", "slice", "split", "split_with_sizes"),
    *(
        "squeeze",
        "stack",
        "swapaxes",
        "t",
        "transpose",
        "unbind",
        "unflatten",
        "unsqueeze",
        "upsample_nearest2d",
        "view",
    ),
    *("abs", "clamp", "clamp_max", "clamp_min", "hardtanh", "max_pool1d", "max_pool2d", "max_pool3d", "maximum"),
    *("minimum", "neg", "relu", "relu6"),
    *("add", "div", "mul", "sub"),
    *("celu", "elu", "gelu", "hardsigmoid", "hardswish", "leaky_relu", "mish", "selu", "sigmoid", "silu", "tanh"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "avg_pool1d", "avg_pool2d"),
    *("mean", "upsample_bilinear2d"),
}
_FLOATS = (torch.float32, torch.bfloat16)


def check_bfloat16() -> None:
    """Errors: ``RuntimeError`` if oneDNN has no kernels in bfloat16 for this CPU."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        raise RuntimeError(
            "dtype=torch.bfloat16 needs a CPU with instructions for bfloat16, such as x86 with AVX-512, which this one "
            "lacks: lower the model with dtype=torch.float32"
        )


def to_bfloat16(input: Tensor) -> Tensor:
    """A copy of ``input`` in bfloat16."""
    return input.to(torch.bfloat16)


def to_float32(input: Tensor) -> Tensor:
    """A copy of ``input`` in float32."""
    return input.to(torch.float32)


def use_bfloat16(module: fx.GraphModule) -> None:
    """Lets layers, and the operators between them that round once, read and return bfloat16, in place.

    Inputs and outputs of the graph, tensors that it writes to, and all other operators stay in float32.
    """
    _Rounding(module.graph).run()
    erase_unused_ops(module.graph)
    module.recompile()


class _Rounding:
    """Sets the dtype of each node from those of its inputs, in the order of execution."""

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._constants = constant_nodes(graph)
        self._written = written_nodes(graph)
        self._copies: dict[tuple[fx.Node, torch.dtype], fx.Node] = {}

    def run(self) -> None:
        for node in list(self._graph.nodes):
            if node.op == "output":
                self._convert_inputs(node, torch.float32)
            elif node.op == "call_function" and node not in self._constants:
                self._assign(node)

    def _assign(self, node: fx.Node) -> None:
        name = _name(node)
        packs = [input for input in node.all_input_nodes if input.target in _PACKS]
        if node.target is operator.getitem:
            source: Any = node.args[0]
            self._set_val(node, source.meta["val"][node.args[1]])
        elif name.startswith("sym_"):
            return
        elif self._is_float32(node) and (packs or node.target in COMPUTE_OPS):
            for pack in packs:
                pack.replace_input_with(*self._copy(pack.all_input_nodes[0], torch.bfloat16, pack))
            self._convert_inputs(node, torch.bfloat16)
            self._set_val(node, _rounded(node.meta["val"]))
        elif self._is_float32(node) and name in _NORMS and self._is_rounded_norm(node):
            self._set_val(node, _rounded(node.meta["val"]))
        elif self._is_float32(node) and name in _FOLLOWERS and self._is_mostly_rounded(node):
            self._convert_inputs(node, torch.bfloat16)
            self._set_val(node, _rounded(node.meta["val"]))
        else:
            self._convert_inputs(node, torch.float32)

    def _is_float32(self, node: fx.Node) -> bool:
        """Whether a node returns float32 in the model, may return something else here, and reads no wider floats."""
        value = node.meta.get("val")
        values = value if isinstance(value, (tuple, list)) else [value]
        is_float32 = all(isinstance(v, Tensor) and v.dtype == torch.float32 for v in values)
        inputs = [v for v in map(_val, node.all_input_nodes) if v is not None]
        has_others = any((v.is_floating_point() or v.is_complex()) and v.dtype not in _FLOATS for v in inputs)
        return is_float32 and not has_others and node not in self._written and not _has_dtype(node)

    def _is_rounded_norm(self, node: fx.Node) -> bool:
        source: Any = node.args[0]
        is_returned = any(user.op == "output" for user in node.users)
        return source.meta["val"].dtype == torch.bfloat16 and not is_returned

    def _is_mostly_rounded(self, node: fx.Node) -> bool:
        """Whether the largest of the inputs that are computed are in bfloat16."""
        sizes = dict[torch.dtype, float]()
        for input in node.all_input_nodes:
            value = _val(input)
            if value is not None and value.dtype in _FLOATS and input not in self._constants:
                sizes[value.dtype] = max(sizes.get(value.dtype, 0), _size(input))
        return sizes.get(torch.bfloat16, -1) > sizes.get(torch.float32, -1)

    def _convert_inputs(self, node: fx.Node, dtype: torch.dtype) -> None:
        for input in node.all_input_nodes:
            value = _val(input)
            if value is not None and value.dtype in _FLOATS and value.dtype != dtype:
                node.replace_input_with(*self._copy(input, dtype, node))

    def _copy(self, source: fx.Node, dtype: torch.dtype, before: fx.Node) -> tuple[fx.Node, fx.Node]:
        """A node, and its copy in another dtype."""
        copy = self._copies.get((source, dtype))
        if copy is None or source in self._written:  # a copy does not see later writes
            with self._graph.inserting_before(before):
                copy = self._graph.call_function(to_float32 if dtype == torch.float32 else to_bfloat16, (source,))
            copy.meta = dict(source.meta)
            if "val" in source.meta:
                self._set_val(copy, source.meta["val"].to(dtype))
            self._copies[source, dtype] = copy
        return source, copy

    def _set_val(self, node: fx.Node, value: Any) -> None:
        node.meta = {**node.meta, "val": value}


def _name(node: fx.Node) -> str:
    """The name of an operator of torch, without overload."""
    if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "aten":
        return node.target.overloadpacket.__name__
    return ""


def _val(node: fx.Node) -> Tensor | None:
    value = node.meta.get("val")
    return value if isinstance(value, Tensor) else None


def _rounded(value: Any) -> Any:
    return type(value)(map(_rounded, value)) if isinstance(value, (tuple, list)) else value.to(torch.bfloat16)


def _has_dtype(node: fx.Node) -> bool:
    """Whether the call names a dtype."""
    return any(isinstance(value, torch.dtype) for value in (*node.args, *node.kwargs.values()))


def _size(node: fx.Node) -> float:
    """The number of elements for the example."""
    return math.prod(node.meta["shape"]) if "shape" in node.meta else math.inf
