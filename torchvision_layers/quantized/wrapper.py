"""The base class of the models of both engines: their stage, and a ``state_dict`` in the keys of the float model."""

import sys
import weakref
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys
from typing_extensions import Self

from .._utils.inputs import Inputs
from .._utils.modules import tensor_versions
from .settings import Settings
from .state_kinds import check_prepared_state
from .trial import Trial

__all__ = ["QuantizableWrapper", "Stage"]


class Stage(str, Enum):
    """How far a model is on its way to int8. A string, because TorchScript files store it."""

    FLOAT = "float"
    PREPARED = "prepared"
    INT8 = "int8"


class _Source:
    """The model that an int8 model was made from, as long as something else holds it and it does not change."""

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)
        self._state = tensor_versions(model)

    def get(self) -> nn.Module | None:
        """The model; ``None`` if it was deleted or changed."""
        model = self._model()
        return model if model is not None and self._state == tensor_versions(model) else None


class QuantizableWrapper(nn.Module):
    """Holds a model as a child and keeps that child's name out of the keys of the ``state_dict``."""

    #: Name of the engine that the wrapper belongs to.
    engine: ClassVar[str]
    #: Name of the child.
    child: ClassVar[str]
    #: Keys that other children have in the ``state_dict``, by the names of these children.
    other_keys: ClassVar[dict[str, str]] = {}
    #: Whether an int8 model cannot run on other devices.
    takes_float32_only: ClassVar[bool] = False

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.stage = Stage.FLOAT
        #: The backend that the model is prepared or converted for.
        self.backend = ""
        #: Whether batch statistics and ranges stay fixed in training mode.
        self.is_frozen = False
        #: Class name of each module of the float model, by path.
        self.classes_before = {path: type(module).__name__ for path, module in model.named_modules()}
        #: A few images of the last call of a prepared model, to compare it with the int8 model.
        self.sample: Inputs | None = None
        self._trial: list[Self] = []  # in a list, because it is no child
        #: The arguments that it was prepared with.
        self.settings = Settings("")
        #: Whether the model takes some of the images of a batch, and not only whole batches.
        self.takes_few_images = True
        #: The trials of :func:`quantize` to keep a tolerance.
        self.trials: tuple[Trial, ...] = ()
        self._source: _Source | None = None
        self.register_load_state_dict_post_hook(_forget_source)
        self.register_state_dict_post_hook(_strip_prefix)
        self.register_load_state_dict_pre_hook(_add_prefix)

    def train(self, mode: bool = True) -> Self:
        """As in ``nn.Module``, except that frozen ranges stay frozen and an int8 model cannot be trained.

        An int8 model in another model, such as a backbone below a float head, stays in eval mode.

        Errors: ``RuntimeError`` if an int8 model itself is put into training mode.
        """
        if mode and self.stage is Stage.INT8:
            if sys._getframe(1).f_code is nn.Module.train.__code__:  # called by the module around it
                return self
            raise RuntimeError("an int8 model cannot be trained; train the model from prepare_qat and convert it")
        self._set_mode(mode)
        if self.is_frozen:
            self._freeze()
        return self

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> _IncompatibleKeys:
        """As in ``nn.Module``. Errors: ``ValueError`` if a prepared model gets the state of another stage."""
        if self.stage is Stage.PREPARED:
            check_prepared_state(state_dict, strict)
        return super().load_state_dict(state_dict, strict, assign)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if self.stage is not Stage.FLOAT:
            self._check_moved(fn(torch.empty(0)))
        super()._apply(fn, recurse)
        return self

    def _check_moved(self, probe: Tensor) -> None:
        """Raises ``TypeError`` for a dtype or device that the model cannot have."""
        if self.stage is Stage.PREPARED and probe.dtype != torch.float32:
            raise TypeError(
                f"a prepared model must stay in float32, got {probe.dtype}: for mixed precision, train it under "
                "torch.autocast"
            )
        if self.stage is Stage.INT8 and probe.dtype != torch.float32:
            raise TypeError(
                f"an int8 model must stay in float32, apart from its integers, got {probe.dtype}: lower the float "
                "model with deploy.lower(model, example, dtype=torch.bfloat16) for another precision"
            )
        if self.stage is Stage.INT8 and self.takes_float32_only and probe.device.type != "cpu":
            raise TypeError(
                "an int8 model of engine='eager' takes float32 tensors on the CPU only: for other devices, "
                "quantize with engine='pt2e', and export"
            )

    def first_images(self, inputs: Inputs, count: int) -> Inputs:
        """The same inputs with at most ``count`` images, or with all if the model takes no fewer."""
        return inputs.first_images(count) if self.takes_few_images else inputs

    def set_trial(self, trial: Self | None) -> None:
        """Keeps an int8 copy until :meth:`take_trial`, so that a run for comparison changes nothing in this model."""
        self._trial = [] if trial is None or trial is self else [trial]

    def take_trial(self) -> Self:
        """The int8 copy from :meth:`set_trial`, or the model itself."""
        return self._trial.pop() if self._trial else self

    def set_source(self, model: nn.Module) -> None:
        """Refers to the model that this one was made from, without keeping it alive."""
        self._source = _Source(model)

    def source(self) -> nn.Module:
        """The model of :meth:`set_source`; raises ``ValueError`` if there is none, or if it changed since."""
        model = None if self._source is None else self._source.get()
        if model is None:
            raise ValueError(
                "model must be the model that int8 was made from: int8 does not hold it, and it was deleted, or its "
                "weights or those of int8 changed since"
            )
        return model

    def remember(self, inputs: Inputs) -> None:
        """Copies a few images for :attr:`sample`."""
        self.sample = self.first_images(inputs, 4).map(lambda tensor: tensor.detach().clone())

    def _set_mode(self, mode: bool) -> None:
        super().train(mode)

    def _freeze(self) -> None:
        """Stops batch statistics and observers."""
        raise NotImplementedError


def _forget_source(module: QuantizableWrapper, incompatible_keys: object) -> None:
    module._source = None


def _strip_prefix(
    module: QuantizableWrapper, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]
) -> None:
    start = f"{prefix}{module.child}."

    def strip(key: str) -> str:
        for name, other in module.other_keys.items():
            if key.startswith(f"{prefix}{name}."):
                return f"{prefix}{other}.{key.removeprefix(f'{prefix}{name}.')}"
        return prefix + key.removeprefix(start) if key.startswith(start) else key

    _rename_keys(state_dict, strip)


def _add_prefix(
    module: QuantizableWrapper,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: dict[str, Any],
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    def add(key: str) -> str:
        for name, other in module.other_keys.items():
            if key.startswith(f"{prefix}{other}."):
                return f"{prefix}{name}.{key.removeprefix(f'{prefix}{other}.')}"
        return f"{prefix}{module.child}.{key.removeprefix(prefix)}" if key.startswith(prefix) else key

    _rename_keys(state_dict, add)


def _rename_keys(state_dict: dict[str, Any], rename: Callable[[str], str]) -> None:
    # All at once: a new key may be the old key of another tensor.
    renamed = {rename(key): value for key, value in state_dict.items()}
    state_dict.clear()
    state_dict.update(renamed)
