"""One small model for each kind of ``forward`` in other libraries: both engines take it as it is."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from torchvision_layers import quantized
from torchvision_layers._utils.inputs import Inputs
from torchvision_layers._utils.structure import flatten
from torchvision_layers.testing._checks._quantization import WEIGHTED, decibels

CHANNELS = 8


def image(size: int = 12) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(size))


def conv_norm(in_channels: int = CHANNELS, kernel_size: int = 3, **options: Any) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, CHANNELS, kernel_size, padding=kernel_size // 2, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(CHANNELS))


class Kind(nn.Module):
    """A model with a convolution before the part that matters, and a linear layer after it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(CHANNELS, 5)

    def inputs(self) -> Inputs:
        return Inputs((image(),))


class Residual(Kind):
    """Torchvision's blocks: an addition in place, and one activation that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv_norm(), conv_norm()
        self.drop = StochasticDepth(0.2, "row")

    def forward(self, x: Tensor) -> Tensor:
        identity = x = self.relu(self.stem(x))
        out = self.relu(self.first(x))
        out = self.drop(self.second(out))
        out += identity
        return self.head(torch.flatten(F.adaptive_avg_pool2d(self.relu(out), 1), 1))


class PreActivation(Kind):
    """A norm and an activation before each convolution, so that no norm can be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv(F.relu(self.norm(x)))
        return self.head(x.mean([2, 3]))


class Concatenation(Kind):
    """DenseNet: a list of features that grows, concatenated for each layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([conv_norm(CHANNELS * (i + 1)) for i in range(2)])
        self.last = conv_norm(3 * CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = [10 * self.relu(self.stem(x))]
        for layer in self.layers:
            features.append(F.relu(layer(torch.cat(features, 1)), inplace=True))
        return self.last(torch.cat(features, dim=1))


class ChannelShuffle(Kind):
    """ShuffleNet: halves of the channels, joined and shuffled by a view."""

    def __init__(self) -> None:
        super().__init__()
        half = CHANNELS // 2
        self.branch = nn.Sequential(nn.Conv2d(half, half, 3, padding=1, groups=half), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.stem(x).chunk(2, dim=1)
        x = torch.cat((first, self.branch(second)), dim=1)
        batch, channels, height, width = x.size()
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        return self.head(x.view(batch, -1, height, width).mean([2, 3]))


class SqueezeExcitation(Kind):
    """A gate for each channel, from functional pooling and activations."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(CHANNELS, 4, 1), nn.Conv2d(4, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x))
        gate = self.expand(F.silu(self.reduce(F.adaptive_avg_pool2d(x, 1))))
        x = F.avg_pool2d(F.max_pool2d(x * F.hardsigmoid(gate), 3, 2, 1), 2)
        return self.head(F.dropout(x.mean((2, 3)), 0.2, self.training))


class FeaturePyramid(Kind):
    """Several maps, added after interpolation, in an ``OrderedDict``."""

    def __init__(self) -> None:
        super().__init__()
        self.down = conv_norm(stride=2)
        self.lateral = nn.ModuleList([nn.Conv2d(CHANNELS, CHANNELS, 1) for _ in range(2)])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.relu(self.stem(x))
        coarse = self.lateral[1](self.relu(self.down(fine)))
        top_down = F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
        return OrderedDict(fine=self.lateral[0](fine) + top_down, coarse=coarse, pool=F.max_pool2d(coarse, 1, 2, 0))


