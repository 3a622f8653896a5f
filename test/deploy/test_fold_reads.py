"""A ``forward`` that reads what folding changes: classes, numbers and attributes of the modules below it."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import deploy

from ._support import IMAGES, conv, conv_and_norm, count_norms, norm, randomize, relative_error


class Reader(nn.Module):
    """Calls its modules one after another, and ``read(self, y)`` with the result."""

    def __init__(self, read: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.last, self.read = conv(), norm(), conv_and_norm(nn.Dropout(), nn.ReLU()), read

    def penalty(self) -> Tensor:
        return torch.stack([parameter.pow(2).sum() for parameter in self.conv.parameters()]).sum()

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self, self.last(self.norm(self.conv(x))))


def count(modules: Iterable[nn.Module]) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in modules)


def assert_folds_to(model: nn.Module, norms: int) -> nn.Module:
    """Folds a model, which must compute the same with and without gradients, and keep this number of norms."""
    randomize(model)
    for batch in (None, IMAGES):
        folded = deploy.fold(model, batch)
        for has_gradients in (True, False):
            with torch.set_grad_enabled(has_gradients):
                assert relative_error(folded(IMAGES).detach(), model(IMAGES).detach()) < 1e-5
        assert count_norms(folded) == norms
    return folded


# For each, the number of norms that stay.
READS: dict[str, tuple[Callable[[Any, Tensor], Tensor], int]] = {
    "nothing": (lambda model, y: y * 2, 0),
    "penalty": (lambda model, y: y + model.penalty(), 1),
    "parameters": (lambda model, y: y + sum(float(p.detach().sum()) for p in model.conv.parameters()), 1),
    "named parameters": (lambda model, y: y + sum(p.sum() for _, p in model.conv.named_parameters()), 1),
    "all parameters": (lambda model, y: y + sum(p.sum() for p in model.parameters()), 2),
    "state": (lambda model, y: y + model.conv.state_dict()["weight"].sum(), 1),
    "number of parameters": (lambda model, y: y / sum(p.numel() for p in model.norm.parameters()), 1),
    "classes": (lambda model, y: y * count(model.children()), 1),
    "names": (lambda model, y: y * len([n for n, m in model.named_children() if type(m) is nn.BatchNorm2d]), 1),
    "classes at any depth": (lambda model, y: y * count(model.modules()), 2),
    "branch": (lambda model, y: y if isinstance(model.norm, nn.BatchNorm2d) else y * 2, 1),
    "length": (lambda model, y: y * len(model.last), 1),
    "epsilon": (lambda model, y: y * (1 + model.norm.eps * 1e5), 1),
    "epsilon below": (lambda model, y: y * (1 + model.last[1].eps * 1e5), 1),
    "statistics": (lambda model, y: y + float(model.norm.running_mean.sum()), 1),
    "written": (lambda model, y: y + model.norm.running_mean.view(1, -1, 1, 1), 1),
}


@pytest.mark.parametrize("name", READS)
def test_reads(name: str) -> None:
    read, norms = READS[name]
    assert_folds_to(Reader(read), norms)


def test_reads_of_a_module_further_up() -> None:
    """Modules that no ``forward`` reads are folded."""

    class Above(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.part, self.head = conv_and_norm(), Reader(lambda model, y: y), conv_and_norm()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.part(self.stem(x))) * len(self.part.last)

    folded = assert_folds_to(Above(), 2)
    assert count_norms(folded.part) == 2


def test_read_of_two_modules_that_folding_changes_together() -> None:
    def read(model: Reader, y: Tensor) -> Tensor:
        return y if type(model.norm) is nn.BatchNorm2d or len(model.last) == 4 else y * 2

    assert_folds_to(Reader(read), 2)


class Outside(nn.Module):
    def __init__(self, other: nn.Sequential) -> None:
        super().__init__()
        self.relu, self.others = nn.ReLU(), [other]

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x) * float(self.others[0][0].weight.detach().sum())


def test_read_of_a_module_outside() -> None:
    """The forward depends on the weight of a module that it does not contain."""
    body = conv_and_norm()
    model = nn.Sequential(body, Outside(body), conv_and_norm())
    folded = deploy.fold(randomize(model))
    assert relative_error(folded(IMAGES), model(IMAGES).detach()) < 1e-5


class ByGradients(nn.Module):
    def __init__(self, has_norm: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.has_norm = conv(), norm(), has_norm

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) if torch.is_grad_enabled() is self.has_norm else y


@pytest.mark.parametrize("has_norm", [True, False])
def test_branch_by_gradients(has_norm: bool) -> None:
    assert_folds_to(ByGradients(has_norm), 1)


def test_replaced_layers_may_be_read() -> None:
    """A layer that pads its input itself would become a sequence, which has no stride."""

    class Padded(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))

    class Strided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = Padded(4, 4, 3), norm()

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x)) * self.conv.stride[0]

    assert type(assert_folds_to(Strided(), 1).conv) is Padded
    assert_folds_to(nn.Sequential(Padded(4, 4, 3), norm()), 0)
