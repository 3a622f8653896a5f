"""The command line of training, and what it says of a run."""

import importlib.util
import os
import re
import shlex
from argparse import ArgumentParser, Namespace
from pathlib import Path

import distributed
from data import DATASETS
from loading import ON_BAD_IMAGE
from optimization import ONE_CYCLE, OPTIMIZERS, SCHEDULES, WARMUPS
from presets import AUTO_AUGMENT
from utils import HelpFormatter, check_numbers

HALVES = ("float16", "bfloat16")
# A run can only be resumed with the same; the rest (workers, paths, logs) may change.
SETTINGS = (
    "dataset",
    "image_size",
    "auto_augment",
    "random_erase",
    "epochs",
    "opt",
    "lr",
    "momentum",
    "weight_decay",
    "lr_scheduler",
    "lr_step_size",
    "lr_gamma",
    "lr_min",
    "lr_warmup_epochs",
    "lr_warmup_method",
    "lr_warmup_decay",
    "label_smoothing",
    "mixup_alpha",
    "cutmix_alpha",
    "clip_grad_norm",
    "model_ema",
    "model_ema_steps",
    "model_ema_decay",
    "amp",
    "sync_bn",
    "seed",
)


class RecipeParser(ArgumentParser):
    """Reads ``@FILE`` as arguments: ``--name=value`` or ``--name value`` a line, spaces and quotes being part of it.

    Empty lines are left out, and comments: what follows a ``#`` that begins a line or stands after a space.
    """

    def convert_arg_line_to_args(self, line: str) -> list[str]:
        words = re.sub(r"(^|\s)#.*", "", line).strip()
        name, space, value = words.partition(" ")
        if space and name.startswith("-") and "=" not in name:
            return [name, value.strip()]
        return [words] if words else []


def get_parser(description: str | None = None) -> ArgumentParser:
    parser = RecipeParser(description=description, formatter_class=HelpFormatter, fromfile_prefix_chars="@")
    add = parser.add_argument_group("model").add_argument
    add("--model", default="resnet18", help="a name from models/__init__.py")
    add("--width-mult", type=float, default=1.0, help="multiplies the channels of the model")
    add("--depth-mult", type=float, default=1.0, help="multiplies the blocks of its stages, rounded up")
    add("--weights", metavar="PATH", help="a checkpoint.pth or model.pth whose weights to start from")
    add_data_arguments(parser)

    add = parser.add_argument_group("images in training").add_argument
    add("--auto-augment", choices=AUTO_AUGMENT, help="a policy of random changes")
    add("--random-erase", type=float, default=0.0, metavar="P", help="probability of erasing a part")
    add("--mixup-alpha", type=float, default=0.0, help="of mixup, 0 for none")
    add("--cutmix-alpha", type=float, default=0.0, help="of cutmix, 0 for none")
    add("--label-smoothing", type=float, default=0.1, help="of the cross-entropy")

    add = parser.add_argument_group("optimization").add_argument
    add("--epochs", type=int, default=12, help="how often the training set is gone through")
    add("--opt", default="sgd_nesterov", choices=OPTIMIZERS, help="optimizer")
    add("--lr", type=float, default=0.03, help="the highest learning rate")
    add("--momentum", type=float, default=0.9, help="of SGD and RMSprop")
    add("--weight-decay", "--wd", type=float, default=5e-4, help="of every parameter")
    add("--lr-scheduler", default=ONE_CYCLE, choices=[ONE_CYCLE, *SCHEDULES], help="schedule of the learning rate")
    add("--lr-step-size", type=int, default=30, help="epochs between two steps of steplr")
    add("--lr-gamma", type=float, default=0.1, help="factor of steplr and exponentiallr")
    add("--lr-min", type=float, default=0.0, help="where cosineannealinglr ends")
    add("--lr-warmup-epochs", type=int, default=0, help="epochs in which it rises; 0 is a fifth of all for onecyclelr")
    add("--lr-warmup-method", default="constant", choices=WARMUPS, help="of the schedules other than onecyclelr")
    add("--lr-warmup-decay", type=float, default=0.01, help="of these: the factor that they begin with")
    add("--clip-grad-norm", type=float, metavar="NORM", help="the largest norm of all gradients together")
    add("--model-ema", action="store_true", help="average the weights, and keep the average as the result")
    add("--model-ema-steps", type=int, default=32, help="batches between updates of the average; one ends each epoch")
    add("--model-ema-decay", type=float, default=0.99998, help="of the average, at each image of an epoch")

    add = parser.add_argument_group("computing").add_argument
    add("--device", help="cpu or cuda; without it, a GPU where there is one")
    add("--amp", nargs="?", const="float16", choices=HALVES, help="half precision where it is safe; alone: float16")
    add("--channels-last", action="store_true", help="lay images out with their channels last")
    add("--compile", action="store_true", help="compile the model")
    add("--sync-bn", action="store_true", help="batch statistics over the images of all processes")
    add("--fsdp", action="store_true", help="shard the parameters over the processes (FSDP2)")
    add("--seed", type=int, default=0, help="of the weights and of what is drawn in training")
    add(
        "--use-deterministic-algorithms",
        action="store_true",
        help="refuse operators that may give another result when run again; on CPUs they always are",
    )

    add = parser.add_argument_group("results").add_argument
    add("--output-dir", help="where checkpoints, logs and pictures go; without it, outputs/MODEL")
    add(
        "--resume", metavar="PATH", help="a checkpoint.pth to go on from; auto: the last good one of output-dir, if any"
    )
    add("--checkpoint-steps", type=int, default=0, help="batches between two checkpoints, beside one an epoch")
    add("--print-freq", type=int, default=0, help="batches between two lines on how an epoch goes; 0 prints none")
    add("--tensorboard", action="store_true", help="log for TensorBoard as well as in log.csv")
    add("--test-only", action="store_true", help="test --weights and train nothing")
    return parser


