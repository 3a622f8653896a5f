"""How much the outputs of a model change if one of its modules has an error."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .._utils.inputs import Inputs
from .._utils.modules import copy_module
from .._utils.outputs import outputs_of
from .measurement import OutputMeasurement

__all__ = ["output_decibels"]


@torch.no_grad()
def output_decibels(model: nn.Module, inputs: Inputs, decibels: Mapping[str, float]) -> dict[str, float]:
    """Signal over error of the outputs in dB if a module has an error, for one module after the other.

    Noise takes the place of the error, and the rest of the model amplifies it or not. A module that does not run as a
    whole, because a ``forward`` reads its weight, keeps its own value.

    Args:
        model: the float model.
        inputs: the inputs of one call.
        decibels: signal over error of the output of each module, by path.
    """
    reference = copy_module(model).eval()
    expected = outputs_of(reference, inputs)
    results = dict(decibels)
    for path, value in decibels.items():
        generator, calls = torch.Generator().manual_seed(0), list[nn.Module]()
        hook = partial(_add_noise, value, generator, calls)
        handle = reference.get_submodule(path).register_forward_hook(hook)
        measurement = OutputMeasurement()
        measurement.add(expected, outputs_of(reference, inputs))
        handle.remove()
        if calls:
            results[path] = measurement.decibels()
    return results


def _add_noise(
    decibels: float, generator: torch.Generator, calls: list[nn.Module], module: nn.Module, args: object, output: Any
) -> Any:
    calls.append(module)
    if isinstance(output, tuple):
        return _noisy(output[0], decibels, generator), *output[1:]
    return _noisy(output, decibels, generator)


def _noisy(output: Tensor, decibels: float, generator: torch.Generator) -> Tensor:
    scale = output.double().square().mean().sqrt() * 10 ** (-decibels / 20)
    noise = torch.randn(output.shape, generator=generator, dtype=output.dtype).to(output.device)
    return output + noise * scale.to(output.dtype)
