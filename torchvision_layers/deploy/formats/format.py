"""The description of a file format: who can write and read it, and what it needs."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .._subject import Subject
from ..integrity.checksum import Container

__all__ = ["Format"]

# Float kernels may sum a convolution in another order.
_FLOAT_TOLERANCE = 1e-4
# Int8 kernels occasionally round a value between two steps to the other step. On trained networks, outputs differed by
# up to 2.4 % of the largest output, after the 50 layers of a ResNet with group norms.
_INT8_KERNEL_TOLERANCE = 0.05
# TorchScript runs the kernels of the eager model itself. A graph of pt2e computes int8 values in float.
_INT8_GRAPH_TOLERANCE = {"eager": 0.0, "pt2e": 1e-5}


@dataclass(frozen=True)
class Format:
    """How a format is named, written and read, which models it supports, and what it requires."""

    name: str
    #: The suffix that the format is chosen by.
    suffix: str
    #: For the help of the command.
    summary: str
    container: Container
    #: Adds the program of a model, and fixes the sizes that a file for it cannot leave variable.
    restrict: Callable[[Subject], Subject]
    #: The bytes of a file without checksum, for a model and its metadata, and those of the files beside it; or those of
    #: the files in a folder, by their paths.
    serialize: Callable[[Subject, str], bytes | tuple[bytes, ...] | dict[str, bytes]]
    #: The model in the bytes of a file, and its metadata; the path is for error messages and for the files beside it.
    #: With ``has_threads``, it also takes the number of threads, and with ``has_providers``, those. ``None`` if no
    #: runtime runs the format here.
    deserialize: Callable[..., tuple[Callable[..., Any], str]] | None
    supports_float: bool = True
    #: The engine of int8 models; ``None`` if only float is supported.
    engine: str | None = None
    #: The default backend of int8 models, and whether it is the only one.
    backend: str = "x86"
    is_backend_fixed: bool = False
    #: Backends whose int8 models it would run in float.
    float_backends: tuple[str, ...] = ()
    #: Whether int8 runs on other kernels than the model's, which may round differently.
    has_int8_kernels: bool = False
    is_suffix_required: bool = False
    #: Further suffixes that the format is chosen by.
    other_suffixes: tuple[str, ...] = ()
    #: The suffixes of further files beside the first.
    beside: tuple[str, ...] = ()
    #: Whether its runtime has threads of its own.
    has_threads: bool = False
    #: Whether its runtime has providers, which run operators on other devices.
    has_providers: bool = False
    max_weight_bytes: int | None = None
    #: How the names of the records of a zip file begin by which the format is recognized.
    marker: str = ""
    #: Packages for writing and for reading, and the command that installs them.
    writer_packages: tuple[str, ...] = ()
    reader_packages: tuple[str, ...] = ()
    install: str = ""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """All suffixes that the format is chosen by."""
        return (self.suffix, *self.other_suffixes)

    def supports(self, engine: str | None, backend: str | None) -> bool:
        """Whether it supports float models, for ``engine=None``, or int8 models of an engine and a backend."""
        if engine is None:
            return self.supports_float
        is_supported = backend == self.backend if self.is_backend_fixed else backend not in self.float_backends
        return engine == self.engine and is_supported

    def tolerance(self, subject: Subject) -> float:
        """The largest difference that rounding can cause, relative to the largest output."""
        if subject.engine is None:
            return _FLOAT_TOLERANCE
        return _INT8_KERNEL_TOLERANCE if self.has_int8_kernels else _INT8_GRAPH_TOLERANCE[subject.engine]

    def read(
        self, content: bytes, path: Path, threads: int | None = None, providers: Sequence[Any] | None = None
    ) -> tuple[Callable[..., Any], str]:
        """The model in a file, and its metadata.

        Errors: ``ValueError`` for ``threads`` if the format runs on the threads of torch, and for ``providers`` if its
        runtime has none.
        """
        if providers is not None and not self.has_providers:
            raise ValueError(
                f"providers must be None for {path} in format {self.name!r}: they are for onnx and onnx-qdq"
            )
        if threads is not None and not self.has_threads:
            raise ValueError(
                f"threads must be None for {path} in format {self.name!r}, which runs on the threads of torch: call "
                f"torch.set_num_threads({threads})"
            )
        assert self.deserialize is not None
        options = {"threads": threads, "providers": providers}
        return self.deserialize(content, path, **{name: value for name, value in options.items() if value is not None})

    def require(self, packages: Iterable[str]) -> None:
        """Errors: ``ImportError`` if one of ``packages`` is not installed."""
        for package in packages:
            if find_spec(package) is None:
                raise ImportError(f"format={self.name!r} needs {package}: {self.install}")
