"""The model of one export, and the facts about it that formats, metadata and comparison need."""

import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from typing_extensions import Self

from .._utils.inputs import Inputs, accepts
from .._utils.model_checks import check_cpu, check_module, check_not_lazy, check_unwrapped
from .._utils.structure import flatten
from ..quantized import QuantizableGraph, QuantizableModel
from ..quantized.eager.support import is_int8
from ..quantized.pt2e.nodes import is_quantize, qparams
from ..quantized.wrapper import Stage
from ._inputs import Sizes, batch_size, other_batch
from ._running import run_model
from ._signature import Signature
from .lowering.model import LoweredModel

__all__ = ["Subject", "check_model", "input_scales", "int8_engine"]


@dataclass(frozen=True)
class Subject:
    """A model to export, with all facts that are derived from it; made by :meth:`of`."""

    model: nn.Module
    #: One call of the model, with contiguous tensors.
    example: Inputs
    #: How the model is called and what it returns, with the sizes that it accepts.
    signature: Signature
    #: Inputs with other image sizes that the model accepts.
    resized: tuple[Inputs, ...]
    #: The part that runs in int8, which :func:`torchvision_layers.quantized.report` accepts; ``None`` for float.
    int8_part: nn.Module | None
    #: The engine of the int8 part; ``None`` for float.
    engine: str | None
    #: The backend that the int8 part was made for; ``None`` for float.
    backend: str | None
    #: The quantization step of each floating-point input, if kernels of a file may round differently than the model's.
    input_scales: tuple[float, ...]
    #: The shape of the first output.
    output_shape: tuple[int, ...]
    #: Whether to make the program from images with prime sizes, for a forward that pads or crops sizes to a multiple.
    has_prime_trace: bool = False
    #: The program of TorchScript, if that is the format.
    script: torch.jit.ScriptModule | None = None
    #: The lowered model, if the file contains that.
    lowered: LoweredModel | None = None
    #: The program of torch.export, if the format is made from one.
    program: ExportedProgram | None = None

    @classmethod
    def of(cls, model: nn.Module, example: Inputs) -> Self:
        """Checks a model and runs it on ``example`` and on inputs of other sizes.

        Errors: ``TypeError`` for a model that is not converted yet, is lazy, contains several int8 models, or does not
        return tensors; ``ValueError`` for a model that is not in eval mode on the CPU, or gives NaN or infinity;
        ``RuntimeError`` for a model that cannot run.
        """
        part = _converted_part(model)
        _check_state(model, part)
        engine, backend = int8_engine(model)
        output = run_model(model, example)
        signature = Signature.of(model, example, output)
        sizes = Sizes.of(model, example, [spec.name for spec in signature.inputs])
        subject = cls(
            model,
            example,
            signature.with_shapes(sizes.shapes),
            sizes.resized,
            int8_part=None if engine is None else model if part is None else part,
            engine=engine,
            backend=backend,
            input_scales=_input_scales(model if part is None else part),
            output_shape=tuple(flatten(output)[0][0].shape),
        )
        images = subject.batch_size
        if not subject.is_batch_variable or accepts(model, other_batch(example, images + 1)):
            return subject
        warnings.warn(
            f"the file takes batches of {images} images only, as in the example: the forward of the model raises for "
            f"{images + 1}",
            stacklevel=3,
        )
        return subject.with_fixed_sizes()

    @property
    def batch_size(self) -> int:
        """The batch size of the example."""
        return batch_size(self.example)

    @property
    def is_batch_variable(self) -> bool:
        """Whether the file accepts every batch size."""
        return any("batch" in spec.shape for spec in self.signature.inputs)

    @property
    def has_variable_images(self) -> bool:
        """Whether the file accepts images of other sizes than those of the example."""
        return any(isinstance(size, str) and size != "batch" for spec in self.signature.inputs for size in spec.shape)

    def with_fixed_images(self) -> Self:
        """The subject for images of the example's sizes only, in batches of every size that it accepts."""
        shapes = [
            tuple("batch" if axis == "batch" else size for axis, size in zip(spec.shape, tensor.shape, strict=True))
            for spec, tensor in zip(self.signature.inputs, self.example.tensors(), strict=True)
        ]
        return replace(self, signature=self.signature.with_shapes(shapes), resized=())

    def with_fixed_sizes(self) -> Self:
        """The subject for inputs of the example's sizes only."""
        return replace(self, signature=self.signature.with_shapes(self.example.shapes()), resized=())

    @property
    def compared(self) -> list[Inputs]:
        """The example, other batches, and images of other sizes, as far as the file has variable sizes."""
        batches: list[Inputs] = []
        if self.is_batch_variable:
            batches = [other_batch(self.example, size) for size in (1, self.batch_size + 1)]
        singles = [other_batch(self.resized[0], 1)] if self.resized and batches else []
        return [self.example, *batches, *self.resized, *singles]


def check_model(model: nn.Module) -> None:
    """Errors: ``TypeError`` for anything but a module; ``ValueError`` for a module in a wrapper."""
    if isinstance(check_module("model", model), LoweredModel):
        return
    graphs = [module for module in model.modules() if isinstance(module, QuantizableGraph)]
    check_unwrapped("model", model, exempt={part for graph in graphs for part in graph.modules()} - {*graphs})


def int8_engine(model: nn.Module) -> tuple[str | None, str | None]:
    """The engine and the backend of an int8 model; ``None`` for float.

    Errors: ``TypeError`` for a model that is not converted yet, or contains several int8 models.
    """
    part = _converted_part(model)
    if part is not None:
        return part.engine, part.backend
    if any(is_int8(module) for module in model.modules()):
        return "eager", torch.backends.quantized.engine  # of torch.ao alone, no module knows its backend
    return None, None


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
    check_cpu(model)
    for path, parameter in () if isinstance(model, LoweredModel) else model.named_parameters():
        if parameter.dtype in (torch.float16, torch.bfloat16):  # the file is compared with the model in float64
            dtype = str(parameter.dtype).removeprefix("torch.")
            raise TypeError(f"model must be in float32, {path} is in {dtype}: call model.float()")


def _input_scales(model: nn.Module) -> tuple[float, ...]:
    """The steps of the inputs of an int8 model if a file may run it on other kernels than the model itself uses."""
    if isinstance(model, QuantizableGraph):
        return input_scales(model.body.graph)
    # A file of TorchScript packs all weights for one backend, these modules pack theirs for oneDNN.
    is_moved = any(hasattr(module, "kernel_class") for module in model.modules())
    if not is_moved or not isinstance(model, QuantizableModel):
        return ()
    steps = (getattr(module, "scale", None) for module in model.modules())
    first = next((float(step) for step in steps if isinstance(step, (float, Tensor))), 0.0)
    return tuple(float(getattr(stub, "scale", first)) for stub in (model.quant, *model.quants))


def input_scales(graph: fx.Graph) -> tuple[float, ...]:
    """The step of each floating-point input; that of the first value if an operation in float reads the input.

    All are zero if the graph rounds nothing.
    """
    first = next(iter(qparams(graph)["activation_scales"].tolist()), 0.0)
    inputs = [node for node in graph.nodes if node.op == "placeholder" and node.meta["val"].is_floating_point()]
    steps = [[float(user.args[1]) for user in node.users if is_quantize(user)] for node in inputs]
    return tuple(step[0] if step else first for step in steps)
