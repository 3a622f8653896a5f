"""Bias correction of graphs: of prepared ones for rounded weights, of int8 ones for rounded activations too."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

from torch import Tensor, fx, nn

from ..._utils.progress import track
from ..bias_correction import InputMean, cancel_shift, image_means, rounding_error
from ..gptq import InputMoments
from ..pairs import PairRange
from .constants import add_parameter
from .nodes import CONVS, LINEAR, arguments, conv_geometry, is_call

__all__ = ["correct_biases", "correct_int8_biases", "float_outputs", "measure_inputs"]

_DEQUANTIZE = "quantized_decomposed.dequantize_per_channel.default"

Outputs = dict[str, tuple[Tensor, int]]
#: Means of the inputs of layers, or second moments too.
Means = dict[Any, InputMean]


@contextmanager
def measure_inputs(
    module: fx.GraphModule, rounding: str = "nearest", keeps_outputs: bool = False
) -> Iterator[tuple[Means, Outputs]]:
    """Measures the inputs that the layers of a prepared graph get within the context.

    Yields them by node, and a dict which ``keeps_outputs`` fills in the first run with what :func:`float_outputs`
    returns for the same inputs. The graph cannot run again until it is recompiled, as :func:`correct_biases` does.
    """
    outputs: Outputs = {}
    cls = InputMoments if rounding == "gptq" else InputMean
    means = {node: cls(*_geometry(module, node)) for node in module.graph.nodes if _is_observed(module, node)}
    recorders = [_add_recorder(module, node, mean, outputs if keeps_outputs else None) for node, mean in means.items()]
    module.recompile()
    yield means, outputs
    for recorder in recorders:
        module.graph.erase_node(recorder)
        module.delete_submodule(str(recorder.target))


def correct_biases(module: fx.GraphModule, means: Means, progress: bool = False) -> None:
    """Rounds weights if second moments of their inputs were measured, and corrects the biases of all layers.

    A bias with several readers, or none, becomes a parameter of its own for each layer.
    """
    errors = _round_weights(module, means, progress)
    readers = _readers(module.graph)
    for node, mean in means.items():
        error = errors.get(_weight_path(node))
        if error is None:
            error = rounding_error(_weight(module, node), module.get_submodule(node.args[1].target))
        shift = mean.shift(error)
        if shift is not None:
            _shift_bias(module, node, -shift, readers)
    module.recompile()


def _round_weights(module: fx.GraphModule, means: Means, progress: bool) -> dict[str, Tensor]:
    """Rounds weights in place for the moments of their inputs; returns the errors by the paths of the weights.

    A weight that something else reads as well is left alone.
    """
    layers: dict[str, list[Any]] = {}  # nodes
    for node, mean in means.items():
        if isinstance(mean, InputMoments):
            layers.setdefault(_weight_path(node), []).append(node)
    readers, errors = _readers(module.graph), dict[str, Tensor]()
    for path, nodes in track(layers.items(), "rounding", "layer", shown=progress and bool(layers)):
        observers, moments = {node.args[1] for node in nodes}, [means[node] for node in nodes]
        has_other_readers = any(len(observer.users) > len(nodes) for observer in observers)
        if has_other_readers or readers[path] != len(observers) or len({mean.groups for mean in moments}) > 1:
            continue
        weight = _weight(module, nodes[0])
        total: Any = moments[0]
        for mean in moments[1:]:
            total.add(mean)
        rounded, _ = total.rounded(weight, module.get_submodule(str(nodes[0].args[1].target)))
        for node in observers:
            observer = module.get_submodule(str(node.target))
            if isinstance(observer, PairRange):
                observer.is_fixed = True
        errors[path] = rounded - weight
        parent, _, name = path.rpartition(".")
        _set_tensor(module.get_submodule(parent), name, rounded)
    return errors


def _weight_path(node: Any) -> str:
    """The path of the weight of a layer, behind its observer."""
    return str(node.args[1].args[0].target)


def _set_tensor(parent: nn.Module, name: str, value: Tensor) -> None:
    """Replaces a parameter or buffer: the old one may have other names."""
    if name in parent._buffers:
        parent.register_buffer(name, value, name not in parent._non_persistent_buffers_set)
    else:
        parent.register_parameter(name, nn.Parameter(value, requires_grad=False))


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


def _geometry(module: fx.GraphModule, node: fx.Node) -> tuple[Any, ...]:
    if node.target not in CONVS:
        return ()
    return _weight(module, node).shape[2:], *conv_geometry(node), arguments(node)[-1]


class _Recorder(nn.Module):
    """Measures the inputs of a layer, and the means of its first output if there is a dict to hold them."""

    def __init__(self, mean: InputMean, name: str, axis: int, outputs: Outputs | None) -> None:
        super().__init__()
        self.mean, self.name, self.axis = mean, name, axis
        self.outputs = outputs

    def forward(self, input: Tensor, output: Tensor) -> None:
        self.mean(input)
        if self.outputs is not None and self.name not in self.outputs:
            self.outputs[self.name] = image_means(output, self.axis), self.axis


def _add_recorder(module: fx.GraphModule, node: fx.Node, mean: InputMean, outputs: Outputs | None) -> fx.Node:
    name = f"_recorder_of_{node.name}"
    module.add_submodule(name, _Recorder(mean, node.name, _channel_axis(module, node), outputs))
    with module.graph.inserting_after(node):
        return module.graph.call_module(name, (node.args[0], node))


def _channel_axis(module: nn.Module, node: fx.Node) -> int:
    """The dimension of channels in the output of a layer, counted from the end."""
    return -1 if node.target in LINEAR else 1 - _weight(module, node).dim()


def _weight(module: nn.Module, node: Any) -> Tensor:
    """The weight of a layer, behind its observer."""
    return _tensor(module, node.args[1].args[0])


def _tensor(module: nn.Module, node: Any) -> Tensor:
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


def float_outputs(module: fx.GraphModule, tensors: Sequence[Tensor]) -> Outputs:
    """Means of what the layers with correctable biases in a prepared graph return, and their channel axis, by name."""
    run = _FloatRun(module)
    run.run(*[tensor.clone() for tensor in tensors])  # a forward may write into its input
    return run.outputs


def correct_int8_biases(module: fx.GraphModule, expected: Outputs, tensors: Sequence[Tensor]) -> None:
    """Corrects the layers of an int8 graph in turn: the means of their channels become those of ``float_outputs``.

    This also cancels the shift of rounded and clipped activations.
    """
    _CorrectingRun(module, expected).run(*[tensor.clone() for tensor in tensors])


class _Run(fx.Interpreter):
    """Runs a graph without the modules that only look at its tensors: observers, and guards of the export."""

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args[0]


class _FloatRun(_Run):
    """Collects the means of the channels in the layers of a prepared graph."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.layers = {node for node in module.graph.nodes if _is_observed(module, node)}
        self.outputs: Outputs = {}

    def run_node(self, n: fx.Node) -> Any:
        output = super().run_node(n)
        if n in self.layers:
            axis = _channel_axis(self.module, n)
            self.outputs[n.name] = image_means(output, axis), axis
        return output


class _CorrectingRun(_Run):
    """Corrects the bias of each layer of an int8 graph before the next layer runs."""

    def __init__(self, module: fx.GraphModule, expected: Outputs) -> None:
        super().__init__(module)
        self.expected = expected

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if str(target) == _DEQUANTIZE and args[3] == 0 and not kwargs and not args[2].any():
            # The same in a fraction of the time, because the operator subtracts zero points in int64.
            return args[0] * args[1].view(-1, *[1] * (args[0].dim() - 1))
        return super().call_function(target, args, kwargs)

    def run_node(self, n: fx.Node) -> Any:
        output = super().run_node(n)
        if n.name in self.expected:
            expected, axis = self.expected[n.name]
            shift, output = cancel_shift(output, expected, axis)
            _tensor(self.module, n.args[2]).add_(shift)
        return output
