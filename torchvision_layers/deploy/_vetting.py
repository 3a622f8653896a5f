"""What a program of torch.export may hold to be loaded: ``torch.export.load`` runs strings and pickles out of the file.

It falls back to unpickling whatever there is, evaluates sizes and guards as Python, and writes names into source code.
What :func:`export` writes needs none of that.
"""

import ast
import io
import json
import re
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch

from ._archive import record, records

__all__ = ["check_program"]

_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_RECORDS = re.compile(
    r"models/model\.json|extra/metadata\.json|archive_format|archive_version|byteorder|\.data/\w+"
    r"|data/weights/weight_\d+|data/constants/tensor_\d+|data/sample_inputs/model\.pt|" + "|".join(_CONFIGS)
)
# Neither quotes nor brackets nor lines: no call and no statement can be written with these.
_NAME = re.compile(r"[\w.:+/ -]*", re.ASCII)
_SPEC_WORDS = {"type", "context", "children_spec", "builtins.tuple", "builtins.dict", "null", "[]"}
_OPERATORS = re.compile(
    "add|and_|eq|floordiv|ge|getitem|gt|invert|le|lshift|lt|mod|mul|ne|neg|not_|or_|pos|pow|rshift|sub|truediv|xor"
)
_LIBRARIES = ("aten", "mkldnn", "onednn", "prims", "quantized", "quantized_decomposed", "torchvision")
_ASSERTION = re.compile(r"Runtime assertion failed for expression (.*) on node '\w+'")  # what torch says when it fails
# Functions of sizes, by the names that sympy and torch write.
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


def check_program(content: bytes, path: Path) -> None:
    """Raises ``ValueError`` for a file in which anything could run but operators of torch."""
    for name in records(content, path):
        if not _RECORDS.fullmatch(name):
            raise ValueError(f"{path} holds a record that deploy.export does not write: {name}")
    if not _is_of_tensors(record(content, "data/sample_inputs/model.pt", path)):
        raise ValueError(f"{path} holds a pickle, which could run anything, in place of inputs")
    for name in _CONFIGS:
        for payload in json.loads(record(content, name, path))["config"].values():
            if payload["use_pickle"] is not False:
                raise ValueError(f"{path} holds a pickle, which could run anything: {payload['path_name']}")
    for place, text in _strings(json.loads(record(content, "models/model.json", path)), ""):
        if place in ("target", "as_operator") and text and not _is_operator(text):
            raise ValueError(f"{path} calls what is not an operator of torch: {text!r}")
        assertion = _ASSERTION.fullmatch(text)
        if not (_NAME.fullmatch(text) or _is_spec(text) or _is_expression(assertion[1] if assertion else text)):
            raise ValueError(f"{path} holds a text that could run as Python: {text!r}")


def _is_of_tensors(content: bytes) -> bool:
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception:  # what a pickle of something else ends in, or bytes that are none
        return False
    return True


def _strings(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """All strings, and the keys under which they stand."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, place)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield "", key
            yield from _strings(item, key)


def _is_operator(name: str) -> bool:
    module, _, rest = name.partition(".")
    if module == "_operator":
        return bool(_OPERATORS.fullmatch(rest))
    if module == "math":
        return rest.isalpha()
    if module != "torch":
        return False
    try:
        found = attrgetter(rest)(torch)
    except AttributeError:
        return True  # torch.export.load finds none either, and says so
    if isinstance(found, torch._ops.OpOverload):
        # Those of other libraries, and two of torch's own, read and write files.
        return found.namespace in _LIBRARIES and found.name().partition(".")[0] not in ("aten::from_file", "aten::save")
    return rest.startswith("sym_") and rest.isidentifier()


def _is_spec(text: str) -> bool:
    """Whether it is the structure of arguments, tuples and dictionaries only."""
    try:
        spec = json.loads(text)
    except ValueError:
        return False
    return isinstance(spec, list) and all(word in _SPEC_WORDS for _, word in _strings(spec, ""))


def _is_expression(text: str) -> bool:
    """Whether it only computes with sizes."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    for node in ast.walk(tree):
        if not isinstance(node, _EXPRESSION):
            return False
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if not _FUNCTIONS.fullmatch(called):
                return False
        if isinstance(node, ast.Attribute) and not _FUNCTIONS.fullmatch(node.attr):
            return False
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and not _NAME.fullmatch(node.value):
            return False
    return True
