"""The inputs of a graph: the arguments of the model's own ``forward``, checked by name and flattened to tensors."""

import dataclasses
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..._utils.checks import check_shape
from ..._utils.inputs import Inputs
from ..._utils.structure import Slot, flatten, rebuild

__all__ = ["Signature"]


class Signature:
    """Accepts arguments like those of an example.

    Tensors keep their dtype, and everything else, such as numbers, strings and ``None``, is a constant of the graph.
    """

    def __init__(self, model: nn.Module, example: Inputs) -> None:
        self.parameters = inspect.signature(model.forward)
        tensors, self.template = flatten(self._bind(example))
        self.dtypes = [tensor.dtype for tensor in tensors]
        #: For each tensor, the size that the graph requires in each dimension; ``None`` for any size.
        self.sizes: list[tuple[int | None, ...]] = [(None,) * tensor.dim() for tensor in tensors]
        #: For each tensor, the dimensions that must have one size, that of the batch, if the graph does not check it.
        self.batch_dims: list[list[int]] = [[] for _ in tensors]

    def flatten(self, inputs: Inputs) -> list[Tensor]:
        """The tensors of ``inputs``.

        Errors: ``TypeError`` for arguments that ``forward`` does not take and for tensors of another dtype;
        ``ValueError`` for tensors of other sizes, for other containers and for other constants than the example's.
        """
        tensors: list[Tensor] = []
        for i, (name, value) in enumerate(_match(self.template, self._bind(inputs), "")):
            self._check(i, name, value)
            tensors.append(value)
        self._check_batch(tensors)
        return tensors

    def rebuild(self, tensors: Sequence[Tensor]) -> Inputs:
        """The inputs with these tensors."""
        bound = inspect.BoundArguments(self.parameters, rebuild(self.template, tensors))
        return Inputs(bound.args, bound.kwargs)

    def names(self) -> list[str]:
        """An identifier for each tensor."""
        return [re.sub(r"\W+", "_", name).rstrip("_") for name, _ in _match(self.template, self.template, "")]

    def _bind(self, inputs: Inputs) -> dict[str, Any]:
        try:
            bound = self.parameters.bind(*inputs.args, **inputs.kwargs)
        except TypeError as error:
            raise TypeError(f"model must be called like forward{self.parameters}: {error}") from error
        bound.apply_defaults()
        return dict(bound.arguments)

    def _check(self, index: int, name: str, value: object) -> None:
        dtype = self.dtypes[index]
        if not isinstance(value, Tensor) or value.dtype is not dtype:
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name} must be a {str(dtype).removeprefix('torch.')} tensor, got {got}")
        check_shape(name, value, self.sizes[index])

    def _check_batch(self, tensors: Sequence[Tensor]) -> None:
        names = self.names()
        dims = [(names[i], tensors[i].shape[dim]) for i, dims in enumerate(self.batch_dims) for dim in dims]
        for name, size in dims:
            if size != dims[0][1]:
                raise ValueError(f"{name} must have the batch size of {dims[0][0]}, {dims[0][1]}, got {size}")


def _match(template: Any, value: Any, name: str) -> list[tuple[str, Any]]:
    """The names and values of the tensors in ``value``, which must be like the template in everything else."""
    if isinstance(template, Slot):
        return [(name, value)]
    if isinstance(template, (list, tuple, Mapping)) or dataclasses.is_dataclass(template):
        parts, others = _parts(template, name), _parts(value, name)
        if parts.keys() != others.keys():
            raise ValueError(f"{name} must have the structure of the example, got {type(value).__name__}")
        return [match for key, part in parts.items() for match in _match(part, others[key], key)]
    if isinstance(value, Tensor) or value != template:
        got = "a tensor" if isinstance(value, Tensor) else repr(value)
        raise ValueError(f"{name} must be {template!r}, the example's value and a constant of the graph, got {got}")
    return []


def _parts(value: object, name: str) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {f"{name}[{key!r}]" if name else str(key): part for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return {f"{name}[{i}]": part for i, part in enumerate(value)}
    if dataclasses.is_dataclass(value):
        return {f"{name}.{field.name}": getattr(value, field.name) for field in dataclasses.fields(value)}
    return {}
