"""Rows on random numbers: where they are drawn, and whether what is dropped is dropped as said."""

import copy
import math

import torch
import torchvision
from torch import Tensor, nn

from .._cell import Cell
from .._row import NA, row
from ._applies import TRAIN_EVAL

__all__ = ["random_flag", "stochastic"]


def _output_from_seed(cell: Cell, seed: int) -> Tensor:
    """What one and the same layer gives for one and the same input, from another seed."""
    torch.manual_seed(0)
    layer, input = cell.layer(), cell.input()
    torch.manual_seed(seed)
    return layer(input).detach()


@row("random_flag", variants=TRAIN_EVAL)
def random_flag(cell: Cell) -> None:
    """Random numbers are drawn in training where the sample says so, and nowhere else."""
    layer, input = cell.layer(), cell.input()
    before = torch.get_rng_state()
    layer(input)
    draws = not torch.equal(before, torch.get_rng_state())
    declared = cell.training and cell.sample.is_random
    assert draws == declared, f"draws {'' if draws else 'no '}random numbers, is_random={cell.sample.is_random}"
    if declared:
        outputs = [_output_from_seed(cell, seed) for seed in range(16)]
        assert any(not torch.equal(output, outputs[0]) for output in outputs), "random numbers change nothing"


def _drops(module: nn.Module) -> bool:
    """Whether it zeroes units at a rate of its own; of timm's DropPath only the name is known here."""
    kinds = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, torchvision.ops.StochasticDepth)
    return isinstance(module, kinds) or type(module).__name__ == "DropPath"


def _rate_name(module: nn.Module) -> str:
    return "p" if hasattr(module, "p") else "drop_prob"


def _dropping_modules(cell: Cell) -> list[tuple[nn.Module, tuple[int, ...]]]:
    """Modules that drop, with the shape of what they are given."""
    layer = cell.fresh().train()
    found: list[tuple[nn.Module, tuple[int, ...]]] = []
    for module in layer.modules():
        if _drops(module) and 0 < getattr(module, _rate_name(module)) < 1:
            module.register_forward_pre_hook(lambda module, args: found.append((module, tuple(args[0].shape))))
    layer(cell.input())
    for module, _ in found:
        module._forward_pre_hooks.clear()
    return found


def _assert_binomial(successes: int, trials: int, probability: float, what: str) -> None:
    """Within 3.3 standard deviations of the mean: once in a thousand seeds a right one fails, and ours is fixed."""
    deviation = math.sqrt(trials * probability * (1 - probability))
    assert abs(successes - trials * probability) < 3.3 * deviation, (
        f"{what}: {successes} of {trials}, expected {trials * probability:.0f} ± {deviation:.0f}"
    )


def _check_drops(module: nn.Module, shape: tuple[int, ...]) -> None:
    rate = float(getattr(module, _rate_name(module)))
    ones = torch.ones(shape[0] * 8, *shape[1:])
    masks = torch.stack([module(ones.clone()) for _ in range(400)])
    kept = torch.tensor(1 / (1 - rate))
    is_kept = masks != 0
    torch.testing.assert_close(masks[is_kept], kept.expand(int(is_kept.sum())))
    rows, channels = is_kept.flatten(2), is_kept.flatten(3) if is_kept.dim() > 3 else is_kept[..., None]
    if bool((rows == rows[:, :1, :1]).all()):
        unit, units = "batch", rows[:, 0, 0][None]
    elif bool((rows == rows[:, :, :1]).all()):
        unit, units = "row", rows[:, :, 0]
    elif bool((channels == channels[..., :1]).all()):
        unit, units = "channel", channels[..., 0].flatten(1)
    else:
        unit, units = "value", rows.flatten(1)
    declared = getattr(module, "mode", unit)
    assert unit == declared, f"mode is {declared}, but it drops by {unit}"
    _assert_binomial(int((~units).sum()), units.numel(), rate, f"dropped by {unit}")
    pairs = ~units[:, 0::2][:, : units.shape[1] // 2] & ~units[:, 1::2]
    _assert_binomial(int(pairs.sum()), pairs.numel(), rate**2, "neighbours dropped together")
    x = torch.randn(shape)
    for end, expected in ((0.0, x), (1.0, torch.zeros_like(x))):
        other = copy.deepcopy(module)
        setattr(other, _rate_name(module), end)
        assert torch.equal(other(x.clone()), expected), f"at {_rate_name(module)}={end} it gives other values"


@row(
    "stochastic",
    not_applicable=(NA("has no dropout and no stochastic depth", lambda cell: not _dropping_modules(cell)),),
)
def stochastic(cell: Cell) -> None:
    """What drops keeps its rate, scales the rest by 1/(1-p), drops units independently, and is exact at 0 and 1."""
    for module, shape in _dropping_modules(cell):
        _check_drops(module, shape)
