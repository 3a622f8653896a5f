"""Layer normalization of whole images or single channels, by torch's kernel for group normalization."""

from collections.abc import Sequence

import torch
import torch.fx
from torch import Tensor, nn

from ..._utils.checks import check_dtype, check_eps, check_floating, check_input, check_int, is_tensor

__all__ = ["CLayerNorm", "PFLayerNorm"]


@torch.fx.wrap  # stays one node in a traced graph, so that the choice between layouts survives
def normalize(input: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Group normalization that stays accurate for large means, in both memory layouts.

    On the CPU, torch's kernel for channels_last computes the variance as the difference of two sums. They cancel: no
    correct digit is left for float32 values with mean 1e4 and standard deviation 4. All kernels also save the mean for
    the backward pass in the dtype of the parameters, and half precision has too few digits for it.
    """
    saved_dtype = input.dtype if weight is None else weight.dtype
    is_accurate = not input.requires_grad or (saved_dtype != torch.float16 and saved_dtype != torch.bfloat16)
    if is_accurate and input.stride(1) != 1:
        return torch.group_norm(input, groups, weight, bias, eps)
    if is_accurate and groups == 1 and weight is None:  # order is irrelevant, and each image is contiguous in memory
        pixels = input.permute(0, 2, 3, 1)
        flat = torch.group_norm(pixels.flatten(1).unsqueeze(1), 1, eps=eps)
        return flat.view(pixels.shape).permute(0, 3, 1, 2)
    if is_accurate and groups > 1 and input.requires_grad:  # two copies are faster than that kernel's backward pass
        output = torch.group_norm(input.contiguous(), groups, weight, bias, eps)
        return output.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    dims = [1, 2, 3] if groups == 1 else [2, 3]
    wide = input
    if input.dtype == torch.float16 or input.dtype == torch.bfloat16:  # differences could overflow half precision
        wide = input.float()
        weight = weight.float() if weight is not None else None
        bias = bias.float() if bias is not None else None
    # The result does not depend on the shift, so it needs no gradient.
    shifted = wide - wide.detach().mean(dims, keepdim=True)
    return torch.group_norm(shifted, groups, weight, bias, eps).to(input.dtype)


class PFLayerNorm(nn.Module):
    r"""Layer normalization without parameters: :math:`y = (x - \mu) / \sqrt{\sigma^2 + \epsilon}`.

    Mean :math:`\mu` and biased variance :math:`\sigma^2` are computed over each image, as in `Layer Normalization
    <https://arxiv.org/abs/1607.06450>`_ (eq. 3), or over each channel of each image, as in `Instance Normalization
    <https://arxiv.org/abs/1607.08022>`_ (eq. 2).

    Args:
        dims: ``(1, 2, 3)`` to normalize each image, ``(2, 3)`` each of its channels. Default: ``(1, 2, 3)``.
        eps: added to the variance; not negative. Default: ``1e-5``.
        device: accepted for a uniform signature; the layer has no parameters.
        dtype: accepted for a uniform signature; the layer has no parameters.

    Errors: ``ValueError`` for other ``dims``, an ``eps`` that is negative or not finite, or an input that is not 4-D or
    has fewer than two values to normalize; ``TypeError`` for an input without a floating-point dtype.

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
    r"""Layer normalization with a learned scale and shift per channel: :math:`y_c = \gamma_c \hat x_c + \beta_c`.

    :math:`\hat x` is the output of :class:`PFLayerNorm`. With ``dims=(1, 2, 3)`` this is `Group Normalization
    <https://arxiv.org/abs/1803.08494>`_ (eq. 1 and 6) with a single group.

    Args:
        channels: channels :math:`C` of the input.
        dims: ``(1, 2, 3)`` to normalize each image, ``(2, 3)`` each of its channels. Default: ``(1, 2, 3)``.
        eps: added to the variance; not negative. Default: ``1e-5``.
        device: device of the parameters. Default: ``None``, torch's default.
        dtype: dtype of the parameters. Default: ``None``, torch's default.

    Errors: as in :class:`PFLayerNorm`; ``ValueError`` for ``channels`` below 1 or an input with another number of
    channels; ``TypeError`` for an input whose dtype differs from the parameters', except half precision with float32.

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
    """Raises unless ``input`` is 4-D with at least two values to normalize: a single one always becomes zero."""
    if not is_tensor(input):
        return
    if input.dim() != 4:
        raise ValueError(f"input must have 4 dimensions, got {input.dim()}: shape {list(input.shape)}")
    values = input.shape[2] * input.shape[3] * (input.shape[1] if dims == 3 else 1)
    if values < 2:
        raise ValueError(f"input must have at least two values to normalize, got shape {list(input.shape)}")
