"""Trained models, out of checkpoints."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from checkpoints import check_same, load_checkpoint, model_arguments
from models import build_model
from torch import nn


def load_trained(path: str | Path, args: Namespace, classes: list[str]) -> nn.Module:
    """The model in the checkpoint that :func:`read_trained` reads."""
    return build_trained(read_trained(path, args, classes))


def read_trained(path: str | Path, args: Namespace, classes: list[str]) -> dict[str, Any]:
    """The checkpoint of a run on ``classes``, with the model, the dataset and the image size of ``args``.

    Raises:
        ValueError: if it is damaged, or of another model or run.
    """
    checkpoint = load_checkpoint(path, args.model, len(classes))
    check_same(path, "classes", checkpoint["classes"], classes)
    for name in ("dataset", "image_size"):
        check_same(path, name, checkpoint.get("settings", {}).get(name), getattr(args, name))
    return checkpoint


def build_trained(checkpoint: dict[str, Any]) -> nn.Module:
    """The model in a checkpoint, with its weights."""
    model = build_model(checkpoint["model_name"], checkpoint["num_classes"], **model_arguments(checkpoint))
    model.load_state_dict(checkpoint["model"])
    return model
