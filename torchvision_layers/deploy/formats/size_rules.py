"""The input sizes that an exported program is valid for, as text in a file."""

import ast
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from torch.export import ExportedProgram

__all__ = ["describe_sizes", "size_check"]

_SIZE = re.compile(r"L\['\w+'\]\.size\(\)\[(\d+)\]")
_ALLOWED_NODES = (
    *(ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Subscript, ast.Call, ast.Compare, ast.cmpop),
    *(ast.BoolOp, ast.boolop, ast.BinOp, ast.UnaryOp, ast.unaryop, ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod),
)
_FUNCTIONS: dict[str, Callable[..., int]] = {"max": max, "min": min}


def describe_sizes(program: ExportedProgram, minimum: Sequence[int], maximum: Sequence[int]) -> str:
    """JSON of the smallest and the largest size of each dimension, and of the guards on sizes in the program.

    Errors: ``RuntimeError`` for a guard that is not arithmetic of sizes.
    """
    rules = []
    # Without guards, a program computes for every size what the forward computes for the sizes of the example.
    for guard in program._guards_code:
        rule = _SIZE.sub(r"size[\1]", guard).replace("torch.sym_max", "max").replace("torch.sym_min", "min")
        try:
            _compile(rule)
        except ValueError as error:
            raise RuntimeError(
                f"the forward depends on its input in a way that a file cannot store: {guard}"
            ) from error
        rules.append(rule)
    return json.dumps({"least": list(minimum), "most": list(maximum), "rules": rules})


def size_check(text: str) -> Callable[[tuple[int, ...]], None]:
    """A function that raises ``ValueError`` for input sizes outside of a text from :func:`describe_sizes`."""
    sizes = json.loads(text)
    bounds = list(zip(sizes["least"], sizes["most"], strict=True))
    rules = [(rule, _compile(rule)) for rule in sizes["rules"]]
    accepted = set[tuple[int, ...]]()

    def check(size: tuple[int, ...]) -> None:
        if size in accepted:
            return
        if len(size) != len(bounds):
            raise ValueError(f"input must have {len(bounds)} dimensions, got {len(size)}")
        for i, (minimum, maximum) in enumerate(bounds):
            if not minimum <= size[i] <= maximum:
                rule = f"size {minimum}" if minimum == maximum else f"a size from {minimum} to {maximum}"
                raise ValueError(f"input must have {rule} in dimension {i}, got {size[i]}")
        for rule, code in rules:
            if not eval(code, {"__builtins__": {}, **_FUNCTIONS, "size": size}):
                raise ValueError(f"input must have sizes with {rule}, got {list(size)}")
        accepted.add(size)

    return check


def _compile(rule: str) -> Any:
    """The code of a rule. Errors: ``ValueError`` if it contains anything but sizes, numbers and arithmetic."""
    tree = ast.parse(rule, mode="eval")
    for node in ast.walk(tree):
        is_name = not isinstance(node, ast.Name) or node.id in {"size", *_FUNCTIONS}
        is_number = not isinstance(node, ast.Constant) or isinstance(node.value, (int, float))
        if not (isinstance(node, _ALLOWED_NODES) and is_name and is_number):
            raise ValueError(f"a rule must contain sizes and arithmetic only, got {rule!r}")
    return compile(tree, "<rule>", "eval")
