"""Finds the tensors that code writes into."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["TensorWrites"]


class TensorWrites(TorchDispatchMode):
    """Finds writes into some tensors, through ``.data`` as well, which has no version; undoes them at the end.

    A tensor is only copied when it is written.

    Args:
        tensors: the tensors by name, with or without values.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        #: The names of the tensors that were written, or have got another ``.data``.
        self.found: list[str] = []
        self._tensors = {name: tensor for name, tensor in tensors.items() if tensor.layout is torch.strided}
        self._memory = {name: tensor.detach() for name, tensor in self._tensors.items()}
        self._names: dict[int, list[str]] = {}
        for name, tensor in self._tensors.items():
            self._names.setdefault(_storage_of(tensor), []).append(name)
        self._before: dict[str, Tensor] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for i, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[i] if i < len(args) else kwargs.get(argument.name)
                for tensor in tree_leaves(value):
                    self._save(tensor)
        return func(*args, **kwargs)

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        replaced = [n for n, tensor in self._tensors.items() if _storage_of(tensor) != _storage_of(self._memory[n])]
        self.found = [name for name in self._tensors if name in self._before or name in replaced]
        for name, value in self._before.items():
            with torch.no_grad():
                self._memory[name].copy_(value)
        for name in replaced:
            self._tensors[name].data = self._memory[name]

    def _save(self, written: object) -> None:
        if not isinstance(written, Tensor) or written.layout is not torch.strided:
            return
        for name in self._names.get(_storage_of(written), ()):
            if name not in self._before:
                self._before[name] = self._memory[name].clone()


def _storage_of(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
