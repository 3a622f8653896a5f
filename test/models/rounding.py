"""An estimate of the error that int8 adds to the outputs of a model, in plain torch and without this package."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["Estimate", "estimate_rounding"]

#: Half of a step of weights: of eight bits, one of which is lost on x86 if the two largest weights are alike.
_WEIGHT_SHARE = 1 / 128
#: Operators that move values, or replace some by a bound, and so add no error.
_MOVES = {"clone", "_unsafe_view", "copy_", "_to_copy", "index_select", "constant_pad_nd", "roll", "flip", "repeat"}
_MOVES |= {"clamp_min"}
#: Operators whose int8 kernels keep the step of their input, although the range of their output may be smaller.
_POOLS = {"mean", "_adaptive_avg_pool2d", "adaptive_avg_pool2d", "avg_pool2d"}
#: Operators that keep the step of a pool before them.
_AFTER_POOLS = {"relu", "relu_", "max_pool2d_with_indices"}
#: Clamps keep the step of their input, unless a layer computes them: it, or a batch norm after it.
_CLAMPS = {"hardtanh", "hardtanh_", "clamp", "clamp_"}
_LAYERS = {"convolution", "addmm", "mm", "bmm"}


class _Rounding(TorchDispatchMode):
    """Rounds each tensor that an operator computes to 256 steps, or adds noise of up to half a step."""

    def __init__(self, generator: torch.Generator | None) -> None:
        super().__init__()
        self.generator = generator
        #: The steps of tensors that pools and clamps returned, and whether a layer returned a tensor.
        self.kept_steps, self.of_layers = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        first = args[0] if args and isinstance(args[0], Tensor) else None
        kept: float | None = self.kept_steps.get(first) if first is not None else None
        is_of_layer = name in _LAYERS or ("batch_norm" in name and self.of_layers.get(first, False))
        if name in _POOLS or (name in _CLAMPS and not self.of_layers.get(first, False)):
            kept = _step(first) if kept is None else kept  # before a clamp writes into its input
        elif name not in _AFTER_POOLS and not (func.is_view or name in _MOVES):
            kept = None
        output = func(*args, **(kwargs or {}))
        for tensor in _tensors(output):
            self.kept_steps[tensor] = kept
            if func.is_view or name in _MOVES:
                continue
            self.of_layers[tensor] = is_of_layer
            if tensor.is_floating_point() and tensor.numel() > 1:
                _round_(tensor, _step(tensor) if kept is None else kept, self.generator)
        return output


class Estimate:
    """The effect of rounding on each output of a model, the largest of a few draws."""

    def __init__(self, expected: Sequence[Tensor], draws: Sequence[Sequence[Tensor]]) -> None:
        errors = [[tensor - value for tensor, value in zip(draw, expected, strict=True)] for draw in draws]
        #: Root mean square of the error of each output.
        self.rms = [max(map(_rms, tensors)) for tensors in zip(*errors, strict=True)]
        #: The same for each channel.
        self.channels = [torch.stack(list(map(_channel_rms, t))).amax(0) for t in zip(*errors, strict=True)]

    def include(self, other: "Estimate") -> None:
        """Keeps the larger of two estimates for the same outputs, on other inputs."""
        self.rms = list(map(max, self.rms, other.rms))
        self.channels = list(map(_maximum, self.channels, other.channels))


@torch.no_grad()
def estimate_rounding(model: nn.Module, run: Callable[[nn.Module], Sequence[Tensor]], draws: int = 3) -> Estimate:
    """How much rounding of weights and of all values between operators moves the outputs of ``run``.

    Args:
        model: in float and in eval mode; it stays unchanged.
        run: calls a model and returns its outputs.
        draws: number of draws. The first rounds, which is not random where values are far from the next step, and the
            others add noise.
    """
    expected = run(copy.deepcopy(model))
    results = []
    for i in range(draws):
        generator = torch.Generator().manual_seed(i) if i else None
        rounded = copy.deepcopy(model)
        for parameter in rounded.parameters():
            if parameter.dim() >= 2:
                largest = parameter.abs().flatten(1).amax(1).view(-1, *[1] * (parameter.dim() - 1))
                _round_(parameter, 2 * _WEIGHT_SHARE * largest, generator)
        with _Rounding(generator):
            results.append(run(rounded))
    return Estimate(expected, results)


def _step(tensor: Tensor) -> float:
    """A step of the range of a tensor and zero."""
    if not tensor.numel():
        return 0.0
    return (max(0.0, float(tensor.max())) - min(0.0, float(tensor.min()))) / 255


def _round_(tensor: Tensor, step: float | Tensor, generator: torch.Generator | None) -> None:
    """Rounds in place, or adds noise between minus and plus half of ``step``."""
    if generator is not None:
        tensor.add_((torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) - 0.5) * step)
    else:
        positive = torch.as_tensor(step).clamp(min=1e-30)
        tensor.copy_((tensor / positive).round() * positive)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, (tuple, list)) else []


def _rms(error: Tensor) -> float:
    return float(error.double().square().mean().sqrt()) if error.numel() else 0.0


def _maximum(channels: Tensor, others: Tensor) -> Tensor:
    """The larger of each; the first if they are of different channels, such as those of two sizes."""
    return torch.maximum(channels, others) if channels.shape == others.shape else channels


def _channel_rms(error: Tensor) -> Tensor:
    """The root mean square along all dimensions except the second."""
    if error.dim() < 2:
        return error.double().abs()
    return error.double().square().transpose(0, 1).flatten(1).mean(1).sqrt()
