"""The model that the command builds, and the preprocessing of its published weights."""

import difflib
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torchvision
from torch import nn

from .._utils.importing import factory
from ._photographs import PRESETS, Preprocessing

__all__ = ["named_function", "usual_preprocessing"]

_TIMM, _TORCHVISION = "timm:", "torchvision.models:"


@contextmanager
def named_function(reference: str) -> Iterator[Callable[..., nn.Module]]:
    """Context that yields the function for ``timm:NAME``, or for a reference that :func:`factory` knows.

    Errors: ``ValueError`` for an unknown model; ``ImportError`` if timm is missing; and those of :func:`factory`.
    """
    if not reference.startswith(_TIMM):
        with factory(reference) as function:
            yield function
        return
    name, timm = reference.removeprefix(_TIMM), _import_timm()
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise ValueError(f"timm has no model {name!r}" + (f"; similar ones: {', '.join(close)}" if close else ""))
    yield partial(timm.create_model, name, pretrained=False)


def usual_preprocessing(reference: str, model: nn.Module) -> Preprocessing:
    """The preprocessing that the published weights of a model of timm or torchvision need, or that of ImageNet."""
    if reference.startswith(_TIMM):
        config: dict[str, Any] = _import_timm().data.resolve_model_data_config(model)
        height, width = config["input_size"][1:]
        return Preprocessing((height, width), config["mean"], config["std"], config["crop_pct"])
    name = reference.removeprefix(_TORCHVISION)
    if reference.startswith(_TORCHVISION) and name in torchvision.models.list_models():
        steps = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        if hasattr(steps, "crop_size"):  # those of detectors only scale to [0, 1]
            crop, resize = steps.crop_size[0], steps.resize_size[0]
            return Preprocessing((crop, crop), steps.mean, steps.std, crop / resize)
    return PRESETS["imagenet"]


def _import_timm() -> Any:
    try:
        importlib.import_module("timm.data")
        return importlib.import_module("timm")
    except ImportError as error:
        raise ImportError(f"timm:NAME needs timm, which cannot be imported here ({error}): pip install timm") from error
