"""Classifier on feature maps or feature vectors."""

from functools import partial

import torch
from torch import Tensor, nn

from ..._utils.checks import check_bool, check_floating, check_input, check_int, check_probability, is_tensor
from ..._utils.construct import Builder, LayerArgument

__all__ = ["ClassifierHead"]

_GLOBAL_AVERAGE = partial(nn.AdaptiveAvgPool2d, 1)


class ClassifierHead(nn.Module):
    r"""Global pooling, normalization, dropout and a linear classifier: :math:`y = W d(n(\mathrm{pool}(x))) + b`.

    The last layers of most classifiers: of `ResNet <https://arxiv.org/abs/1512.03385>`_ (table 1) without a norm, of
    `ConvNeXt <https://arxiv.org/abs/2201.03545>`_ with ``norm_layer=nn.LayerNorm``, of a vision transformer with
    ``pool_layer=None``, called with the class token. Loads checkpoints of timm's ``ClassifierHead``, and of its
    ``NormMlpClassifierHead`` without a hidden layer.

    Args:
        in_channels: channels of the input.
        num_classes: size of the output.
        pool_layer: reduces an image to one pixel, called with nothing; ``None`` if the input is a vector. Default:
            ``nn.AdaptiveAvgPool2d`` with ``output_size=1``.
        norm_layer: normalizes the pooled vector, called with ``in_channels``; ``None`` for none. Default: ``None``.
        dropout: probability of zeroing an input of the classifier, in [0, 1]. Default: ``0.0``.
        bias: whether each class has a learned bias. Default: ``True``.
        device: device of the parameters. Default: ``None``, torch's default.
        dtype: dtype of the parameters. Default: ``None``, torch's default.

    A layer argument is a constructor, or a module that is copied. Errors: ``TypeError`` for an argument of the wrong
    type; ``ValueError`` for a number out of range, an instance with the wrong number of channels, an input with another
    number of dimensions or channels or without pixels, or a pool that leaves more than one pixel.

    Shape: input :math:`(N, C, H, W)`, or :math:`(N, C)` with ``pool_layer=None``; output :math:`(N, K)`, where
    :math:`K` is ``num_classes``.

    Examples::

        >>> enn.ClassifierHead(64, 10, norm_layer=nn.LayerNorm, dropout=0.2)(torch.rand(2, 64, 7, 7)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        pool_layer: LayerArgument | None = _GLOBAL_AVERAGE,
        norm_layer: LayerArgument | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = check_int("in_channels", in_channels)
        self.out_channels = check_int("num_classes", num_classes)
        probability = check_probability("dropout", dropout)
        check_bool("bias", bias)
        build = Builder(device, dtype)
        self.pool = None if pool_layer is None else build.module("pool_layer", pool_layer)
        self.norm = nn.Identity() if norm_layer is None else build.norm("norm_layer", norm_layer, in_channels)
        self.dropout = nn.Dropout(probability)
        self.fc = nn.Linear(in_channels, num_classes, bias, device=device, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        if self.pool is not None:
            check_input(input, 4, self.in_channels, needs_pixels=True)
            check_floating(input)
            input = self.pool(input).flatten(1)
            self._check_pooled(input)
        else:
            check_input(input, 2, self.in_channels)
        return self.fc(self.dropout(self.norm(input)))

    def _check_pooled(self, vector: Tensor) -> None:
        if is_tensor(vector) and vector.shape[1] != self.in_channels:
            raise ValueError(
                f"pool_layer must return one value for each of {self.in_channels} channels, got {vector.shape[1]}"
            )
