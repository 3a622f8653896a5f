"""Layers with ``folded()``, parametrized weights, quantizable twins, and models that cannot be folded."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from torchvision_layers import deploy, quantized
from torchvision_layers import nn as tnn

from ._support import (
    IMAGES,
    FunctionModule,
    assert_folds,
    conv,
    conv_and_norm,
    count_norms,
    leaf_classes,
    norm,
    randomize,
)


class Custom(nn.Module):
    """A user's layer, with a ``folded`` that may be wrong."""

    def __init__(self, make: Callable[[nn.Conv2d], object]) -> None:
        super().__init__()
        self.make, self.inner = make, conv()

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.inner(x)

    def folded(self) -> object:
        return self.make(copy.deepcopy(self.inner))


def doubled(inner: nn.Conv2d) -> nn.Conv2d:
    with torch.no_grad():
        inner.weight.mul_(2)
        inner.bias.mul_(2)
    return inner


def test_folded_of_users_layer() -> None:
    model = randomize(nn.Sequential(Custom(doubled), norm()))
    assert leaf_classes(assert_folds(model, IMAGES, batch=IMAGES.double())) == {"0": "Conv2d"}
    (root,) = [assert_folds(Custom(doubled), IMAGES)]
    assert type(root) is nn.Conv2d


def test_result_of_folded_is_folded_too() -> None:
    model = nn.Sequential(Custom(lambda inner: nn.Sequential(doubled(inner), nn.Dropout())), norm())
    assert leaf_classes(assert_folds(randomize(model), IMAGES)) == {"0.0": "Conv2d"}

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(tnn.WSConv2d(4, 4, 3), norm())

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

        def folded(self) -> nn.Module:
            return self.body

    assert leaf_classes(assert_folds(randomize(nn.Sequential(Wrapped(), norm())), IMAGES)) == {"0.0": "Conv2d"}

    class Chained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tnn.WSConv2d(4, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

        def folded(self) -> nn.Module:
            return self.inner

    assert leaf_classes(assert_folds(randomize(nn.Sequential(Chained(), norm())), IMAGES)) == {"0": "Conv2d"}


@pytest.mark.parametrize(
    "make",
    [
        lambda inner: inner,
        lambda inner: nn.Sequential(doubled(inner), nn.MaxPool2d(2)),
        lambda inner: nn.Conv2d(3, 4, 1),
        lambda inner: nn.Conv2d(4, 4, 3, padding=1).requires_grad_(False).apply(lambda m: m.weight.fill_(torch.nan)),
        lambda inner: FunctionModule(lambda self, x: (doubled(inner)(x), x)),
    ],
    ids=["value", "shape", "cannot run", "nan", "outputs"],
)
def test_comparison_finds_wrong_folded(make: Callable[[nn.Conv2d], nn.Module]) -> None:
    with pytest.raises(RuntimeError, match=r"(changed|cannot run).*folded\(\) computes something else"):
        deploy.fold(Custom(make), IMAGES)


def test_folded_that_returns_no_module() -> None:
    with pytest.raises(TypeError, match=r"folded\(\) of 0 must return a module, got None"):
        deploy.fold(nn.Sequential(Custom(lambda inner: None)))


def test_child_named_folded() -> None:
    class Child(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.folded = conv_and_norm()

        def forward(self, x: Tensor) -> Tensor:
            return self.folded(x)

    assert count_norms(assert_folds(randomize(Child()), IMAGES)) == 0


# Parametrizations


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight + weight.transpose(0, 1)


def symmetric(module: nn.Conv2d) -> nn.Module:
    return parametrize.register_parametrization(module, "weight", Symmetric())


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.spectral_norm, symmetric])
@pytest.mark.parametrize("make", [conv, lambda: tnn.WSConv2d(4, 4, 3)], ids=["plain", "standardized"])
def test_parametrized_weights(wrap: Callable[..., nn.Module], make: Callable[[], nn.Conv2d]) -> None:
    model = randomize(nn.Sequential(wrap(make()), norm()))
    folded = assert_folds(model, IMAGES)
    assert leaf_classes(folded) == {"0": "Conv2d"}
    assert set(folded.state_dict()) == {"0.weight", "0.bias"}
    assert parametrize.is_parametrized(model[0], "weight")
    model.train()(IMAGES.double()).sum().backward()  # it still trains


