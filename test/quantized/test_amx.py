"""Int8 convolutions on AMX: kernels that are wrong are found by trials and replaced, on any CPU."""

import copy
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchvision_layers import deploy, quantized
from torchvision_layers._utils import amx
from torchvision_layers._utils.amx import Geometry
from torchvision_layers.quantized.eager.torch_ao import amx_convs
from torchvision_layers.testing._checks._quantization import decibels

X = torch.randn(4, 3, 12, 13, generator=torch.Generator().manual_seed(0))
#: Convolutions and shapes of inputs. On AMX, oneDNN 3.10 to 3.13 computes some of them wrong.
GEOMETRIES = [
    (Geometry(16, 6, (3, 1), (1, 1), (1, 0), (1, 1), 1), (2, 16, 16, 16)),
    (Geometry(16, 16, (8, 8), (1, 1), (0, 0), (1, 1), 1), (2, 16, 20, 20)),
    (Geometry(16, 24, (7, 7), (2, 2), (3, 3), (1, 1), 1), (2, 16, 9, 1)),
    (Geometry(16, 24, (7, 7), (2, 2), (3, 3), (1, 1), 1), (2, 16, 9, 9)),
    (Geometry(48, 128, (5, 5), (1, 1), (2, 2), (1, 1), 2), (2, 48, 7, 26)),
    (Geometry(96, 96, (3, 3), (1, 1), (1, 1), (1, 1), 4), (4, 96, 22, 38)),
    (Geometry(32, 32, (3, 3), (1, 1), (1, 1), (1, 1), 32), (2, 32, 9, 9)),
    (Geometry(16, 16, (9,), (1,), (4,), (1,), 1), (2, 16, 40)),
    (Geometry(8, 16, (3, 3, 3), (1, 2, 2), (1, 1, 1), (1, 1, 1), 1), (2, 8, 4, 9, 8)),
]


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of inputs for which no kernel is right."""
    shapes: list[tuple[int, ...]] = []
    monkeypatch.setattr(amx_convs, "uses_amx", lambda: True)
    monkeypatch.setattr(amx_convs, "may_be_wrong", lambda geometry: True)
    monkeypatch.setattr(amx_convs, "is_right", lambda geometry, shape, dtype: tuple(shape) not in shapes)
    return shapes


@pytest.mark.parametrize(
    ("limit", "vnni", "uses"), [("", True, True), ("avx512_core_vnni", True, False), ("AVX2", False, False)]
)
def test_limits_on_instructions(limit: str, vnni: bool, uses: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert (amx.has_vnni(), amx.uses_amx()) == (vnni, uses)


def test_amx_is_excluded_within_a_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    with amx.without_amx():
        assert not amx.uses_amx()
    assert amx.uses_amx()
    assert "ONEDNN_MAX_CPU_ISA" not in os.environ
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "ALL")
    with amx.without_amx():
        assert not amx.uses_amx()
    assert os.environ["ONEDNN_MAX_CPU_ISA"] == "ALL"


@pytest.mark.parametrize("dilation", [(2, 2), (1, 2), (2,)])
def test_int8_with_a_dilation_of_two_is_not_tried(dilation: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amx, "_passes", lambda *args: True)
    one = (1,) * len(dilation)
    geometry = Geometry(16, 8, (3,) * len(dilation), one, one, dilation, 1)
    shape = (2, 16, *(64,) * len(dilation))
    assert not amx.is_right(geometry, shape, torch.uint8)
    assert amx.is_right(geometry, shape, torch.bfloat16)
    assert amx.is_right(geometry, (*shape[:-1], 16), torch.uint8)
    assert amx.is_right(geometry._replace(padding=(0,) * len(dilation)), shape, torch.uint8)
    assert amx.is_right(geometry._replace(dilation=(3,) * len(dilation)), shape, torch.uint8)


@pytest.mark.skipif(not amx.has_vnni(), reason="without VNNI, products of integers overflow")
@pytest.mark.parametrize(("geometry", "shape"), GEOMETRIES)
def test_sizes_that_pass_are_right(geometry: Geometry, shape: tuple[int, ...]) -> None:
    passes = amx.is_right(geometry, shape, torch.uint8)
    if not amx.uses_amx():
        assert passes or shape[-1] == 1
    if not passes:
        return
    dims = len(geometry.kernel)
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    weight = torch.randint(
        -127, 128, (geometry.filters, shape[1] // geometry.groups, *geometry.kernel), generator=generator
    )
    sizes = ([*geometry.stride], [*geometry.padding], [*geometry.dilation], geometry.groups)
    scales, zeros = torch.ones(geometry.filters), torch.zeros(geometry.filters).long()
    packed = torch.ops.onednn.qconv_prepack(weight.to(torch.int8), scales, 1.0, 7, *sizes, None)
    kernel = getattr(torch.ops.onednn, f"qconv{dims}d_pointwise").default
    output = kernel(images, 1.0, 7, packed, scales, zeros, None, *sizes, 1.0, 0, torch.float32, "none", [], "")
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[dims]
    assert torch.equal(output.double(), function(images.double() - 7, weight.double(), None, *sizes))


@pytest.mark.parametrize(
    ("sizes", "is_right"), [((9, 1), False), ((9, 2), False), ((9, 3), True), ((2, 2), True), ((9, 9), True)]
)
def test_one_column_of_several_rows_is_wrong_without_a_trial(
    sizes: tuple[int, int], is_right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amx, "_passes", None)
    geometry = Geometry(16, 24, (7, 7), (2, 2), (3, 3), (1, 1), 1)
    assert amx.is_right(geometry, (2, 16, *sizes), torch.uint8) == is_right
    assert amx.may_be_wrong(geometry)
    assert not amx.may_be_wrong(geometry._replace(stride=(1, 1)))
    assert not amx.may_be_wrong(geometry._replace(filters=16, groups=16))
    for other in (
        geometry._replace(stride=(1, 1), kernel=(7, 1)),
        geometry._replace(stride=(1, 1), dilation=(2, 2)),
        geometry._replace(stride=(1, 1), groups=2),
        geometry._replace(stride=(1, 1), kernel=(8, 8)),
    ):
        assert amx.may_be_wrong(other)


@pytest.mark.skipif(not amx.has_vnni(), reason="without VNNI, products of integers overflow")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16])
def test_trials_find_wrong_kernels(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        dtype = torch.uint8
    geometry, shape = Geometry(4, 6, (3, 1), (1, 1), (1, 0), (1, 1), 1), (2, 4, 8, 8)
    amx._passes.cache_clear()
    assert amx.is_right(geometry, shape, dtype)
    original = F.conv2d

    def wrong(input: Tensor, weight: Tensor, *args: object) -> Tensor:
        output = original(input, weight, *args)  # type: ignore[arg-type]
        output[..., -1] += float(output.abs().max()) if input.dtype == torch.float32 else 0
        return output

    monkeypatch.setitem(amx._CONVOLUTIONS, 2, wrong)
    amx._passes.cache_clear()
    assert not amx.is_right(geometry, shape, dtype)
    amx._passes.cache_clear()


def _layers(name: str) -> nn.Module:
    after = {"plain": [], "relu": [nn.ReLU()], "hardswish": [nn.Hardswish()], "silu": [nn.SiLU()]}[name]
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3, stride=2, groups=2, bias=False), *after).eval()


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return torch.relu(self.conv(x) + x)


@pytest.mark.parametrize("backend", ["x86", "onednn"])
@pytest.mark.parametrize("name", ["plain", "relu", "hardswish", "silu", "sum"])
def test_wrong_sizes_run_in_float(name: str, backend: str, wrong: list[tuple[int, ...]]) -> None:
    large = torch.randn(4, 3, 100, 100, generator=torch.Generator().manual_seed(0))  # post-operations are fused for it
    model = Residual().eval() if name == "sum" else _layers(name)
    int8 = quantized.quantize(model, [large], backend=backend)
    first = int8(large)
    wrong += [(4, 3, 100, 100), (4, 8, 98, 98), (4, 16, 100, 100)]
    second, third = int8(large), copy.deepcopy(int8)(large)
    assert torch.equal(second, third)
    assert decibels(model(large), second) > 30
    assert decibels(first, second) > 50  # they may round halves in other ways


@pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated")
def test_scripts_run_the_kernels(wrong: list[tuple[int, ...]]) -> None:
    model = _layers("relu")
    int8 = quantized.quantize(model, [X])
    scripted = torch.jit.script(int8)
    assert torch.equal(scripted(X), int8(X))
    assert any(isinstance(module, amx_convs._ChecksSizes) for module in int8.modules())
    wrong.append((4, 8, 10, 11))
    int8(X)
    with pytest.raises(RuntimeError, match=r"kernel for model.1 is wrong on AMX for inputs of shape \[4, 8, 10, 11\]"):
        torch.jit.script(int8)


@pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated")
def test_exported_scripts_run_wrong_sizes_in_float(wrong: list[tuple[int, ...]], tmp_path: Path) -> None:
    model = _layers("relu")
    int8 = quantized.quantize(model, [X])
    wrong += [(4, 8, 10, 11), (1, 8, 10, 11)]
    expected = int8(X)
    path = tmp_path / "model.pt"
    deploy.export(int8, X, path, format="torchscript")
    assert "aten::_convolution" in str(torch.jit.load(path).inlined_graph)
    assert torch.equal(deploy.load(path)(X), expected)


def test_moved_convolutions_are_checked(wrong: list[tuple[int, ...]]) -> None:
    """Grouped convolutions that run on oneDNN with FBGEMM's backend have a class of their own."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 2, groups=8), nn.ReLU()).eval()
    int8 = quantized.quantize(model, [X], backend="x86")
    expected = int8(X)
    wrong.append((4, 8, 10, 11))
    seen: list[tuple[int, ...]] = []
    original = amx_convs._in_float
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(amx_convs, "_in_float", lambda m, x, *o: (seen.append(tuple(x.shape)), original(m, x, *o))[1])
        assert decibels(expected, int8(X)) > 50
    assert seen == [(4, 8, 10, 11)]
