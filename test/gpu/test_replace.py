"""Replaced layers are on the device of the layers they replace."""

import pytest
import torch
from torch import nn

from torchvision_layers import nn as tnn

if not hasattr(tnn, "replace"):
    pytest.skip("needs tnn.replace", allow_module_level=True)


@pytest.mark.parametrize("new", [tnn.FrozenBatchNorm2d, tnn.LayerNorm2d, tnn.LayerNorm2d(8)], ids=str)
@pytest.mark.filterwarnings("ignore:replaced .* layers, but not everything could be carried over:UserWarning")
def test_replace_keeps_device_and_dtype(device: torch.device, new) -> None:
    for place in (device, torch.device("meta")):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval().to(place, torch.bfloat16)
        replaced = tnn.replace(tnn.replace(model, nn.BatchNorm2d, new), nn.ReLU, nn.PReLU)
        for name, tensor in [*replaced.named_parameters(), *replaced.named_buffers()]:
            assert (tensor.device.type, tensor.dtype) == (place.type, torch.bfloat16), name
        assert replaced(torch.ones(2, 3, 8, 8, device=place, dtype=torch.bfloat16)).shape == (2, 8, 6, 6)
