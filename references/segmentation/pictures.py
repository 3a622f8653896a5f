"""A picture of scenes, their masks, and the masks that a model predicts."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scenes import CLASSES, Scenes, displayable
from shared import atomic_path
from torch import Tensor, nn

__all__ = ["draw_predictions"]

# The background is dark; the other colours are those of matplotlib's "tab10".
COLORS = torch.tensor(
    [
        *([32, 32, 32], [31, 119, 180], [255, 127, 14], [44, 160, 44], [214, 39, 40], [148, 103, 189]),
        *([140, 86, 75], [227, 119, 194], [127, 127, 127], [188, 189, 34], [23, 190, 207]),
    ]
)


@torch.no_grad()
def draw_predictions(model: nn.Module, scenes: Scenes, path: str | Path, title: str = "", count: int = 8) -> None:
    """Draws the first ``count`` scenes in a column each: image, mask, prediction."""
    model.eval()
    images = scenes.images[:count]
    rows: list[tuple[str, Tensor]] = [
        ("scene", displayable(images).permute(0, 2, 3, 1)),
        ("mask", COLORS[scenes.masks[:count]]),
        ("prediction", COLORS[model(images).argmax(1)]),
    ]
    figure = Figure(figsize=(1.3 * len(images) + 1.6, 4.4), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(len(rows), len(images), squeeze=False)
    for axes_of_row, (name, pictures) in zip(grid, rows, strict=True):
        axes_of_row[0].set_ylabel(name)
        for axes, picture in zip(axes_of_row, pictures, strict=True):
            axes.imshow(picture.numpy())
            axes.set_xticks([])
            axes.set_yticks([])
    patches = [Patch(color=(color / 255).tolist(), label=name) for name, color in zip(CLASSES, COLORS, strict=True)]
    figure.legend(handles=patches, loc="outside right center", frameon=False, fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130)
