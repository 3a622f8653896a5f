"""Multi-layer perceptron."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .._utils.checks import check_bool, check_int, check_matrix, check_probability, check_size
from .._utils.construct import Builder, LayerArgument

__all__ = ["MLP"]


class MLP(nn.Sequential):
    r"""Linear layers, each but the last followed by normalization, activation and dropout, the last by dropout alone.

    The feed-forward network of a `Transformer <https://arxiv.org/abs/1706.03762>`_ (eq. 2), of any depth. Drop-in for
    ``torchvision.ops.MLP``: call signatures and checkpoints work unchanged.

    Args:
        in_channels: size of the last dimension of the input.
        hidden_channels: output features of each linear layer; the last entry is the size of the output.
        norm_layer: called with the features of each hidden layer; ``None`` for none. Default: ``None``.
        activation_layer: called with ``inplace`` if it takes it; ``None`` for none. Default: ``nn.ReLU``.
        inplace: passed to the activations and the last dropout; ``None`` keeps their defaults. Default: ``None``.
        bias: whether the linear layers have a bias. Default: ``True``.
        dropout: probability of zeroing a value, in [0, 1]. Default: ``0.0``.
        device: device of the parameters. Default: ``None``, torch's default.
        dtype: dtype of the parameters. Default: ``None``, torch's default.

    A layer argument is a constructor, or a module that is copied for each use. Errors: ``TypeError`` for an argument
    of the wrong type; ``ValueError`` for a number out of range, empty ``hidden_channels``, an instance with the wrong
    number of features, or an input of the wrong shape.

    Shape: input :math:`(*, C_{in})`, output :math:`(*, C_{out})`; with ``nn.BatchNorm1d`` :math:`(N, C_{in})`.

    Examples::

        >>> tnn.MLP(8, [32, 8], activation_layer=nn.GELU)(torch.rand(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: Sequence[int],
        norm_layer: LayerArgument | None = None,
        activation_layer: LayerArgument | None = nn.ReLU,
        inplace: bool | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        channels = check_int("in_channels", in_channels)
        if isinstance(hidden_channels, str) or not isinstance(hidden_channels, Sequence) or not hidden_channels:
            raise ValueError(f"hidden_channels must be a non-empty sequence of ints, got {hidden_channels!r}")
        probability = check_probability("dropout", dropout)
        check_bool("bias", bias)
        if inplace is not None:
            check_bool("inplace", inplace)
        build = Builder(device, dtype)
        layers: list[nn.Module] = []
        for i, hidden in enumerate(hidden_channels, start=1):
            check_int("hidden_channels", hidden)
            layers.append(nn.Linear(channels, hidden, bias, device=device, dtype=dtype))
            is_last = i == len(hidden_channels)
            if not is_last:
                if norm_layer is not None:
                    layers.append(build.norm("norm_layer", norm_layer, hidden))
                layers.append(build.activation("activation_layer", activation_layer, hidden, inplace))
            # The backward pass of an activation may need its output, so dropout must not overwrite it.
            layers.append(nn.Dropout(probability, inplace=bool(inplace) and is_last))
            channels = hidden
        super().__init__(*layers)
        self.needs_matrix = any(isinstance(layer, nn.BatchNorm1d) for layer in layers)
        self.in_channels = in_channels
        self.out_channels = channels

    def forward(self, input: Tensor) -> Tensor:
        check_size(input, -1, self.in_channels)
        if self.needs_matrix:
            check_matrix(input)
        for layer in self:
            input = layer(input)
        return input
