"""What goes into which weights, one module after another; and what a folded model keeps."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision.ops
from torch import Tensor, nn

from torchvision_layers import deploy
from torchvision_layers import nn as tnn
from torchvision_layers.experimental import nn as enn

from ._support import Given, assert_folds, by_path, trained

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
def test_batch_norm_goes_into_a_convolution(arguments: dict[str, Any], dims: int, bias: bool) -> None:
    model = nn.Sequential(CONVS[dims](4, 8, 3, bias=bias, **arguments), NORMS[dims](8, eps=0.3))
    folded = assert_folds(trained(model), torch.randn(IMAGES[dims]))
    assert by_path(folded) == {"0": CONVS[dims].__name__}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"groups": 2, "stride": 2, "padding": 1, "output_padding": 1}, {"groups": 4, "dilation": 2}],
    ids=str,
)
def test_batch_norm_goes_into_a_transposed_convolution(arguments: dict[str, Any], dims: int, bias: bool) -> None:
    model = nn.Sequential(TRANSPOSED[dims](4, 8, 3, bias=bias, **arguments), NORMS[dims](8, eps=0.3))
    folded = assert_folds(trained(model), torch.randn(IMAGES[dims]))
    assert by_path(folded) == {"0": TRANSPOSED[dims].__name__}


@pytest.mark.parametrize("bias", [False, True])
def test_batch_norm_goes_into_a_projection(bias: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 6, bias=bias), nn.BatchNorm1d(6, eps=0.3))
    assert by_path(assert_folds(trained(model), torch.randn(5, 4))) == {"0": "Linear"}


def test_the_weights_of_a_grouped_transposed_convolution_by_hand() -> None:
    """Input channels 0 and 1 give outputs 0, 1 and 2; 2 and 3 give 3, 4 and 5."""
    conv, norm = nn.ConvTranspose2d(4, 6, 2, groups=2), nn.BatchNorm2d(6, eps=0.5)
    model = trained(nn.Sequential(conv, norm)).double()
    (folded,) = deploy.fold(model)
    for i in range(4):
        for j in range(3):
            o = 3 * (i // 2) + j
            factor = norm.weight[o] / (norm.running_var[o] + 0.5).sqrt()
            torch.testing.assert_close(folded.weight[i, j], conv.weight[i, j] * factor)
            torch.testing.assert_close(folded.bias[o], (conv.bias[o] - norm.running_mean[o]) * factor + norm.bias[o])


def test_the_weights_of_a_projection_between_scales_by_hand() -> None:
    before, linear, after = tnn.LayerScale(3, 1.0, -1), nn.Linear(3, 2), tnn.LayerScale(2, 1.0, -1)
    model = trained(nn.Sequential(before, linear, after)).double()
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
    "scale ahead of a twin": lambda: nn.Sequential(tnn.LayerScale(4), enn.WSConv2d(4, 8, 3)),
    "scale ahead of coordinates": lambda: nn.Sequential(tnn.LayerScale(4), enn.CoordConv2d(4, 8, 3, padding=1)),
    "scale after coordinates": lambda: nn.Sequential(enn.CoordConv2d(4, 8, 3), tnn.LayerScale(8)),
    "coordinates": lambda: nn.Sequential(enn.CoordConv2d(4, 8, 3, groups=2, padding=1), nn.BatchNorm2d(8)),
    "coordinates, no bias": lambda: nn.Sequential(
        enn.CoordConv2d(4, 8, 3, bias=False, with_r=True, padding_mode="circular", padding=1), tnn.FrozenBatchNorm2d(8)
    ),
    "standardized": lambda: nn.Sequential(enn.WSConv2d(4, 8, 3, groups=2, eps=1e-3), nn.BatchNorm2d(8)),
    "standardized and scaled": lambda: nn.Sequential(enn.SWSConv2d(4, 8, 3, padding="same"), nn.BatchNorm2d(8)),
    "norm after a block": lambda: nn.Sequential(nn.Sequential(nn.ReLU(), nn.Conv2d(4, 8, 3)), nn.BatchNorm2d(8)),
    "norm after a block of a user": lambda: nn.Sequential(
        Given(lambda self, x: self.conv(x.relu()), conv=nn.Conv2d(4, 8, 3)), nn.BatchNorm2d(8)
    ),
}


@pytest.mark.parametrize("make", FOLDS.values(), ids=FOLDS)
def test_it_is_folded(make: Callable[[], nn.Module]) -> None:
    """Nothing is left but one convolution, perhaps with its map, and an activation."""
    folded = assert_folds(trained(make()), torch.randn(2, 4, 7, 6))
    left = {name for name in by_path(folded).values() if name not in ("ReLU", "Conv2d")}
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


class OwnStandardized(enn.WSConv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class OwnBlock(tnn.ConvNeXtBlock):
    def forward(self, input: Tensor) -> Tensor:
        return self.layer_scale * self.block(input)


def with_own_forward(module: nn.Module) -> nn.Module:
    """As some libraries patch modules: on the instance."""
    of_class = type(module).forward
    module.forward = lambda x: of_class(module, x).relu()
    return module


KEPT: dict[str, Callable[[], list[nn.Module]]] = {
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
    "patched twin": lambda: [with_own_forward(enn.WSConv2d(4, 8, 3))],
    "batch statistics": lambda: [nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8, track_running_stats=False)],
    "norm first": lambda: [nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3)],
    "activation between": lambda: [nn.Conv2d(4, 8, 3), nn.ReLU(), nn.BatchNorm2d(8)],
    "other norms": lambda: [nn.Conv2d(4, 8, 3), nn.GroupNorm(2, 8), nn.InstanceNorm2d(8), tnn.LayerNorm2d(8)],
    "columns of images": lambda: [nn.Conv2d(4, 4, 3), tnn.LayerScale(4, 1.0, -1), nn.Conv2d(4, 4, 1)],
    "norm of images after a projection": lambda: [nn.Linear(6, 4), nn.BatchNorm2d(4)],
    "features of pixels": lambda: [nn.Linear(6, 4), tnn.LayerScale(4), nn.Linear(4, 4)],
}


@pytest.mark.parametrize("make", KEPT.values(), ids=KEPT)
def test_it_is_not_folded(make: Callable[[], list[nn.Module]]) -> None:
    model = trained(nn.Sequential(*make()))
    before, x = by_path(model), torch.randn(2, 4, 7, 6)
    with torch.no_grad():
        folded = deploy.fold(model)
        torch.testing.assert_close(folded(x), model(x), rtol=0, atol=0)
    assert by_path(folded) == before


@pytest.mark.parametrize("module", [tnn.LayerScale(1), nn.BatchNorm2d(1)], ids=["scale", "norm"])
def test_what_does_not_fit_is_not_made_to(module: nn.Module) -> None:
    folded = deploy.fold(trained(nn.Sequential(nn.Conv2d(4, 8, 3), module)))
    with pytest.raises((RuntimeError, ValueError), match="must have size 1 in dimension 1|elements"):
        folded(torch.randn(2, 4, 7, 6))
    folded = deploy.fold(nn.Sequential(tnn.LayerScale(1), nn.Conv2d(4, 8, 3)))
    with pytest.raises(ValueError, match="must have size 1 in dimension 1"):
        folded(torch.randn(2, 4, 7, 6))


def test_a_convnext_block_with_another_projection() -> None:
    class Low(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).tanh()

    block = tnn.ConvNeXtBlock(4, expansion=2, activation_layer=None)
    block.block[5] = Low(8, 4)
    folded = assert_folds(trained(block), torch.randn(2, 4, 8, 7))
    assert folded.layer_scale is not None


def test_a_convnext_block() -> None:
    block = trained(tnn.ConvNeXtBlock(4, stochastic_depth=0.5))
    folded = assert_folds(block, torch.randn(2, 4, 8, 7))
    assert folded.layer_scale is None
    assert type(folded.stochastic_depth) is nn.Identity
    assert sorted({*block.state_dict()} - {*folded.state_dict()}) == ["layer_scale"]


def test_what_does_nothing_is_gone() -> None:
    same = nn.Dropout(0.2)
    model = nn.Sequential(
        same, nn.Identity(), nn.Conv2d(4, 8, 3), nn.Dropout2d(), nn.AlphaDropout(), tnn.StochasticDepth(0.1, "row"),
        torchvision.ops.DropBlock2d(0.1, 3), nn.Sequential(nn.Dropout(), nn.ReLU(), nn.FeatureAlphaDropout()),
        torchvision.ops.StochasticDepth(0.1, "row"), same,
    )  # fmt: skip
    folded = assert_folds(model, torch.randn(2, 4, 7, 6))
    assert by_path(folded) == {"2": "Conv2d", "7.1": "ReLU"}
    folded = assert_folds(nn.Sequential(nn.Conv1d(4, 8, 3), nn.Dropout1d()), torch.randn(2, 4, 7))
    assert by_path(folded) == {"0": "Conv1d"}
    model = nn.Sequential(nn.Dropout3d(), nn.Conv3d(4, 8, 3), torchvision.ops.DropBlock3d(0.1, 3))
    assert by_path(assert_folds(model, torch.randn(2, 4, 7, 6, 5))) == {"1": "Conv3d"}


def test_a_sequence_with_a_forward_of_its_own_keeps_its_places() -> None:
    class Indexed(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return self[2](self[1](self[0](input)))

    model = Indexed(nn.Conv2d(4, 8, 3), nn.Dropout(), nn.ReLU(), nn.Conv2d(4, 4, 1))
    folded = assert_folds(model, torch.randn(2, 4, 7, 6))
    assert by_path(folded) == {"0": "Conv2d", "1": "Identity", "2": "ReLU", "3": "Conv2d"}


def test_in_a_forward_of_a_users_the_names_stay() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.drop(self.norm(self.conv(x)))

    model = Given(forward, conv=nn.Conv2d(4, 8, 3), norm=nn.BatchNorm2d(8), drop=nn.Dropout())
    folded = assert_folds(trained(model), torch.randn(2, 4, 7, 6))
    assert by_path(folded) == {"conv": "Conv2d", "norm": "Identity", "drop": "Identity"}
