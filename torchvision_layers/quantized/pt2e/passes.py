"""Rewrites of exported graphs that torchao lacks, or supports in some cases only."""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..norm_gains import scaling_factors
from .nodes import ADDITIONS, BATCH_NORM, CONVS, LINEAR, UNFOLDABLE_NORM, excluded_by, is_call, is_random

__all__ = [
    "fold_trained_norms",
    "fuse_conv_bn_for_qat",
    "isolate_unfoldable_norms",
    "name_sources",
    "record_modes",
    "remove_dropout",
    "set_mode",
]

_aten = torch.ops.aten
_DROPOUTS = {
    _aten.alpha_dropout.default,
    _aten.dropout.default,
    _aten.dropout_.default,
    _aten.feature_alpha_dropout.default,
    _aten.feature_dropout.default,
    _aten.feature_dropout_.default,
}
_SOURCES: dict[object, type[nn.Module]] = {
    _aten.conv1d.default: nn.Conv1d,
    _aten.conv2d.default: nn.Conv2d,
    _aten.linear.default: nn.Linear,
    BATCH_NORM: nn.BatchNorm2d,
    UNFOLDABLE_NORM: nn.Identity,  # a class that no quantizer looks for
    _aten.relu.default: nn.ReLU,
    _aten.relu_.default: nn.ReLU,
    _aten.hardtanh.default: nn.Hardtanh,
    _aten.hardtanh_.default: nn.Hardtanh,
    _aten.relu6.default: nn.ReLU6,
    _aten.hardswish.default: nn.Hardswish,
    _aten.hardswish_.default: nn.Hardswish,
    _aten.silu.default: nn.SiLU,
    _aten.silu_.default: nn.SiLU,
    _aten.gelu.default: nn.GELU,
    _aten.tanh.default: nn.Tanh,
    _aten.leaky_relu.default: nn.LeakyReLU,
    _aten.leaky_relu_.default: nn.LeakyReLU,
}


def name_sources(module: fx.GraphModule) -> None:
    """Makes each call a source of its own for quantizers, which look for sequences of sources.

    Otherwise the calls of a module that is used several times count as one source with several outputs, which
    quantizers reject; so does arithmetic on sizes that happens to run first within a batch norm.
    """
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target in _SOURCES:
            node.meta["source_fn_stack"] = [(node.name, _SOURCES[node.target])]
        elif is_call(node, {operator.getitem}) and is_call(node.args[0], {UNFOLDABLE_NORM}):
            node.meta["source_fn_stack"] = node.args[0].meta["source_fn_stack"]
        elif is_call(node, ADDITIONS) and not _adds_number(node):  # torch numbers ``x + y`` and ``torch.add`` apart
            node.meta["source_fn_stack"] = [(node.name, operator.add)]
        elif _adds_number(node) or _is_in_source(node):
            node.meta["source_fn_stack"] = [(node.name, node.target)]
        elif not isinstance(node.meta.get("val"), (Tensor, list, tuple)) or _is_counter(node):
            node.meta.pop("nn_module_stack", None)
            node.meta.pop("torch_fn", None)


def _adds_number(node: fx.Node) -> bool:
    return is_call(node, ADDITIONS) and not all(isinstance(argument, fx.Node) for argument in node.args[:2])


def _is_in_source(node: fx.Node) -> bool:
    """Whether a layer that quantizers look for computes more than its operator, such as a padding."""
    stack = node.meta.get("nn_module_stack")
    cls = next(reversed(stack.values()))[1] if stack else None
    if isinstance(cls, type):
        return issubclass(cls, tuple({*_SOURCES.values()}))
    return cls in {f"{source.__module__}.{source.__qualname__}" for source in _SOURCES.values()}


def _is_counter(node: fx.Node) -> bool:
    """Whether the node counts the batches of a batch norm."""
    counter: object = node
    while is_call(counter, {_aten.add_.Tensor}):  # one for each call of the batch norm
        counter = counter.args[0]  # type: ignore[attr-defined]
    is_buffer = isinstance(counter, fx.Node) and str(counter.target).rpartition(".")[2] == "num_batches_tracked"
    return is_buffer and counter is not node


# Batch norms


