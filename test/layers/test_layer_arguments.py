"""Layer arguments: copies for each use, device and dtype, and errors that name the argument."""

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
@pytest.mark.parametrize("as_function", [False, True], ids=["instance", "function that returns one instance"])
def test_an_instance_is_copied_for_each_use(make: Callable[..., nn.Module], as_function: bool) -> None:
    activation = nn.PReLU()
    layer = make((lambda: activation) if as_function else activation)
    copies = [module for module in layer.modules() if isinstance(module, nn.PReLU)]
    assert len(copies) >= 1
    assert activation not in copies
    names = [name for name, module in layer.named_modules(remove_duplicate=False) if isinstance(module, nn.PReLU)]
    assert len(names) == len(copies)


def test_downsample_is_copied_and_moved_to_device_and_dtype() -> None:
    conv = nn.Conv2d(3, 5, 1)
    block = tnn.BasicBlock(3, 5, downsample=conv, device="meta", dtype=torch.float64)
    assert (block.downsample.weight.device.type, block.downsample.weight.dtype) == ("meta", torch.float64)
    assert conv.weight.device.type == "cpu"


def test_error_names_a_downsample_with_the_wrong_shape() -> None:
    block = tnn.BasicBlock(3, 5, downsample=nn.Conv2d(3, 1, 1))
    message = r"the output of downsample must have the shape of the branch \[2, 5, 4, 4\], got"
    with pytest.raises(ValueError, match=message):
        block(torch.randn(2, 3, 4, 4))


class TwoConvolutions(nn.Module):
    """Use of the original proposal: two layers share one activation instance."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.first = tnn.ConvNormAct(3, 8, norm_layer=nn.BatchNorm2d, activation_layer=activation)
        self.second = tnn.ConvNormAct(8, 4, kernel_size=1, norm_layer=nn.BatchNorm2d, activation_layer=activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def test_two_layers_do_not_share_an_activation_instance() -> None:
    model = TwoConvolutions(nn.ReLU(inplace=True)).eval()
    first, second = model.first, model.second
    assert first[2] is not second[2]
    assert first[2].inplace
    x = torch.randn(2, 3, 9, 7)
    by_hand = nn.Sequential(first[0], first[1], nn.ReLU(), second[0], second[1], nn.ReLU())
    assert torch.equal(model(x), by_hand(x))


@pytest.mark.parametrize(
    ("make", "path", "groups"),
    [
        (lambda conv: tnn.ConvNormAct(8, 8, 5, groups=2, conv_layer=conv), "0", 2),
        (lambda conv: tnn.BasicBlock(8, 8, dilation=2, conv_layer=conv), "conv2", 1),
        (lambda conv: tnn.Bottleneck(8, 8, stride=2, conv_layer=conv), "conv2", 1),
    ],
)
def test_arguments_bound_by_a_partial_take_precedence(make: Callable[..., nn.Module], path: str, groups: int) -> None:
    plain, bound = (
        make(conv).get_submodule(path)
        for conv in (nn.Conv2d, partial(nn.Conv2d, kernel_size=7, padding=3, groups=4, padding_mode="reflect"))
    )
    assert (bound.kernel_size, bound.padding, bound.groups, bound.padding_mode) == ((7, 7), (3, 3), 4, "reflect")
    assert (bound.stride, bound.dilation, plain.groups) == (plain.stride, plain.dilation, groups)
    assert plain.kernel_size != (7, 7)


@pytest.mark.parametrize(
    ("layer", "reason"), [(partial(nn.GroupNorm, 3), "must be divisible by num_groups"), (nn.Dropout, "probability")]
)
def test_errors_of_constructors_name_the_argument(layer: Callable[..., nn.Module], reason: str) -> None:
    with pytest.raises(ValueError, match=rf"^norm_layer=.* cannot be called with \(8,\) {{}}: .*{reason}"):
        tnn.ConvNormAct(3, 8, norm_layer=layer)
