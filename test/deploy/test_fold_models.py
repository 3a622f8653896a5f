"""Every layer of the package, and models of torchvision and of the references, compute the same when folded."""

import copy
import warnings
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from torchvision_layers import deploy
from torchvision_layers.testing import LayerSpec, Sample

from ..conformance.specs import SPECS
from ..quantized._support import build_model, with_running_stats
from ._support import assert_folds, randomize, relative_error

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, torchvision.ops.FrozenBatchNorm2d)
CASES = [pytest.param(spec, sample, id=f"{spec.name}-{sample.id}") for spec in SPECS for sample in spec.samples]


def build(spec: LayerSpec, sample: Sample) -> tuple[nn.Module, Tensor]:
    layer, x = spec.cls(**sample.kwargs), torch.randn(sample.shape)
    sample.adapt(layer)(x)  # initializes lazy layers
    return sample.adapt(randomize(layer)), x


@pytest.mark.parametrize(("spec", "sample"), CASES)
def test_layer(spec: LayerSpec, sample: Sample) -> None:
    layer, x = build(spec, sample)
    with torch.no_grad():
        assert relative_error(deploy.fold(layer, x)(x), layer(x)) <= 1e-5
        batch = x.double() if sample.adapter else None  # its forward may not be traceable
        folded = assert_folds(copy.deepcopy(layer), x, batch=batch)
        assert_folds(nn.Sequential(nn.Identity(), nn.Sequential(layer, nn.Dropout())), x, batch=batch)
    classes = {type(module).__name__ for path, module in folded.named_modules() if path}
    # Window attention is one node of a trace, so its dropout, which does nothing in eval mode, stays.
    dropout = set() if spec.name == "SwinBlock" else {"Dropout"}
    assert classes.isdisjoint({"StochasticDepth", "WSConv2d", "SWSConv2d", "CoordConv2d", *dropout})


@pytest.mark.parametrize(("spec", "sample"), [case for case in CASES if case.values[0].twin])
def test_twin(spec: LayerSpec, sample: Sample) -> None:
    layer, x = build(spec, sample)
    twin = spec.twin.from_float(layer)
    assert torch.equal(deploy.fold(twin)(x), deploy.fold(layer)(x))
    assert_folds(twin, x)


def modules_called(model: nn.Module, x: Tensor) -> list[nn.Module]:
    """The modules that run; some of torchvision's, such as auxiliary heads, do not."""
    calls: list[nn.Module] = []
    model = copy.deepcopy(model)
    for module in model.modules():
        module.register_forward_hook(lambda module, *_: calls.append(module))
    model(x)
    return calls


def assert_model_folds(model: nn.Module, size: int, norms_left: int = 0) -> None:
    """Compares in float64, so that rounding errors do not matter."""
    assert not any(module.training for module in model.modules())
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    folded = assert_folds(model, x, batch=x)
    remaining = modules_called(folded, x)
    assert sum(isinstance(module, NORMS) for module in remaining) == norms_left
    assert not any(isinstance(module, (nn.Dropout, torchvision.ops.StochasticDepth)) for module in remaining)


# Name, image size, and number of norms that precede their convolutions.
SMALL = [
    ("resnet18", 32, 0), ("mobilenet_v3_small", 32, 0), ("mnasnet0_5", 32, 0), ("shufflenet_v2_x0_5", 32, 0),
    ("squeezenet1_1", 48, 0),
]  # fmt: skip
LARGE = [
    ("mobilenet_v2", 32, 0), ("efficientnet_b0", 32, 0), ("convnext_tiny", 32, 0), ("regnet_y_400mf", 32, 0),
    ("googlenet", 64, 0), ("densenet121", 32, 62), ("vgg11_bn", 32, 0), ("swin_t", 32, 0), ("vit_b_32", 64, 0),
    ("efficientnet_v2_s", 64, 0), ("resnext50_32x4d", 32, 0), ("mobilenet_v3_large", 32, 0), ("inception_v3", 96, 0),
    ("maxvit_t", 224, 11),
]  # fmt: skip


ARGUMENTS: dict[str, dict[str, Any]] = {
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False, "aux_logits": False},  # the auxiliary head needs large images
    "vit_b_32": {"image_size": 64},
}


@pytest.mark.parametrize(
    ("name", "size", "norms_left"),
    [*SMALL, *(pytest.param(*entry, marks=pytest.mark.slow) for entry in LARGE)],
)
def test_torchvision_model(name: str, size: int, norms_left: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about a future change of initialization
        arguments = ARGUMENTS.get(name, {})
        model = torchvision.models.get_model(name, weights=None, num_classes=10, **arguments)
    assert_model_folds(with_running_stats(model, size), size, norms_left)


REFERENCES = [
    "convnext_tiny", "efficientnet_b0", "mobilenet_v2_half", "mobilenet_v3_large", "resnet50", "resnext50_32x4d",
    "se_resnet50", "wide_resnet50_2",
]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["mobilenet_v3_small", "se_resnet18", *(pytest.param(name, marks=pytest.mark.slow) for name in REFERENCES)],
)
def test_reference_model(name: str) -> None:
    assert_model_folds(with_running_stats(build_model(name, 10), 32), 32)
