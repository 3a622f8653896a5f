"""Mean intersection over union."""

from typing import NamedTuple

import torch
from scenes import Scenes
from torch import Tensor, nn

__all__ = ["Result", "confusion_matrix", "evaluate", "mean_iou"]


class Result(NamedTuple):
    """The figures of one model on a set of scenes."""

    mean_iou: float
    #: By class, the background first.
    iou: list[float]
    pixel_accuracy: float


def confusion_matrix(predicted: Tensor, masks: Tensor, classes: int) -> Tensor:
    """Numbers of pixels by class (rows) and predicted class (columns)."""
    return torch.bincount((masks * classes + predicted).flatten(), minlength=classes**2).view(classes, classes)


def mean_iou(confusion: Tensor) -> Result:
    """Pixels that are right, over those that are of a class or predicted as it. A class without either counts as 1."""
    right = confusion.diagonal().double()
    union = confusion.sum(0) + confusion.sum(1) - right
    iou = torch.where(union > 0, right / union.clamp(min=1), 1.0)
    return Result(float(iou.mean()), iou.tolist(), float(right.sum() / confusion.sum().clamp(min=1)))


@torch.no_grad()
def evaluate(model: nn.Module, scenes: Scenes, classes: int, batch_size: int = 32) -> Result:
    """Evaluates the model in eval mode."""
    model.eval()
    total = torch.zeros(classes, classes, dtype=torch.long)
    for images, masks in zip(scenes.images.split(batch_size), scenes.masks.split(batch_size), strict=True):
        total += confusion_matrix(model(images).argmax(1), masks, classes)
    return mean_iou(total)
