"""Models whose modules are shared, called in parts, patched or not to be traced: right all the same, or refused."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchvision_layers import deploy
from torchvision_layers import nn as tnn
from torchvision_layers.experimental import nn as enn

from ._support import IMAGES, Given, assert_folds, by_path, conv, norm, norms, pair, trained

# Modules at several places


def test_a_convolution_at_two_places() -> None:
    shared = conv()
    model = nn.Sequential(nn.Sequential(shared, norm()), nn.Sequential(shared, nn.ReLU()))
    assert norms(assert_folds(trained(model), IMAGES)) == 1


def test_a_block_at_two_places_is_folded_once() -> None:
    block = pair(nn.ReLU())
    folded = assert_folds(trained(nn.Sequential(block, nn.Sequential(block, conv()))), IMAGES)
    assert norms(folded) == 0
    assert folded[0] is folded[1][0]


def test_a_norm_after_a_block_at_two_places() -> None:
    block = nn.Sequential(conv())
    model = nn.Sequential(nn.Sequential(block, norm()), nn.Sequential(block, norm()))
    assert norms(assert_folds(trained(model), IMAGES)) == 2


def test_a_norm_after_two_convolutions() -> None:
    shared = norm()
    model = nn.Sequential(nn.Sequential(conv(), shared), nn.Sequential(conv(), shared, nn.ReLU()))
    assert_folds(trained(model), IMAGES)


def test_a_scale_ahead_of_a_convolution_at_two_places() -> None:
    shared = conv()
    model = nn.Sequential(tnn.LayerScale(4), shared, nn.ReLU(), nn.Sequential(shared, nn.ReLU()))
    assert "LayerScale" in by_path(assert_folds(trained(model), IMAGES)).values()


def test_a_module_that_is_called_twice() -> None:
    for forward in (
        lambda self, x: self.norm(self.conv(self.conv(x))),
        lambda self, x: self.norm(self.conv(self.norm(x))),
        lambda self, x: self.scale(self.conv(self.scale(x).relu())),
    ):
        model = Given(forward, conv=conv(), norm=norm(), scale=tnn.LayerScale(4))
        assert norms(assert_folds(trained(model), IMAGES)) == 1
    (folded,) = assert_folds(trained(nn.Sequential(pair(nn.ReLU()))), IMAGES)
    assert norms(folded) == 0
    block = Given(lambda self, x: self.body(self.body(x)), body=pair())
    assert norms(assert_folds(trained(block), IMAGES)) == 0


def test_a_sequence_that_runs_a_module_twice() -> None:
    c, n = conv(), norm()
    assert norms(assert_folds(trained(nn.Sequential(c, n, c, n)), IMAGES)) == 1


def test_an_output_that_is_used_twice() -> None:
    for forward in (
        lambda self, x: self.norm(y := self.conv(x)) + y,
        lambda self, x: torch.cat([self.norm(y := self.conv(x)), y.relu()], 1),
        lambda self, x: self.norm((y := self.conv(x)) * y),
        lambda self, x: self.norm((y := self.conv(x)).add_(1)) + 0 * y,
        lambda self, x: self.conv(self.scale(x)) + self.scale(x),
        lambda self, x: self.conv(y := self.scale(x)) + y,
    ):
        model = Given(forward, conv=conv(), norm=norm(), scale=tnn.LayerScale(4))
        assert norms(assert_folds(trained(model), IMAGES)) == 1


class Named(nn.Module):
    """One norm by two names, of which the second is called, and a list beside the tree that is run through."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = enn.WSConv2d(4, 4, 3)
        self.first = self.second = norm()
        self.last = nn.BatchNorm2d(4)
        self.steps = [self.conv, self.second, nn.Conv2d(4, 4, 1), self.last]
        self.third = self.steps[2]

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x


def test_modules_reached_by_other_ways_than_their_names() -> None:
    folded = assert_folds(trained(Named()), IMAGES)
    assert type(folded.steps[0]) is nn.Conv2d
    assert type(folded.steps[3]) is nn.Identity


