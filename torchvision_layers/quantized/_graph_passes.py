"""Rewrites of exported graphs that torchao leaves to others, or does for some cases only."""

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from ._graph_nodes import CONVS, LINEAR, LONE_NORM, NORM, is_call

__all__ = [
    "drop_unused",
    "fold_trained_norms",
    "guard_norms",
    "join_norms",
    "name_sources",
    "note_modes",
    "set_mode",
    "strip_random",
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
    NORM: nn.BatchNorm2d,
    LONE_NORM: nn.Identity,  # one that no quantizer looks for
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
    """Makes each call a source of its own for quantizers that look for sequences of modules.

    Otherwise the calls of a module that is used several times count as one source with several outputs, which they
    refuse, and so does the arithmetic on sizes that happened to be done first within a batch norm.
    """
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target in _SOURCES:
            node.meta["source_fn_stack"] = [(node.name, _SOURCES[node.target])]
        elif is_call(node, {operator.getitem}) and is_call(node.args[0], {LONE_NORM}):
            node.meta["source_fn_stack"] = node.args[0].meta["source_fn_stack"]
        elif not isinstance(node.meta.get("val"), (Tensor, list, tuple)) or _is_counter(node):
            node.meta.pop("nn_module_stack", None)
            node.meta.pop("torch_fn", None)


def _is_counter(node: fx.Node) -> bool:
    """Whether the node counts the batches of a batch norm."""
    counter: object = node
    while is_call(counter, {_aten.add_.Tensor}):  # one for each call of the batch norm
        counter = counter.args[0]  # type: ignore[attr-defined]
    is_buffer = isinstance(counter, fx.Node) and str(counter.target).rpartition(".")[2] == "num_batches_tracked"
    return is_buffer and counter is not node


# Batch norms


def _host(norm: fx.Node) -> fx.Node | None:
    """The convolution or projection that a batch norm can be folded into."""
    host = norm.args[0]
    if not (isinstance(host, fx.Node) and is_call(host, CONVS | LINEAR)):
        return None
    weight = host.args[1]
    assert isinstance(weight, fx.Node)
    same_channels = host.target not in LINEAR or host.meta["val"].dim() == 2
    is_own = len(host.users) == 1 and weight.op == "get_attr" and len(weight.users) == 1
    has_all = all(isinstance(argument, fx.Node) for argument in norm.args[1:5])
    return host if same_channels and is_own and has_all else None


def guard_norms(module: fx.GraphModule) -> None:
    """Keeps from folding the batch norms that are not free to be folded, about which torchao does not ask.

    It also spends 12 seconds of a conversion on patterns where it sees a batch norm.
    """
    graph = module.graph
    for norm in _norms(module):
        if _host(norm) is None:
            with graph.inserting_before(norm):
                lone = _call(graph, LONE_NORM, *norm.args[:8])
                output = _call(graph, operator.getitem, lone, 0)
            for node in (lone, output):
                node.meta = {**norm.meta, "val": node.meta["val"]}
            norm.replace_all_uses_with(output)
            graph.erase_node(norm)
    module.recompile()


def join_norms(module: fx.GraphModule) -> None:
    """Scales weights by their batch norm before they are quantized, as they will be in int8, and the result back.

    It is what torch's fused modules for training do: the statistics are still those of the convolution itself.
    """
    graph = module.graph
    for norm in _norms(module):
        host = _host(norm)
        if host is None:
            continue
        (input, weight), bias = host.args[:2], host.args[2] if len(host.args) > 2 else None
        gamma, variance, eps = norm.args[1], norm.args[4], norm.args[7]
        value = host.meta["val"]
        across, down = [1, -1, *[1] * (value.dim() - 2)], [-1, *[1] * (value.dim() - 1)]

        with graph.inserting_before(host):
            deviation = _call(graph, _aten.sqrt.default, _call(graph, _aten.add.Tensor, variance, eps))
            plain = _call(graph, _aten.div.Tensor, gamma, deviation)
            # A scale of zero, from which residual branches may start, could not be taken back.
            factor = _call(graph, _aten.where.ScalarOther, _call(graph, _aten.ne.Scalar, plain, 0), plain, 1.0)
            scaled = _call(graph, _aten.mul.Tensor, weight, _call(graph, _aten.reshape.default, factor, down))
        host.args = (input, scaled, None, *host.args[3:])
        with graph.inserting_before(norm):
            unscaled = _call(graph, _aten.div.Tensor, host, _call(graph, _aten.reshape.default, factor, across))
            parts = [unscaled]
            if bias is not None:
                parts.append(
                    _call(graph, _aten.add.Tensor, unscaled, _call(graph, _aten.reshape.default, bias, across))
                )
        for part in parts:
            part.meta.update({key: norm.meta[key] for key in ("nn_module_stack", "source_fn_stack")})
        norm.replace_input_with(host, parts[-1])
        norm.meta["joined"] = (host.name, scaled.name)
    module.recompile()


def _call(graph: fx.Graph, target: Callable[..., Any], *args: Any) -> fx.Node:
    node = graph.call_function(target, args)
    node.meta["val"] = target(*[arg.meta["val"] if isinstance(arg, fx.Node) else arg for arg in args])
    return node


def fold_trained_norms(module: fx.GraphModule) -> None:
    """Turns what ``join_norms`` made into convolutions alone, with the weights and statistics that training gave."""
    graph = module.graph
    named = {node.name: node for node in graph.nodes}
    for norm in _norms(module):
        if "joined" not in norm.meta:
            continue
        host, scaled = (named[name] for name in norm.meta["joined"])
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
        with graph.inserting_before(host):
            host.args = (*host.args[:2], graph.get_attr(bias), *host.args[3:])
        norm.replace_all_uses_with(host)
        graph.erase_node(norm)
    for node in reversed(list(graph.nodes)):
        if _is_counter(node):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    module.recompile()


def _norms(module: fx.GraphModule) -> list[fx.Node]:
    return [node for node in module.graph.nodes if is_call(node, {NORM})]


def _tensor(module: fx.GraphModule, node: object) -> Tensor:
    assert isinstance(node, fx.Node)
    return operator.attrgetter(str(node.target))(module)


# Training and eval


def note_modes(module: fx.GraphModule) -> list[fx.Node]:
    """Notes on each node of a graph exported in training which argument changes in eval; gives other random ones.

    torchao's own switch sets ``eps``, ``momentum`` and the probability of a dropout to the defaults on the way, and
    does not know stochastic depth.
    """
    unknown = []
    for node in module.graph.nodes:
        if is_call(node, {NORM, LONE_NORM}):
            # Without running statistics it normalizes by the batch in eval as well.
            if node.args[3] is not None:
                node.meta["modes"] = (5, True, False)
        elif is_call(node, _DROPOUTS):
            node.meta["modes"] = (2, node.args[2], False)
        elif _is_counter(node):
            node.meta["modes"] = (1, node.args[1], 0)
        elif is_call(node, {_aten.bernoulli_.float}):
            node.meta["modes"] = (1, node.args[1], 1.0)
            for user in node.users:
                if is_call(user, {_aten.div_.Tensor}) and not isinstance(user.args[1], fx.Node):
                    user.meta["modes"] = (1, user.args[1], 1.0)
        elif is_call(node, {_aten.scaled_dot_product_attention.default}) and "dropout_p" not in node.kwargs:
            if len(node.args) > 4:
                node.meta["modes"] = (4, node.args[4], 0.0)
        elif torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            unknown.append(node)
    return unknown


def set_mode(module: fx.GraphModule, training: bool, norms_train: bool) -> None:
    """Puts what ``note_modes`` has noted into training or eval, batch norms apart."""
    for node in module.graph.nodes:
        if "modes" not in node.meta:
            continue
        index, in_training, in_eval = node.meta["modes"]
        is_norm = node.target in (NORM, LONE_NORM) or _is_counter(node)
        node.update_arg(index, in_training if (norms_train if is_norm else training) else in_eval)
    module.recompile()


def strip_random(module: fx.GraphModule) -> None:
    """Takes out dropouts and stochastic depth, which do nothing in eval."""
    for node in list(module.graph.nodes):
        if is_call(node, _DROPOUTS):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
        elif is_call(node, {_aten.mul.Tensor}) and any(_is_ones(argument) for argument in node.args):
            noise = next(argument for argument in node.args if _is_ones(argument))
            node.replace_all_uses_with(next(argument for argument in node.args if argument is not noise))
            for stale in _chain(node, noise):
                module.graph.erase_node(stale)
    module.recompile()


def _is_ones(node: object) -> bool:
    while is_call(node, {_aten.div_.Tensor}):
        node = node.args[0]  # type: ignore[attr-defined]
    return is_call(node, {_aten.bernoulli_.float})


def _chain(product: fx.Node, noise: fx.Node) -> Iterator[fx.Node]:
    yield product
    while isinstance(noise, fx.Node):
        source = noise.args[0]
        yield noise
        if not isinstance(source, fx.Node):
            return
        noise = source


def drop_unused(module: fx.GraphModule) -> None:
    """Deletes the tensors that no node reads any more, which would stay in the state dict."""
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for path, _ in [*module.named_parameters(), *module.named_buffers()]:
        if path not in used:
            parent, _, name = path.rpartition(".")
            delattr(module.get_submodule(parent), name)
