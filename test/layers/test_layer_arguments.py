"""Layers given as arguments: copied at each place, placed where the rest is, refused by name where they do not fit."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from torchvision_layers import nn as tnn


@pytest.mark.parametrize(
    "make",
    [
        lambda activation: tnn.ConvNormAct(3, 4, activation_layer=activation),
        lambda activation: tnn.BasicBlock(3, 3, activation_layer=activation),
        lambda activation: tnn.Bottleneck(4, 1, activation_layer=activation),
        lambda activation: tnn.InvertedResidual(3, 3, 1, 2, activation_layer=activation),
        lambda activation: tnn.MBConv(3, 3, activation_layer=activation),
        lambda activation: tnn.MLP(3, [4, 4, 4], activation_layer=activation),
    ],
)
@pytest.mark.parametrize("as_function", [False, True], ids=["instance", "function that gives one instance"])
def test_an_instance_is_copied_at_each_place(make: Callable[..., nn.Module], as_function: bool) -> None:
    given = nn.PReLU()
    layer = make((lambda: given) if as_function else given)
    found = [module for module in layer.modules() if isinstance(module, nn.PReLU)]
    assert len(found) >= 1
    assert given not in found
    names = [name for name, module in layer.named_modules(remove_duplicate=False) if isinstance(module, nn.PReLU)]
    assert len(names) == len(found)


def test_a_given_projection_is_copied_and_placed() -> None:
    projection = nn.Conv2d(3, 5, 1)
    block = tnn.BasicBlock(3, 5, downsample=projection, device="meta", dtype=torch.float64)
    assert (block.downsample.weight.device.type, block.downsample.weight.dtype) == ("meta", torch.float64)
    assert projection.weight.device.type == "cpu"


def test_a_projection_of_another_shape_is_named() -> None:
    block = tnn.BasicBlock(3, 5, downsample=nn.Conv2d(3, 1, 1))
    with pytest.raises(ValueError, match=r"the output of downsample must have the shape of the branch \[2, 5, 4, 4\], got"):
        block(torch.randn(2, 3, 4, 4))


class TwoConvolutions(nn.Module):
    """What users of the original proposal write: one activation, given as an instance, to two layers in a chain."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.first = tnn.ConvNormAct(3, 8, norm_layer=nn.BatchNorm2d, activation_layer=activation)
        self.second = tnn.ConvNormAct(8, 4, kernel_size=1, norm_layer=nn.BatchNorm2d, activation_layer=activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def test_two_layers_chained_with_one_activation_instance() -> None:
    model = TwoConvolutions(nn.ReLU(inplace=True)).eval()
    first, second = model.first, model.second
    assert first[2] is not second[2]
    assert first[2].inplace
    x = torch.randn(2, 3, 9, 7)
    by_hand = nn.Sequential(first[0], first[1], nn.ReLU(), second[0], second[1], nn.ReLU())
    assert torch.equal(model(x), by_hand(x))


@pytest.mark.parametrize(
    ("make", "place", "groups"),
    [
        (lambda conv: tnn.ConvNormAct(8, 8, 5, groups=2, conv_layer=conv), "0", 2),
        (lambda conv: tnn.BasicBlock(8, 8, dilation=2, conv_layer=conv), "conv2", 1),
        (lambda conv: tnn.Bottleneck(8, 8, stride=2, conv_layer=conv), "conv2", 1),
    ],
)
def test_what_a_partial_binds_stays(make: Callable[..., nn.Module], place: str, groups: int) -> None:
    plain, bound = (
        make(conv).get_submodule(place)
        for conv in (nn.Conv2d, partial(nn.Conv2d, kernel_size=7, padding=3, groups=4, padding_mode="reflect"))
    )
    assert (bound.kernel_size, bound.padding, bound.groups, bound.padding_mode) == ((7, 7), (3, 3), 4, "reflect")
    assert (bound.stride, bound.dilation, plain.groups) == (plain.stride, plain.dilation, groups)
    assert plain.kernel_size != (7, 7)
