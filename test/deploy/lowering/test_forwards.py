"""Operators that run as they are, between convolutions in channels_last."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from .._support import FunctionModule
from ._support import assert_lowers, images, stir

MIDDLES: dict[str, Callable[..., Any]] = {
    "view of channels": lambda self, x: x.view(x.shape[0], 2, 4, *x.shape[2:]).transpose(1, 2).reshape(x.shape),
    "view of pixels": lambda self, x: x.view(x.shape[0], 8, -1).softmax(2).view(x.shape),
    "flatten": lambda self, x: x.flatten(1).sigmoid().unflatten(1, x.shape[1:]),
    "contiguous": lambda self, x: x.permute(0, 2, 3, 1).contiguous().view(-1, 8).view(x.shape),
    "as_strided": lambda self, x: x.as_strided((1, 8, 4, 4), (0, 16, 4, 1)),
    "view of bits": lambda self, x: (x.contiguous().view(torch.int32) & -2).view(torch.float32),
    "strides": lambda self, x: x * x.stride(1) / x.stride(2),
    "chunk": lambda self, x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "split": lambda self, x: torch.cat([part.relu_() for part in x.split([3, 5], 1)], 1),
    "unbind": lambda self, x: torch.stack([part * i for i, part in enumerate(x.unbind(1))], 1),
    "flip and roll": lambda self, x: x.flip(2).roll(1, 3),
    "group norm": lambda self, x: F.group_norm(x, 2),
    "instance norm": lambda self, x: F.instance_norm(x),
    "layer norm": lambda self, x: F.layer_norm(x.permute(0, 2, 3, 1), (8,)).permute(0, 3, 1, 2),
    "norm over images": lambda self, x: F.layer_norm(x, x.shape[2:]),
    "batch statistics": lambda self, x: F.batch_norm(x, None, None, training=True),
    "local response norm": lambda self, x: F.local_response_norm(x, 3),
    "pixel shuffle": lambda self, x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2),
    "bilinear": lambda self, x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "nearest": lambda self, x: F.interpolate(x, size=(9, 5)),
    "pools": lambda self, x: F.max_pool2d(x, 3, 1, 1, ceil_mode=True) + F.avg_pool2d(x, 3, 1, 1),
    "indices": lambda self, x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
    "adaptive pools": lambda self, x: F.adaptive_max_pool2d(x, 3) + F.adaptive_avg_pool2d(x, (3, 3)),
    "unfold": lambda self, x: F.fold(F.unfold(x, 2, stride=2), (4, 4), 2, stride=2),
    "pad": lambda self, x: F.pad(F.pad(x, (1, 2, 0, 1)), (1, 1, 1, 1), "reflect"),
    "crop": lambda self, x: x[:, :, 1:, :-1],
    "fancy index": lambda self, x: x[:, [3, 1, 2, 0, 7, 6, 5, 4]],
    "where": lambda self, x: torch.where(x > 0, x, x.mean()),
    "einsum": lambda self, x: torch.einsum("nchw,ndhw->ncd", x, x)[:, :, :, None],
    "einsum of one": lambda self, x: torch.einsum("nchw->nchw", x).relu_() + x,
    "product with a gate": lambda self, x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "gate of another": lambda self, x: (lambda y: y * y.amax((2, 3), keepdim=True) + y)(F.relu(x)),
    "gate per pixel": lambda self, x: x * x.mean(1, keepdim=True).sigmoid(),
    "square": lambda self, x: x * x,
    "attention": lambda self, x: (lambda t: F.scaled_dot_product_attention(t, t, t).transpose(1, 2).view(x.shape))(
        x.flatten(2).transpose(1, 2)
    ),
    "top values": lambda self, x: x.flatten(2).sort(2).values.view(x.shape),
    "detached": lambda self, x: x.detach().clone() + x,
    "out of place and in place": lambda self, x: x.relu().mul_(2).add_(x),
    "deformable": lambda self, x: torchvision.ops.deform_conv2d(
        x, x[:, :2] * 0.1, self.before.weight.new_ones(8, 8, 1, 1)
    ),
    "regions": lambda self, x: torchvision.ops.roi_align(x, x.new_tensor([[0.0, 0, 0, 3, 3], [0, 1, 1, 2, 2]]), 4),
}


@pytest.mark.parametrize("middle", MIDDLES.values(), ids=MIDDLES)
def test_between_convolutions(middle: Callable[..., Any]) -> None:
    torch.manual_seed(0)

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.after(middle(self, self.before(x)))

    name = next(name for name, function in MIDDLES.items() if function is middle)
    model = FunctionModule(forward, before=nn.Conv2d(3, 8, 3, padding=1), after=nn.Conv2d(8, 4, 1))
    others = [] if name in ("as_strided", "unfold") else [(images(3, 3, 6, 8),), (images(1, 3, 4, 4),)]
    assert_lowers(model, images(2, 3, 4, 4), others=others)


NORMS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "1d": (nn.BatchNorm1d(4), (3, 4, 9)),
    "features": (nn.BatchNorm1d(4), (3, 4)),
    "2d": (nn.BatchNorm2d(4), (2, 4, 5, 6)),
    "3d": (nn.BatchNorm3d(4), (2, 4, 3, 5, 6)),
    "without weights": (nn.BatchNorm2d(4, affine=False), (2, 4, 5, 6)),
    "without statistics": (nn.BatchNorm2d(4, track_running_stats=False), (2, 4, 5, 6)),
}


@pytest.mark.parametrize(("norm", "shape"), NORMS.values(), ids=NORMS)
def test_norms_that_cannot_be_folded(norm: nn.Module, shape: tuple[int, ...]) -> None:
    model = stir(nn.Sequential(nn.Sigmoid(), norm, nn.ReLU(inplace=True)))
    lowered = assert_lowers(model, images(*shape), others=[(images(5, *shape[1:]),)])
    assert ("addcmul" in repr(lowered)) == (norm.running_mean is not None)


class Functional(nn.Module):
    """Norms and scales that only the graph shows to follow a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, groups=1), nn.BatchNorm2d(8)
        self.up, self.norm1d = nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8)
        self.gamma = nn.Parameter(torch.rand(8, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.conv.weight, None, padding=1) * self.gamma
        norm = self.norm
        x = F.relu(F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias))
        x = self.gamma * F.conv2d(x, torch.eye(8)[:, :, None, None], self.conv.bias) * 2
        features = F.linear(x.mean((2, 3)), self.up.weight)
        norm = self.norm1d
        features = F.batch_norm(features, norm.running_mean, norm.running_var, None, norm.bias) * self.gamma.flatten()
        return x + features[:, :, None, None]


