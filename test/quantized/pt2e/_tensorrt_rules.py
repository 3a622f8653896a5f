"""NVIDIA's rules for the placement of Q and DQ nodes, checked in an ONNX graph node by node.

The rules are those of the page "Explicit Quantization" in the documentation of TensorRT, with what its importer of ONNX
rejects (asymmetric tensors, biases of 32 bits) and what its toolkits do for residual sums and concatenations.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

__all__ = ["broken_rules"]

_WEIGHTED = {"Conv", "Gemm", "MatMul"}
_ACTIVATIONS = {"Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Gelu", "Tanh", "Elu"}
#: Operators that the kernel of a layer also computes.
_FUSED = {*_ACTIVATIONS, "BatchNormalization"}
_MOVES = {"Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Identity"}
_AVERAGES = {"AveragePool", "GlobalAveragePool"}


def broken_rules(model: onnx.ModelProto) -> list[str]:
    """A sentence for each node that breaks a rule."""
    return [f"{node.op_type} {node.output[0]}: {problem}" for node, problem in _Graph(model).problems()]


class _Graph:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = onnx.shape_inference.infer_shapes(model).graph
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in self.graph.initializer}
        for node in self.graph.node:
            if node.op_type == "Constant":
                value = onnx.helper.get_attribute_value(node.attribute[0])
                is_tensor = isinstance(value, onnx.TensorProto)
                self.constants[node.output[0]] = numpy_helper.to_array(value) if is_tensor else np.asarray(value)
        self.writers = {name: node for node in self.graph.node for name in node.output}
        self.types = {value.name: value.type.tensor_type.elem_type for value in self.graph.value_info}
        self.outputs = {value.name for value in self.graph.output}
        self.readers: dict[str, list[Any]] = {}
        for node in self.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.depths: dict[str, int] = {}
        for node in self.graph.node:
            depth = 1 + max((self.depths.get(name, 0) for name in node.input), default=0)
            self.depths.update(dict.fromkeys(node.output, depth))

    def problems(self) -> Iterator[tuple[Any, str]]:
        for node in self.graph.node:
            if self.types.get(node.output[0]) == onnx.TensorProto.INT64:  # arithmetic on sizes
                continue
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                checks = [self.tensor_problems(node)]
            elif node.op_type in _WEIGHTED and any(self.is_weight(name) for name in list(node.input)[:2]):
                checks = [self.layer_problems(node), self.output_problems(node)]
            elif node.op_type == "Add" and self.is_of_tensors(node):
                checks = [self.sum_problems(node)]
            elif node.op_type == "Mul" and self.is_of_tensors(node) and self.activated(node) is None:
                checks = [self.all_int8(node, "an input of a product")]
            elif node.op_type == "Concat":
                checks = [self.all_int8(node, "an input of a concatenation"), self.one_scale(node)]
            elif node.op_type == "MaxPool":
                checks = [self.all_int8(node, "the input of a pool"), self.one_scale(node)]
            elif node.op_type in _AVERAGES:
                checks = [self.all_int8(node, "the input of a pool"), self.rounds_result(node)]
            elif node.op_type == "ReduceMean":
                checks = [iter(["is a mean that is not a pool"])]
            else:
                continue
            for check in checks:
                for problem in check:
                    yield node, problem

    # Facts

    def is_weight(self, name: str) -> bool:
        """Whether a value is a constant, dequantized or not."""
        writer = self.writers.get(name)
        return name in self.constants or (writer is not None and writer.input[:1] and writer.input[0] in self.constants)

    def is_int8(self, name: str) -> bool:
        """Whether a value is quantized and dequantized."""
        writer = self.writers.get(name)
        if writer is None or writer.op_type != "DequantizeLinear":
            return False
        source = self.writers.get(writer.input[0])
        return source is not None and source.op_type == "QuantizeLinear"

    def scale(self, name: str) -> float:
        return float(self.constants[self.writers[name].input[1]].item())

    def source(self, name: str) -> str:
        """The value before quantization."""
        return self.writers[self.writers[name].input[0]].input[0] if self.is_int8(name) else name

    def is_of_tensors(self, node: Any) -> bool:
        return all(not self.is_weight(name) for name in node.input)

    def activated(self, node: Any) -> str | None:
        """The value that a product is an activation of: ``x * sigmoid(x)``."""
        first, second = node.input
        for gate, input in ((first, second), (second, first)):
            writer = self.writers.get(gate)
            while gate != input and writer is not None and self.is_pointwise(writer):
                gate = next(name for name in writer.input if name not in self.constants)
                writer = self.writers.get(gate)
            if gate == input and first != second:
                return input
        return None

    def is_pointwise(self, node: Any) -> bool:
        is_arithmetic = node.op_type in {"Add", "Mul", "Div"} and sum(n in self.constants for n in node.input) == 1
        return node.op_type in _ACTIVATIONS or is_arithmetic

    def layer_behind(self, name: str) -> Any:
        """The layer whose kernel also computes the value, if nothing else reads its steps; else ``None``."""
        readers = 1
        while len(self.readers.get(name, [])) == readers and name not in self.outputs:
            node = self.writers.get(name)
            if node is None:
                return None
            if node.op_type in _WEIGHTED and any(self.is_weight(n) for n in list(node.input)[:2]):
                return node
            activated = self.activated(node) if node.op_type == "Mul" and self.is_of_tensors(node) else None
            if activated is not None:
                readers, name = 2, activated
            elif node.op_type in _FUSED or self.is_pointwise(node):
                readers, name = 1, next(n for n in node.input if n not in self.constants)
            else:
                return None
        return None

    # Rules

    def tensor_problems(self, node: Any) -> Iterator[str]:
        zeros = self.constants.get(node.input[2]) if len(node.input) > 2 else None
        if zeros is None or zeros.dtype != np.int8 or zeros.any():
            yield f"the zero point must be 0 in int8, it is {None if zeros is None else zeros.dtype}"
        if node.op_type == "QuantizeLinear":
            if self.constants[node.input[1]].size != 1:
                yield "an activation must have one scale"
            if any(reader.op_type != "DequantizeLinear" for reader in self.readers[node.output[0]]):
                yield "something else than a dequantization reads it"
            if self.is_int8(node.input[0]) and self.scale(node.input[0]) == float(self.constants[node.input[1]].item()):
                yield "the value was quantized with the same scale before"
            others = [n for n in self.readers[node.input[0]] if n.op_type == "QuantizeLinear" and n is not node]
            if any(self.constants[n.input[1]].item() == self.constants[node.input[1]].item() for n in others):
                yield "the same tensor is quantized twice"
        elif node.output[0] in self.outputs:
            yield "the output of the model must be in float"

    def layer_problems(self, node: Any) -> Iterator[str]:
        if not self.is_int8(node.input[0]):
            yield "the input must be in int8"
        writer = self.writers.get(node.input[1])
        if writer is None or writer.op_type != "DequantizeLinear":
            yield "the weight must be in int8"
            return
        weight, scales = self.constants[writer.input[0]], self.constants[writer.input[1]]
        axis = next((attribute.i for attribute in writer.attribute if attribute.name == "axis"), 1)
        outputs, is_per_channel = weight.shape[0], axis == 0 and scales.ndim == 1
        if weight.dtype != np.int8 or scales.size != outputs or not (is_per_channel or outputs == 1):
            yield f"the weight must have a scale for each output, it has {scales.size} on axis {axis}"
        if len(node.input) > 2 and node.input[2]:
            bias = self.constants.get(node.input[2])
            if bias is None or bias.dtype != np.float32:
                yield "the bias must be in float"

    def output_problems(self, node: Any) -> Iterator[str]:
        name = node.output[0]
        readers = self.readers.get(name, [])
        quantized = [reader for reader in readers if reader.op_type == "QuantizeLinear"]
        if quantized and any(reader.op_type in _FUSED for reader in readers):
            yield "it is quantized before its norm or activation"
        if len(quantized) == len(readers) == 1:
            for dequantize in self.readers[quantized[0].output[0]]:
                for reader in self.readers[dequantize.output[0]]:
                    if reader.op_type in _FUSED:
                        yield f"there is a pair between it and {reader.op_type}"

    def sum_problems(self, node: Any) -> Iterator[str]:
        sources = [self.source(name) for name in node.input]
        # A layer in float adds nothing to its result, nor does one whose result something else reads.
        behind = {self.source(n): self.layer_behind(self.source(n)) for n in node.input if len(self.readers[n]) == 1}
        layers = [name for name, layer in behind.items() if layer is not None and self.is_int8(layer.input[0])]
        is_int8 = {self.source(name): self.is_int8(name) for name in node.input}
        if not layers:
            yield from self.all_int8(node, "a term of a sum without a layer")
            return
        fused = max(layers, key=lambda name: self.depths[name])
        if is_int8[fused]:
            yield "the term from the layer that runs last must not be quantized"
        if not all(is_int8[name] for name in sources if name != fused):
            yield "the identity branch must be quantized"

    def all_int8(self, node: Any, what: str) -> Iterator[str]:
        if not all(self.is_int8(name) for name in node.input):
            yield f"{what} must be quantized"

    def one_scale(self, node: Any) -> Iterator[str]:
        results = [self.scale_after(name) for name in node.output[:1]]
        scales = {self.scale(name) for name in node.input if self.is_int8(name)} | {s for r in results for s in r}
        if len(scales) != 1:
            yield f"inputs and output must have one scale, they have {sorted(scales)}"

    def rounds_result(self, node: Any) -> Iterator[str]:
        if not self.scale_after(node.output[0]):
            yield "the result must be quantized"

    def scale_after(self, name: str) -> set[float]:
        """The scales that a value is quantized to, directly or after it was moved."""
        scales = set()
        for reader in self.readers.get(name, []):
            if reader.op_type == "QuantizeLinear":
                scales.add(float(self.constants[reader.input[1]].item()))
            elif reader.op_type in _MOVES:
                scales |= self.scale_after(reader.output[0])
        return scales
