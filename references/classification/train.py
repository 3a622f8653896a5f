"""Trains a reference model, or tests a trained one.

python references/classification/train.py --model resnet18 --image-size 32 --output-dir outputs/resnet18
torchrun --nproc-per-node 2 --max-restarts 3 references/classification/train.py --model resnet18 --resume auto
python references/classification/train.py @references/classification/recipes/resnet18.txt
"""

import math
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import distributed
import options
import presets
import torch
import torchvision
from checkpoints import (
    before,
    check_same,
    load_checkpoint,
    model_arguments,
    read_resumable,
    resumed,
    save_atomically,
    save_checkpoint,
)
from engine import EpochResult, Options, train_one_epoch
from evaluation import Evaluation, evaluate
from interruption import StopAsked, Stopped, StopRequest
from loading import ImageLoader, left_out, load_data
from logs import Log, plot_confusion, plot_curves
from models import build_model
from optimization import make_average, make_optimizer, make_schedule
from sync_batch_norm import synchronized
from torch import nn
from tqdm import tqdm
from trained import load_trained
from training import Training
from utils import check_output_dir, run_as_script, seed_everything

Tested = tuple[Evaluation, Evaluation | None]  # the model, and the average of its weights


def get_parser() -> ArgumentParser:
    return options.get_parser(__doc__)


def main(args: Namespace) -> dict[str, Any]:
    """Trains or tests as ``args`` of :func:`get_parser` say.

    Returns:
        ``history``, one entry an epoch with loss and accuracy of both sets, and the final ``test_accuracy``.
    """
    options.check_options(args)
    with distributed.processes(args.device) as device, StopRequest() as stop:
        train_loader, test_loader, classes = load_data(args)
        if args.test_only:
            model = load_trained(args.weights, args, classes).to(device)
            tested = evaluate(model, test_loader, len(classes), device=device)
            left = left_out(test_loader)
            if distributed.rank() == 0:
                print(f"{args.model}: test accuracy {tested.accuracy:.2%}{left}")
            return {"history": [], "test_accuracy": tested.accuracy}
        return Run(args, device, train_loader, test_loader, classes, stop).train()


