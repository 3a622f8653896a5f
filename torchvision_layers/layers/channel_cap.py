"""A largest value for each channel: what ``deploy.equalize`` puts after the ReLU that takes the place of a ReLU6."""

import torch
from torch import Tensor, nn

__all__ = ["ChannelCap"]


class ChannelCap(nn.Module):
    """The smaller of each value and the cap of its channel.

    Int8 tensors keep their scale: the cap of a channel is the nearest of their values.

    Args:
        cap: a value for each channel.
        image_dims: dimensions after the channels.
    """

    cap: Tensor

    def __init__(self, cap: Tensor, image_dims: int) -> None:
        super().__init__()
        self.register_buffer("cap", cap.reshape(-1, *[1] * image_dims))

    def forward(self, input: Tensor) -> Tensor:
        if not input.is_quantized:
            return torch.minimum(input, self.cap)
        scale, zero_point = input.q_scale(), input.q_zero_point()
        steps = (self.cap / scale + zero_point).round().clamp(0, 255).to(torch.uint8)
        return torch._make_per_tensor_quantized_tensor(torch.minimum(input.int_repr(), steps), scale, zero_point)

    def extra_repr(self) -> str:
        return f"{self.cap.numel()}"
