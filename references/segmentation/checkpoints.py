"""Files with a trained model and what is needed to build it."""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from scenes import CLASSES
from segmenters import build_model
from shared import save_atomically
from torch import nn

__all__ = ["build", "load", "save"]

MODEL_OPTIONS = ("width_mult", "depth_mult", "output_stride", "atrous_rates", "dropout")
OPTIONS = ("model", "image_size", *MODEL_OPTIONS)


def build(options: Mapping[str, Any]) -> nn.Module:
    """The untrained model that the options of ``train.py`` describe."""
    return build_model(options["model"], len(CLASSES), **{name: options[name] for name in MODEL_OPTIONS})


def save(model: nn.Module, args: Namespace, path: Path) -> None:
    """Writes the weights, and the options that determine the model and the size of its scenes."""
    save_atomically({"state": model.state_dict(), "options": {name: getattr(args, name) for name in OPTIONS}}, path)


def load(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The model in eval mode, and the options.

    Errors: ``ValueError`` if the file has no such model; ``OSError`` if it cannot be read.
    """
    content = torch.load(path, weights_only=True)
    if not isinstance(content, dict) or set(content) != {"state", "options"}:
        raise ValueError(f"weights {path} is not a model.pth of references/segmentation/train.py")
    options = content["options"]
    model = build(options)
    model.load_state_dict(content["state"])
    return model.eval(), options
