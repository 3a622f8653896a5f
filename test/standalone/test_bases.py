"""The base classes in a file are equivalent to those of torchvision that they replace."""

import pytest
import torch
import torchvision.ops
from torch import nn

from torchvision_layers.standalone import _bases


@pytest.mark.parametrize("mode", ["row", "batch"])
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("training", [True, False])
def test_stochastic_depth(mode: str, p: float, training: bool) -> None:
    x = torch.randn(7, 3, 2)
    torch.manual_seed(3)
    expected = torchvision.ops.stochastic_depth(x, p, mode, training)
    torch.manual_seed(3)
    assert torch.equal(_bases.stochastic_depth(x, p, mode, training), expected)


def test_fixed_statistics_load_a_batch_norm() -> None:
    ours, theirs = _bases.FixedStatistics(3, 1e-5), torchvision.ops.FrozenBatchNorm2d(3)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert repr(ours) == repr(theirs).replace("FrozenBatchNorm2d", "FixedStatistics")
    norm = nn.BatchNorm2d(3)
    nn.init.uniform_(norm.running_mean)
    ours.load_state_dict(norm.state_dict())
    assert torch.equal(ours.running_mean, norm.running_mean)


def test_attributes_and_repr() -> None:
    for ours, theirs in (
        (_bases.RandomDepth(0.2, "row"), torchvision.ops.StochasticDepth(0.2, "row")),
        (_bases.Reordering([0, 2, 1]), torchvision.ops.Permute([0, 2, 1])),
    ):
        names = {name for name in vars(theirs) if not name.startswith("_") and name != "training"}
        assert {name: vars(ours)[name] for name in names} == {name: vars(theirs)[name] for name in names}
        assert repr(ours) == repr(theirs).replace(type(theirs).__name__, type(ours).__name__)
