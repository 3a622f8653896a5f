"""Trained models, out of checkpoints."""

from argparse import Namespace
from pathlib import Path

from checkpoints import check_same, load_checkpoint, model_arguments
from models import build_model
from torch import nn


def load_trained(path: str | Path, args: Namespace, classes: list[str]) -> nn.Module:
    """The model in a checkpoint of a run on the classes, the dataset and the image size of ``args``.

    Raises:
        ValueError: if it is damaged, or of another model or run.
    """
    checkpoint = load_checkpoint(path, args.model, len(classes))
    check_same(path, "classes", checkpoint["classes"], classes)
    for name in ("dataset", "image_size"):
        check_same(path, name, checkpoint.get("settings", {}).get(name), getattr(args, name))
    model = build_model(args.model, len(classes), **model_arguments(checkpoint))
    model.load_state_dict(checkpoint["model"])
    return model
