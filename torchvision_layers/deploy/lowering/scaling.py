"""Norms and scales of exported graphs, moved into the weights before them or reduced to one product and sum."""

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx

from ...quantized.pt2e.constants import erase_unused_ops, register_parameter
from ...quantized.pt2e.nodes import BATCH_NORM, CONVS, LINEAR, UNFOLDABLE_NORM, arguments, is_call

__all__ = ["add_constant", "constant_of", "fold_scales"]

_aten = torch.ops.aten
_PERMUTE = _aten.permute.default


def fold_scales(module: fx.GraphModule) -> None:
    """Folds batch norms and products with constants into the convolution or linear layer before them, in place.

    Other batch norms become a product and a sum.
    """
    for node in list(module.graph.nodes):
        if is_call(node, {BATCH_NORM, UNFOLDABLE_NORM}):
            _fold_norm(module, node)
        elif is_call(node, {_aten.mul.Tensor}):
            _fold_scale(module, node)
    erase_unused_ops(module.graph)
    module.recompile()


def constant_of(module: fx.GraphModule, node: object) -> Tensor | None:
    """The parameter or buffer that a node reads."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value = attrgetter(str(node.target))(module)
    return value.detach() if isinstance(value, Tensor) else None


def add_constant(module: fx.GraphModule, before: fx.Node, value: Tensor, path: str) -> fx.Node:
    """A node that reads a new parameter, at ``path`` or at that path with a number."""
    parent, _, name = path.rpartition(".")
    node = register_parameter(module, before, value, parent, name)
    node.meta["val"] = value
    return node


def _fold_norm(module: fx.GraphModule, node: fx.Node) -> None:
    input, weight, bias, mean, variance, training, _, eps = arguments(node)[:8]
    output = node
    if node.target is UNFOLDABLE_NORM:  # it returns statistics, too
        output = next(iter(node.users))
        if len(node.users) != 1 or output.args[1:] != (0,):
            return
    center, spread = constant_of(module, mean), constant_of(module, variance)
    if training or center is None or spread is None:
        return
    scale = (spread.double() + eps).rsqrt()
    if weight is not None:
        factor = constant_of(module, weight)
        if factor is None:
            return
        scale = scale * factor.double()
    shift = -center.double() * scale
    if bias is not None:
        offset = constant_of(module, bias)
        if offset is None:
            return
        shift = shift + offset.double()
    dims = output.meta["val"].dim()
    if _is_foldable(module, input) and (input.target in CONVS or dims == 2):
        _scale_weights(module, input, scale, shift)
        output.replace_all_uses_with(input)
    else:
        shape = [1, -1, *[1] * (dims - 2)]
        path = str(mean.target).rpartition(".")[0]
        values = [value.to(center.dtype).reshape(shape) for value in (shift, scale)]
        constants = [
            add_constant(module, node, value, f"{path}.{name}".lstrip("."))
            for value, name in zip(values, ("shift", "scale"), strict=True)
        ]
        with module.graph.inserting_before(node):
            affine = module.graph.call_function(_aten.addcmul.default, (constants[0], input, constants[1]))
        affine.meta = dict(output.meta)
        output.replace_all_uses_with(affine)
    module.graph.erase_node(output)
    if output is not node:
        module.graph.erase_node(node)


def _fold_scale(module: fx.GraphModule, node: fx.Node) -> None:
    """Folds a product of a layer with a constant for each of its channels."""
    for value, other in (node.args[:2], node.args[1::-1]):
        constant = constant_of(module, other)
        if constant is None or not isinstance(value, fx.Node) or constant.dtype != torch.float32:
            continue
        layer: Any = value
        order = list(range(value.meta["val"].dim()))
        if is_call(value, {_PERMUTE}) and len(value.users) == 1:
            dims: Any
            layer, dims = value.args[:2]
            order = [dim % len(order) for dim in dims]
        if not _is_foldable(module, layer) or constant.dim() > len(order):
            continue
        channels = order.index(1 if layer.target in CONVS else len(order) - 1)
        shape = [*[1] * (len(order) - constant.dim()), *constant.shape]
        size = layer.meta["val"].shape[order[channels]]
        if any(n != 1 for dim, n in enumerate(shape) if dim != channels) or shape[channels] not in (1, size):
            continue
        _scale_weights(module, layer, constant.double().reshape(-1).expand(int(size)), None)
        node.replace_all_uses_with(value)
        module.graph.erase_node(node)
        return


def _is_foldable(module: fx.GraphModule, layer: object) -> bool:
    """Whether a node is a layer with constant weights, in float32, that only one other node reads."""
    if not is_call(layer, CONVS | LINEAR) or len(layer.users) != 1:  # type: ignore[attr-defined]
        return False
    _, weight, bias, *_ = arguments(layer)  # type: ignore[arg-type]
    value = constant_of(module, weight)
    has_bias = bias is None or constant_of(module, bias) is not None
    return value is not None and value.dtype == torch.float32 and has_bias


def _scale_weights(module: fx.GraphModule, layer: fx.Node, scale: Tensor, shift: Tensor | None) -> None:
    input, weight, bias, *rest = arguments(layer)
    kernel, offset = constant_of(module, weight), constant_of(module, bias)
    assert kernel is not None
    path = str(weight.target).rpartition(".")[0]
    scaled = kernel.double() * scale.reshape([-1, *[1] * (kernel.dim() - 1)])
    new_weight = add_constant(module, layer, scaled.to(kernel.dtype), f"{path}.folded_weight".lstrip("."))
    new_bias: Any = None
    if offset is not None or shift is not None:
        total = (0 if offset is None else offset.double() * scale) + (0 if shift is None else shift)
        assert isinstance(total, Tensor)
        new_bias = add_constant(module, layer, total.to(kernel.dtype), f"{path}.folded_bias".lstrip("."))
    layer.args = (input, new_weight, new_bias, *rest)
    layer.kwargs = {}
