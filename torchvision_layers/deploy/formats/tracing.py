"""TorchScript by tracing, for int8 models that cannot be scripted."""

import inspect
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..._utils.inputs import Inputs
from ..._utils.structure import flatten
from .._inputs import other_batch
from .._running import run_model
from .._signature import forward_signature, plain
from .._subject import Subject
from .size_reads import SizeReads

__all__ = ["trace"]

_REMEDY = "call quantized.quantize(model, batches, engine='pt2e') and use format='pt2'"
#: Functions that turn values of tensors into Python numbers, which a trace would keep as constants.
_READERS = {
    *("item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "__complex__", "__contains__"),
    *("equal", "allclose", "is_nonzero"),
}


def trace(subject: Subject) -> Subject:
    """The subject with a program for inputs like the example, under the names of its own ``forward``.

    The sizes are fixed as far as the program computes something else for other ones.

    Errors: ``RuntimeError`` if the model depends on values of tensors, or if torch cannot trace it.
    """
    if subject.signature.has_constants:
        raise RuntimeError(f"model must be traced, which takes tensors only, not numbers or None: {_REMEDY}")
    with _NoValues(subject.model):
        subject.example.map(Tensor.clone).run(subject.model)
    script, reads = _trace(subject, subject.example)
    return _fix_sizes(replace(subject, script=script), reads)


def _trace(subject: Subject, inputs: Inputs) -> tuple[torch.jit.ScriptModule, list[list[int]]]:
    """The program, and the sizes behind each decision of the ``forward``, which the program does not make."""
    reads = SizeReads()
    try:
        with warnings.catch_warnings(), reads:
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # for decisions, which are recorded
            tensors = tuple([*inputs.args, *inputs.kwargs.values()])
            return torch.jit.trace(_Traced(subject), tensors, check_trace=False, strict=False), reads.sizes
    except Exception as error:  # torch raises many types here
        reason = str(error).strip().partition("\n")[0]
        raise RuntimeError(f"model can neither be scripted nor traced: {reason:.200}; {_REMEDY}") from error


def _fix_sizes(subject: Subject, reads: list[list[int]]) -> Subject:
    shapes = [spec.shape for spec in subject.signature.inputs]
    current = subject.example.shapes()
    batches = [other_batch(subject.example, size) for size in (1, subject.batch_size + 1)]
    is_fixed = (
        not all(_agrees(subject, inputs) for inputs in batches) or _decides(subject, batches[1:], reads),
        not all(_agrees(subject, inputs) for inputs in subject.resized) or _decides(subject, subject.resized, reads),
    )
    fixed = [
        tuple(
            size if isinstance(axis, str) and is_fixed[axis != "batch"] else axis
            for axis, size in zip(shape, sizes, strict=True)
        )
        for shape, sizes in zip(shapes, current, strict=True)
    ]
    signature = subject.signature.with_shapes(fixed)
    return replace(subject, signature=signature, resized=() if any(is_fixed) else subject.resized)


def _decides(subject: Subject, others: Sequence[Inputs], reads: list[list[int]]) -> bool:
    """Whether the ``forward`` makes decisions on sizes that are different for other inputs."""
    return bool(reads) and any(_trace(subject, inputs)[1] != reads for inputs in others)


class _Traced(nn.Module):
    """Calls a model by position, under the names of its parameters, and returns plain containers."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.model = subject.model
        count, keys = len(subject.example.args), list(subject.example.kwargs)

        def forward(*values: Any) -> Any:
            return plain(subject.model(*values[:count], **dict(zip(keys, values[count:], strict=True))))

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter(name, kind) for name in (*_positional_names(subject.model, count), *keys)]
        forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        self.forward = forward
        self.eval()


def _positional_names(model: nn.Module, count: int) -> list[str]:
    names = list[str]()
    for name, parameter in forward_signature(model).parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            return [*names, *(f"{name}_{i}" for i in range(count - len(names)))]
        names.append(name)
    return names[:count]


class _NoValues(TorchFunctionMode):
    """Raises ``RuntimeError`` if a value of a tensor becomes a Python number, a constant in a trace.

    The values of buffers are constants already: scales, for example.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.constants = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in _READERS and id(args[0]) not in self.constants:
            raise RuntimeError(f"model must be traced, but its forward depends on values of tensors: {_REMEDY}")
        return func(*args, **(kwargs or {}))


def _agrees(subject: Subject, inputs: Inputs) -> bool:
    """Whether the program computes what the model does."""
    assert subject.script is not None
    expected = flatten(run_model(subject.model, inputs))[0]
    try:
        outputs = flatten(plain(inputs.map(Tensor.clone).run(subject.script)))[0]
    except RuntimeError:
        return False
    return all(torch.equal(output, original) for output, original in zip(outputs, expected, strict=True))
