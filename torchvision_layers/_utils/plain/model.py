"""Replaces the layers of a model by plain ones, in place."""

import inspect
from collections.abc import Collection

from torch import nn

from ..modules import numeric_padding
from ..scaling import CONV_AND_LINEAR
from ..tracing import trace_forward
from .activations import plain_activation
from .keys import hide_name
from .layers import plain_form

__all__ = ["find_entered", "make_plain_"]

_STAGED = "torchvision_layers.experimental."


def make_plain_(
    model: nn.Module,
    *,
    will_train: bool = False,
    keeps_keys: bool = True,
    splits_padding: bool = False,
    kept: Collection[nn.Module] = (),
) -> dict[str, nn.Module]:
    """Replaces each layer that computes what modules of torch compute, in place.

    A convolution that pads by itself or computes its weight, a batch norm that calls an activation, or an activation
    under another name, of any class, becomes the modules of torch that compute the same: every reference to it sees
    them. Layers of torch and the stable layers of this package stay as they are, except convolutions that compute their
    weight, and so does a layer whose parameters or children a ``forward`` above it uses.

    Args:
        model: any model.
        will_train: leaves layers alone that train differently, with a computed weight for example.
        keeps_keys: leaves layers alone whose parameters would appear under other keys of the ``state_dict``.
        splits_padding: also splits convolutions of torch into padding and convolution unless they pad both sides of a
            dimension with the same number of zeros.
        kept: layers to leave alone.

    Returns the layers by path that only ``will_train`` left alone.
    """
    left_alone: dict[str, nn.Module] = {}
    entered: set[nn.Module] | None = None  # takes a while to find, and most models have no such layer
    for path, module in [*model.named_modules()]:
        if module in kept or not _is_candidate(module, splits_padding):
            continue
        form = plain_activation(module, will_train) or plain_form(module)
        if form is None:
            continue
        entered = find_entered(model) if entered is None else entered
        plain = form if isinstance(form, nn.Module) else form.as_module()
        if module in entered or not _takes_inputs_of(plain, module):
            continue
        if isinstance(form, nn.Module):
            _replace_(module, plain)
            continue
        if will_train and not form.can_train:
            left_alone[path] = module
        elif not keeps_keys or form.keys() <= {*module.state_dict()} or not any(True for _ in module.parameters()):
            is_container = len(form.modules) > 1
            _replace_(module, plain)
            if is_container:
                hide_name(module, form.main)
    return left_alone


def _is_candidate(module: nn.Module, splits_padding: bool) -> bool:
    if splits_padding and type(module) in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        assert isinstance(module, nn.modules.conv._ConvNd)
        return module.padding_mode != "zeros" or numeric_padding(module) is None
    names = [cls.__module__ for cls in type(module).__mro__]
    own = [name for name in names if name.startswith("torchvision_layers.")]
    is_stable = any(not name.startswith(_STAGED) for name in own)
    computes_weight = isinstance(module, CONV_AND_LINEAR) and hasattr(type(module), "folded")  # which is plain then
    is_known = names[0].startswith("torch.nn.modules") or (is_stable and not computes_weight)
    return not is_known and type(module).forward is not nn.Module.forward


def _takes_inputs_of(plain: nn.Module, module: nn.Module) -> bool:
    """Whether ``plain`` has the optional inputs of ``module``, without which its plain form was found."""
    _, *optional = inspect.signature(module.forward).parameters
    return {*optional} <= {*inspect.signature(plain.forward).parameters}


def find_entered(model: nn.Module) -> set[nn.Module]:
    """Modules whose parts or parameters a ``forward`` above them uses directly."""
    parents = [m for m in model.modules() if m._modules and type(m).forward is not nn.Module.forward]
    return {parent.get_submodule(part) for parent in parents for part in trace_forward(parent).parts}


def _replace_(module: nn.Module, other: nn.Module) -> None:
    """Gives ``module`` the class and state of ``other``, in the mode of ``module``; its children keep theirs."""
    own = {*module.children()}
    for new in (other, *other.children()):
        if new not in own:
            new.training = module.training
    module.__class__ = other.__class__
    module.__dict__ = other.__dict__
