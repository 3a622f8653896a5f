"""What all quantizable twins share, and the way from a float layer to its twin."""

import copy
from typing import ClassVar

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from typing_extensions import Self

from ..layers.frozen_batch_norm import FrozenBatchNorm2d
from ..layers.permute import Permute
from ..layers.positional_conv import PositionMap
from ..layers.stochastic_depth import StochasticDepth
from ._fusing import fuse_children

__all__ = ["NEED_NO_TWIN", "TWINS", "QuantizableLayer", "make_twins"]

#: The twin of each float class.
TWINS: dict[type[nn.Module], type["QuantizableLayer"]] = {}

# Int8 takes the first two as they are; the others fold into a convolution or run in an island.
NEED_NO_TWIN = (Permute, StochasticDepth, FrozenBatchNorm2d, PositionMap)


class QuantizableLayer(nn.Module):
    """Mixed into a float layer, which it names in ``float_class``, to make its twin.

    A twin has the signature, the ``state_dict`` keys and the results of its float layer. Where the layer adds or
    multiplies tensors, the twin overrides that with modules that it makes in ``_add_functionals``; a subclass of a twin
    of ours, or of this class beside any module, makes a twin for a layer of your own.
    """

    float_class: ClassVar[type[nn.Module]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "float_class" in cls.__dict__:
            TWINS[cls.float_class] = cls

    @classmethod
    def from_float(cls, layer: nn.Module) -> Self:
        """A twin with copies of the parameters, buffers and mode of ``layer``.

        Raises ``TypeError`` unless ``layer`` is of the twin's float class.
        """
        if _twin_class(layer, "layer") is not cls:
            raise TypeError(f"layer must be a {cls.float_class.__name__}, got {type(layer).__name__}")
        twin = copy.deepcopy(layer)
        make_twins(twin)
        assert isinstance(twin, cls)
        return twin

    def fuse_model(self, is_qat: bool | None = None) -> None:
        """Fuses its own children in place and asks the rest to fuse themselves; a second call changes nothing.

        Args:
            is_qat: ``True`` fuses for quantization-aware training, which keeps the batch norms; ``False`` folds them
                and needs eval mode; ``None`` follows ``self.training``.
        """
        fuse_children(self, self.training if is_qat is None else is_qat)

    def _complete(self) -> None:
        """Makes a float layer that was just built a twin: the end of every constructor."""
        self._add_functionals()
        make_twins(self)

    def _add_functionals(self) -> None:
        """Adds the modules that observe arithmetic between tensors."""


class NoTwinError(TypeError):
    """A layer of ours has no quantizable twin."""


def make_twins(model: nn.Module, allow_float: bool = False, path: str = "") -> None:
    """Turns ``model``, if it is a layer of ours, and every layer of ours in it into its twin, in place.

    Raises ``NoTwinError`` that names the path of a layer that has no twin, or marks it to stay in float.
    """
    try:
        twin = _twin_class(model, path or "model")
    except NoTwinError:
        if not allow_float:
            raise
        model.stays_in_float = True  # type: ignore[assignment]  # a plain attribute
        return
    if twin is not None:
        model.__class__ = twin  # same instance: names, hooks and shared modules stay as they are
        model._add_functionals()  # type: ignore[operator]  # it is a twin now
    for name, child in model.named_children():
        make_twins(child, allow_float, f"{path}.{name}".lstrip("."))


def _twin_class(module: nn.Module, path: str) -> type[QuantizableLayer] | None:
    """The twin of a float layer of ours; ``None`` for any other module."""
    if isinstance(module, LazyModuleMixin):
        raise TypeError(
            f"{path} is a {type(module).__name__} without channels yet: run one batch through the model first"
        )
    if type(module) in TWINS:
        return TWINS[type(module)]
    if isinstance(module, (QuantizableLayer, *NEED_NO_TWIN)):
        return None
    classes = type(module).__mro__
    ours = next((i for i, c in enumerate(classes) if c.__module__.startswith("torchvision_layers.")), None)
    if ours is None or classes[ours].__module__.startswith("torchvision_layers.quantized"):
        return None
    if classes[ours] not in TWINS:
        raise NoTwinError(
            f"{path} is a {type(module).__name__}, which has no quantizable twin; "
            "pass allow_float=True to leave it in float"
        )
    for subclass in classes[:ours]:
        own = vars(subclass).items()
        kinds = (property, classmethod, staticmethod)
        changed = [name for name, value in own if (callable(value) or isinstance(value, kinds)) and name != "__init__"]
        if changed:
            raise NoTwinError(
                f"{path} is a {type(module).__name__}, a {classes[ours].__name__} with its own {', '.join(changed)}, "
                f"which the twin of {classes[ours].__name__} lacks: write a QuantizableLayer for it"
            )
    return TWINS[classes[ours]]
