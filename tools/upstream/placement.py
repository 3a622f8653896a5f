"""The place of a layer in ``torchvision.ops``: a file of its own, or that of the class it replaces."""

import ast
import re
from collections.abc import Callable
from functools import cache

import libcst as cst
from libcst import matchers as m
from torch import nn

from torchvision_layers import nn as tnn
from torchvision_layers._source.sources import Definition

from .checkout import INIT, Checkout
from .edits import add_imports, add_public_name, sort_imports
from .source import layer_source

__all__ = ["is_torchvision_layer", "place"]

# Names in which a capital letter does not begin a word.
_WORDS = {"ConvNeXt": "Convnext", "MBConv": "Mbconv"}
_NAME = m.SaveMatchedNode(m.Name(), "name")
_ASSIGNMENT = m.Assign([m.AssignTarget(_NAME)]) | m.AnnAssign(_NAME)
_BINDING = m.ClassDef(_NAME) | m.FunctionDef(_NAME) | m.SimpleStatementLine([_ASSIGNMENT])


def is_torchvision_layer(layer: type[nn.Module]) -> bool:
    """Whether a layer derives from torchvision's layer of the same name."""
    return any(
        cls.__module__.startswith("torchvision.ops.") and cls.__name__ == layer.__name__ for cls in layer.__mro__
    )


def place(layer: type[nn.Module], checkout: Checkout) -> dict[str, str]:
    """Adds a layer to ``torchvision.ops``; returns the new text of each file that changes, the layer's first.

    A public class of the same name is replaced if its callers and subclasses keep working.

    Raises ``ValueError`` if the checkout has the layer already, or if the replacement would break a caller.
    """
    name = layer.__name__
    module_of = _search(checkout)
    if name in checkout.operators:
        file = f"torchvision/ops/{checkout.operators[name]}.py"
        text = checkout.read(file)
        imports, code = layer_source(layer, module_of, checkout.operators, _private_methods(text))
        return {file: _replace(text, name, imports, code, file)}
    module = _snake_case(name)
    file = f"torchvision/ops/{module}.py"
    if (checkout.path / file).exists():
        raise ValueError(f"{file} must not exist yet")
    imports, code = layer_source(layer, module_of, checkout.operators)
    public = add_public_name(add_imports(checkout.read(INIT), [f"from .{module} import {name}\n"]), name)
    return {file: f"{sort_imports(''.join(imports))}\n\n{code}", INIT: public}


def _search(checkout: Checkout) -> Callable[[Definition], str | None]:
    """A function that finds the module of ``torchvision.ops`` that has a layer, torchvision's own or ours."""

    @cache
    def module_of(definition: Definition) -> str | None:
        name, module = definition.name, checkout.operators.get(definition.name)
        layer = getattr(tnn, name) if name in tnn.__all__ else None
        if module is None or layer is None or layer.__module__ != definition.module:
            return None
        if is_torchvision_layer(layer):
            return module
        old = _class(checkout.read(f"torchvision/ops/{module}.py"), name)
        new = _class(layer_source(layer, module_of, checkout.operators)[1], name)
        return module if _code(old) == _code(new) else None

    return module_of


def _class(text: str, name: str) -> ast.ClassDef:
    return next(node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == name)


def _code(cls: ast.ClassDef) -> str:
    """The code of a class without its docstring."""
    return "\n".join(map(ast.unparse, cls.body[1:]))


def _snake_case(name: str) -> str:
    for word, spelling in _WORDS.items():
        name = name.replace(word, spelling)
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _private_methods(text: str) -> set[str]:
    """The methods of a file's private classes; layers that an earlier change replaced may call them."""
    classes = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name.startswith("_")]
    return {node.name for cls in classes for node in cls.body if isinstance(node, ast.FunctionDef)}


def _replace(text: str, name: str, imports: list[str], code: str, file: str) -> str:
    """Replaces a class of a file, and adds the helpers and imports that the new one needs."""
    _check_contract(_class(text, name), _class(code, name), file)
    module = cst.parse_module(text)
    body = list(module.body)
    position = next(i for i, node in enumerate(body) if isinstance(node, (cst.ClassDef, cst.FunctionDef)))
    # The comments of a first statement would belong to the module.
    for node in cst.parse_module(f"pass\n\n\n{code}").body[1:]:
        names = list(map(_bound_name, body))
        helper = _bound_name(node)
        if helper not in names:
            names.insert(position, helper)
            body.insert(position, node)
        elif isinstance(node, cst.ClassDef):
            body[names.index(helper)] = node
        elif module.code_for_node(node).strip() != module.code_for_node(body[names.index(helper)]).strip():
            raise ValueError(f"{file} must not have another {helper} than {name} needs")
        position = names.index(helper) + 1
    aliases = [cst.ensure_type(alias, cst.ImportAlias) for alias in m.findall(module, m.ImportAlias())]
    bound_names = {alias.evaluated_alias or alias.evaluated_name for alias in aliases} | set(map(_bound_name, body))
    missing = [line for line in imports if line.split()[-1] not in bound_names]
    return add_imports(module.with_changes(body=body).code, missing)


def _bound_name(statement: cst.CSTNode) -> str | None:
    match = m.extract(statement, _BINDING)
    return cst.ensure_type(match["name"], cst.Name).value if match else None


def _check_contract(old: ast.ClassDef, new: ast.ClassDef, file: str) -> None:
    """Raises ``ValueError`` unless all calls of the old class, and subclasses that use its methods, keep working."""
    if ast.unparse(old) == ast.unparse(new):
        raise ValueError(f"{file} must not have {old.name} yet, it has this very class")
    bases = [[ast.unparse(base).removeprefix("torch.") for base in cls.bases] for cls in (old, new)]
    if bases[0] != bases[1]:
        raise ValueError(f"{old.name} must derive from {', '.join(bases[0])} as in {file}, got {', '.join(bases[1])}")
    methods = _methods(new)
    for name, parameters in _methods(old).items():
        if name not in methods and not name.startswith("__"):
            raise ValueError(f"{old.name} must have {name} as in {file}, subclasses may call it")
        if name in methods and methods[name][: len(parameters)] != parameters:
            raise ValueError(
                f"{old.name}.{name} must begin with the parameters ({', '.join(parameters)}) as in {file}, got "
                f"({', '.join(methods[name])})"
            )


def _methods(cls: ast.ClassDef) -> dict[str, list[str]]:
    """The positional parameters of each method, with their defaults."""
    methods = {}
    for node in cls.body:
        if isinstance(node, ast.FunctionDef):
            names = [arg.arg for arg in [*node.args.posonlyargs, *node.args.args]]
            defaults = [f"={ast.unparse(default).removeprefix('torch.')}" for default in node.args.defaults]
            defaults = [""] * (len(names) - len(defaults)) + defaults
            methods[node.name] = [name + default for name, default in zip(names, defaults, strict=True)]
    return methods
