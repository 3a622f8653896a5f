"""Channel attention by a ratio instead of a width."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..._utils.checks import check_int
from ..._utils.construct import Builder, LayerArgument
from ...layers.lazy import LazySqueezeExcitation
from ...layers.squeeze_excitation import SqueezeExcitation

__all__ = ["SEBlock"]


class SEBlock(SqueezeExcitation):
    r"""A :class:`SqueezeExcitation` whose width between the projections is that of its input by a ratio.

    From `Squeeze-and-Excitation Networks <https://arxiv.org/abs/1709.01507>`_ (eq. 2 to 4; the reduction ratio
    :math:`r` of section 3.2), with SiLU in place of ReLU as in EfficientNet. Without ``in_channels`` it reads them
    from the first batch, as :class:`LazySqueezeExcitation` does, and is an :class:`SEBlock` like any other from then.
    Checkpoints of :class:`SqueezeExcitation` fit.

    Args:
        in_channels: channels of the input and of the output. Default: ``None``, those of the first batch.
        ratio: the width between the projections is ``in_channels // ratio``. Default: ``16``.
        activation: after the first projection. Default: ``nn.SiLU``.
        device: where the parameters are made. Default: torch's.
        dtype: type of the parameters. Default: torch's.

    Errors: those of :class:`SqueezeExcitation`; ``TypeError`` for a subclass without ``in_channels``, which would lose
    its class at the first batch; ``ValueError`` where ``ratio`` leaves no channel, which is known at
    the first batch if ``in_channels`` is not given.

    Shape: input and output are both :math:`(N, C, H, W)`.

    Examples::

        >>> enn.SEBlock(32)(torch.rand(2, 32, 8, 8)).shape
        torch.Size([2, 32, 8, 8])
        >>> block = enn.SEBlock(ratio=4)
        >>> block(torch.rand(2, 32, 8, 8)).shape, block.squeeze_channels
        (torch.Size([2, 32, 8, 8]), 8)
    """

    def __init__(
        self,
        in_channels: int | None = None,
        ratio: int = 16,
        activation: LayerArgument = nn.SiLU,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.ratio = check_int("ratio", ratio)
        if in_channels is None:
            if type(self) is not SEBlock:
                raise TypeError(f"in_channels must be given to a subclass of SEBlock, {type(self).__name__} got None")
            self.__class__ = _LazySEBlock  # as torch's lazy layers change theirs at the first batch
            # LazySqueezeExcitation comes next in the order of the class that this one is now.
            super().__init__(1, nn.Identity, device=device, dtype=dtype)  # type: ignore[arg-type]
            if activation is not None:
                self.activation = Builder(device, dtype).module("activation", activation)
        else:
            squeeze = _squeeze_channels(check_int("in_channels", in_channels), ratio)
            super().__init__(in_channels, squeeze, activation, device=device, dtype=dtype)


class _LazySEBlock(SEBlock, LazySqueezeExcitation):
    """An :class:`SEBlock` before its first batch."""

    cls_to_become = SEBlock  # type: ignore[assignment]  # of another signature

    def initialize_parameters(self, input: Tensor) -> None:
        """Makes the weights for the channels of ``input``."""
        fc1: Any = self.fc1
        squeeze = _squeeze_channels(self._channels_of(input, fc1), self.ratio)
        if not is_lazy(fc1.weight) and fc1.weight.shape[0] != squeeze:  # a checkpoint came before the batch
            raise ValueError(f"ratio {self.ratio} gives {squeeze} channels, the weights have {fc1.weight.shape[0]}")
        Builder().activation("activation", self.activation, squeeze)  # fits, or raises
        self.squeeze_channels = fc1.out_channels = squeeze
        super().initialize_parameters(input)


def _squeeze_channels(in_channels: int, ratio: int) -> int:
    if in_channels < ratio:
        raise ValueError(f"ratio must leave at least one channel of in_channels, got {ratio} for {in_channels}")
    return in_channels // ratio
