"""A picture of the variants: accuracy against multiply-adds, with a label beside each point."""

import math
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
from checkpoints import atomic_path
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

__all__ = ["draw_variants", "plot_variants"]

Numbers = NDArray[np.float64]  # rectangles are rows of left, bottom, right and top, in points

# Beginnings of names; the first that fits counts.
FAMILIES = {
    "mobilenet": ("MobileNet", "#b34700"),
    "efficientnet": ("EfficientNet", "#6a3d9a"),
    "convnext": ("ConvNeXt", "#187a1f"),
    "resnet26_sasa": ("attention", "#b3123c"),
    "": ("ResNet", "#1f5fa8"),
}
FONT_SIZE = 9
ASIDE = 5.0  # points between bars that would cover each other
REACHES = (6, 10, 15, 22, 30, 40, 52, 66, 80)  # points between a point and its label
DIRECTIONS = 32
DOTS = 8  # small rectangles that stand for the line from a point to its label
ORDERS = 10  # in which the labels are placed
COVERED, CROSSED = 1000, 50  # what a square point costs, where a point of distance costs one


class Label(NamedTuple):
    """A place for a label: its rectangle, and the end of the line to it, where it is too far away to need none."""

    box: Numbers
    end: tuple[float, float] | None


class Choice(NamedTuple):
    """All places for one label, one a row."""

    boxes: Numbers
    ends: Numbers
    dots: Numbers
    distances: Numbers


def plot_variants(results: dict[str, Any], path: str | Path) -> None:
    """Draws results of variants.py, as a picture at ``path``.

    Args:
        results: as in ``variants.json``.
        path: the suffix tells the format.
    """
    figure = draw_variants(results)
    with (
        rc_context({"svg.hashsalt": "variants", "svg.fonttype": "path"}),  # the same file each time, on any reader
        atomic_path(path) as temporary,
    ):
        figure.savefig(temporary, dpi="figure", metadata={"Date": None} if Path(path).suffix == ".svg" else None)


def draw_variants(results: dict[str, Any]) -> Figure:
    """The picture: a point is the mean over the seeds, its bar goes from the lowest to the highest.

    Points so near to each other that their bars would look like one stand beside each other.
    """
    models = dict(sorted(results["models"].items()))
    values = [[100 * value for value in entry["accuracy"]] for entry in models.values()]
    costs = [entry["multiply_adds"] / 1e6 for entry in models.values()]
    figure = Figure(figsize=(5.2, 6), dpi=72, facecolor="white")
    axes = figure.add_axes((0.125, 0.085, 0.865, 0.85))
    _dress(axes, list(models), costs, min(map(min, values)))
    FigureCanvasAgg(figure).draw()
    xs = _side_by_side(axes, costs)
    for name, x, found in zip(models, xs, values, strict=True):
        color = family_of(name)[1]
        axes.plot([x, x], [min(found), max(found)], color=color, linewidth=3, alpha=0.35, solid_capstyle="butt")
        axes.plot([x], [mean(found)], marker="o", markersize=6, color=color, gid=f"point-{name}")
    for name, x, found, label in zip(models, xs, values, _places(axes, list(models), xs, values), strict=True):
        _draw_label(axes, name, (x, mean(found)), label)
    return figure


def family_of(name: str) -> tuple[str, str]:
    """The name and the colour of a model's family."""
    return next(family for beginning, family in FAMILIES.items() if name.startswith(beginning))


def _dress(axes: Axes, names: list[str], costs: list[float], lowest: float) -> None:
    axes.set_xscale("log")
    axes.set_xlim(min(costs) / 1.6, max(costs) * 1.8)
    axes.set_ylim(lowest - 0.08 * (100 - lowest) - 0.1, 100 + 0.05 * (100 - lowest) + 0.05)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=9)
    axes.set_xlabel("multiply-adds of one image, in millions", fontsize=10)
    axes.set_ylabel("test accuracy (%)", fontsize=10, labelpad=1)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    found = dict(family_of(name) for name in names)
    handles = [Line2D([], [], marker="o", linestyle="", color=color) for color in found.values()]
    place: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.45, 1.0), "ncols": len(found)}
    axes.legend(handles, list(found), frameon=False, fontsize=9, handletextpad=0, columnspacing=0.6, **place)


def _side_by_side(axes: Axes, costs: list[float]) -> list[float]:
    """Where the points go along x: moved apart where they are nearer than ``ASIDE``, in order."""
    at = axes.transData.transform([(cost, 99) for cost in costs])
    order = np.argsort(at[:, 0], kind="stable")
    wanted = at[order, 0]
    for _ in range(100):  # neighbours push each other until there is room
        short = np.maximum(ASIDE - np.diff(wanted), 0) / 2
        wanted[:-1] -= short
        wanted[1:] += short
    at[order, 0] = wanted
    return axes.transData.inverted().transform(at)[:, 0].tolist()


