"""Quantizers of torchao that choose where the kernels of each backend round."""

import dataclasses
from typing import Any

import torch
from torch import fx
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationConfig,
    Quantizer,
    SharedQuantizationSpec,
)
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

from .nodes import (
    ADDITIONS,
    AVERAGES,
    CONVS,
    KEEP_RANGE,
    LINEAR,
    MATMULS,
    PRODUCTS,
    clamped,
    is_activation,
    is_call,
    is_fused_into,
    is_padding,
    operands,
    readers,
)
from .tensorrt import placements
from .weights import constant_products

__all__ = ["exclude", "keep_in_float", "quantizer_for"]


def quantizer_for(backend: str, config: QuantizationConfig) -> Quantizer:
    """A quantizer with the observers of ``config`` that rounds where the kernels of a backend do, to their integers."""
    activation = config.input_activation
    if backend == "litert":
        activation = dataclasses.replace(activation, dtype=torch.int8, quant_min=-128, quant_max=127)
    if backend == "tensorrt":
        activation = dataclasses.replace(
            activation, dtype=torch.int8, quant_min=-128, quant_max=127, qscheme=torch.per_tensor_symmetric
        )
    config = dataclasses.replace(config, input_activation=activation, output_activation=activation)
    if backend == "tensorrt":
        return _TensorRTQuantizer(config)
    own = {"litert": _LiteRTQuantizer, "onnxruntime": _OnnxRuntimeQuantizer, "x86": _X86Quantizer}
    return own[backend]().set_global(config)


def keep_in_float(nodes: list[fx.Node]) -> None:
    """Makes quantizers skip these nodes."""
    for node in nodes:
        node.meta[x86.QUANT_ANNOTATION_KEY] = x86._X86InductorQuantizationAnnotation(_annotated=True)


def exclude(nodes: list[fx.Node]) -> None:
    """Like :func:`keep_in_float`, with inputs and outputs in float on every backend."""
    keep_in_float(nodes)
    for node in nodes:
        node.meta["is_excluded"] = True


class _X86Quantizer(x86.X86InductorQuantizer):
    """torchao's quantizer for x86, plus products with constants and convolutions of one and three dimensions.

    Products of two activations, as in attention, stay in float. So do sums, pools and concatenations that ops in float
    read: eight bits do not hold what all blocks of a transformer have added.
    """

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        super().annotate(model)
        for node in reversed(model.graph.nodes):
            if is_call(node, ADDITIONS | KEEP_RANGE) and _reads_int8(node) and _is_read_in_float(node):
                keep_in_float([node])
        products = set(constant_products(model.graph))
        for node in model.graph.nodes:
            if node.meta.get(x86.QUANT_ANNOTATION_KEY) is not None or node.op != "call_function":
                continue
            if node.target in CONVS or node.target in LINEAR:
                self._annotate_weighted(node)
            elif node in products and node.target in MATMULS:
                specs = dict.fromkeys(operands(node), self.global_config.input_activation)
                self._annotate_inputs(node, specs, is_unit=True)
        for node in reversed(model.graph.nodes):
            if is_padding(node):
                self._annotate_padding(node)
            elif is_call(node, AVERAGES) and _reads_int8(node) and not all(u.op == "output" for u in node.users):
                # Their ranges are often far smaller than those of their inputs.
                node.meta[x86.QUANT_ANNOTATION_KEY].output_qspec = self.global_config.input_activation
        return model

    def _annotate_padding(self, node: fx.Node) -> None:
        """Makes padding before int8 ops keep the range of its input, which would otherwise be rounded once more."""
        spec = self.global_config.input_activation
        readers = [user.meta.get(x86.QUANT_ANNOTATION_KEY) for user in node.users]
        if not all(reader is not None and reader.input_qspec_map.get(node) is spec for reader in readers):
            return
        self._annotate_inputs(node, {node.args[0]: spec}, is_unit=True)
        node.meta[x86.QUANT_ANNOTATION_KEY].output_qspec = SharedQuantizationSpec((node.args[0], node))

    def _annotate_weighted(self, node: fx.Node) -> None:
        followers = [user for user in node.users if is_fused_into(user, node)]
        specs = {node.args[0]: self.global_config.input_activation, node.args[1]: self.global_config.weight}
        self._annotate_inputs(node, specs, is_unit=not followers)
        for user in followers:
            self._annotate_inputs(user, {}, is_unit=True)

    def _annotate_inputs(self, node: fx.Node, specs: dict[Any, object], is_unit: bool) -> None:
        annotation = x86._X86InductorQuantizationAnnotation(
            input_qspec_map=specs, _annotated=True, _is_output_of_quantized_pattern=is_unit
        )
        node.meta[x86.QUANT_ANNOTATION_KEY] = annotation


