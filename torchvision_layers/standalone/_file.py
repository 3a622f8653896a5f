"""The text of a standalone file."""

import libcst as cst
from libcst.codemod import CodemodContext
from libcst.codemod.visitors import AddImportsVisitor, ImportItem
from torch import nn

from .._source.collecting import Collection, collect
from .._source.formatting import format_code
from .._source.ordering import sort_units
from .._source.rewriting import rewrite
from .._source.sources import OURS, Definition, External, Sources
from .._utils.importing import named_module
from .._utils.model_checks import check_unwrapped
from ._docstrings import adapt_docstring
from ._header import header, origin
from ._naming import name_all
from ._substitutes import BASES, QUANTIZABLE_MODEL, TWINS, Substitutes, with_twins

__all__ = ["text_of"]

_TITLES = {BASES: "In place of torchvision.ops", TWINS: f"In place of {OURS}.quantized"}
_PREFIXES = {"tnn": f"{OURS}.nn", "enn": f"{OURS}.experimental.nn"}


def text_of(reference: str, quantizable: bool) -> str:
    """The text of the file for ``reference``; see :func:`torchvision_layers.standalone.source`."""
    with named_module(reference) as (runtime, name):
        if runtime.__name__.partition(".")[0] in ("torch", "torchvision"):
            raise ValueError(f"the model must not be part of torch or torchvision, got {reference}")
        value = getattr(runtime, name)
        if isinstance(value, nn.Module):
            check_unwrapped(name, value)
        sources = Sources(runtime)
        module = sources.module(runtime.__name__)
        resolved = sources.resolve(module, (name,))
        if resolved is None or not isinstance(resolved[0], Definition):
            raise ValueError(f"the model must be defined in Python source outside of torch, got {reference}")
        root = resolved[0]
        substitutes = with_twins(sources) if quantizable else Substitutes(sources)
        substitutes.check_portable(root)
        if not quantizable and root.module.startswith(f"{OURS}.quantized."):
            raise ValueError(f"a quantizable twin needs quantizable=True (--quantizable), got {root.name}")
        if root in substitutes.need_no_twin:
            raise ValueError(f"quantizable must be False (no --quantizable) for {root.name}, which needs no twin")
        substitutes.check_twin(root)
        root = substitutes.twins.get(root, root)
        roots = [QUANTIZABLE_MODEL, root] if quantizable else [root]
        collection = collect(sources, roots, substitutes.choose)
        docstring = "" if root.is_ours else sources.module(root.module).tree.get_docstring() or ""
        docstring = header(root, origin(reference, runtime), docstring, quantizable)
        return format_code(_compose(collection, roots, docstring), sort_imports=True)


def _compose(collection: Collection, roots: list[Definition], docstring: str) -> str:
    names = name_all(collection, roots[-1])
    units = sort_units(collection, roots)

    def name_of(prefix: str, name: str) -> str | None:
        module = collection.sources.module(_PREFIXES[prefix])
        resolved = collection.sources.resolve(module, (name,)) if name in module.imports else None
        return names.get(resolved[0]) if resolved else None

    public = ", ".join(f'"{name}"' for name in sorted(names[root] for root in roots))
    origins = dict.fromkeys(use.origin for unit in units for use in unit.uses)
    imports = [_import(origin, names[origin]) for origin in origins if isinstance(origin, External)]
    if any(unit.module.is_future for unit in units):
        imports.append(ImportItem("__future__", "annotations"))
    top = cst.parse_module(f"{docstring}\n\n__all__ = [{public}]\n")
    parts = [AddImportsVisitor(CodemodContext(), imports).transform_module(top).code]
    module, was_block = "", False
    for unit in units:
        is_block = isinstance(unit.statement, (cst.ClassDef, cst.FunctionDef))
        if unit.module.name != module:
            module = unit.module.name
            parts.append(f"\n\n# {_TITLES.get(module, f'From {module}')}\n" + ("\n\n" if is_block else "\n"))
        else:
            parts.append("\n\n" if is_block or was_block else "\n")
        statement = rewrite(unit, names, lambda text: adapt_docstring(text, name_of))
        parts.append(cst.Module([statement]).code)
        was_block = is_block
    return "".join(parts)


def _import(origin: External, name: str) -> ImportItem:
    return ImportItem(origin.module, origin.name, None if origin.name in (None, name) else name)
