"""Layers that compute what torch's own compute run in int8 by their behaviour, whatever their class."""

import copy
from collections.abc import Callable

import pytest
import timm
import timm.layers
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchvision_layers import deploy, quantized
from torchvision_layers import nn as tnn
from torchvision_layers.testing._checks._quantization import decibels

BACKENDS = ["x86", "onednn"]


def images(channels: int = 4) -> Tensor:
    return torch.randn(8, channels, 16, 15, generator=torch.Generator().manual_seed(0))


def stir(model: nn.Module) -> nn.Module:
    """Gives norms and PReLU values that matter."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and tensor.dim() == 1 and "bias" not in name:
            tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.eval()


class StandardizedNoName(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        mean, std = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), (self.weight - mean) / std, self.bias, self.stride)


class ScaledLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * 0.5, self.bias)


class ActivatedNorm(nn.BatchNorm2d):
    def __init__(self, channels: int, activation: Callable[[], nn.Module] = nn.ReLU6) -> None:
        super().__init__(channels)
        self.act = activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


def conv(**arguments: object) -> nn.Conv2d:
    return nn.Conv2d(4, 8, 3, **arguments)  # type: ignore[arg-type]


BLOCKS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "standardized": (lambda: nn.Sequential(StandardizedNoName(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), {"ConvReLU2d"}),
    "linear": (lambda: nn.Sequential(nn.Flatten(1), ScaledLinear(960, 8)), {"Linear"}),
    "activated": (lambda: nn.Sequential(conv(), ActivatedNorm(8), nn.Conv2d(8, 4, 1)), {"ConvReLU2d", "Conv2d"}),
    "same, activated": (
        lambda: nn.Sequential(timm.layers.Conv2dSame(4, 8, 3, stride=2), timm.layers.BatchNormAct2d(8)),
        {"ConvReLU2d"},
    ),
    "frozen": (lambda: nn.Sequential(conv(), timm.layers.FrozenBatchNormAct2d(8)), {"ConvReLU2d"}),
    "scaled": (lambda: nn.Sequential(timm.layers.ScaledStdConv2dSame(4, 8, 3, stride=2), nn.ReLU()), {"ConvReLU2d"}),
    "weight norm": (lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(conv())), {"Conv2d"}),
    "reflect": (lambda: nn.Sequential(conv(padding=1, padding_mode="reflect"), nn.ReLU()), {"ConvReLU2d"}),
    "replicate": (
        lambda: nn.Sequential(conv(padding=1, padding_mode="replicate"), nn.BatchNorm2d(8)),
        {"Conv2d", "FloatFallback"},
    ),
    "blur": (lambda: nn.Sequential(conv(), timm.layers.BlurPool2d(8)), {"Conv2d"}),
    "hardswish": (lambda: nn.Sequential(conv(), timm.layers.activations.HardSwish()), {"Conv2d", "Hardswish"}),
    "sigmoid": (lambda: nn.Sequential(conv(), timm.layers.activations.Sigmoid()), {"Conv2d", "Sigmoid"}),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", BLOCKS)
def test_block(name: str, backend: str) -> None:
    torch.manual_seed(0)
    build, classes = BLOCKS[name]
    model, x = stir(build()), images()
    with torch.no_grad():
        expected = model(x)
    int8 = quantized.quantize(model, [x], backend=backend)
    names = {type(m).__name__ for m in int8.model.modules()}
    if backend == "onednn" and name in ("linear", "hardswish"):
        names |= {"Linear", "Hardswish", "Conv2d"}  # kernels of other classes
    assert classes <= names
    assert not any(isinstance(m, nn.modules.batchnorm._NormBase) for m in int8.modules())
    assert decibels(expected, int8(x)) > 28
    assert int8(images()[:2, :, :, :14]).shape == model(images()[:2, :, :, :14]).shape if name != "linear" else True


@pytest.mark.parametrize("backend", BACKENDS)
def test_activation_between_containers_is_fused(backend: str) -> None:
    model = stir(nn.Sequential(conv(), ActivatedNorm(8, nn.SiLU), nn.Conv2d(8, 4, 1)))
    int8 = quantized.quantize(model, [images()], backend=backend)
    assert ("Int8ConvActivation2d" in {type(m).__name__ for m in int8.modules()}) == (backend == "onednn")
    assert decibels(model(images()).detach(), int8(images())) > 28


def test_keys_stay() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = timm.layers.Conv2dSame(4, 8, 3, stride=2)
            self.bn1 = timm.layers.BatchNormAct2d(8, act_layer=nn.PReLU)
            self.head = timm.layers.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.bn1(self.stem(x)).mean((2, 3)))

    model = stir(Net())
    rewritten = quantized.quantizable(model)
    assert list(rewritten.state_dict()) == list(model.state_dict())
    assert {"Conv2dSame", "BatchNormAct2d"}.isdisjoint(type(m).__name__ for m in rewritten.modules())
    other = stir(Net())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    copied = copy.deepcopy(rewritten)
    copied.load_state_dict(other.state_dict())
    torch.testing.assert_close(copied(images()), other(images()))
    assert not torch.equal(rewritten(images()), copied(images()))


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_int8_layers_are_scripted_and_loaded() -> None:
    model = stir(nn.Sequential(timm.layers.Conv2dSame(4, 8, 3, stride=2), timm.layers.BatchNormAct2d(8)))
    int8 = quantized.quantize(model, [images()])
    assert {"0.weight", "0.scale"} <= int8.state_dict().keys()
    scripted = torch.jit.script(int8)
    other = quantized.quantize(model, [2 * images()])
    other.load_state_dict(int8.state_dict())
    for x in (images(), images()[:, :, :11, :14].contiguous()):
        assert torch.equal(scripted(x), int8(x))
        assert torch.equal(other(x), int8(x))


def test_training() -> None:
    """The plain layers train as the originals do."""
    model = stir(nn.Sequential(timm.layers.Conv2dSame(4, 8, 3, stride=2), timm.layers.BatchNormAct2d(8))).train()
    rewritten = quantized.quantizable(model)
    for _ in range(2):
        torch.testing.assert_close(rewritten(images()), model(images()))
    for value, expected in zip(rewritten.state_dict().values(), model.state_dict().values(), strict=True):
        torch.testing.assert_close(value, expected)
    prepared = quantized.prepare_qat(model, images())
    assert "ConvBnReLU2d" in {type(m).__name__ for m in prepared.modules()}
    prepared(images()).sum().backward()
    assert all(parameter.grad is not None for parameter in prepared.parameters())


@pytest.mark.parametrize("build", [lambda: StandardizedNoName(4, 8, 3), lambda: timm.layers.BlurPool2d(4)])
def test_computed_weight_is_refused_in_training(build: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(build(), nn.Conv2d(8, 8, 1) if isinstance(build(), nn.Conv2d) else conv(), nn.BatchNorm2d(8))
    with pytest.raises(TypeError, match=r"^0 is a (\w+).*not train.*train deploy\.fold\(model\)\.requires_grad_\(\)"):
        quantized.prepare_qat(model, images())
    prepared = quantized.prepare_qat(deploy.fold(model).train(), images()).eval()
    prepared(images())
    assert decibels(model.eval()(images()).detach(), quantized.convert(prepared)(images())) > 25


# Norms after containers


class Residual(nn.Module):
    """Ends in a convolution, but is no sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.skip, self.conv = nn.Conv2d(4, 4, 1), conv()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x + self.skip(x))


