"""The base class of all quantizable twins, and the conversion of float layers to their twins."""

import copy
from collections.abc import Callable
from functools import wraps
from typing import Any, ClassVar

from torch import nn
from typing_extensions import Self

from ..._utils.model_checks import check_not_lazy
from ..._utils.scaling import CONV_AND_LINEAR
from ...layers.channel_cap import ChannelCap
from ...layers.frozen_batch_norm import FrozenBatchNorm2d
from ...layers.global_response_norm import GlobalResponseNorm
from ...layers.permute import Permute
from ...layers.positional_conv import PositionMap
from ...layers.squeeze_excitation import GlobalAvgPool2d
from ...layers.stochastic_depth import StochasticDepth
from ...layers.universal_inverted_bottleneck import UniversalInvertedBottleneck
from ...layers.weight_standardization import WSConv2d
from ..eager.fusion import fuse_children
from ..eager.support import int8_support
from ..report_row import Int8Support

__all__ = ["NEED_NO_TWIN", "TWINS", "QuantizableLayer", "make_twins", "needs_folded_form"]

#: The twin of each float class.
TWINS: dict[type[nn.Module], type["QuantizableLayer"]] = {}

# The first four accept int8 tensors as they are; the others fold into a convolution or run as a float fallback.
NEED_NO_TWIN = (Permute, StochasticDepth, ChannelCap, GlobalAvgPool2d, FrozenBatchNorm2d, PositionMap)
# `quantize` makes plain convolutions of the first, and rewrites the forward of the others; a standalone file cannot.
_REWRITTEN = (WSConv2d, GlobalResponseNorm, UniversalInvertedBottleneck)


_STAGED = "torchvision_layers.experimental."
_PACKAGE_LAYERS = tuple(f"torchvision_layers.{name}." for name in ("experimental", "layers", "quantized"))


