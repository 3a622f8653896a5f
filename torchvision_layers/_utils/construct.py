"""Builds child modules from layer arguments, which are constructors or instances."""

import copy
import inspect
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from .checks import check_groups

__all__ = ["Builder", "LayerArgument", "check_layer_argument"]

#: A class, a ``partial``, any other function that returns a module, or a module to copy.
LayerArgument: TypeAlias = Callable[..., nn.Module] | nn.Module

# The Squeeze-and-Excitation paper settles on a reduction ratio of 16 (arXiv 1709.01507, section 6.1).
_SQUEEZE_RATIO = 16


def check_layer_argument(argument: str, layer: object) -> None:
    """Raises unless ``layer`` is a constructor or a module."""
    cls = layer.func if isinstance(layer, partial) else layer
    is_other_class = isinstance(cls, type) and not issubclass(cls, nn.Module)
    if not callable(layer) or is_other_class:
        raise TypeError(f"{argument} must be a constructor such as nn.ReLU, or a module to copy, got {layer!r}")
    module_class = cls if isinstance(cls, type) else type(cls)
    if issubclass(module_class, LazyModuleMixin):
        raise TypeError(f"{argument} must not be lazy, since its channels are known, got {module_class.__name__}")


def _parameters(layer: LayerArgument) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(layer).parameters)
    except (TypeError, ValueError):  # functions written in C may have no signature
        return {}


#: Norms over the channels of images, which are in dimension 1.
_CHANNELS_SECOND = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LocalResponseNorm)


@dataclass(frozen=True)
class Builder:
    """Builds the children of one layer on one device and in one dtype.

    Each use of an instance deep-copies it, so that children never share a module.
    """

    device: torch.device | str | int | None = None
    dtype: torch.dtype | None = None

    def module(self, argument: str, layer: LayerArgument, *args: object, **kwargs: object) -> nn.Module:
        """Calls a constructor, or copies an instance."""
        check_layer_argument(argument, layer)
        if isinstance(layer, nn.Module):
            module = copy.deepcopy(layer)
        else:
            with torch.device(self.device) if self.device is not None else nullcontext():
                try:
                    module = layer(*args, **kwargs)
                except (TypeError, ValueError) as error:
                    kind = ValueError if isinstance(error, ValueError) else TypeError
                    raise kind(f"{argument}={layer!r} cannot be called with {args} {kwargs}: {error}") from error
            if not isinstance(module, nn.Module):
                raise TypeError(f"{argument} must return a module, got {type(module).__name__} from {layer!r}")
            if not isinstance(layer, (type, partial)):
                module = copy.deepcopy(module)  # a function may return the same module on each call
        if self.device is None and self.dtype is None:
            return module
        return module.to(device=self.device, dtype=self.dtype)

    def conv(
        self,
        argument: str,
        layer: LayerArgument,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[int, ...] | str,
        dilation: tuple[int, ...],
        groups: int,
        bias: bool,
    ) -> nn.Module:
        """Builds a convolution and checks its channels; an instance must match every other number too.

        Arguments bound by a ``partial`` take precedence: a padding mode as in
        ``partial(nn.Conv2d, padding_mode="reflect")``, but also another kernel size or number of groups.
        """
        check_groups(groups, in_channels=in_channels, out_channels=out_channels)
        bound = layer.keywords if isinstance(layer, partial) else {}
        numbers: dict[str, object] = {
            "kernel_size": kernel_size,
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
            "bias": bias,
        }
        unbound = {name: value for name, value in numbers.items() if name not in bound}
        conv = self.module(argument, layer, in_channels, out_channels, **unbound)
        expected: dict[str, object] = {"out_channels": out_channels}
        if isinstance(layer, nn.Module):
            expected |= {"in_channels": in_channels, **numbers}
            del expected["bias"]
            if isinstance(getattr(conv, "padding", None), str):  # "same" and "valid" may be equal to the numbers
                del expected["padding"]
        for name, value in expected.items():
            if getattr(conv, name, value) != value:
                raise ValueError(f"{argument} has {name}={getattr(conv, name)}, expected {name}={value}")
        return conv

    def norm(self, argument: str, layer: LayerArgument, channels: int) -> nn.Module:
        """Builds a normalization, called with ``channels``."""
        norm = self.module(argument, layer, channels)
        if type(norm).__module__ == nn.ReLU.__module__:  # nn.ReLU(channels) would run, as an in-place ReLU
            raise TypeError(f"{argument} must return a normalization, got the activation {type(norm).__name__}")
        for attribute in ("num_features", "num_channels"):
            self._check_channels(argument, norm, attribute, channels)
        if isinstance(norm, nn.LayerNorm) and norm.normalized_shape[-1] != channels:
            raise ValueError(f"{argument} has normalized_shape={norm.normalized_shape}, expected ({channels},)")
        return norm

    def norm_of_last(self, argument: str, layer: LayerArgument, channels: int) -> nn.Module:
        """Builds a normalization over the last dimension, called with ``channels``."""
        norm = self.norm(argument, layer, channels)
        # These would normalize over dimension 1 without an error if it happens to have this size.
        if isinstance(norm, _CHANNELS_SECOND):
            raise TypeError(
                f"{argument} must normalize the last dimension, as nn.LayerNorm does, got {type(norm).__name__}"
            )
        return norm

    def activation(
        self, argument: str, layer: LayerArgument | None, channels: int, inplace: bool | None = None
    ) -> nn.Module:
        """Builds an activation; ``inplace`` is passed if the constructor takes it and has not bound it."""
        if layer is None:
            return nn.Identity()
        bound = layer.keywords if isinstance(layer, partial) else {}
        takes_inplace = not isinstance(layer, nn.Module) and "inplace" in _parameters(layer) and "inplace" not in bound
        kwargs = {"inplace": inplace} if inplace is not None and takes_inplace else {}
        activation = self.module(argument, layer, **kwargs)
        if getattr(activation, "num_parameters", 1) != 1:  # nn.PReLU
            self._check_channels(argument, activation, "num_parameters", channels)
        return activation

    def squeeze_excitation(
        self,
        argument: str,
        layer: LayerArgument,
        channels: int,
        squeeze_channels: int | None = None,
        activation_layer: LayerArgument | None = None,
    ) -> nn.Module:
        """Builds channel attention, called with ``channels``.

        If the constructor requires ``squeeze_channels``, they are passed too, by default a sixteenth of ``channels``.
        ``activation_layer`` is passed as ``activation`` if the constructor takes it and has not bound it.
        """
        takes = {} if isinstance(layer, nn.Module) else _parameters(layer)
        bound = layer.keywords if isinstance(layer, partial) else {}
        kwargs: dict[str, object] = {}
        if "squeeze_channels" in takes and takes["squeeze_channels"].default is inspect.Parameter.empty:
            kwargs["squeeze_channels"] = squeeze_channels or max(1, channels // _SQUEEZE_RATIO)
        if activation_layer is not None and "activation" in takes and "activation" not in bound:
            kwargs["activation"] = activation_layer
        se = self.module(argument, layer, channels, **kwargs)
        self._check_channels(argument, se, "input_channels", channels)
        return se

    @staticmethod
    def _check_channels(argument: str, module: nn.Module, attribute: str, channels: int) -> None:
        actual = getattr(module, attribute, channels)
        if actual != channels:
            raise ValueError(f"{argument} has {attribute}={actual}, expected {channels}")
