"""Linear layer with normalization, dropout and activation."""

from collections import OrderedDict

import torch
import torch.fx
from torch import Tensor, nn

from .._utils.checks import check_bool, check_int, check_matrix, check_probability, check_size
from .._utils.construct import Builder, LayerArgument

__all__ = ["LinearDropoutAct"]


class LinearDropoutAct(nn.Sequential):
    r"""Linear layer, normalization, dropout, activation: :math:`y = a(d(n(x A^T + b)))`.

    Dropout as in `Srivastava et al. <https://jmlr.org/papers/v15/srivastava14a.html>`_ (section 4): in training it
    zeroes each value with probability ``dropout`` and scales up the others; in eval mode it is the identity.

    Args:
        in_features: size of the last dimension of the input.
        out_features: size of the last dimension of the output.
        bias: whether the linear layer has a bias. Default: ``True``.
        dropout: probability of zeroing a value, in [0, 1]. Default: ``0.0``.
        activation_layer: called with ``inplace`` if it takes it; ``None`` for none. Default: ``nn.ReLU``.
        inplace: passed to dropout and activation; ``None`` keeps their defaults. Default: ``None``.
        norm_layer: called with ``out_features``; ``None`` for none. Default: ``None``.
        device: device of the parameters. Default: ``None``, torch's default.
        dtype: dtype of the parameters. Default: ``None``, torch's default.

    A layer argument is a constructor, or a module that is copied. Errors: ``TypeError`` for an argument of the wrong
    type; ``ValueError`` for a number out of range, an instance with the wrong number of features, or an input of the
    wrong shape.

    Shape: input :math:`(*, F_{in})`, output :math:`(*, F_{out})`; with ``nn.BatchNorm1d`` :math:`(N, F_{in})`.

    Examples::

        >>> tnn.LinearDropoutAct(16, 4, dropout=0.2)(torch.rand(2, 16)).shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        dropout: float = 0.0,
        activation_layer: LayerArgument | None = nn.ReLU,
        inplace: bool | None = None,
        *,
        norm_layer: LayerArgument | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        in_features = check_int("in_features", in_features)
        out_features = check_int("out_features", out_features)
        probability = check_probability("dropout", dropout)
        check_bool("bias", bias)
        if inplace is not None:
            check_bool("inplace", inplace)
        build = Builder(device, dtype)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["linear"] = nn.Linear(in_features, out_features, bias, device=device, dtype=dtype)
        if norm_layer is not None:
            layers["norm"] = build.norm("norm_layer", norm_layer, out_features)
        layers["dropout"] = nn.Dropout(probability, inplace=bool(inplace))
        if activation_layer is not None:
            layers["activation"] = build.activation("activation_layer", activation_layer, out_features, inplace)
        super().__init__(layers)
        self.needs_matrix = isinstance(layers.get("norm"), nn.BatchNorm1d)
        self.in_features = in_features
        self.out_features = out_features

    def forward(self, input: Tensor) -> Tensor:
        check_size(input, -1, self.in_features)
        if self.needs_matrix:
            check_matrix(input)
        for layer in self:
            input = layer(input)
        return input
