"""The picture of the variants: accuracy against multiply-adds, with numbered points and a legend."""

from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from ..runs.files import atomic_path

__all__ = ["draw_variants", "plot_variants"]

# Colours of families, by prefix of the name; the first match counts.
COLORS = {
    "mobilenet": "#b34700",
    "efficientnet": "#6a3d9a",
    "convnext": "#187a1f",
    "resnet26_sasa": "#b3123c",
    "vit": "#8a6d00",
    "swin": "#8a6d00",
    "": "#1f5fa8",
}
TICKS = [0.5, 1, 2, 5, 10, 20]  # millions of multiply-adds
MIN_RATIO = 1.08  # of multiply-adds, between bars that would cover each other


def plot_variants(results: dict[str, Any], path: str | Path) -> None:
    """Draws the results of ``variants.json`` to a file, whose suffix sets the format."""
    with (
        rc_context({"svg.hashsalt": "variants", "svg.fonttype": "path"}),  # reproducible, independent of fonts
        atomic_path(path) as temporary,
    ):
        metadata = {"Date": None} if Path(path).suffix == ".svg" else None
        draw_variants(results).savefig(temporary, metadata=metadata)


def draw_variants(results: dict[str, Any]) -> Figure:
    """Points are means over the seeds, and bars extend from the lowest to the highest; models are numbered by cost."""
    models = sorted(results["models"].items(), key=lambda item: item[1]["multiply_adds"])
    figure = Figure(figsize=(8.5, 6.2), dpi=72, facecolor="white", layout="constrained")
    axes = figure.subplots()
    xs = spread_out([entry["multiply_adds"] / 1e6 for _, entry in models])
    points = []
    for number, (x, (name, entry)) in enumerate(zip(xs, models, strict=True), start=1):
        accuracies = [100 * value for value in entry["accuracy"]]
        color = next(color for prefix, color in COLORS.items() if name.startswith(prefix))
        axes.plot([x, x], [min(accuracies), max(accuracies)], color=color, linewidth=3, alpha=0.35)
        style = {"marker": "o", "markersize": 11, "markeredgecolor": "white", "linestyle": ""}
        points += axes.plot(
            [x], [mean(accuracies)], color=color, label=f"{number} {name}", gid=f"point-{name}", **style
        )
        text = {"ha": "center", "va": "center_baseline", "fontsize": 7, "fontweight": "bold"}
        axes.text(x, mean(accuracies), str(number), color="white", **text)
    axes.legend(
        handles=points, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8, handletextpad=0.2
    )
    axes.set_xscale("log")
    axes.set_xticks(TICKS, labels=[f"{tick:g}" for tick in TICKS])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("multiply-adds of one image, in millions (log scale)")
    axes.set_ylabel("test accuracy (%)")
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def spread_out(xs: list[float]) -> list[float]:
    """Moves ascending values apart, in order, until neighbours have at least a ratio of ``MIN_RATIO``."""
    positions, distance = np.log(xs), np.log(MIN_RATIO)
    for _ in range(200):
        push = np.maximum(distance - np.diff(positions), 0) / 2
        positions[:-1] -= push
        positions[1:] += push
    return np.exp(positions).tolist()