CONTAINERS: dict[str, Callable[[], nn.Module]] = {
    "sequence": lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), conv(stride=2)),
    "nested": lambda: nn.Sequential(nn.Sequential(nn.Sequential(nn.Identity(), conv())), nn.Identity()),
    "graph": Residual,
}
ENDS: dict[str, Callable[[], list[nn.Module]]] = {
    "plain": lambda: [nn.BatchNorm2d(8), nn.ReLU()],
    "nested": lambda: [nn.Sequential(nn.Sequential(nn.BatchNorm2d(8))), nn.Sequential(nn.ReLU6(), nn.Conv2d(8, 4, 1))],
    "activated": lambda: [ActivatedNorm(8)],
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("is_qat", [False, True], ids=["eval", "train"])
def test_norm_after_container(container: str, end: str, is_qat: bool) -> None:
    torch.manual_seed(0)
    model, x = stir(nn.Sequential(CONTAINERS[container](), *ENDS[end]())), images()
    expected = model(x).detach()
    if is_qat:
        prepared = quantized.prepare_qat(model, x).eval()
        prepared(x)
        int8 = quantized.convert(prepared)
    else:
        int8 = quantized.quantize(model, [x])
    assert not any(isinstance(m, nn.modules.batchnorm._NormBase) for m in int8.modules())
    assert sum(type(m).__name__ == "ConvReLU2d" for m in int8.modules()) == 1
    assert decibels(expected, int8(x)) > 28


def test_container_as_conv_layer() -> None:
    def padded(*args: int, padding: int = 0, **kwargs: int) -> nn.Sequential:
        return nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(*args, **kwargs))

    layer = tnn.ConvNormAct(4, 8, 3, stride=2, conv_layer=padded, activation_layer=nn.ReLU6)
    int8 = quantized.quantize(stir(layer), [images()])
    assert [type(m).__name__ for m in int8.model] == ["FlatSequential", "Identity", "Identity"]
    assert decibels(layer(images()).detach(), int8(images())) > 30


