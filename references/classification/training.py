"""A run of training: all that changes in it, which is what a checkpoint holds."""

from dataclasses import dataclass, field
from typing import Any

import distributed
import torch
from optimization import Schedule
from torch import nn
from torch.amp import GradScaler
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel
from utils import generators, restore_generators, seed_everything


@dataclass
class Training:
    """A model in training.

    Attributes:
        model: whose parameters are trained.
        optimizer: of them.
        device: where they are.
        schedule: of the learning rate.
        scaler: of the loss, for float16.
        average: of the weights.
        wrapped: what is called in training, ``model`` or its wrapper.
        is_sharded: whether the parameters are spread over the processes.
        epoch: the one that is trained next, or is being trained, counted from 1.
        step: how many batches of it have been trained on.
        sums: loss, right predictions and images of these batches, and the batches left out.
        history: what came of the epochs before.
    """

    model: nn.Module
    optimizer: Optimizer
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    schedule: Schedule | None = None
    scaler: GradScaler | None = None
    average: AveragedModel | None = None
    wrapped: nn.Module | None = None
    is_sharded: bool = False
    epoch: int = 1
    step: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0, 0, 0, 0])
    history: list[dict[str, float]] = field(default_factory=list)

    def state(self) -> dict[str, Any]:
        """All of it, for a checkpoint. All processes must ask for it; the first gets it whole."""
        if self.is_sharded:
            options = StateDictOptions(full_state_dict=True, cpu_offload=True)
            model, optimizer = get_state_dict(self.model, self.optimizer, options=options)
            average = get_state_dict(self.average.module, (), options=options)[0] if self.average else None
        else:
            model, optimizer = self.model.state_dict(), self.optimizer.state_dict()
            average = self.average.module.state_dict() if self.average else None
        return {
            "model": model,
            "optimizer": optimizer,
            "scheduler": self.schedule.scheduler.state_dict() if self.schedule else None,
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "model_ema": average,
            "averaged": int(self.average.n_averaged) if self.average else 0,
            "epoch": self.epoch,
            "step": self.step,
            "sums": self.sums,
            "history": self.history,
            "generators": distributed.gather(generators()),
        }

    def load(self, state: dict[str, Any], seed: int) -> None:
        """Goes to where :meth:`state` was asked for; with another number of processes, generators begin anew."""
        if self.is_sharded:
            options = StateDictOptions(full_state_dict=True)
            set_state_dict(
                self.model,
                self.optimizer,
                model_state_dict=state["model"],
                optim_state_dict=state["optimizer"],
                options=options,
            )
            if self.average:
                set_state_dict(
                    self.average.module,
                    (),
                    model_state_dict=state["model_ema"],
                    optim_state_dict={},
                    options=options,
                )
        else:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.average:
                self.average.module.load_state_dict(state["model_ema"])
        if self.schedule:
            self.schedule.scheduler.load_state_dict(state["scheduler"])
        if self.scaler:
            self.scaler.load_state_dict(state["scaler"])
        if self.average:
            self.average.n_averaged.fill_(state["averaged"])
        self.epoch, self.step, self.sums = state["epoch"], state["step"], list(state["sums"])
        self.history = list(state["history"])
        if len(state["generators"]) == distributed.count():
            restore_generators(state["generators"][distributed.rank()])
        else:
            seed_everything(seed, self.epoch, self.step, distributed.rank())

    def end_epoch(self, entry: dict[str, float]) -> None:
        """Goes on to the next epoch; ``entry`` says what came of this one."""
        if self.schedule and not self.schedule.is_by_batch:
            self.schedule.scheduler.step()
        self.history.append(entry)
        self.epoch, self.step, self.sums = self.epoch + 1, 0, [0.0, 0, 0, 0]

    def is_finite(self) -> bool:
        """Whether all parameters and buffers are, those of the average too."""
        modules = [self.model, self.average] if self.average else [self.model]
        values = [value for module in modules for value in (*module.parameters(), *module.buffers())]
        finite = all(bool(distributed.local(value).isfinite().all()) for value in values)
        return bool(distributed.exchange([finite], self.device).all())
