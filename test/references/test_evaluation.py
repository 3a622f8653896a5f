"""Metrics and predictions, compared with scikit-learn."""

import math

import pytest
import torch
from common.data.datasets import Images
from common.data.loading import ImageLoader
from common.training.evaluation import evaluate, predict
from sklearn.metrics import confusion_matrix, log_loss, top_k_accuracy_score
from torch import Tensor, nn


def loader_of(outputs: Tensor, labels: list[int], batch_size: int = 2) -> ImageLoader:
    """A loader whose images are the outputs of ``nn.Identity``."""
    return ImageLoader(Images(list(outputs), labels, torch.clone, nn.Identity()), batch_size)


def test_three_images():
    # The first prediction is wrong, and the last batch is smaller.
    outputs = torch.tensor([[0.0, 1.0], [0.0, 3.0], [2.0, 0.0]])
    model = nn.Identity().train()
    loader = loader_of(outputs, [0, 1, 0])
    result = evaluate(model, loader, 2)
    assert result.accuracy == 2 / 3
    assert result.top5_accuracy == 1
    losses = [math.log(1 + math.exp(1)), math.log(1 + math.exp(-3)), math.log(1 + math.exp(-2))]
    assert result.loss == pytest.approx(sum(losses) / 3)
    assert result.confusion.tolist() == [[1, 1], [0, 1]]
    assert not model.training

    predicted = predict(model, loader)
    assert torch.equal(predicted.outputs, outputs)
    assert predicted.predictions.tolist() == [1, 1, 0]
    assert predicted.labels.tolist() == [0, 1, 0]
    assert predicted.accuracy == 2 / 3


def test_metrics_equal_those_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(101, 8, generator=generator)
    labels = torch.randint(8, (101,), generator=generator).tolist()
    result = evaluate(nn.Identity(), loader_of(outputs, labels, 7), 8)
    classes = list(range(8))
    assert result.confusion.tolist() == confusion_matrix(labels, outputs.argmax(1), labels=classes).tolist()
    assert result.accuracy == pytest.approx(top_k_accuracy_score(labels, outputs, k=1, labels=classes))
    assert result.top5_accuracy == pytest.approx(top_k_accuracy_score(labels, outputs, k=5, labels=classes))
    assert result.loss == pytest.approx(log_loss(labels, outputs.double().softmax(1), labels=classes))


def test_label_smoothing_and_nan_loss():
    outputs = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 4.0]])
    result = evaluate(nn.Identity(), loader_of(outputs, [1, 2]), 3, label_smoothing=0.3)
    target = torch.tensor([[0.1, 0.8, 0.1], [0.1, 0.1, 0.8]])
    assert result.loss == pytest.approx(-(target * outputs.log_softmax(1)).sum().item() / 2)
    outputs[0, 0] = float("nan")
    assert math.isnan(evaluate(nn.Identity(), loader_of(outputs, [1, 2]), 3).loss)


def test_no_images():
    loader = loader_of(torch.zeros(0, 2), [])
    for test in (predict, lambda model, loader: evaluate(model, loader, 2)):
        with pytest.raises(ValueError, match="none of the test images can be read"):
            test(nn.Identity(), loader)
