"""Convolution, normalization and activation in one, two and three dimensions."""

import torch
from torch import Tensor, nn

from .._utils.checks import check_bool, check_input, check_int, check_sizes
from .._utils.construct import Builder, LayerArgument

__all__ = ["Conv1dNormAct", "Conv3dNormAct", "ConvNormAct"]


class _ConvNormAct(nn.Sequential):
    """The common base; ``dims`` is the number of spatial dimensions."""

    def __init__(
        self,
        dims: int,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...],
        padding: int | tuple[int, ...] | str | None,
        groups: int,
        norm_layer: LayerArgument | None,
        activation_layer: LayerArgument | None,
        dilation: int | tuple[int, ...],
        inplace: bool | None,
        bias: bool | None,
        conv_layer: LayerArgument,
        device: torch.device | str | int | None,
        dtype: torch.dtype | None,
    ) -> None:
        in_channels = check_int("in_channels", in_channels)
        out_channels = check_int("out_channels", out_channels)
        groups = check_int("groups", groups)
        kernel = check_sizes("kernel_size", kernel_size, dims)
        stride = check_sizes("stride", stride, dims)
        dilation = check_sizes("dilation", dilation, dims)
        if padding is None:
            if any(k % 2 == 0 for k in kernel):
                raise ValueError(
                    f"kernel_size must be odd if padding=None, got {kernel_size}: pass padding=0, for example"
                )
            padding = tuple((k - 1) // 2 * d for k, d in zip(kernel, dilation, strict=True))
        elif not isinstance(padding, str):
            padding = check_sizes("padding", padding, dims, minimum=0)

        needs_bias = norm_layer is None if bias is None else check_bool("bias", bias)
        if inplace is not None:
            check_bool("inplace", inplace)
        build = Builder(device, dtype)
        conv = build.conv(
            "conv_layer", conv_layer, in_channels, out_channels, kernel, stride, padding, dilation, groups, needs_bias
        )
        if bias is not None and hasattr(conv, "bias") and (conv.bias is not None) != bias:
            raise ValueError(f"bias must match conv_layer, which has {'no' if bias else 'a'} bias, got {bias}")
        layers = [conv]
        if norm_layer is not None:
            layers.append(build.norm("norm_layer", norm_layer, out_channels))
        if activation_layer is not None:
            layers.append(build.activation("activation_layer", activation_layer, out_channels, inplace))
        super().__init__(*layers)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.reduction = _reduction(getattr(conv, "stride", stride))
        self.input_dims = dims + 2

    def forward(self, input: Tensor) -> Tensor:
        check_input(input, self.input_dims, self.in_channels)
        for layer in self:
            input = layer(input)
        return input


def _reduction(stride: int | tuple[int, ...]) -> int | tuple[int, ...]:
    """One number if the stride is the same in all dimensions."""
    return stride[0] if isinstance(stride, tuple) and len(set(stride)) == 1 else stride


class ConvNormAct(_ConvNormAct):
    r"""Convolution, normalization, activation: :math:`y = a(n(w * x + b))`.

    The basic block of convolutional networks since `Batch Normalization <https://arxiv.org/abs/1502.03167>`_ (section
    3.2: a convolution needs no bias if a normalization follows). Drop-in for
    ``torchvision.ops.Conv2dNormActivation``: call signatures and checkpoints work unchanged, except that an even kernel
    requires ``padding``.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: size of the kernel, an int or (height, width). Default: ``3``.
        stride: stride of the convolution. Default: ``1``.
        padding: zeros on each side, or ``"same"`` or ``"valid"``. Default: ``None``, which keeps the size at stride 1
            with :math:`\lfloor (k - 1) / 2 \rfloor \cdot d` zeros; the kernel must then be odd.
        groups: number of channel groups; divides ``in_channels`` and ``out_channels``. Default: ``1``.
        norm_layer: called with ``out_channels``; ``None`` for none. Default: ``nn.BatchNorm2d``.
        activation_layer: called with ``inplace`` if it takes it; ``None`` for none. Default: ``nn.ReLU``.
        dilation: spacing between kernel elements. Default: ``1``.
        inplace: passed to the activation; ``None`` keeps the default of the activation. Default: ``True``.
        bias: whether the convolution has a bias. Default: ``None``, which adds one only if there is no normalization.
        conv_layer: called like ``nn.Conv2d``; :class:`Conv2dSame` pads as TensorFlow does. Default: ``nn.Conv2d``.
        device: device of the parameters. Default: ``None``, torch's default.
        dtype: dtype of the parameters. Default: ``None``, torch's default.

    A layer argument is a constructor, or a module that is copied. An argument of the wrong type raises ``TypeError``; a
    number out of range, or an instance with the wrong number of channels, raises ``ValueError``.

    Shape: input :math:`(N, C_{in}, H, W)`, output :math:`(N, C_{out}, H', W')`.

    Examples::

        >>> tnn.ConvNormAct(3, 10, activation_layer=nn.SiLU)(torch.rand(1, 3, 32, 32)).shape
        torch.Size([1, 10, 32, 32])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str | None = None,
        groups: int = 1,
        norm_layer: LayerArgument | None = nn.BatchNorm2d,
        activation_layer: LayerArgument | None = nn.ReLU,
        dilation: int | tuple[int, int] = 1,
        inplace: bool | None = True,
        bias: bool | None = None,
        *,
        conv_layer: LayerArgument = nn.Conv2d,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            2,
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            groups,
            norm_layer,
            activation_layer,
            dilation,
            inplace,
            bias,
            conv_layer,
            device,
            dtype,
        )


class Conv1dNormAct(_ConvNormAct):
    r""":class:`ConvNormAct` in one dimension.

    Arguments, errors and source are those of :class:`ConvNormAct`, with ``nn.Conv1d`` and ``nn.BatchNorm1d`` as the
    defaults of ``conv_layer`` and ``norm_layer``.

    Shape: input :math:`(N, C_{in}, L)`, output :math:`(N, C_{out}, L')`.

    Examples::

        >>> tnn.Conv1dNormAct(4, 8, kernel_size=5)(torch.rand(2, 4, 100)).shape
        torch.Size([2, 8, 100])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int] = 3,
        stride: int | tuple[int] = 1,
        padding: int | tuple[int] | str | None = None,
        groups: int = 1,
        norm_layer: LayerArgument | None = nn.BatchNorm1d,
        activation_layer: LayerArgument | None = nn.ReLU,
        dilation: int | tuple[int] = 1,
        inplace: bool | None = True,
        bias: bool | None = None,
        *,
        conv_layer: LayerArgument = nn.Conv1d,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            1,
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            groups,
            norm_layer,
            activation_layer,
            dilation,
            inplace,
            bias,
            conv_layer,
            device,
            dtype,
        )


