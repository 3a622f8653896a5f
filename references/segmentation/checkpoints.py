"""Files with a trained model and what is needed to build it."""

from argparse import Namespace
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from scenes import CLASSES
from segmenters import MODELS
from shared import save_atomically
from torch import nn

__all__ = ["build", "load", "save"]


def build(options: Mapping[str, Any]) -> nn.Module:
    """The untrained model that the options of ``train.py`` describe."""
    return MODELS[options["model"]](len(CLASSES), **{name: options[name] for name in arguments(options)})


def arguments(options: Mapping[str, Any]) -> list[str]:
    """The options that are arguments of the model."""
    return [name for name in signature(MODELS[options["model"]]).parameters if name in options]


def save(model: nn.Module, args: Namespace, path: Path) -> None:
    """Writes the weights, and the options that determine the model and the size of its scenes."""
    options = {name: getattr(args, name) for name in ("model", "image_size", *arguments(vars(args)))}
    save_atomically({"state": model.state_dict(), "options": options}, path)


def load(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The model in eval mode, and the options.

    Errors: ``ValueError`` if the file has no such model; ``OSError`` if it cannot be read.
    """
    content = torch.load(path, weights_only=True)
    has_options = isinstance(content, dict) and set(content) == {"state", "options"}
    if not has_options or content["options"].get("model") not in MODELS:
        raise ValueError(f"weights {path} is not a model.pth of references/segmentation/train.py")
    options = content["options"]
    model = build(options)
    model.load_state_dict(content["state"])
    return model.eval(), options
