"""Fuses modules without ``torch.ao``, which torch will remove, and what is common to fusing with and without it."""

import copy
from collections.abc import Sequence
from typing import Any

import torchvision.ops
from torch import nn

from .patterns import mark_fused

__all__ = ["Fused", "check_modes", "fold_frozen", "fuse_group"]


class Fused(nn.Sequential):
    """A convolution or linear layer and what is fused with it."""


def fuse_group(parent: nn.Module, names: list[str], is_qat: bool) -> None:
    """Fuses a convolution or linear layer with its norm, its activation, or both, in place.

    In eval mode, the norm is folded; in training, it stays.
    """
    if isinstance(parent.get_submodule(names[1]), torchvision.ops.FrozenBatchNorm2d):
        fold_frozen(parent, names[0], names[1])
        if len(names) == 3:
            fuse_group(parent, [names[0], names[2]], is_qat)
        return
    modules = [parent.get_submodule(name) for name in names]
    check_modes(modules, names, is_qat)
    layer, *others = modules
    if not is_qat and isinstance(others[0], nn.modules.batchnorm._BatchNorm):
        fold: Any = nn.utils.fuse_linear_bn_eval if isinstance(layer, nn.Linear) else nn.utils.fuse_conv_bn_eval
        layer = fold(layer, others.pop(0))
    parent.set_submodule(names[0], Fused(layer, *others).train(layer.training) if others else layer)
    for name, module in zip(names[1:], modules[1:], strict=True):
        parent.set_submodule(name, nn.Identity().train(module.training))
        mark_fused(parent, name, names[0])


def check_modes(modules: Sequence[nn.Module], names: Sequence[str], is_qat: bool) -> None:
    """Errors: ``ValueError`` unless all modules are in one mode, which is eval mode if the norm is to be folded."""
    if len({module.training for module in modules}) != 1:
        raise ValueError(f"{', '.join(names)} must all be in training or all in eval mode to be fused")
    if modules[0].training and not is_qat:
        raise ValueError(f"is_qat must be True to fuse {', '.join(names)} in training mode; call eval() to fold them")


def fold_frozen(parent: nn.Module, conv_name: str, norm_name: str) -> None:
    """Folds a frozen batch norm, which does not change in training either, into the convolution before it."""
    conv, norm = copy.deepcopy(parent.get_submodule(conv_name)), parent.get_submodule(norm_name)
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, torchvision.ops.FrozenBatchNorm2d)
    conv.weight, conv.bias = nn.utils.fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    parent.set_submodule(conv_name, conv)
    parent.set_submodule(norm_name, nn.Identity().train(norm.training))
    mark_fused(parent, norm_name, conv_name)
