"""The reference models on the device, in mixed precision and channels_last.

``make test-gpu`` also runs the tests of interrupted runs of ``test/references`` there.
"""

import copy
import math

import pytest
import torch
from torch import nn

from torchvision_layers import nn as tnn

from ..references._support.pairs import build_model

NAMES = ("resnet18", "resnet26_sasa", "resnet50_gn_ws", "nf_resnet50", "efficientnet_b0", "convnext_tiny")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "name", ["mobilenet_v3_small", *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES)]
)
def test_a_model_trains_in_mixed_precision(device: torch.device, name: str, dtype: torch.dtype) -> None:
    model = build_model(name, 4, 0.25, 0.34).to(device, memory_format=torch.channels_last).train()
    for module in model.modules():
        if isinstance(module, (nn.Dropout, tnn.StochasticDepth)):
            module.eval()  # devices and dtypes draw different numbers
    images = torch.randn(4, 3, 64, 64).to(device, memory_format=torch.channels_last)
    labels = torch.arange(4, device=device)
    exact = nn.functional.cross_entropy(copy.deepcopy(model).double()(images.double()), labels).item()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**8, enabled=dtype is torch.float16)
    with torch.autocast(device.type, dtype):
        loss = nn.functional.cross_entropy(model(images), labels)
    assert math.isclose(loss.item(), exact, rel_tol=0.05)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters())
    scaler.step(optimizer)
    changed = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
    assert any(changed)  # at first, gains of zero stop some gradients
