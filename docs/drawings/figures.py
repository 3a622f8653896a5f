"""Curves and grids, computed by the layers themselves."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from torchvision_layers.experimental import nn as enn
from torchvision_layers.layers.positional_conv import coordinates

from .svg import CONV, INK, MUTED, Sheet

__all__ = ["draw_activations", "draw_attention_window", "draw_coordinates"]


def draw_activations() -> Sheet:
    """Curves of Mish, Swish and ReLU."""
    sheet = Sheet(440, 330)
    left, right, top, bottom = -5.0, 3.0, 3.0, -0.5
    unit = 48.0

    def place(x: float, y: float) -> tuple[float, float]:
        return 28 + (x - left) * unit, 28 + (top - y) * unit * 1.5

    for y in (0, 1, 2, 3):
        sheet.line([place(left, y), place(right, y)], color="#d5dae0", width=1)
        sheet.words(place(right, y)[0] + 8, place(right, y)[1], str(y), size=12, anchor="start", color=MUTED)
    sheet.line([place(0, bottom), place(0, top)], color="#d5dae0", width=1)
    for x in (-4, -2, 0, 2):
        sheet.words(place(x, bottom)[0], place(x, bottom)[1] + 12, str(x).replace("-", "−"), size=12, color=MUTED)
    curves: list[tuple[str, Callable[[Tensor], Tensor], str, str]] = [
        ("ReLU", nn.ReLU(), MUTED, "2 4"),
        ("Swish", enn.Swish(), "#b4530a", "8 4"),
        ("Mish", enn.Mish(), "#1d4ed8", ""),
    ]
    sheet.box(40, 36, 108, 72, "#ffffff")
    for row, (name, curve, color, dash) in enumerate(curves):
        x = torch.linspace(left, right, 161, dtype=torch.float64)
        points = [place(*point) for point in zip(x.tolist(), curve(x).tolist(), strict=True)]
        sheet.line(points, color=color, width=2, dash=dash)
        y = 48 + 24 * row
        sheet.line([(48, y), (84, y)], color=color, width=2, dash=dash)
        sheet.words(94, y, name, anchor="start")
    return sheet


def _grid(sheet: Sheet, x: float, y: float, cell: float, fills: list[list[str]], texts: list[list[str]]) -> None:
    for i, (row, words) in enumerate(zip(fills, texts, strict=True)):
        for j, (fill, word) in enumerate(zip(row, words, strict=True)):
            sheet.box(x + j * cell, y + i * cell, cell, cell, fill, round=0)
            if word:
                sheet.words(x + (j + 0.5) * cell, y + (i + 0.5) * cell, word, size=11)


def draw_attention_window() -> Sheet:
    """The pixels that a query attends to: those with a gradient from its output."""
    side, cell = 9, 20
    torch.manual_seed(0)
    layer = enn.MultiHeadedSpatialAttention(2, 2, 5, padding=2).double()
    sheet = Sheet(2 * side * cell + 24 * 3, side * cell + 92)
    for panel, (row, column) in enumerate([(4, 4), (0, 7)]):
        image = torch.randn(1, 2, side, side, dtype=torch.float64, requires_grad=True)
        layer(image)[0, :, row, column].sum().backward()
        assert image.grad is not None
        attended = (image.grad[0].abs().sum(0) > 0).tolist()
        attended_fills = [[CONV if is_attended else "#ffffff" for is_attended in line] for line in attended]
        attended_fills[row][column] = "#f5a55a"
        x = 24 + panel * (side * cell + 24)
        _grid(sheet, x, 44, cell, attended_fills, [[""] * side] * side)
        count = sum(sum(line) for line in attended)
        middle = x + side * cell / 2
        sheet.words(middle, 24, "inside" if panel == 0 else "at the border", bold=True)
        sheet.words(middle, 44 + side * cell + 18, f"softmax over {count} pixels", size=12)
    sheet.box(24, side * cell + 75, 11, 11, "#f5a55a", round=0)
    sheet.words(40, side * cell + 80, "query", size=11, anchor="start")
    sheet.box(84, side * cell + 75, 11, 11, CONV, round=0)
    sheet.words(100, side * cell + 80, "keys and values", size=11, anchor="start")
    return sheet


def draw_coordinates() -> Sheet:
    """The channels that a CoordConv2d adds to a 5×5 image."""
    side, cell = 5, 36
    channels = coordinates(torch.zeros(1, 1, side, side), with_r=True)[0]
    names = ("i", "j", "r = √(i² + j²)")
    sheet = Sheet(3 * side * cell + 20 * 4, side * cell + 62)
    for panel, (channel, name) in enumerate(zip(channels.tolist(), names, strict=True)):
        x = 20 + panel * (side * cell + 20)
        fills = [[_shade(value) for value in row] for row in channel]
        texts = [[f"{value:.2g}".replace("-", "−") for value in row] for row in channel]
        sheet.words(x + side * cell / 2, 22, name, bold=True, color=INK)
        _grid(sheet, x, 42, cell, fills, texts)
    return sheet


def _shade(value: float) -> str:
    """Blue for negative values, white for zero, orange for positive values."""
    end = (245, 165, 90) if value > 0 else (120, 165, 235)
    share = min(abs(value) / 1.5, 1.0)
    return "#" + "".join(f"{round(255 + (channel - 255) * share):02x}" for channel in end)
