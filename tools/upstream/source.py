"""The source of a layer and its helpers, as one file of ``torchvision.ops``."""

import ast
import inspect
import re
import sys
from collections.abc import Callable, Collection
from dataclasses import replace

import libcst as cst
from libcst import matchers as m
from torch import nn

from torchvision_layers._source.collecting import Unit, Use, collect
from torchvision_layers._source.formatting import format_code
from torchvision_layers._source.ordering import sort_units
from torchvision_layers._source.rewriting import rewrite
from torchvision_layers._source.sources import Definition, External, Origin, Sources

from .docstrings import layer_docstring

__all__ = ["layer_source"]

# A leading underscore alone would give it the name of its own base class.
_PRIVATE = {"ConvNormAct": "_Conv2dNormAct"}
_SUPER_INIT = m.SimpleStatementLine([m.Expr(m.Call(m.Attribute(m.Call(m.Name("super")), m.Name("__init__"))))])


def layer_source(
    layer: type[nn.Module],
    module_of: Callable[[Definition], str | None],
    operators: Collection[str],
    methods: Collection[str] = (),
) -> tuple[list[str], str]:
    """The imports of a layer, a line for each name, and its code with its helpers, which get private names.

    Args:
        layer: a stable layer.
        module_of: returns the module of ``torchvision.ops`` that already has a definition, or ``None``.
        operators: the public names of ``torchvision.ops``.
        methods: methods that helpers keep although this layer does not call them. Default: none.
    """
    root = Definition(layer.__module__, layer.__name__)

    def choose(use: Use, unit: Unit) -> Use:
        if not isinstance(use.origin, Definition) or use.origin == root:
            return use
        module = module_of(use.origin)
        return replace(use, origin=External(f".{module}", use.origin.name)) if module else use

    def docstring(literal: str) -> str:
        text = inspect.cleandoc(ast.literal_eval(literal))
        is_layer = text == inspect.cleandoc(layer.__doc__ or "")
        new = layer_docstring(layer, operators) if is_layer else _summary(text)
        end = "\n" if "\n" in new else ""
        return literal if new == text else f'{"r" * (chr(92) in new)}"""{new}{end}"""'

    collection = collect(Sources(sys.modules[root.module]), [root], choose, methods)
    units = sort_units(collection, [root])
    names: dict[Origin, str] = {use.origin: use.alias for unit in units for use in unit.uses}
    names.update((definition, _private(definition.name)) for definition in collection.definitions)
    names[root] = root.name
    module = cst.Module([rewrite(unit, names, docstring) for unit in units]).visit(_UsageLog(root.name))
    code = re.sub(r"  # noqa: [\w, ]+(?=  #|$)", "", module.code, flags=re.M)
    imports = [_import(origin) for origin in names if isinstance(origin, External)]
    return ["from ..utils import _log_api_usage_once\n", *imports], format_code(code)


def _private(name: str) -> str:
    return name if name.startswith("_") else _PRIVATE.get(name, f"_{name}")


def _summary(text: str) -> str:
    """The first paragraph of a docstring that has sections for users, and any other docstring unchanged."""
    return text.partition("\n\n")[0] if "\n\nArgs:" in text else text


def _import(origin: External) -> str:
    if origin == External("torch.nn", "functional"):
        return "import torch.nn.functional as F\n"
    return f"from {origin.module} import {origin.name}\n" if origin.name else f"import {origin.module}\n"


class _UsageLog(cst.CSTTransformer):
    """Adds ``_log_api_usage_once(self)`` after the layer's ``super().__init__``."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.layer = layer

    def visit_ClassDef(self, node: cst.ClassDef) -> bool:
        return node.name.value == self.layer

    def leave_SimpleStatementLine(
        self, original_node: cst.SimpleStatementLine, updated_node: cst.SimpleStatementLine
    ) -> cst.SimpleStatementLine | cst.FlattenSentinel[cst.BaseStatement]:
        if not m.matches(updated_node, _SUPER_INIT):
            return updated_node
        return cst.FlattenSentinel([updated_node, cst.parse_statement("_log_api_usage_once(self)")])
