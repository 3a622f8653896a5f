"""Drawings of the layers of Swin Transformers and of position embeddings, made from the layers themselves."""

import torch
from torch import Tensor, nn

from torchvision_layers import nn as tnn
from torchvision_layers.experimental import nn as enn

from .svg import ACTIVATION, CONV, INK, MUTED, NORM, PLAIN, Sheet

__all__ = [
    "draw_learned_positions",
    "draw_merged_patches",
    "draw_shifted_windows",
    "draw_sine_positions",
    "draw_swin_blocks",
]

_WIDTH, _HEIGHT = 200, 38
_QUERY = "#f5a55a"


def _grid(sheet: Sheet, x: float, y: float, cell: float, fills: list[list[str]]) -> None:
    for i, row in enumerate(fills):
        for j, fill in enumerate(row):
            sheet.box(x + j * cell, y + i * cell, cell, cell, fill, round=0)


def _seen(layer: nn.Module, row: int, column: int, side: int) -> list[list[bool]]:
    """The pixels with a gradient from one output pixel."""
    image = torch.randn(1, 4, side, side, dtype=torch.float64, requires_grad=True)
    layer(image)[0, :, row, column].sum().backward()
    assert image.grad is not None
    return (image.grad[0].abs().sum(0) > 1e-30).tolist()


def draw_shifted_windows() -> Sheet:
    """The pixels that three queries see, without and with a shift."""
    side, cell = 8, 20
    torch.manual_seed(0)
    sheet = Sheet(3 * side * cell + 24 * 4, side * cell + 92)
    panels = [("shift_size=0", 0, (1, 2)), ("shift_size=2", 2, (3, 4)), ("shift_size=2, at the border", 2, (0, 4))]
    for panel, (title, shift, (row, column)) in enumerate(panels):
        seen = _seen(enn.WindowAttention(4, 2, 4, shift).double(), row, column, side)
        fills = [[CONV if is_seen else "#ffffff" for is_seen in line] for line in seen]
        fills[row][column] = _QUERY
        x = 24 + panel * (side * cell + 24)
        _grid(sheet, x, 44, cell, fills)
        for line in range(shift, side + 1, 4):
            start = 44 + line * cell
            sheet.line([(x, start), (x + side * cell, start)], width=3)
            sheet.line([(x + line * cell, 44), (x + line * cell, 44 + side * cell)], width=3)
        sheet.words(x + side * cell / 2, 24, title, bold=True)
        sheet.words(x + side * cell / 2, 44 + side * cell + 18, f"softmax over {sum(map(sum, seen))} pixels", size=12)
    sheet.box(24, side * cell + 75, 11, 11, _QUERY, round=0)
    sheet.words(40, side * cell + 80, "query", size=11, anchor="start")
    sheet.box(84, side * cell + 75, 11, 11, CONV, round=0)
    sheet.words(100, side * cell + 80, "keys and values", size=11, anchor="start")
    return sheet


def draw_merged_patches() -> Sheet:
    """The place of the channels of each square of pixels."""
    cell = 40
    layer = enn.PatchMerging(1, nn.Identity)
    image = torch.arange(1.0, 17).view(1, 1, 4, 4)
    features: list[Tensor] = []
    layer.norm.register_forward_hook(lambda _module, _inputs, output: features.append(output))
    layer(image)
    sheet = Sheet(24 + 4 * cell + 60 + 4 * cell + 64, 4 * cell + 96)
    shades = (CONV, NORM, ACTIVATION, PLAIN)
    order = features[0][0, 0, 0].int().tolist()
    sheet.words(24 + 2 * cell, 24, "image, 4×4 pixels", bold=True)
    for value in range(1, 17):
        i, j = divmod(value - 1, 4)
        place = order.index(value - (i - i % 2) * 4 - (j - j % 2))
        sheet.box(24 + j * cell, 44 + i * cell, cell, cell, shades[place], round=0)
        sheet.words(24 + (j + 0.5) * cell, 44 + (i + 0.5) * cell, str(value), size=12)
    right = 24 + 4 * cell + 60
    middle = 44 + 2 * cell
    sheet.line([(24 + 4 * cell + 12, middle), (right - 12, middle)], arrow=True)
    sheet.words(right + 2 * cell, 24, "2×2 pixels of 4C channels", bold=True)
    for index, square in enumerate(features[0][0].flatten(0, 1).int().tolist()):
        for place, value in enumerate(square):
            sheet.box(right + place * cell, 44 + index * cell, cell, cell, shades[place], round=0)
            sheet.words(right + (place + 0.5) * cell, 44 + (index + 0.5) * cell, str(value), size=12)
    sheet.words(right + 2 * cell, 44 + 4 * cell + 18, "LayerNorm, then Linear to 2C", size=12, color=INK)
    sheet.words(right + 2 * cell, 44 + 4 * cell + 34, "version 2: Linear to 2C, then LayerNorm", size=12, color=MUTED)
    return sheet


