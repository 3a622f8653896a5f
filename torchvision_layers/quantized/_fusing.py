"""What is fused with what: chains of modules that a ``forward`` calls, as far as they can be fused exactly."""

import inspect

import torchvision.ops
from torch import nn

from ._chains import calls
from ._engines import eager
from ._kernels import Kernel, has_hooks, is_unit, kernel
from ._observed import Addition

__all__ = ["NORMS", "fuse_children", "mark_fused"]

#: The batch norm that folds into each kind of convolution or projection.
NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
    nn.Linear: nn.BatchNorm1d,
}


def fuse_children(module: nn.Module, is_qat: bool) -> None:
    """Fuses the chains of modules that ``module.forward`` calls in place, then those below each of them.

    A module with a ``fuse_model`` of its own is asked instead. One of which ``forward`` calls only a part is left
    alone: the part would come to compute what the next one did.
    """
    called = calls(module)
    for chain in called.chains:
        _fuse_chain(module, chain, is_qat)
    for name in called.whole:
        child = module.get_submodule(name)
        if is_unit(child):
            continue
        fuse_model = getattr(child, "fuse_model", None)
        if fuse_model is None:
            fuse_children(child, is_qat)
        elif inspect.signature(fuse_model).parameters:
            fuse_model(is_qat)
        else:
            fuse_model()


def _fuse_chain(parent: nn.Module, names: list[str], is_qat: bool) -> None:
    """Fuses each convolution or projection of a chain with the norm and the ReLU that follow, as far as they can be."""
    modules = [parent.get_submodule(name) for name in names]
    for start, first in enumerate(modules):
        if isinstance(first, Addition) and start + 1 < len(names):
            _fuse_addition(parent, names[start], names[start + 1])
        if type(first) not in NORMS or has_hooks(first) or kernel(first) is not Kernel.CONVERTED:
            continue
        group, can_take_norm = [start], True
        for i in range(start + 1, len(modules)):
            module = modules[i]
            if has_hooks(module) or hasattr(module, "fused_into"):
                break
            if type(module) is nn.Identity:
                continue
            if type(module) is nn.Dropout and type(first) is nn.Linear:
                # The identity in eval. In training it commutes with ReLU, but not with a norm nor with ReLU6.
                can_take_norm = False
                continue
            if can_take_norm and _is_foldable(first, module, is_qat):
                group.append(i)
                can_take_norm = False
                continue
            dropped = any(type(m) is nn.Dropout for m in modules[start + 1 : i])
            if type(module) is nn.ReLU or (type(module) is nn.ReLU6 and not (is_qat and dropped)):
                group.append(i)
            break
        if len(group) == 1:
            continue
        if is_qat and type(first) is nn.Conv1d and type(modules[group[1]]) is not nn.BatchNorm1d:
            continue  # for training torch has no fused Conv1d and ReLU without a norm between them
        eager().fuse_group(parent, [names[i] for i in group], is_qat)


def _fuse_addition(parent: nn.Module, addition_name: str, relu_name: str) -> None:
    addition, relu = parent.get_submodule(addition_name), parent.get_submodule(relu_name)
    if type(relu) is nn.ReLU and not has_hooks(relu) and not has_hooks(addition):
        addition.relu = True  # type: ignore[assignment]  # a plain attribute
        parent.set_submodule(relu_name, nn.Identity().train(relu.training))
        mark_fused(parent, relu_name, addition_name)


def mark_fused(parent: nn.Module, name: str, host: str) -> None:
    """Notes for the report that what was ``name`` below ``parent`` is computed by ``host`` below it."""
    module = parent.get_submodule(name)
    module.fused_into = host  # type: ignore[assignment]  # a plain attribute
    module.fused_levels = name.count(".") + 1  # type: ignore[assignment]  # from the module up to the parent


def _is_foldable(first: nn.Module, norm: nn.Module, is_qat: bool) -> bool:
    if isinstance(norm, torchvision.ops.FrozenBatchNorm2d):
        return type(first) is nn.Conv2d
    if type(norm) is not NORMS[type(first)]:
        return False
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    width = first.out_features if isinstance(first, nn.Linear) else first.out_channels
    if norm.num_features != width:  # of a sequence nn.BatchNorm1d normalizes something else than the features
        return False
    return norm.running_mean is not None and (norm.affine or not is_qat)
