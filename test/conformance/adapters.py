"""Layers with several inputs or outputs, as modules that map one image to one image."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Concatenated", "Pyramid", "WithSkip"]


class Concatenated(nn.Module):
    """Concatenates the input with its double."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, input: Tensor) -> Tensor:
        return self.layer([input, 2 * input])


class WithSkip(nn.Module):
    """The first channels at half the size are the input of the layer, and the others its skip."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.in_channels = layer.in_channels

    def forward(self, input: Tensor) -> Tensor:
        return self.layer(1.0 * input[:, : self.in_channels, ::2, ::2], input[:, self.in_channels :])


class Pyramid(nn.Module):
    """Each level has some of the channels at half the size of the level before; the outputs are joined at full size."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.in_channels = list(layer.in_channels)

    def forward(self, input: Tensor) -> Tensor:
        levels: list[Tensor] = []
        start, step = 0, 1
        for i, channels in enumerate(self.in_channels):
            end = start + channels if i < len(self.in_channels) - 1 else input.shape[1]
            levels.append(1.0 * input[:, start:end, ::step, ::step])  # dense, in the layout of the input
            start, step = end, 2 * step
        outputs = self.layer(levels)
        assert isinstance(outputs, list)
        images: list[Tensor] = []
        for output in outputs:
            images.append(F.interpolate(output, size=input.shape[-2:], mode="nearest"))
        return torch.cat(images, 1)
