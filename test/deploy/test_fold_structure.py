"""Models with modules that are shared, called in parts, patched or untraceable: folded correctly, or an error."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchvision_layers import deploy
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

# Modules that are registered several times


def test_shared_convolution() -> None:
    shared = conv()
    model = nn.Sequential(nn.Sequential(shared, norm()), nn.Sequential(shared, nn.ReLU()))
    assert count_norms(assert_folds(randomize(model), IMAGES)) == 1


def test_shared_block_is_folded_once() -> None:
    block = conv_and_norm(nn.ReLU())
    folded = assert_folds(randomize(nn.Sequential(block, nn.Sequential(block, conv()))), IMAGES)
    assert count_norms(folded) == 0
    assert folded[0] is folded[1][0]


def test_norm_after_shared_block() -> None:
    block = nn.Sequential(conv())
    model = nn.Sequential(nn.Sequential(block, norm()), nn.Sequential(block, norm()))
    assert count_norms(assert_folds(randomize(model), IMAGES)) == 2


def test_norm_shared_by_two_convolutions() -> None:
    shared = norm()
    model = nn.Sequential(nn.Sequential(conv(), shared), nn.Sequential(conv(), shared, nn.ReLU()))
    assert_folds(randomize(model), IMAGES)


def test_scale_before_shared_convolution() -> None:
    shared = conv()
    model = nn.Sequential(tnn.LayerScale(4), shared, nn.ReLU(), nn.Sequential(shared, nn.ReLU()))
    assert "LayerScale" in leaf_classes(assert_folds(randomize(model), IMAGES)).values()


def test_module_called_twice() -> None:
    for forward in (
        lambda self, x: self.norm(self.conv(self.conv(x))),
        lambda self, x: self.norm(self.conv(self.norm(x))),
        lambda self, x: self.scale(self.conv(self.scale(x).relu())),
    ):
        model = FunctionModule(forward, conv=conv(), norm=norm(), scale=tnn.LayerScale(4))
        assert count_norms(assert_folds(randomize(model), IMAGES)) == 1
    (folded,) = assert_folds(randomize(nn.Sequential(conv_and_norm(nn.ReLU()))), IMAGES)
    assert count_norms(folded) == 0
    block = FunctionModule(lambda self, x: self.body(self.body(x)), body=conv_and_norm())
    assert count_norms(assert_folds(randomize(block), IMAGES)) == 0


def test_sequential_with_repeated_modules() -> None:
    c, n = conv(), norm()
    assert count_norms(assert_folds(randomize(nn.Sequential(c, n, c, n)), IMAGES)) == 1


def test_output_with_two_consumers() -> None:
    for forward in (
        lambda self, x: self.norm(y := self.conv(x)) + y,
        lambda self, x: torch.cat([self.norm(y := self.conv(x)), y.relu()], 1),
        lambda self, x: self.norm((y := self.conv(x)) * y),
        lambda self, x: self.norm((y := self.conv(x)).add_(1)) + 0 * y,
        lambda self, x: self.conv(self.scale(x)) + self.scale(x),
        lambda self, x: self.conv(y := self.scale(x)) + y,
    ):
        model = FunctionModule(forward, conv=conv(), norm=norm(), scale=tnn.LayerScale(4))
        assert count_norms(assert_folds(randomize(model), IMAGES)) == 1


class Named(nn.Module):
    """Calls its modules through a plain list; one norm has two names, and the second is called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = tnn.WSConv2d(4, 4, 3)
        self.first = self.second = norm()
        self.last = nn.BatchNorm2d(4)
        self.steps = [self.conv, self.second, nn.Conv2d(4, 4, 1), self.last]
        self.third = self.steps[2]

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x


def test_modules_called_through_plain_list() -> None:
    folded = assert_folds(randomize(Named()), IMAGES)
    assert type(folded.steps[0]) is nn.Conv2d
    assert type(folded.steps[3]) is nn.Identity


def test_unregistered_modules() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = [conv_and_norm()]
            self.conv = conv()

        def forward(self, x: Tensor) -> Tensor:
            return self.hidden[0](self.conv(x))

    randomize((model := Hidden().double()).hidden[0].double())
    assert_folds(model, IMAGES)


def test_modules_also_registered_in_module_list() -> None:
    """Both references see the replacement, so a second fold changes nothing."""

    class Register(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = tnn.WSConv2d(4, 4, 3), norm()
            self.all = nn.ModuleList([self.conv, self.norm])

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x))

    folded = assert_folds(randomize(Register()), IMAGES)
    assert folded.all[0] is folded.conv
    assert type(folded.conv) is nn.Conv2d


def test_tied_weights() -> None:
    first, second = conv_and_norm(), conv_and_norm()
    second[0].weight = first[0].weight
    model = FunctionModule(lambda self, x: self.first(x) + self.second(x), first=first, second=second)
    assert count_norms(assert_folds(randomize(model), IMAGES)) == 0


# Parts


class Parts(nn.Module):
    """Calls ``way(body, x)``."""

    def __init__(self, way: Callable[[nn.Module, Tensor], Tensor], body: nn.Module) -> None:
        super().__init__()
        self.way, self.body = way, body

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self.body, x)


