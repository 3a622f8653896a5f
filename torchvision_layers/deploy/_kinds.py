"""Whether a model is float or int8, and of which engine."""

from enum import Enum

from torch import nn

from ..quantized import QuantizableGraph, QuantizableModel
from ..quantized.eager.support import is_int8
from ..quantized.pt2e.nodes import qparams
from ..quantized.wrapper import Stage

__all__ = ["Kind", "check_exportable_graph", "first_step", "kind_of", "quantized_part"]


class Kind(Enum):
    FLOAT = "float"
    EAGER = "int8 of engine='eager'"
    PT2E = "int8 of engine='pt2e'"


def quantized_part(model: nn.Module) -> QuantizableModel | QuantizableGraph | None:
    """The model, or the one within it, that :mod:`torchvision_layers.quantized` made int8; ``None`` for none.

    Errors: ``TypeError`` for one that is not converted yet, and for several.
    """
    parts = [module for module in model.modules() if isinstance(module, QuantizableModel | QuantizableGraph)]
    for part in parts:
        if part.stage is Stage.PREPARED:
            raise TypeError("model is prepared but not int8 yet: call quantized.convert(model) first")
    converted = [part for part in parts if part.stage is Stage.INT8]
    if len(converted) > 1:
        raise TypeError(f"model must hold one int8 model, it holds {len(converted)}: quantize it as a whole")
    return converted[0] if converted else None


def kind_of(model: nn.Module) -> Kind:
    part = quantized_part(model)
    if isinstance(part, QuantizableGraph):
        return Kind.PT2E
    if part is not None or any(is_int8(module) for module in model.modules()):
        return Kind.EAGER
    return Kind.FLOAT


def first_step(model: nn.Module) -> float:
    """The step in which a model of ``engine="pt2e"`` quantizes its input; zero for other models."""
    part = quantized_part(model)
    return float(qparams(part.body.graph)["activation_scales"][0]) if isinstance(part, QuantizableGraph) else 0.0


def check_exportable_graph(model: nn.Module) -> None:
    """Raises ``TypeError`` for what torch.export cannot take."""
    if kind_of(model) is Kind.EAGER:
        raise TypeError(
            "model is eager int8, whose tensors torch.export does not know: quantize with engine='pt2e' for "
            "format='pt2', 'aoti' and 'onnx-qdq', or use format='torchscript'"
        )
