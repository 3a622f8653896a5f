"""Convolutions with standardized filters."""

import torch
import torch.fx
from torch import Tensor, nn

from .._utils.checks import check_eps, check_input, check_number
from .._utils.construct import Builder, LayerArgument
from .checked_conv import CheckedConv2d

__all__ = ["SWSConv2d", "WSConv2d"]


@torch.fx.wrap  # stays one node in a traced graph, so that the choice between layouts survives
def standardize(weight: Tensor, scale: float, eps: float) -> Tensor:
    """Gives every filter mean 0 and standard deviation ``scale``; ``eps`` is added to the biased variance.

    Runs one native kernel over the weights in memory order, so that nothing is copied.
    """
    is_channels_last = weight.stride(1) == 1
    filters = weight.permute(0, 2, 3, 1) if is_channels_last else weight
    gain = weight.new_full((weight.shape[0],), scale)
    flat = filters.reshape(1, weight.shape[0], -1)
    filters = torch.group_norm(flat, weight.shape[0], gain, eps=eps).view(filters.shape)
    return filters.permute(0, 3, 1, 2) if is_channels_last else filters


class WSConv2d(CheckedConv2d):
    r"""Convolution with standardized filters: :math:`\hat W_o = (W_o - \mu_o) / \sqrt{\sigma_o^2 + \epsilon}`.

    From `Micro-Batch Training with Batch-Channel Normalization and Weight Standardization
    <https://arxiv.org/abs/1903.10520>`_ (eq. 5 to 7): mean :math:`\mu_o` and biased variance :math:`\sigma_o^2` are
    computed over all weights of filter :math:`o`; :math:`\epsilon` is inside the root. Designed for networks with group
    normalization and small batches. Loads checkpoints of ``nn.Conv2d``.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: size of the kernel, an int or (height, width).
        stride: stride of the convolution. Default: ``1``.
        padding: padding on each side, or ``"same"`` or ``"valid"``. Default: ``0``.
        dilation: spacing between kernel elements. Default: ``1``.
        groups: number of channel groups; divides ``in_channels`` and ``out_channels``. Default: ``1``.
        bias: whether each output channel has a learned bias. Default: ``True``.
        padding_mode: as in ``nn.Conv2d``. Default: ``"zeros"``.
        eps: added to the variance; above 0. It is far smaller than in a normalization of features, because the
            variance of a large filter's weights is about ``1e-5``. If all weights of a filter are equal, the
            standardized filter is zero, and gradients of the weights are up to :math:`\epsilon^{-1/2}` times those of
            the standardized filter. Default: ``1e-10``.
        device: device of the parameters. Default: ``None``, torch's default.
        dtype: dtype of the parameters. Default: ``None``, torch's default.

    Errors: ``TypeError`` for an argument of the wrong type; ``ValueError`` for a number out of range, filters with a
    single weight, which standardization would make zero, or an input with another number of dimensions or channels.

    Shape: input :math:`(N, C_{in}, H, W)`, output :math:`(N, C_{out}, H', W')` as for ``nn.Conv2d``.

    Examples::

        >>> tnn.WSConv2d(3, 8, 3, padding=1)(torch.rand(2, 3, 16, 16)).shape
        torch.Size([2, 8, 16, 16])
        >>> layer = tnn.ConvNormAct(8, 16, conv_layer=tnn.WSConv2d, norm_layer=partial(nn.GroupNorm, 4))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        eps: float = 1e-10,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self.eps = check_eps(eps)
        if self.eps == 0.0:
            raise ValueError("eps must be above 0, so that a filter of equal weights is not NaN, got 0")
        self.scale = 1.0
        self.fan_in = self.weight[0].numel()
        if self.fan_in == 1:
            raise ValueError(
                "in_channels / groups * kernel_size must give each filter more than one weight, got "
                f"{in_channels} / {groups} * {self.kernel_size[0]} * {self.kernel_size[1]}"
            )

    def standardized_weight(self) -> Tensor:
        """The weight that the convolution uses."""
        return standardize(self.weight, self.scale, self.eps)

    def folded(self) -> nn.Module:
        """A plain convolution with the standardized weight."""
        bias = None if self.bias is None else self.bias.detach()
        return self._plain_conv(self.standardized_weight().detach(), bias, self.groups)

    def forward(self, input: Tensor) -> Tensor:
        check_input(input, 4, self.in_channels)
        return self._convolve(input, self.standardized_weight(), self.bias, self.groups)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, eps={self.eps:g}"


class SWSConv2d(WSConv2d):
    r"""Convolution that preserves the variance: :math:`\hat W_o = \gamma (W_o - \mu_o) / (\sigma_o \sqrt{N})`.

    Scaled Weight Standardization, from `Characterizing signal propagation to close the performance gap in unnormalized
    ResNets <https://arxiv.org/abs/2101.08692>`_ (eq. 4 and section 4.2): :math:`N` is the number of weights of a
    filter, and :math:`\gamma` compensates for the change that the activation makes to the variance of a standard normal
    input. The activation followed by this convolution then preserves unit variance without a normalization. Loads
    checkpoints of ``nn.Conv2d``.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: size of the kernel, an int or (height, width).
        stride: stride of the convolution. Default: ``1``.
        padding: padding on each side, or ``"same"`` or ``"valid"``. Default: ``0``.
        dilation: spacing between kernel elements. Default: ``1``.
        groups: number of channel groups; divides ``in_channels`` and ``out_channels``. Default: ``1``.
        bias: whether each output channel has a learned bias. Default: ``True``.
        padding_mode: as in ``nn.Conv2d``. Default: ``"zeros"``.
        activation: activation that precedes this layer in the model, for :math:`\gamma = \mathrm{Var}(a(z))^{-1/2}`
            with :math:`z \sim \mathcal{N}(0, 1)`, computed by numerical integration; this layer does not apply it. It
            must be elementwise, with at most one parameter for all channels. ``None`` gives :math:`\gamma = 1`.
            Default: ``nn.ReLU``.
        gamma: overrides the :math:`\gamma` of ``activation``. Default: ``None``.
        eps: added to the variance of the weights; above 0. Default: ``1e-10``.
        device: device of the parameters. Default: ``None``, torch's default.
        dtype: dtype of the parameters. Default: ``None``, torch's default.

    Errors: as in :class:`WSConv2d`; ``ValueError`` if the variance of the activation is zero or not finite, or if it is
    not elementwise; ``TypeError`` if it is not a layer.

    Shape: input :math:`(N, C_{in}, H, W)`, output :math:`(N, C_{out}, H', W')` as for ``nn.Conv2d``.

    Examples::

        >>> round(tnn.SWSConv2d(16, 16, 3, activation=nn.SiLU).gamma, 4)
        1.7872
        >>> layer = tnn.ConvNormAct(8, 16, conv_layer=tnn.SWSConv2d, norm_layer=None)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        activation: LayerArgument | None = nn.ReLU,
        gamma: float | None = None,
        eps: float = 1e-10,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            eps=eps,
            device=device,
            dtype=dtype,
        )
        if gamma is not None:
            self.gamma = check_number("gamma", gamma)
            if self.gamma <= 0:
                raise ValueError(f"gamma must be above 0, got {gamma}")
        else:
            self.gamma = 1.0 if activation is None else _gamma(activation)
        self.scale = self.gamma / self.fan_in**0.5

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, gamma={self.gamma:.4f}"


