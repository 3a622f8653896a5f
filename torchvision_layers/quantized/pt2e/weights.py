"""Convolutions and linear layers as quantizers know them: padding in numbers, and a parameter as the weight."""

from operator import attrgetter
from typing import Any

import torch
from torch import fx, nn

from .nodes import NAMED_PADDING, WEIGHTED, is_call, is_constant, module_path

__all__ = ["dynamic_weights", "erase_unused_ops", "fold_constants", "make_padding_numeric"]

_pad = torch.ops.aten.constant_pad_nd.default


def make_padding_numeric(module: fx.GraphModule) -> None:
    """Replaces ``"same"`` and ``"valid"`` padding of convolutions by numbers, and by a pad if the sides differ."""
    graph = module.graph
    for node in graph.nodes:
        if not is_call(node, NAMED_PADDING):
            continue
        input, weight, bias, stride, padding, dilation, groups = _arguments(node)
        kernel = weight.meta["val"].shape[2:]
        total = [0] * len(kernel)
        if padding == "same":
            dilations = dilation * len(kernel) if len(dilation) == 1 else dilation
            total = [d * (size - 1) for d, size in zip(dilations, kernel, strict=True)]
        sides = [size // 2 for size in total]
        if any(size % 2 for size in total):
            extra = [n for size in reversed(total) for n in (0, size % 2)]
            with graph.inserting_before(node):
                padded = graph.call_function(_pad, (input, extra))
            value = input.meta["val"]
            spatial = value.dim() - len(total)
            sizes = [*value.shape[:spatial], *(n + m % 2 for n, m in zip(value.shape[spatial:], total, strict=True))]
            # Padding a symbolic tensor would restrict the sizes of the graph.
            padded.meta = {**node.meta, "val": value.new_empty(sizes)}
            input = padded
        node.target = NAMED_PADDING[node.target]
        node.args = (input, weight, bias, stride, sides, dilation, groups)
    module.recompile()


def _arguments(node: fx.Node) -> list[Any]:
    """All arguments of a node, with the defaults that the exporter leaves out."""
    return [*node.args, *(argument.default_value for argument in node.target._schema.arguments[len(node.args) :])]  # type: ignore[union-attr]


def fold_constants(module: fx.GraphModule) -> None:
    """Makes what a forward computes from parameters and buffers alone parameters themselves.

    These are weights and biases, as weight standardization and parametrizations compute them, and the results of layers
    on constants, such as the position biases of Swin V2.
    """
    graph = module.graph
    for node in graph.nodes:
        if is_call(node, WEIGHTED):
            sources = (
                {"result": node} if is_constant(node) else dict(zip(("weight", "bias"), node.args[1:3], strict=False))
            )
            for name, source in sources.items():
                if isinstance(source, fx.Node) and source.op != "get_attr" and is_constant(source):
                    _fold(module, source, f"computed_{name}")
    erase_unused_ops(graph)
    module.recompile()


def _fold(module: fx.GraphModule, node: fx.Node, name: str) -> None:
    path = _free_path(module, module_path(node) or "", name)
    owner, _, attribute = path.rpartition(".")
    with torch.no_grad():
        value = nn.Parameter(_value(module, node), requires_grad=False)
    module.get_submodule(owner).register_parameter(attribute, value)
    with module.graph.inserting_before(node):
        constant = module.graph.get_attr(path)
    constant.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(constant)


def erase_unused_ops(graph: fx.Graph) -> None:
    """Erases operators without users, but neither the guards of the program nor tensors, which are its state."""
    graph.eliminate_dead_code(lambda node: node.op != "call_function" or node.is_impure())


def dynamic_weights(graph: fx.Graph) -> list[fx.Node]:
    """Convolutions and linear layers whose weight depends on the input of the model."""
    return [node for node in graph.nodes if is_call(node, WEIGHTED) and not is_constant(node.args[1])]


def _free_path(module: fx.GraphModule, owner: str, name: str) -> str:
    """A path for a parameter of the module at ``owner``, or of the model if the graph keeps no such module."""
    if not any(path == owner for path, _ in module.named_modules()):
        owner = ""
    free, number = name, 1
    while hasattr(module.get_submodule(owner), free):
        free, number = f"{name}_{number}", number + 1
    return f"{owner}.{free}".lstrip(".")


def _value(module: fx.GraphModule, node: fx.Node) -> Any:
    if node.op == "get_attr":
        return attrgetter(str(node.target))(module).clone()  # operators may write into it
    arguments = fx.node.map_arg((node.args, node.kwargs), lambda source: _value(module, source))
    return node.target(*arguments[0], **arguments[1])  # type: ignore[operator]
