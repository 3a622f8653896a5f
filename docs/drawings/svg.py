"""Shapes and text, written as SVG that is identical on every machine."""

from collections.abc import Sequence
from xml.sax.saxutils import escape

__all__ = ["ACTIVATION", "CONV", "INK", "MUTED", "NORM", "PLAIN", "Sheet"]

# Fills light enough for dark text. The sheet has its own light background, for pages in dark mode.
CONV, NORM, ACTIVATION, PLAIN = "#cfe2ff", "#d8f0d8", "#ffe3c2", "#eef0f3"
INK, MUTED = "#1f2933", "#5b6673"
_GROUND = "#ffffff"
_FONT = "system-ui, 'Segoe UI', 'DejaVu Sans', Helvetica, Arial, sans-serif"
_MONO = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace"


def _number(value: float) -> str:
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


class Sheet:
    """A drawing with a size in pixels; later shapes cover earlier ones."""

    def __init__(self, width: float, height: float) -> None:
        self.width = width
        self.height = height
        self._shapes: list[str] = []

    def box(self, x: float, y: float, width: float, height: float, fill: str = PLAIN, *, round: float = 5) -> None:
        """A rectangle with its upper left corner at ``x``, ``y``."""
        where = f'x="{_number(x)}" y="{_number(y)}" width="{_number(width)}" height="{_number(height)}"'
        self._shapes.append(f'<rect {where} rx="{_number(round)}" fill="{fill}" stroke="{MUTED}"/>')

    def circle(self, x: float, y: float, radius: float, fill: str = PLAIN) -> None:
        where = f'cx="{_number(x)}" cy="{_number(y)}" r="{_number(radius)}"'
        self._shapes.append(f'<circle {where} fill="{fill}" stroke="{MUTED}"/>')

    def words(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 13,
        anchor: str = "middle",
        color: str = INK,
        bold: bool = False,
        mono: bool = False,
    ) -> None:
        """A line of text, vertically centered at ``y``."""
        style = ' font-weight="600"' if bold else ""
        style += f' font-family="{_MONO}" xml:space="preserve"' if mono else ""
        where = f'x="{_number(x)}" y="{_number(y + 0.35 * size)}" font-size="{_number(size)}" text-anchor="{anchor}"'
        self._shapes.append(f'<text {where} fill="{color}"{style}>{escape(text)}</text>')

    def line(
        self,
        points: Sequence[tuple[float, float]],
        *,
        arrow: bool = False,
        color: str = INK,
        width: float = 1.5,
        dash: str = "",
    ) -> None:
        """A line through ``points``; an arrow has a head at its end."""
        where = " ".join(f"{_number(x)},{_number(y)}" for x, y in points)
        style = f' stroke-dasharray="{dash}"' if dash else ""
        style += ' marker-end="url(#head)"' if arrow else ""
        self._shapes.append(
            f'<polyline points="{where}" fill="none" stroke="{color}" stroke-width="{_number(width)}"{style}/>'
        )

    def svg(self, title: str) -> str:
        """The text of the SVG file; ``title`` is its alt text."""
        size = f'width="{_number(self.width)}" height="{_number(self.height)}"'
        box = f'viewBox="0 0 {_number(self.width)} {_number(self.height)}"'
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} {box} role="img" font-family="{_FONT}">',
            f"<title>{escape(title)}</title>",
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{INK}"/></marker></defs>',
            f'<rect width="100%" height="100%" rx="8" fill="{_GROUND}"/>',
        )
        return "\n".join([*head, *self._shapes, "</svg>", ""])
