"""Replaces modules by fused modules of ``torch.ao``."""

from collections.abc import Callable
from typing import Any

import torch.ao.nn.intrinsic as nni
import torch.ao.quantization as taoq
import torchvision.ops
from torch import nn
from torch.ao.nn.intrinsic.modules.fused import _FusedModule

from ..fusing import check_modes, fold_frozen
from ..patterns import BATCH_NORMS, mark_fused

__all__ = ["FusedReLU6", "ReLU6AsReLU", "fuse_group", "is_fused_for_training"]

_WITH_RELU: dict[type[nn.Module], Callable[..., nn.Module]] = {
    nn.Conv1d: nni.ConvReLU1d,
    nn.Conv2d: nni.ConvReLU2d,
    nn.Conv3d: nni.ConvReLU3d,
    nn.Linear: nni.LinearReLU,
}
_WITH_NORM_AND_RELU: dict[type[nn.Module], Callable[..., nn.Module]] = {
    nn.Conv1d: nni.ConvBnReLU1d,
    nn.Conv2d: nni.ConvBnReLU2d,
    nn.Conv3d: nni.ConvBnReLU3d,
}


class FusedReLU6(_FusedModule):
    """A convolution or linear layer, an optional batch norm, and a ReLU6, to become one int8 kernel.

    Int8 has a kernel with ReLU but none with ReLU6. The output range is clamped at 6, or below if calibration never
    sees 6, so saturation implements ReLU6 exactly.
    """

    def with_relu(self) -> nn.Module:
        """The same module with ReLU in place of ReLU6, for torch's own conversions."""
        parts = [part for part in self if type(part) in BATCH_NORMS or type(part) in BATCH_NORMS.values()]
        fused = (_WITH_RELU if len(parts) == 1 else _WITH_NORM_AND_RELU)[type(parts[0])]
        module = fused(*parts, nn.ReLU()).train(self.training)
        module.qconfig = self.qconfig
        if hasattr(self, "activation_post_process"):
            module.activation_post_process = self.activation_post_process
        return module


class ReLU6AsReLU:
    """An entry in a mapping of torch.ao, used like a class: converts a ``FusedReLU6`` as the mapping does a ReLU."""

    def __init__(self, mapping: dict[Callable[..., Any], Any]) -> None:
        self.mapping = mapping

    def from_float(self, fused: FusedReLU6) -> nn.Module:
        module = fused.with_relu()
        return self.mapping[type(module)].from_float(module)


def fuse_group(parent: nn.Module, names: list[str], is_qat: bool) -> None:
    """Fuses a convolution or linear layer with its norm, its ReLU or ReLU6, or both, in place."""
    modules = [parent.get_submodule(name) for name in names]
    if isinstance(modules[1], torchvision.ops.FrozenBatchNorm2d):
        fold_frozen(parent, names[0], names[1])
        if len(names) == 3:
            fuse_group(parent, [names[0], names[2]], is_qat)
        return
    check_modes(modules, names, is_qat)
    if len(names) == 3 and type(modules[0]) is nn.Linear:
        # torch has no Linear-BatchNorm-ReLU: fuse in two steps in eval mode, and leave the ReLU alone in training.
        fuse_group(parent, names[:2], is_qat)
        if not is_qat:
            fuse_group(parent, [names[0], names[2]], is_qat)
        return
    if type(modules[-1]) is nn.ReLU6:
        if len(names) == 3 and not is_qat:
            fuse_group(parent, names[:2], is_qat)
            modules = [parent.get_submodule(names[0]), modules[-1]]
        fused = FusedReLU6(*modules).train(modules[-1].training)
        parent.set_submodule(names[0], fused)
        for name in names[1:]:
            parent.set_submodule(name, nn.Identity().train(fused.training))
    else:
        (taoq.fuse_modules_qat if is_qat else taoq.fuse_modules)(parent, names, inplace=True)
    for name in names[1:]:
        mark_fused(parent, name, names[0])


def is_fused_for_training(model: nn.Module) -> bool:
    """Whether a module is fused with a batch norm that is not folded."""
    return any(
        isinstance(module, _FusedModule)
        and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())
        for module in model.modules()
    )