class Run:
    """One run of the script: a :class:`Training`, and what is written of it."""

    def __init__(
        self,
        args: Namespace,
        device: torch.device,
        train_loader: ImageLoader,
        test_loader: ImageLoader,
        classes: list[str],
        stop: StopRequest,
    ) -> None:
        self.args, self.device, self.stop = args, device, stop
        self.train_loader, self.test_loader, self.classes = train_loader, test_loader, classes
        self.about = {
            "model_name": args.model,
            "num_classes": len(classes),
            "classes": classes,
            "model_arguments": options.sizes_of(args),
            "settings": options.settings_of(args, len(train_loader.dataset)),
        }
        model = self._build()
        self.output_dir = check_output_dir(args.output_dir or f"outputs/{args.model}")
        self.checkpoint = self.output_dir / "checkpoint.pth"
        self.good: Path | None = None  # the last checkpoint of this run that was written or read
        self.training = self._start(model)
        self._resume()

    def _build(self) -> nn.Module:
        seed_everything(self.args.seed)
        model = build_model(self.args.model, len(self.classes), **self.about["model_arguments"])
        if self.args.weights is not None:
            checkpoint = load_checkpoint(self.args.weights, self.args.model, len(self.classes))
            check_same(self.args.weights, "size", model_arguments(checkpoint), self.about["model_arguments"])
            model.load_state_dict(checkpoint["model"])
        return model

    def _start(self, model: nn.Module) -> Training:
        args, device = self.args, self.device
        layout = torch.channels_last if args.channels_last else torch.preserve_format
        model = model.to(device, memory_format=layout)
        if args.sync_bn and distributed.count() > 1:
            model = synchronized(model, device)
        average = make_average(model, args, args.batch_size * distributed.count()) if args.model_ema else None
        wrapped = distributed.spread(model, device, args.fsdp)
        if average is not None and args.fsdp:
            distributed.shard(average.module)
        if args.compile:
            wrapped.compile(dynamic=False)  # or the graph of a batch would depend on the sizes of earlier ones
        optimizer = make_optimizer(model, args)
        return Training(
            model,
            optimizer,
            device,
            make_schedule(optimizer, args, len(self.train_loader)),
            torch.amp.GradScaler(device.type) if args.amp == "float16" else None,
            average,
            wrapped,
            args.fsdp,
        )

    def _resume(self) -> None:
        if self.args.resume is None:
            return  # before the processes ask each other what they found
        state = resumed(self.args.resume, self.checkpoint, self._read)
        if len(set(distributed.gather(state and (state["epoch"], state["step"])))) > 1:
            raise ValueError(f"all processes must find the same checkpoint; is {self.output_dir} a folder of them all?")
        if state is not None:
            self.training.load(state, self.args.seed)
            self.say(f"goes on in epoch {self.training.epoch}, after {self.training.step} of its batches")

    def _read(self, path: Path) -> dict[str, Any]:
        """The checkpoint at ``path``; ``ValueError`` if it cannot be resumed, or is of another run."""
        state = read_resumable(path, self.about)
        self.good = path
        return state

    def say(self, line: str) -> None:
        """Prints a line and adds it to train.log, in the first process."""
        if distributed.rank() == 0:
            tqdm.write(line)
            with open(self.output_dir / "train.log", "a", encoding="utf-8", errors="backslashreplace") as log:
                log.write(f"{line}\n")

    def train(self) -> dict[str, Any]:
        args, training = self.args, self.training
        start = time.perf_counter()
        self.say(f"$ {options.command_of(args)}")
        self.say(f"torch {torch.__version__}, torchvision {torchvision.__version__}, {self.device}")
        choices = Options(
            label_smoothing=args.label_smoothing,
            mixing=presets.batch_mixing(len(self.classes), args.mixup_alpha, args.cutmix_alpha),
            clip_grad_norm=args.clip_grad_norm,
            amp=getattr(torch, args.amp) if args.amp else None,
            channels_last=args.channels_last,
            ema_steps=args.model_ema_steps,
            ema_from=args.lr_warmup_epochs + 1,
            seed=args.seed,
            print_freq=args.print_freq,
            deterministic=args.use_deterministic_algorithms or self.device.type == "cpu",
        )
        tested = None
        with Log(self.output_dir, args.tensorboard and distributed.rank() == 0, training.epoch - 1) as log:
            try:
                while training.epoch <= args.epochs:
                    trained = train_one_epoch(
                        training,
                        self.train_loader,
                        choices,
                        stop=self.stop,
                        after_step=self._save_sometimes,
                        say=self.say,
                    )
                    tested = self._test()
                    training.end_epoch(self._entry(trained, tested))
                    if distributed.rank() == 0:
                        log.write(training.history)
                    self._save()
                    self._report(trained)
            except StopAsked as asked:
                self._save()
                raise Stopped(self._how_to_go_on(), asked.signum) from asked
        return self._finish(tested or self._test(), time.perf_counter() - start)

    def _test(self) -> Tested:
        """The model on the test set and, where there is one, the average of its weights."""
        average = self.training.average
        modules = [self.training.model] if average is None else [self.training.model, average.module]
        found = []
        for module in modules:
            distributed.share_buffers(module)
            tested = evaluate(
                module,
                self.test_loader,
                len(self.classes),
                label_smoothing=self.args.label_smoothing,
                device=self.device,
                is_sharded=self.args.fsdp,
            )
            found.append(tested)
        return found[0], found[1] if average is not None else None

    def _entry(self, trained: EpochResult, tested: Tested) -> dict[str, float]:
        """The line of the epoch in the history."""
        plain, averaged = tested
        if not math.isfinite(plain.loss):
            raise FloatingPointError(
                f"the test loss is {plain.loss} after epoch {self.training.epoch}; try a lower lr{self._kept()}"
            )
        entry = {
            "epoch": self.training.epoch,
            "lr": self.training.optimizer.param_groups[0]["lr"],  # where the epoch ends
            "train_loss": trained.loss,
            "train_accuracy": trained.accuracy,
            "test_loss": plain.loss,
            "test_accuracy": plain.accuracy,
            "test_top5_accuracy": plain.top5_accuracy,
        }
        return entry if averaged is None else {**entry, "ema_loss": averaged.loss, "ema_accuracy": averaged.accuracy}

    def _report(self, trained: EpochResult) -> None:
        entry = self.training.history[-1]
        averaged = f", averaged {entry['ema_accuracy']:.2%}" if "ema_accuracy" in entry else ""
        small = f", batches of one image skipped: {trained.small_batches}" if trained.small_batches else ""
        self.say(
            f"epoch {entry['epoch']}/{self.args.epochs}: "
            f"loss {entry['train_loss']:.3f}, accuracy {entry['train_accuracy']:.2%}; "
            f"test loss {entry['test_loss']:.3f}, accuracy {entry['test_accuracy']:.2%}"
            f"{averaged}{small}{left_out(self.train_loader, self.test_loader)}"
        )

    def _save_sometimes(self) -> None:
        if self.args.checkpoint_steps and self.training.step % self.args.checkpoint_steps == 0:
            self._save()

    def _save(self) -> None:
        """Writes the checkpoint, unless the last step has spoilt the weights."""
        training = self.training
        if not training.is_finite():
            done = (
                f"in epoch {training.epoch}, step {training.step}"
                if training.step
                else f"after epoch {training.epoch - 1}"
            )
            raise FloatingPointError(f"a weight is not finite {done}; try a lower lr{self._kept()}")
        state = training.state()
        if distributed.rank() == 0:
            try:
                save_checkpoint({**self.about, **state}, self.checkpoint, self.good != before(self.checkpoint))
            except OSError as error:
                raise OSError(f"{error}{self._kept()}") from error
        self.good = self.checkpoint

    def _kept(self) -> str:
        return f"; {self.good} is the last good checkpoint" if self.good else ""

    def _how_to_go_on(self) -> str:
        training, command = self.training, options.command_of(Namespace(**{**vars(self.args), "resume": "auto"}))
        return f"stopped in epoch {training.epoch}, after {training.step} of its batches; to go on:\n{command}"

    def _finish(self, tested: Tested, seconds: float) -> dict[str, Any]:
        """Writes the weights to keep, the average where there is one, and the pictures."""
        args, (plain, averaged) = self.args, tested
        final, state = averaged or plain, self.training.state()
        weights = state["model"] if averaged is None else state["model_ema"]
        left = left_out(self.train_loader, self.test_loader)
        if distributed.rank() == 0:
            save_atomically(
                {**self.about, "model": weights, "test_accuracy": final.accuracy}, self.output_dir / "model.pth"
            )
            title = f"{args.model} on {args.dataset}"
            plot_curves(self.training.history, self.output_dir / "curves.png", title=title)
            plot_confusion(final.confusion, self.classes, self.output_dir / "confusion.png", title=title)
        self.say(f"{args.model}: test accuracy {final.accuracy:.2%} in {seconds:.0f} s{left}")
        return {"history": self.training.history, "test_accuracy": final.accuracy}


if __name__ == "__main__":
    run_as_script(main, get_parser().parse_args())