def test_shared_parametrized_parameters() -> None:
    first, second = conv(), conv()
    second.weight = first.weight
    symmetric(first)
    assert_folds(randomize(nn.Sequential(first, norm(), second, norm())), IMAGES)


def test_parametrized_linear_layer_and_buffer() -> None:
    block = tnn.ConvNeXtBlock(4)
    parametrizations.spectral_norm(block.block[5])
    assert assert_folds(randomize(block), IMAGES).layer_scale is None
    frozen = tnn.FrozenBatchNorm2d(4)
    frozen.running_mean.normal_()
    parametrize.register_parametrization(frozen, "running_mean", nn.Tanh())
    model = nn.Sequential(frozen, nn.ReLU())
    assert "0.running_mean" in dict(assert_folds(model, IMAGES).named_buffers())


# Models that cannot be folded


@pytest.mark.parametrize(
    "hook",
    [
        lambda m: m.register_forward_hook(lambda *_: None),
        lambda m: m.register_forward_pre_hook(lambda *_: None),
        lambda m: m.register_full_backward_hook(lambda *_: None),
        lambda m: m.register_full_backward_pre_hook(lambda *_: None),
        lambda m: m.register_backward_hook(lambda *_: None),
    ],
    ids=["forward", "before", "backward", "before backward", "old backward"],
)
def test_hooks(hook: Callable[[nn.Module], object]) -> None:
    model = nn.Sequential(nn.ReLU(), nn.Sequential(conv(), norm()))
    hook(model[1][0])
    with pytest.raises(ValueError, match=r"1\.0 has hooks, which would see other values"):
        deploy.fold(model)
    model = conv()
    hook(model)
    with pytest.raises(ValueError, match="model has hooks"):
        deploy.fold(model)


def test_lazy_layers() -> None:
    for layer in (nn.LazyConv2d(4, 3), tnn.LazyConvNormAct(4), tnn.LazySqueezeExcitation(2)):
        with pytest.raises(TypeError, match=r"model must not contain lazy modules, got Lazy.* at 1(\.0)?"):
            deploy.fold(nn.Sequential(nn.ReLU(), layer))
    model = nn.Sequential(tnn.LazyConvNormAct(4), nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d())
    model(IMAGES)
    assert count_norms(assert_folds(randomize(model), IMAGES)) == 0


def test_quantized_models() -> None:
    model = tnn.ConvNormAct(4, 4).eval()
    for other in (
        quantized.quantizable(model),
        quantized.prepare_qat(model),
        quantized.quantize(model, [IMAGES]),
    ):
        with pytest.raises(ValueError, match="model is a QuantizableModel: fold the float model, then quantize it"):
            deploy.fold(other)
        with pytest.raises(ValueError, match="0 is a QuantizableModel"):
            deploy.fold(nn.Sequential(other))


@pytest.mark.filterwarnings("ignore:`torch.jit.*deprecated")
@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.jit.script,
        lambda model: torch.jit.trace(model, IMAGES),
        lambda model: torch.compile(model, backend="eager"),
    ],
    ids=["parallel", "scripted", "traced", "compiled"],
)
def test_wrappers(wrap: Callable[[nn.Module], nn.Module]) -> None:
    for model, path in ((wrap(conv_and_norm().eval()), "model"), (nn.Sequential(wrap(conv_and_norm().eval())), "0")):
        with pytest.raises(ValueError, match=f"{path} is a .*: pass the module that it wraps"):
            deploy.fold(model)


def test_twins_fold_like_their_layers() -> None:
    model = nn.Sequential(
        quantized.QuantizableConvNormAct(4, 4),
        quantized.QuantizableConvNeXtBlock(4),
        quantized.QuantizableLayerScale(4),
        nn.Conv2d(4, 4, 1),
    )
    folded = assert_folds(randomize(model), IMAGES)
    assert {"BatchNorm2d", "QuantizableLayerScale"}.isdisjoint(leaf_classes(folded).values())
    assert folded[1].layer_scale is None
    assert quantized.quantize(folded.float(), [IMAGES])(IMAGES).shape == IMAGES.shape