def test_a_list_beside_the_tree_of_modules_that_are_not_in_it() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = [pair()]
            self.conv = conv()

        def forward(self, x: Tensor) -> Tensor:
            return self.hidden[0](self.conv(x))

    trained((model := Hidden().double()).hidden[0].double())
    assert_folds(model, IMAGES)


def test_a_register_beside_the_modules() -> None:
    """What stands in it too is replaced there as well, so that a second fold finds nothing new."""

    class Register(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = enn.WSConv2d(4, 4, 3), norm()
            self.all = nn.ModuleList([self.conv, self.norm])

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x))

    folded = assert_folds(trained(Register()), IMAGES)
    assert folded.all[0] is folded.conv
    assert type(folded.conv) is nn.Conv2d


def test_tied_weights() -> None:
    first, second = pair(), pair()
    second[0].weight = first[0].weight
    model = Given(lambda self, x: self.first(x) + self.second(x), first=first, second=second)
    assert norms(assert_folds(trained(model), IMAGES)) == 0


# Parts


class Parts(nn.Module):
    """Calls its body in a way that is given."""

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
def test_parts_of_a_sequence(way: Callable[[Any, Tensor], Tensor], is_traced: bool) -> None:
    def untraced(body: nn.Module, x: Tensor) -> Tensor:
        return way(body, x) if x.shape[0] > 0 else x

    model = trained(Parts(way if is_traced else untraced, pair(nn.Dropout(), nn.ReLU()))).double()
    if is_traced:
        assert_folds(model, IMAGES)
        return
    with pytest.raises(ValueError, match="batch must be given: the forward of model cannot be traced, so whether it"):
        deploy.fold(model)
    with pytest.raises(RuntimeError, match="folding changed an output|the folded model cannot run|the shapes of"):
        deploy.fold(model, IMAGES.double())


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_parts_of_a_sequence_that_stands_elsewhere_as_a_whole(way: Callable[[Any, Tensor], Tensor]) -> None:
    body = pair(nn.Dropout(), nn.ReLU())
    for modules in ([body, Parts(way, body)], [Parts(way, body), body]):
        assert_folds(trained(nn.Sequential(*modules)), IMAGES)


def test_parts_in_a_forward_that_cannot_be_traced_of_what_is_a_whole_elsewhere() -> None:
    body = pair(nn.ReLU())
    parts = Parts(lambda body, x: body[0](x) if x.shape[0] > 0 else x, body)
    for modules in ([body, parts], [parts, body]):
        model = trained(nn.Sequential(*modules))
        with pytest.raises(ValueError, match="batch must be given: the forward of . cannot be traced"):
            deploy.fold(model)
        with pytest.raises(RuntimeError, match="folding changed an output"):
            deploy.fold(model, IMAGES)


def test_a_whole_inside_of_a_part() -> None:
    body = Given(lambda self, x: self.head(self.stem(x)), stem=pair(), head=nn.Sequential(conv(), norm()))
    model = Parts(lambda body, x: body.head(x) + body.stem[0](x), body)
    folded = assert_folds(trained(model), IMAGES)
    assert by_path(folded.body.head) == {"0": "Conv2d"}
    assert by_path(folded.body.stem) == {"0": "Conv2d", "1": "BatchNorm2d"}


def test_lists_and_dictionaries_of_modules() -> None:
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

    folded = assert_folds(trained(Lists()), IMAGES)
    assert norms(folded) == 0
    assert len(folded.steps) == 5


def test_a_scale_ahead_of_a_sequence_that_adds_its_input() -> None:
    class Residual(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return input + super().forward(input)

    model = nn.Sequential(tnn.LayerScale(4), Residual(conv(), nn.ReLU()))
    assert "LayerScale" in by_path(assert_folds(trained(model), IMAGES)).values()
    model = nn.Sequential(Residual(nn.ReLU(), conv()), norm())
    assert norms(assert_folds(trained(model), IMAGES)) == 1
