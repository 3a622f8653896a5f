"""Rows on quantization after export (PT2E), by torchao: what needs neither twin nor fusing."""

import io
from typing import Any

import torch
from torch import Tensor, nn

from .._cell import Cell
from .._row import NA, Tier, row
from ._applies import lacks
from ._quantizing import calibration, decibels, train
from .graphs import NO_ONNX, in_onnx

__all__ = ["onnx_qdq", "pt2e_ptq", "pt2e_qat"]

NO_TORCHAO = lacks("torchao")
# What the quantizer for x86 makes int8, as graphs call it.
_HEAVY = ("aten.conv1d.default", "aten.conv2d.default", "aten.linear.default")
NOTHING_TO_QUANTIZE = NA(
    "has no convolution of one or two dimensions and no projection",
    lambda cell: not any(isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)) for module in cell.fresh().modules()),
)


def _computes_weights(cell: Cell) -> bool:
    layer = cell.fresh()
    convs = [module for module in layer.modules() if isinstance(module, nn.modules.conv._ConvNd)]
    if all(type(conv).__module__ == nn.Conv2d.__module__ for conv in convs):
        return False  # known without an export: torch's own take their parameter as it is
    exported = torch.export.export(layer, (cell.input(),), dynamic_shapes=cell.dynamic_shapes)
    return any(node.args[1].op != "placeholder" for node in exported.graph.nodes if str(node.target) in _HEAVY)


COMPUTED_WEIGHT = NA(
    "computes the weight of a convolution, which must be folded before it can be quantized", _computes_weights
)


def _prepared(cell: Cell, layer: nn.Module, batch: Tensor, is_qat: bool) -> Any:
    """The layer as a graph with observers, or fake quantization, of the quantizer for x86."""
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e, prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    graph = torch.export.export(layer, (batch,), dynamic_shapes=cell.dynamic_shapes).module()
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config(is_qat=is_qat))
    return (prepare_qat_pt2e if is_qat else prepare_pt2e)(graph, quantizer)


def _quantized(cell: Cell, layer: nn.Module, batches: list[Tensor]) -> Any:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    with torch.no_grad():
        prepared = _prepared(cell, layer, batches[0], is_qat=False)
        for batch in batches:
            prepared(batch)
        return convert_pt2e(prepared)


def _assert_is_int8(graph: torch.fx.Graph) -> None:
    """Input and weight of every convolution and projection come out of int8."""
    heavy = [node for node in graph.nodes if str(node.target) in _HEAVY]
    assert heavy, "the graph has no convolution and no projection"
    for node in heavy:
        for operand, what in zip(node.args[:2], ("input", "weight"), strict=True):
            assert "dequantize" in str(getattr(operand, "target", "")), f"the {what} of {node.name} is float"


def _steps(graph: torch.fx.Graph) -> list[float]:
    """The steps in which activations are quantized."""
    return [float(node.args[1]) for node in graph.nodes if ".quantize_per_tensor" in str(node.target)]


def _assert_close(got: Tensor, expected: Tensor, bound: float, where: str) -> None:
    noise = decibels(expected, got)
    assert noise >= bound, f"{noise:.1f} dB {where}, at least {bound} are asked for"


@row("pt2e_ptq", not_applicable=(NO_TORCHAO, NOTHING_TO_QUANTIZE, COMPUTED_WEIGHT))
def pt2e_ptq(cell: Cell) -> None:
    """Exported, calibrated and converted for x86, it is int8 within 35 dB, 30 at another size, and exports again."""
    layer, batches = cell.layer(), calibration(cell.sample)
    model = _quantized(cell, layer, batches)
    _assert_is_int8(model.graph)
    x, other = torch.cat(batches), cell.other_input(9)
    _assert_close(model(x), layer(x), 35, "to float")
    _assert_close(model(other), layer(other), 30, "to float at another size")
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, (batches[0],), dynamic_shapes=cell.dynamic_shapes), file)
    file.seek(0)
    assert torch.equal(torch.export.load(file).module()(x), model(x)), "exported again it gives other values"


# Preparing fuses convolutions with batch norms by matching patterns, which takes half a minute: once a layer.
@row("pt2e_qat", tier=Tier.NIGHTLY, per_layer=True, not_applicable=(NO_TORCHAO, NOTHING_TO_QUANTIZE, COMPUTED_WEIGHT))
def pt2e_qat(cell: Cell) -> None:
    """Trained for some steps with fake quantization after export, int8 computes what the training saw, to 35 dB."""
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    batches = calibration(cell.sample)
    model = _prepared(cell, cell.layer().train(), batches[0], is_qat=True)
    train(model, batches)
    move_exported_model_to_eval(model)
    x = torch.cat(batches)
    with torch.no_grad():
        expected = model(x)
        converted = convert_pt2e(model)
    _assert_is_int8(converted.graph)
    _assert_close(converted(x), expected, 35, "to what was trained")


@row(
    "onnx_qdq",
    tier=Tier.NIGHTLY,
    not_applicable=(NO_TORCHAO, NO_ONNX, NOTHING_TO_QUANTIZE, COMPUTED_WEIGHT),
    # A converted graph was exported in eval; its flag says nothing, and cannot be set.
    ignored_warnings=(("Exporting a model while it is in training mode", UserWarning),),
)
def onnx_qdq(cell: Cell) -> None:
    """In int8 by PT2E and then in ONNX, onnxruntime gives the same values to two of the steps that values go in."""
    batches = calibration(cell.sample)
    model = _quantized(cell, cell.layer(), batches)
    call, kinds = in_onnx(cell, model, batches[0])
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds, f"not quantized in ONNX: {sorted(kinds)}"
    for x in (batches[0], cell.other_input(5)):
        expected = model(x).detach()
        step = max(*_steps(model.graph), float(expected.max() - expected.min()) / 255)
        distance = float((call(x) - expected).abs().max())
        assert distance <= 2 * step, f"{distance / step:.1f} steps apart"
