"""Networks of torchvision and timm."""

import pytest
import timm
import torch
import torchvision

from torchvision_layers import deploy, quantized

from ._support import assert_lowers, assert_rounds_like, images, stir

SMALL = ("resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1")
LARGE = (
    "mobilenet_v2",
    "efficientnet_b0",
    "convnext_tiny",
    "densenet121",
    "vit_b_32",
    "resnext50_32x4d",
    "regnet_y_400mf",
)
NAMES = [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]


@pytest.mark.parametrize("name", NAMES)
def test_torchvision(name: str) -> None:
    torch.manual_seed(0)
    model = stir(getattr(torchvision.models, name)(weights=None))
    size = 224 if name.startswith("vit") else 64
    others = [] if name.startswith("vit") else [(images(1, 3, size + 32, size + 9),)]
    lowered = assert_lowers(model, images(2, 3, size, size), others=[(images(3, 3, size, size),), *others])
    program = repr(lowered)
    assert "conv2d(" not in program
    if "shuffle" not in name:
        assert program.count("to_channels_last(") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit", "repvgg_a0", "ghostnet_050"]
)
def test_timm(name: str) -> None:
    torch.manual_seed(0)
    model = stir(timm.create_model(name, pretrained=False))
    size = model.default_cfg["input_size"][-1] if "vit" in name else 96
    assert_lowers(model, images(2, 3, size, size), others=[(images(1, 3, size, size),)])


@pytest.mark.slow
def test_segmentation() -> None:
    torch.manual_seed(0)
    model = stir(torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None))
    assert_lowers(model, images(2, 3, 64, 64), others=[(images(1, 3, 96, 73),)])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "convnext_tiny"])
def test_int8(name: str) -> None:
    torch.manual_seed(0)
    model = stir(getattr(torchvision.models, name)(weights=None))
    x = images(4, 3, 64, 64)
    graph = quantized.quantize(model, [x], engine="pt2e")
    lowered = deploy.lower(graph, x)
    assert_rounds_like(lowered, graph, model, x)
    assert_rounds_like(lowered, graph, model, images(2, 3, 96, 73))
    assert not any(operator in repr(lowered) for operator in (" conv2d(", " linear(", "mkldnn"))
