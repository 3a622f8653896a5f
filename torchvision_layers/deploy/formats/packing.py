"""Packed weights in files of torch.export.

oneDNN's layouts differ from CPU to CPU, and torch cannot save them. A file therefore contains the plain weight in a
pickle that calls the operator which packs it. ``torch.export.load`` unpickles it, so it packs each weight once, for the
CPU that it runs on. :func:`read_packing` reads these pickles without running them.
"""

import importlib
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..integrity.archive import Archive
from ..lowering.tracing import Packing

__all__ = ["PackedWeight", "read_packing"]

_OPERATORS = (
    "ops.mkldnn._reorder_convolution_weight.default",
    "ops.mkldnn._reorder_linear_weight.default",
    "ops.onednn.qconv_prepack.default",
    "ops.onednn.qlinear_prepack.default",
)
_STORAGES = {"BFloat16Storage": torch.bfloat16, "CharStorage": torch.int8, "FloatStorage": torch.float32}


class PackedWeight(Tensor):
    """A plain weight whose pickle is a call that packs it."""

    packing: Packing

    @staticmethod
    def of(packing: Packing) -> "PackedWeight":
        # Copies, because the memory of a view would be saved in full.
        args = tuple(arg.detach().clone() if isinstance(arg, Tensor) else arg for arg in packing.args)
        weight = args[0].as_subclass(PackedWeight)
        weight.packing = Packing(packing.operator, args)
        return weight

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _Operator(self.packing.operator), self.packing.args


class _Operator:
    """Is pickled as a name below ``torch``."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *args: Any) -> None:
        raise NotImplementedError("only a name in a pickle")

    def __reduce__(self) -> tuple[Any, ...]:
        return attrgetter(self._name), (_Torch(),)


class _Torch:
    """Is pickled as the module ``torch``."""

    def __reduce__(self) -> tuple[Any, ...]:
        return importlib.import_module, ("torch",)


def read_packing(content: memoryview, path: Path) -> Packing:
    """The call in a pickle of :class:`PackedWeight`.

    Errors: ``ValueError`` for any other pickle, before anything in it runs.
    """
    archive = Archive(content, path)
    packing = _Reader(archive).load()
    if not isinstance(packing, Packing):
        raise ValueError(f"{path} contains a pickle that could run code in place of a weight")
    return packing


class _Reader(pickle.Unpickler):
    """Understands tensors, and calls of the operators that pack weights; all other names are refused."""

    def __init__(self, archive: Archive) -> None:
        super().__init__(io.BytesIO(archive.read("data.pkl")))
        self._archive = archive
        self._functions: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("importlib", "import_module"): lambda name: name,
            ("operator", "attrgetter"): lambda name: lambda module: self._operator(f"{module}.{name}"),
            ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, size, stride, *_: storage.as_strided(
                size, stride, offset
            ),
        }

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) not in self._functions:
            raise ValueError(f"{self._archive.path} contains a pickle that could run code: it calls {module}.{name}")
        return self._functions[module, name]

    def persistent_load(self, id: Any) -> Tensor:
        _, dtype, key, _, _ = id
        return torch.frombuffer(bytearray(self._archive.view(f"data/{key}")), dtype=dtype)

    def _operator(self, name: str) -> Callable[..., Packing]:
        operator = name.removeprefix("torch.")
        if operator not in _OPERATORS:
            raise ValueError(f"{self._archive.path} contains a pickle that could run code: it calls {name}")
        return lambda *args: Packing(operator, args)
