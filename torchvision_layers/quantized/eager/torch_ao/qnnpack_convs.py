"""Qnnpack convolutions that follow the zero point of their input."""

from functools import cache
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch.ao.nn.quantized as nnq
from torch import Tensor, nn

__all__ = ["FollowsZeroPoint", "check_scriptable", "checking_class", "follow_zero_points"]

#: The zero point that the padding of a convolution was made for, and the convolutions that got several. TorchScript
#: would not accept them as attributes.
_zero_points = WeakKeyDictionary[Any, int]()
_with_several = WeakSet[Any]()


def follow_zero_points(model: nn.Module) -> None:
    """Lets padded convolutions look at the zero point of their input, in place.

    Qnnpack fills the padding for the first zero point, and again only for another scale.
    """
    for module in model.modules():
        if isinstance(module, (nnq.Conv1d, nnq.Conv2d, nnq.Conv3d)) and any(module.padding):
            module.__class__ = checking_class(FollowsZeroPoint, type(module))  # type: ignore[assignment]


def check_scriptable(path: str, module: nn.Module) -> None:
    """Errors: ``RuntimeError`` for a convolution that got several zero points, which TorchScript cannot follow."""
    if module in _with_several:
        raise RuntimeError(
            f"{path} gets inputs with several zero points, for which qnnpack's padding is wrong in a scripted model: "
            "trace the model, or give each call a layer of its own"
        )


class FollowsZeroPoint:
    """A mixin that packs the weight again for another zero point."""

    def forward(self, input: Tensor) -> Tensor:
        zero_point = input.q_zero_point()
        if _zero_points.setdefault(self, zero_point) != zero_point:
            self.set_weight_bias(*self._weight_bias())  # type: ignore[attr-defined]
            _with_several.add(self)
            _zero_points[self] = zero_point
        return super().forward(input)  # type: ignore[misc]


@cache
def checking_class(mixin: type, cls: type[nn.Module]) -> type[nn.Module]:
    """A class with the name of ``cls`` whose ``forward`` is that of ``mixin``; ``unchecked`` is ``cls``."""
    attributes: dict[str, Any] = {"__module__": cls.__module__, "unchecked": cls}
    if hasattr(cls, "kernel_class"):
        attributes["kernel_class"] = cls  # whose kernel would not check inputs
    return type(cls.__name__, (mixin, cls), attributes)
