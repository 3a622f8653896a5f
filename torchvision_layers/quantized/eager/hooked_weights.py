"""Weights that hooks of ``torch.nn.utils`` compute before each call: pruning, and weight and spectral norm by hooks."""

from torch import nn
from torch.nn.utils import prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

__all__ = ["check_no_hooked_weights", "compute_hooked_weights"]


def compute_hooked_weights(model: nn.Module) -> None:
    """Gives such modules ordinary parameters with the current values, in place. An int8 module has no hooks."""
    for module in model.modules():
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)
            elif isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)


def check_no_hooked_weights(model: nn.Module) -> None:
    """Errors: ``ValueError`` with the paths of such modules, whose hooks training in int8 would lose."""
    classes = (prune.BasePruningMethod, WeightNorm, SpectralNorm)
    paths = [
        path or "model"
        for path, module in model.named_modules()
        if any(isinstance(hook, classes) for hook in module._forward_pre_hooks.values())
    ]
    if paths:
        raise ValueError(
            f"weights must be parameters to be trained with engine='eager', hooks compute those of {', '.join(paths)}: "
            "call prune.remove, remove_weight_norm or remove_spectral_norm first, or use engine='pt2e'"
        )
