"""Parallel convolutions that fold into one."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeGuard

import torch
import torch.fx
from torch import Tensor, nn

from ..._utils.checks import check_bool, check_groups, check_input, check_int, check_sizes
from ..._utils.construct import Builder, LayerArgument
from ...layers.checked_conv import in_layout_of
from ...layers.conv import ConvNormAct

__all__ = ["RepConv"]

torch.fx.wrap("in_layout_of")  # stays one node in a traced graph, so that the choice between layouts survives

_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class RepConv(nn.Module):
    r"""A sum of parallel convolutions with normalization in training, a single convolution once it is folded.

    From `RepVGG <https://arxiv.org/abs/2101.03697>`_ (eq. 1 to 4) and `MobileOne <https://arxiv.org/abs/2206.04040>`_
    (section 3.2):

    .. math::

        y = a\Bigl(s\Bigl(\sum_i n_i(W_i * x) + n_p(W_p * x) + n_0(x)\Bigr)\Bigr)

    with convolutions :math:`W_i` of full kernel size, a pointwise convolution :math:`W_p` and the input itself, each
    with its own normalization; :math:`s` is the optional channel attention and :math:`a` the activation. The pointwise
    convolution exists if the kernel is larger than one pixel, the identity if input and output have the same shape. In
    eval mode all of them are linear, so that ``folded()`` returns one convolution with the same result, followed by
    :math:`s` and :math:`a`. ``deploy.fold`` and ``quantized.quantize`` call it.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: size of the kernel, an int or (height, width), odd. Default: ``3``.
        stride: stride of the convolutions. Default: ``1``.
        dilation: spacing between kernel elements. Default: ``1``.
        groups: number of channel groups; divides ``in_channels`` and ``out_channels``. Default: ``1``.
        padding_mode: as in ``nn.Conv2d``; the padding keeps the size at stride 1. Default: ``"zeros"``.
        branches: number of convolutions of full kernel size. RepVGG has one, MobileOne-S0 four. Default: ``1``.
        pointwise: whether there is a pointwise convolution. Default: ``True``.
        identity: whether the input is added if the shapes allow. Default: ``True``.
        norm_layer: called with its channels, once for each branch; ``None`` for none. It must scale and shift each
            channel by constants in eval mode to be folded. Default: ``nn.BatchNorm2d``.
        activation_layer: called with ``inplace=True`` if it takes it; ``None`` for none. Default: ``nn.ReLU``.
        se_layer: channel attention before the activation, called with ``out_channels``, and with ``squeeze_channels``,
            a sixteenth of them, if it requires that. Default: ``None``.
        device: device of the parameters. Default: ``None``, torch's default.
        dtype: dtype of the parameters. Default: ``None``, torch's default.

    A layer argument is a constructor, or a module that is copied for each use. An argument of the wrong type raises
    ``TypeError``; a number out of range, or an instance with the wrong number of channels, raises ``ValueError``.

    Shape: input :math:`(N, C_{in}, H, W)`, output :math:`(N, C_{out}, \lceil H/s \rceil, \lceil W/s \rceil)`.

    Examples::

        >>> layer = enn.RepConv(8, 8).eval()
        >>> layer(torch.rand(2, 8, 16, 16)).shape
        torch.Size([2, 8, 16, 16])
        >>> layer.folded()
        Sequential(
          (conv): Conv2d(8, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
          (act): ReLU(inplace=True)
        )
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int = 1,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        *,
        branches: int = 1,
        pointwise: bool = True,
        identity: bool = True,
        norm_layer: LayerArgument | None = nn.BatchNorm2d,
        activation_layer: LayerArgument | None = nn.ReLU,
        se_layer: LayerArgument | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = check_int("in_channels", in_channels)
        self.out_channels = check_int("out_channels", out_channels)
        kernel = check_sizes("kernel_size", kernel_size, 2)
        if any(k % 2 == 0 for k in kernel):
            raise ValueError(f"kernel_size must be odd to keep height and width, got {kernel_size}")
        self.reduction = check_int("stride", stride)
        spacing = check_sizes("dilation", dilation, 2)
        self.groups = check_groups(groups, in_channels=in_channels, out_channels=out_channels)
        if padding_mode not in _PADDING_MODES:
            raise ValueError(f"padding_mode must be one of {', '.join(_PADDING_MODES)}, got {padding_mode!r}")
        self.padding_mode = padding_mode
        check_int("branches", branches)
        build = Builder(device, dtype)
        conv: Callable[..., nn.Module] = partial(
            ConvNormAct,
            in_channels,
            out_channels,
            stride=stride,
            groups=groups,
            norm_layer=norm_layer,
            activation_layer=None,
            device=device,
            dtype=dtype,
        )
        conv_layer: Callable[..., nn.Module] = partial(nn.Conv2d, padding_mode=padding_mode)  # type: ignore[arg-type]
        self.convs = nn.ModuleList(
            conv(kernel_size=kernel, dilation=spacing, conv_layer=conv_layer) for _ in range(branches)
        )
        has_pointwise = check_bool("pointwise", pointwise) and kernel != (1, 1)
        self.pointwise = conv(kernel_size=1) if has_pointwise else None
        self.identity: nn.Module | None = None
        if check_bool("identity", identity) and in_channels == out_channels and stride == 1:
            self.identity = nn.Identity() if norm_layer is None else build.norm("norm_layer", norm_layer, in_channels)
        self.se: nn.Module | None = None
        if se_layer is not None:
            self.se = build.squeeze_excitation("se_layer", se_layer, out_channels)
        self.act = build.activation("activation_layer", activation_layer, out_channels, inplace=True)

    def forward(self, input: Tensor) -> Tensor:
        check_input(input, 4, self.in_channels)
        output = self._sum(input)
        if self.padding_mode != "zeros":
            output = in_layout_of(output, input)
        if self.se is not None:
            output = self.se(output)
        return self.act(output)

    def _sum(self, input: Tensor) -> Tensor:
        output = self.convs[0](input)
        for i, conv in enumerate(self.convs):  # TorchScript supports no slice here
            if i > 0:
                output = output + conv(input)
        if self.pointwise is not None:
            output = output + self.pointwise(input)
        if self.identity is not None:
            output = output + self.identity(input)
        return output

    @torch.no_grad()
    def folded(self) -> nn.Module:
        """One ``nn.Conv2d`` that computes the sum, followed by copies of the channel attention and the activation.

        Errors: ``ValueError`` in training mode, for a norm that does not scale and shift each channel by constants, or
        if a convolution was replaced by a layer that computes something else with its weight.
        """
        weight, bias = self._weight_and_bias()
        first = self.convs.get_submodule("0.0")
        assert isinstance(first, nn.Conv2d)
        sizes: dict[str, Any] = {
            name: getattr(first, name)
            for name in ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
        }
        # The meta device draws no random numbers for parameters that are replaced below.
        conv = nn.Conv2d(self.in_channels, self.out_channels, device="meta", **sizes)
        layout = torch.channels_last if first.weight.stride(1) == 1 else torch.contiguous_format
        weight = weight.to(first.weight.dtype).contiguous(memory_format=layout)
        conv.weight = nn.Parameter(weight, requires_grad=False)
        conv.bias = nn.Parameter(bias.to(first.weight.dtype), requires_grad=False)
        children = OrderedDict[str, nn.Module](conv=conv)
        if self.se is not None:
            children["se"] = copy.deepcopy(self.se)
        if not isinstance(self.act, nn.Identity):
            children["act"] = copy.deepcopy(self.act)
        return (nn.Sequential(children) if len(children) > 1 else conv).eval()

    def _weight_and_bias(self) -> tuple[Tensor, Tensor]:
        """The sum of the weights and biases of all branches, each multiplied by its norm, in float64."""
        bias = torch.zeros((), dtype=torch.float64)
        weights: list[Tensor] = []
        for conv, norm in self._branches():
            scale, shift = _scale_and_shift(norm, self.out_channels, conv.weight)
            weights.append(scale[:, None, None, None] * conv.weight.double())
            bias = bias.to(shift.device) + shift
            if conv.bias is not None:
                bias = bias + scale * conv.bias.double()
        weight = torch.zeros_like(weights[0])
        middle = tuple(size // 2 for size in weight.shape[2:])
        for branch in weights:
            if branch.shape == weight.shape:
                weight += branch
            else:  # a pointwise convolution reads the pixel in the middle of the kernel
                weight[:, :, middle[0], middle[1]] += branch[:, :, 0, 0]
        if self.identity is not None:
            scale, shift = _scale_and_shift(self.identity, self.out_channels, weight)
            channels = torch.arange(self.out_channels, device=weight.device)
            weight[channels, channels % weight.shape[1], middle[0], middle[1]] += scale
            bias = bias + shift
        return weight, bias

    def _branches(self) -> Iterator[tuple[nn.Conv2d, nn.Module]]:
        """Each convolution and its norm."""
        for branch in self.convs if self.pointwise is None else (*self.convs, self.pointwise):
            assert isinstance(branch, nn.Sequential)
            conv = branch[0]
            if not _is_plain(conv):
                raise ValueError(f"convolutions must be nn.Conv2d to be folded, got {type(conv).__name__}")
            yield conv, branch[1] if len(branch) > 1 else nn.Identity()


def _is_plain(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a module computes what ``nn.Conv2d`` does with its weight, which may be parametrized."""
    methods = ("forward", "_conv_forward")
    return isinstance(conv, nn.Conv2d) and all(getattr(type(conv), m) is getattr(nn.Conv2d, m) for m in methods)


def _scale_and_shift(norm: nn.Module, channels: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The factor and the term that a norm applies to each channel, in float64.

    The norm is run, because many classes compute this.

    Errors: ``ValueError`` if the norm is in training mode or computes something else.
    """
    if norm.training and not isinstance(norm, nn.Identity):
        raise ValueError(
            f"RepConv must be in eval mode to be folded, its {type(norm).__name__} is in training mode: call eval() "
            "after training"
        )
    norm = copy.deepcopy(norm).double()
    values = torch.linspace(-2, 3, 6 * channels, dtype=torch.float64, device=like.device)
    probe = values.reshape(6, channels).T.reshape(1, channels, 2, 3)
    shift = norm(torch.zeros_like(probe))[0, :, 0, 0]
    scale = norm(torch.ones_like(probe))[0, :, 0, 0] - shift
    expected = scale[:, None, None] * probe + shift[:, None, None]
    if not torch.allclose(norm(probe), expected, rtol=1e-9, atol=1e-9):
        raise ValueError(
            "norm_layer must scale and shift each channel by constants in eval mode to be folded, as nn.BatchNorm2d "
            f"does, got {norm}"
        )
    return scale, shift
