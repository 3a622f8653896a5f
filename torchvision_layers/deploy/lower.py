"""Lowers a model for inference in plain torch at the speed of a runtime."""

import copy
import inspect
import warnings
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn

from .._utils.checks import check_threads
from .._utils.inputs import Inputs, accepts
from .._utils.model_checks import check_cpu, check_forward, check_module, check_not_lazy, check_unwrapped
from ..quantized import QuantizableGraph, QuantizableModel
from ..quantized.precision import in_float32
from ..quantized.pt2e.constants import fold_constants
from ..quantized.pt2e.export import ExportedModel, export
from ..quantized.pt2e.signature import Signature
from ..quantized.pt2e.writes import reread_after_writes
from ..quantized.wrapper import Stage
from ._example import check_example
from ._inputs import batch_size, other_batch, resize
from ._subject import input_scales
from .fold import fold_call
from .folding.comparison import check_same, check_same_bfloat16, check_same_int8
from .lowering.bfloat16 import check_bfloat16, use_bfloat16
from .lowering.cleaning import check_operators, clean
from .lowering.fusion import fuse
from .lowering.in_place import write_in_place
from .lowering.int8 import quantize_layers
from .lowering.int8_kernels import check_exact_products
from .lowering.kernels import check_onednn
from .lowering.layout import assign_layouts, record_shapes
from .lowering.model import LoweredModel, accepts_sizes
from .lowering.program import Program
from .lowering.scaling import fold_scales

__all__ = ["LoweredModel", "lower"]

_CAUSES = "please report the model"


def lower(
    model: nn.Module,
    example: Tensor | tuple[Any, ...] | Mapping[str, Any],
    *,
    dtype: torch.dtype = torch.float32,
    threads: int | None = None,
) -> LoweredModel:
    """A copy of ``model`` for inference on the CPU, as a program of oneDNN's operators.

    The model is folded and exported. Convolutions and linear layers then run with packed weights and in channels_last,
    and compute the activations and residual sums that follow them. All other operators of the model are called as they
    are. No compiler is needed. The result agrees with the model to 1e-5 of the largest output, which is verified on the
    example, on other batch sizes and, if the model takes them, on other image sizes.

    An int8 graph keeps its scales. Its convolutions and linear layers run on integers of 8 bits, and round the result
    once, after the activation or the sum. Operators without an int8 kernel run in float, as in the graph.

    Args:
        model: any float32 model on the CPU, in any mode, or an int8 graph of :func:`quantize
            <torchvision_layers.quantized.quantize>` with ``engine="pt2e"``; it stays unchanged.
        example: an input of the model, a tuple of positional inputs, or a mapping of keyword inputs. The program is
            optimized for these sizes, and takes every batch and image size that the model takes.
        dtype: ``torch.bfloat16`` keeps weights of layers, and activations between them, in 16 bits, which is faster on
            CPUs with instructions for it. Norms, softmax and unknown operators compute in float32. Inputs and outputs
            remain in float32. The result agrees with the model as far as rounding allows, mostly to 1 to 3 % of the
            largest output. Not for int8 graphs. Default: ``torch.float32``.
        threads: number of threads of torch while the program runs. Default: ``None``, as torch is set.

    Errors: ``TypeError`` for any other quantized model, for a model that is not in float32 or lazy, and for inputs that
    ``forward`` does not take; ``ValueError`` for a model with hooks, in a wrapper, on another device, or that writes to
    its own parameters or buffers, and for another ``dtype``; ``RuntimeError`` if torch has no operators of oneDNN, if
    the CPU has no instructions for bfloat16 or integers that it needs, if the model cannot be exported, or if the
    program computes something else.

    Examples::

        >>> deploy.lower(tnn.ConvNormAct(3, 8), torch.randn(1, 3, 8, 8))
        LoweredModel(
          input = input  [1, 3, 8, 8]
          to_channels_last = to_channels_last(input)  [1, 3, 8, 8]
          conv2d = mkldnn._convolution_pointwise(to_channels_last, 0.weight, 0.bias) + relu  [1, 8, 8, 8]
          contiguous_default = contiguous(conv2d)  [1, 8, 8, 8]
          return contiguous_default
        )
    """
    with torch.inference_mode(False), torch.no_grad(), in_float32():
        return _lower(model, example, dtype, threads)


