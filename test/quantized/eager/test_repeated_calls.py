"""Layers that are called several times, with results of different sizes: each call has a range of its own."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchvision_layers import nn as tnn
from torchvision_layers import quantized
from torchvision_layers.testing._checks._quantization import decibels

X = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
SMALL = 0.01


def conv(out_channels: int = 3, kernel_size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(3, out_channels, kernel_size, padding="same", bias=False)


class TwoBranches(nn.Module):
    """Calls ``shared`` on an image and on a hundredth of it."""

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.shared = shared
        self.scale = tnn.LayerScale(3, SMALL)
        self.first, self.second = conv(4, 1), conv(4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(self.shared(x)), self.second(self.shared(self.scale(x)))


class Residual(nn.Module):
    """A block with a ``forward`` of its own, which calls a layer twice itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.point = conv(), conv(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.point(self.conv(x).relu()) + SMALL * self.point(x)


class Pyramid(nn.Module):
    """A head that runs on each level, as in detectors."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList([tnn.LayerScale(3, SMALL**i) for i in range(3)])
        self.head = nn.Sequential(conv(8), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1, bias=False))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.head(level(x)) for level in self.levels]


class Holder(nn.Module):
    def __init__(self, shared: nn.Module, size: float) -> None:
        super().__init__()
        self.scale, self.shared = tnn.LayerScale(3, size), shared

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(self.scale(x))


class TwoHolders(nn.Module):
    """One module in two places."""

    def __init__(self) -> None:
        super().__init__()
        shared = Residual()
        self.first, self.second = Holder(shared, 1.0), Holder(shared, SMALL)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(x), self.second(x)


class Branching(TwoBranches):
    """Its ``forward`` cannot be traced, so it runs in float."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.sum() > 1e9:
            return x, x
        return super().forward(x)


class WeightRead(TwoBranches):
    """Calls a function with the weight of a layer that it also calls."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weight: Tensor = self.shared.weight  # type: ignore[assignment]
        return self.first(self.shared(x)), self.second(F.conv2d(self.scale(x), weight, padding=1))


class OneLayerEach(TwoBranches):
    """A layer with the same weight for the second call, as the error for the two before advises."""

    def __init__(self, shared: nn.Conv2d) -> None:
        super().__init__(shared)
        self.other = conv()
        self.other.weight = shared.weight

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.sum() > 1e9:
            return x, x
        return self.first(self.shared(x)), self.second(self.other(self.scale(x)))


class Repeated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared = conv()

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(self.shared(x))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: TwoBranches(conv()),
    "sequential": lambda: TwoBranches(nn.Sequential(conv(), nn.ReLU())),
    "ConvNormAct": lambda: TwoBranches(tnn.ConvNormAct(3, 3, bias=False, norm_layer=None)),
    "block": lambda: TwoBranches(Residual()),
    "head on levels": Pyramid,
    "two places": TwoHolders,
}


def errors(expected: object, outputs: object) -> list[float]:
    assert isinstance(expected, (list, tuple))
    assert isinstance(outputs, (list, tuple))
    return [decibels(e, o) for e, o in zip(expected, outputs, strict=True)]


@pytest.mark.parametrize("backend", ["x86", "onednn"])
@pytest.mark.parametrize("name", MODELS)
def test_calibrated(name: str, backend: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    int8 = quantized.quantize(model, [X], backend=backend)
    assert not any(isinstance(module, (nn.Conv2d, nn.Linear)) for module in int8.modules())
    assert min(errors(model(X), int8(X))) > 25


@pytest.mark.parametrize("name", ["convolution", "ConvNormAct", "block", "two places"])
def test_trained(name: str) -> None:
    torch.manual_seed(0)
    prepared = quantized.prepare_qat(MODELS[name](), X, backend="onednn")
    before = [parameter.detach().clone() for parameter in prepared.parameters()]
    optimizer = torch.optim.SGD(prepared.parameters(), 0.01)
    for _ in range(3):
        sum(output.square().mean() for output in prepared(X)).backward()
        optimizer.step()
    assert len(before) == len(list(MODELS[name]().parameters()))  # copies share theirs
    assert not any(map(torch.equal, before, prepared.parameters()))
    int8 = quantized.convert(prepared)
    for buffer_name, buffer in prepared.named_buffers():
        if buffer_name.endswith("fake_quant_enabled"):
            buffer.zero_()
    assert min(errors(prepared.eval()(X), int8(X))) > 25


def test_state_of_copies() -> None:
    torch.manual_seed(0)
    model = TwoBranches(Residual()).eval()
    int8 = quantized.quantize(model, [X])
    other = quantized.quantize(TwoBranches(Residual()).eval(), [X])
    other.load_state_dict(int8.state_dict())
    assert all(map(torch.equal, other(X), int8(X)))
    assert all(map(torch.equal, copy.deepcopy(int8)(X), int8(X)))


@pytest.mark.parametrize("cls", [Branching, WeightRead])
def test_forward_in_float_is_refused(cls: type[TwoBranches]) -> None:
    torch.manual_seed(0)
    model = cls(conv()).eval()
    with pytest.raises(TypeError, match=r"shared is a Conv2d .* calls several times, with results of very different"):
        quantized.quantize(model, [X])
    int8 = quantized.quantize(model, [X], allow_float=True)
    assert min(errors(model(X), int8(X))) > 25
    advised = OneLayerEach(conv()).eval()
    assert min(errors(advised(X), quantized.quantize(advised, [X])(X))) > 25


@pytest.mark.parametrize("backend", ["x86", "onednn"])
def test_similar_results_share_a_layer(backend: str) -> None:
    torch.manual_seed(0)
    model = Repeated().eval()
    assert (
        len([m for m in quantized.quantize(model, [X], backend=backend).modules() if "Conv" in type(m).__name__]) == 1
    )
    prepared = quantized.prepare_qat(model, X, backend=backend)
    for _ in range(30):  # an average of both ranges would clip the larger results
        prepared(X)
    assert decibels(model(X), quantized.convert(prepared)(X)) > 25


class Doubled(nn.Module):
    """A layer of a user, without a state."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(2 * x)


#: Layers and containers without a convolution or linear layer, whose results have a range all the same.
WITHOUT_LAYERS: dict[str, Callable[[], nn.Module]] = {
    "activation of a user": Doubled,
    "activation with a parameter": nn.PReLU,
    "batch norm": lambda: nn.BatchNorm2d(3),
    "container": lambda: nn.Sequential(nn.Hardswish(), nn.AvgPool2d(2)),
    "container with a norm": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU6()),
}