def _places(axes: Axes, names: list[str], xs: list[float], values: list[list[float]]) -> list[Label]:
    """Where each label goes, so that none covers another, a point or a bar; of several orders, the best."""
    marks = []
    for x, found in zip(xs, values, strict=True):
        (px, py), (_, low), (_, high) = axes.transData.transform(
            [(x, y) for y in (mean(found), min(found), max(found))]
        )
        marks.append([[px - 4, py - 4, px + 4, py + 4], [px - 2, low - 1, px + 2, high + 1]])
    boxes = np.array(marks)
    frame = axes.get_window_extent().extents
    choices = [_choose_from(mark[0], _size_of(axes, name), frame) for mark, name in zip(boxes, names, strict=True)]
    fixed = [_cost(choice, i, boxes) for i, choice in enumerate(choices)]
    draw = np.random.default_rng(0)
    least, best = math.inf, list[Label]()
    for _ in range(ORDERS):
        sum_of_costs, placed = 0.0, np.zeros((0, 4))
        labels: list[Label | None] = [None] * len(names)
        for i in draw.permutation(len(names)):
            choice = choices[i]
            costs = (
                fixed[i] + COVERED * _overlaps(choice.boxes, placed) + CROSSED * _overlaps(choice.dots, placed).sum(1)
            )
            at = int(costs.argmin())
            sum_of_costs += float(costs[at])
            placed = np.concatenate([placed, choice.boxes[at : at + 1], choice.dots[at]])
            end = choice.ends[at] if np.isfinite(choice.dots[at]).all() else None
            labels[i] = Label(choice.boxes[at], None if end is None else (float(end[0]), float(end[1])))
        if sum_of_costs < least:
            least, best = sum_of_costs, [label for label in labels if label is not None]
    return best


def _size_of(axes: Axes, name: str) -> tuple[float, float]:
    text = axes.text(0, 0, name, fontsize=FONT_SIZE)
    box = text.get_window_extent()
    text.remove()
    return box.width + 4, box.height + 1


def _choose_from(mark: Numbers, size: tuple[float, float], frame: Numbers) -> Choice:
    """Places all around a point, near and far, inside of the frame."""
    point, half = (mark[:2] + mark[2:]) / 2, np.array(size) / 2
    angles = 2 * np.pi * np.arange(DIRECTIONS) / DIRECTIONS
    ways = np.stack([np.cos(angles), np.sin(angles)], 1)
    middles = np.concatenate([point + ways * (half + reach) for reach in REACHES])
    boxes = np.concatenate([middles - half, middles + half], 1)
    boxes = boxes[(boxes[:, :2] >= frame[:2]).all(1) & (boxes[:, 2:] <= frame[2:]).all(1)]
    ends = point.clip(boxes[:, :2], boxes[:, 2:])
    distances = np.linalg.norm(ends - point, axis=1)
    along = point + np.linspace(0.2, 1, DOTS)[:, None] * (ends - point)[:, None]
    dots = np.concatenate([along - 2, along + 2], 2)
    dots[distances < 10] = np.nan  # there is no line, and what is compared with this is false
    return Choice(boxes, ends, dots, distances)


def _cost(choice: Choice, number: int, marks: Numbers) -> Numbers:
    """How bad each place is, before there are other labels: by what is covered, and how far away it is."""
    others = np.delete(marks, number, 0).reshape(-1, 4)
    covered = _overlaps(choice.boxes, marks.reshape(-1, 4))
    return COVERED * covered + CROSSED * _overlaps(choice.dots, others).sum(1) + choice.distances


def _overlaps(boxes: Numbers, others: Numbers) -> Numbers:
    """The area of each of ``boxes`` that others cover."""
    low = np.maximum(boxes[..., None, :2], others[:, :2])
    high = np.minimum(boxes[..., None, 2:], others[:, 2:])
    sides = np.maximum(np.nan_to_num(high - low, nan=0.0), 0)
    return sides.prod(-1).sum(-1)


def _draw_label(axes: Axes, name: str, point: tuple[float, float], label: Label) -> None:
    to_data = axes.transData.inverted().transform
    x, y = to_data((label.box[:2] + label.box[2:]) / 2)
    text = {"fontsize": FONT_SIZE, "ha": "center", "va": "center", "gid": f"label-{name}"}
    axes.text(x, y, name, color=family_of(name)[1], **text)
    if label.end is not None:
        end_x, end_y = to_data(label.end)
        axes.plot([point[0], end_x], [point[1], end_y], color="0.45", linewidth=0.6, zorder=1.5)
