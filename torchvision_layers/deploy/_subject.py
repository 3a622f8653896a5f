"""The model of one export, and the facts about it that formats, metadata and comparison need."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from typing_extensions import Self

from .._utils.checks import check_not_lazy
from ..quantized import QuantizableGraph, QuantizableModel
from ..quantized.eager.support import is_int8
from ..quantized.pt2e.nodes import qparams
from ..quantized.wrapper import Stage
from ._inputs import find_input_shape, run_model

__all__ = ["Subject"]


@dataclass(frozen=True)
class Subject:
    """A model to export, with all facts that are derived from it; made by :meth:`of`."""

    model: nn.Module
    #: Contiguous inputs of the model.
    example: Tensor
    #: The part that runs in int8, which :func:`torchvision_layers.quantized.report` accepts; ``None`` for float.
    int8_part: nn.Module | None
    #: The engine of the int8 part; ``None`` for float.
    engine: str | None
    #: The backend that the int8 part was made for; ``None`` for float.
    backend: str | None
    #: The quantization step of the input with ``engine="pt2e"``; otherwise 0.
    input_scale: float
    output_shape: tuple[int, ...]
    #: The shape of inputs, ``None`` for each variable size.
    input_shape: tuple[int | None, ...]
    #: An input with other variable image sizes; ``None`` if the image size is fixed.
    resized_example: Tensor | None

    @classmethod
    def of(cls, model: nn.Module, example: Tensor) -> Self:
        """Checks a model and runs it on ``example`` and on inputs of other sizes.

        Errors: ``TypeError`` for a model that is not converted yet, is lazy, contains several int8 models, or does not
        return one tensor; ``ValueError`` for a model that is not in eval mode on the CPU, or gives NaN or infinity;
        ``RuntimeError`` for a model that cannot run.
        """
        part = _converted_part(model)
        _check_state(model, part)
        engine = backend = None
        if part is not None:
            engine, backend = part.engine, part.backend
        elif any(is_int8(module) for module in model.modules()):
            engine, backend = "eager", torch.backends.quantized.engine  # of torch.ao alone, no module knows its backend
        input_scale = 0.0
        if isinstance(part, QuantizableGraph):
            input_scale = float(qparams(part.body.graph)["activation_scales"][0])
        example = example.detach().contiguous()
        output = run_model(model, example)
        input_shape, resized_example = find_input_shape(model, example)
        return cls(
            model,
            example,
            int8_part=None if engine is None else model if part is None else part,
            engine=engine,
            backend=backend,
            input_scale=input_scale,
            output_shape=tuple(output.shape),
            input_shape=input_shape,
            resized_example=resized_example,
        )


def _converted_part(model: nn.Module) -> QuantizableModel | QuantizableGraph | None:
    """The model, or the module in it, that :mod:`torchvision_layers.quantized` converted to int8."""
    parts = [module for module in model.modules() if isinstance(module, QuantizableModel | QuantizableGraph)]
    for part in parts:
        if part.stage is Stage.PREPARED:
            raise TypeError("model is prepared but not int8 yet: call quantized.convert(model) first")
    converted = [part for part in parts if part.stage is Stage.INT8]
    if len(converted) > 1:
        raise TypeError(f"model must contain at most one int8 model, got {len(converted)}: quantize it as a whole")
    return converted[0] if converted else None


def _check_state(model: nn.Module, part: nn.Module | None) -> None:
    # torch creates int8 modules in training mode, which makes no difference to them.
    exempt = set() if part is None else {*part.modules()} - {part}
    training = [path for path, module in model.named_modules() if module.training and module not in exempt]
    if training:
        raise ValueError(
            f"model must be in eval mode, but {training[0] or 'it'} is in training mode: call model.eval()"
        )
    check_not_lazy("model", model)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type != "cpu":
            raise ValueError(f"model must be on the CPU, but {name} is on {tensor.device}")
