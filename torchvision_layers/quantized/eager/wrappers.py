"""Modules that the engine puts around a module of the model."""

from torch import Tensor, nn

from ..layers.observed import DeQuantStub, Observed, QuantStub

__all__ = ["FloatFallback", "ObservedActivation"]


class ObservedActivation(Observed):
    """An activation that the convolution before it is to compute."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.train(module.training)

    def forward(self, input: Tensor) -> Tensor:
        return self.activation_post_process(self.module(input))


class FloatFallback(nn.Module):
    """Runs a module without an int8 kernel in float: dequantize, run, quantize."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.dequant = DeQuantStub()
        self.module = module
        self.quant = QuantStub()
        self.module.qconfig = None  # type: ignore[assignment]  # torch.ao then leaves it alone
        self.train(module.training)

    def forward(self, input: Tensor) -> Tensor:
        return self.quant(self.module(self.dequant(input)))
