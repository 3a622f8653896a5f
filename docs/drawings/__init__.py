"""Diagrams of the documentation, drawn from the code they show. ``python docs/drawings`` writes them all."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import nn

from torchvision_layers import nn as tnn

from .blocks import draw_block
from .diagrams import draw_fusing, draw_packages
from .figures import draw_activations, draw_attention_window, draw_coordinates
from .svg import Sheet
from .windows import (
    draw_learned_positions,
    draw_merged_patches,
    draw_shifted_windows,
    draw_sine_positions,
    draw_swin_blocks,
)

__all__ = ["DRAWINGS", "Drawing"]


class Drawing(NamedTuple):
    """A function that draws, and the alt text."""

    draw: Callable[[], Sheet]
    alt: str

    def svg(self) -> str:
        return self.draw().svg(self.alt)


def _block(make: Callable[[], nn.Module]) -> Callable[[], Sheet]:
    return lambda: draw_block(make())


#: By file name. A drawing with the name of a layer appears on the page of that layer.
DRAWINGS: dict[str, Drawing] = {
    "packages": Drawing(
        draw_packages,
        "Packages and their imports. Your model imports nn; deploy, testing and standalone import quantized; "
        "standalone imports _source; nn, quantized and experimental import layers; layers and _source import _utils.",
    ),
    "fusing": Drawing(
        draw_fusing,
        "The modules of an InvertedResidual before and after fusing: convolutions followed by a batch norm and ReLU6 "
        "become one module each, the norms and activations become identities, the rest stays.",
    ),
    "activations": Drawing(
        draw_activations,
        "Curves of ReLU, Swish and Mish from -5 to 3: Swish and Mish dip below zero, to -0.28 and -0.31, and approach "
        "ReLU on both sides.",
    ),
    "MultiHeadedSpatialAttention": Drawing(
        draw_attention_window,
        "The pixels that a query sees with a window of 5×5: all 25 around a pixel inside the image, and at the "
        "border the 12 pixels of the window that are inside the image.",
    ),
    "CoordConv2d": Drawing(
        draw_coordinates,
        "The added channels on an image of 5×5: i ranges from -1 in the first row to 1 in the last, j from -1 in the "
        "first column to 1 in the last, r is 0 in the centre and 1.4 in the corners.",
    ),
    "SwinBlock": Drawing(
        draw_swin_blocks,
        "SwinBlock of 96 channels. Version 1: layer norm and attention with 3 heads in windows of 7×7, added to the "
        "input; then layer norm and an MLP from 96 to 384 and back, added to that sum. Version 2 has each layer norm "
        "after the attention or the MLP, before the sum.",
    ),
    "WindowAttention": Drawing(
        draw_shifted_windows,
        "The pixels that a query sees in an image of 8×8 with windows of 4×4. Without a shift, and inside an image "
        "with windows shifted by 2, these are the 16 pixels of its window; at the border only the 8 on its side.",
    ),
    "PatchMerging": Drawing(
        draw_merged_patches,
        "An image of 4×4 numbered pixels and the 2×2 pixels after merging: the first has the channels of pixels 1, 5, "
        "2 and 6, column by column. Layer norm and a linear layer from 4C to 2C channels follow, in version 2 in the "
        "other order.",
    ),
    "PositionEmbedding2d": Drawing(
        draw_learned_positions,
        "One channel of a learned embedding: 5×5 values as trained, and the same pattern at 8×8 and at 5×10.",
    ),
    "SinePositionEmbedding2d": Drawing(
        draw_sine_positions,
        "Four channels of the embedding of a 10×10 image: two change with the row, two with the column, the second of "
        "each pair more slowly.",
    ),
    "BasicBlock": Drawing(
        _block(partial(tnn.BasicBlock, 64, 128, stride=2)),
        "BasicBlock of 64 to 128 channels with stride 2: two convolutions of 3×3, each with batch norm, a ReLU between "
        "them; in parallel, a strided 1×1 convolution with batch norm; a ReLU follows their sum.",
    ),
    "Bottleneck": Drawing(
        _block(partial(tnn.Bottleneck, 256, 64)),
        "Bottleneck of 256 channels: a 1×1 convolution to 64, one of 3×3, one of 1×1 back to 256, each with batch "
        "norm, ReLUs between them; added to the input; a ReLU.",
    ),
    "InvertedResidual": Drawing(
        _block(partial(tnn.InvertedResidual, 24, 24, stride=1, expand_ratio=6)),
        "InvertedResidual of 24 channels: a 1×1 convolution to 144, a depthwise one of 3×3, each with batch norm and "
        "ReLU6, then a 1×1 convolution back to 24 with batch norm alone; added to the input.",
    ),
    "MBConv": Drawing(
        _block(partial(tnn.MBConv, 24, 24)),
        "MBConv of 24 channels: a 1×1 convolution to 144 and a depthwise one of 3×3, each with batch norm and SiLU, "
        "squeeze-excitation, then a 1×1 convolution back to 24 with batch norm alone; added to the input.",
    ),
    "ConvNeXtBlock": Drawing(
        _block(partial(tnn.ConvNeXtBlock, 96)),
        "ConvNeXtBlock of 96 channels: a depthwise 7×7 convolution, a change to channels last, layer norm, a "
        "linear layer to 384, GELU, a linear layer back to 96, a change to channels first, layer scale; added to the "
        "input.",
    ),
}
