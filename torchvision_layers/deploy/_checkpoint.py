"""The files that the command reads: a checkpoint with the weights of a model, and calibration inputs."""

import importlib
import inspect
import pickle
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._utils.inputs import binds

__all__ = ["Checkpoint", "load_calibration", "load_checkpoint"]

_MAX_LISTED = 5
_ABOUT = ("model_name", "settings", "test_accuracy")


@dataclass(frozen=True)
class Checkpoint:
    """A ``state_dict``, and the fields that the training scripts save with it."""

    path: str
    state_dict: dict[str, Tensor]
    fields: dict[str, Any]

    @property
    def classes(self) -> Sequence[str]:
        classes: Sequence[str] = self.fields.get("classes", ())
        return classes

    @property
    def image_size(self) -> int | None:
        settings = self.fields.get("settings")
        return self._number(settings, "image_size") if isinstance(settings, dict) else None

    @property
    def about(self) -> dict[str, object]:
        return {name: self.fields[name] for name in _ABOUT if name in self.fields}

    def build_model(self, function: Callable[..., nn.Module], name: str, num_classes: int | None) -> nn.Module:
        """The model that ``function`` returns, with the weights of this checkpoint, in eval mode.

        Errors: ``ValueError`` if ``function``, called ``name``, or its model does not match the checkpoint.
        """
        classes = self._number(self.fields, "num_classes") if num_classes is None else num_classes
        kwargs = {} if classes is None else {"num_classes": classes}
        scaling = self.fields.get("model_arguments")  # multipliers of channels and depth from the training script
        kwargs |= scaling if isinstance(scaling, dict) else {}
        try:
            inspect.signature(function).bind(**kwargs)
        except TypeError as error:
            call = ", ".join(f"{key}={value}" for key, value in kwargs.items())
            raise ValueError(f"{name} must accept ({call}): {error}") from error
        model = function(**kwargs)
        if not isinstance(model, nn.Module):
            raise ValueError(f"{name} must return a module, got {type(model).__name__}")
        own = model.state_dict()
        for key, value in self.state_dict.items():
            if value.is_complex() and key in own and not own[key].is_complex():  # torch would drop the imaginary part
                raise ValueError(f"{self.path} does not match {name}: {key} is complex, and real in the model")
        try:
            keys = model.load_state_dict(self.state_dict, strict=False)
        except RuntimeError as error:  # for tensors of other shapes
            problems = [line.strip() for line in str(error).splitlines()[1:]]
            takes_number = "num_classes" not in kwargs and binds(inspect.signature(function), {"num_classes": 1})
            advice = "; pass --num-classes if only the last layer differs" if takes_number else ""
            raise ValueError(f"{self.path} does not match {name}: {_join(problems, '; ')}{advice}") from error
        problems = [
            f"{kind} {_join(names, ', ')}"
            for kind, names in (("missing", keys.missing_keys), ("unexpected", keys.unexpected_keys))
            if names
        ]
        if problems:
            raise ValueError(f"{self.path} does not match {name}: {'; '.join(problems)}")
        return model.eval()

    def _number(self, fields: dict[str, Any], name: str) -> int | None:
        """A positive number in the checkpoint, or ``None`` if it has none of this name."""
        value = fields.get(name)
        if value is not None and (type(value) is not int or value < 1):
            raise ValueError(f"{self.path} must have a positive integer as {name}, got {value!r}")
        return value


def _join(items: Sequence[str], separator: str) -> str:
    more = f" and {len(items) - _MAX_LISTED} more" if len(items) > _MAX_LISTED else ""
    return separator.join(items[:_MAX_LISTED]) + more


def load_checkpoint(path: str) -> Checkpoint:
    """Errors: ``ValueError`` for a file that is damaged or not a float checkpoint; ``OSError`` if it cannot be read."""
    content: Any = _load_safetensors(path) if path.endswith(".safetensors") else _load(path, "a checkpoint")
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        kind = content.get("kind", "float")
        if kind != "float":
            raise ValueError(
                f"{path} is a checkpoint of {kind} training, whose model is not the float model: pass the checkpoint "
                "of float training and --int8"
            )
        return Checkpoint(path, content["model"], content)
    if isinstance(content, dict) and content and all(map(_is_entry, content.items())):
        return Checkpoint(path, content, {})
    raise ValueError(
        f"{path} is not a checkpoint: it must contain a state_dict, or a dictionary with one under 'model'"
    )


def _is_entry(item: tuple[object, object]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def load_calibration(path: str, channels: int) -> Tensor:
    """Errors: ``ValueError`` for a file that is damaged or contains anything but N×``channels``×H×W float32 inputs."""
    if path.endswith(".npy"):
        import numpy as np

        with open(path, "rb") as file:
            try:
                inputs: Any = torch.from_numpy(np.load(file, allow_pickle=False))
            except Exception as error:  # numpy raises many types
                raise ValueError(f"{path} is not an array saved by numpy.save, or is damaged: {error}") from error
    else:
        inputs = _load(path, "a tensor saved by torch.save")
    if not isinstance(inputs, Tensor) or inputs.dtype != torch.float32:
        dtype = inputs.dtype if isinstance(inputs, Tensor) else type(inputs).__name__
        raise ValueError(f"{path} must contain a float32 tensor, got {dtype}")
    if inputs.dim() != 4 or inputs.shape[1] != channels or inputs.numel() == 0:
        raise ValueError(f"{path} must contain inputs of shape N×{channels}×H×W, got {list(inputs.shape)}")
    return inputs


def _load_safetensors(path: str) -> dict[str, Tensor]:
    try:
        library = importlib.import_module("safetensors.torch")
    except ImportError as error:
        raise ImportError(
            f"{path} needs safetensors, which cannot be imported here ({error}): pip install safetensors"
        ) from error
    with open(path, "rb") as file:
        content = file.read()
    try:
        tensors: dict[str, Tensor] = library.load(content)
    except Exception as error:  # of a library in Rust, with types of its own
        raise ValueError(f"{path} is not a file of safetensors, or is damaged: {error}") from error
    return tensors


def _load(path: str, expected: str) -> Any:
    with open(path, "rb") as file:
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            if not zipfile.is_zipfile(path):
                raise ValueError(f"{path} is not {expected}, or is damaged") from error
            raise ValueError(
                f"{path} is not {expected}: it contains more than tensors and numbers; of a model, save the "
                "state_dict()"
            ) from error
        except Exception as error:  # torch raises almost any type for such a file, OSError too
            raise ValueError(
                f"{path} is not {expected}, or is damaged ({type(error).__name__} when it was loaded)"
            ) from error
