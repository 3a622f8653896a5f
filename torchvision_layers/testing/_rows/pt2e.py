"""Rows on int8 graphs (the engine on exported graphs, by torchao): what needs neither twin nor fusing."""

import io
import re
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .._cell import Cell
from .._row import NA, Tier, row
from ._applies import lacks
from ._quantizing import (
    WEIGHTED,
    Kept,
    assert_close,
    assert_copies_are_equal,
    assert_weighted_is_int8,
    calibration,
    trained_to_int8,
)
from .graphs import NO_ONNX, in_onnx

if TYPE_CHECKING:
    from ...quantized import Report

__all__ = ["onnx_qdq", "pt2e_io", "pt2e_ptq", "pt2e_qat"]

NO_TORCHAO = lacks("torchao")

# As torch calls them in graphs and where it computes: with a weight, and of tensors with one another.
_WITH_WEIGHT = re.compile(r"aten\.(conv\w*|linear)\.")
_PRODUCT = re.compile(r"aten\.(matmul|mm|bmm|addmm|baddbmm|einsum|\w*scaled_dot_product\w*)\.")


class _Multiplies(TorchDispatchMode):
    """Sees whether something is computed that int8 is for."""

    found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found |= bool(_WITH_WEIGHT.match(str(func)) or _PRODUCT.match(str(func)))
        return func(*args, **(kwargs or {}))


def _has_nothing(cell: Cell) -> bool:
    layer = cell.fresh()
    if any(isinstance(module, WEIGHTED) for module in layer.modules()):
        return False
    with torch.no_grad(), _Multiplies() as seen:
        layer(cell.input())
    return not seen.found


def _computes_weights(cell: Cell) -> bool:
    layer = cell.fresh()
    weighted = [module for module in layer.modules() if isinstance(module, WEIGHTED)]
    if weighted and all(type(module).__module__.startswith("torch.nn.modules.") for module in weighted):
        return False  # known without an export: torch's own take their parameter as it is
    exported = torch.export.export(layer, (cell.input(),), dynamic_shapes=cell.dynamic_shapes)
    return any(
        node.args[1].op != "placeholder" for node in exported.graph.nodes if _WITH_WEIGHT.match(str(node.target))
    )


NOTHING_TO_QUANTIZE = NA("has no convolution, no projection and no product of tensors", _has_nothing)
COMPUTED_WEIGHT = NA(
    "computes the weight of a convolution, which must be folded before it can be quantized", _computes_weights
)
_NOT_APPLICABLE = (NO_TORCHAO, NOTHING_TO_QUANTIZE, COMPUTED_WEIGHT)


@Kept
def _int8(cell: Cell) -> tuple[nn.Module, Any, list[Tensor]]:
    """A layer, its int8 graph and the batches that calibrated it."""
    from ... import quantized

    layer, batches = cell.layer(), calibration(cell.sample)
    return layer, quantized.quantize(layer, batches, engine="pt2e"), batches


def _assert_is_int8(layer: nn.Module, model: Any, report: "Report") -> None:
    """What convolutions, projections and products take comes out of int8, weights out of int8 that is stored."""
    assert_weighted_is_int8(layer, report)
    heavy = 0
    for node in model.body.graph.nodes:
        if _WITH_WEIGHT.match(str(node.target)):
            stored = node.args[1].all_input_nodes[:1]
            is_int8 = bool(stored) and attrgetter(str(stored[0].target))(model.body).dtype is torch.int8
            assert is_int8, f"the weight of {node.name} is not stored in int8"
            operands = node.args[:2]
        elif _PRODUCT.match(str(node.target)):
            operands = node.args[-2:] if "add" in str(node.target) else node.args[:2]
        else:
            continue
        heavy += 1
        for operand in operands:
            assert "dequantize" in str(operand.target), f"{node.name} takes {operand.name}, which is float"
    assert heavy, "the graph has no convolution and no projection"


