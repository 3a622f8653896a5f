"""Models whose modules are shared, called in parts, patched or not to be traced: right all the same, or refused."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from folding import Given, assert_folds, by_path, relative, trained
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

from torchvision_layers import deploy, quantized
from torchvision_layers import nn as tnn
from torchvision_layers.experimental import nn as enn

IMAGES = torch.randn(2, 4, 7, 6)


def conv() -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, padding=1)


def norm() -> nn.BatchNorm2d:
    return nn.BatchNorm2d(4)


def pair(*more: nn.Module) -> nn.Sequential:
    return nn.Sequential(conv(), norm(), *more)


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


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


# What tracing sees, and what it does not


class MayStopEarly(nn.Module):
    """Its graph depends on whether an argument is given."""

    def __init__(self, default: object) -> None:
        super().__init__()
        self.conv, self.norm, self.default = conv(), norm(), default

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        y = self.conv(x)
        if gate is None:
            return y
        return self.norm(y) * gate


def test_an_argument_that_may_be_left_out() -> None:
    model = trained(MayStopEarly(None))
    folded = assert_folds(model, IMAGES)
    gate = torch.rand(2, 4, 7, 6, dtype=torch.float64)
    assert relative(folded(IMAGES.double(), gate), model(IMAGES.double(), gate).detach()) < 1e-10


def test_an_argument_that_changes_nothing_around_the_norm() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.body = nn.ConvTranspose2d(4, 4, 1), pair()
            self.conv, self.norm = conv(), norm()

        def forward(self, x: Tensor, skip: Tensor | None = None, *, times: int = 2) -> Tensor:
            x = self.up(x)
            if skip is not None:
                x = x + skip
            return self.norm(self.conv(self.body(x))) * times

    model = trained(Decoder())
    folded = assert_folds(model, IMAGES)
    assert norms(folded) == 0
    x = IMAGES.double()
    assert relative(folded(x, x, times=3), model(x, x, times=3).detach()) < 1e-10


class Branches(nn.Module):
    """Cannot be traced, and calls its child as a whole."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.body(x)) if x.mean() < 100 else x


def test_a_forward_that_cannot_be_traced() -> None:
    model = nn.Sequential(conv(), Branches(nn.Sequential(Branches(pair(nn.ReLU())))))
    message = r"the forward of 1 cannot be traced, so whether it calls 1\.body\.0\.body as a whole must be found"
    with pytest.raises(ValueError, match=message):
        deploy.fold(trained(model))
    folded = assert_folds(model, IMAGES, batch=IMAGES.double())
    assert norms(folded) == 0


def test_a_forward_that_cannot_be_traced_above_nothing_to_fold() -> None:
    model = Branches(nn.Sequential(conv(), nn.Dropout(), nn.ReLU()))
    assert len(assert_folds(model, IMAGES).body) == 3
    assert_folds(trained(Branches(Branches(nn.Sequential(tnn.ConvNeXtBlock(4), enn.WSConv2d(4, 4, 3))))), IMAGES)


def test_a_forward_that_fills_a_list_beside_the_tree() -> None:
    model = Branches(nn.ModuleList([pair()]))
    type(model).forward, before = lambda self, x: self.body[0](x) if x.mean() < 100 else x, type(model).forward
    try:
        with pytest.raises(ValueError, match=r"calls body\.0 as a whole"):
            deploy.fold(trained(model))
        assert norms(assert_folds(model, IMAGES, batch=IMAGES.double())) == 0
    finally:
        type(model).forward = before


def test_batch_norm_of_sequences() -> None:
    """As wide as long, it would not be noticed; of other lengths ``len(mean)`` tells."""
    model = trained(nn.Sequential(nn.Linear(4, 7), nn.BatchNorm1d(7)))
    with pytest.raises(RuntimeError, match="nn.BatchNorm1d runs on sequences"):
        deploy.fold(model, torch.randn(2, 7, 4))
    model = trained(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(7)))
    assert torch.equal(deploy.fold(model)(x := torch.randn(2, 7, 4)), model(x))


