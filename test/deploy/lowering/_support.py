"""Comparison of lowered models with the float models that they come from."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchvision_layers import deploy
from torchvision_layers._utils.structure import flatten
from torchvision_layers.testing._checks._quantization import decibels

__all__ = ["assert_agrees", "assert_lowers", "assert_rounds_like", "images", "stir"]


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stir(model: nn.Module, seed: int = 0) -> nn.Module:
    """``model`` in eval mode with statistics, affine parameters, scales and heads far from their initial values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if getattr(module, "running_mean", None) is not None:
                module.running_mean.normal_(0, 0.3, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
            if "Norm" in type(module).__name__ and getattr(module, "weight", None) is not None:
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.2, generator=generator)
            if isinstance(getattr(module, "layer_scale", None), Tensor):
                module.layer_scale.uniform_(0.5, 1.5, generator=generator)
            if isinstance(module, nn.Linear) and not module.weight.any():  # heads that torchvision sets to zero
                module.weight.normal_(0, 0.02, generator=generator)
    return model.eval()


def assert_agrees(lowered: nn.Module, model: nn.Module, *inputs: Any, **kwargs: Any) -> None:
    """The same structure, shapes and dtypes, and values that agree to 1e-5 of the largest; inputs do not change."""
    with torch.no_grad():
        expected, template = flatten(model(*copy.deepcopy(inputs), **copy.deepcopy(kwargs)))
    before = copy.deepcopy((inputs, kwargs))
    outputs, own_template = flatten(lowered(*inputs, **kwargs))
    for tensor, original in zip(flatten((inputs, kwargs))[0], flatten(before)[0], strict=True):
        assert torch.equal(tensor, original), "the program changed its input"
    assert own_template == template
    for output, original in zip(outputs, expected, strict=True):
        assert output.shape == original.shape
        assert output.dtype == original.dtype
        assert not output.requires_grad
        if output.numel() and output.is_floating_point():
            error = float((output - original).abs().max() / original.abs().max().clamp(min=1e-6))
            assert error <= 1e-5, f"{tuple(output.shape)}: {error:.2e}"
        else:
            assert torch.equal(output, original)


def assert_lowers(
    model: nn.Module, *inputs: Any, others: Sequence[tuple[Any, ...]] = (), contains: Sequence[str] = ()
) -> deploy.LoweredModel:
    """Lowers ``model`` and compares it on the inputs and ``others``; ``contains`` are parts of the printed program."""
    model = model.eval()
    state = copy.deepcopy(model.state_dict())
    lowered = deploy.lower(model, inputs if len(inputs) > 1 else inputs[0])
    for call in (inputs, *others):
        assert_agrees(lowered, model, *call)
        assert_agrees(lowered, model, *call)  # nothing is left behind by the first call
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    for text in contains:
        assert text in repr(lowered), repr(lowered)
    return lowered


def assert_rounds_like(lowered: nn.Module, graph: nn.Module, model: nn.Module, *inputs: Tensor) -> None:
    """As close to the float model as the graph, whose ties may round differently."""
    with torch.no_grad():
        expected = model(*copy.deepcopy(inputs))
        output, rounded = lowered(*inputs), graph(*inputs)
    assert output.shape == expected.shape
    assert output.dtype == expected.dtype
    assert decibels(expected, output) >= min(decibels(expected, rounded) - 1.5, 60)  # one step of one feature
    assert decibels(rounded, output) >= min(decibels(expected, rounded), 35)
