"""Metrics and predictions of a model on the images of a loader."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics.aggregation import SumMetric
from torchmetrics.classification import MulticlassConfusionMatrix
from tqdm import tqdm

from .. import distributed
from ..data.loading import ImageLoader

TOP = 5
BLANK_SHAPE = (1, 3, 64, 64)


class Evaluation(NamedTuple):
    """Means over the images of all processes, each counted once, and the confusion matrix, one row per true class."""

    accuracy: float
    top5_accuracy: float
    loss: float
    confusion: Tensor


class Predictions(NamedTuple):
    """Outputs, predicted classes and true classes of the images, in the order of the loader."""

    outputs: Tensor
    predictions: Tensor
    labels: Tensor

    @property
    def accuracy(self) -> float:
        return (self.predictions == self.labels).sum().item() / len(self.labels)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: ImageLoader,
    num_classes: int,
    *,
    label_smoothing: float = 0.0,
    device: torch.device | None = None,
    is_sharded: bool = False,
) -> Evaluation:
    """Tests ``model`` on every image of ``loader``, each process on its part, and leaves it in evaluation mode.

    Args:
        model: called with a batch of images.
        loader: images and labels.
        num_classes: size of the output.
        label_smoothing: label smoothing of the cross-entropy. Default: ``0.0``.
        device: device of the model. Default: ``None``, the CPU.
        is_sharded: whether the parameters are sharded, so that every process must call the model equally often.
            Default: ``False``.

    Raises:
        ValueError: if no image can be read.
    """
    device = device or torch.device("cpu")
    confusion = MulticlassConfusionMatrix(num_classes, validate_args=False).to(device)
    top5, loss = (SumMetric(nan_strategy="disable").set_dtype(torch.float64).to(device) for _ in range(2))

    def add(output: Tensor, labels: Tensor) -> None:
        confusion.update(output, labels)
        top = output.topk(min(TOP, num_classes)).indices
        top5.update((top == labels[:, None]).sum())
        cross_entropy = nn.functional.cross_entropy(output, labels, label_smoothing=label_smoothing, reduction="sum")
        loss.update(cross_entropy.double())

    no_labels = torch.zeros(0, dtype=torch.long, device=device)
    add(torch.zeros(0, num_classes, device=device), no_labels)  # this process may have no images
    for images, labels in _batches(model, loader, device, is_sharded):
        add(model(images)[: len(labels)].float(), labels)
    counts = confusion.compute().cpu()
    count = counts.sum().item()
    if count == 0:
        raise ValueError("none of the test images can be read")
    accuracy = counts.diagonal().sum().item() / count
    return Evaluation(accuracy, top5.compute().item() / count, loss.compute().item() / count, counts)


@torch.inference_mode()
def predict(model: nn.Module, loader: ImageLoader) -> Predictions:
    """Predictions of ``model`` for every image of ``loader``, in one process; leaves it in evaluation mode.

    Raises:
        ValueError: if no image can be read.
    """
    outputs, labels = [], []
    for images, batch_labels in _batches(model, loader, torch.device("cpu"), is_sharded=False):
        outputs.append(model(images))
        labels.append(batch_labels)
    if not labels:
        raise ValueError("none of the test images can be read")
    output = torch.cat(outputs)
    return Predictions(output, output.argmax(dim=1), torch.cat(labels))


def _batches(
    model: nn.Module, loader: ImageLoader, device: torch.device, is_sharded: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches, with a progress bar; in place of an empty one, a sharded model gets a blank image without label."""
    model.eval()
    total = len(loader.dataset)
    with tqdm(total=total, desc="test", unit=" images", leave=False, disable=distributed.rank() > 0 or None) as bar:
        for images, labels, _ in loader.batches():
            if images is not None:
                yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
                bar.update(min(len(images) * loader.processes, total - bar.n))
            elif is_sharded:
                yield torch.zeros(BLANK_SHAPE, device=device), torch.zeros(0, dtype=torch.long, device=device)
