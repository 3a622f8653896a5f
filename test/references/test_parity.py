"""Reference models compared with torchvision's models of the same name; most models of full size in slow tests.

Outputs are compared without tolerance. The faster operator in ``SqueezeExcitation``, a mean, adds and divides the same
numbers in the same order.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torchvision
from models import build_model
from torch import Tensor, nn

from ._support.pairs import SHARED, SMALL, fill, image_size, pair

# Full size; the smallest models have fast tests as well.
FAST = ("densenet121", "mobilenet_v2", "mobilenet_v3_small", "resnet18", "shufflenet_v2_x1_0")
FULL_SIZE = [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in SHARED]
SIZES = [(name, True) for name in SHARED] + [pytest.param(name, False, marks=pytest.mark.slow) for name in SHARED]
# Gradients that are mathematically zero, such as of a scale before a batch norm, are this large because of rounding.
ROUNDING = 1e-7


def test_all_shared_models_are_compared() -> None:
    """``SHARED`` lists the models of the same name, and no other attribute of torchvision.models."""
    names = {"resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "wide_resnet50_2"}
    names |= {"mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny"}
    names |= {"vit_b_16", "vit_b_32"}
    names |= {"densenet121", "shufflenet_v2_x1_0"}
    assert set(SHARED) == names == set(SMALL)
    assert names <= set(torchvision.models.list_models(torchvision.models))


@pytest.mark.parametrize("name", SHARED)
def test_small_models_have_equal_outputs(name: str) -> None:
    ours, theirs = pair(name, is_small=True)
    assert_equal_outputs(ours, theirs, image_size(name, 65, 96))


@pytest.mark.parametrize("name", FULL_SIZE)
def test_torchvision_checkpoints_load_with_equal_outputs(name: str) -> None:
    theirs = partial(getattr(torchvision.models, name), weights=None)
    assert_equal_outputs(partial(build_model, name, 1000), theirs, image_size(name, 65, 96))


def assert_equal_outputs(
    make_ours: Callable[[], nn.Module], make_theirs: Callable[[], nn.Module], size: tuple[int, int]
) -> None:
    """Compares outputs bit for bit, in evaluation mode after a strict load."""
    theirs, ours = fill(make_theirs()).eval(), make_ours().eval()
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = theirs(x)
        assert (expected[0] - expected[1]).abs().mean() > 1e-3 * expected.std()  # the output depends on the image
        assert not torch.equal(ours(x), expected)
        ours.load_state_dict(theirs.state_dict(), strict=True)
        assert torch.equal(ours(x), expected)


@pytest.mark.parametrize(("name", "is_small"), SIZES)
def test_initial_weights_equal_torchvision(name: str, is_small: bool) -> None:
    """From the same seed: distributions and their order are the same."""
    models = []
    for make in pair(name, is_small):
        torch.manual_seed(3)
        models.append(make())
    ours, theirs = (list(model.parameters()) for model in models)
    assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("name", "is_small"), SIZES)
def test_training_step_equals_torchvision(name: str, is_small: bool) -> None:
    """From the same seed, with dropout and stochastic depth, which use the same random numbers."""
    ours, theirs = (make() for make in pair(name, is_small))
    ours.load_state_dict(fill(theirs).state_dict(), strict=True)
    x, labels = torch.randn(4, 3, *image_size(name, 40, 33)), torch.randint(10, (4,))
    expected, results = training_step(theirs, x, labels), training_step(ours, x, labels)
    for (key, value), result in zip(expected.items(), results.values(), strict=True):
        assert value.isfinite().all(), key
        error = (result - value).abs().max().item()
        assert error <= 1e-5 * value.abs().max().item() + ROUNDING, f"{key} differs by {error}"


def training_step(model: nn.Module, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Losses before and after the step, gradients, and running statistics, which depend on the momentum."""
    model.train()
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss = nn.functional.cross_entropy(model(x), labels)
    loss.backward()
    optimizer.step()
    gradients = {f"gradient of {key}": value.grad for key, value in model.named_parameters()}
    with torch.no_grad():
        after = nn.functional.cross_entropy(model(x), labels)
    return {"loss": loss.detach(), "loss after the step": after, **gradients, **dict(model.named_buffers())}


def test_se_resnet18_differs_only_in_its_attention() -> None:
    plain, squeezed = build_model("resnet18", 10), build_model("se_resnet18", 10)
    extra = set(squeezed.state_dict()) - set(plain.state_dict())
    assert extra
    assert all(".se.fc" in key for key in extra)


def test_unknown_model() -> None:
    with pytest.raises(ValueError, match="model must be one of .*resnet18.*; got 'resnet19'"):
        build_model("resnet19", 10)