WAYS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "first": lambda body, x: body[0](x),
    "first and whole": lambda body, x: body(x) + body[0](x),
    "slice": lambda body, x: body[:1](x),
    "slice and whole": lambda body, x: body[:3](body(x)),
    "steps": lambda body, x: sum(list(itertools.accumulate(body, lambda y, layer: layer(y), initial=x))),
    "weight": lambda body, x: body(x) * body[0].weight.mean(),
    "bias": lambda body, x: body(x) + body[0].bias.view(1, -1, 1, 1),
    "function": lambda body, x: body(x) + F.conv2d(x, body[0].weight, padding=1),
    "statistics": lambda body, x: body(x) + F.batch_norm(x, body[1].running_mean, body[1].running_var),
    "last": lambda body, x: body[-1](body[0](x)),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("is_traced", [True, False], ids=["traced", "untraced"])
def test_sequential_called_in_parts(way: Callable[[Any, Tensor], Tensor], is_traced: bool) -> None:
    def untraced(body: nn.Module, x: Tensor) -> Tensor:
        return way(body, x) if x.shape[0] > 0 else x

    model = randomize(Parts(way if is_traced else untraced, conv_and_norm(nn.Dropout(), nn.ReLU()))).double()
    if is_traced:
        assert_folds(model, IMAGES)
        return
    with pytest.raises(
        ValueError, match="batch is required: the forward of model cannot be traced, so only a comparison"
    ):
        deploy.fold(model)
    assert_folds(model, IMAGES, batch=IMAGES.double())


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_sequential_called_in_parts_and_as_a_whole(way: Callable[[Any, Tensor], Tensor]) -> None:
    body = conv_and_norm(nn.Dropout(), nn.ReLU())
    for modules in ([body, Parts(way, body)], [Parts(way, body), body]):
        assert_folds(randomize(nn.Sequential(*modules)), IMAGES)


def test_parts_called_by_an_untraceable_forward() -> None:
    body = conv_and_norm(nn.ReLU())
    parts = Parts(lambda body, x: body[0](x) if x.shape[0] > 0 else x, body)
    for modules in ([body, parts], [parts, body]):
        model = randomize(nn.Sequential(*modules))
        with pytest.raises(ValueError, match="batch is required: the forward of . cannot be traced"):
            deploy.fold(model)
        assert count_norms(assert_folds(model, IMAGES, batch=IMAGES.double())) == 1


def test_whole_child_of_a_module_called_in_parts() -> None:
    body = FunctionModule(
        lambda self, x: self.head(self.stem(x)), stem=conv_and_norm(), head=nn.Sequential(conv(), norm())
    )
    model = Parts(lambda body, x: body.head(x) + body.stem[0](x), body)
    folded = assert_folds(randomize(model), IMAGES)
    assert leaf_classes(folded.body.head) == {"0": "Conv2d"}
    assert leaf_classes(folded.body.stem) == {"0": "Conv2d", "1": "BatchNorm2d"}


def test_module_lists_and_dicts() -> None:
    class Lists(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps = nn.ModuleList([conv(), norm(), nn.Dropout(), conv(), norm()])
            self.named = nn.ModuleDict({"conv": conv(), "norm": norm()})

        def forward(self, x: Tensor) -> Tensor:
            for step in self.steps[:3]:
                x = step(x)
            x = self.steps[4](self.steps[3](x)) + x
            for step in self.named.values():
                x = step(x)
            return x

    folded = assert_folds(randomize(Lists()), IMAGES)
    assert count_norms(folded) == 0
    assert len(folded.steps) == 5


def test_sequential_subclass_that_adds_its_input() -> None:
    class Residual(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return input + super().forward(input)

    model = nn.Sequential(tnn.LayerScale(4), Residual(conv(), nn.ReLU()))
    assert "LayerScale" in leaf_classes(assert_folds(randomize(model), IMAGES)).values()
    model = nn.Sequential(Residual(nn.ReLU(), conv()), norm())
    assert count_norms(assert_folds(randomize(model), IMAGES)) == 1


class WritesAndReturnsAnother(nn.Module):
    """Computes a ReLU twice: in its input, and in a new tensor."""

    def forward(self, x: Tensor) -> Tensor:
        x.relu_()
        return x.abs()


class InPlaceActivation(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu_()


class InPlaceNorm(nn.Module):
    """A frozen batch norm that writes into its input."""

    def __init__(self) -> None:
        super().__init__()
        for name, value in (("weight", 0.5), ("bias", 0.2), ("running_mean", 0.1), ("running_var", 2.0)):
            self.register_buffer(name, torch.full((4,), value))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        x.mul_(scale[:, None, None])
        return x.add((self.bias - self.running_mean * scale)[:, None, None])


@pytest.mark.parametrize("layer", [WritesAndReturnsAnother, InPlaceActivation, InPlaceNorm])
def test_writes_into_the_input_are_kept(layer: type[nn.Module]) -> None:
    """The forward around the layer reads the input again, and writes into the result."""

    def forward(module: nn.Module, x: Tensor) -> Tensor:
        y = module.conv(x)
        z = module.layer(y)
        z[:, :2] = 1.0
        return y + 2 * z

    assert_folds(FunctionModule(forward, conv=conv(), norm=norm(), layer=layer()), torch.randn(2, 4, 6, 6))
