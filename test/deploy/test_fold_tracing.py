"""What tracing sees of a forward, what it does not, and the comparison on a batch."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import deploy
from torchvision_layers import nn as tnn
from torchvision_layers.experimental import nn as enn

from ._support import IMAGES, assert_folds, conv, norm, norms, pair, relative, trained

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


def test_a_forward_that_keeps_notes() -> None:
    """Looking at it leaves none."""

    class Notes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.seen, self.sizes = pair(), [], {}
            self.register_buffer("count", torch.zeros((), dtype=torch.long))

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            self.seen.append(x)
            self.sizes["last"] = x.shape
            return self.body(x)

    folded = deploy.fold(trained(nn.Sequential(Notes())))
    assert norms(folded) == 0
    assert (int(folded[0].count), folded[0].seen, folded[0].sizes) == (0, [], {})
    folded(IMAGES)
    assert int(folded[0].count) == 1


def test_an_argument_that_may_be_left_out() -> None:
    model = trained(MayStopEarly(None))
    folded = assert_folds(model, IMAGES)
    gate = torch.rand(2, 4, 7, 6, dtype=torch.float64)
    assert relative(folded(IMAGES.double(), gate), model(IMAGES.double(), gate).detach()) < 1e-10


def test_an_argument_on_which_the_last_module_depends() -> None:
    class Raw(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv()

        def forward(self, x: Tensor, raw: bool | None = None) -> Tensor:
            return self.conv(x).relu() if raw is None else self.conv(x)

    assert norms(assert_folds(trained(nn.Sequential(Raw(), norm())), IMAGES)) == 1


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

    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.body = nn.Embedding(5, 4), pair()

        def forward(self, x: Tensor, ids: Tensor) -> Tensor:
            return self.body(x) + self.embed(ids).mean()

    half = trained(Chosen()).bfloat16()  # what it rounds is measured in float64, but for the numbers of rows
    assert norms(deploy.fold(half, (IMAGES.bfloat16(), torch.tensor([0, 3])))) == 0
    model = trained(Kinds())
    inputs = (IMAGES * 1e3, torch.tensor([0, 3]), {"times": 3.0})
    assert norms(deploy.fold(model, inputs)) == 0
