"""Statistics of layers that draw random numbers in training."""

import math

import pytest
import torch
from torch import nn

from torchvision_layers import nn as tnn


def is_binomial(successes: int, trials: int, probability: float) -> bool:
    """Whether a count is within 3.3 standard deviations of its mean (p about 0.001)."""
    return abs(successes - trials * probability) < 3.3 * math.sqrt(trials * probability * (1 - probability))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_stochastic_depth_drops_rows_independently(p: float) -> None:
    output = tnn.StochasticDepth(p, "row")(torch.ones(4000, 3, 2))
    rows = output.flatten(1)
    assert bool((rows == rows[:, :1]).all())
    assert rows.unique().tolist() == pytest.approx([0.0, 1 / (1 - p)])
    dropped = rows[:, 0] == 0
    assert is_binomial(int(dropped.sum()), 4000, p)
    pairs = int((dropped[:-1] & dropped[1:]).sum())
    assert abs(pairs / 3999 - p * p) < 0.05


def test_stochastic_depth_drops_the_whole_batch() -> None:
    layer = tnn.StochasticDepth(0.5, "batch")
    factors = [float(layer(torch.ones(7, 3)).unique()) for _ in range(400)]
    assert set(factors) == {0.0, 2.0}
    assert is_binomial(factors.count(0.0), 400, 0.5)


@pytest.mark.parametrize("mode", ["row", "batch"])
def test_stochastic_depth_with_probability_0_and_1(mode: str) -> None:
    x = torch.randn(5, 3)
    assert torch.equal(tnn.StochasticDepth(0.0, mode)(x), x)
    assert torch.equal(tnn.StochasticDepth(1.0, mode)(x), torch.zeros_like(x))
    assert torch.equal(tnn.StochasticDepth(1.0, mode).eval()(x), x)


def test_blocks_drop_their_branch() -> None:
    x = torch.rand(2000, 2, 1, 1) + 1.0  # positive, so that ReLU does not change the skip connection
    for block in (
        tnn.BasicBlock(2, 2, stochastic_depth=0.3),
        tnn.InvertedResidual(2, 2, 1, 2, stochastic_depth=0.3),
    ):
        is_skip_alone = (block(x) == x).flatten(1).all(1)
        assert is_binomial(int(is_skip_alone.sum()), 2000, 0.3)
        assert not bool((block.eval()(x) == x).flatten(1).all(1).any())


def test_a_block_without_skip_connection_drops_nothing() -> None:
    block = tnn.InvertedResidual(2, 3, 1, 2, stochastic_depth=1.0)
    assert bool(block(torch.rand(50, 2, 3, 3)).any())


def test_dropout_of_linear_dropout_act() -> None:
    layer = tnn.LinearDropoutAct(4, 8, dropout=0.25, activation_layer=nn.Identity)
    x = torch.ones(1000, 4)
    output, full = layer(x), layer.eval()(x)
    dropped = output == 0
    assert is_binomial(int(dropped.sum()), 8000, 0.25)
    torch.testing.assert_close(output[~dropped], (full / 0.75)[~dropped])
