"""Rewrites of an ONNX graph that let runtimes use their integer kernels.

Runtimes run an operator on integers if its inputs are dequantized, its result is quantized, and it is one that they
know. They know no pads apart from those of convolutions, no mean apart from global pooling, and no float bias in a
linear layer.
"""

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np

__all__ = ["rewrite"]

_INT32_MAX = 2**31 - 1


def rewrite(model: Any, has_integer_biases: bool = True) -> None:
    """Applies all rewrites, in place; results stay equal, up to the rounding of biases to 32 bits.

    Args:
        model: the graph to rewrite.
        has_integer_biases: whether linear layers get biases of 32 bits, which TensorRT does not read. Default:
            ``True``.
    """
    graph = _Graph(model)
    for node in reversed(list(graph.nodes("Pad"))):
        _merge_pad(graph, node)
    for node in list(graph.nodes("ReduceMean")):
        _pool_globally(graph, node)
    for node in list(graph.nodes("Gemm")) if has_integer_biases else ():
        _round_bias(graph, node)
    for node in graph.nodes("DequantizeLinear"):
        _share_scale(graph, node)
    graph.remove_unused()


class _Graph:
    """A graph with the nodes that write and read each value."""

    def __init__(self, model: Any) -> None:
        self.onnx = importlib.import_module("onnx")
        self.graph = model.graph
        self.tensors = {tensor.name: tensor for tensor in self.graph.initializer}
        self.writers = {name: node for node in self.graph.node for name in node.output}
        self.outputs = {value.name for value in self.graph.output}
        types = {value.name: value.type.tensor_type for value in (*self.graph.value_info, *self.graph.input)}
        #: The ranks of float32 values; onnxruntime pools no others.
        self.ranks = {
            name: len(type.shape.dim)
            for name, type in types.items()
            if type.HasField("shape") and type.elem_type == self.onnx.TensorProto.FLOAT
        }
        self.captured = set(_captured(self.graph))

    def nodes(self, operator: str) -> Iterator[Any]:
        return (node for node in self.graph.node if node.op_type == operator)

    def readers(self, name: str) -> list[Any]:
        """The nodes that read a value. Empty if it leaves the graph, or if the graph of a branch reads it."""
        if name in self.outputs or name in self.captured:
            return []
        return [node for node in self.graph.node if name in node.input]

    def constant(self, name: str) -> Any:
        """The value of a constant as an array, or ``None``."""
        tensor = self.tensors.get(name)
        return None if tensor is None else self.onnx.numpy_helper.to_array(tensor)

    def add_constant(self, name: str, array: Any) -> str:
        if name not in self.tensors:
            self.tensors[name] = self.graph.initializer.add()
            self.tensors[name].CopyFrom(self.onnx.numpy_helper.from_array(array, name))
        return name

    def insert(self, before: Any, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        node = self.onnx.helper.make_node(operator, inputs, [output], output, **attributes)
        nodes = list(self.graph.node)
        self.graph.node.insert(len(nodes) if before is None else nodes.index(before), node)
        self.writers[output] = node
        return output

    def remove_unused(self) -> None:
        """Removes nodes and constants that nothing reads."""
        while True:
            read = {name for node in self.graph.node for name in node.input} | self.outputs | self.captured
            unused = [node for node in self.graph.node if not read & set(node.output)]
            if not unused:
                break
            for node in unused:
                self.graph.node.remove(node)
        for tensor in [tensor for tensor in self.graph.initializer if tensor.name not in read]:
            self.graph.initializer.remove(tensor)


def _captured(graph: Any, is_inner: bool = False) -> Iterator[str]:
    """The names that graphs of branches read."""
    for node in graph.node:
        if is_inner:
            yield from node.input
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _captured(inner, is_inner=True)
                yield from (value.name for value in inner.output)


def _attributes(graph: _Graph, node: Any) -> dict[str, Any]:
    return {attribute.name: graph.onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _share_scale(graph: _Graph, dequantize: Any) -> None:
    """Gives weights whose channels have equal scales one scale, which is all that some hardware knows."""
    scales = graph.constant(dequantize.input[1])
    zeros = graph.constant(dequantize.input[2]) if len(dequantize.input) > 2 else None
    if scales is None or scales.ndim == 0 or np.unique(scales).size != 1 or (zeros is not None and zeros.any()):
        return
    dequantize.input[1] = graph.add_constant(f"{dequantize.input[1]}_shared", scales.flat[0].reshape(()))
    if zeros is not None:
        dequantize.input[2] = graph.add_constant(f"{dequantize.input[2]}_shared", zeros.flat[0].reshape(()))
    for attribute in [attribute for attribute in dequantize.attribute if attribute.name == "axis"]:
        dequantize.attribute.remove(attribute)


def _merge_pad(graph: _Graph, pad: Any) -> None:
    """Moves zeros around images into the convolutions that read them."""
    amounts = graph.constant(pad.input[1])
    value = graph.constant(pad.input[2]) if len(pad.input) > 2 and pad.input[2] else np.zeros(1)
    mode = _attributes(graph, pad).get("mode", b"constant")
    if amounts is None or value is None or value.any() or mode != b"constant" or len(pad.input) > 3:
        return
    before, after = np.split(amounts, 2)
    if amounts.min() < 0 or before[:2].any() or after[:2].any():
        return
    readers = graph.readers(pad.output[0])
    convs = [_conv_behind(graph, reader, pad.output[0]) for reader in readers]
    if not convs or None in convs:
        return
    merged = [*before[2:], *after[2:]]
    for conv in convs:
        own = next((attribute for attribute in conv.attribute if attribute.name == "pads"), None)
        if own is None:
            conv.attribute.append(graph.onnx.helper.make_attribute("pads", [int(amount) for amount in merged]))
        else:
            own.ints[:] = [int(a + b) for a, b in zip(own.ints, merged, strict=True)]
    for reader in readers:
        reader.input[0] = pad.input[0]
        _skip_repeated_rounding(graph, reader)
    graph.remove_unused()  # for pads before this one, whose only reader is then the convolution


def _conv_behind(graph: _Graph, reader: Any, name: str) -> Any:
    """The convolution that reads a value directly, or alone after rounding that keeps zeros; else ``None``."""
    if reader.op_type == "QuantizeLinear":
        dequantize = graph.readers(reader.output[0])
        if len(dequantize) != 1 or dequantize[0].op_type != "DequantizeLinear":
            return None
        name = dequantize[0].output[0]
        following = graph.readers(name)
        if len(following) != 1:
            return None
        reader = following[0]
    is_conv = reader.op_type == "Conv" and reader.input[0] == name and name not in list(reader.input)[1:]
    attributes = _attributes(graph, reader)
    return reader if is_conv and attributes.get("auto_pad", b"NOTSET") == b"NOTSET" else None


def _skip_repeated_rounding(graph: _Graph, quantize: Any) -> None:
    """Lets readers of values that are rounded twice to the same steps read those that are rounded once."""
    source = graph.writers.get(quantize.input[0])
    if quantize.op_type != "QuantizeLinear" or source is None or source.op_type != "DequantizeLinear":
        return
    if list(source.input)[1:] == list(quantize.input)[1:]:
        (dequantize,) = graph.readers(quantize.output[0])
        for reader in graph.readers(dequantize.output[0]):
            reader.input[:] = [source.output[0] if n == dequantize.output[0] else n for n in reader.input]


def _pool_globally(graph: _Graph, mean: Any) -> None:
    """Computes the mean of all pixels as global pooling, on integers if its input and result are rounded."""
    axes = graph.constant(mean.input[1]) if len(mean.input) > 1 else None
    rank, attributes = graph.ranks.get(mean.input[0], 0), _attributes(graph, mean)
    if axes is None or rank < 3 or sorted(axis % rank for axis in axes) != list(range(2, rank)):
        return
    output = mean.output[0]
    mean.op_type = "GlobalAveragePool"
    del mean.input[1:], mean.attribute[:]
    if attributes.get("keepdims", 1):
        return
    mean.output[0] = pooled = f"{output}_pooled"
    nodes = list(graph.graph.node)
    following = next(iter(nodes[nodes.index(mean) + 1 :]), None)
    quantize = graph.readers(output)
    if len(quantize) == 1 and quantize[0].op_type == "QuantizeLinear":
        steps = list(quantize[0].input)[1:]
        rounded = graph.insert(following, "QuantizeLinear", [pooled, *steps], f"{output}_quantized")
        pooled = graph.insert(following, "DequantizeLinear", [rounded, *steps], f"{output}_dequantized")
    graph.insert(following, "Flatten", [pooled], output, axis=1)


def _round_bias(graph: _Graph, gemm: Any) -> None:
    """Stores the bias of an int8 linear layer in 32 bits; a float bias makes onnxruntime dequantize the weight."""
    bias = graph.constant(gemm.input[2]) if len(gemm.input) > 2 else None
    operands = [graph.writers[name] for name in list(gemm.input)[:2] if name in graph.writers]
    attributes = _attributes(graph, gemm)
    is_plain = attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1.0 and not attributes.get("transA")
    if bias is None or bias.dtype != np.float32 or bias.ndim != 1 or not is_plain:
        return
    if [node.op_type for node in operands] != ["DequantizeLinear", "DequantizeLinear"]:
        return
    steps = [graph.constant(node.input[1]) for node in operands]
    if steps[0] is None or steps[1] is None or steps[0].size != 1 or steps[1].size not in (1, bias.size):
        return
    scale = (steps[0].reshape(()) * steps[1].reshape(-1)).astype(np.float32)
    scale = np.broadcast_to(scale, bias.shape).copy()
    rounded = np.rint(bias.astype(np.float64) / scale)
    if not np.all(np.abs(rounded) <= _INT32_MAX):
        return
    name = f"{gemm.output[0]}_bias"
    values = graph.add_constant(f"{name}_int32", rounded.astype(np.int32))
    steps_name = graph.add_constant(f"{name}_scale", scale)
    gemm.input[2] = graph.insert(gemm, "DequantizeLinear", [values, steps_name], name, axis=0)
