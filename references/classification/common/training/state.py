"""The state of training: everything that changes during a run and that a checkpoint holds."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.amp import GradScaler
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from .. import distributed
from ..runs.reproducibility import generator_states, restore_generators, seed_everything
from .optimization import Schedule


@dataclass
class TrainingState:
    """A model in training.

    Attributes:
        model: the model whose parameters are trained.
        optimizer: optimizer of these parameters.
        device: device of the parameters.
        schedule: learning rate schedule.
        scaler: loss scaler for float16.
        average: average of the weights.
        wrapped: module to call in training if it is not ``model``: its distributed or compiled wrapper.
        is_sharded: whether the parameters are sharded over the processes.
        epoch: current epoch, counted from 1.
        step: number of batches of this epoch that are done.
        sums: loss, correct predictions and images of these batches, and the number of skipped batches.
        history: one entry for each earlier epoch.
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

    def state_dict(self) -> dict[str, Any]:
        """The whole state, for a checkpoint. All processes must call this; the first gets unsharded tensors."""
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
            "generators": distributed.gather_objects(generator_states()),
        }

    def load_state_dict(self, state: dict[str, Any], seed: int) -> None:
        """Restores a :meth:`state_dict`; seeds the generators instead if the number of processes has changed."""
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
                module, average = self.average.module, state["model_ema"]
                set_state_dict(module, (), model_state_dict=average, optim_state_dict={}, options=options)
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
        if len(state["generators"]) == distributed.world_size():
            restore_generators(state["generators"][distributed.rank()])
        else:
            seed_everything(seed, self.epoch, self.step, distributed.rank())

    def end_epoch(self, entry: dict[str, float]) -> None:
        """Adds ``entry`` to the history and moves on to the next epoch."""
        if self.schedule and not self.schedule.is_by_batch:
            self.schedule.scheduler.step()
        self.history.append(entry)
        self.epoch, self.step, self.sums = self.epoch + 1, 0, [0.0, 0, 0, 0]

    def is_finite(self) -> bool:
        """Whether all parameters and buffers of the model and of the average are finite, in every process."""
        modules = [self.model, self.average] if self.average else [self.model]
        values = [value for module in modules for value in (*module.parameters(), *module.buffers())]
        finite = all(bool(distributed.local_shard(value).isfinite().all()) for value in values)
        return bool(distributed.gather_rows([finite], self.device).all())
