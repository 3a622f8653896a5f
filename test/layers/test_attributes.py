"""Each block says its output channels and its stride."""

import pytest
import torch
from torch import nn

from torchvision_layers import nn as tnn

from ..conformance.specs import SPECS, LayerSpec, Sample

#: Layers of images that keep all samples and may change channels or size.
BLOCKS = {
    *("BasicBlock", "Bottleneck", "Conv1dNormAct", "Conv2dSame", "Conv3dNormAct", "ConvNeXtBlock", "ConvNormAct"),
    *("DepthwiseSeparableConv", "FusedMBConv", "InvertedResidual", "LazyConvNormAct", "LazySqueezeExcitation"),
    *("MBConv", "SqueezeExcitation"),
}
CASES = [(spec, sample) for spec in SPECS if spec.name in BLOCKS for sample in spec.samples]


@pytest.mark.parametrize(("spec", "sample"), CASES, ids=[f"{spec.name} {sample.id}" for spec, sample in CASES])
def test_out_channels_and_reduction(spec: LayerSpec, sample: Sample) -> None:
    """On an image that is large compared with the kernel, which may take pixels from the border."""
    block = spec.cls(**sample.kwargs).eval()
    dims = len(sample.shape) - 2
    side = 64 if dims < 3 else 24
    with torch.no_grad():
        output = block(torch.randn(1, sample.shape[1], *[side] * dims))
    assert type(block.out_channels) is int
    assert output.shape[1] == block.out_channels
    reductions = block.reduction if isinstance(block.reduction, tuple) else (block.reduction,) * dims
    assert [round(side / size) for size in output.shape[2:]] == list(reductions)
    assert isinstance(block.reduction, int) == (len(set(reductions)) == 1)


def test_every_block_has_a_spec() -> None:
    assert {spec.name for spec in SPECS} >= BLOCKS


def test_the_stride_is_that_of_the_convolution() -> None:
    """An argument that a ``partial`` binds wins over that of the block."""
    block = tnn.ConvNormAct(3, 8, conv_layer=lambda *args, **kwargs: nn.Conv2d(*args, **{**kwargs, "stride": 2}))
    assert block.reduction == 2
    padded = tnn.ConvNormAct(
        3, 8, stride=2, conv_layer=lambda *args, **kwargs: nn.Sequential(nn.Conv2d(*args, **kwargs))
    )
    assert padded.reduction == 2
    assert tnn.Conv3dNormAct(3, 8, stride=(1, 2, 2)).reduction == (1, 2, 2)
