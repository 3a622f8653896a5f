"""Optimizers, schedules of the learning rate and the average of the weights, by the names of torchvision's script."""

from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import NamedTuple

from distributed import local
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    SequentialLR,
    StepLR,
)
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

OPTIMIZERS: dict[str, Callable[[nn.Module, Namespace], Optimizer]] = {
    "sgd": lambda model, args: SGD(model.parameters(), args.lr, args.momentum, weight_decay=args.weight_decay),
    "sgd_nesterov": lambda model, args: SGD(
        model.parameters(), args.lr, args.momentum, weight_decay=args.weight_decay, nesterov=args.momentum > 0
    ),
    # alpha and eps are those of MobileNetV3, in torchvision's script as well.
    "rmsprop": lambda model, args: RMSprop(
        model.parameters(), args.lr, alpha=0.9, eps=0.0316, weight_decay=args.weight_decay, momentum=args.momentum
    ),
    "adamw": lambda model, args: AdamW(model.parameters(), args.lr, weight_decay=args.weight_decay),
}
SCHEDULES: dict[str, Callable[[Optimizer, Namespace], LRScheduler]] = {
    "steplr": lambda optimizer, args: StepLR(optimizer, args.lr_step_size, args.lr_gamma),
    "cosineannealinglr": lambda optimizer, args: CosineAnnealingLR(
        optimizer, args.epochs - args.lr_warmup_epochs, args.lr_min
    ),
    "exponentiallr": lambda optimizer, args: ExponentialLR(optimizer, args.lr_gamma),
}
ONE_CYCLE = "onecyclelr"
WARMUPS: dict[str, Callable[[Optimizer, Namespace], LRScheduler]] = {
    "linear": lambda optimizer, args: LinearLR(optimizer, args.lr_warmup_decay, total_iters=args.lr_warmup_epochs),
    "constant": lambda optimizer, args: ConstantLR(optimizer, args.lr_warmup_decay, args.lr_warmup_epochs),
}


class Schedule(NamedTuple):
    """A schedule of the learning rate, stepped after each batch, or else after each epoch."""

    scheduler: LRScheduler
    is_by_batch: bool


def make_optimizer(model: nn.Module, args: Namespace) -> Optimizer:
    return OPTIMIZERS[args.opt](model, args)


def make_schedule(optimizer: Optimizer, args: Namespace, batches: int) -> Schedule:
    """The schedule that ``args`` ask for, of ``args.epochs`` with so many ``batches``.

    The one-cycle schedule rises and falls along a cosine, batch by batch; all others change from epoch to epoch.
    """
    if args.lr_scheduler == ONE_CYCLE:
        steps = args.epochs * batches
        rise = (args.lr_warmup_epochs or 0.2 * args.epochs) / args.epochs
        if abs(rise * steps - 1) < 1e-6:  # a rise of exactly one step has OneCycleLR divide by zero
            rise *= 2
        cycle = OneCycleLR(optimizer, args.lr, total_steps=steps, pct_start=rise, cycle_momentum=False)
        return Schedule(cycle, is_by_batch=True)
    main = SCHEDULES[args.lr_scheduler](optimizer, args)
    if args.lr_warmup_epochs == 0:
        return Schedule(main, is_by_batch=False)
    warmup = WARMUPS[args.lr_warmup_method](optimizer, args)
    return Schedule(SequentialLR(optimizer, [warmup, main], [args.lr_warmup_epochs]), is_by_batch=False)


def make_average(model: nn.Module, args: Namespace, batch_size: int) -> AveragedModel:
    """The exponential moving average of the weights and the statistics.

    As in torchvision's script, the decay of an update follows from ``args.model_ema_decay``, the images between two
    updates and ``args.epochs``. The first updates decay faster, so that a short run does not end with the weights that
    it began with: after n of them at most by (1 + n) / (10 + n), which is the rule of TensorFlow's average.
    """
    forgotten = min(1.0, (1 - args.model_ema_decay) * batch_size * args.model_ema_steps / args.epochs)

    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor) -> None:
        n = int(count)
        decay = min(1 - forgotten, (1 + n) / (10 + n))
        get_ema_multi_avg_fn(decay)([local(value) for value in averaged], [local(value) for value in current], count)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)