class QuantizableLayer(nn.Module):
    """Base class of quantizable twins, to be mixed into a float layer.

    A twin names its layer in ``float_class`` and has the constructor, the ``state_dict`` keys and the results of that
    layer. If the layer adds or multiplies tensors, the twin creates modules for this arithmetic in
    ``_add_observed_ops`` and overrides the method that does it. To write a twin of your own layer, derive from this
    class and from your layer.

    Examples::

        >>> class Residual(nn.Module):
        ...     def __init__(self, channels):
        ...         super().__init__()
        ...         self.conv = nn.Conv2d(channels, channels, 1)
        ...     def forward(self, x):
        ...         return self._add_skip(x, self.conv(x))
        ...     def _add_skip(self, x, y):
        ...         return x + y
        >>> class QuantizableResidual(quantized.QuantizableLayer, Residual):
        ...     float_class = Residual
        ...     def _add_observed_ops(self):
        ...         self.skip_add = quantized.Addition()
        ...     def _add_skip(self, x, y):
        ...         return self.skip_add(x, y)
        >>> QuantizableResidual(channels=4)(torch.rand(1, 4, 2, 2)).shape
        torch.Size([1, 4, 2, 2])
    """

    float_class: ClassVar[type[nn.Module]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "float_class" in cls.__dict__:
            TWINS[cls.float_class] = cls
            # No constructor in the source: readers, inspect.signature and type checkers see the one of the float layer.
            cls.__init__ = _completed(cls, cls.__init__)  # type: ignore[method-assign]

    @classmethod
    def from_float(cls, layer: nn.Module) -> Self:
        """A twin with copies of the parameters, buffers and mode of ``layer``.

        Errors: ``TypeError`` unless ``layer`` is an instance of the twin's float class, with its channels known.
        """
        check_not_lazy("layer", layer)
        twin = copy.deepcopy(layer)
        _make_all_twins(twin)
        if isinstance(layer, QuantizableLayer) or type(twin) is not cls:
            raise TypeError(f"layer must be a {cls.float_class.__name__}, got {type(layer).__name__}")
        return twin

    def fuse_model(self, is_qat: bool | None = None) -> None:
        """Fuses the layer's children in place and lets each of them fuse its own; a second call changes nothing.

        Args:
            is_qat: ``True`` fuses for quantization-aware training and keeps the batch norms; ``False`` folds them and
                needs eval mode; ``None`` follows ``self.training``. Default: ``None``.
        """
        fuse_children(self, self.training if is_qat is None else is_qat)

    def _add_observed_ops(self) -> None:
        """Creates the modules that observe arithmetic between tensors."""


def _completed(cls: type[QuantizableLayer], init: Callable[..., None]) -> Callable[..., None]:
    """``init``, and after it the step that turns the new float layer into a twin."""

    @wraps(init)
    def completed(self: QuantizableLayer, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        # A twin may derive from another twin, whose constructor is completed as well: the last one does it.
        if next(c for c in type(self).__mro__ if "float_class" in vars(c)) is cls:
            self._add_observed_ops()
            _make_all_twins(self)

    return completed


class _NoTwinError(Exception):
    """A layer of this package has no quantizable twin, for the reason in the text."""


def make_twins(model: nn.Module) -> dict[nn.Module, str]:
    """Turns every layer of this package in ``model``, itself included, into its twin, in place.

    Returns the layers without a twin, which are marked to stay in float, each with the reason.
    """
    try:
        twin = _twin_class(model)
    except _NoTwinError as error:
        model.stays_in_float = True  # type: ignore[assignment]  # a plain attribute
        return {model: str(error)}
    if twin is not None:
        model.__class__ = twin  # the same instance: names, hooks and shared modules stay as they are
        model._add_observed_ops()  # type: ignore[operator]  # it is a twin now
    reasons: dict[nn.Module, str] = {}
    for child in model.children():
        reasons |= make_twins(child)
    return reasons


def needs_folded_form(module: nn.Module) -> bool:
    """Whether the module is a convolution or linear layer without kernel and twin; its ``folded()`` may have one."""
    has_form = isinstance(module, _REWRITTEN) or any(cls in TWINS for cls in type(module).__mro__)
    return isinstance(module, CONV_AND_LINEAR) and int8_support(module) is Int8Support.UNKNOWN and not has_form


def _make_all_twins(layer: nn.Module) -> None:
    """Errors: ``TypeError`` if a layer in ``layer`` has no twin."""
    for module, reason in make_twins(layer).items():
        path = next(path for path, other in layer.named_modules() if other is module)
        raise TypeError(f"{path or 'layer'} is a {type(module).__name__}, {reason}")


def _twin_class(module: nn.Module) -> type[QuantizableLayer] | None:
    """The twin of a float layer of this package; ``None`` for any other module."""
    if type(module) in TWINS:
        return TWINS[type(module)]
    if isinstance(module, (QuantizableLayer, *NEED_NO_TWIN, *_REWRITTEN)):
        return None
    classes = type(module).__mro__
    package_layer = next((i for i, c in enumerate(classes) if c.__module__.startswith(_PACKAGE_LAYERS)), None)
    if package_layer is None or classes[package_layer].__module__.startswith("torchvision_layers.quantized"):
        return None
    is_staged = classes[package_layer].__module__.startswith(_STAGED)
    if is_staged and classes[package_layer] not in TWINS and not getattr(module, "needs_float", False):
        return None  # its forward is rewritten, like that of a user's layer
    if classes[package_layer] not in TWINS:
        raise _NoTwinError("which has no quantizable twin; pass allow_float=True to leave it in float")
    for subclass in classes[:package_layer]:
        own = vars(subclass).items()
        descriptors = (property, classmethod, staticmethod)
        overrides = [
            name for name, value in own if (callable(value) or isinstance(value, descriptors)) and name != "__init__"
        ]
        if overrides:
            float_name = classes[package_layer].__name__
            raise _NoTwinError(
                f"a {float_name} that overrides {', '.join(overrides)}, which the twin of {float_name} lacks: derive a "
                "twin of your own from quantized.QuantizableLayer"
            )
    return TWINS[classes[package_layer]]
