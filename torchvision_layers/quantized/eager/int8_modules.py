"""Int8 modules that torch lacks: convolutions with post-operations, linear layers for oneDNN, a state of ELU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "Int8ConvActivation2d",
    "Int8ConvAddition2d",
    "Int8ELU",
    "Int8Linear",
    "Int8Module",
    "computed_in_float",
    "use_backend",
]

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"hardswish": F.hardswish, "swish": F.silu}


@contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Sets torch's global engine within the context.

    Int8 weights are packed for that engine when they are created, copied or loaded; kernels without weights, such as
    addition and pooling, read it whenever they run. Deterministic algorithms are off, because linear layers on x86
    would raise an error; int8 kernels are deterministic without them.
    """
    previous = torch.backends.quantized.engine
    torch.backends.quantized.engine = backend
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    warns_only = torch.is_deterministic_algorithms_warn_only_enabled()
    if is_deterministic:
        torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.backends.quantized.engine = previous
        if is_deterministic:
            torch.use_deterministic_algorithms(True, warn_only=warns_only)


class Int8Module(nn.Module):
    """A module whose output has a fixed scale and zero point, which the ``state_dict`` holds."""

    def __init__(self, scale: float, zero_point: int) -> None:
        super().__init__()
        self.scale = scale
        self.zero_point = zero_point

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}scale"] = torch.tensor(self.scale)
        destination[f"{prefix}zero_point"] = torch.tensor(self.zero_point)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own: dict[str, Any] = {}
        self._save_to_state_dict(own, prefix, False)
        missing = [key for key in own if key not in state_dict]
        missing_keys += missing
        unexpected_keys += [key for key in state_dict if key.startswith(prefix) and key not in own and strict]
        if not missing:
            self._set_state({key.removeprefix(prefix): state_dict[key] for key in own})

    def _set_state(self, state: dict[str, Any]) -> None:
        self.scale = float(state["scale"])
        self.zero_point = int(state["zero_point"])


class Int8ELU(Int8Module):
    """The int8 form of ``nn.ELU``; that of torch keeps its scale out of the ``state_dict``."""

    def __init__(self, scale: float, zero_point: int, alpha: float) -> None:
        super().__init__(scale, zero_point)
        self.alpha = alpha

    def forward(self, input: Tensor) -> Tensor:
        return torch.ops.quantized.elu(input, self.scale, self.zero_point, self.alpha)


class _Int8Conv2d(Int8Module):
    """An int8 convolution that keeps its weights next to the packed ones, for files and copies."""

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        groups: int,
        scale: float,
        zero_point: int,
        activation: str = "none",
    ) -> None:
        super().__init__(scale, zero_point)
        self.activation = activation
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.groups = groups
        self._pack(weight, torch.zeros(weight.shape[0]) if bias is None else bias.detach())

    def _pack(self, weight: Tensor, bias: Tensor) -> None:
        raise NotImplementedError

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight
        destination[f"{prefix}bias"] = self.bias

    def _set_state(self, state: dict[str, Any]) -> None:
        super()._set_state(state)
        self._pack(state["weight"], state["bias"])

    # Packed weights can neither be saved nor copied, so torch.jit, copy and pickle get these instead.

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, Tensor, list[int], list[int], list[int], int, float, int, str, bool]:
        return (
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.scale,
            self.zero_point,
            self.activation,
            self.training,
        )

    @torch.jit.export
    def __setstate__(
        self, state: tuple[Tensor, Tensor, list[int], list[int], list[int], int, float, int, str, bool]
    ) -> None:
        if not torch.jit.is_scripting():
            nn.Module.__init__(self)
        self.stride = state[2]
        self.padding = state[3]
        self.dilation = state[4]
        self.groups = state[5]
        self.scale = state[6]
        self.zero_point = state[7]
        self.activation = state[8]
        self.training = state[9]
        self._pack(state[0], state[1])


