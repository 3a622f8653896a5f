"""Memory that lowered models hold while they run, compared with folded models in eager mode."""

import copy
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from torchvision_layers import deploy
from torchvision_layers import nn as tnn

from .._support import FunctionModule
from ._support import assert_lowers, images, stir

with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, "path", [str(Path(__file__).resolve().parents[3] / "benchmarks"), *sys.path])
    peak_bytes = importlib.import_module("measure").peak_bytes

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class UNet(nn.Module):
    """Two levels, whose skip connection lives through the lower one."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.bottom = tnn.ConvNormAct(3, 16), tnn.ConvNormAct(16, 32)
        self.up, self.decoder = nn.ConvTranspose2d(32, 16, 2, stride=2), tnn.ConvNormAct(32, 16)
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.encoder(x)
        up = self.up(self.bottom(F.max_pool2d(skip, 2)))
        return F.interpolate(self.head(self.decoder(torch.cat([up, skip], 1))), scale_factor=2.0, mode="bilinear")


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual sums": lambda: nn.Sequential(tnn.ConvNormAct(3, 16), *(tnn.BasicBlock(16, 16) for _ in range(3))),
    "squeeze-excitation": lambda: nn.Sequential(tnn.ConvNormAct(3, 16), *(tnn.MBConv(16, 16) for _ in range(2))),
    "concatenations": lambda: torchvision.models.DenseNet(8, (3, 3), 16, num_classes=5),
    "a skip connection": UNet,
    "tokens": lambda: nn.Sequential(nn.Conv2d(3, 32, 4, 4), tnn.ConvNeXtBlock(32), tnn.ConvNeXtBlock(32)),
}
LARGE = ("resnet18", "mobilenet_v3_large", "densenet121", "efficientnet_b0", "convnext_tiny")


def assert_holds_less(model: nn.Module, x: Tensor) -> None:
    lowered, folded = deploy.lower(model, x), deploy.fold(model)
    for memory_format in FORMATS.values():
        y, eager = x.contiguous(memory_format=memory_format), copy.deepcopy(folded).to(memory_format=memory_format)
        with torch.no_grad():
            own, others = peak_bytes(lambda: lowered(y)), peak_bytes(lambda: eager(y))  # noqa: B023 - called at once
        assert 0 < own <= others, memory_format


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_lowered_models_hold_no_more_than_eager_ones(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    assert_holds_less(stir(build()), images(2, 3, 48, 48))


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_networks(name: str) -> None:
    torch.manual_seed(0)
    assert_holds_less(stir(getattr(torchvision.models, name)(weights=None)), images(2, 3, 96, 96))


def test_values_are_released_after_their_last_use() -> None:
    torch.manual_seed(0)
    depth = [layer for _ in range(6) for layer in (nn.Conv2d(8, 8, 1), nn.ELU())]
    x = images(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    lowered = deploy.lower(nn.Sequential(nn.Conv2d(3, 8, 1), *depth, nn.Conv2d(8, 1, 1)).eval(), x)
    activation = 2 * 8 * 64 * 64 * 4
    assert 2 * activation <= peak_bytes(lambda: lowered(x)) < 2.1 * activation


def test_activations_in_bfloat16_take_half_the_memory() -> None:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU has no instructions for bfloat16")
    torch.manual_seed(0)
    # Kernels on AMX need memory of their own, which is little next to large images.
    model, x = stir(NETWORKS["residual sums"]()), images(2, 3, 128, 128)
    model.append(nn.Conv2d(16, 1, 1))
    in_float, rounded = deploy.lower(model, x), deploy.lower(model, x, dtype=torch.bfloat16)
    assert peak_bytes(lambda: rounded(x)) < 0.55 * peak_bytes(lambda: in_float(x))


def later(self: Any, x: Tensor) -> Tensor:
    y = self.pool(self.a(x))
    return F.elu(y) + self.b(y * 2) + y


IN_PLACE: dict[str, tuple[Callable[..., Tensor], str]] = {
    "activation": (lambda self, x: self.b(F.elu(self.a(x))), "elu_("),
    "written by the model": (lambda self, x: self.b(F.mish(self.a(x), inplace=True)), "mish_("),
    "number": (lambda self, x: self.b((self.a(x) + 3) / 2), "div_("),
    "sum": (lambda self, x: self.b(self.pool(self.a(x)) + self.pool(x)), "add_in_place("),
    "product": (lambda self, x: self.b(self.pool(x) * self.pool(self.a(x)).mean((2, 3), True)), "multiply_in_place("),
    "square": (lambda self, x: self.b((lambda y: y * y)(self.pool(self.a(x)))), " mul("),
    "broadcast": (lambda self, x: self.b(self.pool(self.a(x)).mean((2, 3), True) * x), " mul("),
    "read later": (later, " elu("),
    "input": (lambda self, x: self.b(F.elu(x)), " elu("),
    "returned": (lambda self, x: (lambda y: torch.cat([F.elu(y), y]))(self.a(x)), " elu("),
}


@pytest.mark.parametrize(("function", "step"), IN_PLACE.values(), ids=IN_PLACE)
def test_operators_overwrite_what_nothing_reads_later(function: Callable[..., Tensor], step: str) -> None:
    torch.manual_seed(0)
    layers = {"a": nn.Conv2d(4, 4, 3, padding=1), "b": nn.Conv2d(4, 4, 1), "pool": nn.AvgPool2d(3, 1, 1)}
    others = [(images(1, 4, 9, 7),), (images(2, 4, 1, 1),)]
    assert_lowers(FunctionModule(function, **layers).eval(), images(3, 4, 6, 6), others=others, contains=[step])


def test_the_count_of_memory() -> None:
    x = torch.ones(1024)
    assert peak_bytes(lambda: x.view(2, 512)) == 0
    assert peak_bytes(lambda: x.relu().neg_()) == 4096
    assert peak_bytes(lambda: x.relu().neg()) == 8192
    assert peak_bytes(lambda: [x.relu().neg().abs() for _ in range(3)]) == 4 * 4096
