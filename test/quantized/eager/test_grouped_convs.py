"""Grouped convolutions of the x86 backend run on oneDNN where FBGEMM would take many times as long."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import deploy, quantized
from torchvision_layers import nn as tnn
from torchvision_layers.testing._checks._quantization import decibels


def runs_on_onednn(model: nn.Module, input: Tensor, capfd: pytest.CaptureFixture[str]) -> bool:
    """Whether oneDNN reports a convolution of the model's groups."""
    capfd.readouterr()
    with torch.no_grad(), torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
        model(input)
    return ",convolution," in capfd.readouterr().out


SLOW = {
    "no padding": nn.Conv2d(104, 104, 3, 2, groups=104),
    "even kernel": nn.Conv2d(104, 104, 4, padding=1, groups=104),
    "dilation": nn.Conv2d(104, 104, 3, padding=2, dilation=2, groups=104),
    "stride of three": nn.Conv2d(104, 104, 3, 3, 1, groups=104),
    "channels": nn.Conv2d(106, 106, 3, padding=1, groups=106),
    "three channels a group": nn.Conv2d(312, 312, 3, padding=1, groups=104),
    "one dimension": nn.Conv1d(104, 104, 3, padding=1, groups=104),
    "three dimensions": nn.Conv3d(104, 104, 3, groups=104),
}


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("name", SLOW)
def test_slow_convolutions_run_on_onednn(name: str, relu: bool, capfd: pytest.CaptureFixture[str]) -> None:
    conv = copy.deepcopy(SLOW[name])
    model = nn.Sequential(conv, nn.ReLU() if relu else nn.Identity()).eval()
    input = torch.rand(2, conv.in_channels, *[7] * (conv.weight.dim() - 2), generator=torch.Generator().manual_seed(0))
    int8 = quantized.quantize(model, [input], backend="x86")
    loaded = quantized.quantize(model, [torch.rand_like(input)], backend="x86")
    loaded.load_state_dict(int8.state_dict())
    for converted in (int8, copy.deepcopy(int8), loaded):
        assert runs_on_onednn(converted, input, capfd)
        assert decibels(model(input), converted(input)) > 35


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_fast_convolutions_stay_where_they_are(kernel_size: int, capfd: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Conv2d(104, 104, kernel_size, padding=kernel_size // 2, groups=104)).eval()
    input = torch.rand(2, 104, 7, 7)
    int8 = quantized.quantize(model, [input], backend="x86")
    assert not runs_on_onednn(int8, input, capfd)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_scripted_copy_computes_the_same() -> None:
    model, input = nn.Sequential(SLOW["no padding"], nn.ReLU()).eval(), torch.rand(2, 104, 7, 7)
    int8 = quantized.quantize(model, [input], backend="x86")
    assert torch.equal(torch.jit.script(int8)(input), int8(input))


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_ties_may_be_rounded_otherwise_in_a_file(tmp_path: Path) -> None:
    """TorchScript packs the weights for FBGEMM, which rounds some of two million values to the other step."""
    layers = [nn.Conv2d(3, 144, 1), nn.ReLU(), tnn.Conv2dSame(144, 144, 3, 2, groups=144), nn.ReLU()]
    model, x = nn.Sequential(*layers, nn.Conv2d(144, 8, 1)).eval(), torch.rand(1, 3, 224, 224)
    int8 = quantized.quantize(model, [x], backend="x86")
    assert deploy.export(int8, x, tmp_path / "model.pt").difference < 0.02
