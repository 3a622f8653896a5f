"""The segmentation models, written with the layers on backbones of references/classification."""

from collections.abc import Callable, Sequence

from shared import mobilenet_v3_large, resnet18
from torch import Tensor, nn
from torch.nn import functional as F

from torchvision_layers.experimental import nn as enn

__all__ = ["MODELS", "DeepLabV3", "UNet"]


class UNet(nn.Module):
    """U-Net (arXiv 1505.04597) with a ResNet-18 as its contracting path.

    The last up block has the image itself as its skip, so masks have the resolution of the image.

    Args:
        num_classes: classes of a pixel, the background included.
        width_mult: multiplies all channels.
        depth_mult: multiplies the blocks of every stage, rounded up.
        up_layer: of the up blocks; ``None`` for interpolation alone.
    """

    def __init__(
        self,
        num_classes: int,
        width_mult: float = 1.0,
        depth_mult: float = 1.0,
        *,
        up_layer: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        backbone = resnet18(1, width_mult, depth_mult)
        self.stem = nn.Sequential(backbone.conv1, backbone.bn1, backbone.relu)
        self.pool = backbone.maxpool
        self.stages = nn.ModuleList([backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4])
        base = backbone.conv1.out_channels
        ups, channels = [], 8 * base
        for skip, out in ((4 * base, 4 * base), (2 * base, 2 * base), (base, base), (base, base), (3, base // 2)):
            ups.append(enn.UpBlock(channels, skip, out, up_layer=up_layer))
            channels = out
        self.ups = nn.ModuleList(ups)
        self.head = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = [x, self.stem(x)]
        y = self.pool(skips[-1])
        for stage in self.stages:
            y = stage(y)
            skips.append(y)
        y = skips.pop()
        for up in self.ups:
            y = up(y, skips.pop())
        return self.head(y)


class DeepLabV3(nn.Module):
    """DeepLabV3 (arXiv 1706.05587) on MobileNetV3-Large. Torchvision's checkpoints without ``aux_classifier`` load.

    Args:
        num_classes: classes of a pixel, the background included.
        width_mult: multiplies all channels.
        depth_mult: multiplies the blocks of every stage, rounded up.
        output_stride: size of the image over that of the last features, 4, 8, 16 or 32. Strides beyond it become
            dilations.
        atrous_rates: dilations of the pyramid; smaller ones suit smaller images.
        dropout: probability of zeroing an output value of the pyramid in training.
    """

    def __init__(
        self,
        num_classes: int,
        width_mult: float = 1.0,
        depth_mult: float = 1.0,
        *,
        output_stride: int = 16,
        atrous_rates: Sequence[int] = (12, 24, 36),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.backbone = mobilenet_v3_large(1, width_mult, depth_mult).features
        dilate_(self.backbone, output_stride)
        for module in self.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.1  # the 0.01 of MobileNetV3 lags behind in a training of a few thousand steps
        width = max(8, int(256 * width_mult))
        self.classifier = nn.Sequential(
            enn.ASPP(self.backbone[-1].out_channels, atrous_rates, width, dropout=dropout),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, num_classes, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.classifier(self.backbone(x))
        return F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)


def dilate_(features: nn.Module, output_stride: int) -> None:
    """Replaces the strides of convolutions that would exceed ``output_stride`` by dilations, in place."""
    if output_stride not in (4, 8, 16, 32):
        raise ValueError(f"output_stride must be 4, 8, 16 or 32, got {output_stride}")
    stride = dilation = 1
    for conv in features.modules():
        if not isinstance(conv, nn.Conv2d):
            continue
        if conv.stride[0] > 1 and stride == output_stride:
            dilation *= conv.stride[0]
            conv.stride = (1, 1)
        stride *= conv.stride[0]
        if conv.kernel_size[0] > 1:
            conv.dilation = (dilation, dilation)
            conv.padding = tuple(dilation * (size // 2) for size in conv.kernel_size)


MODELS: dict[str, Callable[..., nn.Module]] = {"deeplabv3_mobilenet_v3_large": DeepLabV3, "unet_resnet18": UNet}