def _lower(
    model: nn.Module, example: Tensor | tuple[Any, ...] | Mapping[str, Any], dtype: torch.dtype, threads: int | None
) -> LoweredModel:
    check_onednn()
    if isinstance(check_module("model", model), LoweredModel):
        check_unwrapped("model", model)  # before its scales, which are in float64, are found
    _check_dtype(dtype, model)
    if threads is not None:
        check_threads(threads)
    if isinstance(model, QuantizableGraph):
        return _lower_int8(model, example, threads)
    _check_float32(model)
    check_unwrapped("model", model)
    check_forward(model)
    check_not_lazy("model", model)
    inputs = check_example(example, model)
    folded = fold_call(model, inputs, "example")
    exported = _export(folded, inputs)
    module, signature = exported.graph_module, exported.signature
    tensors = signature.flatten(inputs)
    check_operators(module)
    reread_after_writes(module)
    fold_constants(module)
    clean(module)
    fold_scales(module)
    record_shapes(module, tensors)
    fuse(module)
    check = check_same
    if dtype == torch.bfloat16:
        use_bfloat16(module)
        check = check_same_bfloat16
    _finish(module, tensors)
    lowered = _as_model(module, signature, exported.output_template, threads)
    for call in _calls(folded, lowered, inputs):
        check(lowered, folded, call, "lowering", _CAUSES)
    return lowered


def _lower_int8(
    graph: QuantizableGraph, example: Tensor | tuple[Any, ...] | Mapping[str, Any], threads: int | None
) -> LoweredModel:
    if graph.stage is not Stage.INT8:
        raise TypeError("model must be float or int8, it is prepared: call quantized.convert(model) first")
    if graph.backend not in ("x86", "onnxruntime"):
        raise TypeError(
            f"model must be made for oneDNN's integers of 8 bits without sign, it is made for {graph.backend!r}: call "
            "quantized.quantize(model, batches, engine='pt2e', backend='x86')"
        )
    check_exact_products()
    inputs = check_example(example, graph)
    graph = copy.deepcopy(graph)
    module, signature = copy.deepcopy(graph.body), copy.deepcopy(graph.signature)
    tensors = signature.flatten(inputs)
    check_operators(module)
    record_shapes(module, tensors)
    clean(module)
    fold_scales(module)
    quantize_layers(module)
    fuse(module)
    _finish(module, tensors)
    lowered = _as_model(module, signature, graph.output_template, threads)
    for call in _calls(graph, lowered, inputs):
        check_same_int8(lowered, graph, call, input_scales(graph.body.graph))
    return lowered


def _finish(module: fx.GraphModule, tensors: list[Tensor]) -> None:
    assign_layouts(module, tensors)
    write_in_place(module.graph)


def _as_model(module: fx.GraphModule, signature: Signature, template: Any, threads: int | None) -> LoweredModel:
    program = Program.of(module, signature.names())
    state = {path: attrgetter(path)(module) for path in program.state.values()}
    return LoweredModel(program, state, _without_annotations(signature), template, threads)


def _check_dtype(dtype: torch.dtype, model: nn.Module) -> None:
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be torch.float32 or torch.bfloat16, got {dtype!r}")
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"dtype must be torch.float32 or torch.bfloat16, got {dtype}")
    if dtype == torch.bfloat16:
        if isinstance(model, QuantizableGraph):
            raise ValueError("dtype must be torch.float32 for an int8 graph, got torch.bfloat16: lower the float model")
        check_bfloat16()


def _check_float32(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if isinstance(module, (QuantizableGraph, QuantizableModel)):
            name = path or "model"
            raise TypeError(
                f"model must be float or an int8 graph, {name} is a {type(module).__name__}: lower the float model, or "
                "quantize it with engine='pt2e'"
            )
    for path, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise TypeError(
                f"model must be in float32, {path} is in {str(tensor.dtype).removeprefix('torch.')}: call model.float()"
            )
    check_cpu(model)


def _export(model: nn.Module, inputs: Inputs) -> ExportedModel:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exported = export(model, inputs)
    for warning in caught:
        text = str(warning.message)
        if text.startswith("the int8 graph takes images of"):
            text = text.partition(";")[0].replace("the int8 graph", "the lowered model")
        warnings.warn(text, warning.category, stacklevel=4)
    return exported


def _without_annotations(signature: Signature) -> Signature:
    """``signature`` without types, which may be classes that cannot be pickled."""
    signature.parameters = inspect.Signature(
        [p.replace(annotation=p.empty) for p in signature.parameters.parameters.values()]
    )
    return signature


def _calls(model: nn.Module, lowered: LoweredModel, example: Inputs) -> list[Inputs]:
    """The example, other batches and larger images, as far as model and program take them."""
    size = batch_size(example)
    larger = resize(
        example, lambda i, shape: [n + 32 if dim >= 2 and len(shape) == 4 else n for dim, n in enumerate(shape)]
    )
    others = [other_batch(example, 1), other_batch(example, size + 1), larger]
    return [example, *(call for call in others if accepts(model, call) and accepts_sizes(lowered, call))]