# The comparison on a batch


def test_the_batch_is_not_written_to() -> None:
    model, x = trained(nn.Sequential(nn.Hardswish(inplace=True), *pair())), torch.randn(2, 4, 7, 6)
    before = x.clone()
    deploy.fold(model, x)
    assert torch.equal(x, before)


def test_outputs_and_inputs_of_many_kinds() -> None:
    class Kinds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.body = nn.Embedding(5, 4), pair()

        def forward(self, x: Tensor, ids: Tensor, options: dict[str, Any]) -> dict[str, Any]:
            y = self.body(x) * options["times"] + self.embed(ids).mean()
            return {"image": y, "mask": y > 0, "count": (y > 0).sum(), "pair": (y, "name"), "none": y[:0]}

    model = trained(Kinds())
    inputs = (IMAGES * 1e3, torch.tensor([0, 3]), {"times": 3.0})
    assert norms(deploy.fold(model, inputs)) == 0


class Custom(nn.Module):
    """A layer of a user's, with a ``folded`` that may be wrong."""

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


def test_a_layer_of_a_users_that_folds_itself() -> None:
    model = trained(nn.Sequential(Custom(doubled), norm()))
    assert by_path(assert_folds(model, IMAGES, batch=IMAGES.double())) == {"0": "Conv2d"}
    (root,) = [assert_folds(Custom(doubled), IMAGES)]
    assert type(root) is nn.Conv2d


def test_what_a_layer_becomes_is_folded_too() -> None:
    model = nn.Sequential(Custom(lambda inner: nn.Sequential(doubled(inner), nn.Dropout())), norm())
    assert by_path(assert_folds(trained(model), IMAGES)) == {"0.0": "Conv2d"}

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(enn.WSConv2d(4, 4, 3), norm())

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

        def folded(self) -> nn.Module:
            return self.body

    assert by_path(assert_folds(trained(nn.Sequential(Wrapped(), norm())), IMAGES)) == {"0.0": "Conv2d"}

    class Chained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = enn.WSConv2d(4, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

        def folded(self) -> nn.Module:
            return self.inner

    assert by_path(assert_folds(trained(nn.Sequential(Chained(), norm())), IMAGES)) == {"0": "Conv2d"}


@pytest.mark.parametrize(
    "make",
    [
        lambda inner: inner,
        lambda inner: nn.Sequential(doubled(inner), nn.MaxPool2d(2)),
        lambda inner: nn.Conv2d(3, 4, 1),
        lambda inner: nn.Conv2d(4, 4, 3, padding=1).requires_grad_(False).apply(lambda m: m.weight.fill_(torch.nan)),
        lambda inner: Given(lambda self, x: (doubled(inner)(x), x)),
    ],
    ids=["value", "shape", "cannot run", "nan", "outputs"],
)
def test_a_wrong_folded_is_found_on_a_batch(make: Callable[[nn.Conv2d], nn.Module]) -> None:
    with pytest.raises(RuntimeError, match=r"(changed|cannot run).*folded\(\) gives something else"):
        deploy.fold(Custom(make), IMAGES)


def test_a_folded_that_gives_no_module() -> None:
    with pytest.raises(TypeError, match=r"folded\(\) of 0 must give a module, got None"):
        deploy.fold(nn.Sequential(Custom(lambda inner: None)))


def test_a_child_called_folded() -> None:
    class Child(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.folded = pair()

        def forward(self, x: Tensor) -> Tensor:
            return self.folded(x)

    assert norms(assert_folds(trained(Child()), IMAGES)) == 0


# Parametrizations


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight + weight.transpose(0, 1)


def symmetric(module: nn.Conv2d) -> nn.Module:
    return parametrize.register_parametrization(module, "weight", Symmetric())


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.spectral_norm, symmetric])
@pytest.mark.parametrize("make", [conv, lambda: enn.WSConv2d(4, 4, 3)], ids=["plain", "standardized"])
def test_parametrized_weights(wrap: Callable[..., nn.Module], make: Callable[[], nn.Conv2d]) -> None:
    model = trained(nn.Sequential(wrap(make()), norm()))
    folded = assert_folds(model, IMAGES)
    assert by_path(folded) == {"0": "Conv2d"}
    assert set(folded.state_dict()) == {"0.weight", "0.bias"}
    assert parametrize.is_parametrized(model[0], "weight")
    model.train()(IMAGES.double()).sum().backward()  # it still trains


