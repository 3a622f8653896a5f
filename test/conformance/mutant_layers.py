"""A correct layer, and mutants of it: each has one fault, for the check of the same name."""

import itertools

import torch
import torchvision
from torch import Tensor, nn

from torchvision_layers import nn as tnn
from torchvision_layers import quantized

from . import reference as ref


class Control(nn.Module):
    """A correct layer: ``x + relu(norm(conv(x)))``."""

    def __init__(
        self, channels: int = 3, inplace: bool = False, *, device: str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False, device=device, dtype=dtype)
        self.norm = nn.BatchNorm2d(channels, device=device, dtype=dtype)
        self.act = nn.ReLU(inplace)
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.act(self.norm(self.conv(x))))


def control_reference(x: ref.Array, weights: ref.Weights, training: bool) -> ref.Array:
    conv = ref.conv(x, weights["conv.weight"], None, (1, 1), (1, 1), (1, 1), 1)
    return x + ref.relu(ref.batch_norm(conv, weights, "norm", training))


class NoMutation(Control):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(2))


class Reference(Control):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + 1e-4)


class OutShape(Control):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[..., : x.shape[-1] // 2 * 2]  # drops the last column of an odd width


class BatchIndep(Control):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0, keepdim=True))


class Determinism(Control):
    """Differs at every eighth call only, so that two calls usually agree."""

    calls = itertools.count()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (1e-3 if next(self.calls) % 8 == 7 else 0.0)


class Deterministic(Control):
    """Writes in an order that torch does not fix."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y.clone().put_(torch.zeros(1, dtype=torch.long, device=x.device), y[:1, 0, 0, 0])


class RandomFlag(Control):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.0 * torch.rand(1)


class Dropping(Control):
    """A correct layer with stochastic depth."""

    def __init__(self, kind: type[nn.Module] = torchvision.ops.StochasticDepth) -> None:
        super().__init__()
        self.drop = kind(0.3, "row")


class UnscaledStochasticDepth(torchvision.ops.StochasticDepth):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 - self.p) if self.training else x


class Stochastic(Dropping):
    def __init__(self) -> None:
        super().__init__(UnscaledStochasticDepth)


class NoBroadcast(Control):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1] + super().forward(x)


class Gradcheck(Control):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * x.detach()


class FirstDerivativeOnly(torch.autograd.Function):
    """The square, with a second derivative of one instead of two."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (x + x.detach())


class Gradgradcheck(Control):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(FirstDerivativeOnly.apply(x))


class OneWrongDerivative(torch.autograd.Function):
    """The identity, with a derivative of two at one pixel."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient[0, 0, 0, 0] *= 2
        return gradient


class GradcheckSlow(Control):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(OneWrongDerivative.apply(x))


class GradsReach(Control):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.ones(3))


class Noncontig(Control):
    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return super().forward(x.as_strided((n, c, h, w), (c * h * w, h * w, w, 1)))


class Functional(Control):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1.0 if float(x.detach().sum()) < 1e9 else 2.0)


class Checkpoint(Control):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x * self.calls)


class FactoryKwargs(Control):
    def __init__(self, *, device: str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(device=device, dtype=dtype)
        self.register_buffer("scale", torch.ones(1))


class NoLooseTensor(Control):
    def __init__(self) -> None:
        super().__init__()
        self.scales = [torch.ones(1)]


class NoSharedModule(Control):
    def __init__(self) -> None:
        super().__init__()
        self.again = self.act


class TrainEvalFlag(Control):
    """Reads the mode, while its sample declares ``reads_mode=False``."""


class NoStatistics(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            return nn.functional.batch_norm(input, None, None, self.weight, self.bias, True)
        return super().forward(input)


class Statistics(Control):
    def __init__(self) -> None:
        super().__init__()
        self.norm = NoStatistics(3)


class Meta(Control):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.ones(x.shape[-1], device="cpu")


class OtherDevice(Control):
    """Right under ``torch.device``, as in the check ``meta``, but not on the device of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.ones(x.shape[-1])


class OtherDeviceInBackward(Control):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if y.requires_grad:
            y.register_hook(lambda gradient: gradient * torch.ones(gradient.shape[-1]))
        return y


class ReadsAValue(Control):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum().item() < 1e9 else x


class SkipInit(Control):
    def __init__(self, *, device: str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(device=device, dtype=dtype)
        self.first = self.conv.weight.sum().item()  # meta tensors have no values


class Copies(Control):
    def __init__(self) -> None:
        super().__init__()
        self.scale = float(torch.rand(()))  # not in the state dict

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


class Dtypes(Control):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.zeros(x.shape[-1])  # float32 for any input


class ChannelsLast(Control):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).contiguous()


class EmptyBatch(Control):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(x.shape[0], -1).view(x.shape))


class Errors(Control):
    """Accepts the invalid arguments of its specification."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__(max(channels, 1))


class UnknownKeyword(Control):
    def __init__(self, **kwargs: object) -> None:
        super().__init__()


class WrongWidth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Fx(Control):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.shape[0] > 1 else super().forward(x) * 1.0


class Script(Control):
    def forward(self, x: Tensor) -> Tensor:
        return (lambda y: y)(x) + self.act(self.norm(self.conv(x)))


class Compile(Control):
    def forward(self, x: Tensor) -> Tensor:
        print(end="")  # breaks the graph
        return super().forward(x)


class Export(Control):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2.0 if x.shape[2] == 6 else 1.0)  # specializes on the height of the example


class Onnx(Control):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.0 * torch.special.bessel_j0(x)  # not in ONNX


class OtherWhenCompiled(Control):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1.01 if torch.compiler.is_compiling() else 1.0)


class OtherInAGroup(Control):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2.0 if torch.distributed.is_initialized() else 1.0)


class Fsdp2Meta(Control):
    def __init__(self, *, device: str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(device=device, dtype=dtype)
        self.scale = 1.0 if self.conv.weight.is_meta else 2.0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


class ScaledBatchNorm(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class SyncBn(Control):
    def __init__(self) -> None:
        super().__init__()
        self.norm = ScaledBatchNorm(3)


class FarFromZero(Control):
    """Computes around 1000, where quantization steps are large, and subtracts the mean."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x + 1e3)[..., 1:-1, 1:-1]  # away from the padding
        return y - y.mean((2, 3), keepdim=True)


class Frozen(Control):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class TwinOfOtherKeys(quantized.QuantizableConvNormAct):
    def _add_observed_ops(self) -> None:
        super()._add_observed_ops()
        self.register_buffer("scale", torch.ones(1))


class NeverFused(tnn.ConvNormAct):
    """The float layer of the twin below."""


class TwinThatDoesNotFuse(quantized.QuantizableConvNormAct):
    float_class = NeverFused

    def fuse_model(self, is_qat: bool | None = None) -> None:
        return None


class AlternatingStrides(nn.Module):
    """Instances alternate between stride 1 and 2, which is not in the state dict."""

    strides = itertools.cycle([1, 2])

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, stride=next(self.strides))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class WithHook(tnn.ConvNormAct):
    """Its convolution cannot be fused, because the hook would get another output."""

    def __init__(self, in_channels: int, out_channels: int, activation_layer: type[nn.Module]) -> None:
        super().__init__(in_channels, out_channels, activation_layer=activation_layer)
        self[0].register_forward_hook(lambda module, args, output: None)


def different_layer_with_a_recorded_name() -> type[nn.Module]:
    """A class with the name and arguments of a recorded layer, and other outputs."""

    class ConvNormAct(tnn.ConvNormAct):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 1.001

    return ConvNormAct
