"""A layer put into the operators of torchvision: a file of its own, or in the place of the class of that name."""

import ast
import re
from pathlib import Path

from torch import nn

from .. import nn as tnn
from ..standalone._sources import Definition
from ._checkout import DOOR, Checkout
from ._docstrings import EQUIVALENTS
from ._edits import Import, bound_names, with_import
from ._source import Part, Source, class_of, definitions_of, source_of

__all__ = ["place", "stable_layer"]

_OPS = "torchvision.ops"
_STABLE: dict[str, type[nn.Module]] = {name: getattr(tnn, name) for name in tnn.__all__}
#: Names in which a capital letter begins no word.
_WORDS = {"ConvNeXt": "Convnext", "MBConv": "Mbconv"}


def stable_layer(name: str) -> type[nn.Module]:
    """The stable layer of that name.

    Errors: ``ValueError`` for another name, a staged layer, or one that torchvision has as it is.
    """
    if name in _STABLE:
        layer = _STABLE[name]
        if _base(layer) is not None:
            raise ValueError(
                f"{name} is {_OPS}.{name} already: the layer here derives from it and adds checks of its arguments "
                "and input, or another way to compute the same; there is no layer to add"
            )
        if name in EQUIVALENTS:
            raise ValueError(
                f"{name} is {_OPS}.{EQUIVALENTS[name]} already, by another name: calls and checkpoints of one fit the "
                "other; there is no layer to add"
            )
        return layer
    from ..experimental import nn as enn

    if name in enn.__all__:
        raise ValueError(f"{name} is a staged layer: it is promoted here before it is proposed to torchvision")
    raise ValueError(f"the layer must be one of torchvision_layers.nn, got {name!r}: {', '.join(tnn.__all__)}")


def _base(layer: type[nn.Module]) -> type | None:
    """The class of the same name in torchvision that a layer derives from."""
    own = (cls for cls in layer.__mro__ if cls.__module__.startswith(f"{_OPS}."))
    return next((cls for cls in own if cls.__name__ == layer.__name__), None)


def place(layer: type[nn.Module], checkout: Checkout) -> tuple[str, str]:
    """The file of the checkout that is to hold the layer, and its new text.

    A class that torchvision publishes by the same name is replaced where it stands, if calls and subclasses of it keep
    working. Everything else gets a file of its own.

    Errors: ``ValueError`` where the layer is there already, or would break what is there.
    """
    name = layer.__name__
    homes = _homes(checkout)
    given = _given(layer, checkout, homes)
    if name not in homes:
        file = f"torchvision/ops/{_snake(name)}.py"
        if checkout.text(file):
            raise ValueError(f"{file} must not be there yet")
        return file, _new_file(source_of(layer, given))
    file = homes[name]
    text = checkout.text(file)
    old = class_of(text, name)
    if old is None:
        raise ValueError(f"{file} must define {name}, which {DOOR} imports from it")
    kept = _methods_in(text)
    source = source_of(layer, given, keep=kept)
    if _segment(text, old) == source.layer:
        raise ValueError(f"{name} of {file} is this layer already")
    new = class_of(source.layer, name)
    assert new is not None
    _check_contract(old, new, file)
    return file, _replaced(text, name, source, file)


def _homes(checkout: Checkout) -> dict[str, str]:
    """The file of each name that the door of the operators imports."""
    found = {}
    for node in ast.parse(checkout.text(DOOR)).body:
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
            for alias in node.names:
                found[alias.name] = f"torchvision/ops/{node.module.replace('.', '/')}.py"
    return found


def _given(layer: type[nn.Module], checkout: Checkout, homes: dict[str, str]) -> dict[Definition, Import]:
    """What the layer can import from the checkout: layers of torchvision, and those of ours that are there already."""
    given = {
        Definition(other.__module__, name): Import(f".{Path(homes[name]).stem}", name)
        for name, other in _STABLE.items()
        if _base(other) is not None and name in homes
    }
    needed = {definition.name for definition in definitions_of(layer, given)} - {layer.__name__}
    ours = {}
    for name in needed & _STABLE.keys() & homes.keys():
        there = class_of(checkout.text(homes[name]), name)
        here = class_of(source_of(_STABLE[name], given).layer, name)
        if there is not None and here is not None and _code(there) == _code(here):
            ours[Definition(_STABLE[name].__module__, name)] = Import(f".{Path(homes[name]).stem}", name)
    return given | ours


def _code(node: ast.ClassDef) -> str:
    """What a class does, without its docstring."""
    return ast.unparse(ast.Module(body=node.body[1:], type_ignores=[]))