class _OnnxRuntimeQuantizer(_X86Quantizer):
    """Also quantizes the outputs of convolutions, and terms and results of sums and products that only int8 ops read.

    Inductor's convolutions may return float for the next kernel to add; those of onnxruntime return int8. Its linear
    layers return either.
    """

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        kept = {node for node in model.graph.nodes if x86.QUANT_ANNOTATION_KEY in node.meta}
        super().annotate(model)
        spec = self.global_config.input_activation
        for node in reversed(model.graph.nodes):
            if "is_excluded" in node.meta:
                continue
            if is_call(node, ADDITIONS | PRODUCTS) and node not in kept:
                terms = [term for term in node.args[:2] if is_activation(term)]
                if len(terms) == 2 and _is_read_in_float(node):
                    keep_in_float([node])
                elif len(terms) == 2:
                    self._annotate_inputs(node, dict.fromkeys(terms, spec), is_unit=True)
                    _annotate_output(clamped(node), spec)
            elif is_call(node, CONVS) and x86.QUANT_ANNOTATION_KEY in node.meta:
                _annotate_output(clamped(node), spec)
        return model


class _TensorRTQuantizer(Quantizer):
    """Quantizes where TensorRT fuses it with its kernels."""

    def __init__(self, config: QuantizationConfig) -> None:
        self.config = config

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        spec = self.config.input_activation
        skipped = {node for node in model.graph.nodes if x86.QUANT_ANNOTATION_KEY in node.meta}
        for node, placement in placements(model.graph, skipped).items():
            shared = SharedQuantizationSpec((placement.inputs[0], node)) if placement.has_one_scale else spec
            specs: dict[Any, Any] = {input: spec if i == 0 else shared for i, input in enumerate(placement.inputs)}
            if placement.weight is not None:
                specs[placement.weight] = self.config.weight
            output = shared if placement.rounds_output else None
            node.meta[x86.QUANT_ANNOTATION_KEY] = QuantizationAnnotation(specs, output, _annotated=True)
        return model

    def validate(self, model: fx.GraphModule) -> None: ...


class _LiteRTQuantizer(_OnnxRuntimeQuantizer):
    """Also quantizes the results of linear layers, and those of the model, because no int8 kernel returns float."""

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        super().annotate(model)
        for node in model.graph.nodes:
            if is_call(node, CONVS | LINEAR) and _reads_int8(node) and "is_written" not in clamped(node).meta:
                _annotation_of(clamped(node)).output_qspec = self.global_config.input_activation
        return model


def _reads_int8(node: fx.Node) -> bool:
    """Whether the quantizer rounds an input of the node."""
    annotation = node.meta.get(x86.QUANT_ANNOTATION_KEY)
    return annotation is not None and bool(annotation.input_qspec_map)


def _is_read_in_float(node: fx.Node) -> bool:
    """Whether an op that computes with the node reads float."""
    return not all(map(_reads_int8, readers(node)))


def _annotate_output(node: fx.Node, spec: object) -> None:
    # The output of the model stays in float. Later nodes would not see what is written into a rounded copy.
    if "is_written" not in node.meta and not all(user.op == "output" for user in node.users):
        _annotation_of(node).output_qspec = spec


def _annotation_of(node: fx.Node) -> Any:
    return node.meta.setdefault(x86.QUANT_ANNOTATION_KEY, x86._X86InductorQuantizationAnnotation(_annotated=True))
