r"""ResNet without normalization.

`Characterizing signal propagation to close the performance gap in unnormalized ResNets
<https://arxiv.org/abs/2101.08692>`_, sections 3 and 4. A block computes :math:`h + \alpha f(h / \beta)`. Filters
are standardized and scaled so that :math:`f` preserves a variance of one. Then :math:`\beta^2`, the variance of
:math:`h`, grows by :math:`\alpha^2` with each block and need not be measured. A block that changes the shape resets
it to one, since its skip is a convolution of :math:`h / \beta` as well.
"""

from math import pi

import torch
from torch import Tensor, nn

from torchvision_layers import nn as tnn
from torchvision_layers import quantized

from .scaling import check_multipliers, rates_below, scale_channels, scale_depth

# Compensates for the variance that ReLU removes from a standard normal variable (section 4.2).
GAMMA = (2 / (1 - 1 / pi)) ** 0.5


class SkipGain(nn.Module):
    r"""Multiplies a branch by :math:`\alpha` and by a learned gain, initially zero, so that a block starts as its skip.

    Args:
        channels: channels of the branch.
        alpha: factor of the branch if the learned gain is one.
    """

    def __init__(self, channels: int, alpha: float) -> None:
        super().__init__()
        self.channels, self.alpha = channels, alpha
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.alpha * self.gain)

    def folded(self) -> nn.Module:
        """A scale for each channel, which ``deploy.fold`` folds into the previous convolution."""
        scale = tnn.LayerScale(self.channels, device=self.gain.device, dtype=self.gain.dtype)
        nn.init.constant_(scale.weight, self.alpha * self.gain.item())
        return scale


class NFBlock(nn.Module):
    """A bottleneck with activations before its convolutions.

    Args:
        in_channels: channels of the input.
        planes: a quarter of the channels of the output.
        stride: stride of the 3×3 convolution and of the convolution on the skip.
        beta: standard deviation of the input.
        alpha: standard deviation of the branch if its gain is one.
        stochastic_depth: probability of dropping the branch of a sample in training.
    """

    expansion = 4

    def __init__(
        self, in_channels: int, planes: int, stride: int, beta: float, alpha: float, stochastic_depth: float
    ) -> None:
        super().__init__()
        out_channels = planes * self.expansion
        # ReLU(h / β) = ReLU(h) / β, so the filters are divided by β instead of the activations.
        gamma = GAMMA / beta
        self.act1 = nn.ReLU()
        self.conv1 = tnn.SWSConv2d(in_channels, planes, 1, gamma=gamma)
        self.act2 = nn.ReLU(inplace=True)
        self.conv2 = tnn.SWSConv2d(planes, planes, 3, stride, padding=1, gamma=GAMMA)
        self.act3 = nn.ReLU(inplace=True)
        self.conv3 = tnn.SWSConv2d(planes, out_channels, 1, gamma=GAMMA)
        self.skip_gain = SkipGain(out_channels, alpha)
        self.stochastic_depth = tnn.StochasticDepth(stochastic_depth, "row") if stochastic_depth > 0 else None
        self.projection = None
        if stride != 1 or in_channels != out_channels:
            self.projection = tnn.SWSConv2d(in_channels, out_channels, 1, stride, gamma=gamma)

    def forward(self, x: Tensor) -> Tensor:
        active = self.act1(x)
        branch = self.conv2(self.act2(self.conv1(active)))
        branch = self.skip_gain(self.conv3(self.act3(branch)))
        if self.stochastic_depth is not None:
            branch = self.stochastic_depth(branch)
        return self._add_skip(branch, x if self.projection is None else self.projection(active))

    def _add_skip(self, branch: Tensor, skip: Tensor) -> Tensor:
        return branch + skip


class QuantizableNFBlock(quantized.QuantizableLayer, NFBlock):
    """:class:`NFBlock` with an observed addition, which is all that int8 needs."""

    float_class = NFBlock

    def _add_observed_ops(self) -> None:
        self.skip_add = quantized.Addition()

    def _add_skip(self, branch: Tensor, skip: Tensor) -> Tensor:
        return self.skip_add(branch, skip)


class NFResNet(nn.Module):
    """A stem, four stages of blocks, global pooling and a linear classifier.

    Args:
        depths: blocks in each stage.
        num_classes: size of the output.
        width_mult: multiplies the 64 channels of the stem; each stage has twice the planes of the previous one.
        depth_mult: multiplies the blocks of every stage, rounded up.
        alpha: standard deviation that each block adds.
        stochastic_depth: multiplied by the share of earlier blocks, the probability of dropping the branch of a block.
    """

    def __init__(
        self,
        depths: tuple[int, int, int, int],
        num_classes: int = 1000,
        width_mult: float = 1.0,
        depth_mult: float = 1.0,
        *,
        alpha: float = 0.2,
        stochastic_depth: float = 0.1,
    ) -> None:
        super().__init__()
        check_multipliers(width_mult, depth_mult)
        base_channels = scale_channels(64, width_mult)
        self.conv1 = tnn.SWSConv2d(3, base_channels, 7, stride=2, padding=3, bias=False, activation=None)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)

        blocks_of = [scale_depth(depth, depth_mult) for depth in depths]
        channels, variance = base_channels, 1.0
        for stage, drops in enumerate(rates_below(stochastic_depth, blocks_of)):
            planes, blocks = base_channels * 2**stage, []
            for i, drop in enumerate(drops):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(NFBlock(channels, planes, stride, variance**0.5, alpha, drop))
                variance = (1.0 if i == 0 else variance) + alpha**2
                channels = planes * NFBlock.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))

        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))
        x = self.relu(self.layer4(self.layer3(self.layer2(self.layer1(x)))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def nf_resnet50(num_classes: int = 1000, width_mult: float = 1.0, depth_mult: float = 1.0) -> NFResNet:
    return NFResNet((3, 4, 6, 3), num_classes, width_mult, depth_mult)
