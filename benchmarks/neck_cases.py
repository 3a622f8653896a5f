"""Cases of necks and decoders, beside torchvision's layers and the published forms in plain torch."""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

import torch
from cases import Candidate, Candidates, Case, Formula, Target, with_weights_of
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation import deeplabv3
from torchvision.ops import FeaturePyramidNetwork

from torchvision_layers import nn as tnn
from torchvision_layers.experimental import nn as enn

__all__ = ["NECK_CASES"]


class Levels(nn.Module):
    """The input as the finest level, coarser ones that stay the same, and the outputs in one tensor."""

    def __init__(self, neck: nn.Module, shape: Sequence[int], channels: Sequence[int]) -> None:
        super().__init__()
        self.neck = neck
        generator = torch.Generator().manual_seed(0)
        for i, width in enumerate(channels, start=1):
            coarse = torch.randn(shape[0], width, shape[2] // 2**i, shape[3] // 2**i, generator=generator)
            self.register_buffer(f"level{i}", coarse, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        levels = OrderedDict(level0=input, **self._buffers)
        return torch.cat([output.flatten() for output in self.neck(levels).values()])


class WithSkip(nn.Module):
    """The input as the skip of a decoder, whose own input has half the size and stays the same."""

    def __init__(self, decoder: nn.Module, shape: Sequence[int], channels: int) -> None:
        super().__init__()
        self.decoder = decoder
        generator = torch.Generator().manual_seed(0)
        coarse = torch.randn(shape[0], channels, shape[2] // 2, shape[3] // 2, generator=generator)
        self.register_buffer("coarse", coarse, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        return self.decoder(self.coarse, input)


def conv(in_channels: int, out_channels: int, kernel_size: int = 1, act: type[nn.Module] = nn.SiLU) -> nn.Sequential:
    plain = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    return nn.Sequential(plain, nn.BatchNorm2d(out_channels), act(inplace=True))


class PublishedConcat(nn.Module):
    """YOLOv5's."""

    def forward(self, x: list[Tensor]) -> Tensor:
        return torch.cat(x, 1)


def concatenation(layer: type[enn.Concatenation], shape: Sequence[int]) -> Candidates:
    ours, peer = layer(), PublishedConcat()
    return {
        "YOLOv5": Candidate(Formula(lambda x: peer([x, x]), peer)),
        "ours": Candidate(Formula(lambda x: ours([x, x]), ours)),
    }


def aspp(layer: type[enn.ASPP], shape: Sequence[int]) -> Candidates:
    ours = layer(shape[1], (6, 12, 18), 64)
    peer = deeplabv3.ASPP(shape[1], (6, 12, 18), 64)
    return {"torchvision": Candidate(with_weights_of(ours, peer)), "ours": Candidate(ours)}


class PublishedUp(nn.Module):
    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = conv(in_channels + skip_channels, out_channels, 3, nn.ReLU)
        self.conv2 = conv(out_channels, out_channels, 3, nn.ReLU)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return self.conv2(self.conv1(torch.cat([skip, x], 1)))


def up_block(layer: type[enn.UpBlock], shape: Sequence[int]) -> Candidates:
    channels = shape[1]
    ours = layer(2 * channels, channels, channels)
    peer = with_weights_of(ours, PublishedUp(2 * channels, channels, channels))
    return {
        "published": Candidate(WithSkip(peer, shape, 2 * channels)),
        "ours": Candidate(WithSkip(ours, shape, 2 * channels)),
    }


class PublishedSPPF(nn.Module):
    """YOLOv5's, with our names."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.reduce, self.project = conv(in_channels, in_channels // 2), conv(2 * in_channels, out_channels)
        self.m = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(x)
        y1 = self.m(x)
        y2 = self.m(y1)
        return self.project(torch.cat((x, y1, y2, self.m(y2)), 1))


def sppf(layer: type[enn.SPPF], shape: Sequence[int]) -> Candidates:
    ours = layer(shape[1], shape[1])
    peer = with_weights_of(ours, PublishedSPPF(shape[1], shape[1]))
    return {"YOLOv5": Candidate(peer), "ours": Candidate(ours)}


class PublishedC3(nn.Module):
    """YOLOv5's, which has two convolutions instead of the first."""

    def __init__(self, ours: enn.CSPBlock) -> None:
        super().__init__()
        hidden, channels = ours.out_channels // 2, ours.out_channels
        self.skip, self.chain = conv(ours.in_channels, hidden), conv(ours.in_channels, hidden)
        self.blocks, self.project = nn.Sequential(*ours.blocks), conv(channels, channels)
        for key, value in ours.split.state_dict().items():
            halves = value.chunk(2) if value.dim() else (value, value)
            self.skip.state_dict()[key].copy_(halves[0])
            self.chain.state_dict()[key].copy_(halves[1])
        self.project.load_state_dict(ours.project.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        return self.project(torch.cat((self.blocks(self.chain(x)), self.skip(x)), 1))


class PublishedC2f(nn.Module):
    """YOLOv8's."""

    def __init__(self, ours: enn.CSPBlock) -> None:
        super().__init__()
        self.split, self.blocks, self.project = nn.Sequential(*ours.split), ours.blocks, nn.Sequential(*ours.project)

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.split(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.blocks)
        return self.project(torch.cat(y, 1))


def csp_block(layer: type[enn.CSPBlock], shape: Sequence[int], aggregates: bool) -> Candidates:
    block = partial(tnn.BasicBlock, activation_layer=nn.SiLU)
    ours = layer(shape[1], shape[1], block, depth=2, aggregates=aggregates)
    name, published = ("C2f", PublishedC2f) if aggregates else ("C3", PublishedC3)
    return {name: Candidate(published(ours)), "ours": Candidate(ours)}


def feature_pyramid(layer: type[enn.FeaturePyramid], shape: Sequence[int]) -> Candidates:
    channels = [2 * shape[1], 4 * shape[1]]
    ours, peer = (cls([shape[1], *channels], 64) for cls in (layer, FeaturePyramidNetwork))
    with_weights_of(ours, peer)
    return {
        "torchvision": Candidate(Levels(peer, shape, channels)),
        "ours": Candidate(Levels(ours, shape, channels)),
    }


class PublishedPAN(nn.Module):
    def __init__(self, ours: enn.PathAggregation) -> None:
        super().__init__()
        self.down, self.fuse = ([nn.Sequential(*m) for m in part] for part in (ours.down, ours.fuse))
        self.parts = nn.ModuleList([*self.down, *self.fuse])

    def forward(self, levels: "OrderedDict[str, Tensor]") -> "OrderedDict[str, Tensor]":
        x, outputs = list(levels.values()), list(levels.values())[:1]
        for i, (down, fuse) in enumerate(zip(self.down, self.fuse, strict=True), start=1):
            outputs.append(fuse(x[i] + down(outputs[-1])))
        return OrderedDict(zip(levels, outputs, strict=True))


def path_aggregation(layer: type[enn.PathAggregation], shape: Sequence[int]) -> Candidates:
    channels = [shape[1]] * 2
    ours = layer(shape[1], 3)
    return {
        "published": Candidate(Levels(PublishedPAN(ours), shape, channels)),
        "ours": Candidate(Levels(ours, shape, channels)),
    }


FINE = (4, 64, 40, 40)

NECK_CASES = [
    Case(enn.Concatenation, FINE, concatenation, Target(1.02, 1.02)),
    Case(enn.ASPP, (4, 128, 28, 28), aspp, Target(1.02, 1.02)),
    Case(enn.UpBlock, FINE, up_block, Target(1.02, 1.02)),
    Case(enn.SPPF, (4, 256, 20, 20), sppf, Target(1.02, 1.02)),
    Case(enn.CSPBlock, FINE, csp_block, Target(1.02, 1.02), {"aggregates": False}),
    Case(enn.CSPBlock, FINE, csp_block, Target(1.02, 1.02), {"aggregates": True}),
    Case(enn.FeaturePyramid, FINE, feature_pyramid, Target(1.02, 1.02)),
    Case(enn.PathAggregation, FINE, path_aggregation, Target(1.02, 1.02)),
]