def add_data_arguments(parser: ArgumentParser) -> None:
    """Adds the options that ``load_data`` reads."""
    add = parser.add_argument_group("data").add_argument
    add("--dataset", default="digits", help=", ".join(DATASETS))
    add(
        "--data-path",
        metavar="DIR",
        help="of imagefolder and imagenet: DIR/train and DIR/val, or DIR/CLASS; of cifar10",
    )
    add("--image-size", type=int, default=64, help="side of the square the model sees")
    add("--batch-size", "-b", type=int, default=32, help="images in a batch of each process")
    add("--workers", "-j", type=int, default=0, help="processes that read images for each; 0 reads in the same")
    add("--on-bad-image", choices=ON_BAD_IMAGE, default="stop", help="what an unreadable image does")


def check_options(args: Namespace) -> None:
    """Raises ``ValueError`` for a number that breaks its rule and for options that do not go together."""
    check_numbers(args)
    if args.test_only and args.weights is None:
        raise ValueError("test_only needs weights to test")
    if args.resume not in (None, "auto") and args.weights is not None:
        raise ValueError("resume and weights cannot be given together: a checkpoint that is resumed has its weights")
    if args.lr_warmup_epochs > 0 and args.lr_warmup_epochs >= args.epochs:
        raise ValueError(f"lr_warmup_epochs must be below epochs, {args.epochs}; got {args.lr_warmup_epochs}")
    if args.fsdp and "RANK" not in os.environ:
        raise ValueError("fsdp needs the processes of torchrun: torchrun --nproc-per-node N ...")
    if args.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ValueError("tensorboard must be installed for its logs: pip install tensorboard")
    if args.fsdp and args.channels_last:
        raise ValueError("channels_last cannot be given with fsdp, which shards contiguous parameters alone")
    if args.fsdp and args.amp == "float16":
        raise ValueError("amp must be bfloat16 with fsdp; got float16, whose scaler does not know sharded gradients")


def settings_of(args: Namespace, images: int) -> dict[str, object]:
    """What a checkpoint must agree with to be resumed; the batch is that of all processes together."""
    settings = {name: getattr(args, name) for name in SETTINGS}
    # With another number of either, the schedule would not fit.
    return {**settings, "images in a batch": args.batch_size * distributed.count(), "training images": images}


def sizes_of(args: Namespace) -> dict[str, float]:
    """The arguments of the model that give it its size."""
    return {"width_mult": args.width_mult, "depth_mult": args.depth_mult}


def command_of(args: Namespace) -> str:
    """The command that gives ``args`` in the current folder, with a recipe's arguments spelt out."""
    words = ["python"]
    if "RANK" in os.environ:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", distributed.count()))
        nodes = ["--nnodes", str(distributed.count() // here)] if here < distributed.count() else []
        words = ["torchrun", *nodes, "--nproc-per-node", str(here)]
    script = Path(__file__).with_name("train.py")
    words.append(str(script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script))
    for action in get_parser()._actions:
        value = getattr(args, action.dest, None)
        if action.dest == "help" or (value == action.default and action.dest != "model"):
            continue
        name = action.option_strings[0]
        if value is True:
            words.append(name)
        elif str(value).startswith("-"):  # or it would be taken for another option
            words.append(f"{name}={value}")
        else:
            words += [name, str(value)]
    return shlex.join(words)
