"""Checks of random numbers: whether they are drawn, and the rates of dropout and stochastic depth."""

import copy
import math

import torch
import torchvision
from torch import Tensor, nn

from .._case import Case, random_states
from .._check import NotApplicable, check
from ._not_applicable import TRAIN_EVAL

__all__ = ["random_flag", "stochastic"]


def _output_from_seed(case: Case, seed: int) -> Tensor:
    """The output of a fixed layer for a fixed input, with random numbers from a seed."""
    torch.manual_seed(0)
    layer, input = case.layer(), case.input()
    torch.manual_seed(seed)
    return layer(input).detach()


@check("random_flag", variants=TRAIN_EVAL)
def random_flag(case: Case) -> None:
    """Random numbers are drawn in training exactly if the sample declares ``is_random``."""
    layer, input = case.layer(), case.input()
    before = random_states(case.device)
    layer(input)
    draws = not all(map(torch.equal, before, random_states(case.device)))
    declared = case.training and case.sample.is_random
    assert draws == declared, f"draws {'' if draws else 'no '}random numbers, is_random={case.sample.is_random}"
    if declared:
        outputs = [_output_from_seed(case, seed) for seed in range(16)]
        assert any(not torch.equal(output, outputs[0]) for output in outputs), "random numbers change nothing"


def _drops(module: nn.Module) -> bool:
    """Whether a module zeroes units at a rate. timm's DropPath is recognized by its name."""
    kinds = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, torchvision.ops.StochasticDepth)
    return isinstance(module, kinds) or type(module).__name__ == "DropPath"


def _rate_name(module: nn.Module) -> str:
    return "p" if hasattr(module, "p") else "drop_prob"


def _dropping_modules(case: Case) -> list[tuple[nn.Module, tuple[int, ...]]]:
    """Modules that drop units, with the shapes of their inputs."""
    layer = case.fresh().train()
    modules: list[tuple[nn.Module, tuple[int, ...]]] = []
    for module in layer.modules():
        if _drops(module) and 0 < getattr(module, _rate_name(module)) < 1:
            module.register_forward_pre_hook(lambda module, args: modules.append((module, tuple(args[0].shape))))
    layer(case.input())
    for module, _ in modules:
        module._forward_pre_hooks.clear()
    return modules


def _assert_binomial(successes: int, trials: int, probability: float, description: str) -> None:
    """Assert at most 3.3 standard deviations from the mean, which one seed in a thousand exceeds; ours is fixed."""
    deviation = math.sqrt(trials * probability * (1 - probability))
    assert abs(successes - trials * probability) < 3.3 * deviation, (
        f"{description}: {successes} of {trials}, expected {trials * probability:.0f} ± {deviation:.0f}"
    )


def _check_drops(module: nn.Module, shape: tuple[int, ...], device: torch.device) -> None:
    rate = float(getattr(module, _rate_name(module)))
    ones = torch.ones(shape[0] * 8, *shape[1:], device=device)
    masks = torch.stack([module(ones.clone()) for _ in range(400)])
    scale = torch.tensor(1 / (1 - rate), device=device)
    is_kept = masks != 0
    torch.testing.assert_close(masks[is_kept], scale.expand(int(is_kept.sum())))
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
    _assert_binomial(int(pairs.sum()), pairs.numel(), rate**2, "adjacent units dropped together")
    x = torch.randn(shape, device=device)
    for end, expected in ((0.0, x), (1.0, torch.zeros_like(x))):
        other = copy.deepcopy(module)
        setattr(other, _rate_name(module), end)
        assert torch.equal(other(x.clone()), expected), f"outputs are wrong at {_rate_name(module)}={end}"


@check(
    "stochastic",
    not_applicable=(NotApplicable("has no dropout and no stochastic depth", lambda case: not _dropping_modules(case)),),
)
def stochastic(case: Case) -> None:
    """Units are dropped independently at the rate p, the rest is scaled by 1/(1-p), and p=0 and p=1 are exact."""
    for module, shape in _dropping_modules(case):
        _check_drops(module, shape, case.device)
