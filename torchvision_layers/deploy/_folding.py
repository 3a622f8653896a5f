"""Goes through a model and puts what is constant in inference into its weights."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
import torchvision.ops
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .._utils.scaling import PROJECTIONS, in_channels, out_channels, scale_inputs, scale_outputs
from ..layers.layer_norm import LayerScale
from ..layers.positional_conv import PositionalConv2d
from ..layers.stochastic_depth import StochasticDepth
from ..quantized._chains import at_end, calls
from ..quantized._kernels import is_unit

__all__ = ["Folding"]

# Norms by the dimensions of their images; that of one dimension takes features as well.
_BATCH_NORMS: dict[type[nn.Module], tuple[int, ...]] = {
    nn.BatchNorm1d: (0, 1),
    nn.BatchNorm2d: (2,),
    nn.BatchNorm3d: (3,),
    nn.SyncBatchNorm: (0, 1, 2, 3),
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


class Folding:
    """Folds a model in place, and knows what stands at several places in it.

    Args:
        model: the model, in eval mode.
        is_checked: whether the result will be compared, so that a ``forward`` that cannot be traced may be taken to
            call its children as wholes.
    """

    def __init__(self, model: nn.Module, is_checked: bool) -> None:
        self.is_checked = is_checked
        self.places = Counter(_children(model))
        self.done: dict[nn.Module, nn.Module] = {}
        #: Path of a module above whose ``forward`` could not be traced.
        self.unknown = ""

    def fold(self, module: nn.Module, path: str) -> nn.Module:
        """What takes the place of ``module``, all in it folded.

        Raises ``ValueError`` where something can be folded below a ``forward`` that cannot be traced.
        """
        if module not in self.done:
            self.done[module] = self._fold(module, path)
        return self.done[module]

    def _fold(self, module: nn.Module, path: str) -> nn.Module:
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]  # a ModuleDict
                parametrize.remove_parametrizations(module, name)  # the weight stays as they made it
        if callable(getattr(module, "folded", None)):
            module = module.folded()  # type: ignore[operator]
            self.places.update(_children(module))
        is_container = isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))
        if is_unit(module) or (type(module).__module__.startswith("torch.nn.") and not is_container):
            return module
        called, above = calls(module), self.unknown
        if not called.is_traced:
            self.unknown = path or "model"
        for name in called.whole:
            child = module.get_submodule(name)
            folded = self.fold(child, f"{path}.{name}".lstrip("."))
            if folded is not child:
                self.places[folded] = self.places[child]
                module.set_submodule(name, folded)
        for chain in called.chains:
            self._fold_chain(module, chain, path)
        if called.is_traced and (self.is_checked or not self.unknown):
            for name in called.whole:
                _drop(module, name)
        self.unknown = above
        return module

    def _fold_chain(self, parent: nn.Module, names: list[str], path: str) -> None:
        """Folds norms and scales into the projections next to them; each module of a chain feeds the next alone."""
        for i, name in enumerate(names):
            module = parent.get_submodule(name)
            if not self._fold_back(parent, names[:i], module) and not self._fold_ahead(parent, names[i + 1 :], module):
                continue
            if self.unknown and not self.is_checked:
                raise ValueError(
                    f"batch must be given: the forward of {self.unknown} cannot be traced, so whether it calls "
                    f"{path or 'model'} as a whole must be found by comparison"
                )
            parent.set_submodule(name, nn.Identity().eval())

    def _fold_back(self, parent: nn.Module, names: list[str], module: nn.Module) -> bool:
        """Folds ``module`` into the projection whose output it gets, if it can be."""
        last = at_end(parent, names, ends=_is_projection, passes=_is_identity, is_closed=self._is_closed)
        if last is None:
            return False
        projection = parent.get_submodule(last)
        found = None if self._is_closed(projection) else _scale_and_shift(module, projection)
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
        if not isinstance(module, LayerScale):
            return False
        projection = self._first(parent, names)
        if isinstance(projection, PositionalConv2d):
            projection = projection.conv
        if projection is None or in_channels(projection) != module.dim:
            return False
        if _channels_dim(projection) != module.channels_dim:
            return False
        scale_inputs(projection, module.weight)  # of zeros at the border nothing changes
        return True

    def _first(self, parent: nn.Module, names: list[str]) -> nn.Module | None:
        """The projection that gets the input of a chain, perhaps inside of an ``nn.Sequential``."""
        for name in names:
            module = parent.get_submodule(name)
            if _is_identity(module):
                continue
            if self._is_closed(module):
                return None
            if isinstance(module, nn.Sequential):
                return self._first(module, [name for name, _ in module.named_children()])
            return module if _is_projection(module) else None
        return None

    def _is_closed(self, module: nn.Module) -> bool:
        return is_unit(module) or self.places[module] > 1


def _children(model: nn.Module) -> Iterator[nn.Module]:
    """Each module once for each place at which it stands."""
    return (child for module in model.modules() for child in module._modules.values() if child is not None)


def _is_identity(module: nn.Module) -> bool:
    return type(module) in _IDENTITIES


def _is_projection(module: nn.Module) -> bool:
    return type(module) in PROJECTIONS or isinstance(module, PositionalConv2d)


def _channels_dim(projection: nn.Module) -> int:
    return -1 if isinstance(projection, nn.Linear) else 1


def _scale_and_shift(module: nn.Module, projection: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """What a norm or a scale does to each channel of the output of ``projection``; ``None`` for all else."""
    conv = projection.conv if isinstance(projection, PositionalConv2d) else projection
    if isinstance(module, LayerScale):
        fits = module.dim == out_channels(conv) and module.channels_dim == _channels_dim(conv)
        return (module.weight.detach(), None) if fits else None
    is_frozen = isinstance(module, torchvision.ops.FrozenBatchNorm2d)
    dims = len(conv.kernel_size) if isinstance(conv, nn.modules.conv._ConvNd) else 0
    if dims not in ((2,) if is_frozen else _BATCH_NORMS.get(type(module), ())):
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


def _drop(parent: nn.Module, name: str) -> None:
    """Removes an identity; where a ``forward`` calls it by name, one that costs less takes its place."""
    if not _is_identity(parent.get_submodule(name)):
        return
    if isinstance(parent, nn.Sequential) and "." not in name:
        del parent._modules[name]  # by its name: the others keep theirs
    elif type(parent.get_submodule(name)) is not nn.Identity:
        parent.set_submodule(name, nn.Identity().eval())
