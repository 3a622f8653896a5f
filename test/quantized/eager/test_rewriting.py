"""Forwards whose rewriting could go wrong silently: each is close to float, or an error names it before calibration."""

import copy
import enum

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchvision_layers import quantized
from torchvision_layers.testing._checks._quantization import decibels

X = torch.randn(3, 8, 6, 5, generator=torch.Generator().manual_seed(4))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(8, 8, 1) for _ in range(3))
        self.register_buffer("buf", torch.ones(1))


class AddsInPlace(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y += self.b(x)
        y -= 1
        y.clamp_(-1, 1)
        return self.c(F.relu(y, True))


class RereadsInPlace(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        x.add_(self.a(x))
        y = z = self.b(x)
        y += x
        F.relu(y, inplace=True)
        return self.c(y * z)


class UsesShapes(Net):
    def forward(self, x: Tensor) -> Tensor:
        y, half = self.a(x), x.size(1) // 2
        return torch.cat([y[:, half:], y[:, :half]], dim=x.dim() - 3) * (x.shape[1] + 1)


class TensorsInKeywords(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.add(input=self.a(x), other=self.b(x), alpha=2)
        return self.c(torch.mul(y, other=self.a(x)).add(y, alpha=-1))


class ConcatenatesEverySpelling(Net):
    def forward(self, x: Tensor) -> Tensor:
        y, z = self.a(x), self.b(x)
        y = torch.cat([y, z], axis=-3)
        return torch.concat((y, torch.cat(tensors=[z, z], dim=1), torch.zeros_like(y), torch.zeros(y.shape)), 1)


class Masks(Net):
    def forward(self, x: Tensor) -> Tensor:
        y, mask = self.a(x), x > 0
        y = torch.where(mask, y, self.b(x)) * (~mask | (x > 1))
        return self.c(y.masked_fill(mask & (x < 0.5), 0)) + x.argmax(1, keepdim=True)


class SeveralResults(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        values, _ = torch.max(y, 1, keepdim=True)
        std, mean = torch.std_mean(y, 1, keepdim=True)
        return self.c((y - mean) / (std + 1e-3) + values) + self.b(y.max(dim=1, keepdim=True).values + x)


class NormalizesByHand(Net):
    """A small variance that int8 would round to zero."""

    def forward(self, x: Tensor) -> Tensor:
        y = 0.01 * self.a(x)
        mean = y.mean((2, 3), keepdim=True)
        variance = (y - mean).pow(2).mean((2, 3), keepdim=True)
        return self.c((y - mean) / torch.sqrt(variance + 1e-9))


class HasActivation(Net):
    def __init__(self) -> None:
        super().__init__()
        self.silu = nn.SiLU(inplace=True)


class CallsTwice(HasActivation):
    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.a(x)) + x
        return self.a(self.silu(self.a(y * 0.5)) + y)


class Transposes(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).mT
        return self.c((y + y.data).mT)


class Splits(Net):
    def forward(self, x: Tensor) -> Tensor:
        first, second = self.a(x).chunk(2, 1)
        y = F.pad(torch.cat([second, first], 1), (1, 1, 1, 1))[:, [7, 6, 5, 4, 3, 2, 1, 0], 1:-1, 1:-1]
        return self.c(y) + self.b(x).flip(1)


class Children(nn.Module):
    """Children that return tuples, lists and dicts, in containers, with an own forward in a Sequential."""

    class Pair(Net):
        def forward(self, x: Tensor, flag: bool = False) -> tuple[Tensor, dict[str, list[Tensor]]]:
            return self.a(x) + x, {"b": [self.b(x) * self.c(x)]}

    class Reversed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[0](self[1](x)) + x

    def __init__(self) -> None:
        super().__init__()
        self.pair = self.Pair()
        self.again = self.pair
        self.layers = nn.ModuleDict({"reversed": self.Reversed(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1))})

    def forward(self, x: Tensor) -> Tensor:
        y, others = self.pair(x)
        z, _ = self.again(y)
        return self.layers["reversed"](others["b"][0] + z)


class RereadsModule(HasActivation):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        self.silu(y)
        return self.c(y)


class RereadsInChild(Net):
    class Adds(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x += 1
            return x

    def __init__(self) -> None:
        super().__init__()
        self.adds = self.Adds()

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.adds(y) * y


RIGHT = [
    *(AddsInPlace, RereadsInPlace, UsesShapes, TensorsInKeywords, ConcatenatesEverySpelling, Masks, SeveralResults),
    *(NormalizesByHand, CallsTwice, Transposes, Splits, Children, RereadsModule, RereadsInChild),
]


@pytest.mark.parametrize("cls", RIGHT)
def test_result_is_close_to_float(cls: type[nn.Module]) -> None:
    """In both layouts, for one image and none, after a copy and from a state."""
    model = cls().eval()
    int8 = quantized.quantize(model, [X])
    least = 15 if cls is Masks else 25  # rounding moves values over the thresholds
    assert decibels(model(X), int8(X)) >= least
    assert decibels(model(X[1:2]), int8(X[1:2].contiguous(memory_format=torch.channels_last))) >= least - 3
    assert int8(X[:0]).shape == (0, *model(X).shape[1:])
    again = quantized.quantize(model, [0.5 * X])
    again.load_state_dict(int8.state_dict(), strict=True)
    assert torch.equal(again(X), int8(X))
    assert torch.equal(copy.deepcopy(int8)(X), int8(X))


@pytest.mark.parametrize("backend", ["onednn", "qnnpack"])
@pytest.mark.parametrize("cls", [AddsInPlace, Splits, Children])
def test_other_backends_are_close_to_float(cls: type[nn.Module], backend: str) -> None:
    model = cls().eval()
    int8 = quantized.quantize(model, [X], backend=backend)
    assert decibels(model(X), int8(X)) >= 25
    assert decibels(model(X[:1, :, 1:]), int8(X[:1, :, 1:])) >= 22


class ChangesInputOfChild(Net):
    """The child returns another tensor than the one that it wrote into."""

    class Adds(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x += 1
            return 2 * x

    def __init__(self) -> None:
        super().__init__()
        self.adds = self.Adds()

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.adds(y) * y


def test_first_batch_shows_difference() -> None:
    """The ``forward`` then stays as it is, and runs in float."""
    torch.manual_seed(0)
    model = ChangesInputOfChild().eval()
    int8 = quantized.quantize(model, [X])
    assert decibels(model(X), int8(X)) >= 25
    assert {row.path: row.runs_in for row in quantized.report(int8).rows}["a"] == "int8"
    prepared = quantized.prepare_qat(model.train(), X)
    prepared(X).sum().backward()
    assert decibels(prepared.eval()(X).detach(), quantized.convert(prepared)(X)) >= 25


class MultipliesByResults(Net):
    def forward(self, x: Tensor) -> Tensor:
        std, mean = torch.std_mean(self.a(x), 1, keepdim=True)
        return self.c(self.b(x) * std + mean)


def test_several_results_are_trained_with_an_example() -> None:
    prepared = quantized.prepare_qat(MultipliesByResults(), X)
    prepared(X).sum().backward()
    assert decibels(prepared.eval()(X).detach(), quantized.convert(prepared)(X)) >= 25
    with pytest.raises(RuntimeError, match=r"at \[1\], and those at \[\[0\]\] were observed; pass an example"):
        quantized.prepare_qat(MultipliesByResults())(X)


class ReadsFirstResult(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.stem, self.layer, self.head = nn.Conv2d(3, 8, 3), layer, nn.Conv2d(8, 4, 1)
        self.is_recurrent = isinstance(layer, nn.GRU)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.is_recurrent:
            x = self.layer(x.flatten(2).mT)[0].mT.unflatten(2, (10, 10))
        else:
            x, _ = self.layer(x)
        output: Tensor = self.head(x)
        return output


@pytest.mark.parametrize(
    "layer", [nn.GRU(8, 8, batch_first=True), nn.MaxPool2d(2, return_indices=True)], ids=["recurrent", "pool"]
)
def test_layers_with_several_results_need_an_example(layer: nn.Module) -> None:
    model, x = ReadsFirstResult(layer), torch.randn(4, 3, 12, 12)
    prepared = quantized.prepare_qat(model)
    with pytest.raises(RuntimeError, match=r"without an example, .* an example, prepare_qat\(model, example\)"):
        prepared(x)
    prepared = quantized.prepare_qat(model, x)
    prepared(x).sum().backward()
    assert decibels(prepared.eval()(x).detach(), quantized.convert(prepared)(x)) >= 25


class Reused(nn.Module):
    """One activation at three places, with ranges that differ."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.first(x))
        z = self.activation(100 * self.second(y))
        return self.activation(y + z / 100)


@pytest.mark.parametrize(
    "activation", [nn.ReLU(inplace=True), nn.Hardswish(), nn.GELU()], ids=["relu", "hardswish", "gelu"]
)
def test_reused_activation_becomes_one_module_per_call(activation: nn.Module) -> None:
    torch.manual_seed(0)
    model, x = Reused(activation).eval(), torch.randn(4, 3, 12, 12)
    keys = list(model.state_dict())
    assert list(quantized.quantizable(model).state_dict()) == keys
    int8 = quantized.quantize(model, [x])
    assert decibels(int8(x), model(x)) > 30
    rows = {row.path: row for row in quantized.report(int8).rows}
    assert {"activation", "activation_1", "activation_2"} < rows.keys()
    if type(activation) is nn.ReLU:
        assert rows["activation"].fused_with == ("first",)
        assert rows["activation_2"].fused_with == ("addition",)


@pytest.mark.parametrize("backend", ["x86", "onednn", "qnnpack"])
def test_forward_whose_only_operation_is_a_view(backend: str) -> None:
    """Int8 kernels return images in rows of channels, which ``view`` cannot turn into vectors."""

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(8, 4, 1), nn.Linear(120, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.linear(x.view(x.size(0), -1))

    torch.manual_seed(0)
    model = Classifier().eval()
    int8 = quantized.quantize(model, [X], backend=backend)
    assert decibels(model(X), int8(X)) > 30
    assert {row.runs_in for row in quantized.report(int8).rows} == {"int8"}
    int8 = quantized.convert(_trained(quantized.prepare_qat(model, backend=backend)))
    assert decibels(model(X), int8(X)) > 25


def _trained(model: nn.Module) -> nn.Module:
    model(X)
    return model


class SharesALayer(Net):
    """A list of images, as many as there are."""

    def forward(self, images: list[Tensor]) -> list[Tensor]:
        return [self.a(image) for image in images]


class LayerPerItem(Net):
    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        return [layer(level) for layer, level in zip((self.a, self.b), levels, strict=True)]


class TakesAList(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor, count: Tensor) -> Tensor:
        return torch.cat(self.part([x + i for i in range(len(count))]), 1)


@pytest.mark.parametrize("part", [SharesALayer, LayerPerItem])
def test_a_list_has_a_fixed_length_only_if_each_item_has_a_layer(part: type[Net]) -> None:
    model = TakesAList(part()).eval()
    int8 = quantized.quantize(model, [(X, torch.zeros(2))])
    runs_in = {row.path: row.runs_in for row in quantized.report(int8).rows}
    assert runs_in.get("part", "int8") == ("float" if part is SharesALayer else "int8")
    assert decibels(model(X, torch.zeros(2)), int8(X, torch.zeros(2))) > 30
    if part is SharesALayer:
        assert decibels(model(X, torch.zeros(3)), int8(X, torch.zeros(3))) > 20


class Stage(enum.Enum):
    FIRST, LAST = "first", "last"


class KeyedByStage(Net):
    def forward(self, x: Tensor) -> dict[Stage, Tensor]:
        y = self.a(x) + x
        return {Stage.FIRST: y, Stage.LAST: self.b(y)}


def test_keys_without_a_literal_leave_the_forward_in_float() -> None:
    model = KeyedByStage().eval()
    int8 = quantized.quantize(model, [X])
    assert {row.path: row.runs_in for row in quantized.report(int8).rows}["b"] == "int8"
    expected, outputs = model(X), int8(X)
    assert list(outputs) == list(expected)
    assert all(decibels(expected[stage], outputs[stage]) > 30 for stage in Stage)
