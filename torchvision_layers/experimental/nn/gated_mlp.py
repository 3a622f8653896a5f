"""Multi-layer perceptron with a gate."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..._utils.checks import check_bool, check_int, check_probability, check_size
from ..._utils.construct import Builder, LayerArgument
from ._tokens import build_token_norm

__all__ = ["GatedMLP"]


class GatedMLP(nn.Module):
    r"""A linear layer for values and their gates, and another for the products: :math:`y = W_2 (a(W x) \odot V x)`.

    From `GLU Variants Improve Transformer <https://arxiv.org/abs/2002.05202>`_ (eq. 5 and 6): SwiGLU with
    ``activation_layer=nn.SiLU``, GEGLU with ``nn.GELU``, and its other variants with ``nn.Sigmoid``, ``nn.ReLU`` and
    ``nn.Identity``. The paper has no biases, and two thirds of the hidden channels of an ungated layer, which keeps the
    number of parameters. Called like :class:`~torchvision_layers.nn.MLP`. Loads checkpoints of timm's ``SwiGLUPacked``,
    and of its ``GluMlp`` with ``gate_last=False``; their ``hidden_features`` are twice ours.

    Args:
        in_channels: size of the last dimension of the input.
        hidden_channels: features between the linear layers, and of the output.
        norm_layer: normalizes the product, called with its features; ``None`` for none. Default: ``None``.
        activation_layer: activation of the gate; ``None`` for none. Default: ``nn.SiLU``.
        bias: whether the linear layers have a bias. Default: ``True``.
        dropout: probability of zeroing a value of the product or of the output, in [0, 1]. Default: ``0.0``.
        device: device of the parameters. Default: ``None``, torch's default.
        dtype: dtype of the parameters. Default: ``None``, torch's default.

    A layer argument is a constructor, or a module that is copied. Errors: ``TypeError`` for an argument of the wrong
    type or a norm over another dimension than the last; ``ValueError`` for a number out of range, ``hidden_channels``
    that are not two numbers, or an input of the wrong size.

    Shape: input :math:`(*, C_{in})`, output :math:`(*, C_{out})`.

    Examples::

        >>> enn.GatedMLP(64, [128, 64])(torch.rand(2, 50, 64)).shape
        torch.Size([2, 50, 64])
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: Sequence[int],
        norm_layer: LayerArgument | None = None,
        activation_layer: LayerArgument | None = nn.SiLU,
        bias: bool = True,
        dropout: float = 0.0,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = check_int("in_channels", in_channels)
        is_sequence = isinstance(hidden_channels, Sequence) and not isinstance(hidden_channels, str)
        if not is_sequence or len(hidden_channels) != 2:
            raise ValueError(
                "hidden_channels must be two ints, the features between the linear layers and of the output, "
                f"got {hidden_channels!r}"
            )
        hidden, self.out_channels = (check_int("hidden_channels", features) for features in hidden_channels)
        check_bool("bias", bias)
        probability = check_probability("dropout", dropout)
        build = Builder(device, dtype)
        self.fc1 = nn.Linear(in_channels, 2 * hidden, bias, device=device, dtype=dtype)
        self.activation = build.activation("activation_layer", activation_layer, hidden)
        self.norm = build_token_norm(build, "norm_layer", norm_layer, hidden)
        self.fc2 = nn.Linear(hidden, self.out_channels, bias, device=device, dtype=dtype)
        self.dropout = nn.Dropout(probability)

    def forward(self, input: Tensor) -> Tensor:
        check_size(input, -1, self.in_channels)
        gate, value = self.fc1(input).chunk(2, -1)
        product = self.norm(self._multiply(self.activation(gate), value))
        return self.dropout(self.fc2(self.dropout(product)))

    def _multiply(self, gate: Tensor, value: Tensor) -> Tensor:
        return gate * value
