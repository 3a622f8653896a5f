"""ConvNeXt.

`A ConvNet for the 2020s <https://arxiv.org/abs/2201.03545>`_, sections 2 and 3. Child modules have
torchvision's names, so its checkpoints load.
"""

from collections.abc import Callable

from torch import Tensor, nn

from torchvision_layers import nn as tnn

from .scaling import check_multipliers, scale_channels, scale_depth


class ConvNeXt(nn.Module):
    """A patch embedding, four stages of blocks, global pooling, layer norm and a linear classifier.

    Args:
        depths: blocks in each stage.
        num_classes: size of the output.
        width_mult: multiplies the channels of the first stage; each stage has twice those of the previous one.
        depth_mult: multiplies the blocks of every stage, rounded up.
        stochastic_depth: probability of dropping the last block's branch; increases linearly from zero.
        channels: channels of the first stage before the multiplier.
        block: called with channels and ``stochastic_depth``.
    """

    def __init__(
        self,
        depths: tuple[int, int, int, int],
        num_classes: int = 1000,
        width_mult: float = 1.0,
        depth_mult: float = 1.0,
        stochastic_depth: float = 0.0,
        *,
        channels: int = 96,
        block: Callable[..., nn.Module] = tnn.ConvNeXtBlock,
    ) -> None:
        super().__init__()
        check_multipliers(width_mult, depth_mult)
        base_channels = scale_channels(channels, width_mult)
        blocks_of = [scale_depth(depth, depth_mult) for depth in depths]
        features: list[nn.Module] = [
            tnn.ConvNormAct(
                3, base_channels, 4, stride=4, padding=0, norm_layer=tnn.LayerNorm2d, activation_layer=None, bias=True
            )
        ]
        for stage, drops in enumerate(tnn.stochastic_depth_schedule(stochastic_depth, blocks_of)):
            channels = base_channels * 2**stage
            if stage > 0:
                downsample = nn.Conv2d(channels // 2, channels, 2, stride=2)
                features.append(nn.Sequential(tnn.LayerNorm2d(channels // 2), downsample))
            features.append(nn.Sequential(*(block(channels, stochastic_depth=drop) for drop in drops)))
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(tnn.LayerNorm2d(channels), nn.Flatten(1), nn.Linear(channels, num_classes))

        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)))


def convnext_tiny(num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> ConvNeXt:
    return ConvNeXt((3, 3, 9, 3), num_classes, width_mult, depth_mult, stochastic_depth=0.1)
