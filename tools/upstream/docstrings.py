"""Docstrings in torchvision's form: arguments have types, and references lead to what torchvision has."""

import inspect
import re
import sys
import textwrap
from collections.abc import Collection

from torch import nn

from torchvision_layers import nn as tnn

__all__ = ["EQUIVALENTS", "layer_docstring"]

#: Layers that torchvision has under another name.
EQUIVALENTS = {"ConvNormAct": "Conv2dNormActivation", "Conv3dNormAct": "Conv3dNormActivation"}

_ARGS = re.compile(r"^Args:\n(.+?)(?=\n\n|\Z)", re.M | re.S)
_SAME_ARGS = re.compile(r"^Arguments, errors and source are those of :class:`(\w+)`.*?(?=\n\n|\Z)", re.M | re.S)
# A sentence that compares the layer with torchvision's.
_COMPARISON = re.compile(r"(?:^|\s+)[A-Z][\w\s-]*``torchvision\.ops\.\w+``.*?\.(?=\s|\Z)", re.S)


def layer_docstring(layer: type[nn.Module], operators: Collection[str]) -> str:
    """The docstring of a layer in torchvision, which has ``operators``."""
    doc = inspect.cleandoc(layer.__doc__ or "")
    if same := _SAME_ARGS.search(doc):  # a layer in another number of dimensions
        other = getattr(sys.modules[layer.__module__], same[1])
        args = _ARGS.search(inspect.cleandoc(other.__doc__))
        assert args is not None
        doc = doc.replace(same[0], args[0])
    paragraphs = []
    for paragraph in doc.split("\n\n"):
        text = _COMPARISON.sub("", paragraph)
        for name in {*tnn.__all__} - {layer.__name__, *operators}:
            equivalent = EQUIVALENTS.get(name)
            text = text.replace(f":class:`{name}`", f":class:`{equivalent}`" if equivalent else f"``{name}``")
        if text.startswith("Args:"):
            text = _arguments(text, layer)
        elif text != paragraph:
            text = _wrap(text)
        paragraphs.append(text.replace("tnn.", "ops."))
    return "\n\n".join(paragraphs)


def _arguments(section: str, layer: type[nn.Module]) -> str:
    """The section ``Args:`` with types and capital letters."""
    parameters = inspect.signature(layer).parameters
    entries = []
    for entry in re.split(r"\n    (?=\w)", section)[1:]:
        name, _, meaning = entry.partition(": ")
        parameter = parameters[name]
        optional = "" if parameter.default is inspect.Parameter.empty else ", optional"
        if isinstance(parameter.default, type):
            meaning = re.sub(r"Default: ``nn\.\w+``", f"Default: ``torch.nn.{parameter.default.__name__}``", meaning)
        text = f"{name} ({_type_name(parameter.annotation)}{optional}): {meaning[0].upper()}{meaning[1:]}"
        entries.append(_wrap(text, "    ", "        "))
    return "\n".join(["Args:", *entries])


def _type_name(annotation: object) -> str:
    """A type in words, such as ``int or tuple[int, int]``."""
    text = annotation.__name__ if type(annotation) is type else str(annotation)
    text = re.sub(r"(?:collections\.abc|typing|torchvision_layers[\w.]*|torch\.nn\.modules\.module)\.", "", text)
    text = text.replace("Callable[..., Module] | Module", "Callable[..., torch.nn.Module]")
    text = {"device": "torch.device", "dtype": "torch.dtype", "Module": "torch.nn.Module"}.get(text, text)
    return " or ".join(part for part in text.split(" | ") if part != "None")


def _wrap(text: str, indent: str = "", continuation: str = "") -> str:
    return textwrap.fill(
        " ".join(text.split()),
        116,  # 120 in the body of a class
        initial_indent=indent,
        subsequent_indent=continuation,
        break_long_words=False,
        break_on_hyphens=False,
    )
