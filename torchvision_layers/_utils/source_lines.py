"""Lines of a model's own source code in errors and traces of torch."""

import linecache
import re
import traceback
from pathlib import Path

import torch
from torch import nn

__all__ = ["failing_line", "line_at", "source_line"]

_TORCH = str(Path(torch.__file__).parent)
_UTILS = str(Path(__file__).parent)


def failing_line(error: BaseException, model: nn.Module) -> tuple[str, bool]:
    """The module of ``model`` and the line that ``error`` comes from, and whether that line itself raised it."""
    paths = {module: path or "model" for path, module in model.named_modules()}
    cause: BaseException | None = error
    while cause is not None:
        owner, line, is_own = "", "", False
        for frame, number in traceback.walk_tb(cause.__traceback__):
            code, file = frame.f_code, frame.f_code.co_filename
            module = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
            is_own = _is_own(file, code.co_name)
            if is_own and isinstance(module, nn.Module) and module in paths:
                owner = f"{paths[module]} ({type(module).__name__})"
            if is_own and owner:
                line = f"{owner}, {line_at(file, number)}"
        if line:
            return line, is_own
        cause = cause.__cause__ or cause.__context__
    return "model", False


def line_at(file: str, number: int) -> str:
    """``file:line: code`` of a line."""
    return f"{file}:{number}: {linecache.getline(file, number).strip()}"


def source_line(stack_trace: str | None) -> str:
    """``file:line: code`` of the innermost line outside torch in the stack trace of a node; empty if there is none."""
    lines = re.findall(r'File "(.+)", line (\d+), in (.+)\n\s+(.+)', stack_trace or "")
    for file, number, function, code in reversed(lines):
        if _is_own(file, function):
            return f"{file}:{number}: {code}"
    return ""


def _is_own(file: str, function: str) -> bool:
    """Whether a line belongs neither to torch, nor to a mode that watches it, nor to the export itself."""
    return not file.startswith((_TORCH, _UTILS)) and function != "__torch_function__"
