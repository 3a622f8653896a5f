"""Convolutions whose filters are standardized at each call."""

import torch
import torch.fx
from torch import Tensor, nn

from ..._utils.checks import check_eps, check_input, check_number
from ..._utils.construct import Builder, LayerArgument
from ._conv import CheckedConv2d

__all__ = ["SWSConv2d", "WSConv2d"]


@torch.fx.wrap  # one node in a traced graph, which keeps the choice between layouts
def standardize(weight: Tensor, scale: float, eps: float) -> Tensor:
    """Gives every filter mean 0 and variance ``scale`` squared; the variance is the biased one, plus ``eps``.

    One native kernel, over the weights in the order in which they are stored, so that none are copied.
    """
    is_channels_last = weight.stride(1) == 1
    filters = weight.permute(0, 2, 3, 1) if is_channels_last else weight
    gain = weight.new_full((weight.shape[0],), scale)
    flat = filters.reshape(1, weight.shape[0], -1)
    filters = torch.group_norm(flat, weight.shape[0], gain, eps=eps).view(filters.shape)
    return filters.permute(0, 3, 1, 2) if is_channels_last else filters


class WSConv2d(CheckedConv2d):
    r"""Convolution by standardized filters: :math:`\hat W_o = (W_o - \mu_o) / \sqrt{\sigma_o^2 + \epsilon}`.

    From `Micro-Batch Training with Batch-Channel Normalization and Weight Standardization
    <https://arxiv.org/abs/1903.10520>`_ (eq. 5 to 7): mean :math:`\mu_o` and biased variance :math:`\sigma_o^2` are
    taken over all weights of filter :math:`o`; :math:`\epsilon` stands inside the root. Made for networks with group
    normalization and small batches. Checkpoints of ``nn.Conv2d`` fit.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the kernel, or (height, width).
        stride: step of the kernel. Default: ``1``.
        padding: width of the border on each side, or ``"same"`` or ``"valid"``. Default: ``0``.
        dilation: space between the elements of the kernel. Default: ``1``.
        groups: blocks of channels that do not see each other; divides both widths. Default: ``1``.
        bias: learned shift of each output channel, which is not standardized. Default: ``True``.
        padding_mode: what the border holds, as in ``nn.Conv2d``. Default: ``"zeros"``.
        eps: added to the variance, above 0. The weights of a wide filter have a variance near ``1e-5`` themselves, so
            it is far smaller than that of a normalization of features; a filter of equal weights becomes zero, with
            gradients up to :math:`\epsilon^{-1/2}` times those of the standardized one. Default: ``1e-10``.
        device: where the parameters are made. Default: torch's.
        dtype: type of the parameters. Default: torch's.

    Errors: ``TypeError`` for an argument of another type; ``ValueError`` for a number out of its range, filters of a
    single weight, which standardization makes zero, or an input of another rank or width.

    Shape: input :math:`(N, C_{in}, H, W)`, output :math:`(N, C_{out}, H', W')` as of ``nn.Conv2d``.

    Examples::

        >>> enn.WSConv2d(3, 8, 3, padding=1)(torch.rand(2, 3, 16, 16)).shape
        torch.Size([2, 8, 16, 16])
        >>> layer = tnn.ConvNormAct(8, 16, conv_layer=enn.WSConv2d, norm_layer=partial(nn.GroupNorm, 4))
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
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self.eps = check_eps(eps)
        if self.eps == 0.0:
            raise ValueError("eps must be above 0, or a filter of equal weights would be NaN, got 0")
        self.scale = 1.0
        self.fan_in = self.weight[0].numel()
        if self.fan_in == 1:
            raise ValueError(
                "in_channels / groups * kernel_size must leave each filter more than one weight to standardize, got "
                f"{in_channels} / {groups} * {self.kernel_size[0]} * {self.kernel_size[1]}"
            )

    def standardized_weight(self) -> Tensor:
        """The weight that the convolution uses."""
        return standardize(self.weight, self.scale, self.eps)

    def folded(self) -> nn.Module:
        """A plain convolution with the standardized weight."""
        bias = None if self.bias is None else self.bias.detach()
        return self._plain(self.standardized_weight().detach(), bias, self.groups)

    def forward(self, input: Tensor) -> Tensor:
        check_input(input, 4, self.in_channels)
        return self._slide(input, self.standardized_weight(), self.bias, self.groups)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, eps={self.eps:g}"


class SWSConv2d(WSConv2d):
    r"""Convolution by filters that keep the variance: :math:`\hat W_o = \gamma (W_o - \mu_o) / (\sigma_o \sqrt{N})`.

    Scaled Weight Standardization, from `Characterizing signal propagation to close the performance gap in unnormalized
    ResNets <https://arxiv.org/abs/2101.08692>`_ (eq. 4 and section 4.2): :math:`N` is the number of weights of a
    filter, and :math:`\gamma` makes up for what the activation takes from the variance of a standard normal input. An
    activation followed by this convolution then gives unit variance for unit variance, without a normalization.
    Checkpoints of ``nn.Conv2d`` fit.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the kernel, or (height, width).
        stride: step of the kernel. Default: ``1``.
        padding: width of the border on each side, or ``"same"`` or ``"valid"``. Default: ``0``.
        dilation: space between the elements of the kernel. Default: ``1``.
        groups: blocks of channels that do not see each other; divides both widths. Default: ``1``.
        bias: learned shift of each output channel, which is not standardized. Default: ``True``.
        padding_mode: what the border holds, as in ``nn.Conv2d``. Default: ``"zeros"``.
        activation: what runs on the input before this layer, for :math:`\gamma = \mathrm{Var}(a(z))^{-1/2}` with
            :math:`z \sim \mathcal{N}(0, 1)`, by numerical integration; ``None`` for nothing, :math:`\gamma = 1`. It is
            not called otherwise, and must work on each number alone, with one parameter for all channels if it has any.
            Default: ``nn.ReLU``.
        gamma: :math:`\gamma` itself, in place of that of ``activation``. Default: ``None``.
        eps: added to the variance of the weights, above 0. Default: ``1e-10``.
        device: where the parameters are made. Default: torch's.
        dtype: type of the parameters. Default: torch's.

    Errors: those of :class:`WSConv2d`; ``ValueError`` for an activation without a finite variance above zero, or that
    does not work on each number alone; ``TypeError`` for one that is no layer.

    Shape: input :math:`(N, C_{in}, H, W)`, output :math:`(N, C_{out}, H', W')` as of ``nn.Conv2d``.

    Examples::

        >>> round(enn.SWSConv2d(16, 16, 3, activation=nn.SiLU).gamma, 4)
        1.7872
        >>> layer = tnn.ConvNormAct(8, 16, conv_layer=enn.SWSConv2d, norm_layer=None)
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
    """One over the standard deviation of the activation of a standard normal variable."""
    with torch.device("cpu"), torch.no_grad():
        layer = Builder("cpu", torch.float64).module("activation", activation).eval()
        # Simpson's rule. Beyond 12 the density is below 1e-31; a kink at a whole number is between two parabolas.
        z = torch.linspace(-12, 12, 24 * 1024 + 1, dtype=torch.float64)
        density = z.square().div(-2).exp()
        density[1::2] *= 2  # the ends do not count at all
        density /= density.sum()
        output = _each_alone(layer, z, activation)
        mean = (density * output).sum()
        variance = float((density * (output - mean).square()).sum())
    if not 1e-12 < variance < float("inf"):
        raise ValueError(f"activation must have a finite variance above 0, got {variance} of {activation!r}")
    return variance**-0.5


def _each_alone(layer: nn.Module, z: Tensor, activation: LayerArgument) -> Tensor:
    """The activation of ``z``; raises unless it works on each number alone."""
    rule = "activation must work on each number alone"
    try:
        output, of_half = layer(z.clone()), layer(z[::2].clone())
    except (IndexError, RuntimeError, ValueError) as error:
        raise ValueError(f"{rule}, got {activation!r}: {error}") from error
    if not isinstance(output, Tensor) or output.shape != z.shape or not output.is_floating_point():
        raise ValueError(f"{rule} and give as many, got {activation!r}")
    if not torch.allclose(output[::2], of_half, rtol=1e-9, equal_nan=True):
        raise ValueError(f"{rule}, got {activation!r}")
    return output
