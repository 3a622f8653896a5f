"""The input sizes that an exported program is valid for, as text in a file."""

import ast
import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import Any

from torch.export import ExportedProgram

from ..._utils import exporting

__all__ = ["always_holds", "can_store", "check_rules", "describe_sizes", "holds", "size_check", "size_rules"]

_ALLOWED_NODES = (
    *(ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Subscript, ast.Call, ast.Compare, ast.cmpop),
    *(ast.BoolOp, ast.boolop, ast.BinOp, ast.UnaryOp, ast.unaryop, ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod),
)
_FUNCTIONS: dict[str, Callable[..., int]] = {"max": max, "min": min}


def describe_sizes(
    program: ExportedProgram, sources: Sequence[str], minimum: Sequence[list[int]], maximum: Sequence[list[int]]
) -> str:
    """JSON of the smallest and the largest size of each dimension, and of :func:`size_rules`."""
    rules = size_rules(program, sources)
    least, most = (minimum[0], maximum[0]) if len(sources) == 1 else (list(minimum), list(maximum))
    return json.dumps({"least": least, "most": most, "rules": rules})


def size_rules(program: ExportedProgram, sources: Sequence[str]) -> list[str]:
    """The guards on sizes in a program, as expressions in Python.

    ``sources`` are the names of the inputs in the guards. Rules call the sizes ``size[dimension]`` or, if there are
    several inputs, ``size[input][dimension]``.

    Errors: ``RuntimeError`` for a guard that is not arithmetic of sizes.
    """
    # Without guards, a program computes for every size what the forward computes for the sizes of the example.
    return rules_of(program._guards_code, sources)


def can_store(guards: Iterable[str], sources: Sequence[str]) -> bool:
    """Whether guards can be rules in a file."""
    try:
        rules_of(guards, sources)
    except RuntimeError:
        return False
    return True


def rules_of(guards: Iterable[str], sources: Sequence[str]) -> list[str]:
    """The rules that guards are; see :func:`size_rules`."""
    rules = []
    for guard in guards:
        rule = guard.replace("torch.sym_max", "max").replace("torch.sym_min", "min")
        for i, source in enumerate(sources):
            size = r"size[\1]" if len(sources) == 1 else rf"size[{i}][\1]"
            rule = re.sub(re.escape(source) + r"\.size\(\)\[(\d+)\]", size, rule)
        try:
            _compile(rule)
        except ValueError as error:
            raise RuntimeError(
                f"the forward depends on its input in a way that a file cannot store: {guard}"
            ) from error
        rules.append(rule)
    return rules


def holds(rule: str, shapes: Sequence[Sequence[int]]) -> bool:
    """Whether the shapes of the inputs satisfy a rule."""
    size = shapes[0] if len(shapes) == 1 else shapes
    names: dict[str, Any] = {"__builtins__": {}, **_FUNCTIONS, "size": size}
    return exporting.holds(partial(eval, _compile(rule), names))


def always_holds(rule: str, shapes: Sequence[Sequence[int]]) -> bool:
    """Whether a rule is a lower bound of a sum or product of sizes that even sizes of one satisfy.

    ``shapes`` are any that have the dimensions of the inputs. torch.export leaves such rules for most models.
    """
    match ast.parse(rule, mode="eval").body:
        case ast.Compare(ast.Constant(), [ast.Lt() | ast.LtE()], [grows]):
            pass
        case ast.Compare(grows, [ast.Gt() | ast.GtE()], [ast.Constant()]):
            pass
        case _:
            return False
    growing = (ast.BinOp, ast.Add, ast.Mult, ast.Constant, ast.Subscript, ast.Name, ast.Load)
    return all(isinstance(node, growing) for node in ast.walk(grows)) and holds(rule, [[1] * len(s) for s in shapes])


def check_rules(rules: Sequence[str], names: Sequence[str], shapes: Sequence[Sequence[int]]) -> None:
    """Errors: ``ValueError`` for shapes of the inputs ``names`` that break a rule."""
    for rule in rules:
        if not holds(rule, shapes):
            shown = [list(shape) for shape in shapes]
            raise ValueError(
                f"{' and '.join(names)} must have sizes with {rule}, got {shown[0] if len(names) == 1 else shown}"
            )


def size_check(text: str, names: Sequence[str]) -> Callable[[list[tuple[int, ...]]], None]:
    """A function that raises ``ValueError`` for sizes of inputs outside of a text from :func:`describe_sizes`."""
    sizes = json.loads(text)
    is_single = len(names) == 1
    least, most = ([sizes["least"]], [sizes["most"]]) if is_single else (sizes["least"], sizes["most"])
    bounds = [list(zip(*pair, strict=True)) for pair in zip(least, most, strict=True)]
    rules = sizes["rules"]
    for rule in rules:
        _compile(rule)
    accepted = set[tuple[tuple[int, ...], ...]]()

    def check(shapes: list[tuple[int, ...]]) -> None:
        if tuple(shapes) in accepted:
            return
        for name, size, input_bounds in zip(names, shapes, bounds, strict=True):
            if len(size) != len(input_bounds):
                raise ValueError(f"{name} must have {len(input_bounds)} dimensions, got {len(size)}")
            for i, (minimum, maximum) in enumerate(input_bounds):
                if not minimum <= size[i] <= maximum:
                    rule = f"size {minimum}" if minimum == maximum else f"a size from {minimum} to {maximum}"
                    raise ValueError(f"{name} must have {rule} in dimension {i}, got {size[i]}")
        check_rules(rules, names, shapes)
        accepted.add(tuple(shapes))

    return check


@cache
def _compile(rule: str) -> Any:
    """The code of a rule. Errors: ``ValueError`` if it contains anything but sizes, numbers and arithmetic."""
    tree = ast.parse(rule, mode="eval")
    for node in ast.walk(tree):
        is_name = not isinstance(node, ast.Name) or node.id in {"size", *_FUNCTIONS}
        is_number = not isinstance(node, ast.Constant) or isinstance(node.value, (int, float))
        if not (isinstance(node, _ALLOWED_NODES) and is_name and is_number):
            raise ValueError(f"a rule must contain sizes and arithmetic only, got {rule!r}")
    return compile(tree, "<rule>", "eval")
