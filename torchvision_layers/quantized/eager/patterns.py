"""Which modules fuse into which, and the mark that a fused module leaves for the report."""

import torchvision.ops
from torch import nn

__all__ = ["BATCH_NORMS", "is_foldable", "mark_fused"]

#: The batch norm that folds into each class of convolution or linear layer.
BATCH_NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
    nn.Linear: nn.BatchNorm1d,
}


def is_foldable(first: nn.Module, norm: nn.Module, is_qat: bool) -> bool:
    """Whether ``norm`` is a batch norm that folds into the convolution or linear layer ``first`` before it."""
    if isinstance(norm, torchvision.ops.FrozenBatchNorm2d):
        return type(first) is nn.Conv2d
    if type(norm) is not BATCH_NORMS[type(first)]:
        return False
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    channels = first.out_features if isinstance(first, nn.Linear) else first.out_channels
    if norm.num_features != channels:  # nn.BatchNorm1d on sequences normalizes another dimension than the features
        return False
    return norm.running_mean is not None and (norm.affine or not is_qat)


def mark_fused(parent: nn.Module, name: str, target: str) -> None:
    """Records that ``target`` below ``parent`` now computes the module called ``name``."""
    module = parent.get_submodule(name)
    module.fused_into = target  # type: ignore[assignment]  # a plain attribute
    module.fused_levels = name.count(".") + 1  # type: ignore[assignment]  # from the module up to the parent
