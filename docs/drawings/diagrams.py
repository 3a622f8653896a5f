"""The packages, and a module tree before and after fusing."""

from torch import nn

from torchvision_layers import nn as tnn
from torchvision_layers import quantized

from .svg import ACTIVATION, CONV, MUTED, NORM, PLAIN, Sheet

__all__ = ["draw_fusing", "draw_packages"]


def draw_packages() -> Sheet:
    """The packages and their imports, as ``test/package/test_layout.py`` allows them."""
    sheet = Sheet(630, 336)
    width, height, gap = 136, 50, 18
    columns = [16 + i * (width + gap) for i in range(4)]
    rows = [16, 102, 188, 258]
    span = 3 * width + 2 * gap
    packages = [
        ("your model", "", columns[0], rows[0], width, "#ffffff"),
        ("deploy", "fold, export, load", columns[1], rows[0], width, NORM),
        ("testing", "check_layer", columns[2], rows[0], width, NORM),
        ("standalone", "one source file", columns[3], rows[0], width, NORM),
        ("nn", "public layers", columns[0], rows[1], width, CONV),
        ("quantized", "twins, quantize", columns[1], rows[1], width, NORM),
        ("experimental", "staged layers", columns[2], rows[1], width, ACTIVATION),
        ("_source", "Python source", columns[3], rows[1], width, PLAIN),
        ("layers", "stable layers, one family per file", columns[0], rows[2], span, CONV),
        ("_utils", "argument checks, tracing, export", columns[0], rows[3], 4 * width + 3 * gap, PLAIN),
    ]
    middle = [x + width / 2 for x in columns]
    for x in middle[:3]:
        sheet.line([(x, rows[1] + height), (x, rows[2])], arrow=True)
    sheet.line([(middle[3], rows[1] + height), (middle[3], rows[3])], arrow=True)
    for x in (middle[0], middle[1], middle[3]):
        sheet.line([(x, rows[0] + height), (x, rows[1])], arrow=True)
    quantized_right = columns[1] + width
    sheet.line([(middle[2], rows[0] + height), (quantized_right - 30, rows[1])], arrow=True)
    sheet.line([(columns[3] + 20, rows[0] + height), (quantized_right - 8, rows[1])], arrow=True)
    sheet.line([(columns[0] + span / 2, rows[2] + height), (columns[0] + span / 2, rows[3])], arrow=True)
    for name, what, x, y, wide, fill in packages:
        sheet.box(x, y, wide, height, fill)
        sheet.words(x + wide / 2, y + (height / 2 if not what else 17), name, bold=True, mono=bool(what))
        sheet.words(x + wide / 2, y + 36, what, size=12)
    sheet.words(315, 322, "an arrow reads “imports”", size=12, color=MUTED)
    return sheet


def _tree(module: nn.Module, name: str = "", depth: int = 0) -> list[tuple[int, str, str, str]]:
    """Depth, path, name and class of each module, except the children of fused modules and of observed operations."""
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
    """The module tree of the twin of an inverted residual block, before and after fusing."""
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
