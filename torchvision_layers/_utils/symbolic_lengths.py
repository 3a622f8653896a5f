"""``len`` of tensors during an export."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

__all__ = ["symbolic_lengths"]


@contextmanager
def symbolic_lengths(model: nn.Module) -> Iterator[None]:
    """Lets ``len(x)`` in the files of each ``forward`` return ``x.shape[0]``, which torch.export keeps variable.

    The function of Python returns a number, so the graph would be for one batch size only.
    """
    files = [namespace for module in model.modules() for namespace in _namespaces(module)]
    changed: list[dict[str, Any]] = []
    for namespace in files:
        if "len" not in namespace:
            namespace["len"] = _length
            changed.append(namespace)
    try:
        yield
    finally:
        for namespace in changed:
            del namespace["len"]


def _namespaces(module: nn.Module) -> Iterator[dict[str, Any]]:
    """The names at the top of the files that define ``forward`` of a module; torch's own are left alone."""
    for forward in (vars(module).get("forward"), *(vars(cls).get("forward") for cls in type(module).__mro__)):
        namespace = getattr(inspect.unwrap(forward), "__globals__", None) if callable(forward) else None
        if namespace is not None and str(namespace.get("__name__")).partition(".")[0] != "torch":
            yield namespace


def _length(value: Any) -> Any:
    return value.shape[0] if isinstance(value, Tensor) and value.dim() else len(value)