class Attention(Kind):
    """A transformer's block on patches, with a token and positions that are parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, CHANNELS))
        self.positions = nn.Parameter(torch.randn(1, 10, CHANNELS))
        self.patches = nn.Conv2d(3, CHANNELS, 4, 4)
        self.norms = nn.ModuleList([nn.LayerNorm(CHANNELS) for _ in range(2)])
        self.attention = nn.MultiheadAttention(CHANNELS, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(CHANNELS, 16), nn.GELU(), nn.Linear(16, CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        y = self.norms[0](x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.mlp(self.norms[1](x))
        return self.head(x[:, 0])


class WindowAttention(Kind):
    """Swin: shifted windows, a product written out, and positions from a table."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(CHANNELS)
        self.qkv, self.project = nn.Linear(CHANNELS, 3 * CHANNELS), nn.Linear(CHANNELS, CHANNELS)
        self.table = nn.Parameter(torch.randn(7, 2))
        self.register_buffer("index", torch.arange(16).view(4, 4).add(torch.arange(4)) % 7, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        batch, height, width, channels = x.shape
        y = torch.roll(self.norm(x), (-1, -1), (1, 2))
        y = y.reshape(batch, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, channels)
        q, k, v = self.qkv(y).reshape(len(y), 4, 3, 2, channels // 2).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q * (channels // 2) ** -0.5) @ k.transpose(-2, -1)
        weights = weights + self.table[self.index.view(-1)].view(4, 4, -1).permute(2, 0, 1).unsqueeze(0)
        y = self.project((weights.softmax(-1) @ v).transpose(1, 2).reshape(-1, 4, channels))
        y = y.view(batch, height // 2, width // 2, 2, 2, channels).permute(0, 1, 3, 2, 4, 5)
        return self.head(x + torch.roll(y.reshape(batch, height, width, channels), (1, 1), (1, 2)))


class BranchOnShape(Kind):
    """Padding only if the size needs it."""

    def __init__(self) -> None:
        super().__init__()
        self.down = conv_norm(kernel_size=1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if x.shape[-1] % 5 != 0:
            x = F.pad(x, (0, 5 - x.shape[-1] % 5))
        return F.interpolate(self.down(x), scale_factor=2.0, mode="bilinear", align_corners=False)


class SeveralInputs(Kind):
    """Two images, and a number with a default."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = conv_norm(1)

    def forward(self, x: Tensor, depth: Tensor, scale: float = 0.5) -> tuple[Tensor, None]:
        return self.head((self.stem(x) + scale * self.depth(depth)).mean((2, 3))), None

    def inputs(self) -> Inputs:
        return Inputs((image(), 3 * image()[:, :1]))


class KeywordInput(Kind):
    """An input that may be missing."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.stem(x)
        if mask is not None:
            x = x * mask
        return self.head(x.mean((2, 3)))

    def inputs(self) -> Inputs:
        return Inputs(kwargs={"x": image(), "mask": image()[:, :1].sigmoid()})


class Levels(nn.Module):
    """Torchvision's feature pyramid: the names and the number of maps come from a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.lateral = nn.ModuleList([nn.Conv2d(CHANNELS, CHANNELS, 1) for _ in range(2)])

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        *others, result = [layer(level) for layer, level in zip(self.lateral, maps.values(), strict=True)]
        for level in others[::-1]:
            result = level + F.interpolate(result, size=level.shape[-2:])
        return OrderedDict((name, result if i == 0 else level) for i, (name, level) in enumerate(maps.items()))


class ContainerInput(Kind):
    """A part that takes a dict of maps."""

    def __init__(self) -> None:
        super().__init__()
        self.down = conv_norm(stride=2)
        self.levels = Levels()

    def forward(self, x: Tensor) -> Tensor:
        fine = self.relu(self.stem(x))
        return self.head(self.levels({"fine": fine, "coarse": self.down(fine)})["fine"].mean((2, 3)))


@dataclass
class Prediction:
    scores: Tensor
    maps: list[Tensor]
    auxiliary: Tensor | None = None


class Dataclass(Kind):
    """An output with fields, and a head that runs in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(CHANNELS, 5)

    def forward(self, x: Tensor) -> Prediction:
        x = self.relu(self.stem(x))
        auxiliary = self.auxiliary(x.mean((2, 3))) if self.training else None
        return Prediction(self.head(x.mean((2, 3))), [x, x.sigmoid()], auxiliary)


class ReusedModule(Kind):
    """RetinaNet: one head for maps of several sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        return [self.shared(level) for level in (x, F.avg_pool2d(x, 2), F.max_pool2d(x, 3))]


KINDS: list[type[Kind]] = [
    *(Residual, PreActivation, Concatenation, ChannelShuffle, SqueezeExcitation, FeaturePyramid, Attention),
    *(WindowAttention, BranchOnShape, SeveralInputs, KeywordInput, ContainerInput, Dataclass, ReusedModule),
]
ENGINES = {"eager-x86": ("eager", "x86"), "eager-onednn": ("eager", "onednn"), "pt2e": ("pt2e", "x86")}
CASES = [pytest.param(cls, *ENGINES[name], id=f"{cls.__name__}-{name}") for cls in KINDS for name in ENGINES]


def built(cls: type[Kind]) -> Kind:
    """The model with statistics that no folding or fusing may lose."""
    model = cls().eval()
    for norm in _norms(model):
        for tensor in (norm.running_var, norm.weight):
            nn.init.uniform_(tensor, 0.5, 1.5)
        for tensor in (norm.running_mean, norm.bias):
            nn.init.normal_(tensor, std=0.2)
    return model


def _norms(model: nn.Module) -> Iterable[nn.BatchNorm2d]:
    return (module for module in model.modules() if isinstance(module, nn.BatchNorm2d))


@pytest.mark.filterwarnings("ignore:the int8 graph takes images of")  # of the two kinds that pad to a multiple
@pytest.mark.parametrize(("cls", "engine", "backend"), CASES)
@torch.no_grad()
def test_each_kind_becomes_int8(cls: type[Kind], engine: str, backend: str) -> None:
    """With the structure of its outputs, close to float, and without a convolution or linear layer in float."""
    model = built(cls)
    inputs = model.inputs()
    expected, structure = flatten(inputs.run(model))
    int8 = quantized.quantize(model, [inputs.kwargs or inputs.args], engine=engine, backend=backend)
    got, structure_of_int8 = flatten(inputs.run(int8))
    assert structure_of_int8 == structure
    assert [decibels(a, b) >= 20 for a, b in zip(expected, got, strict=True)] == [True] * len(expected)
    rows = [row for row in quantized.report(int8).rows if row.before in {weighted.__name__ for weighted in WEIGHTED}]
    in_float = {row.path for row in rows if row.runs_in == "float" and row.why != "is never called"}
    assert rows
    assert not in_float
