"""The effects of a ``forward``, besides its result, while it is traced."""

import collections
import copy
import gc
import random
import sys
import weakref
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from typing_extensions import Self

from .tensor_writes import TensorWrites

__all__ = ["Effects", "record_reads_", "without_changes", "writable_copy"]

_CONTAINERS = (dict, list, set, collections.deque)


def writable_copy(module: nn.Module) -> nn.Module:
    """A copy with the same children, parameters and buffers, whose attributes a ``forward`` may set."""
    copied = copy.copy(module)
    vars(copied).update(_writable_attributes(module))
    return copied


def _writable_attributes(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module, with copies of the containers."""
    return {name: _copied(value) if isinstance(value, _CONTAINERS) else value for name, value in vars(module).items()}


def _copied(container: Any) -> Any:
    is_plain = type(container) in (dict, list, set, collections.OrderedDict)  # whose method is faster
    return container.copy() if is_plain else copy.copy(container)


def record_reads_(module: nn.Module) -> set[str]:
    """A set that gets the name of each attribute of ``module`` that is read, other than of its mode and of torch."""
    reads = set[str]()
    cls = type(module)

    def get(self: nn.Module, name: str) -> Any:
        if not name.startswith("_") and name != "training" and name in object.__getattribute__(self, "__dict__"):
            reads.add(name)
        return cls.__getattribute__(self, name)

    module.__class__ = type(cls.__name__, (cls,), {"__getattribute__": get})
    return reads


def without_changes(cls: type[nn.Module], names: frozenset[str]) -> Callable[[nn.Module, str, Any], None]:
    """The ``__setattr__`` of ``cls``, which refuses other values for attributes that are constants of a ``forward``."""

    def set_attribute(module: nn.Module, name: str, value: Any) -> None:
        if name in names and name in vars(module) and vars(module)[name] is not value:
            raise AttributeError(
                f"{name} is a constant of the quantizable {cls.__name__}, whose forward was traced: set it in the "
                "float model, before it is quantized or prepared"
            )
        cls.__setattr__(module, name, value)

    return set_attribute


class Effects:
    """Finds the effects of a trace: what it sets and writes, objects that keep its proxies, and random numbers.

    At the end, the parameters and buffers, the attributes of the modules below and the generators of random numbers are
    as before, and no list outside holds a proxy. An attribute of a module below that holds a proxy keeps it, so that a
    trace of that module fails: its value is none of a constant.

    Args:
        module: a copy whose ``forward`` is traced.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        #: Phrases such as ``"sets self.last"``.
        self.found: list[str] = []
        #: Whether it drew random numbers.
        self.is_random = False
        self._proxies: list[weakref.ref[object]] = []

    def watch(self, proxy: object) -> None:
        """Finds out whether this object outlives the trace."""
        self._proxies.append(weakref.ref(proxy))

    def __enter__(self) -> Self:
        self._states = _random_states()
        self._before = [(path, module, dict(vars(module))) for path, module in self.module.named_modules()]
        for _, module, _ in self._before:
            vars(module).update(_writable_attributes(module))
        self._writes = TensorWrites(dict(chain(self.module.named_parameters(), self.module.named_buffers())))
        self._writes.__enter__()
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self._writes.__exit__(kind, error, traceback)
        self.found = [
            f"sets self.{path}{'.' if path else ''}{name}"
            for path, module, attributes in self._before
            for name, value in vars(module).items()
            if not name.startswith("_tensor_constant") and not _are_same(attributes.get(name), value)
        ]
        self.found += [f"writes into self.{name}" for name in self._writes.found]
        self.is_random = _restore_random(self._states)
        if self.is_random:
            self.found.append("draws random numbers")
        if kind is None and _drop_from_lists([ref for ref in self._proxies if ref() is not None]):
            self.found.append("keeps a tensor in an object outside")
        for _, module, attributes in self._before[1:]:  # the first holds the constants of its graph
            kept = {name: value for name, value in vars(module).items() if isinstance(value, torch.fx.Proxy)}
            vars(module).clear()
            vars(module).update(attributes | kept)


def _are_same(before: object, after: object) -> bool:
    """Whether an attribute is the same object, or a container of the same items."""
    if isinstance(before, _CONTAINERS) and type(before) is type(after):
        return not (before or after) or _ids(before) == _ids(after)
    return before is after


def _ids(container: Any) -> list[int]:
    if isinstance(container, set):
        return sorted(map(id, container))
    return [*map(id, container.values() if isinstance(container, dict) else container)]


def _drop_from_lists(references: list[weakref.ref[object]]) -> bool:
    """Removes objects from the lists that hold them; returns whether there are any."""
    for generation in (1, 2):  # of cycles, most of which are young
        if any(reference() is not None for reference in references):
            gc.collect(generation)
    is_found = False
    for reference in references:
        value = reference()
        if value is None:
            continue
        is_found = True
        for holder in gc.get_referrers(value):
            if isinstance(holder, (list, collections.deque)):
                items = [item for item in holder if item is not value]
                holder.clear()
                holder.extend(items)
    return is_found


def _random_states() -> tuple[Tensor, object, Any]:
    """The states of the generators of torch, Python and, if it is imported, NumPy."""
    numpy: Any = sys.modules.get("numpy.random")
    return torch.get_rng_state(), random.getstate(), numpy and numpy.get_state()


def _restore_random(states: tuple[Tensor, Any, Any]) -> bool:
    """Restores the states; returns whether one had changed."""
    changed = [
        not torch.equal(states[0], torch.get_rng_state()),
        states[1] != random.getstate(),
        states[2] is not None and _comparable(states[2]) != _comparable(sys.modules["numpy.random"].get_state()),
    ]
    if changed[0]:
        torch.set_rng_state(states[0])
    if changed[1]:
        random.setstate(states[1])
    if changed[2]:
        sys.modules["numpy.random"].set_state(states[2])
    return any(changed)


def _comparable(state: tuple[str, Any, int, int, float]) -> tuple[object, ...]:
    """A state of NumPy's generator, with bytes in place of its array."""
    name, keys, *others = state
    return name, keys.tobytes(), *others
