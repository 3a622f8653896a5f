"""Tensors inside nested tuples, lists, dicts and dataclasses."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Place", "Slot", "flatten", "map_tensors", "places", "rebuild"]

#: The indices, keys and names of fields that lead to a tensor in nested containers.
Place = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Slot:
    """The place of a tensor in a template."""

    index: int


def flatten(value: Any, kinds: tuple[type, ...] = (Tensor,)) -> tuple[list[Any], Any]:
    """The tensors in ``value``, or what is of other ``kinds``, and a template: ``value`` with a slot for each of them.

    Two values have the same structure, and the same numbers, strings and other objects in it, if their templates are
    equal.
    """
    items: list[Any] = []

    def replace(item: Any) -> Slot:
        items.append(item)
        return Slot(len(items) - 1)

    template = _map(kinds, replace, value)
    return items, template


def places(value: Any) -> Iterator[Place]:
    """The place of each tensor that :func:`flatten` finds, in its order. It does not depend on the order of keys."""
    items: Any = ()
    if isinstance(value, Tensor):
        yield ()
    elif isinstance(value, (tuple, list)):
        items = enumerate(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, (type, Mapping)):
        items = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    elif isinstance(value, Mapping):
        items = value.items()
    for key, item in items:
        yield from ((key, *rest) for rest in places(item))


def rebuild(template: Any, tensors: Sequence[Tensor]) -> Any:
    """The value with this template and these tensors."""
    return _map(Slot, lambda slot: tensors[slot.index], template)


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """``value`` with ``function`` applied to each tensor in it. Containers are copied, everything else is kept."""
    return _map(Tensor, function, value)


def _map(leaf: type | tuple[type, ...], function: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, leaf):
        return function(value)
    if isinstance(value, tuple):
        items = [_map(leaf, function, item) for item in value]
        if isinstance(value, torch.Size):  # holds nothing but numbers
            return tuple(items)
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, list):
        return type(value)(_map(leaf, function, item) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, (type, Mapping, Slot)):
        clone = copy.copy(value)
        for field in dataclasses.fields(value):
            # A frozen dataclass refuses setattr, and its constructor may check or compute something.
            object.__setattr__(clone, field.name, _map(leaf, function, getattr(value, field.name)))
        return clone
    if isinstance(value, Mapping):
        mapping: Any = copy.copy(value)
        for key, item in value.items():
            mapping[key] = _map(leaf, function, item)
        return mapping
    return value
