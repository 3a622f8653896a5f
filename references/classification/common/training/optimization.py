"""Optimizers, learning rate schedules and the average of the weights, with the names of torchvision's script."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer, RMSprop, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..distributed import local_shard
from ..settings import OptimizationSettings

OPTIMIZERS: dict[str, Callable[[nn.Module, OptimizationSettings], Optimizer]] = {
    "sgd": lambda model, s: SGD(model.parameters(), s.lr, s.momentum, weight_decay=s.weight_decay),
    "sgd_nesterov": lambda model, s: SGD(
        model.parameters(), s.lr, s.momentum, weight_decay=s.weight_decay, nesterov=s.momentum > 0
    ),
    # alpha and eps of MobileNetV3, also in torchvision's script
    "rmsprop": lambda model, s: RMSprop(
        model.parameters(), s.lr, alpha=0.9, eps=0.0316, weight_decay=s.weight_decay, momentum=s.momentum
    ),
    "adamw": lambda model, s: AdamW(model.parameters(), s.lr, weight_decay=s.weight_decay),
}
SCHEDULES: dict[str, Callable[[Optimizer, OptimizationSettings], LRScheduler]] = {
    "steplr": lambda optimizer, s: lr_scheduler.StepLR(optimizer, s.lr_step_size, s.lr_gamma),
    "cosineannealinglr": lambda optimizer, s: lr_scheduler.CosineAnnealingLR(
        optimizer, s.epochs - s.lr_warmup_epochs, s.lr_min
    ),
    "exponentiallr": lambda optimizer, s: lr_scheduler.ExponentialLR(optimizer, s.lr_gamma),
}
ONE_CYCLE = "onecyclelr"
WARMUPS: dict[str, Callable[[Optimizer, OptimizationSettings], LRScheduler]] = {
    "linear": lambda optimizer, s: lr_scheduler.LinearLR(optimizer, s.lr_warmup_decay, total_iters=s.lr_warmup_epochs),
    "constant": lambda optimizer, s: lr_scheduler.ConstantLR(optimizer, s.lr_warmup_decay, s.lr_warmup_epochs),
}


class Schedule(NamedTuple):
    """A learning rate schedule, stepped after each batch or after each epoch."""

    scheduler: LRScheduler
    is_by_batch: bool


def make_optimizer(model: nn.Module, settings: OptimizationSettings) -> Optimizer:
    return OPTIMIZERS[settings.opt](model, settings)


def make_schedule(optimizer: Optimizer, settings: OptimizationSettings, batches: int) -> Schedule:
    """The learning rate schedule over all epochs, each of ``batches`` batches.

    The one-cycle schedule rises and falls along a cosine, batch by batch; the others change once per epoch.
    """
    if settings.lr_scheduler == ONE_CYCLE:
        steps = settings.epochs * batches
        rise = (settings.lr_warmup_epochs or 0.2 * settings.epochs) / settings.epochs
        if abs(rise * steps - 1) < 1e-6:  # OneCycleLR divides by zero if the rise is exactly one step
            rise *= 2
        cycle = lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=steps, pct_start=rise, cycle_momentum=False)
        return Schedule(cycle, is_by_batch=True)
    main = SCHEDULES[settings.lr_scheduler](optimizer, settings)
    if settings.lr_warmup_epochs == 0:
        return Schedule(main, is_by_batch=False)
    warmup = WARMUPS[settings.lr_warmup_method](optimizer, settings)
    both = lr_scheduler.SequentialLR(optimizer, [warmup, main], [settings.lr_warmup_epochs])
    return Schedule(both, is_by_batch=False)


def make_average(model: nn.Module, settings: OptimizationSettings, batch_size: int) -> AveragedModel:
    """The exponential moving average of weights and buffers.

    As in torchvision's script, the decay of an update follows from ``model_ema_decay``, the number of images between
    two updates, and ``epochs``. The first updates decay faster, so that a short run does not end near its initial
    weights: the decay of update n is at most (1 + n) / (10 + n), as in TensorFlow.
    """
    alpha = min(1.0, (1 - settings.model_ema_decay) * batch_size * settings.model_ema_steps / settings.epochs)

    def update(averages: Sequence[Tensor], values: Sequence[Tensor], count: Tensor) -> None:
        n = int(count)
        decay = min(1 - alpha, (1 + n) / (10 + n))
        get_ema_multi_avg_fn(decay)([local_shard(a) for a in averages], [local_shard(v) for v in values], count)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)
