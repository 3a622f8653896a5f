"""What the scripts share: rules for numbers, how they end, seeds.

Nothing here needs ``torchvision_layers``: a trained artefact can be tested in a process that does not have it.
"""

import os
import random
import sys
import tempfile
from argparse import Action, ArgumentDefaultsHelpFormatter, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path

import numpy as np
import torch
from interruption import Stopped

# What a number given on the command line must fulfil; NaN fulfils none.
RULES: dict[str, tuple[Callable[[float], bool], str]] = {
    "batch_size": (lambda value: value >= 2, "at least 2, for batch statistics"),
    "calibration_batches": (lambda value: value >= 1, "at least 1"),
    "checkpoint_steps": (lambda value: value >= 0, "at least 0"),
    "clip_grad_norm": (lambda value: 0 < value < inf, "positive and finite"),
    "cutmix_alpha": (lambda value: 0 <= value < inf, "at least 0 and finite"),
    "depth_mult": (lambda value: 0 < value < inf, "positive and finite"),
    "epochs": (lambda value: value >= 1, "at least 1"),
    "frozen_epochs": (lambda value: value >= 0, "at least 0"),
    "jobs": (lambda value: value >= 1, "at least 1"),
    "label_smoothing": (lambda value: 0 <= value < 1, "in [0, 1)"),
    "lr": (lambda value: 0 < value < inf, "positive and finite"),
    "lr_gamma": (lambda value: 0 < value <= 1, "in (0, 1]"),
    "lr_min": (lambda value: 0 <= value < inf, "at least 0 and finite"),
    "lr_step_size": (lambda value: value >= 1, "at least 1"),
    "lr_warmup_decay": (lambda value: 0 < value <= 1, "in (0, 1]"),
    "lr_warmup_epochs": (lambda value: value >= 0, "at least 0"),
    "mixup_alpha": (lambda value: 0 <= value < inf, "at least 0 and finite"),
    "model_ema_decay": (lambda value: 0 <= value < 1, "in [0, 1)"),
    "model_ema_steps": (lambda value: value >= 1, "at least 1"),
    "momentum": (lambda value: 0 <= value < 1, "in [0, 1)"),
    "print_freq": (lambda value: value >= 0, "at least 0"),
    "random_erase": (lambda value: 0 <= value <= 1, "in [0, 1]"),
    "rounds": (lambda value: value >= 1, "at least 1"),
    "seed": (lambda value: value >= 0, "at least 0"),
    "seeds": (lambda value: value >= 1, "at least 1"),
    "weight_decay": (lambda value: 0 <= value < inf, "at least 0 and finite"),
    "width_mult": (lambda value: 0 < value < inf, "positive and finite"),
    "workers": (lambda value: value >= 0, "at least 0"),
}


class HelpFormatter(RawDescriptionHelpFormatter, ArgumentDefaultsHelpFormatter):
    """Keeps the lines of a description, and tells each default that there is."""

    def _get_help_string(self, action: Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def check_numbers(args: Namespace) -> None:
    """Raises ``ValueError`` for the first number in ``args`` that breaks its rule."""
    for name, value in vars(args).items():
        if name in RULES and value is not None:
            holds, rule = RULES[name]
            if not holds(value):
                raise ValueError(f"{name} must be {rule}; got {value}")


def run_as_script(main: Callable[[Namespace], object], args: Namespace) -> None:
    """Calls ``main``; what the user did wrong becomes one line on stderr and exit status 2."""
    sys.stdout.reconfigure(errors="backslashreplace")  # for names of files that its encoding does not have
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


def seed_everything(*numbers: int) -> None:
    """Seeds python, numpy and torch by the numbers: a seed, and what tells one part of a run from another."""
    number = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def generators() -> dict[str, object]:
    """Where the generators of python, numpy and torch stand, in what a checkpoint can hold."""
    name, keys, *rest = np.random.get_state()
    states: dict[str, object] = {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_generators(states: dict[str, object]) -> None:
    """Puts the generators back to where :func:`generators` found them."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


@contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """Inside, an operator that could give another result when run again raises instead.

    For training alone: int8 operators have no implementation that torch calls deterministic.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without which cuBLAS counts as not deterministic
    enabled, fill = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that costs time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled)
        torch.utils.deterministic.fill_uninitialized_memory = fill


def check_output_dir(path: str | Path) -> Path:
    """The folder, created where missing and shown to be writable; ``OSError`` naming it otherwise."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OSError(f"output_dir {path} cannot be written to: {error.strerror}") from error
    return path
