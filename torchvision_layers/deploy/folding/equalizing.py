"""Finds pairs of layers between which each channel may have another scale, and chooses the scales."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..._utils.modules import replace_module_
from ..._utils.plain.padding import SamePadding
from ..._utils.scaling import (
    CONV_AND_LINEAR,
    broadcastable,
    in_channels,
    out_channels,
    scale_inputs,
    scale_outputs,
)
from ...layers.channel_cap import ChannelCap
from ...layers.same_conv import Conv2dSame
from .folding_pass import FoldingPass
from .replacement import float_class_of
from .rules import is_identity, is_weighted

__all__ = ["EqualizingPass", "equalize_pairs", "measure_activations"]

#: Modules that treat channels alike and return ``s * y`` if they get ``s * x``, for every ``s > 0``.
_HOMOGENEOUS = {
    SamePadding,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.CircularPad1d,
    nn.CircularPad2d,
    nn.CircularPad3d,
    nn.Flatten,
    nn.LeakyReLU,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.PReLU,
    nn.RReLU,
    nn.ReLU,
    nn.ReflectionPad1d,
    nn.ReflectionPad2d,
    nn.ReflectionPad3d,
    nn.ReplicationPad1d,
    nn.ReplicationPad2d,
    nn.ReplicationPad3d,
    nn.Upsample,
    nn.UpsamplingBilinear2d,
    nn.UpsamplingNearest2d,
    nn.ZeroPad1d,
    nn.ZeroPad2d,
    nn.ZeroPad3d,
}

_LAYERS = (*CONV_AND_LINEAR, Conv2dSame)
#: Rounds over all pairs, and the largest change of a scale in the last one.
_ROUNDS, _CONVERGED = 50, 1e-3


@dataclass(frozen=True)
class Pair:
    """Two weighted layers, and the modules between them that clamp to [0, cap]."""

    first: nn.Module
    second: nn.Module
    clamps: tuple[nn.Hardtanh, ...]


class EqualizingPass(FoldingPass):
    """Collects the pairs of a folded model, in the order of its chains."""

    def __init__(self, model: nn.Module, run: Callable[[nn.Module], object] | None) -> None:
        super().__init__(model, run)
        self.pairs: dict[tuple[nn.Module, nn.Module], Pair] = {}

    def _fold_chain(self, parent: nn.Module, names: list[str], path: str) -> None:
        modules = [parent.get_submodule(name) for name in names]
        layers = [i for i, module in enumerate(modules) if is_weighted(module)]
        for start, end in pairwise(layers):
            pair = self._pair(modules[start], modules[start + 1 : end], modules[end])
            if pair is None:
                continue
            if parent in self.untraced and not self.is_compared:
                raise ValueError(
                    f"batch is required: the forward of {self.untraced[parent]} cannot be traced, so only a comparison "
                    f"can show whether it calls {path or 'model'} as a whole; call deploy.equalize(model, batch)"
                )
            self.pairs[pair.first, pair.second] = pair

    def _remove_identities(self, module: nn.Module) -> None:
        """Leaves them: the model is folded already."""

    def _pair(self, first: nn.Module, between: list[nn.Module], second: nn.Module) -> Pair | None:
        """The pair of two layers; ``None`` if their scales cannot be chosen."""
        clamps: list[nn.Hardtanh] = []
        is_flat = False
        for module in (first, *between, second):
            if self._is_shared(module):
                return None
        for module in between:
            is_flat |= isinstance(module, nn.Flatten)
            if isinstance(module, nn.Hardtanh) and _is_clamp(module) and not is_flat:
                clamps.append(module)
            elif not is_identity(module) and not _is_homogeneous(module):
                return None
        if float_class_of(first) not in _LAYERS or float_class_of(second) not in _LAYERS:
            return None
        outputs, inputs = out_channels(first), in_channels(second)
        is_image = [not isinstance(layer, nn.Linear) for layer in (first, second)]
        fits = inputs % outputs == 0 if is_flat else inputs == outputs and is_image[0] == is_image[1]
        return Pair(first, second, tuple(clamps)) if fits else None


def _is_clamp(module: nn.Hardtanh) -> bool:
    return float_class_of(module) in (nn.ReLU6, nn.Hardtanh) and module.min_val == 0 < module.max_val


def _is_homogeneous(module: Any) -> bool:
    cls = float_class_of(module)
    if cls in (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d):
        return bool(module.value == 0)
    if cls is nn.Flatten:
        return module.start_dim == 1 and module.end_dim == -1
    return cls in _HOMOGENEOUS


@dataclass
class Activations:
    """The input of the second layer of a pair: the largest magnitude of each channel, and whether any is negative."""

    largest: Tensor
    are_signed: bool = False

    def observe(self, layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        """A hook of that layer."""
        values = (args[0] if args else kwargs["input"]).detach().cpu().double()
        if isinstance(layer, nn.modules.conv._ConvNd):
            values = values.movedim(-1 - len(layer.kernel_size), -1)
        if values.numel():
            self.are_signed |= bool(values.min() < 0)
            # Pixels of a flattened image share a scale.
            largest = values.abs().flatten(0, -2).amax(0).reshape(len(self.largest), -1).amax(1)
            self.largest = self.largest.maximum(largest)

    def beside(self, weights: Tensor, scale: Tensor) -> Tensor:
        """The ranges of weights that have as many steps as these activations, divided by ``scale``, in int8.

        Without negative numbers, activations have twice as many.
        """
        largest = self.largest / scale
        if not float(largest.max()) > 0:
            return torch.zeros_like(weights)
        return largest * (weights.max() / largest.max() * (1.0 if self.are_signed else 0.5))


def measure_activations(pairs: list[Pair], run: Callable[[], object]) -> list[Activations]:
    """The activations between the layers of each pair while ``run`` runs the model."""
    activations = [Activations(torch.zeros(out_channels(pair.first), dtype=torch.float64)) for pair in pairs]
    handles = [
        pair.second.register_forward_pre_hook(own.observe, with_kwargs=True)
        for pair, own in zip(pairs, activations, strict=True)
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return activations


def equalize_pairs(pairs: list[Pair], activations: list[Activations] | None = None) -> None:
    r"""Gives each channel between two layers the scale at which both have weights of the same range, in place.

    With the largest weights :math:`r_1` of the output channel and :math:`r_2` of the input channel, the first layer is
    divided and the second multiplied by :math:`\sqrt{r_1 / r_2}` (Nagel et al., 2019, "Data-Free Quantization Through
    Weight Equalization and Bias Correction", eq. 11). A layer in two pairs changes the ranges of both, so this is
    repeated until the scales converge.

    That alone makes the ranges of activations differ, which have one scale for all channels too. If they are given,
    :math:`r_1` is the larger of weight and activation, each relative to its largest channel.
    """
    layers = {layer for pair in pairs for layer in (pair.first, pair.second)}
    # Only the largest weight of each kernel matters.
    largest = {layer: _largest_weights(layer) for layer in layers}
    logarithms = [torch.zeros(out_channels(pair.first), dtype=torch.float64) for pair in pairs]
    damping = 1.0 if activations is None else 0.5  # the largest channels change, and scales would swing
    for _ in range(_ROUNDS):
        change = 0.0
        for i, (pair, logarithm) in enumerate(zip(pairs, logarithms, strict=True)):
            outputs = _channels(pair.first, largest[pair.first], is_output=True)
            if activations is not None:
                others = activations[i].beside(outputs, logarithm.exp())
                outputs = torch.where(outputs > 0, outputs.maximum(others), 0.0)
            inputs = _channels(pair.second, largest[pair.second], is_output=False)
            inputs = inputs.reshape(len(outputs), -1).amax(1)  # pixels of a flattened image share a scale
            has_weights = (outputs > 0) & (inputs > 0)
            step = torch.where(has_weights, (outputs / inputs).log() / 2, 0.0).nan_to_num(0.0)
            step *= damping
            logarithm += step
            largest[pair.first] *= broadcastable(pair.first, (-step).exp(), is_output=True)
            largest[pair.second] *= broadcastable(pair.second, _per_input(pair, step.exp()), is_output=False)
            change = max(change, float(step.abs().max()))
        if change < _CONVERGED:
            break
    for pair, logarithm in zip(pairs, logarithms, strict=True):
        _apply(pair, logarithm.exp())


def _apply(pair: Pair, scale: Tensor) -> None:
    """Divides the outputs of the first layer by ``scale``, and multiplies the inputs of the second layer by it."""
    dims = len(pair.first.kernel_size) if isinstance(pair.first, nn.modules.conv._ConvNd) else 0
    weight = pair.first.weight
    assert isinstance(weight, Tensor)
    scale = scale.to(weight.device)
    scale_outputs(pair.first, 1 / scale)
    scale_inputs(pair.second, _per_input(pair, scale))
    for clamp in pair.clamps:
        cap = ChannelCap((clamp.max_val / scale).to(weight.dtype), dims)
        replace_module_(clamp, nn.Sequential(nn.ReLU(), cap))


def _per_input(pair: Pair, scale: Tensor) -> Tensor:
    return scale.repeat_interleave(in_channels(pair.second) // len(scale))


def _largest_weights(layer: nn.Module) -> Tensor:
    """The largest magnitude of each kernel, in the shape of the weight with kernels of one element."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    magnitudes = weight.detach().cpu().double().abs()
    return magnitudes.amax([*range(2, magnitudes.dim())], keepdim=True) if magnitudes.dim() > 2 else magnitudes


def _channels(layer: nn.Module, largest: Tensor, is_output: bool) -> Tensor:
    """The largest of all kernels of each output or input channel."""
    if isinstance(layer, nn.Linear):
        return largest.amax(1 if is_output else 0)
    assert isinstance(layer, nn.modules.conv._ConvNd)
    if is_output != layer.transposed:  # the dimension of the weight that has all channels
        return largest.flatten(1).amax(1)
    # The other dimension has the channels of one group; the first one iterates over the groups.
    return largest.reshape(layer.groups, -1, largest.shape[1]).amax(1).flatten()
