"""Forwards that can or cannot be traced, and the comparison on a batch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import deploy
from torchvision_layers import nn as tnn

from ._support import (
    IMAGES,
    FunctionModule,
    assert_folds,
    conv,
    conv_and_norm,
    count_norms,
    norm,
    randomize,
    relative_error,
)

# Tracing


class MayStopEarly(nn.Module):
    """Its graph depends on whether an argument is passed."""

    def __init__(self, default: object) -> None:
        super().__init__()
        self.conv, self.norm, self.default = conv(), norm(), default

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        y = self.conv(x)
        if gate is None:
            return y
        return self.norm(y) * gate


def test_forward_that_records_its_inputs() -> None:
    """Tracing leaves no records."""

    class Recorder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.inputs, self.sizes = conv_and_norm(), [], {}
            self.register_buffer("count", torch.zeros((), dtype=torch.long))

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            self.inputs.append(x)
            self.sizes["last"] = x.shape
            return self.body(x)

    folded = deploy.fold(randomize(nn.Sequential(Recorder())))
    assert count_norms(folded) == 0
    assert (int(folded[0].count), folded[0].inputs, folded[0].sizes) == (0, [], {})
    folded(IMAGES)
    assert int(folded[0].count) == 1


WRITES: dict[str, Callable[[Any], object]] = {
    "in place": lambda model: model.body.count.mul_(0.9),
    "data": lambda model: model.body.count.data.mul_(0.9),
    "replaced": lambda model: setattr(model.body, "count", model.body.count * 0.9),
    "named": lambda model: [buffer.mul_(0.9) for name, buffer in model.named_buffers() if name.endswith("count")],
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_forward_that_writes_into_a_buffer_of_a_child(write: Callable[[Any], object]) -> None:
    """Tracing leaves no writes; each run of the folded model writes what the model does."""

    def forward(model: Any, x: Tensor) -> Tensor:
        write(model)
        return model.body(x)

    body = conv_and_norm()
    body.register_buffer("count", torch.ones(()))
    model = randomize(FunctionModule(forward, body=body))
    body.count.fill_(1.0)
    folded = deploy.fold(model)
    assert count_norms(folded) == 0
    for _ in range(2):
        assert float(folded.body.count) == float(body.count)
        assert relative_error(folded(IMAGES), model(IMAGES).detach()) < 1e-5


def test_optional_argument() -> None:
    model = randomize(MayStopEarly(None))
    folded = assert_folds(model, IMAGES)
    gate = torch.rand(2, 4, 7, 6, dtype=torch.float64)
    assert relative_error(folded(IMAGES.double(), gate), model(IMAGES.double(), gate).detach()) < 1e-10


def test_optional_argument_that_changes_the_output() -> None:
    class Raw(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv()

        def forward(self, x: Tensor, raw: bool | None = None) -> Tensor:
            return self.conv(x).relu() if raw is None else self.conv(x)

    assert count_norms(assert_folds(randomize(nn.Sequential(Raw(), norm())), IMAGES)) == 1


def test_optional_argument_that_does_not_affect_the_norm() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.body = nn.ConvTranspose2d(4, 4, 1), conv_and_norm()
            self.conv, self.norm = conv(), norm()

        def forward(self, x: Tensor, skip: Tensor | None = None, *, times: int = 2) -> Tensor:
            x = self.up(x)
            if skip is not None:
                x = x + skip
            return self.norm(self.conv(self.body(x))) * times

    model = randomize(Decoder())
    folded = assert_folds(model, IMAGES)
    assert count_norms(folded) == 0
    x = IMAGES.double()
    assert relative_error(folded(x, x, times=3), model(x, x, times=3).detach()) < 1e-10


class Branches(nn.Module):
    """Cannot be traced; calls its child as a whole."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.body(x)) if x.mean() < 100 else x


def test_untraceable_forward() -> None:
    model = nn.Sequential(conv(), Branches(nn.Sequential(Branches(conv_and_norm(nn.ReLU())))))
    message = (
        r"the forward of 1 cannot be traced, so only a comparison can show whether it calls 1\.body\.0\.body as a whole"
    )
    with pytest.raises(ValueError, match=message):
        deploy.fold(randomize(model))
    folded = assert_folds(model, IMAGES, batch=IMAGES.double())
    assert count_norms(folded) == 0


def test_untraceable_forward_without_anything_to_fold() -> None:
    model = Branches(nn.Sequential(conv(), nn.Dropout(), nn.ReLU()))
    assert len(assert_folds(model, IMAGES).body) == 3
    assert_folds(randomize(Branches(Branches(nn.Sequential(tnn.ConvNeXtBlock(4), tnn.WSConv2d(4, 4, 3))))), IMAGES)


def test_untraceable_forward_with_module_list() -> None:
    model = Branches(nn.ModuleList([conv_and_norm()]))
    type(model).forward, before = lambda self, x: self.body[0](x) if x.mean() < 100 else x, type(model).forward
    try:
        with pytest.raises(ValueError, match=r"calls body\.0 as a whole"):
            deploy.fold(randomize(model))
        assert count_norms(assert_folds(model, IMAGES, batch=IMAGES.double())) == 0
    finally:
        type(model).forward = before


def test_batch_norm_on_sequences() -> None:
    """Only the comparison finds this if the length equals the features; otherwise ``len(mean)`` differs."""
    model = randomize(nn.Sequential(nn.Linear(4, 7), nn.BatchNorm1d(7)))
    with pytest.raises(RuntimeError, match="nn.BatchNorm1d runs on sequences"):
        deploy.fold(model, torch.randn(2, 7, 4))
    model = randomize(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(7)))
    assert torch.equal(deploy.fold(model)(x := torch.randn(2, 7, 4)), model(x))


# The comparison on a batch


def test_batch_does_not_change() -> None:
    model, x = randomize(nn.Sequential(nn.Hardswish(inplace=True), *conv_and_norm())), torch.randn(2, 4, 7, 6)
    before = x.clone()
    deploy.fold(model, x)
    assert torch.equal(x, before)


def test_nested_inputs_and_outputs() -> None:
    class Kinds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.body = nn.Embedding(5, 4), conv_and_norm()

        def forward(self, x: Tensor, ids: Tensor, options: dict[str, Any]) -> dict[str, Any]:
            y = self.body(x) * options["times"] + self.embed(ids).mean()
            return {"image": y, "mask": y > 0, "count": (y > 0).sum(), "pair": (y, "name"), "none": y[:0]}

    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.body = nn.Embedding(5, 4), conv_and_norm()

        def forward(self, x: Tensor, ids: Tensor) -> Tensor:
            return self.body(x) + self.embed(ids).mean()

    half = randomize(Chosen()).bfloat16()  # its rounding error is measured in float64, with integer indices unchanged
    assert count_norms(deploy.fold(half, (IMAGES.bfloat16(), torch.tensor([0, 3])))) == 0
    model = randomize(Kinds())
    inputs = (IMAGES * 1e3, torch.tensor([0, 3]), {"times": 3.0})
    assert count_norms(deploy.fold(model, inputs)) == 0


class Conditional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return torch.cond(x.sum() > 0, self.first.forward, self.second.forward, (x,))


def test_control_flow_operator_raises() -> None:
    model, x = Conditional().eval(), torch.randn(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"model \(Conditional\).*torch.cond.* fold the modules around it") as error:
        deploy.fold(model, x)
    assert "HigherOrderOperator" not in str(error.value)
    assert len(deploy.fold(model.features)) == 1
