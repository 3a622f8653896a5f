"""Drawings of the layers of vision transformers, made from the layers themselves."""

import torch
from torch import nn

from torchvision_layers import nn as tnn
from torchvision_layers.experimental import nn as enn

from .svg import ACTIVATION, CONV, NORM, PLAIN, Sheet

__all__ = ["draw_classifier_head", "draw_encoder_block", "draw_gated_mlp", "draw_patches", "draw_self_attention"]

_WIDTH, _HEIGHT, _STEP = 216, 38, 54


def _label(module: nn.Module) -> tuple[str, str, str]:
    """Title, detail and fill of a box."""
    kind = type(module).__name__
    if isinstance(module, nn.Linear):
        return kind, f"{module.in_features} → {module.out_features}", CONV
    if isinstance(module, enn.MultiHeadSelfAttention):
        return kind, f"{module.num_heads} heads of {module.head_dim} channels", CONV
    if isinstance(module, tnn.MLP):
        sizes = [module.in_channels, *(m.out_features for m in module if isinstance(m, nn.Linear))]
        activation = next(type(m).__name__ for m in module if type(m).__module__.endswith("activation"))
        return kind, f"{' → '.join(map(str, sizes))}, {activation}", CONV
    if "Norm" in kind:
        return kind, "", NORM
    return kind, "", ACTIVATION


def _box(sheet: Sheet, x: float, y: float, label: tuple[str, str, str], width: float = _WIDTH) -> None:
    title, detail, fill = label
    sheet.box(x - width / 2, y - _HEIGHT / 2, width, _HEIGHT, fill)
    sheet.words(x, y - (8 if detail else 0), title, bold=bool(detail))
    if detail:
        sheet.words(x, y + 9, detail, size=12)


def _column(sheet: Sheet, x: float, y: float, labels: list[tuple[str, str, str]]) -> float:
    """Boxes from top to bottom with an arrow into each; returns the lower end of the last."""
    for label in labels:
        sheet.line([(x, y), (x, y + 16)], arrow=True)
        _box(sheet, x, y + 16 + _HEIGHT / 2, label)
        y += 16 + _HEIGHT
    return y


def _sign(sheet: Sheet, x: float, y: float, sign: str) -> None:
    sheet.circle(x, y, 14)
    sheet.words(x, y, sign, size=18)


def draw_patches() -> Sheet:
    """The number of tokens that each pixel reaches, without and with overlap."""
    side, cell = 8, 26
    sheet = Sheet(2 * side * cell + 76, side * cell + 86)
    layers = [enn.PatchEmbedding(1, 1, 4), enn.PatchEmbedding(1, 1, 4, stride=2)]
    fills = (PLAIN, ACTIVATION, CONV, "", NORM)
    for panel, layer in enumerate(layers):
        nn.init.ones_(layer.proj.weight)
        image = torch.zeros(1, 1, side, side, requires_grad=True)
        tokens = layer(image)
        tokens.sum().backward()
        assert image.grad is not None
        left = 24 + panel * (side * cell + 28)
        sheet.words(left + side * cell / 2, 22, f"patch_size=4, stride={layer.stride}", bold=True)
        for i, row in enumerate(image.grad[0, 0].int().tolist()):
            for j, count in enumerate(row):
                sheet.box(left + j * cell, 42 + i * cell, cell, cell, fills[count], round=0)
                sheet.words(left + (j + 0.5) * cell, 42 + (i + 0.5) * cell, str(count), size=12)
        for i in range(0, side, 4):  # the patches of the first panel, and some of those of the second
            for j in range(0, side, 4):
                x, y = left + j * cell, 42 + i * cell
                sheet.line(
                    [(x, y), (x + 4 * cell, y), (x + 4 * cell, y + 4 * cell), (x, y + 4 * cell), (x, y)], width=3
                )
        sheet.words(left + side * cell / 2, side * cell + 64, f"{tokens.shape[1]} tokens")
    return sheet


