"""The device of these tests, and what they share."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from torchvision_layers import nn as tnn
from torchvision_layers.testing._modes import isolated_modes


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(autouse=True)
def _modes(device: torch.device) -> Iterator[None]:
    """Float32 without TF32, so that results are comparable with those of the CPU."""
    with isolated_modes(device):
        torch.manual_seed(0)
        yield


@pytest.fixture
def model() -> nn.Module:
    """A small classifier on the CPU with stirred batch norms, in eval mode."""
    model = nn.Sequential(
        tnn.ConvNormAct(3, 8, stride=2),
        tnn.InvertedResidual(8, 8, 1, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 1.5)
    return model.eval()
