"""Values of a spec as Python source, in the names ``nn``, ``ops``, ``partial`` and ``torch``."""

import inspect
import math
from collections.abc import Mapping
from functools import partial

import torch
import torchvision.ops
from torch import nn

__all__ = ["UnwritableError", "call_source", "value_source"]


class UnwritableError(ValueError):
    """A value without a short form, such as a function of a test."""


def value_source(value: object) -> str:
    """An expression that evaluates to ``value``; raises ``UnwritableError`` if it has no short form."""
    name = getattr(value, "__name__", "")
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, list):
        return f"[{', '.join(map(value_source, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(value_source, value))}{',' * (len(value) == 1)})"
    if isinstance(value, partial):
        return call_source("partial", value.keywords, value.func, *value.args)
    if isinstance(value, nn.Module):
        return _module_source(value)
    if value is int:
        return "int"
    for prefix, namespace in (("nn", nn), ("torch", torch)):
        if name and getattr(namespace, name, None) is value:
            return f"{prefix}.{name}"
    if isinstance(value, type) and issubclass(value, nn.Module) and hasattr(torchvision.ops, name):
        return f"ops.{name}"
    raise UnwritableError(f"{value!r} has no short form")


def call_source(function: str, kwargs: Mapping[str, object], *args: object) -> str:
    """A call; raises ``UnwritableError`` if an argument has no short form."""
    keywords = (f"{name}={value_source(value)}" for name, value in kwargs.items())
    return f"{function}({', '.join([*map(value_source, args), *keywords])})"


def _module_source(module: nn.Module) -> str:
    """A call of the constructor, with the attributes of the module as arguments."""
    cls = type(module)
    args, kwargs = [], {}
    for name, parameter in inspect.signature(cls).parameters.items():
        is_required = parameter.default is parameter.empty
        value = getattr(module, name, None if is_required else parameter.default)
        value = value[0] if isinstance(value, tuple) and len({*value}) == 1 else value
        if is_required:
            args.append(value)
        elif not isinstance(value, nn.Parameter) and value != parameter.default:  # `bias` is a flag
            kwargs[name] = value
    if getattr(nn, cls.__name__, None) is not cls or repr(cls(*args, **kwargs)) != repr(module):
        raise UnwritableError(f"{module!r} has no short form")
    return call_source(f"nn.{cls.__name__}", kwargs, *args)