def _snake(name: str) -> str:
    for word, other in _WORDS.items():
        name = name.replace(word, other)
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _new_file(source: Source) -> str:
    text = ""
    for part in source.imports:
        text = with_import(text, part) if text else _first_import(part)
    blocks = [*(part.text for part in source.helpers), source.layer]
    return text.rstrip("\n") + "\n\n\n" + _joined(blocks)


def _first_import(part: Import) -> str:
    return f"from {part.module} import {part.name}\n" if part.name else f"import {part.module}\n"


def _joined(blocks: list[str]) -> str:
    """Blocks of the top level, with two lines between them."""
    return "\n\n".join(blocks)


def _segment(text: str, node: ast.stmt) -> str:
    lines = text.splitlines(keepends=True)
    decorators = [item.lineno for item in getattr(node, "decorator_list", [])]
    start = min([node.lineno, *decorators])
    while start > 1 and lines[start - 2].startswith("#"):
        start -= 1
    return "".join(lines[start - 1 : node.end_lineno])


def _definition(text: str, name: str) -> ast.stmt | None:
    """The statement of a file that binds a name."""
    for node in ast.parse(text).body:
        if getattr(node, "name", None) == name:
            return node
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return node
    return None


def _methods_in(text: str) -> frozenset[str]:
    """Methods of private classes of a file, which helpers of layers that came before may still need."""
    return frozenset(
        method.name
        for node in ast.parse(text).body
        if isinstance(node, ast.ClassDef) and node.name.startswith("_")
        for method in node.body
        if isinstance(method, ast.FunctionDef)
    )


def _replaced(text: str, name: str, source: Source, file: str) -> str:
    """The file with another class of that name, its helpers before all classes, and the imports of all."""
    for i, part in enumerate(source.helpers):
        there = _definition(text, part.name)
        if there is None:
            text = _inserted(text, part, source.helpers[i - 1] if i else None)
            continue
        old = _segment(text, there)
        if old != part.text and not isinstance(there, ast.ClassDef):
            raise ValueError(f"{file} has another {part.name} than {name} needs")
        text = text.replace(old, part.text)
    old_class = class_of(text, name)
    assert old_class is not None
    text = text.replace(_segment(text, old_class), source.layer)
    bound = bound_names(text)
    for new in source.imports:
        if new.bound not in bound or new.name is None:
            text = with_import(text, new)
    return text


def _inserted(text: str, part: Part, before: Part | None) -> str:
    """The file with one more helper, behind the one before it, or before the first class or function."""
    lines = text.splitlines(keepends=True)
    node = _definition(text, before.name) if before is not None else None
    if node is not None:
        lines.insert(node.end_lineno or 0, f"\n\n{part.text}")
        return "".join(lines)
    first = next(n for n in ast.parse(text).body if isinstance(n, (ast.ClassDef, ast.FunctionDef)))
    lines.insert(text.count("\n", 0, text.index(_segment(text, first))), f"{part.text}\n\n")
    return "".join(lines)


def _check_contract(old: ast.ClassDef, new: ast.ClassDef, file: str) -> None:
    """Raises unless all calls of the old class, and subclasses that use its methods, mean the same of the new one."""
    if (bases := _bases(old)) != _bases(new):
        raise ValueError(f"{old.name} of {file} derives from {', '.join(bases)}, which must stay so in its place")
    before, after = _methods(old), _methods(new)
    for name, method in before.items():
        if name not in after and not name.startswith("__"):
            raise ValueError(f"{old.name} of {file} has {name}, which this layer lacks: subclasses may call it")
        if name not in after:
            continue
        for i, (parameter, default) in enumerate(_parameters(method)):
            others = _parameters(after[name])
            if i >= len(others) or others[i] != (parameter, default):
                raise ValueError(
                    f"{old.name}.{name} of {file} takes {parameter}{f'={default}' if default else ''}, which must stay "
                    "so in its place"
                )


def _bases(node: ast.ClassDef) -> list[str]:
    return [ast.unparse(base).removeprefix("torch.") for base in node.bases]


def _methods(node: ast.ClassDef) -> dict[str, ast.FunctionDef]:
    return {method.name: method for method in node.body if isinstance(method, ast.FunctionDef)}


def _parameters(method: ast.FunctionDef) -> list[tuple[str, str]]:
    """Parameters that may be given by place, with their defaults."""
    args = [*method.args.posonlyargs, *method.args.args]
    defaults = [""] * (len(args) - len(method.args.defaults)) + [ast.unparse(d) for d in method.args.defaults]
    return [(arg.arg, default.removeprefix("torch.")) for arg, default in zip(args, defaults, strict=True)]
