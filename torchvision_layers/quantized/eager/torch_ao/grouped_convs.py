"""Runs grouped int8 convolutions on oneDNN where FBGEMM, which torch takes for them on x86, has no fast kernel.

Without one, FBGEMM takes 20 to 60 times as long as oneDNN: with asymmetric padding or an even kernel, for example.
"""

from functools import cache
from typing import Any

import torch.ao.nn.quantized as nnq
from torch import nn
from torch.ao.nn.intrinsic.modules.fused import _FusedModule

from ..int8_modules import use_backend

__all__ = ["move_slow_convs", "moves_to_onednn", "on_onednn"]


class _PacksForOneDNN:
    """A mixin that packs weights for oneDNN when they are copied or loaded. The kernel follows the packing."""

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        with use_backend("onednn"):
            return super().__deepcopy__(memo)  # type: ignore[misc]

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        with use_backend("onednn"):
            super()._load_from_state_dict(  # type: ignore[misc]
                state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
            )


@cache
def on_onednn(cls: type[nn.Module]) -> type[nn.Module]:
    """The subclass of an int8 convolution whose weights are packed for oneDNN on every backend."""
    return type(cls.__name__, (_PacksForOneDNN, cls), {"__module__": cls.__module__, "kernel_class": cls})


def moves_to_onednn(module: nn.Module) -> bool:
    """Whether a float convolution, or one with fused modules, is among those that :func:`move_slow_convs` moves."""
    conv = module[0] if isinstance(module, _FusedModule) else module
    return isinstance(conv, nn.modules.conv._ConvNd) and _is_slow(conv)


def move_slow_convs(model: nn.Module) -> None:
    """Packs the weights of each convolution for oneDNN, in place, if FBGEMM has no fast kernel for it."""
    with use_backend("onednn"):
        for module in model.modules():
            if isinstance(module, (nnq.Conv1d, nnq.Conv2d, nnq.Conv3d)) and _is_slow(module):
                module.__class__ = on_onednn(type(module))  # type: ignore[assignment]
                module.set_weight_bias(*module._weight_bias())


def _is_slow(conv: Any) -> bool:
    """Whether a convolution has groups, and FBGEMM has no kernel for it that avoids copying its windows."""
    kernel = conv.kernel_size
    is_usual = (
        len(kernel) > 1
        and kernel[-1] == kernel[-2]
        and all(size in (3, 5, 7) for size in kernel)
        and all(stride in (1, 2) for stride in conv.stride)
        and all(dilation == 1 for dilation in conv.dilation)
        and all(padding == size // 2 for padding, size in zip(conv.padding, kernel, strict=True))
    )
    inputs, outputs = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    is_depthwise = inputs == 1 and outputs in (1, 2) and conv.groups % 8 == 0
    is_fast = is_usual and (is_depthwise or (inputs == outputs and inputs in (4, 8, 16) and {*kernel} == {3}))
    return conv.groups > 1 and not is_fast