def _gamma(activation: LayerArgument) -> float:
    """The reciprocal of the standard deviation of the activation of a standard normal variable."""
    with torch.device("cpu"), torch.no_grad():
        layer = Builder("cpu", torch.float64).module("activation", activation).eval()
        # Simpson's rule: the density is below 1e-31 beyond 12, and a kink at an integer falls between two parabolas.
        z = torch.linspace(-12, 12, 24 * 1024 + 1, dtype=torch.float64)
        density = z.square().div(-2).exp()
        density[1::2] *= 2  # the smaller weight of the two ends is negligible
        density /= density.sum()
        output = _elementwise(layer, z, activation)
        mean = (density * output).sum()
        variance = float((density * (output - mean).square()).sum())
    if not 1e-12 < variance < float("inf"):
        raise ValueError(f"activation must have a finite variance above 0, got {variance} for {activation!r}")
    return variance**-0.5


def _elementwise(layer: nn.Module, z: Tensor, activation: LayerArgument) -> Tensor:
    """The activation of ``z``; raises unless it is elementwise."""
    message = f"activation must be elementwise, got {activation!r}"
    try:
        output, half = layer(z.clone()), layer(z[::2].clone())
    except (IndexError, RuntimeError, ValueError) as error:
        raise ValueError(f"{message}: {error}") from error
    if not isinstance(output, Tensor) or output.shape != z.shape or not output.is_floating_point():
        raise ValueError(message)
    if not torch.allclose(output[::2], half, rtol=1e-9, equal_nan=True):
        raise ValueError(message)
    return output
