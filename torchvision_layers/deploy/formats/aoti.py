"""Machine code that is compiled ahead of time, for Python and for C++."""

import io
import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..._utils.inputs import Inputs
from .._metadata import NAME, parse
from .._signature import Signature
from .._subject import Subject
from ..integrity.archive import Archive
from .program import rules_to_check
from .size_rules import check_rules

__all__ = ["deserialize", "serialize"]

#: Names of the processor's properties, and of the rules for sizes, in the metadata of torch's loader.
_CPU, _RULES = "cpu.json", "rules.json"


def serialize(subject: Subject, metadata: str) -> bytes:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler
    from torch._inductor.utils import fresh_cache

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise FileNotFoundError(
            "format='aoti' needs a C++ compiler such as g++: install one, or use format='pt2', which does not compile"
        ) from error
    program = subject.program
    assert program is not None
    rules = json.dumps(rules_to_check(program, subject))  # compiled code does not check them
    texts = {NAME: metadata, _CPU: json.dumps(_cpu_capabilities()), _RULES: rules}
    configs: dict[str, object] = {"aot_inductor.metadata": texts}
    if subject.engine is not None:
        configs["freezing"] = True  # packs int8 weights for int8 kernels
    content = io.BytesIO()
    # With a temporary cache, no compiled model stays in the user's cache.
    with (
        tempfile.TemporaryDirectory() as folder,
        fresh_cache(dir=folder, delete=False),
        warnings.catch_warnings(),
    ):
        # Inductor's own warning about packed weights.
        warnings.filterwarnings("ignore", message="To copy construct from a tensor", category=UserWarning)
        torch._inductor.aoti_compile_and_package(program, package_path=content, inductor_configs=configs)
    return content.getvalue()


def deserialize(content: bytes, path: Path) -> tuple[Callable[..., Any], str]:
    archive = Archive(content, path)
    try:
        fields = json.loads(archive.read(next(name for name in archive if name.endswith("_metadata.json"))))
        metadata, needed = fields[NAME], json.loads(fields[_CPU])
        rules = json.loads(fields.get(_RULES, "[]"))
    except (KeyError, StopIteration, TypeError, ValueError) as error:
        raise ValueError(f"{path} was not written by deploy.export: it has no metadata") from error
    available = _cpu_capabilities()
    missing = sorted(name for name, value in needed.items() if value is not False and available.get(name) != value)
    if missing:  # an unsupported instruction would end the process
        raise ValueError(
            f"{path} was compiled for another processor, with {', '.join(missing)}: export it on this processor"
        )
    with tempfile.TemporaryDirectory() as folder:
        copy = (
            Path(folder) / "model.pt2"
        )  # the loader reads files only, and `path` may have changed since it was checked
        copy.write_bytes(content)
        model = torch._inductor.aoti_load_package(str(copy))
    names = [spec.name for spec in Signature.from_json(parse(metadata, path)).inputs]

    def run(*args: Any, **kwargs: Any) -> Any:
        check_rules(rules, names, Inputs(args, kwargs).shapes())
        return model(*args, **kwargs)

    return run, metadata


def _cpu_capabilities() -> dict[str, object]:
    """The architecture and the instruction sets of this processor."""
    capabilities = torch.cpu.get_capabilities()
    return {name: value for name, value in capabilities.items() if isinstance(value, bool) or name == "architecture"}
