"""Checks of int8 graphs (the pt2e engine), which need neither a twin nor fusing."""

import io
import re
from collections.abc import Container
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..._utils.folded_forms import join_branches
from ..._utils.inputs import takes_one_input
from .._case import Case, PerLayerCache
from .._check import NotApplicable, Tier, check
from ._not_applicable import CPU_ONLY, lacks
from ._quantization import (
    WEIGHTED,
    assert_close,
    assert_copies_are_equal,
    assert_weighted_is_int8,
    calibration,
    constant_layers,
    trained_to_int8,
)
from .programs import NO_ONNX, export_program, in_onnx

if TYPE_CHECKING:
    from ...quantized import Report

__all__ = ["onnx_qdq", "pt2e_io", "pt2e_ptq", "pt2e_qat"]

NO_TORCHAO = lacks("torchao")

# Operator names in graphs and at run time: layers with a weight, and products that may be with one.
_WITH_WEIGHT = re.compile(r"aten\.(conv\w*|linear)\.")
_PRODUCT = re.compile(r"aten\.(matmul|mm|bmm|addmm|baddbmm)\.")


class _UsesWeights(TorchDispatchMode):
    """Records whether a convolution, or a product with a parameter, runs."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.is_found = False
        self._parameters = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [argument for argument in args if isinstance(argument, Tensor)]
        has_parameter = any(tensor.untyped_storage().data_ptr() in self._parameters for tensor in tensors)
        self.is_found |= bool(_WITH_WEIGHT.match(str(func)) or (_PRODUCT.match(str(func)) and has_parameter))
        return func(*args, **(kwargs or {}))


def _has_no_weights(case: Case) -> bool:
    layer = case.fresh()
    if any(isinstance(module, WEIGHTED) for module in layer.modules()):
        return False
    with torch.no_grad(), _UsesWeights(layer) as mode:
        layer(case.input())
    return not mode.is_found


def _computes_weights(case: Case) -> bool:
    layer = case.fresh()
    weighted = [module for module in layer.modules() if isinstance(module, WEIGHTED)]
    if weighted and all(type(module).__module__.startswith("torch.nn.modules.") for module in weighted):
        return False  # torch's own modules use their parameter directly: no export needed
    _, program = export_program(case)
    return any(node.args[1].op != "placeholder" for node in program.graph.nodes if _WITH_WEIGHT.match(str(node.target)))


NOTHING_TO_QUANTIZE = NotApplicable("has no convolution and no linear layer", _has_no_weights)
COMPUTED_WEIGHT = NotApplicable(
    "computes the weight of a convolution, which must be folded before quantization", _computes_weights
)
TRANSPOSED = NotApplicable(
    "has a transposed convolution, which torchao does not quantize",
    lambda case: any(isinstance(module, nn.modules.conv._ConvTransposeNd) for module in case.fresh().modules()),
)
_NOT_APPLICABLE = (CPU_ONLY, NO_TORCHAO, NOTHING_TO_QUANTIZE, COMPUTED_WEIGHT, TRANSPOSED)


@PerLayerCache
def _int8(case: Case) -> tuple[nn.Module, Any, list[Tensor]]:
    """A layer, its int8 graph and the calibration batches."""
    from ... import quantized

    layer, batches = case.layer(), calibration(case.sample)
    return layer, quantized.quantize(layer, batches, engine="pt2e"), batches


def _assert_is_int8(layer: nn.Module, model: Any, report: "Report", stored: Container[str] = ()) -> None:
    """Assert that operands of convolutions and linear layers are dequantized, and weights stored as int8.

    Instead of a layer in ``stored``, the graph may have its result.
    A product may have two operands in float: that of two activations, as in attention.
    """
    assert_weighted_is_int8(layer, report, stored)
    compute_ops = 0
    for node in model.body.graph.nodes:
        if _WITH_WEIGHT.match(str(node.target)):
            weights = node.args[1].all_input_nodes[:1]
            is_int8 = bool(weights) and attrgetter(str(weights[0].target))(model.body).dtype is torch.int8
            assert is_int8, f"the weight of {node.name} is not stored in int8"
            operands = node.args[:2]
        elif _PRODUCT.match(str(node.target)):
            operands = node.args[-2:] if "add" in str(node.target) else node.args[:2]
            if not any(map(_is_dequantize, operands)):
                continue
        else:
            continue
        compute_ops += 1
        for operand in operands:
            assert _is_dequantize(operand), f"operand {operand.name} of {node.name} is float"
    assert compute_ops, "the graph has no convolution and no linear layer"


def _dynamic_shapes(case: Case) -> tuple[Any, ...]:
    """The free dimensions of the input of the int8 graph of a layer."""
    # The graph of a forward with several arguments takes any number of them.
    return case.dynamic_shapes if takes_one_input(case.layer()) else (case.dynamic_shapes,)


def _is_dequantize(node: fx.Node) -> bool:
    return "dequantize" in str(node.target)


def _bound(report: "Report", graph: fx.Graph) -> float:
    """The lowest accepted signal-to-quantization-noise ratio, in decibels.

    35 if only the inputs of convolutions and linear layers are rounded. One less for each float part between int8
    parts, which rounds once more. Two less for each product with a parameter, which has one scale instead of one per
    channel.
    """
    parts = [runs_in for runs_in, _ in groupby(row.runs_in for row in report.rows)]
    products = sum(bool(_PRODUCT.match(str(node.target))) and _is_dequantize(node.args[-1]) for node in graph.nodes)
    return 35 - parts[1:-1].count("float") - 2 * products


@check("pt2e_ptq", not_applicable=_NOT_APPLICABLE)
def pt2e_ptq(case: Case) -> None:
    """Calibrated as a graph, all compute ops are int8 within 35 dB (less for float parts), 30 dB at other sizes."""
    from ... import quantized

    layer, model, batches = _int8(case)
    report = quantized.report(model)
    joined = join_branches(layer, ())
    _assert_is_int8(joined, model, report, constant_layers(joined, batches))
    bound = _bound(report, model.body.graph)
    x = torch.cat(batches)
    assert_close(model(x), layer(x), bound, "to float")
    other = case.other_input(33)  # in fewer images, a single value out of range weighs more than all rounding
    assert_close(model(other), layer(other), bound - 5, "to float at another size")
    singles = torch.cat([model(one) for one in x[:8].split(1)])
    assert_close(singles, layer(x[:8]), bound - 10, "to float in batches of one")  # few values
    assert model(x[:0]).shape == (0, *layer(x).shape[1:])


@check("pt2e_io", per_layer=True, not_applicable=_NOT_APPLICABLE)
def pt2e_io(case: Case) -> None:
    """A state dict, a deep copy and another export of the int8 graph are bit-equal to it."""
    from ... import quantized

    _, model, (x, _) = _int8(case)
    assert_copies_are_equal(model, quantized.quantize(case.layer(), [3 * x[:4]], engine="pt2e"), x)

    program = io.BytesIO()
    torch.export.save(torch.export.export(model, (x,), dynamic_shapes=_dynamic_shapes(case)), program)
    program.seek(0)
    loaded = torch.export.load(program).module()
    for input in (x, case.other_input(7)):
        assert torch.equal(loaded(input), model(input)), "exported again, outputs differ"


@check("pt2e_qat", not_applicable=_NOT_APPLICABLE)
def pt2e_qat(case: Case) -> None:
    """After training with fake quantization, with a save and resume, int8 outputs equal those of training."""
    from ... import quantized

    layer, batches = case.layer(), calibration(case.sample)
    model, other = (quantized.prepare_qat(start, batches[0], engine="pt2e") for start in (layer, case.layer()))
    converted = trained_to_int8(model, other, batches)
    _assert_is_int8(layer, converted, quantized.report(converted))
    x = torch.cat(batches)
    # Both round with the same scales: only values halfway between two levels may differ.
    assert_close(converted(x), model.eval()(x), 50, "between training and int8")


def _scales(graph: fx.Graph) -> list[float]:
    """The scales of activations."""
    return [float(node.args[1]) for node in graph.nodes if ".quantize_per_tensor" in str(node.target)]


@check("onnx_qdq", tier=Tier.NIGHTLY, not_applicable=(NO_ONNX, *_NOT_APPLICABLE))
def onnx_qdq(case: Case) -> None:
    """The int8 graph in ONNX differs by at most two quantization steps in onnxruntime."""
    _, model, batches = _int8(case)
    call, kinds = in_onnx(case, model, batches[0], _dynamic_shapes(case))
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds, f"not quantized in ONNX: {sorted(kinds)}"
    for x in (batches[0], case.other_input(5)):
        expected = model(x).detach()
        scale = max(*_scales(model.body.graph), float(expected.max() - expected.min()) / 255)
        distance = float((call(x) - expected).abs().max())
        assert distance <= 2 * scale, f"differs by {distance / scale:.1f} quantization steps"
