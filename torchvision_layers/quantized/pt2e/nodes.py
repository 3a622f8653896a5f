"""Classes of operators in exported graphs, and queries on their nodes."""

import operator
from collections.abc import Container, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from ..exclusion import excluding_path

__all__ = [
    "ADDITIONS",
    "AVERAGES",
    "BATCH_NORM",
    "CLAMPS",
    "COMPUTE_OPS",
    "CONCATENATIONS",
    "CONVS",
    "EINSUM",
    "KEEP_RANGE",
    "LINEAR",
    "MATMULS",
    "MAX_POOLS",
    "NAMED_PADDING",
    "PRODUCTS",
    "UNFOLDABLE_NORM",
    "WEIGHTED",
    "arguments",
    "clamped",
    "complex_nodes",
    "conv_geometry",
    "excluded_by",
    "float_operands",
    "is_activation",
    "is_call",
    "is_dequantize",
    "is_fused_into",
    "is_padding",
    "is_quantize",
    "is_random",
    "is_zero_padding",
    "module_class",
    "module_path",
    "operands",
    "operator_name",
    "qparams",
    "readers",
    "set_qparams",
]


_aten = torch.ops.aten
_decomposed = "quantized_decomposed"

_DIMS: dict[object, int] = {_aten.conv1d.default: 1, _aten.conv2d.default: 2, _aten.conv3d.default: 3}
CONVS = {*_DIMS}
LINEAR = {_aten.linear.default}
MATMULS = {_aten.matmul.default, _aten.mm.default, _aten.bmm.default, _aten.baddbmm.default, _aten.addmm.default}
EINSUM = {_aten.einsum.default}
BATCH_NORM = _aten.batch_norm.default
#: The same operation under a name that torchao does not treat as a batch norm.
UNFOLDABLE_NORM = _aten.native_batch_norm.default
#: Convolutions with padding "same" or "valid", and those with numbers.
NAMED_PADDING = {
    _aten.conv1d.padding: _aten.conv1d.default,
    _aten.conv2d.padding: _aten.conv2d.default,
    _aten.conv3d.padding: _aten.conv3d.default,
}
_TRANSPOSED_CONVS = {
    _aten.conv_transpose1d.default,
    _aten.conv_transpose2d.input,
    _aten.conv_transpose3d.input,
}
_ATTENTION = {_aten.scaled_dot_product_attention.default}
#: Operators of layers with weights.
WEIGHTED = CONVS | LINEAR | _TRANSPOSED_CONVS

#: Operators that take nearly all the time of a network.
COMPUTE_OPS = WEIGHTED | MATMULS | EINSUM | _ATTENTION

_RELUS = {_aten.relu.default, _aten.relu_.default}
#: Activations that only cut off the range of their input.
CLAMPS = _RELUS | {
    _aten.hardtanh.default,
    _aten.hardtanh_.default,
    _aten.relu6.default,
}
_FUSED_INTO_CONVS = CLAMPS | {
    _aten.hardswish.default,
    _aten.hardswish_.default,
    _aten.silu.default,
    _aten.silu_.default,
}
_FUSED_INTO_LINEAR = _RELUS | {
    _aten.gelu.default,
    _aten.leaky_relu.default,
    _aten.leaky_relu_.default,
    _aten.tanh.default,
}

#: Operators that move, select or pool values.
KEEP_RANGE = {
    operator.getitem,
    _aten.adaptive_avg_pool2d.default,
    _aten.alias.default,
    _aten.avg_pool2d.default,
    _aten.cat.default,
    _aten.chunk.default,
    _aten.clone.default,
    _aten.contiguous.default,
    _aten.flatten.using_ints,
    _aten.max_pool2d.default,
    _aten.permute.default,
    _aten.pixel_shuffle.default,
    _aten.reshape.default,
    _aten.select.int,
    _aten.slice.Tensor,
    _aten.split.Tensor,
    _aten.split_with_sizes.default,
    _aten.squeeze.dim,
    _aten.transpose.int,
    _aten.unsqueeze.default,
    _aten.upsample_nearest2d.vec,
    _aten.view.default,
}

AVERAGES = {_aten.adaptive_avg_pool2d.default, _aten.avg_pool2d.default}
MAX_POOLS = {_aten.max_pool2d.default}
CONCATENATIONS = {_aten.cat.default}

#: Sums and products of two tensors, in place or not.
ADDITIONS = {_aten.add.Tensor, _aten.add_.Tensor}
PRODUCTS = {_aten.mul.Tensor, _aten.mul_.Tensor}


