"""Layer arguments (constructors, instances) made into modules of their own."""

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

#: What a layer argument may be: a class, a ``partial``, any function that returns a module, or a module to copy.
LayerArgument: TypeAlias = Callable[..., nn.Module] | nn.Module

# A sixteenth of the channels: the reduction that the Squeeze-and-Excitation paper settles on (arXiv 1709.01507, 6.1).
_SQUEEZE_RATIO = 16


def check_layer_argument(argument: str, layer: object) -> None:
    """Raises unless ``layer`` is a constructor or a module."""
    cls = layer.func if isinstance(layer, partial) else layer
    is_other_class = isinstance(cls, type) and not issubclass(cls, nn.Module)
    if not callable(layer) or is_other_class:
        raise TypeError(f"{argument} must be a constructor such as nn.ReLU, or a module to copy, got {layer!r}")
    kind = cls if isinstance(cls, type) else type(cls)
    if issubclass(kind, LazyModuleMixin):
        raise TypeError(f"{argument} must not be lazy, its channels are known: got {kind.__name__}")


def _parameters(layer: LayerArgument) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(layer).parameters)
    except (TypeError, ValueError):  # no signature to read: written in C, for instance
        return {}


@dataclass(frozen=True)
class Builder:
    """Builds the children of one layer, all on one device and in one dtype.

    An instance is deep-copied at each place where it is used, so that no two places share a module.
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
                except TypeError as error:
                    raise TypeError(f"{argument}={layer!r} cannot be called with {args} {kwargs}: {error}") from error
            if not isinstance(module, nn.Module):
                raise TypeError(f"{argument}={layer!r} must make an nn.Module, it made {type(module).__name__}")
            if not isinstance(layer, (type, partial)):
                module = copy.deepcopy(module)  # a function may give the same module each time
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
        """A convolution of the channels that its place asks for; an instance must agree in every other number too.

        What a ``partial`` has bound stays: ``partial(nn.Conv2d, padding_mode="reflect")``, or another kernel or number
        of groups than the place would give.
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
        free = {name: value for name, value in numbers.items() if name not in bound}
        conv = self.module(argument, layer, in_channels, out_channels, **free)
        wanted: dict[str, object] = {"out_channels": out_channels}
        if isinstance(layer, nn.Module):
            wanted |= {"in_channels": in_channels, "kernel_size": kernel_size, "stride": stride}
            wanted |= {"padding": padding, "dilation": dilation, "groups": groups}
            if isinstance(getattr(conv, "padding", None), str):  # its own way to say the same, or torch says otherwise
                del wanted["padding"]
        for name, value in wanted.items():
            if getattr(conv, name, value) != value:
                raise ValueError(f"{argument} has {name}={getattr(conv, name)}, its place needs {name}={value}")
        return conv

    def norm(self, argument: str, layer: LayerArgument, channels: int) -> nn.Module:
        """A normalization, called with its channels."""
        norm = self.module(argument, layer, channels)
        if type(norm).__module__ == nn.ReLU.__module__:  # nn.ReLU(channels) would be one in place
            raise TypeError(f"{argument} must make a normalization, it made the activation {type(norm).__name__}")
        for name in ("num_features", "num_channels"):
            self._check_width(argument, norm, name, channels)
        if isinstance(norm, nn.LayerNorm) and norm.normalized_shape[-1] != channels:
            raise ValueError(f"{argument} has normalized_shape={norm.normalized_shape}, its place needs {channels}")
        return norm

    def activation(
        self, argument: str, layer: LayerArgument | None, channels: int, inplace: bool | None = None
    ) -> nn.Module:
        """An activation; ``inplace`` is passed on where the constructor takes it and has it not bound already."""
        if layer is None:
            return nn.Identity()
        bound = layer.keywords if isinstance(layer, partial) else {}
        takes_inplace = not isinstance(layer, nn.Module) and "inplace" in _parameters(layer) and "inplace" not in bound
        kwargs = {"inplace": inplace} if inplace is not None and takes_inplace else {}
        activation = self.module(argument, layer, **kwargs)
        if getattr(activation, "num_parameters", 1) != 1:  # nn.PReLU
            self._check_width(argument, activation, "num_parameters", channels)
        return activation

    def squeeze_excitation(
        self,
        argument: str,
        layer: LayerArgument,
        channels: int,
        squeeze_channels: int | None = None,
        activation_layer: LayerArgument | None = None,
    ) -> nn.Module:
        """Channel attention, called with its channels.

        It also gets ``squeeze_channels`` where it insists on them, a sixteenth of its channels unless given here, and
        ``activation`` where one is given here and it takes and has not bound one.
        """
        takes = {} if isinstance(layer, nn.Module) else _parameters(layer)
        bound = layer.keywords if isinstance(layer, partial) else {}
        kwargs: dict[str, object] = {}
        if "squeeze_channels" in takes and takes["squeeze_channels"].default is inspect.Parameter.empty:
            kwargs["squeeze_channels"] = squeeze_channels or max(1, channels // _SQUEEZE_RATIO)
        if activation_layer is not None and "activation" in takes and "activation" not in bound:
            kwargs["activation"] = activation_layer
        se = self.module(argument, layer, channels, **kwargs)
        self._check_width(argument, se, "input_channels", channels)
        return se

    @staticmethod
    def _check_width(argument: str, module: nn.Module, name: str, channels: int) -> None:
        width = getattr(module, name, channels)
        if width != channels:
            raise ValueError(f"{argument} has {name}={width}, its place needs {channels}")