def _label(module: nn.Module) -> tuple[str, str, str]:
    """Title, detail and fill of a box."""
    if isinstance(module, enn.WindowAttention):
        return "WindowAttention", f"{module.num_heads} heads, windows of 7×7", CONV
    if isinstance(module, tnn.MLP):
        return "MLP", f"{module.in_channels} → {4 * module.in_channels} → {module.out_channels}, GELU", CONV
    return type(module).__name__, "", NORM


def draw_swin_blocks() -> Sheet:
    """Both residual branches of both versions."""
    sheet = Sheet(2 * (_WIDTH + 90), 0)
    for panel, version in enumerate((1, 2)):
        block = enn.SwinBlock(96, 3, 7, version=version)
        parts = [[block.norm1, block.attn], [block.norm2, block.mlp]]
        x = 24 + _WIDTH / 2 + panel * (_WIDTH + 90)
        lane, y = x + _WIDTH / 2 + 30, 50.0
        sheet.words(x, 22, f"version={version}", bold=True)
        sheet.words(x, y, "input")
        y += 10
        for branch in parts if version == 1 else [part[::-1] for part in parts]:
            joint = y + 38 + len(branch) * (_HEIGHT + 16)
            sheet.line([(x, y + 8), (lane, y + 8), (lane, joint), (x + 15, joint)], arrow=True)
            for module in branch:
                title, detail, fill = _label(module)
                sheet.line([(x, y), (x, y + 16)], arrow=True)
                sheet.box(x - _WIDTH / 2, y + 16, _WIDTH, _HEIGHT, fill)
                sheet.words(x, y + 16 + _HEIGHT / 2 - (8 if detail else 0), title, bold=bool(detail))
                if detail:
                    sheet.words(x, y + 16 + _HEIGHT / 2 + 9, detail, size=12)
                y += 16 + _HEIGHT
            sheet.line([(x, y), (x, joint - 14)], arrow=True)
            sheet.circle(x, joint, 14)
            sheet.words(x, joint, "+", size=18)
            y = joint + 14
        sheet.line([(x, y), (x, y + 16)], arrow=True)
        sheet.words(x, y + 28, "output")
        sheet.height = y + 46
    return sheet


def _shade(value: float) -> str:
    """Blue for -1, white for 0, orange for 1."""
    end = (245, 165, 90) if value > 0 else (120, 165, 235)
    share = min(abs(value), 1.0)
    return "#" + "".join(f"{round(255 + (channel - 255) * share):02x}" for channel in end)


def _maps(panels: list[tuple[str, Tensor]], cell: float) -> Sheet:
    widths = [24 + values.shape[1] * cell for _, values in panels]
    sheet = Sheet(sum(widths) + 24, max(values.shape[0] for _, values in panels) * cell + 68)
    x = 24.0
    for (title, values), width in zip(panels, widths, strict=True):
        sheet.words(x + values.shape[1] * cell / 2, 24, title, bold=True, size=12)
        _grid(sheet, x, 44, cell, [[_shade(value) for value in row] for row in values.tolist()])
        x += width
    return sheet


def draw_sine_positions() -> Sheet:
    """Four channels of the embedding of an image."""
    embedding = enn.SinePositionEmbedding2d(8, temperature=20)(torch.zeros(1, 8, 10, 10))[0]
    names = ("row, sine", "row, lower frequency", "column, sine", "column, lower frequency")
    return _maps([(name, embedding[c]) for name, c in zip(names, (0, 2, 4, 6), strict=True)], 15)


def draw_learned_positions() -> Sheet:
    """One channel on the trained grid and resampled."""
    torch.manual_seed(1)
    layer = enn.PositionEmbedding2d(1, 5)
    nn.init.uniform_(layer.weight, -1, 1)
    grids = [(5, 5), (8, 8), (5, 10)]
    maps = [layer(torch.zeros(1, 1, *grid))[0, 0].detach() for grid in grids]
    titles = ["5×5, as trained", "8×8", "5×10"]
    return _maps([*zip(titles, maps, strict=True)], 18)