def _bound(report: "Report", graph: fx.Graph) -> float:
    """What rounding to eight bits leaves of the signal, in decibels.

    35 where values are rounded on their way into convolutions and projections, and nowhere else. One less for each
    stretch of float between int8, which rounds once more. Two less for each product of tensors: it rounds both, and the
    second with one scale where a weight has one for each of its channels.
    """
    stretches = [runs_in for runs_in, _ in groupby(row.runs_in for row in report.rows)]
    products = sum(bool(_PRODUCT.match(str(node.target))) for node in graph.nodes)
    return 35 - stretches[1:-1].count("float") - 2 * products


@row("pt2e_ptq", not_applicable=_NOT_APPLICABLE)
def pt2e_ptq(cell: Cell) -> None:
    """Calibrated as a graph, all that multiplies is int8 within 35 dB (less for float between), 30 at other sizes."""
    from ... import quantized

    layer, model, batches = _int8(cell)
    report = quantized.report(model)
    _assert_is_int8(layer, model, report)
    bound = _bound(report, model.body.graph)
    x = torch.cat(batches)
    assert_close(model(x), layer(x), bound, "to float")
    other = cell.other_input(9)
    assert_close(model(other), layer(other), bound - 5, "to float at another size")
    alone = torch.cat([model(one) for one in x[:8].split(1)])
    assert_close(alone, layer(x[:8]), bound - 10, "to float in batches of one")  # of a few values
    assert model(x[:0]).shape == (0, *layer(x).shape[1:])


@row("pt2e_io", per_layer=True, not_applicable=_NOT_APPLICABLE)
def pt2e_io(cell: Cell) -> None:
    """A state dict, a deep copy and another export of the int8 graph, each saved and loaded, give its bits."""
    from ... import quantized

    _, model, (x, _) = _int8(cell)
    assert_copies_are_equal(model, quantized.quantize(cell.layer(), [3 * x[:4]], engine="pt2e"), x)

    program = io.BytesIO()
    torch.export.save(torch.export.export(model, (x,), dynamic_shapes=cell.dynamic_shapes), program)
    program.seek(0)
    loaded = torch.export.load(program).module()
    for input in (x, cell.other_input(7)):
        assert torch.equal(loaded(input), model(input)), "exported again it gives other values"


@row("pt2e_qat", not_applicable=_NOT_APPLICABLE)
def pt2e_qat(cell: Cell) -> None:
    """Trained with fake quantization, saved in the middle and resumed, then int8: it computes what the training saw."""
    from ... import quantized

    layer, batches = cell.layer(), calibration(cell.sample)
    model, anew = (quantized.prepare_qat(start, batches[0], engine="pt2e") for start in (layer, cell.layer()))
    converted = trained_to_int8(model, anew, batches)
    _assert_is_int8(layer, converted, quantized.report(converted))
    x = torch.cat(batches)
    # Both round in the same steps: only a value between two of them may go to the other.
    assert_close(converted(x), model.eval()(x), 50, "between what was trained and int8")


def _steps(graph: fx.Graph) -> list[float]:
    """The steps in which activations are quantized."""
    return [float(node.args[1]) for node in graph.nodes if ".quantize_per_tensor" in str(node.target)]


@row("onnx_qdq", tier=Tier.NIGHTLY, not_applicable=(NO_ONNX, *_NOT_APPLICABLE))
def onnx_qdq(cell: Cell) -> None:
    """In int8 as a graph and then in ONNX, onnxruntime gives the same values to two of the steps that values go in."""
    _, model, batches = _int8(cell)
    call, kinds = in_onnx(cell, model, batches[0])
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds, f"not quantized in ONNX: {sorted(kinds)}"
    for x in (batches[0], cell.other_input(5)):
        expected = model(x).detach()
        step = max(*_steps(model.body.graph), float(expected.max() - expected.min()) / 255)
        distance = float((call(x) - expected).abs().max())
        assert distance <= 2 * step, f"{distance / step:.1f} steps apart"
