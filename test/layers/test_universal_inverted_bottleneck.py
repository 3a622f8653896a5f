"""UniversalInvertedBottleneck: the four blocks that MobileNetV4 unifies."""

import pytest
import torch
from torch import nn

from torchvision_layers import nn as tnn


def test_inverted_bottleneck_is_that_of_mobilenet_v2() -> None:
    """Figure 4: without the first depthwise convolution it is the block of MobileNetV2."""
    ours = tnn.UniversalInvertedBottleneck(8, 8, None, 3, expand_ratio=6, activation_layer=nn.ReLU6)
    theirs = tnn.InvertedResidual(8, 8, stride=1, expand_ratio=6)
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x = torch.randn(2, 8, 9, 9)
    assert torch.equal(ours(x), theirs(x))


def test_feed_forward_block_mixes_no_pixels() -> None:
    """Two pointwise convolutions and nothing else."""
    block = tnn.UniversalInvertedBottleneck(8, 8, None, None).eval()
    assert {module.kernel_size for module in block.modules() if isinstance(module, nn.Conv2d)} == {(1, 1)}
    x = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(block(x.flip(3)), block(x).flip(3))


@pytest.mark.parametrize(
    ("start", "middle", "strides"),
    [(5, 3, [1, 1, 2, 1]), (5, None, [2, 1, 1]), (None, 5, [1, 2, 1])],
    ids=["extra depthwise", "convnext-like", "inverted bottleneck"],
)
def test_stride_is_that_of_the_middle_convolution_if_there_is_one(
    start: int | None, middle: int | None, strides: list[int]
) -> None:
    block = tnn.UniversalInvertedBottleneck(4, 6, start, middle, stride=2)
    assert [module.stride[0] for module in block.modules() if isinstance(module, nn.Conv2d)] == strides


def test_activations_follow_the_wide_convolutions_only() -> None:
    block = tnn.UniversalInvertedBottleneck(4, 4, 3, 3)
    with_activation = [name for name, part in block.block.named_children() if isinstance(part[-1], nn.ReLU)]
    assert with_activation == ["expand", "middle"]


def test_attributes() -> None:
    block = tnn.UniversalInvertedBottleneck(4, 6, 3, None, stride=2)
    assert (block.out_channels, block.reduction) == (6, 2)


@pytest.mark.parametrize("options", [{}, {"layer_scale": 1e-5, "stochastic_depth": 0.2}], ids=str)
def test_block_of_timm(options: dict[str, float]) -> None:
    blocks = pytest.importorskip("timm.models._efficientnet_blocks")
    ours = tnn.UniversalInvertedBottleneck(8, 8, 5, 3, expand_ratio=3, **options).eval()
    scale = options.get("layer_scale")
    theirs = blocks.UniversalInvertedResidual(8, 8, 5, 3, exp_ratio=3, layer_scale_init_value=scale).eval()
    names = {"dw_start": "start", "pw_exp": "expand", "dw_mid": "middle", "pw_proj": "project", "layer_scale": "scale"}
    parts = {"conv": "0", "bn": "1", "gamma": "weight"}
    state = {}
    for key, value in theirs.state_dict().items():
        name, part, *rest = key.split(".")
        state[".".join(["block", names[name], parts[part], *rest])] = value
    ours.load_state_dict(state, strict=True)
    x = torch.randn(2, 8, 9, 9)
    torch.testing.assert_close(ours(x), theirs(x))
