"""An epoch of training."""

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import distributed
import torch
from interruption import StopAsked, StopRequest
from loading import Batch, ImageLoader
from torch import Tensor, nn
from torchvision.transforms import v2
from tqdm import tqdm
from training import Training
from utils import deterministic_algorithms, seed_everything

SMALLEST = 2  # images in a process's part of a batch: batch normalization has no variance of one value


@dataclass
class Options:
    """What an epoch does beside the steps.

    Attributes:
        label_smoothing: of the cross-entropy.
        mixing: mixes a batch of images and their labels.
        clip_grad_norm: the largest norm of all gradients together.
        amp: the half precision to compute in where torch deems it safe.
        channels_last: whether images are laid out so.
        ema_steps: batches between two updates of the average, beside one at the end of each epoch.
        ema_from: the first epoch whose weights are averaged with earlier ones.
        seed: of what the model draws.
        print_freq: batches between two lines on how the epoch goes; ``0`` prints none.
        deterministic: whether operators that could give another result when run again are refused.
    """

    label_smoothing: float = 0.0
    mixing: v2.Transform | None = None
    clip_grad_norm: float | None = None
    amp: torch.dtype | None = None
    channels_last: bool = False
    ema_steps: int = 1
    ema_from: int = 1
    seed: int = 0
    print_freq: int = 0
    deterministic: bool = True


class EpochResult(NamedTuple):
    """Means over the images trained on, and how many batches were left out: a process had fewer than two images."""

    loss: float
    accuracy: float
    small_batches: int


def train_one_epoch(
    run: Training,
    loader: ImageLoader,
    options: Options | None = None,
    *,
    stop: StopRequest | None = None,
    after_step: Callable[[], None] | None = None,
    say: Callable[[str], None] = print,
) -> EpochResult:
    """Trains on every batch of ``loader`` that this epoch of ``run`` has not seen, with a progress bar.

    Args:
        run: taken on from batch to batch.
        loader: gives images and labels.
        options: Default: ``None``, those that :class:`Options` has.
        stop: looked at before each batch. Default: ``None``, nothing stops it.
        after_step: called after each batch. Default: ``None``.
        say: called with each line of ``options.print_freq``. Default: ``print``.

    Raises:
        FloatingPointError: if the loss is not finite.
        StopAsked: if ``stop`` asks for it, in all processes before the same batch.
        ValueError: if no batch holds two readable images for each process.
    """
    options = options or Options()
    model = run.wrapped or run.model
    model.train()
    if run.step == 0:
        seed_everything(options.seed, run.epoch, distributed.rank())
    determinism = deterministic_algorithms() if options.deterministic else nullcontext()
    seen = before = int(run.sums[2])
    start = time.perf_counter()
    bar = tqdm(
        total=len(loader.dataset),
        initial=before,
        desc=f"epoch {run.epoch}",
        unit=" images",
        leave=False,
        disable=distributed.rank() > 0 or None,  # None: where stderr is no terminal
    )
    with determinism, bar:
        for batch in _batches(run, loader, stop):
            counts, signals = _agree(batch, stop, run.device)
            if any(signals):
                raise StopAsked(int(max(signals)))
            run.step += 1
            if min(counts) < SMALLEST:
                run.sums[3] += 1
            else:
                _step(run, model, batch, sum(counts), options)
            # At the end of an epoch too: one of fewer batches would leave the average as the model began.
            if run.average is not None and (run.step % options.ema_steps == 0 or run.step == len(loader)):
                if run.epoch < options.ema_from:
                    run.average.n_averaged.zero_()  # the update copies
                run.average.update_parameters(run.model)
            loss, accuracy = _means(run)
            bar.update(int(run.sums[2]) - seen)
            seen = int(run.sums[2])
            bar.set_postfix(loss=f"{loss:.3f}", accuracy=f"{accuracy:.1%}", refresh=False)
            if options.print_freq and run.step % options.print_freq == 0:
                speed = (seen - before) / (time.perf_counter() - start)
                figures = f"loss {loss:.3f}, accuracy {accuracy:.2%}, {speed:.0f} images/s"
                say(f"epoch {run.epoch}, step {run.step}/{len(loader)}: {figures}")
            if after_step is not None:
                after_step()
    if run.sums[2] == 0:
        raise ValueError(f"epoch {run.epoch}: no batch holds two readable images to train on")
    return EpochResult(*_means(run), int(run.sums[3]))


def _batches(run: Training, loader: ImageLoader, stop: StopRequest | None) -> Iterator[Batch]:
    """What is left of the epoch; an empty batch where the signal that asks to stop has ended the readers as well."""
    try:
        yield from loader.batches(run.epoch, run.step)
    except (RuntimeError, OSError, EOFError):  # from the DataLoader, of a reader that is gone
        if not (stop and stop.signum):
            raise
        yield Batch(None, None, [])


def _agree(batch: Batch, stop: StopRequest | None, device: torch.device) -> tuple[list[float], list[float]]:
    """How many images each process has, and the signals that they were sent."""
    count = 0 if batch.labels is None else len(batch.labels)
    table = distributed.exchange([count, stop.signum if stop else 0], device)
    return table[:, 0].tolist(), table[:, 1].tolist()


def _means(run: Training) -> tuple[float, float]:
    loss, correct, seen, _ = run.sums
    return loss / max(seen, 1), correct / max(seen, 1)


def _step(run: Training, model: nn.Module, batch: Batch, whole: float, options: Options) -> None:
    """Trains on one batch, of which all processes together have ``whole`` images."""
    images, labels = (value.to(run.device, non_blocking=True) for value in (batch.images, batch.labels))
    if options.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    if options.mixing is not None:
        images, labels = options.mixing(images, labels)
    with torch.autocast(run.device.type, options.amp, enabled=options.amp is not None):
        output = model(images)
        loss = nn.functional.cross_entropy(output, labels, label_smoothing=options.label_smoothing)
    count = len(labels)
    true = labels if labels.dim() == 1 else labels.argmax(dim=1)
    correct = (output.argmax(dim=1) == true).sum().item()
    table = distributed.exchange([loss.item() * count, correct, count], run.device)
    loss_sum, correct, seen = table.sum(dim=0).tolist()
    if not math.isfinite(loss_sum):
        where = f"epoch {run.epoch}, step {run.step}"
        which = f"; its images here: {', '.join(batch.names)}" if not math.isfinite(loss.item()) else ""
        raise FloatingPointError(f"the loss is {loss_sum / seen} in {where}; try a lower lr{which}")
    # Processes average their gradients; what a smaller part of the batch gives must not weigh more.
    _update(run, loss * (count * distributed.count() / whole), options)
    for i, value in enumerate((loss_sum, correct, seen)):
        run.sums[i] += value


def _update(run: Training, loss: Tensor, options: Options) -> None:
    run.optimizer.zero_grad()
    if run.scaler is None:
        loss.backward()
    else:
        run.scaler.scale(loss).backward()
        run.scaler.unscale_(run.optimizer)
    if options.clip_grad_norm is not None:
        nn.utils.clip_grad_norm_(run.model.parameters(), options.clip_grad_norm)
    if run.scaler is None:
        run.optimizer.step()
    else:
        run.scaler.step(run.optimizer)
        run.scaler.update()
    if run.schedule is None or not run.schedule.is_by_batch:
        return
    with warnings.catch_warnings() if run.scaler else nullcontext():
        if run.scaler:  # which leaves out steps whose gradients overflow, for one the very first
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step", category=UserWarning)
        run.schedule.scheduler.step()