def test_norms_and_scales_of_functions() -> None:
    torch.manual_seed(0)
    lowered = assert_lowers(stir(Functional()), images(2, 3, 6, 6), others=[(images(1, 3, 5, 7),)])
    assert "addcmul" not in repr(lowered)
    assert "batch_norm" not in repr(lowered)


class Sequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.conv = nn.Embedding(10, 8), nn.Conv1d(8, 8, 3, padding=1)
        self.lstm = nn.LSTM(8, 8, batch_first=True, bidirectional=True)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def forward(self, scale: Tensor, ids: Tensor) -> Tensor:
        x = self.conv(self.embed(ids).transpose(1, 2)).transpose(1, 2) * scale
        x = self.lstm(x)[0]
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.encoder(x)


@pytest.mark.filterwarnings("ignore:The tensor attributes self.lstm")
def test_sequences() -> None:
    torch.manual_seed(0)
    ids = torch.arange(14).view(2, 7) % 10
    scale = images(2, 1, 1)
    assert_lowers(Sequences(), scale, ids, others=[(images(3, 1, 1), torch.arange(21).view(3, 7) % 10)])


def test_images_of_one_channel() -> None:
    """torch takes them for contiguous ones, whatever the strides."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 1, 3), nn.Conv2d(1, 8, 3))
    lowered = assert_lowers(model, images(2, 1, 12, 9), others=[(images(1, 1, 8, 8),)])
    assert repr(lowered).count("to_channels_last(") == 1
    assert lowered(images(2, 1, 12, 9)).is_contiguous()
