"""Goes through a model and puts what is constant in inference into its weights."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
import torchvision.ops
from torch import Tensor, nn

from .._utils.scaling import PROJECTIONS, in_channels, out_channels, scale_inputs, scale_outputs
from .._utils.tracing import ForwardTrace, find_producer, trace_forward
from ..layers.conv import ConvNormAct
from ..layers.frozen_batch_norm import FrozenBatchNorm2d
from ..layers.layer_norm import LayerScale
from ..layers.linear import LinearDropoutAct
from ..layers.mlp import MLP
from ..layers.positional_conv import PositionalConv2d
from ..layers.stochastic_depth import StochasticDepth
from ..quantized.eager.support import is_unit
from ._becoming import become, fold_itself, kind

__all__ = ["Folding"]

# Norms by the dimensions of their images; that of one dimension takes features as well.
_NORMS: dict[type[nn.Module], tuple[int, ...]] = {
    FrozenBatchNorm2d: (2,),
    nn.BatchNorm1d: (0, 1),
    nn.BatchNorm2d: (2,),
    nn.BatchNorm3d: (3,),
    nn.SyncBatchNorm: (0, 1, 2, 3),
    torchvision.ops.FrozenBatchNorm2d: (2,),
}

# What gives its input back in eval mode.
_IDENTITIES = (
    nn.AlphaDropout,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.FeatureAlphaDropout,
    nn.Identity,
    StochasticDepth,
    torchvision.ops.DropBlock2d,
    torchvision.ops.DropBlock3d,
    torchvision.ops.StochasticDepth,
)

# Each runs all that is in it, one after another.
_STEPS = tuple(step.forward for step in (nn.Sequential, ConvNormAct, LinearDropoutAct, MLP))


class Folding:
    """Folds a model in place, and knows what else of the model looks at each module of it.

    Every module stays the object that it is, for a ``forward`` may reach it by more ways than its name.

    Args:
        model: the model, in eval mode.
        is_checked: whether the result will be compared, so that a ``forward`` that cannot be traced may be taken to
            call its children as wholes.
    """

    def __init__(self, model: nn.Module, is_checked: bool) -> None:
        self.is_checked = is_checked
        self.places = Counter[nn.Module]()
        self.done = set[nn.Module]()
        #: Modules of which a ``forward`` above calls only parts, or reads a parameter.
        self.entered = set[nn.Module]()
        #: What the ``forward`` of each module calls, as far as it was looked at.
        self.calls: dict[nn.Module, ForwardTrace] = {}
        #: Path of a module above whose ``forward`` could not be traced.
        self.unknown: dict[nn.Module, str] = {}
        self._look_at(model, "")

    def _look_at(self, model: nn.Module, path: str) -> None:
        self.places |= Counter(_children(model))
        if model in self.unknown:
            self._mark(model, self.unknown[model])
        for name, module in model.named_modules(prefix=path):
            if _is_closed(module) or type(module).forward is nn.Module.forward:  # nobody calls an nn.ModuleList
                continue
            called = self.calls[module] = trace_forward(module)
            self.entered.update(module.get_submodule(part) for part in called.parts)
            if not called.is_traced:
                self._mark(module, name or "model")

    def _mark(self, module: nn.Module, path: str) -> None:
        for below in module.modules():
            if below is not module:
                self.unknown.setdefault(below, path)

    def fold(self, module: nn.Module, path: str = "") -> None:
        """Folds ``module`` and all in it.

        Raises ``ValueError`` where something can be folded below a ``forward`` that cannot be traced.
        """
        if module in self.done or module in self.entered:
            return
        self.done.add(module)
        if fold_itself(module, path or "model"):
            self._look_at(module, path)
        if _is_closed(module):
            return
        called = self.calls.get(module) or trace_forward(module)
        for name in called.whole:
            self.fold(module.get_submodule(name), f"{path}.{name}".lstrip("."))
        for chain in called.chains:
            self._fold_chain(module, chain, path)
        if called.is_traced and (self.is_checked or module not in self.unknown):
            for name in called.whole:
                if _is_identity(module.get_submodule(name)):
                    become(module.get_submodule(name), nn.Identity())
            if _is_stepped_through(module):
                for name in [
                    name for name, child in module._modules.items() if child is not None and _is_identity(child)
                ]:
                    del module._modules[name]  # by its name: the others keep theirs

    def _fold_chain(self, parent: nn.Module, names: list[str], path: str) -> None:
        """Folds norms and scales into the projections next to them; each module of a chain feeds the next alone."""
        for i, name in enumerate(names):
            module = parent.get_submodule(name)
            if self._is_fixed(module):
                continue
            if not self._fold_back(parent, names[:i], module) and not self._fold_ahead(parent, names[i + 1 :], module):
                continue
            if parent in self.unknown and not self.is_checked:
                raise ValueError(
                    f"batch must be given: the forward of {self.unknown[parent]} cannot be traced, so whether it calls "
                    f"{path or 'model'} as a whole must be found by comparison"
                )
            become(module, nn.Identity())

    def _fold_back(self, parent: nn.Module, names: list[str], module: nn.Module) -> bool:
        """Folds ``module`` into the projection whose output it gets, if it can be."""
        last = find_producer(parent, names, matches=_is_projection, is_identity=_is_identity, is_opaque=self._is_fixed)
        if last is None:
            return False
        projection = parent.get_submodule(last)
        found = None if self._is_fixed(projection) else _scale_and_shift(module, projection)
        if found is None:
            return False
        if isinstance(projection, PositionalConv2d):
            scale_outputs(projection.conv, *found)
            scale_outputs(projection.position.conv, found[0])
        else:
            scale_outputs(projection, *found)
        return True

    def _fold_ahead(self, parent: nn.Module, names: list[str], module: nn.Module) -> bool:
        """Folds a layer scale into the projection that gets its output, if there is one."""
        if kind(module) is not LayerScale:
            return False
        projection = self._first(parent, names)
        if isinstance(projection, PositionalConv2d):
            projection = projection.conv
        if projection is None or in_channels(projection) != module.dim:
            return False
        if _channels_dim(projection) != module.channels_dim:
            return False
        assert isinstance(module.weight, Tensor)
        scale_inputs(projection, module.weight)  # of zeros at the border nothing changes
        return True

    def _first(self, parent: nn.Module, names: list[str]) -> nn.Module | None:
        """The projection that gets the input of a chain, perhaps inside of an ``nn.Sequential``."""
        for name in names:
            module = parent.get_submodule(name)
            if _is_identity(module):
                continue
            if self._is_fixed(module):
                return None
            if _is_stepped_through(module):
                return self._first(module, list(module._modules))
            return module if _is_projection(module) else None
        return None

    def _is_fixed(self, module: nn.Module) -> bool:
        """Whether something else counts on what is in the module."""
        return is_unit(module) or self.places[module] > 1


def _children(model: nn.Module) -> Iterator[nn.Module]:
    """Each module once for each place at which it stands."""
    return (child for module in model.modules() for child in module._modules.values() if child is not None)


def _is_closed(module: nn.Module) -> bool:
    """Whether nothing is known of how the module runs what is below it, or nothing is below it that could be folded."""
    is_container = isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))
    is_of_torch = type(module).__module__.startswith("torch.nn.") and not is_container
    return is_unit(module) or "forward" in vars(module) or is_of_torch


def _is_identity(module: nn.Module) -> bool:
    return kind(module) in _IDENTITIES


def _is_projection(module: nn.Module) -> bool:
    return kind(module) in (*PROJECTIONS, PositionalConv2d)


def _is_stepped_through(module: nn.Module) -> bool:
    return kind(module).forward in _STEPS


def _channels_dim(projection: nn.Module) -> int:
    return -1 if isinstance(projection, nn.Linear) else 1


def _scale_and_shift(module: nn.Module, projection: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """What a norm or a scale does to each channel of the output of ``projection``; ``None`` for all else."""
    conv = projection.conv if isinstance(projection, PositionalConv2d) else projection
    if kind(module) is LayerScale:
        assert isinstance(module.weight, Tensor)
        fits = module.dim == out_channels(conv) and module.channels_dim == _channels_dim(conv)
        return (module.weight.detach(), None) if fits else None
    dims = len(conv.kernel_size) if isinstance(conv, nn.modules.conv._ConvNd) else 0
    if dims not in _NORMS.get(kind(module), ()):
        return None
    norm: Any = module
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or len(mean) != out_channels(conv):  # of a sequence nn.BatchNorm1d normalizes something else
        return None
    scale = (variance.to(torch.promote_types(variance.dtype, torch.float32)) + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach()
    shift = -mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach()