def draw_self_attention() -> Sheet:
    """From tokens to queries, keys and values, and back."""
    layer = enn.MultiHeadSelfAttention(192, 3)
    x, sheet = 230.0, Sheet(460, 378)
    sheet.words(x, 24, "tokens", bold=True)
    y = _column(sheet, x, 34, [_label(layer.in_proj)])
    columns = [x - 140, x, x + 140]
    for column, name in zip(columns, ("query", "key", "value"), strict=True):
        sheet.line([(x, y), (column, y + 28)], arrow=True)
        _box(sheet, column, y + 28 + _HEIGHT / 2, (name, f"{layer.num_heads} heads × {layer.head_dim}", PLAIN), 116)
    for column in columns:
        sheet.line([(column, y + 28 + _HEIGHT), (x, y + 56 + _HEIGHT)], arrow=True)
    y += 56 + _HEIGHT
    _box(sheet, x, y + _HEIGHT / 2, ("scaled dot product attention", "softmax(Q Kᵀ / √64) V", ACTIVATION))
    y = _column(sheet, x, y + _HEIGHT, [_label(layer.out_proj)])
    sheet.line([(x, y), (x, y + 16)], arrow=True)
    sheet.words(x, y + 28, "tokens", bold=True)
    sheet.height = y + 46
    return sheet


def draw_encoder_block() -> Sheet:
    """Both residual branches, one below the other."""
    block = enn.TransformerEncoderBlock(3, 192, 768)
    x, y, lane = 24 + _WIDTH / 2, 28.0, 24 + _WIDTH + 36
    sheet = Sheet(lane + 50, 0)  # the height is set after drawing
    sheet.words(x, y, "tokens", bold=True)
    y += 10
    for branch in ([block.ln_1, block.self_attention], [block.ln_2, block.mlp]):
        end = y + 8 + len(branch) * (16 + _HEIGHT) + 30
        sheet.line([(x, y + 8), (lane, y + 8), (lane, end), (x + 15, end)], arrow=True)
        sheet.words(lane + 8, (y + end) / 2, "skip", anchor="start")
        sheet.line([(x, y), (x, y + 8)])
        below = _column(sheet, x, y + 8, [_label(module) for module in branch])
        sheet.line([(x, below), (x, end - 14)], arrow=True)
        _sign(sheet, x, end, "+")
        y = end + 14
    sheet.line([(x, y), (x, y + 16)], arrow=True)
    sheet.words(x, y + 28, "tokens", bold=True)
    sheet.height = y + 46
    return sheet


def draw_gated_mlp() -> Sheet:
    """One linear layer for value and gate, their product, and another linear layer."""
    layer = enn.GatedMLP(192, [512, 192])
    x, sheet = 190.0, Sheet(380, 0)
    sheet.words(x, 24, "input", bold=True)
    y = _column(sheet, x, 34, [_label(layer.fc1)])
    gate, value = x - 90, x + 90
    joint = y + 30 + _HEIGHT + 40
    sheet.line([(x, y), (gate, y + 30)], arrow=True)
    _box(sheet, gate, y + 30 + _HEIGHT / 2, (type(layer.activation).__name__, "gate, 512", ACTIVATION), 120)
    sheet.line([(gate, y + 30 + _HEIGHT), (x - 12, joint - 8)], arrow=True)
    sheet.line([(x, y), (value, y + 30), (value, y + 30 + _HEIGHT), (x + 12, joint - 8)], arrow=True)
    sheet.words(value + 8, y + 30 + _HEIGHT / 2, "value, 512", size=12, anchor="start")
    _sign(sheet, x, joint, "×")
    y = _column(sheet, x, joint + 14, [_label(layer.fc2)])
    sheet.line([(x, y), (x, y + 16)], arrow=True)
    sheet.words(x, y + 28, "output", bold=True)
    sheet.height = y + 46
    return sheet


def draw_classifier_head() -> Sheet:
    """The parts in the order of the forward."""
    head = enn.ClassifierHead(192, 10, norm_layer=nn.LayerNorm)
    x, sheet = 24 + _WIDTH / 2, Sheet(48 + _WIDTH, 0)
    sheet.words(x, 24, "feature map", bold=True)
    pool = ("AdaptiveAvgPool2d", "H × W → 1 × 1", PLAIN)
    y = _column(sheet, x, 34, [pool, *map(_label, (head.norm, head.dropout, head.fc))])
    sheet.line([(x, y), (x, y + 16)], arrow=True)
    sheet.words(x, y + 28, "scores of the classes", bold=True)
    sheet.height = y + 46
    return sheet
