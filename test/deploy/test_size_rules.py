"""The sizes that a file accepts: its smallest and largest, and the rules between them."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from torchvision_layers.deploy.formats.size_rules import describe_sizes, size_check


def text(*guards: str, least: list[int], most: list[int]) -> str:
    program: Any = SimpleNamespace(_guards_code=list(guards))
    return describe_sizes(program, ["x"], [least], [most])


@pytest.mark.parametrize(("size", "is_accepted"), [((1, 8), True), ((4, 8), True), ((0, 8), False), ((5, 8), False)])
def test_bounds(size: tuple[int, int], is_accepted: bool) -> None:
    check = size_check(text(least=[1, 8], most=[4, 8]), ["x"])
    if is_accepted:
        check([size])
        return
    with pytest.raises(ValueError, match=f"x must have a size from 1 to 4 in dimension 0, got {size[0]}"):
        check([size])


@pytest.mark.parametrize("size", [(1, 7), (1, 9), (1, 8, 1)])
def test_fixed_size(size: tuple[int, ...]) -> None:
    check = size_check(text(least=[1, 8], most=[4, 8]), ["x"])
    with pytest.raises(ValueError, match="x must have (size 8 in dimension 1|2 dimensions), got"):
        check([size])


RULES = {
    "torch.sym_max(x.size()[0], x.size()[1]) <= 9": ((9, 3), (3, 10)),
    "torch.sym_min(x.size()[0], x.size()[1]) <= 9": ((90, 9), (10, 11)),
    "x.size()[1] % 3 != 0": ((1, 4), (1, 6)),
    "x.size()[0] // 2 == x.size()[1]": ((9, 4), (9, 5)),
}


@pytest.mark.parametrize("guard", RULES)
def test_rules(guard: str) -> None:
    check = size_check(text(guard, least=[1, 1], most=[99, 99]), ["x"])
    accepted, refused = RULES[guard]
    check([accepted])
    with pytest.raises(ValueError, match="x must have sizes with"):
        check([refused])


@pytest.mark.parametrize("guard", ["x.sum() > 0", "__import__('os')", "x.size()[0] if 1 else 2", "'a' * x.size()[0]"])
def test_other_guards_are_refused(guard: str) -> None:
    with pytest.raises(RuntimeError, match="depends on its input in a way that a file cannot store"):
        text(guard, least=[1, 1], most=[9, 9])
    sizes = json.loads(text(least=[1, 1], most=[9, 9])) | {"rules": [guard]}
    with pytest.raises(ValueError, match="a rule must contain sizes and arithmetic only"):
        size_check(json.dumps(sizes), ["x"])
