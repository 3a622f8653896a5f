"""Swin Transformers.

`Swin Transformer <https://arxiv.org/abs/2103.14030>`_, section 3, and `Swin Transformer V2
<https://arxiv.org/abs/2111.09883>`_, section 3. Child modules have torchvision's names, so its checkpoints load.
"""

from torch import Tensor, nn

from torchvision_layers import nn as tnn
from torchvision_layers.experimental import nn as enn

from .scaling import check_multipliers, scale_channels, scale_depth

DEPTHS = (2, 2, 6, 2)  # of the stages of the tiny models
HEAD_CHANNELS = 32  # in all models of the papers


class SwinTransformer(nn.Module):
    """A patch embedding, four stages with merged patches between them, global pooling and a linear classifier.

    Args:
        window_size: side of the windows; every other block shifts them by half of it.
        version: 1 or 2.
        num_classes: size of the output.
        width_mult: multiplies the 96 channels of the first stage; each stage has twice those of the previous one.
            Heads have 32 channels, or the next number above that divides the channels.
        depth_mult: multiplies the blocks of every stage, rounded up.
        stochastic_depth: probability of dropping the last block's branches; increases linearly from zero.
    """

    def __init__(
        self,
        window_size: int,
        version: int,
        num_classes: int = 1000,
        width_mult: float = 1.0,
        depth_mult: float = 1.0,
        stochastic_depth: float = 0.2,
    ) -> None:
        super().__init__()
        check_multipliers(width_mult, depth_mult)
        channels = scale_channels(96, width_mult)
        rates = tnn.stochastic_depth_schedule(stochastic_depth, [scale_depth(depth, depth_mult) for depth in DEPTHS])
        features: list[nn.Module] = [
            nn.Sequential(
                nn.Conv2d(3, channels, 4, stride=4),
                tnn.Permute([0, 2, 3, 1]),
                nn.LayerNorm(channels),
                tnn.Permute([0, 3, 1, 2]),
            )
        ]
        for stage, drops in enumerate(rates):
            if stage > 0:
                features.append(enn.PatchMerging(channels, version=version))
                channels *= 2
            heads = next(h for h in range(max(1, channels // HEAD_CHANNELS), 0, -1) if channels % h == 0)
            blocks = [
                enn.SwinBlock(
                    channels, heads, window_size, window_size // 2 * (i % 2), stochastic_depth=drop, version=version
                )
                for i, drop in enumerate(drops)
            ]
            features.append(nn.Sequential(*blocks))
        self.features = nn.Sequential(*features)
        self.norm = tnn.LayerNorm2d(channels, eps=1e-5)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten(1)
        self.head = nn.Linear(channels, num_classes)

        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.flatten(self.avgpool(self.norm(self.features(x)))))


def swin_t(num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> SwinTransformer:
    return SwinTransformer(7, 1, num_classes, width_mult, depth_mult)


def swin_v2_t(num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> SwinTransformer:
    return SwinTransformer(8, 2, num_classes, width_mult, depth_mult)