class Conv3dNormAct(_ConvNormAct):
    r""":class:`ConvNormAct` in three dimensions.

    Arguments, errors and source are those of :class:`ConvNormAct`, with ``nn.Conv3d`` and ``nn.BatchNorm3d`` as the
    defaults of ``conv_layer`` and ``norm_layer``. Drop-in for ``torchvision.ops.Conv3dNormActivation``: call signatures
    and checkpoints work unchanged, except that an even kernel requires ``padding``.

    Shape: input :math:`(N, C_{in}, D, H, W)`, output :math:`(N, C_{out}, D', H', W')`.

    Examples::

        >>> tnn.Conv3dNormAct(3, 8, stride=(1, 2, 2))(torch.rand(2, 3, 4, 16, 16)).shape
        torch.Size([2, 8, 4, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int, int] = 3,
        stride: int | tuple[int, int, int] = 1,
        padding: int | tuple[int, int, int] | str | None = None,
        groups: int = 1,
        norm_layer: LayerArgument | None = nn.BatchNorm3d,
        activation_layer: LayerArgument | None = nn.ReLU,
        dilation: int | tuple[int, int, int] = 1,
        inplace: bool | None = True,
        bias: bool | None = None,
        *,
        conv_layer: LayerArgument = nn.Conv3d,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            3,
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            groups,
            norm_layer,
            activation_layer,
            dilation,
            inplace,
            bias,
            conv_layer,
            device,
            dtype,
        )
