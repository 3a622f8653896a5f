"""Docstrings in the form of torchvision: arguments with their types."""

import inspect
import re
import sys
import textwrap
from collections.abc import Iterable

from torch import nn

__all__ = ["EQUIVALENTS", "for_helper", "for_layer"]

#: Layers that torchvision has under another name.
EQUIVALENTS = {"ConvNormAct": "Conv2dNormActivation", "Conv3dNormAct": "Conv3dNormActivation"}

_ARGS = re.compile(r"^Args:\n((?:    .*\n?)+)", re.M)
_SAME_ARGS = re.compile(r"^Arguments, errors and source are those of :class:`(\w+)`,[^\n]*(?:\n[^\n]+)*", re.M)
_WIDTH = 116


def for_helper(text: str) -> str:
    """The first paragraph."""
    return inspect.cleandoc(text).partition("\n\n")[0]


def for_layer(text: str, layer: type[nn.Module], others: Iterable[str]) -> str:
    """The docstring of a layer, indented as the body of a class.

    Args:
        text: as the layer has it.
        layer: tells the types and defaults of its arguments.
        others: layers that torchvision lacks, to which nothing can refer.
    """
    doc = inspect.cleandoc(text)
    same = _SAME_ARGS.search(doc)
    if same is not None:  # a layer in another number of dimensions
        other = getattr(sys.modules[layer.__module__], same[1])
        args = _ARGS.search(inspect.cleandoc(other.__doc__))
        assert args is not None
        doc = _SAME_ARGS.sub(lambda _: args[0].rstrip(), doc)
    paragraphs = [_paragraph(part, layer.__name__, others) for part in doc.split("\n\n")]
    doc = _ARGS.sub(lambda found: "Args:\n" + _arguments(found[1], layer), "\n\n".join(paragraphs))
    return textwrap.indent(doc.replace("tnn.", "ops."), "    ").strip() + "\n    "


def _paragraph(text: str, layer: str, others: Iterable[str]) -> str:
    """A paragraph as it reads in torchvision; filled anew where that changes it."""
    new = re.sub(rf"\s+Drop-in for\s+``torchvision\.ops\.{layer}``:[^.]*\.", "", text)
    for name in others:
        public = EQUIVALENTS.get(name)
        new = new.replace(f":class:`{name}`", f":class:`{public}`" if public else f"``{name}``")
    return text if new == text or new.startswith("Args:") else _wrapped(new.split(), "", "")


def _wrapped(words: list[str], first: str, others: str) -> str:
    return textwrap.fill(
        " ".join(words),
        _WIDTH,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _arguments(text: str, layer: type[nn.Module]) -> str:
    """The entries of ``Args:`` with types, each on as few lines as it needs."""
    parameters = inspect.signature(layer).parameters
    entries = []
    for entry in re.split(r"\n(?=    \w)", text.rstrip("\n")):
        name, _, meaning = entry.strip().partition(": ")
        parameter = parameters[name]
        has_default = parameter.default is not inspect.Parameter.empty
        kind = _kind(parameter.annotation) + (", optional" if has_default else "")
        meaning = meaning[0].upper() + meaning[1:]
        if isinstance(parameter.default, type):
            meaning = re.sub(r"Default: ``nn\.\w+``", f"Default: ``torch.nn.{parameter.default.__name__}``", meaning)
        entries.append(_wrapped(f"{name} ({kind}): {meaning}".split(), "    ", "        "))
    return "\n".join(entries) + "\n"


def _kind(annotation: object) -> str:
    """A type in words: ``int or tuple[int, int]``."""
    text = (
        annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else str(annotation)
    )
    text = re.sub(r"(?:collections\.abc|typing|torchvision_layers[\w.]*|torch\.nn\.modules\.module)\.", "", text)
    text = text.replace("Callable[..., Module] | Module", "Callable[..., torch.nn.Module]")
    if text in ("device", "dtype", "Module"):
        text = f"torch.{'nn.' if text == 'Module' else ''}{text}"
    kinds = [kind for kind in text.split(" | ") if kind != "None"]
    return " or ".join(kinds)