@pytest.mark.parametrize("kind", ["shared", "hook", "part", "own fuse_model"])
def test_container_that_must_stay_apart(kind: str) -> None:
    class Own(nn.Sequential):
        def fuse_model(self) -> None:
            pass

    first = Own(conv()) if kind == "own fuse_model" else nn.Sequential(conv())
    outputs: list[Tensor] = []
    if kind == "hook":
        first.register_forward_hook(lambda module, args, output: outputs.append(output))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = first, nn.BatchNorm2d(8), nn.Sequential(nn.Sequential(nn.ReLU()))
            if kind == "shared":
                self.other = nn.Sequential(first, nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            y = self.last(self.norm(self.first(x)))
            return y + self.other(x) if kind == "shared" else y + self.first[0](x) if kind == "part" else y

    model = stir(Net())
    expected = model(images()).detach()
    fused = copy.deepcopy(model)
    quantized.fuse_model(fused)
    torch.testing.assert_close(fused(images()), expected)
    assert type(fused.norm) is nn.BatchNorm2d


@pytest.mark.parametrize("name", ["tinynet_e", "resnet10t"])
@pytest.mark.slow
def test_timm_model(name: str) -> None:
    torch.manual_seed(0)
    model, x = stir(timm.create_model(name, num_classes=8)), torch.randn(2, 3, 64, 64)
    int8 = quantized.quantize(model, [x])
    assert not any(isinstance(m, nn.modules.batchnorm._NormBase) for m in int8.modules())
    assert decibels(model(x).detach(), int8(x)) > 25


class OptionalInput(nn.Module):
    """Without the second input it is a chain of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.weight = nn.Conv2d(4, 4, 1), nn.Parameter(torch.randn(4, 4, 1, 1))

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        x = self.conv(x)
        return nn.functional.conv2d(x if shift is None else x + shift.mean(), self.weight)


class OptionallyScaled(nn.ReLU):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return super().forward(x) * scale


@pytest.mark.parametrize("layer", [OptionalInput(), OptionallyScaled()])
def test_layers_keep_their_optional_inputs(layer: nn.Module) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.layer, self.last = nn.Conv2d(4, 4, 1), layer, nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.last(self.layer(x, x.detach() if isinstance(self.layer, OptionalInput) else 3.0))

    model, x = Model().eval(), torch.randn(2, 4, 6, 6)
    assert torch.allclose(deploy.fold(model, x)(x), model(x), atol=1e-5)
    assert decibels(model(x), quantized.quantize(model, [x], allow_float=True)(x)) > 30
