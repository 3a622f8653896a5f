"""Vision transformers.

`An Image is Worth 16x16 Words <https://arxiv.org/abs/2010.11929>`_, section 3.1 and table 1, and the smallest model of
`Training data-efficient image transformers <https://arxiv.org/abs/2012.12877>`_, table 1. Child modules have
torchvision's names, so its checkpoints load.
"""

import math
from collections import OrderedDict

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional as F

from torchvision_layers import nn as tnn
from torchvision_layers.experimental import nn as enn

from .scaling import check_multipliers, scale_channels, scale_depth

IMAGE_SIZE = 224  # at which the papers train; the position embedding is resampled for images of other sizes


class Encoder(nn.Module):
    """Adds a position embedding to the class token and the patches of an image, then runs the blocks and a norm."""

    def __init__(
        self, grid: int, depth: int, num_heads: int, hidden_dim: int, mlp_dim: int, stochastic_depth: float
    ) -> None:
        super().__init__()
        self.grid = grid
        self.pos_embedding = nn.Parameter(torch.empty(1, 1 + grid**2, hidden_dim).normal_(std=0.02))
        blocks: OrderedDict[str, nn.Module] = OrderedDict()
        (drops,) = tnn.stochastic_depth_schedule(stochastic_depth, [depth])
        for i, drop in enumerate(drops):
            blocks[f"encoder_layer_{i}"] = enn.TransformerEncoderBlock(
                num_heads, hidden_dim, mlp_dim, stochastic_depth=drop
            )
        self.layers = nn.Sequential(blocks)
        self.ln = nn.LayerNorm(hidden_dim, eps=1e-6)

    def forward(self, tokens: Tensor, rows: int, columns: int) -> Tensor:
        return self.ln(self.layers(tokens + resampled(self.pos_embedding, self.grid, rows, columns)))


@torch.fx.wrap  # stays one node in a traced graph, so that the choice between sizes survives
def resampled(embedding: Tensor, grid: int, rows: int, columns: int) -> Tensor:
    """The position embedding for another grid of patches; that of the class token stays."""
    if not torch.jit.is_scripting():  # noqa: SIM102  # TorchScript would compile a condition joined by "and"
        if not torch.compiler.is_compiling() and rows == grid and columns == grid:
            return embedding
    # A graph for all sizes has no branch. Resampling to the same size changes nothing.
    image = embedding[:, 1:].transpose(1, 2).unflatten(2, (grid, grid))
    image = F.interpolate(image, (rows, columns), mode="bicubic", align_corners=False)
    return torch.cat([embedding[:, :1], image.flatten(2).transpose(1, 2)], 1)


class VisionTransformer(nn.Module):
    """A patch embedding, a class token, transformer blocks, and a linear classifier on the class token.

    Args:
        patch_size: size of a patch in pixels, which must divide the height and width of the images.
        depth: number of blocks.
        num_heads: attention heads of each block.
        head_dim: channels of a head; a token has ``num_heads`` times as many.
        num_classes: size of the output.
        width_mult: multiplies the channels of a head; the number of heads stays.
        depth_mult: multiplies the blocks, rounded up.
        stochastic_depth: probability of dropping the last block's branches; increases linearly from zero.
    """

    def __init__(
        self,
        patch_size: int,
        depth: int,
        num_heads: int,
        head_dim: int = 64,
        num_classes: int = 1000,
        width_mult: float = 1.0,
        depth_mult: float = 1.0,
        stochastic_depth: float = 0.0,
    ) -> None:
        super().__init__()
        check_multipliers(width_mult, depth_mult)
        hidden_dim = num_heads * scale_channels(head_dim, width_mult)
        self.patch_size = patch_size
        self.conv_proj = enn.PatchEmbedding(3, hidden_dim, patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, hidden_dim))
        blocks = scale_depth(depth, depth_mult)
        self.encoder = Encoder(
            IMAGE_SIZE // patch_size, blocks, num_heads, hidden_dim, 4 * hidden_dim, stochastic_depth
        )
        self.heads = nn.Sequential(OrderedDict(head=nn.Linear(hidden_dim, num_classes)))

        nn.init.trunc_normal_(self.conv_proj.proj.weight, std=math.sqrt(1 / (3 * patch_size**2)))
        for parameter in (self.conv_proj.proj.bias, *self.heads.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.conv_proj(x)
        tokens = torch.cat([self.class_token.expand(patches.shape[0], -1, -1), patches], 1)
        tokens = self.encoder(tokens, x.shape[2] // self.patch_size, x.shape[3] // self.patch_size)
        return self.heads(tokens[:, 0])


def vit_tiny(num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> VisionTransformer:
    return VisionTransformer(16, 12, 3, 64, num_classes, width_mult, depth_mult, stochastic_depth=0.1)


def vit_b_16(num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> VisionTransformer:
    return VisionTransformer(16, 12, 12, 64, num_classes, width_mult, depth_mult)


def vit_b_32(num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> VisionTransformer:
    return VisionTransformer(32, 12, 12, 64, num_classes, width_mult, depth_mult)
