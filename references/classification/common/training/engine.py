"""One epoch of training."""

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.transforms import v2
from tqdm import tqdm

from .. import distributed
from ..data.loading import Batch, ImageLoader
from ..runs.reproducibility import deterministic_algorithms, seed_everything
from ..runs.signals import StopRequest, StopRequested
from ..settings import EpochSettings
from .state import TrainingState

MIN_IMAGES = 2  # per process and batch: one value has no variance for batch normalization


class EpochResult(NamedTuple):
    """Means over the images, and the number of batches skipped because a process had fewer than two images."""

    loss: float
    accuracy: float
    small_batches: int


def train_one_epoch(
    state: TrainingState,
    loader: ImageLoader,
    settings: EpochSettings,
    *,
    mixing: v2.Transform | None = None,
    stop: StopRequest | None = None,
    after_step: Callable[[], None] | None = None,
    log: Callable[[str], None] = print,
) -> EpochResult:
    """Trains on the remaining batches of the current epoch, with a progress bar.

    Args:
        state: the state of training, updated after each batch.
        loader: images and labels.
        settings: options of ``train.py`` for the steps.
        mixing: mixes images and labels of a batch. Default: ``None``.
        stop: checked before each batch. Default: ``None``.
        after_step: called after each batch. Default: ``None``.
        log: called with each progress line. Default: ``print``.

    Raises:
        FloatingPointError: if the loss is not finite.
        StopRequested: if ``stop`` requests it, in all processes before the same batch.
        ValueError: if no batch has two readable images for each process.
    """
    model = state.wrapped or state.model
    model.train()
    if state.step == 0:
        seed_everything(settings.seed, state.epoch, distributed.rank())
    is_deterministic = settings.is_deterministic(state.device)
    first = int(state.sums[2])
    start = time.perf_counter()
    bar = tqdm(
        total=len(loader.dataset),
        initial=first,
        desc=f"epoch {state.epoch}",
        unit=" images",
        leave=False,
        disable=distributed.rank() > 0 or None,  # None: disabled if stderr is not a terminal
    )
    with deterministic_algorithms() if is_deterministic else nullcontext(), bar:
        for batch in _remaining_batches(state, loader, stop):
            counts, signals = _gather_counts_and_signals(batch, stop, state.device)
            if any(signals):
                raise StopRequested(int(max(signals)))
            images_before = int(state.sums[2])
            state.step += 1
            if min(counts) < MIN_IMAGES:
                state.sums[3] += 1
            else:
                _train_step(state, model, batch, sum(counts), settings, mixing)
            # Also at the end of an epoch, or a short run would never update the average.
            if state.average is not None and (state.step % settings.model_ema_steps == 0 or state.step == len(loader)):
                if state.epoch <= settings.lr_warmup_epochs:
                    state.average.n_averaged.zero_()  # the update then copies the weights
                state.average.update_parameters(state.model)
            images = int(state.sums[2])
            loss, accuracy = _means(state)
            bar.update(images - images_before)
            bar.set_postfix(loss=f"{loss:.3f}", accuracy=f"{accuracy:.1%}", refresh=False)
            if settings.print_freq and state.step % settings.print_freq == 0:
                speed = (images - first) / (time.perf_counter() - start)
                figures = f"loss {loss:.3f}, accuracy {accuracy:.2%}, {speed:.0f} images/s"
                log(f"epoch {state.epoch}, step {state.step}/{len(loader)}: {figures}")
            if after_step is not None:
                after_step()
    if state.sums[2] == 0:
        raise ValueError(f"epoch {state.epoch}: no batch holds two readable images to train on")
    return EpochResult(*_means(state), int(state.sums[3]))


def _remaining_batches(state: TrainingState, loader: ImageLoader, stop: StopRequest | None) -> Iterator[Batch]:
    """The rest of the epoch; an empty batch if the signal that requests a stop has also ended the workers."""
    try:
        yield from loader.batches(state.epoch, state.step)
    except (RuntimeError, OSError, EOFError):  # raised by the DataLoader for a worker that is gone
        if not (stop and stop.signum):
            raise
        yield Batch(None, None, [])


def _gather_counts_and_signals(
    batch: Batch, stop: StopRequest | None, device: torch.device
) -> tuple[list[float], list[float]]:
    """For each process, the number of its images and the signal it received."""
    count = 0 if batch.labels is None else len(batch.labels)
    rows = distributed.gather_rows([count, stop.signum if stop else 0], device)
    return rows[:, 0].tolist(), rows[:, 1].tolist()


def _means(state: TrainingState) -> tuple[float, float]:
    loss, correct, images, _ = state.sums
    return loss / max(images, 1), correct / max(images, 1)


def _train_step(
    state: TrainingState,
    model: nn.Module,
    batch: Batch,
    total_images: float,
    settings: EpochSettings,
    mixing: v2.Transform | None,
) -> None:
    """Trains on one batch, which has ``total_images`` over all processes."""
    images, labels = (value.to(state.device, non_blocking=True) for value in (batch.images, batch.labels))
    if settings.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    if mixing is not None:
        images, labels = mixing(images, labels)
    dtype = getattr(torch, settings.amp) if settings.amp else None
    with torch.autocast(state.device.type, dtype, enabled=dtype is not None):
        output = model(images)
        loss = nn.functional.cross_entropy(output, labels, label_smoothing=settings.label_smoothing)
    count = len(labels)
    targets = labels if labels.dim() == 1 else labels.argmax(dim=1)
    correct = (output.argmax(dim=1) == targets).sum().item()
    sums = distributed.gather_rows([loss.item() * count, correct, count], state.device).sum(dim=0).tolist()
    if not math.isfinite(sums[0]):
        names = f"; its images here: {', '.join(batch.names)}" if not math.isfinite(loss.item()) else ""
        raise FloatingPointError(
            f"the loss is {sums[0] / sums[2]} in epoch {state.epoch}, step {state.step}; try a lower lr{names}"
        )
    # DDP averages gradients over processes: weight the loss so that a smaller part of the batch does not count more.
    _update(state, loss * (count * distributed.world_size() / total_images), settings)
    for i, value in enumerate(sums):
        state.sums[i] += value


def _update(state: TrainingState, loss: Tensor, settings: EpochSettings) -> None:
    state.optimizer.zero_grad()
    if state.scaler is None:
        loss.backward()
    else:
        state.scaler.scale(loss).backward()
        state.scaler.unscale_(state.optimizer)
    if settings.clip_grad_norm is not None:
        nn.utils.clip_grad_norm_(state.model.parameters(), settings.clip_grad_norm)
    if state.scaler is None:
        state.optimizer.step()
    else:
        state.scaler.step(state.optimizer)
        state.scaler.update()
    if state.schedule is None or not state.schedule.is_by_batch:
        return
    with warnings.catch_warnings() if state.scaler else nullcontext():
        if state.scaler:  # it skips steps whose gradients overflow, often the first one
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step", category=UserWarning)
        state.schedule.scheduler.step()
