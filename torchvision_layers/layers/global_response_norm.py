"""Normalization of each channel by its norm over the image, relative to the other channels."""

import torch
import torch.fx
from torch import Tensor, nn

from .._utils.checks import check_dtype, check_eps, check_int, check_size, is_tensor

__all__ = ["GlobalResponseNorm"]


@torch.fx.wrap  # stays one node in a traced graph, so that the number of dimensions stays free
def _global_response_norm(input: Tensor, weight: Tensor, bias: Tensor, eps: float, channels_dim: int) -> Tensor:
    pixels = [dim for dim in range(1, input.dim() - 1)]
    if channels_dim == 1:
        pixels = [dim + 1 for dim in pixels]
        shape = [-1] + [1] * len(pixels)
        weight, bias = weight.reshape(shape), bias.reshape(shape)
    response = torch.linalg.vector_norm(input, 2.0, pixels, keepdim=True)
    relative = response / (response.mean(channels_dim, keepdim=True) + eps)
    # All terms of the equation in one pass over the input.
    return torch.addcmul(bias, input, 1 + weight * relative)


class GlobalResponseNorm(nn.Module):
    r"""Global response normalization: :math:`y_c = x_c + \gamma_c x_c G_c / (\bar G + \epsilon) + \beta_c`.

    From `ConvNeXt V2 <https://arxiv.org/abs/2301.00808>`_ (eq. 1 to 3 and algorithm 1): :math:`G_c` is the L2 norm of
    channel :math:`c` over the image, and :math:`\bar G` the mean of these norms over the channels. Channels with large
    responses inhibit the others, so that no two learn the same. :math:`\gamma` and :math:`\beta` are zero at first,
    when the layer returns its input. In a block: ``tnn.ConvNeXtBlock(dim, hidden_norm_layer=tnn.GlobalResponseNorm,
    layer_scale=None)``. Loads checkpoints of timm's layer.

    Args:
        dim: channels of the input.
        eps: added to the mean of the norms; not negative. Default: ``1e-6``.
        channels_dim: dimension of the channels, ``1`` or ``-1``. Default: ``-1``.
        device: device of the parameters. Default: ``None``, torch's default.
        dtype: dtype of the parameters. Default: ``None``, torch's default.

    Errors: ``ValueError`` for ``dim`` below 1, another ``channels_dim``, an ``eps`` that is negative or not finite, or
    an input with fewer than 3 dimensions or another number of channels; ``TypeError`` for an input whose dtype differs
    from the parameters', except half precision with float32.

    Shape: input and output are both :math:`(N, *, C)`, or :math:`(N, C, *)` with ``channels_dim=1``; :math:`*` is one
    or more dimensions.

    Examples::

        >>> layer = tnn.GlobalResponseNorm(8)
        >>> layer(torch.rand(2, 16, 16, 8)).shape
        torch.Size([2, 16, 16, 8])
    """

    def __init__(
        self,
        dim: int,
        eps: float = 1e-6,
        channels_dim: int = -1,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim = check_int("dim", dim)
        self.eps = check_eps(eps)
        if check_int("channels_dim", channels_dim, minimum=-1) not in (1, -1):
            raise ValueError(f"channels_dim must be 1 or -1, got {channels_dim!r}")
        self.channels_dim = channels_dim
        self.weight = nn.Parameter(torch.zeros(dim, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(dim, device=device, dtype=dtype))

    def forward(self, input: Tensor) -> Tensor:
        if is_tensor(input) and input.dim() < 3:
            raise ValueError(f"input must have at least 3 dimensions, got {input.dim()}: shape {list(input.shape)}")
        check_size(input, self.channels_dim, self.dim)
        check_dtype(input, self.weight)
        return _global_response_norm(input, self.weight, self.bias, self.eps, self.channels_dim)

    def extra_repr(self) -> str:
        return f"{self.dim}, eps={self.eps:g}, channels_dim={self.channels_dim}"
