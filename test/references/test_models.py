"""Reference models traced, scripted, exported and quantized: a small one of each family."""

import pytest
import torch
from common.quantization import fold_unsupported
from models import MODELS, build_model
from torch import Tensor, nn

from torchvision_layers import deploy, quantized
from torchvision_layers.experimental import nn as enn

from ._support.pairs import fill

NARROW, SHALLOW = {"width_mult": 0.25}, {"width_mult": 0.125, "depth_mult": 0.25}
SIZES: dict[str, dict[str, float]] = {
    "convnext_tiny": {"width_mult": 0.125, "depth_mult": 1 / 3},
    "convnextv2_atto": {"width_mult": 0.25, "depth_mult": 1 / 3},
    "densenet121": {"width_mult": 0.25, "depth_mult": 0.25},
    "efficientnet_b0": {"width_mult": 0.25, "depth_mult": 0.5},
    "efficientnet_lite0": {"width_mult": 0.25, "depth_mult": 0.5},
    "mobilenet_v1": {"width_mult": 0.25, "depth_mult": 0.5},
    "mobilenet_v2": NARROW,
    "mobilenet_v2_coord": {"width_mult": 0.25, "depth_mult": 0.25},
    "mobilenet_v3_large": NARROW,
    "mobilenet_v3_small": NARROW,
    "mobilenet_v4_conv_small": NARROW,
    "mobileone_s0": {"width_mult": 0.25, "depth_mult": 0.25},
    "nf_resnet50": SHALLOW,
    "repvgg_a0": {"width_mult": 0.125, "depth_mult": 0.25},
    "resnet26_sasa": {"width_mult": 0.25, "depth_mult": 0.25},  # two channels per head
    "resnet50_gn_ws": SHALLOW,
    "se_resnet50": SHALLOW,
    "shufflenet_v2_x1_0": {"width_mult": 0.25, "depth_mult": 0.25},
    "vit_tiny": {"width_mult": 0.25, "depth_mult": 0.25},
    "swin_t": {"width_mult": 0.125, "depth_mult": 0.5},
    "swin_v2_t": {"width_mult": 0.125, "depth_mult": 0.5},
}
# These differ only in depth, channels or groups from the models above or from torchvision's.
VARIANTS = {"mobilenet_v2_half", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"}
VARIANTS |= {f"efficientnet_lite{i}" for i in range(1, 5)}
VARIANTS |= {"resnext50_32x4d", "se_resnet18", "vit_b_16", "vit_b_32", "wide_resnet50_2"}
WITH_TWINS = [name for name in SIZES if name != "resnet26_sasa"]


def small(name: str) -> nn.Module:
    return fill(build_model(name, 10, **SIZES[name])).eval()


@pytest.fixture(params=SIZES)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return small(request.param)


def test_all_families_are_covered() -> None:
    assert set(SIZES) | VARIANTS == set(MODELS)


def images(model: nn.Module, count: int = 3, height: int = 65, width: int = 96) -> Tensor:
    """Images, cut to whole patches for a vision transformer."""
    patch = getattr(model, "patch_size", 1)
    return torch.randn(count, 3, height // patch * patch, width // patch * patch)


def test_traced(model: nn.Module) -> None:
    x = images(model)
    assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_scripted(model: nn.Module) -> None:
    x = images(model)
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))


@pytest.mark.slow
def test_exported_with_any_batch_and_image_size(model: nn.Module) -> None:
    dynamic = {dim: torch.export.Dim.DYNAMIC for dim in (0, 2, 3)}
    # Below 65 pixels the last feature map of resnet26_sasa is one block of 4×4 queries; torch.export specializes on 1.
    program = torch.export.export(model, (images(model, 2, 96, 96),), dynamic_shapes=(dynamic,)).module()
    for x in (images(model), images(model, 5, 70, 80)):
        torch.testing.assert_close(program(x), model(x))


# The large MobileNetV3 has the blocks of the small one.
LARGE = pytest.param("mobilenet_v3_large", marks=pytest.mark.slow)


@pytest.mark.parametrize("backend", ["x86", pytest.param("onednn", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [LARGE if name == "mobilenet_v3_large" else name for name in WITH_TWINS])
def test_quantized(name: str, backend: str) -> None:
    """The output is close to float, and no convolution or linear layer runs in float."""
    model, x = small(name), torch.randn(8, 3, 64, 64)
    int8 = quantized.quantize(fold_unsupported(model), [x], backend=backend)
    rows = [row for row in quantized.report(int8).rows if row.before in ("Conv2d", "Linear")]
    # Folding joins parallel convolutions, as quantize does.
    folded = deploy.fold(model).named_modules()
    compute_ops = [
        path
        for path, module in folded
        if isinstance(module, (nn.Conv2d, nn.Linear)) and ".position." not in path  # which makes a constant map
    ]
    assert [row.runs_in for row in rows] == ["int8"] * len(compute_ops)
    assert_close_to_float(int8, model, x)


def test_attention_stays_in_float() -> None:
    """Its softmax and its products of two activations have no int8 kernels in eager mode; everything else is int8."""
    model, x = small("resnet26_sasa"), torch.randn(8, 3, 64, 64)
    folded = deploy.fold(model)
    with pytest.raises(
        TypeError, match=r"layer1.0.conv2 is a MultiHeadedSpatialAttention \(.*\), which has no quantizable"
    ):
        quantized.quantize(folded, [x])
    int8 = quantized.quantize(folded, [x], allow_float=True)
    runs_in = {row.path: row.runs_in for row in quantized.report(int8).rows}
    attentions = {path for path, module in model.named_modules() if isinstance(module, enn.MultiHeadedSpatialAttention)}
    assert attentions
    for path, module in folded.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and path.rpartition(".")[0] not in attentions:
            assert runs_in[path] == "int8", path
    assert {runs_in[path] for path in attentions} == {"float"}
    assert_close_to_float(int8, model, x)


@pytest.mark.slow
def test_linear_layers_of_attention_are_int8_in_pt2e() -> None:
    model, x = small("resnet26_sasa"), torch.randn(8, 3, 64, 64)
    int8 = quantized.quantize(deploy.fold(model), [x], engine="pt2e")
    rows = [row for row in quantized.report(int8).rows if row.before in ("Conv2d", "Linear")]
    assert {row.runs_in for row in rows} == {"int8"}
    assert len(rows) == sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in model.modules())
    assert_close_to_float(int8, model, x)


def assert_close_to_float(int8: nn.Module, model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        expected = model(x)
        error = int8(x) - expected
    assert error.square().mean() < 0.25 * expected.square().mean()  # a wide tolerance: random weights amplify rounding