def is_call(node: object, targets: Container[object]) -> bool:
    """Whether ``node`` calls one of ``targets``."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def is_activation(node: object) -> bool:
    """Whether ``node`` computes a float32 tensor, or is an input that is one."""
    if not isinstance(node, fx.Node) or node.op == "get_attr":
        return False
    return getattr(node.meta.get("val"), "dtype", None) is torch.float32


def complex_nodes(module: fx.GraphModule) -> list[fx.Node]:
    """The nodes of a graph that compute complex tensors."""
    values = [(node, node.meta.get("val")) for node in module.graph.nodes]
    return [node for node, value in values if isinstance(value, Tensor) and value.is_complex()]


def is_padding(node: object) -> bool:
    """Whether ``node`` adds zeros, or copies of values, at the borders of a tensor, which keeps its range."""
    if is_call(node, {_aten.pad.default}) and arguments(node)[2] != "constant":  # type: ignore[arg-type]
        return True
    return is_zero_padding(node)


def is_zero_padding(node: object) -> bool:
    """Whether ``node`` adds zeros at the borders of a tensor."""
    if not is_call(node, {_aten.pad.default, _aten.constant_pad_nd.default}):
        return False
    assert isinstance(node, fx.Node)
    mode, value = (["constant"] if node.target is _aten.constant_pad_nd.default else []) + arguments(node)[2:]
    return mode == "constant" and value in (None, 0)


def is_fused_into(activation: fx.Node, source: fx.Node) -> bool:
    """Whether the int8 kernel of ``source`` also computes the activation; for a sum, the kernel of one of its terms."""
    if len(source.users) != 1:
        return False
    if source.target in CONVS:
        return activation.target in _FUSED_INTO_CONVS
    if source.target in LINEAR:
        return activation.target in _FUSED_INTO_LINEAR
    return is_call(source, ADDITIONS) and activation.target in _RELUS


def module_path(node: fx.Node) -> str | None:
    """Path of the innermost module whose ``forward`` created the node; ``None`` if no module did."""
    stack = node.meta.get("nn_module_stack")
    return None if not stack else next(reversed(stack.values()))[0].split("@")[0]


def excluded_by(node: fx.Node, excluded: Mapping[str, str]) -> str | None:
    """The entry that excludes a node from int8: that of one of the modules whose ``forward`` runs it."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = (path.split("@")[0] for path, _ in stack.values())
    return next((excluded[found] for path in paths if (found := excluding_path(path, excluded)) is not None), None)


def operator_name(node: fx.Node) -> str:
    """The name of an operator, without those of its overload and of its form that writes into its input."""
    return str(node.target).removeprefix("aten.").partition(".")[0].rstrip("_")


def module_class(node: fx.Node) -> str:
    """Class name of the innermost module whose ``forward`` created the node."""
    cls = next(reversed(node.meta["nn_module_stack"].values()))[1]
    return cls.__name__ if isinstance(cls, type) else cls.rpartition(".")[2]


def arguments(node: fx.Node) -> list[Any]:
    """All arguments of a node in the order of its operator's schema, with the defaults that the exporter leaves out."""
    rest = node.target._schema.arguments[len(node.args) :]  # type: ignore[union-attr]
    return [*node.args, *(node.kwargs.get(argument.name, argument.default_value) for argument in rest)]


def conv_geometry(node: fx.Node) -> list[list[int]]:
    """Stride, padding and dilation of a convolution, with a number for each dimension of its images."""
    dims = _DIMS[node.target]
    return [[*numbers] * (dims if len(numbers) == 1 else 1) for numbers in arguments(node)[3:6]]


def operands(node: fx.Node) -> list[fx.Node]:
    """The tensors that a compute op multiplies."""
    if is_call(node, EINSUM):
        tensors = list(node.args[1])  # type: ignore[arg-type]  # a list of nodes
    elif is_call(node, {_aten.baddbmm.default, _aten.addmm.default}):
        tensors = list(node.args[1:3])
    else:
        tensors = list(node.args[: 3 if is_call(node, _ATTENTION) else 2])
    return [tensor for tensor in tensors if isinstance(tensor, fx.Node)]


def is_quantize(node: fx.Node) -> bool:
    """Whether the node quantizes a tensor."""
    return _is_decomposed(node, "quantize")


def is_dequantize(node: fx.Node) -> bool:
    """Whether the node dequantizes a tensor."""
    return _is_decomposed(node, "dequantize")


def _is_quantized(node: fx.Node) -> bool:
    """Whether the output of the node comes from int8, or will: it dequantizes, or observes."""
    if node.op == "call_module":
        return str(node.target).startswith("activation_post_process")
    return is_dequantize(node)


def float_operands(node: fx.Node) -> list[str]:
    """The operands of a compute op that are in float, by name."""
    names = ("input", "weight") if node.target in WEIGHTED else ("first factor", "second factor", "third factor")
    return [name for name, tensor in zip(names, operands(node), strict=False) if not _is_quantized(tensor)]


def is_random(node: fx.Node) -> bool:
    """Whether the node draws random numbers."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _is_decomposed(node: fx.Node, name: str) -> bool:
    target = node.target
    is_op = isinstance(target, torch._ops.OpOverload) and target.namespace == _decomposed
    return node.op == "call_function" and is_op and str(target).startswith(f"{_decomposed}.{name}")


def qparams(graph: fx.Graph) -> dict[str, Tensor]:
    """Scales and zero points of the activations, in the order of the nodes that hold them as numbers."""
    pairs = [node.args[1:3] for node in _per_tensor_nodes(graph)]
    return {
        "activation_scales": torch.tensor([pair[0] for pair in pairs], dtype=torch.float64),
        "activation_zero_points": torch.tensor([pair[1] for pair in pairs], dtype=torch.int64),
    }


def set_qparams(module: fx.GraphModule, scales: Tensor, zero_points: Tensor) -> None:
    """Writes the results of ``qparams`` of another graph into the nodes of this one."""
    nodes = _per_tensor_nodes(module.graph)
    for node, scale, zero_point in zip(nodes, scales.tolist(), zero_points.tolist(), strict=True):
        node.args = (node.args[0], scale, zero_point, *node.args[3:])
    module.recompile()


def _per_tensor_nodes(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if any(_is_decomposed(node, f"{q}quantize_per_tensor") for q in ("", "de"))]


def readers(node: fx.Node) -> Iterator[fx.Node]:
    """The ops that compute with the node, directly or after it is moved, pooled or clamped."""
    for user in node.users:
        if is_call(user, KEEP_RANGE | CLAMPS) or is_padding(user):
            yield from readers(user)
        elif user.op != "output":
            yield user


def clamped(node: fx.Node) -> fx.Node:
    """The clamping activation that is a node's only user, which an int8 kernel computes by saturation; or the node."""
    follower = next(iter(node.users), node)
    return follower if len(node.users) == 1 and is_call(follower, CLAMPS) else node