def _fusion_source(norm: fx.Node) -> fx.Node | None:
    """The convolution or linear layer that a batch norm can be folded into."""
    source = norm.args[0]
    if not (isinstance(source, fx.Node) and is_call(source, CONVS | LINEAR)):
        return None
    weight = source.args[1]
    assert isinstance(weight, fx.Node)
    same_channels = source.target not in LINEAR or source.meta["val"].dim() == 2
    is_own = len(source.users) == 1 and weight.op == "get_attr" and len(weight.users) == 1
    is_own &= all(bias is None or bias.op == "get_attr" for bias in source.args[2:3])  # type: ignore[union-attr]
    has_all = all(isinstance(argument, fx.Node) for argument in norm.args[1:5])
    return source if same_channels and is_own and has_all else None


def isolate_unfoldable_norms(module: fx.GraphModule, excluded: Mapping[str, str]) -> None:
    """Renames batch norms that must not be folded, because torchao folds them without a check.

    A norm that is excluded from int8 must not be folded into a layer that is not. torchao also spends 12 seconds of a
    conversion on patterns if it finds a batch norm.
    """
    graph = module.graph
    norms = []
    for norm in _norms(module):
        source = _fusion_source(norm)
        if source is None or (excluded_by(norm, excluded) is not None and excluded_by(source, excluded) is None):
            norms.append(norm)
    for norm in norms:
        with graph.inserting_before(norm):
            norm_node = _call(graph, UNFOLDABLE_NORM, *norm.args[:8])
            output = _call(graph, operator.getitem, norm_node, 0)
        for node in (norm_node, output):
            node.meta = {**norm.meta, "val": node.meta["val"]}
        norm.replace_all_uses_with(output)
        graph.erase_node(norm)
    if norms:
        module.recompile()


def fuse_conv_bn_for_qat(module: fx.GraphModule) -> None:
    """Scales weights by their batch norm before they are quantized, as in int8, and scales the result back.

    torch's fused modules for training do the same: the statistics are still those of the unscaled convolution.
    """
    graph = module.graph
    for norm in _norms(module):
        source = _fusion_source(norm)
        if source is None:
            continue
        (input, weight), bias = source.args[:2], source.args[2] if len(source.args) > 2 else None
        gamma, variance, eps = norm.args[1], norm.args[4], norm.args[7]
        value = source.meta["val"]
        per_output, per_filter = [1, -1, *[1] * (value.dim() - 2)], [-1, *[1] * (value.dim() - 1)]

        with graph.inserting_before(source):
            factor = _call(graph, scaling_factors, gamma, variance, eps)
            factors = _call(graph, _aten.reshape.default, factor, per_filter)
            # torchao rounds the terms of mul if their shapes are equal, as in depthwise 1×1 convolutions.
            scaled = _call(graph, _aten.multiply.Tensor, weight, factors)
        source.args = (input, scaled, None, *source.args[3:])
        with graph.inserting_before(norm):
            unscaled = _call(graph, _aten.div.Tensor, source, _call(graph, _aten.reshape.default, factor, per_output))
            parts = [unscaled]
            if bias is not None:
                shift = _call(graph, _aten.reshape.default, bias, per_output)
                parts.append(_call(graph, _aten.add.Tensor, unscaled, shift))
        for part in parts:
            part.meta.update({key: norm.meta[key] for key in ("nn_module_stack", "source_fn_stack")})
        norm.replace_input_with(source, parts[-1])
        norm.meta["fused_for_qat"] = (source.name, scaled.name)
    module.recompile()


def _call(graph: fx.Graph, target: Callable[..., Any], *args: Any) -> fx.Node:
    node = graph.call_function(target, args)
    node.meta["val"] = target(*[arg.meta["val"] if isinstance(arg, fx.Node) else arg for arg in args])
    return node


def fold_trained_norms(module: fx.GraphModule) -> None:
    """Turns the results of ``fuse_conv_bn_for_qat`` into plain convolutions with the trained numbers."""
    graph = module.graph
    nodes = {node.name: node for node in graph.nodes}
    for norm in _norms(module):
        if "fused_for_qat" not in norm.meta:
            continue
        source, scaled = (nodes[name] for name in norm.meta["fused_for_qat"])
        weight = scaled.args[0]
        gamma, beta, mean, variance = (_tensor(module, argument) for argument in norm.args[1:5])
        eps: Any = norm.args[7]
        factor = gamma / torch.sqrt(variance + eps)
        shift = beta - mean * factor
        last: Any = norm.args[0]
        if is_call(last, {_aten.add.Tensor}):
            shift = shift + _tensor(module, last.args[1].args[0]) * factor
        with torch.no_grad():
            _tensor(module, weight).mul_(factor.reshape([-1, *[1] * (weight.meta["val"].dim() - 1)]))
        scaled.replace_all_uses_with(weight)
        bias = f"{weight.target.rpartition('.')[0]}.folded_bias".lstrip(".")
        parent, _, name = bias.rpartition(".")
        module.get_submodule(parent).register_parameter(name, nn.Parameter(shift.detach(), requires_grad=False))
        with graph.inserting_before(source):
            source.args = (*source.args[:2], graph.get_attr(bias), *source.args[3:])
        norm.replace_all_uses_with(source)
        graph.erase_node(norm)
    for node in reversed(list(graph.nodes)):
        if _is_counter(node):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    if len(graph.nodes) < len(nodes):
        module.recompile()


