"""Layer normalization of whole images or channels, by the native kernel of group normalization."""

from collections.abc import Sequence

import torch
import torch.fx
from torch import Tensor, nn

from ..._utils.checks import check_dtype, check_eps, check_floating, check_input, check_int, is_tensor

__all__ = ["CLayerNorm", "PFLayerNorm"]


@torch.fx.wrap  # one node in a traced graph, which keeps the choice between layouts
def normalize(input: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Group normalization that stays exact where the mean is large, in both layouts.

    torch's kernel for channels_last on the CPU takes the variance as the difference of two sums, which cancel: of
    float32 with mean 1e4 and standard deviation 4 nothing is left. And for the backward pass all kernels keep the mean
    in the type of the parameters, in which half precision has too few digits for it.
    """
    kept = input.dtype if weight is None else weight.dtype
    keeps_digits = not input.requires_grad or (kept != torch.float16 and kept != torch.bfloat16)
    if keeps_digits and input.stride(1) != 1:
        return torch.group_norm(input, groups, weight, bias, eps)
    if keeps_digits and groups == 1 and weight is None:  # in any order, and the memory of an image is contiguous
        pixels = input.permute(0, 2, 3, 1)
        flat = torch.group_norm(pixels.flatten(1).unsqueeze(1), 1, eps=eps)
        return flat.view(pixels.shape).permute(0, 3, 1, 2)
    if keeps_digits and groups > 1 and input.requires_grad:  # the backward of that kernel takes longer than two copies
        output = torch.group_norm(input.contiguous(), groups, weight, bias, eps)
        return output.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    dims = [1, 2, 3] if groups == 1 else [2, 3]
    wide = input
    if input.dtype == torch.float16 or input.dtype == torch.bfloat16:  # whose differences may be beyond its range
        wide = input.float()
        weight = weight.float() if weight is not None else None
        bias = bias.float() if bias is not None else None
    # A shift changes nothing in the result, so no gradient either.
    shifted = wide - wide.detach().mean(dims, keepdim=True)
    return torch.group_norm(shifted, groups, weight, bias, eps).to(input.dtype)


class PFLayerNorm(nn.Module):
    r"""Layer normalization without parameters: :math:`y = (x - \mu) / \sqrt{\sigma^2 + \epsilon}`.

    :math:`\mu` and the biased :math:`\sigma^2` are taken of each image, as in `Layer Normalization
    <https://arxiv.org/abs/1607.06450>`_ (eq. 3), or of each of its channels, as in `Instance Normalization
    <https://arxiv.org/abs/1607.08022>`_ (eq. 2).

    Args:
        dims: ``(1, 2, 3)`` for each image, ``(2, 3)`` for each channel of it. Default: ``(1, 2, 3)``.
        eps: added to the variance, not negative. Default: ``1e-5``.
        device: taken as everywhere; there is nothing to place.
        dtype: taken as everywhere; there is nothing to type.

    Errors: ``ValueError`` for other ``dims``, an ``eps`` that is negative or not finite, an input of another rank or
    with less than two values to normalize; ``TypeError`` for an input that is not of a floating-point type.

    Shape: input and output are both :math:`(N, C, H, W)`.

    Examples::

        >>> enn.PFLayerNorm()(torch.rand(2, 8, 4, 4)).shape
        torch.Size([2, 8, 4, 4])
    """

    def __init__(
        self,
        dims: Sequence[int] = (1, 2, 3),
        eps: float = 1e-5,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dims = _check_dims(dims)
        self.eps = check_eps(eps)

    def forward(self, input: Tensor) -> Tensor:
        _check_values(input, len(self.dims))
        check_floating(input)
        return normalize(input, 1 if len(self.dims) == 3 else input.shape[1], None, None, self.eps)

    def extra_repr(self) -> str:
        return f"dims={self.dims}, eps={self.eps:g}"


class CLayerNorm(nn.Module):
    r"""Layer normalization with a learned scale and shift of each channel: :math:`y_c = \gamma_c \hat x_c + \beta_c`.

    :math:`\hat x` is what :class:`PFLayerNorm` gives; with ``dims=(1, 2, 3)`` this is `Group Normalization
    <https://arxiv.org/abs/1803.08494>`_ (eq. 1 and 6) of a single group.

    Args:
        channels: channels :math:`C` of the input.
        dims: ``(1, 2, 3)`` for each image, ``(2, 3)`` for each channel of it. Default: ``(1, 2, 3)``.
        eps: added to the variance, not negative. Default: ``1e-5``.
        device: where the parameters are made. Default: torch's.
        dtype: type of the parameters. Default: torch's.

    Errors: those of :class:`PFLayerNorm`; ``ValueError`` for a width below 1 or an input of another width;
    ``TypeError`` for an input of another type than the parameters, but for half precision with float32.

    Shape: input and output are both :math:`(N, C, H, W)`.

    Examples::

        >>> enn.CLayerNorm(8)(torch.rand(2, 8, 4, 4)).shape
        torch.Size([2, 8, 4, 4])
    """

    def __init__(
        self,
        channels: int,
        dims: Sequence[int] = (1, 2, 3),
        eps: float = 1e-5,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels = check_int("channels", channels)
        self.dims = _check_dims(dims)
        self.eps = check_eps(eps)
        self.weight = nn.Parameter(torch.ones(channels, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))

    def forward(self, input: Tensor) -> Tensor:
        check_input(input, 4, self.channels)
        _check_values(input, len(self.dims))
        check_dtype(input, self.weight)
        return normalize(input, 1 if len(self.dims) == 3 else self.channels, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.channels}, dims={self.dims}, eps={self.eps:g}"


def _check_dims(dims: object) -> tuple[int, ...]:
    if not isinstance(dims, Sequence) or isinstance(dims, str):
        raise TypeError(f"dims must be (1, 2, 3) or (2, 3), got {dims!r}")
    if tuple(dims) not in ((1, 2, 3), (2, 3)):
        raise ValueError(f"dims must be (1, 2, 3) or (2, 3), got {dims!r}")
    return tuple(dims)


def _check_values(input: Tensor, dims: int) -> None:
    """Raises unless there are images, with two values or more to normalize: of one, nothing but zero is left."""
    if not is_tensor(input):
        return
    if input.dim() != 4:
        raise ValueError(f"input must have 4 dimensions, got {input.dim()}: shape {list(input.shape)}")
    values = input.shape[2] * input.shape[3] * (input.shape[1] if dims == 3 else 1)
    if values < 2:
        raise ValueError(f"input must have at least two values to normalize, got shape {list(input.shape)}")
