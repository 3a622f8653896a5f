"""Folded models can be quantized: all of their convolutions run in int8, with outputs close to float."""

import copy
import io
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import deploy, quantized
from torchvision_layers import nn as tnn
from torchvision_layers.experimental import nn as enn
from torchvision_layers.layers.positional_conv import PositionalConv2d, PositionMap
from torchvision_layers.testing._checks._quantization import decibels

from ._support import randomize, relative_error

BACKENDS = ("x86", "onednn", "qnnpack")
#: Required signal-to-noise ratio in decibels; x86 has one bit less for its weights.
MIN_DECIBELS = {"x86": 28.0, "onednn": 33.0, "qnnpack": 33.0}

group_norm = partial(nn.GroupNorm, 4)

MODELS: dict[str, Callable[[], nn.Module]] = {
    "standardized, group norm": lambda: nn.Sequential(
        tnn.ConvNormAct(3, 16, conv_layer=tnn.WSConv2d, norm_layer=group_norm),
        tnn.BasicBlock(16, 16, conv_layer=tnn.WSConv2d, norm_layer=group_norm),
        nn.Conv2d(16, 8, 1),
    ),
    "standardized, batch norm": lambda: nn.Sequential(
        tnn.ConvNormAct(3, 16, conv_layer=tnn.WSConv2d), tnn.ConvNormAct(16, 16, conv_layer=tnn.SWSConv2d, groups=2)
    ),
    "scaled, no norm": lambda: nn.Sequential(
        tnn.ConvNormAct(3, 16, conv_layer=tnn.SWSConv2d, norm_layer=None),
        tnn.ConvNormAct(16, 16, conv_layer=tnn.SWSConv2d, norm_layer=None),
        nn.Conv2d(16, 8, 1),
    ),
    "coordinates": lambda: nn.Sequential(enn.CoordConv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3)),
    "coordinates and distance, batch norm": lambda: nn.Sequential(
        tnn.ConvNormAct(3, 16, conv_layer=partial(enn.CoordConv2d, with_r=True)),
        enn.CoordConv2d(16, 8, 3, stride=2, groups=2, bias=False, with_r=True),
    ),
    "convnext": lambda: nn.Sequential(nn.Conv2d(3, 16, 2, 2), tnn.ConvNeXtBlock(16), nn.Conv2d(16, 8, 1)),
}


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(16, 3, 14, 12, generator=generator) for _ in range(2)]


def build(name: str) -> tuple[nn.Module, nn.Module]:
    """The model and the folded model."""
    model = randomize(MODELS[name]())
    return model, deploy.fold(model, batches()[0])


def float_weighted_layers(model: nn.Module) -> list[str]:
    """Paths of convolutions and linear layers that are not int8, except those of position maps."""
    of_maps = {m for map in model.modules() if isinstance(map, PositionMap) for m in map.modules()}
    kinds = (nn.Conv2d, nn.Linear, nn.ConvTranspose2d)
    return [path for path, m in model.named_modules() if isinstance(m, kinds) and m not in of_maps]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MODELS)
def test_eager(name: str, backend: str) -> None:
    model, folded = build(name)
    int8 = quantized.quantize(folded, batches(), backend=backend)
    for x in (batches()[0], batches()[1][:1, :, :9, :11]):
        assert decibels(model(x), int8(x)) >= MIN_DECIBELS[backend]
    assert not float_weighted_layers(int8)
    rows = [row for row in quantized.report(int8).rows if "Conv" in row.after or "Linear" in row.after]
    assert {row.runs_in for row in rows if ".position" not in f".{row.path}"} == {"int8"}
    other = quantized.quantize(deploy.fold(randomize(MODELS[name]())), batches(), backend=backend)
    other.load_state_dict(int8.state_dict(), strict=True)
    assert torch.equal(other(batches()[0]), int8(batches()[0]))


