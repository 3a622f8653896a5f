"""Bias correction of prepared graphs."""

from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

from torch import Tensor, fx, nn

from ..bias_correction import InputMean, rounding_error
from .constants import add_parameter
from .nodes import CONVS, LINEAR, arguments, is_call

__all__ = ["correct_biases"]


@contextmanager
def correct_biases(module: fx.GraphModule) -> Iterator[None]:
    """Measures the inputs that a prepared graph runs on within the context, then corrects its biases.

    A bias with several readers, or none, becomes a parameter of its own for each layer.
    """
    means = {node: _input_mean(module, node) for node in module.graph.nodes if _is_observed(module, node)}
    recorders = [_add_recorder(module, node, mean) for node, mean in means.items()]
    module.recompile()
    try:
        yield
    finally:
        for recorder in recorders:
            module.graph.erase_node(recorder)
            module.delete_submodule(str(recorder.target))
        module.recompile()
    readers = _readers(module.graph)
    for node, mean in means.items():
        weight = node.args[1]
        error = rounding_error(_tensor(module, weight.args[0]), module.get_submodule(str(weight.target)))
        shift = mean.shift(error, arguments(node)[-1] if node.target in CONVS else 1)
        if shift is not None:
            _shift_bias(module, node, -shift, readers)
    module.recompile()


def _is_observed(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node is a layer with a weight that is rounded per channel.

    A bias that the ``forward`` computes is left alone, because it may be zero on purpose: Swin V2 normalizes keys, and
    those of its padding must stay zero.
    """
    if not is_call(node, CONVS | LINEAR):
        return False
    _, weight, bias, *_ = arguments(node)
    has_scales = weight.op == "call_module" and hasattr(module.get_submodule(weight.target), "ch_axis")
    is_plain = bias is None or (bias.op == "get_attr" and "is_computed" not in bias.meta)
    return has_scales and weight.args[0].op == "get_attr" and is_plain


def _input_mean(module: fx.GraphModule, node: fx.Node) -> InputMean:
    if node.target not in CONVS:
        return InputMean()
    _, weight, _, stride, padding, dilation, _ = arguments(node)
    kernel = _tensor(module, weight.args[0]).shape[2:]
    return InputMean(kernel, *(value * len(kernel) if len(value) == 1 else value for value in (stride, padding, dilation)))


def _add_recorder(module: fx.GraphModule, node: fx.Node, mean: InputMean) -> fx.Node:
    name = f"_input_mean_of_{node.name}"
    module.add_submodule(name, mean)
    with module.graph.inserting_before(node):
        return module.graph.call_module(name, (node.args[0],))


def _tensor(module: fx.GraphModule, node: fx.Node) -> Tensor:
    return attrgetter(str(node.target))(module).detach()


def _readers(graph: fx.Graph) -> dict[str, int]:
    """The number of nodes that read each tensor, by path."""
    readers = dict[str, int]()
    for node in graph.nodes:
        if node.op == "get_attr":
            readers[str(node.target)] = readers.get(str(node.target), 0) + len(node.users)
    return readers


def _shift_bias(module: fx.GraphModule, node: fx.Node, shift: Tensor, readers: dict[str, int]) -> None:
    bias: Any = arguments(node)[2]
    value = shift if bias is None else _tensor(module, bias) + shift
    path, _, name = str(bias.target).rpartition(".") if bias is not None else ("", "", "")
    if bias is not None and readers[str(bias.target)] == 1 and name in module.get_submodule(path)._parameters:
        # A new parameter, because the old one may have other names.
        module.get_submodule(path).register_parameter(name, nn.Parameter(value, requires_grad=False))
    else:
        node.args = (*node.args[:2], add_parameter(module, node, value, "corrected_bias"), *node.args[3:])