def test_parametrized_parameters_that_others_share() -> None:
    first, second = conv(), conv()
    second.weight = first.weight
    symmetric(first)
    assert_folds(trained(nn.Sequential(first, norm(), second, norm())), IMAGES)


def test_a_parametrized_projection_of_a_block_and_a_parametrized_buffer() -> None:
    block = tnn.ConvNeXtBlock(4)
    parametrizations.spectral_norm(block.block[5])
    assert assert_folds(trained(block), IMAGES).layer_scale is None
    frozen = tnn.FrozenBatchNorm2d(4)
    frozen.running_mean.normal_()
    parametrize.register_parametrization(frozen, "running_mean", nn.Tanh())
    model = nn.Sequential(frozen, nn.ReLU())
    assert "0.running_mean" in dict(assert_folds(model, IMAGES).named_buffers())


# Refused by name


@pytest.mark.parametrize(
    "hook",
    [
        lambda m: m.register_forward_hook(lambda *_: None),
        lambda m: m.register_forward_pre_hook(lambda *_: None),
        lambda m: m.register_full_backward_hook(lambda *_: None),
        lambda m: m.register_full_backward_pre_hook(lambda *_: None),
        lambda m: m.register_backward_hook(lambda *_: None),
        lambda m: prune.random_unstructured(m, "weight", 0.5),
    ],
    ids=["forward", "before", "backward", "before backward", "old backward", "prune"],
)
def test_hooks_are_refused_by_name(hook: Callable[[nn.Module], object]) -> None:
    model = nn.Sequential(nn.ReLU(), nn.Sequential(conv(), norm()))
    hook(model[1][0])
    with pytest.raises(ValueError, match=r"1\.0 has hooks, which would see something else"):
        deploy.fold(model)
    model = conv()
    hook(model)
    with pytest.raises(ValueError, match="model has hooks"):
        deploy.fold(model)


def test_lazy_layers_are_refused_until_they_know_their_channels() -> None:
    for layer in (nn.LazyConv2d(4, 3), tnn.LazyConvNormAct(4), tnn.LazySqueezeExcitation(2)):
        with pytest.raises(TypeError, match=r"1(\.0)? is a Lazy.* without channels yet: run one batch"):
            deploy.fold(nn.Sequential(nn.ReLU(), layer))
    model = nn.Sequential(tnn.LazyConvNormAct(4), nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d())
    model(IMAGES)
    assert norms(assert_folds(trained(model), IMAGES)) == 0


def test_quantized_models_are_refused() -> None:
    model = tnn.ConvNormAct(4, 4).eval()
    for made in (
        quantized.quantizable(model),
        quantized.prepare_qat(model),
        quantized.quantize(model, [IMAGES]),
    ):
        with pytest.raises(ValueError, match="model is a QuantizableModel: fold the float model, then quantize it"):
            deploy.fold(made)
        with pytest.raises(ValueError, match="0 is a QuantizableModel"):
            deploy.fold(nn.Sequential(made))


def test_twins_fold_as_their_layers_do() -> None:
    model = nn.Sequential(
        quantized.QuantizableConvNormAct(4, 4),
        quantized.QuantizableConvNeXtBlock(4),
        quantized.QuantizableLayerScale(4),
        nn.Conv2d(4, 4, 1),
    )
    folded = assert_folds(trained(model), IMAGES)
    assert {"BatchNorm2d", "QuantizableLayerScale"}.isdisjoint(by_path(folded).values())
    assert folded[1].layer_scale is None
    assert quantized.quantize(folded.float(), [IMAGES])(IMAGES).shape == IMAGES.shape
