"""Batch normalization with fixed statistics and affine parameters."""

import torch
import torchvision.ops
from torch import Tensor
from torch.nn import functional as F

from .._utils.checks import check_dtype, check_eps, check_input, check_int

__all__ = ["FrozenBatchNorm2d"]


class FrozenBatchNorm2d(torchvision.ops.FrozenBatchNorm2d):
    r"""Batch norm with fixed statistics and parameters: :math:`y = w (x - \mu) / \sqrt{\sigma^2 + \epsilon} + b`.

    Normalizes in training as `Batch Normalization <https://arxiv.org/abs/1502.03167>`_ does in inference (algorithm 2).
    Use it to fine-tune a pretrained backbone on batches that are too small to estimate statistics. Computes the same as
    ``torchvision.ops.FrozenBatchNorm2d``, faster, and checks its input.

    Args:
        num_features: channels :math:`C` of the input.
        eps: added to the variance; not negative. Default: ``1e-5``.
        device: device of the buffers. Default: ``None``, torch's default.
        dtype: dtype of the buffers. Default: ``None``, torch's default.

    Errors: ``ValueError`` for ``num_features`` below 1, an ``eps`` that is negative or not finite, or an input with
    another number of dimensions or channels; ``TypeError`` for an input whose dtype differs from the buffers', except
    half precision with float32.

    Shape: input and output are both :math:`(N, C, H, W)`.

    Examples::

        >>> tnn.FrozenBatchNorm2d(8)(torch.rand(2, 8, 4, 4)).shape
        torch.Size([2, 8, 4, 4])
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_int("num_features", num_features)
        super().__init__(num_features, check_eps(eps))
        self.num_features = num_features
        if device is not None or dtype is not None:
            self.to(device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, 4, self.num_features)
        check_dtype(x, self.weight)
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        # The backward pass of torch's kernel prepares gradients of the statistics, which are constants here.
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        output = (x * scale.reshape(-1, 1, 1)).add_(shift.reshape(-1, 1, 1))
        return output.to(x.dtype)  # the kernel above also returns the dtype of x in mixed precision
