"""Averages of a model that is prepared for training, as made before its first batch."""

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from torchvision_layers import quantized

ENGINES = (("eager", "x86"), ("eager", "onednn"), ("pt2e", "x86"), ("pt2e", "onnxruntime"))


def prepared(engine: str, backend: str, per_channel: bool) -> nn.Module:
    block = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 1)]
    model = nn.Sequential(*block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
    return quantized.prepare_qat(model, torch.rand(2, 3, 8, 8), engine=engine, backend=backend, per_channel=per_channel)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(("engine", "backend"), ENGINES)
def test_average_follows_the_model(engine: str, backend: str, per_channel: bool) -> None:
    def backward(model: nn.Module, x: Tensor) -> None:
        model(x).square().mean().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.sub_(0.1 * parameter.grad)
                parameter.grad = None

    model = prepared(engine, backend, per_channel)
    averages = [AveragedModel(model), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)]
    for i in range(2):
        backward(model, torch.rand(4, 3, 8, 8))
        for average in averages:
            average.update_parameters(model)
        if i == 0:  # the first update copies
            x = torch.rand(4, 3, 8, 8)
            expected = model.eval()(x)
            assert all(torch.equal(average.eval()(x), expected) for average in averages)
            model.train()
    pairs = zip(averages[0].module.parameters(), model.parameters(), strict=True)
    assert not all(torch.equal(mean, value) for mean, value in pairs)
    int8 = quantized.convert(averages[1].module)
    assert int8(x).isfinite().all()
