"""Channel attention with a reduction ratio instead of squeeze channels."""

import warnings
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
    r"""A :class:`SqueezeExcitation` with ``in_channels // ratio`` squeeze channels. Deprecated; 0.2 removes it.

    Use ``tnn.SqueezeExcitation(channels, channels // ratio, nn.SiLU)``, or
    ``tnn.LazySqueezeExcitation(squeeze_channels, nn.SiLU)``: same results, same checkpoints.

    From `Squeeze-and-Excitation Networks <https://arxiv.org/abs/1709.01507>`_ (eq. 2 to 4; the reduction ratio
    :math:`r` of section 3.2), with SiLU in place of ReLU as in EfficientNet. Without ``in_channels``, the layer infers
    them from the first batch, as :class:`LazySqueezeExcitation` does. Loads checkpoints of
    :class:`SqueezeExcitation`.

    Args:
        in_channels: channels of the input and of the output. Default: ``None``, inferred from the first batch.
        ratio: there are ``in_channels // ratio`` channels between the two pointwise convolutions. Default: ``16``.
        activation: follows the first pointwise convolution. Default: ``nn.SiLU``.
        device: device of the parameters. Default: ``None``, torch's default.
        dtype: dtype of the parameters. Default: ``None``, torch's default.

    Errors: as in :class:`SqueezeExcitation`; ``TypeError`` for a subclass without ``in_channels``, which would lose its
    class at the first batch; ``ValueError`` if ``ratio`` exceeds ``in_channels``, at the first batch if they are
    inferred.

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
        warnings.warn(
            "SEBlock will be removed in 0.2: use tnn.SqueezeExcitation(channels, channels // ratio, nn.SiLU), which "
            "computes the same and loads its checkpoints",
            FutureWarning,
            stacklevel=2,
        )
        self.ratio = check_int("ratio", ratio)
        if in_channels is None:
            if type(self) is not SEBlock:
                raise TypeError(f"in_channels must be an int in a subclass of SEBlock, {type(self).__name__} got None")
            self.__class__ = _LazySEBlock  # the first batch changes it back, as in torch's lazy layers
            # LazySqueezeExcitation follows SEBlock in the method resolution order of the new class.
            super().__init__(1, nn.Identity, device=device, dtype=dtype)  # type: ignore[arg-type]
            if activation is not None:
                self.activation = Builder(device, dtype).module("activation", activation)
        else:
            squeeze = _squeeze_channels(check_int("in_channels", in_channels), ratio)
            super().__init__(in_channels, squeeze, activation, device=device, dtype=dtype)


class _LazySEBlock(SEBlock, LazySqueezeExcitation):
    """An :class:`SEBlock` before its first batch."""

    cls_to_become = SEBlock  # type: ignore[assignment]  # the constructors differ

    def initialize_parameters(self, input: Tensor) -> None:
        """Creates the weights for the channels of ``input``."""
        fc1: Any = self.fc1
        squeeze = _squeeze_channels(self._channels_of(input, fc1), self.ratio)
        if not is_lazy(fc1.weight) and fc1.weight.shape[0] != squeeze:  # a checkpoint was loaded before the first batch
            raise ValueError(
                f"ratio must give the {fc1.weight.shape[0]} squeeze channels of the loaded weights, "
                f"got {self.ratio}, which gives {squeeze}"
            )
        Builder().activation("activation", self.activation, squeeze)  # raises if they do not match
        self.squeeze_channels = fc1.out_channels = squeeze
        super().initialize_parameters(input)


def _squeeze_channels(in_channels: int, ratio: int) -> int:
    if in_channels < ratio:
        raise ValueError(f"ratio must be at most in_channels={in_channels}, got {ratio}")
    return in_channels // ratio
