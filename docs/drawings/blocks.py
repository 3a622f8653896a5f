"""Diagrams of blocks, drawn from a trace."""

import operator

import torch.fx
from torch import nn

from torchvision_layers import nn as tnn

from .svg import ACTIVATION, CONV, NORM, PLAIN, Sheet

__all__ = ["draw_block"]

_BOX, _SKIP_BOX, _HEIGHT, _STEP = 200, 150, 38, 54
_SUMS = (operator.add, operator.iadd)


class _Tracer(torch.fx.Tracer):
    """Treats squeeze-excitation as one module."""

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        return isinstance(module, tnn.SqueezeExcitation) or not any(module.children())


def draw_block(block: nn.Module) -> Sheet:
    """The branch of a residual block from top to bottom, its skip beside it, and what follows their sum."""
    graph = _Tracer().trace(block.eval())
    modules = dict(block.named_modules())
    join = next(node for node in graph.nodes if node.target in _SUMS)
    branch, skip = sorted((_path_to(arg) for arg in join.args), key=len, reverse=True)
    after = [node for node in _path_to(next(n for n in graph.nodes if n.op == "output").args[0]) if node > join]

    x, right = 24 + _BOX / 2, 24 + _BOX + 40 + _SKIP_BOX / 2
    width = right + _SKIP_BOX / 2 + 24 if skip else right
    sheet = Sheet(width, 0)  # the height is set after drawing
    y = 28.0
    sheet.words(x, y, "input", bold=True)
    fork = y + 18
    lane = right if skip else x + _BOX / 2 + 36
    places = [fork + 22 + _HEIGHT / 2 + _STEP * i for i in range(len(branch))]
    joint = places[-1] + _STEP
    # Draw the skip first, so that boxes cover lines.
    sheet.line([(x, fork), (lane, fork), (lane, joint), (x + 15, joint)], arrow=True)
    sheet.line([(x, y + 10), (x, places[0] - _HEIGHT / 2)], arrow=True)
    for node, place in zip(branch, places, strict=True):
        _box(sheet, x, place, _BOX, *_label(node, modules))
        end = place + _STEP - (14 if node is branch[-1] else _HEIGHT / 2)
        sheet.line([(x, place + _HEIGHT / 2), (x, end)], arrow=True)
    if skip:
        middle = (fork + joint) / 2 - _STEP * (len(skip) - 1) / 2
        for i, node in enumerate(skip):
            _box(sheet, right, middle + _STEP * i, _SKIP_BOX, *_label(node, modules))
    else:
        sheet.words(lane + 8, (fork + joint) / 2, "skip", anchor="start")
    sheet.circle(x, joint, 14)
    sheet.words(x, joint, "+", size=18)
    y = joint + 14
    for node in after:
        sheet.line([(x, y), (x, y + 16)], arrow=True)
        y += 16 + _HEIGHT / 2
        _box(sheet, x, y, _BOX, *_label(node, modules))
        y += _HEIGHT / 2
    sheet.line([(x, y), (x, y + 16)], arrow=True)
    sheet.words(x, y + 28, "output", bold=True)
    sheet.height = y + 46
    return sheet


def _path_to(node: torch.fx.Node) -> list[torch.fx.Node]:
    """The nodes from the input to ``node``, inclusive, along first inputs."""
    path = []
    while node.op != "placeholder":
        path.append(node)
        node = next(n for n in reversed(node.all_input_nodes) if n.op != "get_attr")
    return path[::-1]


def _box(sheet: Sheet, x: float, y: float, width: float, title: str, detail: str, fill: str) -> None:
    sheet.box(x - width / 2, y - _HEIGHT / 2, width, _HEIGHT, fill)
    sheet.words(x, y - (8 if detail else 0), title, bold=bool(detail))
    if detail:
        sheet.words(x, y + 9, detail, size=12)


def _label(node: torch.fx.Node, modules: dict[str, nn.Module]) -> tuple[str, str, str]:
    """Title, detail and fill of the box of a node."""
    if node.op != "call_module":
        return "× layer scale", "", PLAIN
    module = modules[str(node.target)]
    kind = type(module).__name__
    if isinstance(module, nn.Conv2d):
        side = "×".join(str(size) for size in module.kernel_size)
        is_depthwise = module.groups == module.in_channels > 1
        step = f", stride {module.stride[0]}" if module.stride[0] > 1 else ""
        channels = (
            f"{module.in_channels} channels, depthwise"
            if is_depthwise
            else f"{module.in_channels} → {module.out_channels}{step}"
        )
        return f"Conv2d {side}", channels, CONV
    if isinstance(module, nn.Linear):
        return "Linear", f"{module.in_features} → {module.out_features}", CONV
    if isinstance(module, tnn.SqueezeExcitation):
        return kind, f"{module.input_channels} → {module.squeeze_channels} → {module.input_channels}", ACTIVATION
    if isinstance(module, tnn.Permute):
        return "Permute", "channels last" if module.dims[-1] == 1 else "channels first", PLAIN
    return kind, "", NORM if "Norm" in kind else ACTIVATION
