"""Report of the modules of a model of the eager engine, or of a float model."""

from dataclasses import replace

from torch import nn

from ..report_row import Int8Support, ReportRow
from .model import QuantizableModel
from .support import int8_support, is_int8, is_unit
from .wrappers import FloatFallback, FloatOperation, Int8Child, MultipleFloatFallback

__all__ = ["module_rows", "rows_with_modules"]

_Rows = list[tuple[ReportRow, nn.Module]]


def module_rows(model: nn.Module) -> list[ReportRow]:
    """A row for each module that is not just a container, in the order of the model."""
    return [row for row, _ in rows_with_modules(model)]


def rows_with_modules(model: nn.Module) -> _Rows:
    """The rows of :func:`module_rows`, each with its module."""
    root = model.model if isinstance(model, QuantizableModel) else model
    before = model.classes_before if isinstance(model, QuantizableModel) else {}
    is_converted = any(is_int8(module) for module in model.modules())
    rows: _Rows = []
    _add_rows(root, "", before, is_converted, False, rows)
    in_float = {row.path for row, _ in rows if row.runs_in == "float"}
    return [
        (replace(row, runs_in="float") if in_float.intersection(row.fused_with) else row, module)
        for row, module in rows
    ]


def _add_rows(
    module: nn.Module, path: str, before: dict[str, str], is_converted: bool, is_in_float: bool, rows: _Rows
) -> None:
    if isinstance(module, Int8Child):
        module, is_in_float = module.module, False
    elif isinstance(module, MultipleFloatFallback) and int8_support(module.module) is Int8Support.FLOAT_FORWARD:
        module = module.module
    row = _row(module, path, before.get(path, ""), is_converted)
    has_float_forward = int8_support(module) is Int8Support.FLOAT_FORWARD
    if row is not None:
        if is_in_float and row.runs_in == "int8":
            row = replace(row, runs_in="float", why="is called by a forward that runs in float")
        rows.append((row, module))
        if not has_float_forward:
            return
    for name, child in module.named_children():
        child_path = f"{path}.{name}".lstrip(".")
        _add_rows(child, child_path, before, is_converted, is_in_float or has_float_forward, rows)


def _row(module: nn.Module, path: str, before: str, is_converted: bool) -> ReportRow | None:
    """The row of a module that is a unit; ``None`` for one that only calls its children."""
    after = type(module).__name__
    support = int8_support(module)
    target = getattr(module, "fused_into", None)
    if hasattr(module, "is_unused") and not module._modules and support is not Int8Support.CONTAINER:
        return ReportRow(path, before, after, "float", "is never called")
    if target is not None:
        parent = path.split(".")[: -module.fused_levels]  # type: ignore[operator]  # an int
        target_path = ".".join([*parent, target])
        runs_in = "int8" if is_converted else "float"
        return ReportRow(path, before, after, runs_in, f"fused into {target_path}", (target_path,))
    if isinstance(module, (FloatFallback, MultipleFloatFallback)):
        inner = getattr(module.module, "float_class", type(module.module))
        return ReportRow(path, before, f"FloatFallback({inner.__name__})", "float", _why_float(module.module))
    if support is Int8Support.FLOAT_FORWARD:
        return ReportRow(path, before, f"FloatFallback({before})", "float", support.value)
    if hasattr(module, "stays_in_float"):  # as a whole, below a forward in float
        return ReportRow(path, before, after, "float", _why_float(module))
    if isinstance(module, FloatOperation):
        after = f"FloatOperation({module.extra_repr()})"
        return ReportRow(path, before, after, "float", Int8Support.FLOAT_FALLBACK.value)
    if after == "DeQuantize":  # in a twin that computes something in float up to its next stub
        return ReportRow(path, before, after, "float", Int8Support.FLOAT_FALLBACK.value)
    if is_int8(module):
        return ReportRow(path, before, after, "int8", Int8Support.CONVERTED.value)
    has_rows_below = support is Int8Support.UNKNOWN and bool(module._modules)
    if (support is Int8Support.CONTAINER or has_rows_below) and not is_unit(module):
        return None
    if support is Int8Support.UNKNOWN and module._modules and not before:  # a float model that is not rewritten yet
        return None
    if is_converted and support is Int8Support.PASS_THROUGH:
        return ReportRow(path, before, after, "int8", support.value)
    return ReportRow(path, before, after, "float", support.value if is_converted else "not converted yet")


def _why_float(module: nn.Module) -> str:
    excluded_by = getattr(module, "excluded_by", None)
    return int8_support(module).value if excluded_by is None else f"excluded by {excluded_by}"
