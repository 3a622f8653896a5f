"""The rooms of the package, and a module tree before and after fusing."""

from torch import nn

from torchvision_layers import nn as tnn
from torchvision_layers import quantized

from .svg import ACTIVATION, CONV, MUTED, NORM, PLAIN, Sheet

__all__ = ["draw_fusing", "draw_rooms"]


def draw_rooms() -> Sheet:
    """Who imports whom. ``test/package/test_layout.py`` holds the imports to the same."""
    sheet = Sheet(630, 336)
    width, height, gap = 136, 50, 18
    columns = [16 + i * (width + gap) for i in range(4)]
    rows = [16, 102, 188, 258]
    rooms = [
        ("your model", "", columns[0], rows[0], width, "#ffffff"),
        ("deploy", "fold, export, load", columns[1], rows[0], width, NORM),
        ("testing", "check_layer", columns[2], rows[0], width, NORM),
        ("nn", "the door to layers", columns[0], rows[1], width, CONV),
        ("quantized", "twins, quantize", columns[1], rows[1], width, NORM),
        ("upstream", "to torchvision", columns[3], rows[0], width, NORM),
        ("experimental", "staged layers", columns[2], rows[1], width, ACTIVATION),
        ("standalone", "one source file", columns[3], rows[1], width, NORM),
        ("layers", "stable layers, one family a file", columns[0], rows[2], 4 * width + 3 * gap, CONV),
        ("_utils", "checks of arguments", columns[0], rows[3], 4 * width + 3 * gap, PLAIN),
    ]
    middle = [x + width / 2 for x in columns]
    for x in middle:
        sheet.line([(x, rows[1] + height), (x, rows[2])], arrow=True)
    sheet.line([(middle[0], rows[0] + height), (middle[0], rows[1])], arrow=True)
    sheet.line([(middle[1], rows[0] + height), (middle[1], rows[1])], arrow=True)
    sheet.line([(middle[2], rows[0] + height), (columns[1] + width - 24, rows[1])], arrow=True)
    sheet.line([(middle[3], rows[0] + height), (middle[3], rows[1])], arrow=True)
    sheet.line([(315, rows[2] + height), (315, rows[3])], arrow=True)
    for name, what, x, y, wide, fill in rooms:
        sheet.box(x, y, wide, height, fill)
        sheet.words(x + wide / 2, y + (height / 2 if not what else 17), name, bold=True, mono=bool(what))
        sheet.words(x + wide / 2, y + 36, what, size=12)
    sheet.words(315, 322, "an arrow reads “imports”", size=12, color=MUTED)
    return sheet


def _tree(module: nn.Module, name: str = "", depth: int = 0) -> list[tuple[int, str, str, str]]:
    """Depth, path, name and class of each module; a fused one and what only observes are not looked into."""
    kind = type(module).__name__.removeprefix("Quantizable")
    if isinstance(module, nn.Conv2d) and module.bias is not None:
        kind += " with bias"
    lines = [(depth, name, name.split(".")[-1], kind)]
    if isinstance(module, quantized.Addition) or type(module).__module__.startswith("torch.ao"):
        return lines
    for child, inner in module.named_children():
        lines += _tree(inner, f"{name}.{child}".lstrip("."), depth + 1)
    return lines


def draw_fusing() -> Sheet:
    """The tree of an inverted residual block: its twin, and the same fused."""
    twin = quantized.quantizable(tnn.InvertedResidual(8, 8, stride=1, expand_ratio=2).eval()).model
    before = _tree(twin)
    quantized.fuse_model(twin, is_qat=False)
    after = {path: kind for _, path, _, kind in _tree(twin)}
    step, left, right = 25, 16, 300
    sheet = Sheet(476, 60 + step * len(before))
    sheet.words(left, 24, "before", bold=True, anchor="start")
    sheet.words(right, 24, "fused", bold=True, anchor="start")
    for i, (depth, path, name, kind) in enumerate(before):
        y = 52 + step * i
        label = f"{name}: {kind}" if name else kind
        x = left + 18 * depth
        sheet.words(x, y, label, size=12, anchor="start", mono=True)
        now = after[path]
        if now == kind:
            sheet.words(right + 8, y, "·", size=14, anchor="start", color=MUTED)
        elif now == "Identity":
            sheet.words(right + 8, y, now, size=12, anchor="start", color=MUTED, mono=True)
        else:
            sheet.box(right, y - 11, 150, 22, CONV)
            sheet.words(right + 8, y, now, size=12, anchor="start", mono=True)
    return sheet