class Int8ConvAddition2d(_Int8Conv2d):
    """A convolution that adds another tensor. At a zero point of zero, saturation is the ReLU of the sum."""

    @torch.jit.export
    def _pack(self, weight: Tensor, bias: Tensor) -> None:
        self.weight = weight
        self.bias = bias
        self.packed = torch.ops.quantized.conv2d_prepack(
            weight, bias, self.stride, self.padding, self.dilation, self.groups
        )

    def _output_shape(self, input: Tensor) -> list[int]:
        shape = [input.size(0), self.weight.size(0)]
        for i in range(2):
            span = self.dilation[i] * (self.weight.size(i + 2) - 1) + 1
            shape.append((input.size(i + 2) + 2 * self.padding[i] - span) // self.stride[i] + 1)
        return shape

    def forward(self, input: Tensor, other: Tensor) -> Tensor:
        shape = self._output_shape(input)
        if list(other.shape) != shape:  # the kernel would read out of bounds
            raise ValueError(f"other must have the shape {shape} of the convolution, got {list(other.shape)}")
        # The kernel writes the sum into the other tensor, which may have other consumers.
        total = torch.empty_like(other).copy_(other)
        return torch.ops.quantized.conv2d_add(input, total, self.packed, self.scale, self.zero_point)


class Int8ConvActivation2d(_Int8Conv2d):
    """A convolution whose kernel applies ``activation``, by its oneDNN name, before it rounds."""

    @torch.jit.export
    def _pack(self, weight: Tensor, bias: Tensor) -> None:
        self.weight = weight
        self.bias = bias
        self.weight_scales = weight.q_per_channel_scales().to(torch.float)
        self.weight_zero_points = weight.q_per_channel_zero_points()
        # Packing ignores the scale and zero point of the input, here one and zero.
        self.packed = torch.ops.onednn.qconv_prepack(
            weight.int_repr(), self.weight_scales, 1.0, 0, self.stride, self.padding, self.dilation, self.groups, None
        )

    def forward(self, input: Tensor) -> Tensor:
        # The kernel reads and writes plain uint8, so both tensors are views of the same storage, made with NHWC sizes.
        input = input.contiguous(memory_format=torch.channels_last)
        rows = input.permute(0, 2, 3, 1)
        uint8_input = torch.empty([0], dtype=torch.uint8).set_(rows, 0, input.size(), input.stride())  # type: ignore[call-overload]
        result = torch.ops.onednn.qconv2d_pointwise(
            uint8_input,
            input.q_scale(),
            input.q_zero_point(),
            self.packed,
            self.weight_scales,
            self.weight_zero_points,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.scale,
            self.zero_point,
            torch.uint8,
            self.activation,
            [],
            "",
        )
        output = torch._empty_affine_quantized([0], scale=self.scale, zero_point=self.zero_point, dtype=torch.quint8)
        return output.set_(result.permute(0, 2, 3, 1), 0, result.size(), result.stride())


class Int8Linear(_Int8Conv2d):
    """A linear layer as a pointwise convolution; if its zero point is zero, saturation is the ReLU of its output.

    torch's int8 linear on oneDNN takes a thousand times as long if the zero point of the input is not zero.
    """

    @torch.jit.export
    def _pack(self, weight: Tensor, bias: Tensor) -> None:
        self.weight = weight
        self.bias = bias
        pixel = torch._make_per_channel_quantized_tensor(
            weight.int_repr().unsqueeze(2).unsqueeze(3),
            weight.q_per_channel_scales(),
            weight.q_per_channel_zero_points(),
            0,
        )
        self.packed = torch.ops.quantized.conv2d_prepack(
            pixel, bias, self.stride, self.padding, self.dilation, self.groups
        )

    def forward(self, input: Tensor) -> Tensor:
        pixels = input.reshape(1, -1, 1, input.size(-1)).permute(0, 3, 1, 2)
        output = torch.ops.quantized.conv2d(pixels, self.packed, self.scale, self.zero_point)
        shape = list(input.shape)
        shape[-1] = self.weight.size(0)
        return output.permute(0, 2, 3, 1).reshape(shape)


def computed_in_float(module: Any, inputs: list[Tensor]) -> Tensor | None:
    """The output of an int8 layer in float, with its int8 weights; ``None`` for a module without int8 weights.

    Rounding to the range of the output then computes ReLU and ReLU6.
    """
    if hasattr(module, "_weight_bias"):
        weight, bias = module._weight_bias()
    elif isinstance(module, (Int8ConvActivation2d, Int8ConvAddition2d, Int8Linear)):
        weight, bias = module.weight, module.bias
    else:
        return None
    weight = weight.dequantize()
    if weight.dim() == 2:
        return F.linear(inputs[0], weight, bias)
    output = _CONVOLUTIONS[weight.dim()](
        inputs[0], weight, bias, module.stride, module.padding, module.dilation, module.groups
    )
    if isinstance(module, Int8ConvAddition2d):
        return output + inputs[1]
    return _ACTIVATIONS[module.activation](output) if isinstance(module, Int8ConvActivation2d) else output
