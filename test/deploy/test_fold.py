"""The modules that ``deploy.fold`` folds into each other, and those that it keeps."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision.ops
from torch import Tensor, nn

from torchvision_layers import deploy
from torchvision_layers import nn as tnn
from torchvision_layers.experimental import nn as enn

from ._support import FunctionModule, assert_folds, leaf_classes, randomize

IMAGES = {1: (2, 4, 9), 2: (2, 4, 6, 7), 3: (2, 4, 4, 5, 6)}
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"groups": 2, "stride": 2, "padding": 1},
        {"groups": 4, "padding": 2, "dilation": 2},
        {"padding": "same", "padding_mode": "circular"},
        {"padding": 1, "padding_mode": "reflect"},
    ],
    ids=str,
)
def test_batch_norm_folds_into_convolution(arguments: dict[str, Any], dims: int, bias: bool) -> None:
    model = nn.Sequential(CONVS[dims](4, 8, 3, bias=bias, **arguments), NORMS[dims](8, eps=0.3))
    folded = assert_folds(randomize(model), torch.randn(IMAGES[dims]))
    assert leaf_classes(folded) == {"0": CONVS[dims].__name__}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"groups": 2, "stride": 2, "padding": 1, "output_padding": 1}, {"groups": 4, "dilation": 2}],
    ids=str,
)
def test_batch_norm_folds_into_transposed_convolution(arguments: dict[str, Any], dims: int, bias: bool) -> None:
    model = nn.Sequential(TRANSPOSED[dims](4, 8, 3, bias=bias, **arguments), NORMS[dims](8, eps=0.3))
    folded = assert_folds(randomize(model), torch.randn(IMAGES[dims]))
    assert leaf_classes(folded) == {"0": TRANSPOSED[dims].__name__}


@pytest.mark.parametrize("bias", [False, True])
def test_batch_norm_folds_into_linear_layer(bias: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 6, bias=bias), nn.BatchNorm1d(6, eps=0.3))
    assert leaf_classes(assert_folds(randomize(model), torch.randn(5, 4))) == {"0": "Linear"}


def test_weights_of_grouped_transposed_convolution() -> None:
    """Input channels 0 and 1 contribute to outputs 0, 1 and 2; channels 2 and 3 contribute to 3, 4 and 5."""
    conv, norm = nn.ConvTranspose2d(4, 6, 2, groups=2), nn.BatchNorm2d(6, eps=0.5)
    model = randomize(nn.Sequential(conv, norm)).double()
    (folded,) = deploy.fold(model)
    for i in range(4):
        for j in range(3):
            o = 3 * (i // 2) + j
            factor = norm.weight[o] / (norm.running_var[o] + 0.5).sqrt()
            torch.testing.assert_close(folded.weight[i, j], conv.weight[i, j] * factor)
            torch.testing.assert_close(folded.bias[o], (conv.bias[o] - norm.running_mean[o]) * factor + norm.bias[o])


def test_weights_of_linear_layer_between_scales() -> None:
    before, linear, after = tnn.LayerScale(3, 1.0, -1), nn.Linear(3, 2), tnn.LayerScale(2, 1.0, -1)
    model = randomize(nn.Sequential(before, linear, after)).double()
    (folded,) = deploy.fold(model)
    expected = after.weight[:, None] * linear.weight * before.weight[None, :]
    torch.testing.assert_close(folded.weight, expected.detach())
    torch.testing.assert_close(folded.bias, (after.weight * linear.bias).detach())


FOLDS: dict[str, Callable[[], nn.Module]] = {
    "no affine": lambda: nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8, affine=False)),
    "frozen of torchvision": lambda: nn.Sequential(nn.Conv2d(4, 8, 3), torchvision.ops.FrozenBatchNorm2d(8, eps=0.2)),
    "frozen": lambda: nn.Sequential(nn.Conv2d(4, 8, 3, bias=False), tnn.FrozenBatchNorm2d(8, eps=0.2)),
    "frozen, transposed": lambda: nn.Sequential(nn.ConvTranspose2d(4, 8, 3, groups=2), tnn.FrozenBatchNorm2d(8)),
    "synchronized": lambda: nn.Sequential(nn.Conv2d(4, 8, 3), nn.SyncBatchNorm(8)),
    "two norms": lambda: nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.Dropout(), nn.BatchNorm2d(8)),
    "norm and scale": lambda: nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), tnn.LayerScale(8)),
    "scale and norm": lambda: nn.Sequential(nn.Conv2d(4, 8, 3), tnn.LayerScale(8), nn.BatchNorm2d(8)),
    "scale behind": lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), tnn.LayerScale(8)),
    "scale ahead": lambda: nn.Sequential(tnn.LayerScale(4), nn.Conv2d(4, 8, 3, groups=2, padding=1)),
    "scale ahead, reflected": lambda: nn.Sequential(
        tnn.LayerScale(4), nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect")
    ),
    "scale ahead, transposed": lambda: nn.Sequential(tnn.LayerScale(4), nn.ConvTranspose2d(4, 8, 3, groups=2)),
    "scale ahead, nested": lambda: nn.Sequential(
        tnn.LayerScale(4), nn.Dropout(), nn.Sequential(nn.Identity(), tnn.ConvNormAct(4, 8, activation_layer=None))
    ),
    "scale ahead of standardized weights": lambda: nn.Sequential(tnn.LayerScale(4), tnn.WSConv2d(4, 8, 3)),
    "scale ahead of coordinates": lambda: nn.Sequential(tnn.LayerScale(4), enn.CoordConv2d(4, 8, 3, padding=1)),
    "scale after coordinates": lambda: nn.Sequential(enn.CoordConv2d(4, 8, 3), tnn.LayerScale(8)),
    "coordinates": lambda: nn.Sequential(enn.CoordConv2d(4, 8, 3, groups=2, padding=1), nn.BatchNorm2d(8)),
    "coordinates, no bias": lambda: nn.Sequential(
        enn.CoordConv2d(4, 8, 3, bias=False, with_r=True, padding_mode="circular", padding=1), tnn.FrozenBatchNorm2d(8)
    ),
    "standardized": lambda: nn.Sequential(tnn.WSConv2d(4, 8, 3, groups=2, eps=1e-3), nn.BatchNorm2d(8)),
    "standardized and scaled": lambda: nn.Sequential(tnn.SWSConv2d(4, 8, 3, padding="same"), nn.BatchNorm2d(8)),
    "norm after a block": lambda: nn.Sequential(nn.Sequential(nn.ReLU(), nn.Conv2d(4, 8, 3)), nn.BatchNorm2d(8)),
    "norm after a block of a user": lambda: nn.Sequential(
        FunctionModule(lambda self, x: self.conv(x.relu()), conv=nn.Conv2d(4, 8, 3)), nn.BatchNorm2d(8)
    ),
}


@pytest.mark.parametrize("make", FOLDS.values(), ids=FOLDS)
def test_folded(make: Callable[[], nn.Module]) -> None:
    """Only one convolution remains, perhaps with a position map and an activation."""
    folded = assert_folds(randomize(make()), torch.randn(2, 4, 7, 6))
    left = {name for name in leaf_classes(folded).values() if name not in ("ReLU", "Conv2d")}
    assert left <= {"ConvTranspose2d"}
    count = 2 if any(type(module).__name__ == "PositionMap" for module in folded.modules()) else 1
    assert sum(isinstance(module, nn.modules.conv._ConvNd) for module in folded.modules()) == count


class Doubled(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input).relu()


class OwnNorm(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


class OwnFrozen(tnn.FrozenBatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class OwnScale(tnn.LayerScale):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).abs()


class OwnDropout(nn.Dropout):
    def forward(self, input: Tensor) -> Tensor:
        return input + 1


class OwnStandardized(tnn.WSConv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class OwnBlock(tnn.ConvNeXtBlock):
    def forward(self, input: Tensor) -> Tensor:
        return self.layer_scale * self.block(input)


def with_own_forward(module: nn.Module) -> nn.Module:
    """Patches the instance, as some libraries do."""
    of_class = type(module).forward
    module.forward = lambda x: of_class(module, x).relu()
    return module


NOT_FOLDED: dict[str, Callable[[], list[nn.Module]]] = {
    "subclass of a convolution": lambda: [Doubled(4, 8, 3), nn.BatchNorm2d(8)],
    "subclass of a norm": lambda: [nn.Conv2d(4, 8, 3), OwnNorm(8)],
    "subclass of a frozen norm": lambda: [nn.Conv2d(4, 8, 3), OwnFrozen(8)],
    "subclass of a scale": lambda: [nn.Conv2d(4, 8, 3), OwnScale(8)],
    "subclass of a dropout": lambda: [OwnDropout(), nn.Conv2d(4, 8, 3)],
    "subclass with folded()": lambda: [OwnStandardized(4, 8, 3)],
    "subclass of a block": lambda: [OwnBlock(4)],
    "patched convolution": lambda: [with_own_forward(nn.Conv2d(4, 8, 3)), nn.BatchNorm2d(8)],
    "patched norm": lambda: [nn.Conv2d(4, 8, 3), with_own_forward(nn.BatchNorm2d(8))],
    "patched block": lambda: [with_own_forward(nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)))],
    "patched folded()": lambda: [with_own_forward(tnn.WSConv2d(4, 8, 3))],
    "batch statistics": lambda: [nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8, track_running_stats=False)],
    "norm first": lambda: [nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3)],
    "activation between": lambda: [nn.Conv2d(4, 8, 3), nn.ReLU(), nn.BatchNorm2d(8)],
    "other norms": lambda: [nn.Conv2d(4, 8, 3), nn.GroupNorm(2, 8), nn.InstanceNorm2d(8), tnn.LayerNorm2d(8)],
    "columns of images": lambda: [nn.Conv2d(4, 4, 3), tnn.LayerScale(4, 1.0, -1), nn.Conv2d(4, 4, 1)],
    "norm of images after a linear layer": lambda: [nn.Linear(6, 4), nn.BatchNorm2d(4)],
    "features of pixels": lambda: [nn.Linear(6, 4), tnn.LayerScale(4), nn.Linear(4, 4)],
}


@pytest.mark.parametrize("make", NOT_FOLDED.values(), ids=NOT_FOLDED)
def test_not_folded(make: Callable[[], list[nn.Module]]) -> None:
    model = randomize(nn.Sequential(*make()))
    before, x = leaf_classes(model), torch.randn(2, 4, 7, 6)
    with torch.no_grad():
        folded = deploy.fold(model)
        torch.testing.assert_close(folded(x), model(x), rtol=0, atol=0)
    assert leaf_classes(folded) == before


@pytest.mark.parametrize("module", [tnn.LayerScale(1), nn.BatchNorm2d(1)], ids=["scale", "norm"])
def test_other_number_of_channels_still_raises(module: nn.Module) -> None:
    folded = deploy.fold(randomize(nn.Sequential(nn.Conv2d(4, 8, 3), module)))
    with pytest.raises((RuntimeError, ValueError), match="must have size 1 in dimension 1|elements"):
        folded(torch.randn(2, 4, 7, 6))
    folded = deploy.fold(nn.Sequential(tnn.LayerScale(1), nn.Conv2d(4, 8, 3)))
    with pytest.raises(ValueError, match="must have size 1 in dimension 1"):
        folded(torch.randn(2, 4, 7, 6))


def test_convnext_block_with_other_linear_layer() -> None:
    class Low(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).tanh()

    block = tnn.ConvNeXtBlock(4, expansion=2, activation_layer=None)
    block.block[5] = Low(8, 4)
    folded = assert_folds(randomize(block), torch.randn(2, 4, 8, 7))
    assert folded.layer_scale is not None


def test_convnext_block() -> None:
    block = randomize(tnn.ConvNeXtBlock(4, stochastic_depth=0.5))
    folded = assert_folds(block, torch.randn(2, 4, 8, 7))
    assert folded.layer_scale is None
    assert type(folded.stochastic_depth) is nn.Identity
    assert sorted({*block.state_dict()} - {*folded.state_dict()}) == ["layer_scale"]


def test_squeeze_excitation_takes_one_mean() -> None:
    layer = tnn.SqueezeExcitation(4, 2).eval()
    folded = deploy.fold(layer)
    for form in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 4, 7, 6).to(memory_format=form)
        assert torch.equal(folded(x), layer(x).detach())
    program = torch.export.export(folded, (x,), dynamic_shapes=({2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},))
    operators = {str(node.target) for node in program.graph.nodes}
    assert "aten.mean.dim" in operators
    assert not any("sum" in name for name in operators)


def test_identities_are_removed() -> None:
    same = nn.Dropout(0.2)
    model = nn.Sequential(
        same, nn.Identity(), nn.Conv2d(4, 8, 3), nn.Dropout2d(), nn.AlphaDropout(), tnn.StochasticDepth(0.1, "row"),
        torchvision.ops.DropBlock2d(0.1, 3), nn.Sequential(nn.Dropout(), nn.ReLU(), nn.FeatureAlphaDropout()),
        torchvision.ops.StochasticDepth(0.1, "row"), same,
    )  # fmt: skip
    folded = assert_folds(model, torch.randn(2, 4, 7, 6))
    assert leaf_classes(folded) == {"2": "Conv2d", "7.1": "ReLU"}
    folded = assert_folds(nn.Sequential(nn.Conv1d(4, 8, 3), nn.Dropout1d()), torch.randn(2, 4, 7))
    assert leaf_classes(folded) == {"0": "Conv1d"}
    model = nn.Sequential(nn.Dropout3d(), nn.Conv3d(4, 8, 3), torchvision.ops.DropBlock3d(0.1, 3))
    assert leaf_classes(assert_folds(model, torch.randn(2, 4, 7, 6, 5))) == {"1": "Conv3d"}


def test_sequential_with_own_forward_keeps_its_children() -> None:
    class Indexed(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return self[2](self[1](self[0](input)))

    model = Indexed(nn.Conv2d(4, 8, 3), nn.Dropout(), nn.ReLU(), nn.Conv2d(4, 4, 1))
    folded = assert_folds(model, torch.randn(2, 4, 7, 6))
    assert leaf_classes(folded) == {"0": "Conv2d", "1": "Identity", "2": "ReLU", "3": "Conv2d"}


def test_own_forward_keeps_child_names() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.drop(self.norm(self.conv(x)))

    model = FunctionModule(forward, conv=nn.Conv2d(4, 8, 3), norm=nn.BatchNorm2d(8), drop=nn.Dropout())
    folded = assert_folds(randomize(model), torch.randn(2, 4, 7, 6))
    assert leaf_classes(folded) == {"conv": "Conv2d", "norm": "Identity", "drop": "Identity"}


class TwoAmplified(nn.Module):
    """Two outputs, in which rounding errors are 100,000 times as large."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(x)
        for _ in range(3):
            x = torch.sin(50 * x)
        return x, x[:, :2]


def test_each_output_may_amplify_rounding() -> None:
    model, images = randomize(TwoAmplified()).eval(), torch.randn(2, 3, 8, 8)
    folded = deploy.fold(model, images)
    assert leaf_classes(folded) == {"body.0": "Conv2d"}
    assert (folded(images)[0] - model(images)[0]).abs().max() > 1e-5  # a sum of rounding errors, amplified
