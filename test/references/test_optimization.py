"""Optimizers, schedules and averages, beside torch's own and the formulas of torchvision's script."""

from argparse import Namespace

import pytest
import torch
import train
from optimization import OPTIMIZERS, make_average, make_optimizer, make_schedule
from torch import nn


def arguments(*flags: str) -> Namespace:
    return train.get_parser().parse_args(flags)


def rates(args: Namespace, batches: int = 1) -> list[float]:
    """The learning rate at each batch."""
    optimizer = make_optimizer(nn.Linear(1, 1), args)
    scheduler, is_by_batch = make_schedule(optimizer, args, batches)
    found = []
    for _ in range(args.epochs):
        for _ in range(batches):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if is_by_batch:
                scheduler.step()
        if not is_by_batch:
            scheduler.step()
    return found


@pytest.mark.parametrize("steps", range(1, 12))
def test_one_cycle_ends_low_after_any_number_of_steps(steps):
    found = rates(arguments("--epochs", "1"), steps)
    assert max(found) <= 0.03 + 1e-9
    assert found[-1] < 0.01 * 0.03 or steps == 1


@pytest.mark.parametrize("warmup", [0, 1, 3, 4])
def test_one_cycle_is_highest_after_its_warm_up(warmup):
    found = rates(arguments("--epochs", "5", "--lr-warmup-epochs", str(warmup)), 10)
    assert found.index(max(found)) == 10 * (warmup or 1) - 1
    assert max(found) == pytest.approx(0.03)


def test_schedules_by_epoch():
    base = ["--epochs", "6", "--lr", "1"]
    assert rates(arguments(*base, "--lr-scheduler", "steplr", "--lr-step-size", "2")) == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )
    assert rates(arguments(*base, "--lr-scheduler", "exponentiallr", "--lr-gamma", "0.5"), 2) == pytest.approx(
        [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.0625, 0.0625, 0.03125, 0.03125]
    )
    cosine = [0.1 + 0.45 * (1 + torch.tensor(torch.pi * i / 6).cos().item()) for i in range(6)]
    assert rates(arguments(*base, "--lr-scheduler", "cosineannealinglr", "--lr-min", "0.1")) == pytest.approx(cosine)


@pytest.mark.parametrize(("method", "first"), [("linear", [0.2, 0.6]), ("constant", [0.2, 0.2])])
def test_warm_up(method, first):
    flags = ["--epochs", "6", "--lr", "1", "--lr-scheduler", "cosineannealinglr", "--lr-warmup-epochs", "2"]
    found = rates(arguments(*flags, "--lr-warmup-method", method, "--lr-warmup-decay", "0.2"))
    cosine = [0.5 * (1 + torch.tensor(torch.pi * i / 4).cos().item()) for i in range(4)]
    assert found == pytest.approx([*first, *cosine])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_are_torch_s_with_the_flags(name):
    args = arguments("--opt", name, "--lr", "0.1", "--momentum", "0.8", "--weight-decay", "0.01")
    optimizer = make_optimizer(nn.Linear(2, 2), args)
    expected = {
        "sgd": (torch.optim.SGD, {"momentum": 0.8, "nesterov": False}),
        "sgd_nesterov": (torch.optim.SGD, {"momentum": 0.8, "nesterov": True}),
        "rmsprop": (torch.optim.RMSprop, {"momentum": 0.8, "alpha": 0.9, "eps": 0.0316}),
        "adamw": (torch.optim.AdamW, {"betas": (0.9, 0.999)}),
    }
    kind, values = expected[name]
    assert type(optimizer) is kind
    group = optimizer.param_groups[0]
    assert {key: group[key] for key in values} == values
    assert (group["lr"], group["weight_decay"]) == (0.1, 0.01)


def test_the_average_decays_as_torchvision_says_and_faster_at_first():
    """alpha = (1 - decay) × images between two updates / epochs; at most (1 + n) / (10 + n) is kept."""
    args = arguments("--model-ema-decay", "0.999", "--model-ema-steps", "4", "--epochs", "2")
    model = nn.Linear(1, 1)
    average = make_average(model, args, batch_size=8)
    alpha = (1 - 0.999) * 8 * 4 / 2
    expected = 0.0
    for n in range(1000):
        with torch.no_grad():
            model.weight.fill_(n)
        average.update_parameters(model)
        kept = min(1 - alpha, (1 + n) / (10 + n)) if n else 0
        expected = kept * expected + (1 - kept) * n
        if n in (0, 1, 10, 100, 999):
            assert average.module.weight.item() == pytest.approx(expected, rel=1e-4)
    assert kept == 1 - alpha


def test_the_average_takes_statistics_along():
    args = arguments("--model-ema")
    model = nn.BatchNorm2d(2)
    average = make_average(model, args, batch_size=8)
    for _ in range(3):
        model(torch.randn(4, 2, 3, 3) + 5)
        average.update_parameters(model)
    assert (average.module.running_mean > 0.1).all()
    assert (average.module.running_mean < model.running_mean).all()  # averaged, not copied
