"""Allowlist validation of programs of torch.export: ``torch.export.load`` runs strings and pickles from their files.

It falls back to unpickling arbitrary objects, evaluates sizes and guards as Python, and writes names into source code.
Files of :func:`export` need none of that.
"""

import ast
import io
import json
import re
from collections.abc import Iterator
from operator import attrgetter
from typing import Any

import torch

from .archive import Archive

__all__ = ["check_program", "is_operator", "is_plain_key"]

_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_RECORDS = re.compile(
    r"models/model\.json|extra/metadata\.json|archive_format|archive_version|byteorder|\.data/\w+"
    r"|data/weights/weight_\d+|data/constants/tensor_\d+|data/sample_inputs/model\.pt|" + "|".join(_CONFIGS)
)
# No quotes, brackets or line breaks: these characters cannot form a call or a statement.
_NAME = re.compile(r"[\w.:+/ -]*", re.ASCII)
_KEY = re.compile(r"[\w.,:+/ -]*")
# Those of torch.einsum. Nor can commas and an arrow.
_EQUATION = re.compile(r"[A-Za-z., ]+(?:->[A-Za-z., ]*)?")
_SPEC_WORDS = {"type", "context", "children_spec", "builtins.tuple", "builtins.list", "builtins.dict", "null"}
_OPERATORS = re.compile(
    "add|and_|eq|floordiv|ge|getitem|gt|invert|le|lshift|lt|mod|mul|ne|neg|not_|or_|pos|pow|rshift|sub|truediv|xor"
)
_LIBRARIES = ("aten", "mkldnn", "onednn", "prims", "quantized", "quantized_decomposed", "torchvision")
_ASSERTION = re.compile(r"Runtime assertion failed for expression (.*) on node '\w+'")  # torch's message
# Functions of sizes, by the names that sympy and torch write for them.
_FUNCTIONS = re.compile(
    "Abs|Add|And|CeilDiv|CeilToInt|CleanDiv|Eq|Equality|Float|FloatPow|FloatTrueDiv|FloorDiv|FloorToInt|Ge|GreaterThan"
    "|Gt|Identity|IntTrueDiv|Integer|LShift|Le|LessThan|Lt|Max|Min|Mod|ModularIndexing|Mul|Ne|Not|Or|Pow|PowByNatural"
    "|PythonMod|RShift|Rational|RoundDecimal|RoundToInt|StrictGreaterThan|StrictLessThan|Symbol|ToFloat|TruncToFloat"
    "|TruncToInt|Unequality|Where|abs|ceiling|floor|max|min|size|stride|sym_max|sym_min|sym_not|sym_sum"
)
_EXPRESSION = (
    *(ast.Expression, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Call, ast.keyword, ast.Constant, ast.Name),
    *(ast.Subscript, ast.Attribute, ast.boolop, ast.operator, ast.unaryop, ast.cmpop, ast.expr_context, ast.IfExp),
)


def check_program(archive: Archive) -> None:
    """Raises ``ValueError`` if anything in the file could run, except operators of torch."""
    path = archive.path
    for name in archive:
        if not _RECORDS.fullmatch(name):
            raise ValueError(f"{path} contains a record that deploy.export does not write: {name}")
    if not _contains_only_tensors(archive.read("data/sample_inputs/model.pt")):
        raise ValueError(f"{path} contains a pickle that could run code in place of its inputs")
    for name in _CONFIGS:
        for payload in json.loads(archive.read(name))["config"].values():
            if payload["use_pickle"] is not False:
                raise ValueError(f"{path} contains a pickle that could run code: {payload['path_name']}")
    for key, text in _strings(json.loads(archive.read("models/model.json")), ""):
        if key in ("target", "as_operator") and text and not is_operator(text):
            raise ValueError(f"{path} calls a function that is not an operator of torch: {text!r}")
        assertion = _ASSERTION.fullmatch(text)
        is_plain = _NAME.fullmatch(text) or _EQUATION.fullmatch(text) or _is_spec(text)
        if not (is_plain or _is_expression(assertion[1] if assertion else text)):
            raise ValueError(f"{path} contains text that could run as Python: {text!r}")


def _contains_only_tensors(content: bytes) -> bool:
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception:  # torch raises many types for other pickles and for damaged bytes
        return False
    return True


def _strings(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """All strings of a JSON value, each with the key that it belongs to."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, key)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield "", name
            yield from _strings(item, name)


def is_operator(name: str) -> bool:
    """Whether a program of torch.export may call what it stores under this name."""
    module, _, rest = name.partition(".")
    if module == "_operator":
        return bool(_OPERATORS.fullmatch(rest))
    if module == "math":
        return rest.isalpha()
    if module != "torch":
        return False
    try:
        value = attrgetter(rest)(torch)
    except AttributeError:
        return True  # torch.export.load does not find it either, and raises
    if isinstance(value, torch._ops.OpOverload):
        # Operators of other libraries, and two of torch's own, read and write files.
        return value.namespace in _LIBRARIES and value.name().partition(".")[0] not in ("aten::from_file", "aten::save")
    return rest.startswith("sym_") and rest.isidentifier()


def _is_spec(text: str) -> bool:
    """Whether ``text`` describes arguments or results that consist of tuples, lists and dictionaries only."""
    try:
        spec = json.loads(text)
        if not isinstance(spec, list):
            return False
        return all(word in _SPEC_WORDS or (key == "context" and _are_keys(word)) for key, word in _strings(spec, ""))
    except ValueError:
        return False


def _are_keys(text: str) -> bool:
    """Whether ``text`` is a list of keys of a dictionary that a file may hold."""
    keys = json.loads(text)
    return isinstance(keys, list) and all(map(is_plain_key, keys))


def is_plain_key(key: object) -> bool:
    """Whether a key of a dictionary is a number, ``None``, or a text that cannot be part of a call or statement."""
    return bool(_KEY.fullmatch(key)) if isinstance(key, str) else isinstance(key, int | float | None)


def _is_expression(text: str) -> bool:
    """Whether ``text`` is arithmetic of sizes and nothing else."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    for node in ast.walk(tree):
        if not isinstance(node, _EXPRESSION):
            return False
        if isinstance(node, ast.Call):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if not _FUNCTIONS.fullmatch(function):
                return False
        if isinstance(node, ast.Attribute) and not _FUNCTIONS.fullmatch(node.attr):
            return False
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and not _NAME.fullmatch(node.value):
            return False
    return True