class Untraced(TwoBranches):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if float(x.sum()) < -1e9:
            x = 2 * x
        return super().forward(x)


@pytest.mark.parametrize("backend", ["x86", "onednn", "qnnpack"])
@pytest.mark.parametrize("cls", [TwoBranches, Untraced])
@pytest.mark.parametrize("name", WITHOUT_LAYERS)
def test_modules_without_layers(name: str, cls: type[TwoBranches], backend: str) -> None:
    torch.manual_seed(0)
    model = cls(WITHOUT_LAYERS[name]()).eval()
    int8 = quantized.quantize(model, [X], backend=backend)
    assert min(map(decibels, model(X), int8(X))) > 30


@pytest.mark.parametrize("name", WITHOUT_LAYERS)
def test_training_without_layers(name: str) -> None:
    """The comparison with the float model, at the end of ``prepare_qat``, is the test."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), TwoBranches(WITHOUT_LAYERS[name]()))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 5, 10)
    prepared = quantized.prepare_qat(model, X, backend="x86")
    for output in prepared(X):
        assert torch.isfinite(output).all()
    quantized.convert(prepared)


def test_state_of_a_layer_with_two_names() -> None:
    """Without a split, the second name keeps a layer in float that never runs."""

    class TwoNames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.scale, self.last = conv(), tnn.LayerScale(3, SMALL), conv()
            self.two = self.one

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.one(x)) + self.two(self.scale(x))

    split, shared = TwoNames().eval(), TwoNames().eval()
    with torch.no_grad():
        shared.scale.weight.fill_(1.0)
    first, second = (quantized.quantize(model, [X]) for model in (split, shared))
    with pytest.raises(RuntimeError, match="^state_dict must be of the layers of this model, got one with two besides"):
        second.load_state_dict(first.state_dict())


def test_state_with_other_values_for_the_second_name_of_a_layer() -> None:
    """A model in which the calls got layers of their own has such a state."""

    class TwoNames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.last = conv(), conv()
            self.two = self.one

        def forward(self, x: Tensor) -> Tensor:
            x = x if x.isfinite().all() else x.nan_to_num()
            return self.last(self.one(x)) + self.two(x)

    int8 = quantized.quantize(TwoNames().eval(), [X])
    state = int8.state_dict()
    int8.load_state_dict(state)
    (key,) = (key for key in state if ".two." in key and key.endswith("module.scale"))
    state[key] = 2 * state[key]
    with pytest.raises(RuntimeError, match=r"where module\.one and module\.two are one, got .* different values"):
        int8.load_state_dict(state)


def test_state_of_a_model_with_other_layers() -> None:
    """Whether calls get layers of their own depends on weights, here on the scale of the second call."""
    split, shared = (TwoBranches(conv()).eval() for _ in range(2))
    with torch.no_grad():
        shared.scale.weight.fill_(1.0)
    first, second = (quantized.quantize(model, [X]) for model in (split, shared))
    assert len(first.state_dict()) > len(second.state_dict())
    with pytest.raises(RuntimeError, match=r"^state_dict must be of the layers of this model, .* shared_1 besides"):
        second.load_state_dict(first.state_dict())
    with pytest.raises(RuntimeError, match=r"with none besides, and without .*shared_1: .* quantize the float model"):
        first.load_state_dict(second.state_dict())
    assert torch.equal(first(X)[1], quantized.quantize(split, [X])(X)[1])


class SecondName(nn.Module):
    """Calls one convolution under two names, with results of so different sizes that each gets a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.second = self.first
        nn.init.constant_(self.first.weight, 0.01)
        nn.init.zeros_(self.first.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.second(self.first(x).relu())
        return output


def test_state_without_the_int8_form_of_a_layer() -> None:
    int8 = quantized.quantize(SecondName().eval(), [X])
    state = int8.state_dict()
    key = next(key for key in state if key.startswith("second.") and key.endswith(".weight"))
    del state["second.scale"], state["second.zero_point"]
    state[key] = state[key].dequantize()  # as in a model in which it is in float
    with pytest.raises(RuntimeError, match="with none besides, and without second: .* quantize the float model"):
        int8.load_state_dict(state)
