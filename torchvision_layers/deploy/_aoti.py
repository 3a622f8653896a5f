"""Machine code, compiled ahead of time, for Python and for C++."""

import io
import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ._archive import record, records
from ._kinds import Kind, check_exportable_graph, kind_of
from ._metadata import NAME, input_shape_in
from ._program import export_program
from ._sealing import seal_zip, sealed_content

__all__ = ["check", "read", "write"]

#: The properties of the processor that compiled, under this name in the metadata of torch's loader.
_CPU = "cpu.json"


def check(model: nn.Module) -> None:
    check_exportable_graph(model)


def write(model: nn.Module, example: Tensor, path: Path, metadata: str) -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler
    from torch._inductor.utils import fresh_cache

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise FileNotFoundError(
            "format='aoti' compiles and needs a C++ compiler such as g++, none is found; format='pt2' needs none"
        ) from error
    program = export_program(model, example, input_shape_in(metadata))
    configs: dict[str, object] = {"aot_inductor.metadata": {NAME: metadata, _CPU: json.dumps(_cpu())}}
    if kind_of(model) is Kind.PT2E:
        configs["freezing"] = True  # by which int8 weights are packed, for int8 kernels
    content = io.BytesIO()
    # A cache of its own, or the compiled model would stay in the user's.
    with (
        tempfile.TemporaryDirectory() as folder,
        fresh_cache(dir=folder, delete=False),
        warnings.catch_warnings(),
    ):
        # Inductor's own, of packed weights.
        warnings.filterwarnings("ignore", message="To copy construct from a tensor", category=UserWarning)
        torch._inductor.aoti_compile_and_package(program, package_path=content, inductor_configs=configs)
    path.write_bytes(seal_zip(content.getvalue()))


def read(path: Path) -> tuple[Callable[[Tensor], Tensor], str]:
    content = sealed_content(path)
    described = [name for name in records(content, path) if name.endswith("_metadata.json")]
    try:
        held = json.loads(record(content, described[0], path))
        text, needed = held[NAME], json.loads(held[_CPU])
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} was not written by deploy.export: it has no metadata") from error
    here = _cpu()
    missing = sorted(name for name, value in needed.items() if value is not False and here.get(name) != value)
    if missing:  # an instruction that the processor lacks ends the process
        raise ValueError(f"{path} was compiled for another processor, with {', '.join(missing)}: export it on this one")
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder) / "model.pt2"  # the loader reads files only, and this one is the one that was checked
        copied.write_bytes(content)
        model = torch._inductor.aoti_load_package(str(copied))
    return lambda x: model(x), text


def _cpu() -> dict[str, object]:
    """The architecture of this processor and its sets of instructions."""
    known = torch.cpu.get_capabilities()
    return {name: value for name, value in known.items() if isinstance(value, bool) or name == "architecture"}
