"""Diagrams of layers with several inputs, branches or outputs, drawn from a trace."""

import operator
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.fx
from torch import nn
from torch.nn import functional as F

from torchvision_layers import nn as tnn

from .svg import ACTIVATION, CONV, NORM, PLAIN, Sheet

__all__ = ["draw_flow"]

_WIDTH, _LANE, _HEIGHT, _STEP = 158, 26, 38, 66
_LABELS = {torch.cat: "concatenation", F.interpolate: "resize", operator.add: "+"}


class _Tracer(torch.fx.Tracer):
    """Treats blocks as one module, but not the layer itself, nor what only contains modules."""

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        return isinstance(module, (tnn.ConvNormAct, tnn.BasicBlock)) or not any(module.children())


class _Calls(nn.Module):
    """A layer with tensors as inputs, whatever it takes."""

    def __init__(self, layer: nn.Module, call: Callable[..., object]) -> None:
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> object:
        return self.call(self.layer, a, b, c)


def draw_flow(
    layer: nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...], call: Callable[..., object]
) -> Sheet:
    """The operations of a layer from top to bottom, in ranks, with a line for each tensor.

    Args:
        layer: the layer.
        inputs: names of its inputs, at most three.
        outputs: names of its outputs.
        call: calls the layer with the first of three tensors.
    """
    graph = _Tracer().trace(_Calls(layer.eval(), call))
    modules = dict(_Calls(layer, call).named_modules())
    places = [node for node in graph.nodes if node.op == "placeholder"][: len(inputs)]
    labels = {node: (name, "", "") for node, name in zip(places, inputs, strict=True)}
    parents: dict[object, list[object]] = {node: [] for node in places}
    for node in graph.nodes:
        if node.op == "call_module" or node.target in _LABELS:
            labels[node] = _label(node, modules)
            arguments = node.all_input_nodes[:1] if node.target is F.interpolate else node.all_input_nodes
            parents[node] = [source for argument in arguments for source in _sources(argument, labels)]
    (result,) = (node for node in graph.nodes if node.op == "output")
    for name, node in zip(outputs, result.all_input_nodes, strict=True):
        labels[name], parents[name] = (name, "", ""), _sources(node, labels)
    return _draw(labels, parents, places, set(outputs))


def _sources(node: torch.fx.Node, labels: dict[object, object]) -> list[object]:
    """The nodes with a label that ``node`` is made of."""
    if node in labels:
        return [node]
    return list(dict.fromkeys(source for other in node.all_input_nodes[:1] for source in _sources(other, labels)))


def _label(node: torch.fx.Node, modules: dict[str, nn.Module]) -> tuple[str, str, str]:
    """Title, detail and fill of a box."""
    if node.op == "call_function":
        return _LABELS[node.target], "", PLAIN
    module = modules[str(node.target)]
    conv = module[0] if isinstance(module, tnn.ConvNormAct) else module
    if isinstance(conv, nn.Conv2d):
        side = "×".join(map(str, conv.kernel_size))
        options = [f"stride {conv.stride[0]}"] * (conv.stride[0] > 1) + [f"dilation {conv.dilation[0]}"] * (
            conv.dilation[0] > 1
        )
        return f"Conv {side}", ", ".join([f"{conv.in_channels} → {conv.out_channels}", *options]), CONV
    if isinstance(module, nn.MaxPool2d):
        return f"MaxPool {module.kernel_size}×{module.kernel_size}", "", ACTIVATION
    name = type(module).__name__
    return name, "", CONV if any(module.children()) else NORM if "Norm" in name else ACTIVATION


def _draw(
    labels: dict[object, tuple[str, str, str]],
    parents: dict[object, list[object]],
    places: list[object],
    ends: set[object],
) -> Sheet:
    rank: dict[object, int] = {}
    for node in parents:
        rank[node] = 1 + max((rank[parent] for parent in parents[node]), default=-1)
    last = max(rank.values())
    for node in ends:
        rank[node] = last
    # A line that passes ranks has a lane in each of them.
    rows: list[list[object]] = [[] for _ in range(last + 1)]
    paths: list[list[object]] = []
    for node in parents:
        rows[rank[node]].append(node)
    for node, sources in parents.items():
        for source in sources:
            lanes: list[object] = [(source, node, i) for i in range(rank[source] + 1, rank[node])]
            for lane, row in zip(lanes, rows[rank[source] + 1 : rank[node]], strict=True):
                row.append(lane)
            paths.append([source, *lanes, node])
    before = {second: first for path in paths for first, second in pairwise(path)}
    size = {item: _WIDTH if item in labels else _LANE for row in rows for item in row}
    total = max(sum(size[item] + 14 for item in row) for row in rows)
    x: dict[object, float] = {}
    for row in rows:
        row.sort(key=lambda item: x.get(before.get(item), 0.0))
        left = (total - sum(size[item] + 14 for item in row)) / 2 + 24
        for item in row:
            x[item] = left + size[item] / 2 + 7
            left += size[item] + 14
    sheet = Sheet(total + 48, 40 + _STEP * last + 30)
    y = {item: 30.0 + _STEP * i for i, row in enumerate(rows) for item in row}
    for path in paths:
        points = [(x[path[0]], y[path[0]] + (12 if path[0] in places else _HEIGHT / 2))]
        for lane in path[1:-1]:
            points += [(x[lane], y[lane] - _HEIGHT / 2), (x[lane], y[lane] + _HEIGHT / 2)]
        points.append((x[path[-1]], y[path[-1]] - (12 if path[-1] in ends else _HEIGHT / 2)))
        sheet.line(points, arrow=True)
    for node, (title, detail, fill) in labels.items():
        if fill:
            sheet.box(x[node] - _WIDTH / 2, y[node] - _HEIGHT / 2, _WIDTH, _HEIGHT, fill)
        sheet.words(x[node], y[node] - (8 if detail else 0), title, bold=bool(detail) or not fill)
        if detail:
            sheet.words(x[node], y[node] + 9, detail, size=12)
    return sheet
