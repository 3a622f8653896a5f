"""States as training leaves them. The source of a drawn model contains the functions that it calls."""

import torch
from torch import nn

__all__ = ["STATES"]


def move_statistics(model: nn.Module) -> None:
    """Random statistics, gains and shifts in all norms."""
    for module in model.modules():
        is_norm = "Norm" in type(module).__name__
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if name == "running_var" or (is_norm and name == "weight"):
                nn.init.uniform_(tensor, 0.5, 1.5)
            elif name == "running_mean" or (is_norm and name == "bias"):
                nn.init.normal_(tensor, std=0.2)


def zero_gammas(model: nn.Module) -> None:
    """Zeros as the gain of every second norm, as ``zero_init_residual`` sets it."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d) and module.affine]
    for norm in norms[1::2]:
        nn.init.zeros_(norm.weight)


def prune_gammas(model: nn.Module) -> None:
    """Zeros and negative values among the gains of batch norms."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            with torch.no_grad():
                module.weight[::3] = 0.0
                module.weight[1::3] *= -1.0


def kill_channels(model: nn.Module) -> None:
    """Convolutions whose first filter is zero, and whose second is large."""
    for module in model.modules():
        if type(module) is nn.Conv2d and not hasattr(module, "parametrizations") and module.out_channels > 1:
            with torch.no_grad():
                module.weight[0] = 0.0
                module.weight[1] *= 4.0


def narrow_variances(model: nn.Module) -> None:
    """Channels of batch norms that hardly varied in training."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
            with torch.no_grad():
                module.running_var[0] = 1e-3


def shift_biases(model: nn.Module) -> None:
    """Biases as large as the activations, so that ranges are far from zero."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.normal_(module.bias, std=1.0)


STATES = (move_statistics, zero_gammas, prune_gammas, kill_channels, narrow_variances, shift_biases)
