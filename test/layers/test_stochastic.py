"""Statistics of layers that draw random numbers in training."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

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


GROUP_NORM = partial(nn.GroupNorm, 2)
#: Blocks with stochastic depth, called with further arguments.
BLOCKS = {
    "BasicBlock": partial(tnn.BasicBlock, 4, 4, norm_layer=GROUP_NORM, se_layer=tnn.SqueezeExcitation),
    "BasicBlock projection": partial(tnn.BasicBlock, 4, 6, 2, norm_layer=GROUP_NORM),
    "Bottleneck": partial(tnn.Bottleneck, 8, 2, norm_layer=GROUP_NORM),
    "ConvNeXtBlock": partial(tnn.ConvNeXtBlock, 4, layer_scale=1.0),
    "FusedMBConv": partial(tnn.FusedMBConv, 4, 4, norm_layer=tnn.FrozenBatchNorm2d),
    "InvertedResidual": partial(tnn.InvertedResidual, 4, 4, 1, 2, norm_layer=GROUP_NORM),
    "MBConv": partial(tnn.MBConv, 4, 4, norm_layer=GROUP_NORM),
    "UniversalInvertedBottleneck": partial(tnn.UniversalInvertedBottleneck, 4, 4, 3, 3, norm_layer=GROUP_NORM),
}
each_block = pytest.mark.parametrize("make", BLOCKS.values(), ids=BLOCKS)


def pair(make: Callable[..., nn.Module], p: float) -> tuple[nn.Module, nn.Module, Tensor]:
    """A block in the plain form and one that computes kept rows only, with the same weights, and an input."""
    torch.manual_seed(0)
    plain = make(stochastic_depth=p, dtype=torch.float64)
    kept = make(stochastic_depth=p, kept_rows_only=True, dtype=torch.float64)
    kept.load_state_dict(plain.state_dict())
    channels = 8 if isinstance(plain, tnn.Bottleneck) else 4
    return plain, kept, torch.randn(6, channels, 5, 6, dtype=torch.float64, requires_grad=True)


@each_block
@pytest.mark.parametrize("p", [0.3, 0.95, 1.0])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_kept_rows_give_the_results_and_gradients_of_the_plain_form(
    make: Callable[..., nn.Module], p: float, memory_format: torch.memory_format
) -> None:
    """With the same seed; at 0.95 and 1.0 no row may be left, and every parameter still has a gradient."""
    plain, kept, x = pair(make, p)
    x = x.detach().contiguous(memory_format=memory_format).requires_grad_()
    results = []
    for block in (plain, kept):
        torch.manual_seed(3)
        output = block.to(memory_format=memory_format)(x)
        gradients = torch.autograd.grad(
            output, [x, *block.parameters()], torch.linspace(0, 1, output.numel()).to(x).reshape(output.shape)
        )
        results.append([output, *gradients])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)
    assert results[0][0].stride() == results[1][0].stride()
    assert torch.equal(kept.eval()(x), plain.eval()(x))


def test_kept_rows_are_drawn_independently() -> None:
    """Unlike a fixed number of them, which varies less than the binomial distribution."""
    block = tnn.ConvNeXtBlock(2, layer_scale=1.0, stochastic_depth=0.3, kept_rows_only=True)
    x = torch.randn(8, 2, 1, 1)
    with torch.no_grad():
        dropped = torch.stack([(block(x) == x).flatten(1).all(1) for _ in range(1000)])
    assert all(is_binomial(int(row.sum()), 1000, 0.3) for row in dropped.T)
    assert is_binomial(int((dropped[:, :-1] & dropped[:, 1:]).sum()), 7000, 0.09)
    counts = dropped.sum(1).double()
    assert counts.var().item() == pytest.approx(8 * 0.3 * 0.7, rel=0.15)
    for number in range(9):
        probability = math.comb(8, number) * 0.3**number * 0.7 ** (8 - number)
        assert is_binomial(int((counts == number).sum()), 1000, probability) or probability < 0.01


def test_the_mean_of_kept_rows_is_the_output_without_dropping() -> None:
    block = tnn.ConvNeXtBlock(2, layer_scale=1.0, stochastic_depth=0.5, kept_rows_only=True)
    x = torch.randn(1, 2, 3, 3)
    with torch.no_grad():
        outputs = block(x.expand(20_000, -1, -1, -1)).double()
        expected = block.eval()(x).double()
    error = (outputs.mean(0) - expected[0]).abs() / (expected[0] - x[0]).abs()
    assert float(error.max()) < 4 / math.sqrt(20_000)


@each_block
def test_the_branch_runs_on_kept_rows_only(make: Callable[..., nn.Module]) -> None:
    _, kept, x = pair(make, 0.5)
    first = next(child for child in kept.modules() if isinstance(child, nn.Conv2d))
    sizes = []
    first.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    torch.manual_seed(0)
    for _ in range(50):
        kept(x)
    assert min(sizes) < 3 < max(sizes)
    assert is_binomial(sum(sizes), 300, 0.5)


def test_batch_statistics_of_kept_rows_are_refused() -> None:
    x = torch.randn(4, 4, 5, 5)
    block = tnn.BasicBlock(4, 4, stochastic_depth=0.5, kept_rows_only=True)
    with pytest.raises(ValueError, match="kept_rows_only must be False for a branch with batch statistics"):
        block(x)
    for module in (block.bn1, block.bn2):
        module.eval()  # with the running statistics
    assert block(x).shape == x.shape
    assert (
        tnn.BasicBlock(
            4,
            6,
            norm_layer=GROUP_NORM,
            stochastic_depth=0.5,
            kept_rows_only=True,
            downsample=nn.Sequential(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)),
        )(x).shape[1]
        == 6
    )


def test_kept_rows_in_mixed_precision() -> None:
    block = tnn.ConvNeXtBlock(4, stochastic_depth=0.5, kept_rows_only=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert block(torch.randn(6, 4, 5, 5)).shape == (6, 4, 5, 5)


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
