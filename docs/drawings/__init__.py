"""Diagrams of the documentation, drawn from the code they show. ``python docs/drawings`` writes them all."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import nn

from torchvision_layers import nn as tnn
from torchvision_layers.experimental import nn as enn

from .blocks import draw_block
from .diagrams import draw_fusing, draw_packages
from .figures import draw_activations, draw_attention_window, draw_coordinates
from .flows import draw_flow
from .maps import draw_map, map_alt
from .package_maps import PACKAGE_MAPS
from .staged import draw_rep_conv, draw_responses
from .svg import Sheet
from .tokens import draw_classifier_head, draw_encoder_block, draw_gated_mlp, draw_patches, draw_self_attention
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


def _flow(
    make: Callable[[], nn.Module],
    inputs: tuple[str, ...] = ("input",),
    outputs: tuple[str, ...] = ("output",),
    call: Callable[..., object] = lambda layer, a, b, c: layer(a),
) -> Callable[[], Sheet]:
    return lambda: draw_flow(make(), inputs, outputs, call)


_LEVELS = ("fine", "middle", "coarse")


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
    "PatchEmbedding": Drawing(
        draw_patches,
        "The number of patches that contain each pixel of an 8×8 image. With patches of 4×4 and stride 4, each pixel "
        "is in one of 4 patches; with stride 2, pixels in the corners are in one of 9 patches, others in two or four.",
    ),
    "MultiHeadSelfAttention": Drawing(
        draw_self_attention,
        "MultiHeadSelfAttention of 192 channels with 3 heads: a linear layer to 576 features, which are split into "
        "query, key and value, each of 3 heads with 64 channels; scaled dot product attention; a linear layer to 192.",
    ),
    "TransformerEncoderBlock": Drawing(
        draw_encoder_block,
        "TransformerEncoderBlock of 192 channels: layer norm and self-attention with 3 heads, added to the input; "
        "then layer norm and an MLP from 192 to 768 and back with GELU, added to that sum.",
    ),
    "GatedMLP": Drawing(
        draw_gated_mlp,
        "GatedMLP of 192 channels: a linear layer to 1,024 features; the first 512 pass through SiLU and multiply the "
        "other 512; a linear layer back to 192.",
    ),
    "ClassifierHead": Drawing(
        draw_classifier_head,
        "ClassifierHead of 192 channels and 10 classes: a global average pool, layer norm, dropout, a linear layer.",
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
    "RepConv": Drawing(
        draw_rep_conv,
        "RepConv of 64 channels in training: a 3×3 convolution and a 1×1 convolution, each with batch norm, and a "
        "batch norm of the input, added; a ReLU. Folded: one 3×3 convolution with bias and a ReLU.",
    ),
    "UniversalInvertedBottleneck": Drawing(
        _block(partial(tnn.UniversalInvertedBottleneck, 96, 96, 3, 5)),
        "UniversalInvertedBottleneck of 96 channels: a depthwise 3×3 convolution with batch norm, a 1×1 convolution to "
        "384 and a depthwise 5×5 convolution, each with batch norm and ReLU, a 1×1 convolution back to 96 with batch "
        "norm alone; added to the input.",
    ),
    "GlobalResponseNorm": Drawing(
        draw_responses,
        "The norms of six channels over the image and, with γ = 1, the gains of these channels: 1 plus the norm over "
        "the mean norm. A silent channel has gain 1, one of norm 4 has gain 3.7.",
    ),
    "Concatenation": Drawing(
        _flow(enn.Concatenation, ("first", "second", "third"), call=lambda layer, a, b, c: layer([a, b, c])),
        "Concatenation: three tensors side by side in one output.",
    ),
    "ASPP": Drawing(
        _flow(partial(enn.ASPP, 960, (12, 24, 36))),
        "ASPP of 960 to 256 channels: a 1×1 convolution, three 3×3 convolutions with dilations 12, 24 and 36, and a "
        "1×1 convolution of the mean of the image, all of the same input; their outputs are concatenated, and a 1×1 "
        "convolution with batch norm, ReLU and dropout follows.",
    ),
    "UpBlock": Drawing(
        _flow(
            partial(enn.UpBlock, 128, 64, 64),
            ("input", "skip"),
            call=lambda layer, a, b, c: layer(a, b),
        ),
        "UpBlock: the input of 128 channels is resized to the skip of 64, both are concatenated, and two 3×3 "
        "convolutions follow.",
    ),
    "SPPF": Drawing(
        _flow(partial(enn.SPPF, 512, 512)),
        "SPPF of 512 channels: a 1×1 convolution to 256, three max pools of 5×5 one after another; the convolution "
        "and all pools are concatenated, and a 1×1 convolution to 512 follows.",
    ),
    "CSPBlock": Drawing(
        _flow(partial(enn.CSPBlock, 64, 64, depth=2, aggregates=True)),
        "CSPBlock of 64 channels that aggregates: a 1×1 convolution gives two halves; two basic blocks follow on one "
        "of them; both halves and the outputs of both blocks are concatenated, and a 1×1 convolution follows.",
    ),
    "FeaturePyramid": Drawing(
        _flow(
            partial(enn.FeaturePyramid, [64, 128, 256], 96),
            _LEVELS,
            tuple(f"{name} output" for name in _LEVELS),
            lambda layer, *levels: layer(list(levels)),
        ),
        "FeaturePyramid of three levels: a 1×1 convolution on each; the coarse one is resized and added to the "
        "middle one, their sum to the fine one; a 3×3 convolution gives each output.",
    ),
    "PathAggregation": Drawing(
        _flow(
            partial(enn.PathAggregation, 96, 3),
            _LEVELS,
            tuple(f"{name} output" for name in _LEVELS),
            lambda layer, *levels: layer(list(levels)),
        ),
        "PathAggregation of three levels: the fine one is the first output; a 3×3 convolution with stride 2 of it is "
        "added to the middle one, and a 3×3 convolution gives the middle output, which is added to the coarse one in "
        "the same way.",
    ),
}
DRAWINGS |= {name: Drawing(partial(draw_map, shown), map_alt(shown)) for name, shown in PACKAGE_MAPS.items()}