def _norms(module: fx.GraphModule) -> list[fx.Node]:
    return [node for node in module.graph.nodes if is_call(node, {BATCH_NORM})]


def _tensor(module: fx.GraphModule, node: object) -> Tensor:
    assert isinstance(node, fx.Node)
    return operator.attrgetter(str(node.target))(module)


# Training and eval


def record_modes(module: fx.GraphModule) -> list[fx.Node]:
    """Records on each node of a graph exported in training mode which argument differs in eval mode.

    Returns the other random nodes. torchao's own switch resets ``eps``, ``momentum`` and dropout probabilities to their
    defaults, and does not know stochastic depth.
    """
    unknown = []
    for node in module.graph.nodes:
        _add_defaults(node)
        if is_call(node, {BATCH_NORM, UNFOLDABLE_NORM}):
            # Without running statistics it normalizes by the batch in eval mode as well.
            if node.args[3] is not None:
                node.meta["modes"] = (5, True, False)
        elif _is_counter(node):
            node.meta["modes"] = (1, node.args[1], 0)
        elif is_call(node, {_aten.bernoulli_.float}):
            node.meta["modes"] = (1, node.args[1], 1.0)
            for user in node.users:
                if is_call(user, {_aten.div_.Tensor}) and not isinstance(user.args[1], fx.Node):
                    user.meta["modes"] = (1, user.args[1], 1.0)
        elif is_call(node, {_aten.scaled_dot_product_attention.default}):
            node.meta["modes"] = (4, node.args[4], 0.0)
        elif is_random(node):
            names = [argument.name for argument in node.target._schema.arguments]
            if "train" not in names:
                unknown.append(node)
                continue
            node.meta["modes"] = (index := names.index("train"), node.args[index], False)
    return unknown


def _add_defaults(node: fx.Node) -> None:
    """Writes the defaults that the exporter leaves out into the arguments of a random operator."""
    if node.op == "call_function" and is_random(node):
        missing = [a for a in node.target._schema.arguments[len(node.args) :] if not a.kwarg_only]  # type: ignore[union-attr]
        node.args = (*node.args, *(argument.default_value for argument in missing))


def set_mode(module: fx.GraphModule, training: bool, norms_train: bool) -> None:
    """Switches the nodes that ``record_modes`` recorded to training or eval mode, batch norms separately."""
    nodes = [node for node in module.graph.nodes if "modes" in node.meta]
    for node in nodes:
        index, in_training, in_eval = node.meta["modes"]
        is_norm = node.target in (BATCH_NORM, UNFOLDABLE_NORM) or _is_counter(node)
        node.update_arg(index, in_training if (norms_train if is_norm else training) else in_eval)
    if nodes:
        module.recompile()


def remove_dropout(module: fx.GraphModule) -> None:
    """Removes dropouts and stochastic depth, which do nothing in eval mode."""
    nodes = list(module.graph.nodes)
    for node in nodes:
        if is_call(node, _DROPOUTS):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
        elif is_call(node, {_aten.mul.Tensor}) and any(_is_ones(argument) for argument in node.args):
            noise = next(argument for argument in node.args if _is_ones(argument))
            node.replace_all_uses_with(next(argument for argument in node.args if argument is not noise))
            for unused in _noise_nodes(node, noise):
                module.graph.erase_node(unused)
    if len(module.graph.nodes) < len(nodes):
        module.recompile()


def _is_ones(node: object) -> bool:
    while is_call(node, {_aten.div_.Tensor}):
        node = node.args[0]  # type: ignore[attr-defined]
    return is_call(node, {_aten.bernoulli_.float})


def _noise_nodes(product: fx.Node, noise: fx.Node) -> list[fx.Node]:
    nodes = [product, noise]
    while is_call(nodes[-1], {_aten.div_.Tensor, _aten.bernoulli_.float}):
        nodes.append(nodes[-1].args[0])  # type: ignore[arg-type]  # the tensor that the operator writes into
    return nodes
