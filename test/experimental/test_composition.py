"""Experimental layers as convolutions and channel attention of the stable blocks."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from torchvision_layers import nn as tnn
from torchvision_layers.experimental import nn as enn

# A block built with an experimental layer, the class of that layer, and its expected attributes by path.
Composition = tuple[Callable[..., nn.Module], type[nn.Module], dict[str, dict[str, Any]]]
COMPOSITIONS: dict[str, Composition] = {
    "ConvNormAct": (
        partial(tnn.ConvNormAct, 8, 16, 3, stride=2, dilation=2, groups=4, conv_layer=tnn.WSConv2d),
        tnn.WSConv2d,
        {
            "0": {
                "in_channels": 8,
                "out_channels": 16,
                "kernel_size": (3, 3),
                "stride": (2, 2),
                "padding": (2, 2),
                "dilation": (2, 2),
                "groups": 4,
                "bias": None,
                "eps": 1e-10,
            }
        },
    ),
    "ConvNormAct without norm": (
        partial(tnn.ConvNormAct, 8, 16, norm_layer=None, conv_layer=partial(tnn.SWSConv2d, gamma=1.5)),
        tnn.SWSConv2d,
        {"0": {"padding": (1, 1), "gamma": 1.5}},
    ),
    "BasicBlock": (
        partial(tnn.BasicBlock, 8, 16, stride=2, conv_layer=enn.CoordConv2d),
        enn.CoordConv2d,
        {
            "conv1": {"in_channels": 8, "out_channels": 16, "stride": (2, 2), "padding": (1, 1), "bias": None},
            "conv2": {"in_channels": 16, "out_channels": 16, "stride": (1, 1), "padding": (1, 1), "with_r": False},
        },
    ),
    "Bottleneck": (
        partial(tnn.Bottleneck, 8, 16, stride=2, conv_layer=partial(enn.MultiHeadedSpatialAttention, groups=8)),
        enn.MultiHeadedSpatialAttention,
        {
            "conv2": {
                "in_channels": 16,
                "out_channels": 16,
                "kernel_size": (3, 3),
                "stride": (2, 2),
                "padding": (1, 1),
                "dilation": (1, 1),
                "groups": 8,  # bound by the partial; the block passes 1
                "head_channels": 2,
            }
        },
    ),
    "Bottleneck with wide windows": (
        partial(
            tnn.Bottleneck,
            8,
            16,
            conv_layer=partial(enn.MultiHeadedSpatialAttention, kernel_size=7, padding=3, groups=4),
        ),
        enn.MultiHeadedSpatialAttention,
        {"conv2": {"kernel_size": (7, 7), "padding": (3, 3), "stride": (1, 1), "groups": 4}},
    ),
    "BasicBlock with attention": (
        partial(tnn.BasicBlock, 8, 32, se_layer=enn.SEBlock),
        enn.SEBlock,
        {"se": {"input_channels": 32, "squeeze_channels": 2, "ratio": 16}},
    ),
    "Bottleneck with attention": (
        partial(tnn.Bottleneck, 8, 16, se_layer=partial(enn.SEBlock, ratio=4, activation=nn.ReLU)),
        enn.SEBlock,
        {"se": {"input_channels": 64, "squeeze_channels": 16, "ratio": 4}},
    ),
}
SHAPES = {  # output shapes for an input of shape (2, 8, 12, 12)
    "ConvNormAct": (2, 16, 6, 6),
    "ConvNormAct without norm": (2, 16, 12, 12),
    "BasicBlock": (2, 16, 6, 6),
    "Bottleneck": (2, 64, 6, 6),
    "Bottleneck with wide windows": (2, 64, 12, 12),
    "BasicBlock with attention": (2, 32, 12, 12),
    "Bottleneck with attention": (2, 64, 12, 12),
}
each_composition = pytest.mark.parametrize("name", COMPOSITIONS)


@each_composition
def test_the_block_passes_its_arguments_to_the_layer(name: str) -> None:
    make, cls, places = COMPOSITIONS[name]
    block = make()
    assert [path for path, module in block.named_modules() if isinstance(module, cls)] == list(places)
    for path, numbers in places.items():
        layer = block.get_submodule(path)
        assert type(layer) is cls
        assert {key: getattr(layer, key) for key in numbers} == numbers


@each_composition
def test_the_block_calls_the_layer(name: str) -> None:
    make, _, places = COMPOSITIONS[name]
    block, shapes = make(), {}
    for path in places:
        hook = partial(lambda path, _, inputs, output: shapes.update({path: (inputs[0].shape, output.shape)}), path)
        block.get_submodule(path).register_forward_hook(hook)
    output = block(torch.randn(2, 8, 12, 12))
    assert list(shapes) == list(places)
    assert bool(output.isfinite().all())
    assert output.shape == SHAPES[name]


@each_composition
def test_training_changes_every_parameter(name: str) -> None:
    block = COMPOSITIONS[name][0]()
    x = torch.randn(4, 8, 12, 12)
    target = torch.randn_like(block(x))
    before = {key: value.detach().clone() for key, value in block.named_parameters()}
    optimizer = torch.optim.SGD(block.parameters(), lr=0.05)
    losses = []
    for _ in range(5):
        loss = (block(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    unchanged = [key for key, value in block.named_parameters() if torch.equal(value, before[key])]
    assert unchanged == []


@each_composition
def test_weights_load_into_another_block(name: str) -> None:
    make = COMPOSITIONS[name][0]
    x = torch.randn(2, 8, 12, 12)
    block, other = make(), make()
    block(x)  # changes the running statistics
    other.load_state_dict(block.state_dict(), strict=True)
    assert torch.equal(other.eval()(x), block.eval()(x))
    assert list(other.state_dict()) == list(block.state_dict())


@pytest.mark.parametrize("cls", [tnn.WSConv2d, tnn.SWSConv2d])
@pytest.mark.parametrize("bias", [True, False])
def test_checkpoints_of_plain_convolutions_load(cls: type[nn.Conv2d], bias: bool) -> None:
    plain, layer = nn.Conv2d(4, 6, 3, groups=2, bias=bias), cls(4, 6, 3, groups=2, bias=bias)
    layer.load_state_dict(plain.state_dict(), strict=True)
    assert torch.equal(layer.weight, plain.weight)
    assert list(layer.state_dict()) == list(plain.state_dict())
    x = torch.randn(1, 4, 5, 5)
    assert not torch.allclose(layer(x), plain(x), atol=1e-2)
    block = tnn.ConvNormAct(4, 6, conv_layer=cls)
    block.load_state_dict(tnn.ConvNormAct(4, 6).state_dict(), strict=True)


def test_se_block_equals_squeeze_excitation_with_the_same_channels() -> None:
    block, plain = enn.SEBlock(32, ratio=4), tnn.SqueezeExcitation(32, 8, activation=nn.SiLU)
    plain.load_state_dict(block.state_dict(), strict=True)
    x = torch.randn(2, 32, 5, 5)
    assert torch.equal(block(x), plain(x))


def test_se_block_says_its_successor() -> None:
    with pytest.warns(
        FutureWarning, match=r"removed in 0.2: use tnn.SqueezeExcitation\(channels, channels // ratio"
    ) as record:
        enn.SEBlock(32)
    assert record[0].filename == __file__


def test_aliases_of_torch() -> None:
    assert enn.Flatten is nn.Flatten
    assert enn.Mish is nn.Mish
    assert enn.Swish is nn.SiLU
    block = tnn.ConvNormAct(3, 4, norm_layer=partial(nn.GroupNorm, 2), activation_layer=enn.Mish)
    assert type(block[2]) is nn.Mish


def test_a_subclass_of_se_block_keeps_its_class() -> None:
    class Doubled(enn.SEBlock):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    x = torch.randn(1, 8, 4, 4)
    block = Doubled(8, ratio=4)
    assert type(block) is Doubled
    plain = enn.SEBlock(8, ratio=4)
    plain.load_state_dict(block.state_dict())
    torch.testing.assert_close(block(x), 2 * plain(x))
    with pytest.raises(TypeError, match="in_channels must be an int in a subclass of SEBlock, Doubled got None"):
        Doubled(ratio=4)
