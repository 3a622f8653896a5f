"""Layer normalization over channels, and a learned scale per channel."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._utils.checks import check_bool, check_dtype, check_eps, check_input, check_int, check_number, check_size

__all__ = ["LayerNorm2d", "LayerScale"]


class LayerNorm2d(nn.LayerNorm):
    r"""`Layer Normalization <https://arxiv.org/abs/1607.06450>`_ (eq. 4) of each pixel over its channels.

    `ConvNeXt <https://arxiv.org/abs/2201.03545>`_ uses it between stages. Loads checkpoints of torchvision's
    ``LayerNorm2d``.

    Args:
        num_channels: channels :math:`C` of the input.
        eps: added to the variance; not negative. Default: ``1e-6``.
        elementwise_affine: whether each channel has a learned scale and shift. Default: ``True``.
        device: device of the parameters. Default: ``None``, torch's default.
        dtype: dtype of the parameters. Default: ``None``, torch's default.

    Errors: ``ValueError`` for ``num_channels`` below 1, an ``eps`` that is negative or not finite, or an input with
    another number of dimensions or channels; ``TypeError`` for an input whose dtype differs from the parameters',
    except half precision with float32.

    Shape: input and output are both :math:`(N, C, H, W)`; a ``channels_last`` input is not copied.

    Examples::

        >>> tnn.LayerNorm2d(8)(torch.rand(2, 8, 4, 4)).shape
        torch.Size([2, 8, 4, 4])
    """

    def __init__(
        self,
        num_channels: int,
        eps: float = 1e-6,
        elementwise_affine: bool = True,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_int("num_channels", num_channels)
        check_bool("elementwise_affine", elementwise_affine)
        super().__init__(num_channels, check_eps(eps), elementwise_affine, device=device, dtype=dtype)
        self.num_channels = num_channels

    def forward(self, input: Tensor) -> Tensor:
        check_input(input, 4, self.num_channels)
        check_dtype(input, self.weight)
        pixels = F.layer_norm(input.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return pixels.permute(0, 3, 1, 2)


class LayerScale(nn.Module):
    r"""Multiplies each channel by a learned factor that starts small: :math:`y_c = \gamma_c x_c`.

    From `Going deeper with Image Transformers <https://arxiv.org/abs/2103.17239>`_ (eq. 4).

    Args:
        dim: channels of the input.
        init_value: initial value of every :math:`\gamma_c`. Default: ``1e-6``.
        channels_dim: dimension of the channels, ``1`` for images or ``-1`` for sequences. Default: ``1``.
        device: device of the parameters. Default: ``None``, torch's default.
        dtype: dtype of the parameters. Default: ``None``, torch's default.

    Errors: ``ValueError`` for ``dim`` below 1, another ``channels_dim``, an ``init_value`` that is not finite, or an
    input with another number of channels; ``TypeError`` for an input whose dtype differs from the parameters', except
    half precision with float32.

    Shape: input and output are both :math:`(N, C, *)`, or :math:`(*, C)` with ``channels_dim=-1``.

    Examples::

        >>> tnn.LayerScale(8, 0.5)(torch.ones(2, 8, 4, 4)).mean()
        tensor(0.5000, grad_fn=<MeanBackward0>)
    """

    def __init__(
        self,
        dim: int,
        init_value: float = 1e-6,
        channels_dim: int = 1,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim = check_int("dim", dim)
        if check_int("channels_dim", channels_dim, minimum=-1) not in (1, -1):
            raise ValueError(f"channels_dim must be 1 or -1, got {channels_dim!r}")
        init_value = check_number("init_value", init_value)
        self.channels_dim = channels_dim
        self.weight = nn.Parameter(torch.full((dim,), init_value, device=device, dtype=dtype))

    def forward(self, input: Tensor) -> Tensor:
        check_size(input, self.channels_dim, self.dim)
        check_dtype(input, self.weight)
        if self.channels_dim == -1:
            return input * self.weight
        return input * self.weight.reshape([-1] + [1] * (input.dim() - 2))

    def extra_repr(self) -> str:
        return f"{self.dim}, channels_dim={self.channels_dim}"
