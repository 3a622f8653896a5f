"""Values of a specification written as Python, as they stand in a test of torchvision."""

import ast
import json
import math
from collections.abc import Mapping
from functools import partial

import torch
import torchvision.ops
from torch import nn

__all__ = ["UnwritableError", "as_call", "as_source"]


class UnwritableError(ValueError):
    """A value that has no short form."""


def as_source(value: object) -> str:
    """An expression for a value, in the names ``nn``, ``ops``, ``partial`` and ``torch``.

    Errors: ``UnwritableError`` for what has none, such as a function of a test.
    """
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        inner = ", ".join(map(as_source, value))
        if isinstance(value, list):
            return f"[{inner}]"
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, partial):
        given = [as_source(value.func), *map(as_source, value.args), *_keywords(value.keywords)]
        return f"partial({', '.join(given)})"
    if isinstance(value, nn.Module):
        return _module(value)
    return _named(value)


def as_call(function: str, kwargs: Mapping[str, object]) -> str:
    """A call with keywords.

    Errors: ``UnwritableError`` where one has no short form.
    """
    return f"{function}({', '.join(_keywords(kwargs))})"


def _keywords(kwargs: Mapping[str, object]) -> list[str]:
    return [f"{name}={as_source(value)}" for name, value in kwargs.items()]


def _module(module: nn.Module) -> str:
    """The text of a module of torch, without what is its default."""
    try:
        call = ast.parse(f"nn.{module!r}", mode="eval").body
    except SyntaxError as error:
        raise UnwritableError(f"{module!r} has no short form") from error
    if not isinstance(call, ast.Call) or not _makes(call, module):
        raise UnwritableError(f"{module!r} has no short form")
    while call.keywords:
        shorter = ast.Call(call.func, call.args, call.keywords[:-1])
        if not _makes(shorter, module):
            break
        call = shorter
    return ast.unparse(call)


def _makes(call: ast.Call, module: nn.Module) -> bool:
    try:
        return repr(eval(ast.unparse(call), {"nn": nn})) == repr(module)
    except Exception:  # whatever the text of a module happens to mean
        return False


def _named(value: object) -> str:
    name = getattr(value, "__name__", "")
    if value is int:
        return "int"
    if name and getattr(nn, name, None) is value:
        return f"nn.{name}"
    if name and getattr(torch, name, None) is value:
        return f"torch.{name}"
    if isinstance(value, type) and issubclass(value, nn.Module) and hasattr(torchvision.ops, name):
        return f"ops.{name}"
    raise UnwritableError(f"{value!r} has no short form")
