"""Properties that a folded model shares with its original, and invalid arguments."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import deploy
from torchvision_layers import nn as tnn
from torchvision_layers.experimental import nn as enn

from ._support import FunctionModule, leaf_classes, randomize, relative_error


def small_model() -> nn.Module:
    return nn.Sequential(
        tnn.ConvNormAct(3, 8, stride=2),
        tnn.BasicBlock(8, 8, conv_layer=tnn.WSConv2d, se_layer=tnn.SqueezeExcitation),
        enn.CoordConv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        tnn.ConvNeXtBlock(8, stochastic_depth=0.2),
        nn.ConvTranspose2d(8, 4, 2, groups=2),
        nn.BatchNorm2d(4),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_and_precision(dtype: torch.dtype) -> None:
    """The error is at most one and a half times that of the model itself."""
    model, x = randomize(small_model()).to(dtype), torch.randn(2, 3, 12, 10).to(dtype)
    with torch.no_grad():
        expected, output = model(x).double(), deploy.fold(model, x)(x)
        exact = copy.deepcopy(model).double()(x.double())
    assert output.dtype is dtype
    assert relative_error(output.double(), exact) <= 1.5 * relative_error(expected, exact) + 1e-6
    assert {tensor.dtype for tensor in deploy.fold(model).state_dict().values()} == {dtype}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_once(dtype: torch.dtype) -> None:
    model = randomize(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), tnn.LayerScale(8)))[:2].to(dtype)
    (folded,) = deploy.fold(model)
    (exact,) = deploy.fold(copy.deepcopy(model).double())
    for name in ("weight", "bias"):
        error = (getattr(folded, name).double() - getattr(exact, name)).abs()
        assert bool((error <= 0.51 * torch.finfo(dtype).eps * getattr(exact, name).abs() + 1e-7).all())


def test_memory_format() -> None:
    model = randomize(small_model())
    for form in (torch.channels_last, torch.contiguous_format):
        folded = deploy.fold(model.to(memory_format=form))
        wide = [m.weight for m in folded.modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)]
        assert len(wide) > 4
        assert all(weight.is_contiguous(memory_format=form) for weight in wide)
        x = torch.randn(2, 3, 12, 10).to(memory_format=form)
        assert relative_error(folded(x), model(x).detach()) < 1e-5
    conv = nn.Sequential(nn.Conv3d(4, 8, 3), nn.BatchNorm3d(8)).to(memory_format=torch.channels_last_3d)
    assert deploy.fold(conv)[0].weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_meta_device() -> None:
    folded = deploy.fold(small_model().to("meta"))
    assert {tensor.device.type for tensor in folded.state_dict().values()} == {"meta"}
    model = randomize(small_model())
    with torch.device("meta"):  # the default device does not matter
        assert {tensor.device.type for tensor in deploy.fold(model).state_dict().values()} == {"cpu"}


def test_original_does_not_change() -> None:
    model = randomize(small_model())
    model.train()
    model[1].eval()
    modes, state = [m.training for m in model.modules()], copy.deepcopy(model.state_dict())
    classes, grads = [type(m) for m in model.modules()], [p.requires_grad for p in model.parameters()]
    pointers = [p.data_ptr() for p in model.parameters()]
    x, random = torch.randn(2, 3, 12, 10), torch.get_rng_state()
    folded = deploy.fold(model, x)
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in model.modules()] == modes
    assert [type(m) for m in model.modules()] == classes
    assert [p.requires_grad for p in model.parameters()] == grads
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not {p.data_ptr() for p in folded.parameters()} & set(pointers)
    assert not folded(x).requires_grad


def test_keys_and_input_gradients() -> None:
    model, x = randomize(small_model()), torch.randn(2, 3, 12, 10)
    folded = deploy.fold(model)
    assert {"0.0.weight", "0.0.bias", "1.conv1.weight", "5.weight", "5.bias"} <= set(folded.state_dict())
    grads = []
    for module in (model, folded):
        leaf = x.clone().requires_grad_()
        module(leaf).square().sum().backward()
        grads.append(leaf.grad)
    assert relative_error(*grads) < 1e-4


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_folding_without_gradients(mode: Callable[[], Any]) -> None:
    model, x = randomize(small_model()), torch.randn(2, 3, 12, 10)
    with mode():
        folded = deploy.fold(model, x)
        assert relative_error(folded(x), model(x)) < 1e-5


def test_documentation_example() -> None:
    folded = deploy.fold(tnn.ConvNormAct(3, 8).eval())
    assert leaf_classes(folded) == {"0": "Conv2d", "2": "ReLU"}
    assert type(folded) is tnn.ConvNormAct


def test_single_modules() -> None:
    for module in (nn.Linear(4, 4), nn.Dropout(), tnn.LayerScale(4, 1.0, -1), enn.PFLayerNorm()):
        x = torch.randn(2, 4, 5, 4)
        assert torch.equal(deploy.fold(module, x)(x), module.eval()(x))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, x: deploy.fold("resnet"), TypeError, "model must be a module, got 'resnet'"),
        (lambda m, x: deploy.fold(nn.Conv2d), TypeError, "model must be a module, got <class"),
        (lambda m, x: deploy.fold(m, [x]), TypeError, "batch must be a tensor, or a tuple .* got list"),
        (lambda m, x: deploy.fold(m, "images"), TypeError, "batch must be a tensor, or a tuple .* got str"),
        (lambda m, x: deploy.fold(m, x * torch.nan), ValueError, "model must give finite outputs for batch"),
        (lambda m, x: deploy.fold(m, x[:0]), ValueError, "model must return at least one tensor with numbers"),
        (
            lambda m, x: deploy.fold(FunctionModule(lambda self, x: "yes"), x),
            ValueError,
            "model must return at least one tensor with numbers",
        ),
    ],
)
def test_invalid_arguments(call: Callable[[nn.Module, Tensor], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(small_model(), torch.randn(2, 3, 12, 10))


@pytest.mark.parametrize("factor", [1.001, 0.9999])
def test_small_change_of_results_is_refused(factor: float) -> None:
    class Looks(nn.Module):
        """Its ``forward``, which cannot be traced, sees that a norm was folded."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.conv(x))
            return x if x.isnan().any() or type(self.norm) is nn.BatchNorm2d else x * factor

    with pytest.raises(RuntimeError, match="changed an output by .*, rounding explains at most"):
        deploy.fold(Looks().eval(), torch.randn(2, 3, 4, 4))
