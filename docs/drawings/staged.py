"""Drawings of ``RepConv`` and ``GlobalResponseNorm``, made from the layers themselves."""

import torch
from torch import nn

from torchvision_layers import nn as tnn
from torchvision_layers.experimental import nn as enn

from .svg import ACTIVATION, CONV, MUTED, NORM, Sheet

__all__ = ["draw_rep_conv", "draw_responses"]


def _label(module: nn.Module) -> tuple[str, str, str]:
    """Title, detail and fill of a box."""
    if isinstance(module, nn.Conv2d):
        side = "×".join(map(str, module.kernel_size))
        bias = ", bias" if module.bias is not None else ""
        return f"Conv2d {side}", f"{module.in_channels} → {module.out_channels}{bias}", CONV
    kind = type(module).__name__
    return kind, "", NORM if "Norm" in kind else ACTIVATION


def draw_rep_conv() -> Sheet:
    """The branches of a RepConv side by side, and the modules of its folded form."""
    layer = enn.RepConv(64, 64).eval()
    assert layer.pointwise is not None
    assert layer.identity is not None
    branches = [[*branch.children()] for branch in (*layer.convs, layer.pointwise)] + [[layer.identity]]
    width, height, step, gap, top = 136, 38, 54, 14, 92
    sheet = Sheet(4 * width + 3 * gap + 92, 372)
    rows = max(map(len, branches))
    columns = [24 + width / 2 + i * (width + gap) for i in range(len(branches))]
    middle, joint = columns[1], top + rows * step + 10
    sheet.words(middle, 24, "in training", bold=True)
    sheet.words(middle, 50, "input")
    for x, branch in zip(columns, branches, strict=True):
        sheet.line([(middle, 60), (x, top - height / 2)], arrow=True)
        sheet.line([(x, top), (x, joint - 30), (middle, joint - 14)], arrow=True)
        _column(sheet, x, top, width, height, step, branch)
    sheet.circle(middle, joint, 14)
    sheet.words(middle, joint, "+", size=18)
    after = joint + step
    sheet.line([(middle, joint + 14), (middle, after - height / 2)], arrow=True)
    sheet.line([(middle, after), (middle, after + height / 2 + 22)], arrow=True)
    _column(sheet, middle, after, width, height, step, [layer.act])
    sheet.words(middle, after + height / 2 + 34, "output")
    right = columns[-1] + width + gap + 52
    sheet.line([(columns[-1] + width / 2 + 20, top - 56), (columns[-1] + width / 2 + 20, 352)], color=MUTED, dash="4 4")
    folded = [*layer.folded().children()]
    sheet.words(right, 24, "folded", bold=True)
    sheet.words(right, 50, "input")
    sheet.line([(right, 60), (right, top + len(folded) * step - 12)], arrow=True)
    _column(sheet, right, top, width, height, step, folded)
    sheet.words(right, top + len(folded) * step, "output")
    return sheet


def _column(
    sheet: Sheet, x: float, top: float, width: float, height: float, step: float, modules: list[nn.Module]
) -> None:
    """Boxes from top to bottom, with arrows between them."""
    for i, module in enumerate(modules):
        y = top + i * step
        title, detail, fill = _label(module)
        if i > 0:
            sheet.line([(x, y - step + height / 2), (x, y - height / 2)], arrow=True)
        sheet.box(x - width / 2, y - height / 2, width, height, fill)
        sheet.words(x, y - (8 if detail else 0), title, bold=bool(detail))
        if detail:
            sheet.words(x, y + 9, detail, size=12)


def draw_responses() -> Sheet:
    """Norms of six channels, and the gains that a GlobalResponseNorm with γ = 1 gives them."""
    layer = tnn.GlobalResponseNorm(6, channels_dim=1).double()
    nn.init.ones_(layer.weight)
    norms = torch.tensor([0.5, 1.0, 4.0, 2.0, 0.0, 1.5], dtype=torch.float64)
    image = (norms / 4).view(1, 6, 1, 1).expand(1, 6, 4, 4)  # 16 equal pixels have four times the norm of one
    gains = layer(image + 1e-12)[0, :, 0, 0] / (image + 1e-12)[0, :, 0, 0]
    sheet = Sheet(420, 236)
    for panel, (title, values, fill) in enumerate((("norm of the channel", norms, CONV), ("gain", gains, ACTIVATION))):
        left, ground, unit = 30 + panel * 200, 196, 34
        sheet.words(left + 84, 22, title, bold=True)
        sheet.line([(left, ground), (left + 168, ground)], color=MUTED)
        for i, value in enumerate(values.tolist()):
            x, height = left + 28 * i, unit * value
            sheet.box(x + 3, ground - height, 22, height, fill, round=0)
            sheet.words(x + 14, ground - height - 10, f"{value:.1f}", size=11)
            sheet.words(x + 14, ground + 14, str(i), size=11, color=MUTED)
    return sheet
