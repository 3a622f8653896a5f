"""The sizes of inputs that an exported program holds for, as text that goes into a file."""

import ast
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from torch.export import ExportedProgram

__all__ = ["checker", "sizes_of"]

_SIZE = re.compile(r"L\['\w+'\]\.size\(\)\[(\d+)\]")
_KNOWN = (
    *(ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Subscript, ast.Call, ast.Compare, ast.cmpop),
    *(ast.BoolOp, ast.boolop, ast.BinOp, ast.UnaryOp, ast.unaryop, ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod),
)
_FUNCTIONS: dict[str, Callable[..., int]] = {"max": max, "min": min}


def sizes_of(program: ExportedProgram, least: Sequence[int], most: Sequence[int]) -> str:
    """JSON of the smallest and largest size of each dimension, and of the rules that torch found while exporting.

    Args:
        program: of one input.
        least: the smallest sizes.
        most: the largest sizes.

    Errors: ``RuntimeError`` for a rule that cannot be written down.
    """
    rules = []
    # Without them a program computes for every size what the forward does for those of the example.
    for guard in program._guards_code:
        rule = _SIZE.sub(r"size[\1]", guard).replace("torch.sym_max", "max").replace("torch.sym_min", "min")
        try:
            _compiled(rule)
        except ValueError as error:
            raise RuntimeError(f"the forward depends on the input in a way that a file cannot hold: {guard}") from error
        rules.append(rule)
    return json.dumps({"least": list(least), "most": list(most), "rules": rules})


def checker(text: str) -> Callable[[tuple[int, ...]], None]:
    """A function that raises ``ValueError`` for sizes that do not fit to what ``sizes_of`` wrote."""
    described = json.loads(text)
    bounds = list(zip(described["least"], described["most"], strict=True))
    rules = [(rule, _compiled(rule)) for rule in described["rules"]]
    accepted = set[tuple[int, ...]]()

    def check(size: tuple[int, ...]) -> None:
        if size in accepted:
            return
        if len(size) != len(bounds):
            raise ValueError(f"input must have {len(bounds)} dimensions, got {len(size)}")
        for i, (least, most) in enumerate(bounds):
            if not least <= size[i] <= most:
                rule = f"size {least}" if least == most else f"a size from {least} to {most}"
                raise ValueError(f"input must have {rule} in dimension {i}, got {size[i]}")
        for rule, code in rules:
            if not eval(code, {"__builtins__": {}, **_FUNCTIONS, "size": size}):
                raise ValueError(f"input must have sizes with {rule}, got {list(size)}")
        accepted.add(size)

    return check


def _compiled(rule: str) -> Any:
    """Code that holds sizes, numbers and arithmetic only. Errors: ``ValueError`` for a rule with anything else."""
    tree = ast.parse(rule, mode="eval")
    for node in ast.walk(tree):
        is_name = not isinstance(node, ast.Name) or node.id in {"size", *_FUNCTIONS}
        is_number = not isinstance(node, ast.Constant) or isinstance(node.value, (int, float))
        if not (isinstance(node, _KNOWN) and is_name and is_number):
            raise ValueError(f"a rule must hold sizes and arithmetic only, got {rule!r}")
    return compile(tree, "<rule>", "eval")