@pytest.mark.filterwarnings("ignore:`torch.jit.*deprecated", "ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("name", MODELS)
def test_scripted(name: str) -> None:
    _, folded = build(name)
    int8 = quantized.quantize(folded, batches())
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(int8), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    for x in (batches()[0], batches()[1][:3, :, :8, :10]):
        assert torch.equal(loaded(x), int8(x))


@pytest.mark.filterwarnings("ignore:.*deprecated", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", MODELS)
def test_pt2e(name: str) -> None:
    pytest.importorskip("torchao")
    model, folded = build(name)
    int8 = quantized.quantize(folded, batches(), engine="pt2e")
    x = batches()[0]
    assert decibels(model(x), int8(x)) >= 28.0
    rows = [row for row in quantized.report(int8).rows if "Conv" in row.before or "Linear" in row.before]
    assert {row.runs_in for row in rows if ".position" not in f".{row.path}"} == {"int8"}
    other = quantized.quantize(deploy.fold(randomize(MODELS[name]())), batches(), engine="pt2e")
    other.load_state_dict(int8.state_dict(), strict=True)
    assert torch.equal(other(x), int8(x))


def test_unfolded_models_cannot_be_quantized() -> None:
    for name in ("scaled, no norm", "coordinates"):
        with pytest.raises(TypeError, match="0 is a (SWSConv2d|CoordConv2d)"):
            quantized.quantizable(MODELS[name]())


@pytest.mark.parametrize("name", MODELS)
def test_quantizable_computes_the_same(name: str) -> None:
    _, folded = build(name)
    twin = quantized.quantizable(folded)
    x = batches()[0]
    assert torch.equal(twin(x), folded(x))
    assert list(twin.state_dict()) == list(folded.state_dict())


def test_twin_of_positional_convolution() -> None:
    layer = deploy.fold(enn.CoordConv2d(3, 8, 3, padding=1, with_r=True))
    assert type(layer) is PositionalConv2d
    twin = quantized.QuantizablePositionalConv2d.from_float(layer)
    x = batches()[0]
    assert torch.equal(twin(x), layer(x))
    assert list(twin.state_dict()) == list(layer.state_dict())
    assert not twin.training
    assert twin.conv.weight is not layer.conv.weight
    built = quantized.QuantizablePositionalConv2d(layer.conv, layer.position)
    assert torch.equal(built(x), layer(x))
    assert torch.equal(copy.deepcopy(twin)(x[:0]), layer(x[:0]))
    with pytest.raises(TypeError, match="layer must be a PositionalConv2d, got CoordConv2d"):
        quantized.QuantizablePositionalConv2d.from_float(enn.CoordConv2d(3, 8, 3))


def test_empty_batch() -> None:
    _, folded = build("coordinates")
    assert quantized.quantize(folded, batches())(batches()[0][:0]).shape == (0, 8, 12, 10)


# Quantization-aware training


@pytest.mark.parametrize("name", MODELS)
def test_quantization_aware_training(name: str) -> None:
    """A folded model requires no gradients until ``requires_grad_()``."""
    model, folded = build(name)
    frozen = quantized.prepare_qat(folded)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    with pytest.raises(RuntimeError, match="does not require grad"):
        frozen(batches()[0]).sum().backward()

    prepared = quantized.prepare_qat(folded.requires_grad_())
    before = {name: parameter.detach().clone() for name, parameter in prepared.named_parameters()}
    optimizer = torch.optim.SGD(prepared.parameters(), 1e-3)
    for x in batches():
        (prepared(x) - model(x).detach()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not any(torch.equal(parameter, before[name]) for name, parameter in prepared.named_parameters())
    quantized.freeze(prepared)
    int8 = quantized.convert(prepared)
    assert not float_weighted_layers(int8)
    assert decibels(prepared.eval()(batches()[0]), int8(batches()[0])) >= 25.0
    assert decibels(model(batches()[0]), int8(batches()[0])) >= 20.0


def test_position_map_follows_training() -> None:
    _, folded = build("coordinates")
    prepared = quantized.prepare_qat(folded.requires_grad_())
    x = batches()[0]
    prepared.eval()
    with torch.no_grad():
        first = prepared(x)
    prepared.train()
    optimizer = torch.optim.SGD(prepared.parameters(), 0.1)
    prepared(x).square().mean().backward()
    optimizer.step()
    quantized.freeze(prepared)  # ranges stay fixed from here on
    prepared.eval()
    with torch.no_grad():
        second = prepared(x)
        assert relative_error(second, first) > 1e-3
        assert torch.equal(copy.deepcopy(prepared)(x), second)


@pytest.mark.parametrize("with_r", [False, True])
@pytest.mark.parametrize("backend", ["x86", "onednn", "qnnpack"])
def test_coord_conv_is_quantized_as_its_folded_form(backend: str, with_r: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), enn.CoordConv2d(8, 6, 3, padding=1, with_r=with_r), nn.ReLU()).eval()
    x = torch.randn(4, 3, 9, 7)
    int8 = quantized.quantize(model, [x], backend=backend)
    assert decibels(model(x), int8(x)) > 30
    runs_in = {row.path: row.runs_in for row in quantized.report(int8).rows if row.after != "Int8Addition"}
    assert runs_in["0"] == runs_in["1.conv"] == "int8"
