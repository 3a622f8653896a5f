"""Optimizers, schedules and averages, compared with torch and with the formulas of torchvision's script."""

import pytest
import torch
from common.cli import training_parser
from common.settings import OptimizationSettings, TrainingSettings
from common.training.optimization import OPTIMIZERS, make_average, make_optimizer, make_schedule
from torch import nn


def parse(*argv: str) -> TrainingSettings:
    return TrainingSettings.from_args(training_parser().parse_args(argv))


def rates(settings: OptimizationSettings, batches: int = 1) -> list[float]:
    """The learning rate at each batch."""
    optimizer = make_optimizer(nn.Linear(1, 1), settings)
    scheduler, is_by_batch = make_schedule(optimizer, settings, batches)
    lrs = []
    for _ in range(settings.epochs):
        for _ in range(batches):
            lrs.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if is_by_batch:
                scheduler.step()
        if not is_by_batch:
            scheduler.step()
    return lrs


@pytest.mark.parametrize("steps", range(1, 12))
def test_one_cycle_ends_with_a_low_rate(steps):
    lrs = rates(parse("--epochs", "1").optimization, steps)
    assert max(lrs) <= 0.03 + 1e-9
    assert lrs[-1] < 0.01 * 0.03 or steps == 1


@pytest.mark.parametrize("warmup", [0, 1, 3, 4])
def test_one_cycle_is_highest_after_the_warm_up(warmup):
    lrs = rates(parse("--epochs", "5", "--lr-warmup-epochs", str(warmup)).optimization, 10)
    assert lrs.index(max(lrs)) == 10 * (warmup or 1) - 1
    assert max(lrs) == pytest.approx(0.03)


def test_schedules_by_epoch():
    def schedule(name: str, *extra: str) -> OptimizationSettings:
        return parse("--epochs", "6", "--lr", "1", "--lr-scheduler", name, *extra).optimization

    assert rates(schedule("steplr", "--lr-step-size", "2")) == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert rates(schedule("exponentiallr", "--lr-gamma", "0.5"), 2) == pytest.approx(
        [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.0625, 0.0625, 0.03125, 0.03125]
    )
    cosine = [0.1 + 0.45 * (1 + torch.tensor(torch.pi * i / 6).cos().item()) for i in range(6)]
    assert rates(schedule("cosineannealinglr", "--lr-min", "0.1")) == pytest.approx(cosine)


@pytest.mark.parametrize(("method", "first"), [("linear", [0.2, 0.6]), ("constant", [0.2, 0.2])])
def test_warm_up(method, first):
    argv = ["--epochs", "6", "--lr", "1", "--lr-scheduler", "cosineannealinglr", "--lr-warmup-epochs", "2"]
    argv += ["--lr-warmup-method", method, "--lr-warmup-decay", "0.2"]
    cosine = [0.5 * (1 + torch.tensor(torch.pi * i / 4).cos().item()) for i in range(4)]
    assert rates(parse(*argv).optimization) == pytest.approx([*first, *cosine])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name):
    settings = parse("--opt", name, "--lr", "0.1", "--momentum", "0.8", "--weight-decay", "0.01")
    optimizer = make_optimizer(nn.Linear(2, 2), settings.optimization)
    expected = {
        "sgd": (torch.optim.SGD, {"momentum": 0.8, "nesterov": False}),
        "sgd_nesterov": (torch.optim.SGD, {"momentum": 0.8, "nesterov": True}),
        "rmsprop": (torch.optim.RMSprop, {"momentum": 0.8, "alpha": 0.9, "eps": 0.0316}),
        "adamw": (torch.optim.AdamW, {"betas": (0.9, 0.999)}),
    }
    cls, values = expected[name]
    assert type(optimizer) is cls
    group = optimizer.param_groups[0]
    assert {key: group[key] for key in values} == values
    assert (group["lr"], group["weight_decay"]) == (0.1, 0.01)


def test_decay_of_the_average():
    """alpha = (1 - decay) × images between updates / epochs, as in torchvision; decay is at most (1 + n) / (10 + n)."""
    settings = parse("--model-ema-decay", "0.999", "--model-ema-steps", "4", "--epochs", "2").optimization
    model = nn.Linear(1, 1)
    average = make_average(model, settings, batch_size=8)
    alpha = (1 - 0.999) * 8 * 4 / 2
    expected = 0.0
    for n in range(1000):
        with torch.no_grad():
            model.weight.fill_(n)
        average.update_parameters(model)
        decay = min(1 - alpha, (1 + n) / (10 + n)) if n else 0
        expected = decay * expected + (1 - decay) * n
        if n in (0, 1, 10, 100, 999):
            assert average.module.weight.item() == pytest.approx(expected, rel=1e-4)
    assert decay == 1 - alpha


def test_average_includes_batch_statistics():
    settings = parse("--model-ema").optimization
    model = nn.BatchNorm2d(2)
    average = make_average(model, settings, batch_size=8)
    for _ in range(3):
        model(torch.randn(4, 2, 3, 3) + 5)
        average.update_parameters(model)
    assert (average.module.running_mean > 0.1).all()
    assert (average.module.running_mean < model.running_mean).all()  # averaged, not copied
