"""Fused training modules of a convolution or linear layer and its batch norm, for gains of zero as well.

torch's own modules divide by the gains.
"""

from typing import Any

import torch.ao.nn.intrinsic as nni
import torch.ao.nn.intrinsic.qat as nniqat
from torch import Tensor, nn
from torch.nn import functional as F

from ...norm_gains import scaling_factors

__all__ = ["FUSED_WITH_NORM", "restore_torch_classes"]


class _AnyGain:
    """Mixed into a fused module of torch in place of its ``forward`` without an activation."""

    bn: Any
    weight: Any
    bias: Any
    weight_fake_quant: nn.Module

    def _forward(self, input: Tensor) -> Tensor:
        factors = scaling_factors(self.bn.weight, self.bn.running_var, self.bn.eps)
        ones = [1] * (self.weight.dim() - 1)
        weight = self.weight_fake_quant(self.weight * factors.reshape(-1, *ones))
        output = self._conv_forward(input, weight, None) / factors.reshape(-1, *ones[1:])
        if self.bias is not None:
            output = output + self.bias.reshape(-1, *ones[1:])
        normalized: Tensor = self.bn(output)
        return normalized

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        output: Tensor = super()._conv_forward(input, weight, bias)  # type: ignore[misc]  # of a convolution
        return output


class ConvBn1d(_AnyGain, nniqat.ConvBn1d):
    pass


class ConvBnReLU1d(_AnyGain, nniqat.ConvBnReLU1d):
    pass


class ConvBn2d(_AnyGain, nniqat.ConvBn2d):
    pass


class ConvBnReLU2d(_AnyGain, nniqat.ConvBnReLU2d):
    pass


class ConvBn3d(_AnyGain, nniqat.ConvBn3d):
    pass


class ConvBnReLU3d(_AnyGain, nniqat.ConvBnReLU3d):
    def forward(self, input: Tensor) -> Tensor:  # torch's own names the class whose method it calls
        return F.relu(self._forward(input))


class LinearBn1d(_AnyGain, nniqat.LinearBn1d):
    def forward(self, input: Tensor) -> Tensor:
        return self._forward(input)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(input, weight, bias)


#: The training form of each fused module of torch.
FUSED_WITH_NORM: dict[type[nn.Module], type[nn.Module]] = {
    nni.ConvBn1d: ConvBn1d,
    nni.ConvBnReLU1d: ConvBnReLU1d,
    nni.ConvBn2d: ConvBn2d,
    nni.ConvBnReLU2d: ConvBnReLU2d,
    nni.ConvBn3d: ConvBn3d,
    nni.ConvBnReLU3d: ConvBnReLU3d,
    nni.LinearBn1d: LinearBn1d,
}


def restore_torch_classes(model: nn.Module) -> None:
    """Gives these modules torch's own classes, in place: torch converts no subclasses."""
    for module in model.modules():
        if isinstance(module, _AnyGain):
            module.__class__ = type(module).__bases__[1]
