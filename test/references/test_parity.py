"""The reference models against torchvision's of the same name, small ones always, those of the paper in the slow tests.

No comparison of outputs has a tolerance. Where ours are written with a faster operator (the mean in
``SqueezeExcitation``) it adds and divides the same numbers in the same order.
"""

from collections.abc import Callable

import pytest
import torch
import torchvision
from models import build_model
from torch import Tensor, nn

from ._support import SHARED, SMALL, fill, pair

# Of the size of the paper; the smallest have fast tests as well.
FAST = ("mobilenet_v2", "mobilenet_v3_small", "resnet18")
WHOLE = [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in SHARED]
SIZES = [(name, True) for name in SHARED] + [pytest.param(name, False, marks=pytest.mark.slow) for name in SHARED]
# What a gradient that is zero on paper has by rounding: that of a scale, for one, which the next batch norm undoes.
ROUNDING = 1e-7


def test_every_model_of_both_names_is_compared() -> None:
    """Those that torchvision has by a name of ours, and nothing else by that name."""
    names = {"resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "wide_resnet50_2"}
    names |= {"mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny"}
    assert set(SHARED) == names == set(SMALL)
    assert names <= set(torchvision.models.list_models(torchvision.models))


@pytest.mark.parametrize("name", SHARED)
def test_small_ones_give_equal_outputs(name: str) -> None:
    ours, theirs = pair(name, is_small=True)
    assert_equal_outputs(ours, theirs)


@pytest.mark.parametrize("name", WHOLE)
def test_torchvision_checkpoints_load_and_give_equal_outputs(name: str) -> None:
    assert_equal_outputs(lambda: build_model(name, 1000), lambda: getattr(torchvision.models, name)(weights=None))


def assert_equal_outputs(make_ours: Callable[[], nn.Module], make_theirs: Callable[[], nn.Module]) -> None:
    """After a strict load, and bit for bit in float32 eval."""
    theirs, ours = fill(make_theirs()).eval(), make_ours().eval()
    x = torch.randn(2, 3, 65, 96)
    with torch.no_grad():
        expected = theirs(x)
        assert (expected[0] - expected[1]).abs().mean() > 1e-3 * expected.std()  # the image has not drowned
        assert not torch.equal(ours(x), expected)
        ours.load_state_dict(theirs.state_dict(), strict=True)
        assert torch.equal(ours(x), expected)


@pytest.mark.parametrize(("name", "is_small"), SIZES)
def test_a_seed_starts_as_torchvision_does(name: str, is_small: bool) -> None:
    """The same distributions, and the numbers drawn in the same order."""
    models = []
    for make in pair(name, is_small):
        torch.manual_seed(3)
        models.append(make())
    ours, theirs = (list(model.parameters()) for model in models)
    assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("name", "is_small"), SIZES)
def test_a_step_of_training_is_that_of_torchvision(name: str, is_small: bool) -> None:
    """From one seed: dropout and stochastic depth draw the same numbers, so they stay on."""
    ours, theirs = (make() for make in pair(name, is_small))
    ours.load_state_dict(fill(theirs).state_dict(), strict=True)
    x, labels = torch.randn(4, 3, 40, 33), torch.randint(10, (4,))
    expected, results = training_step(theirs, x, labels), training_step(ours, x, labels)
    for (key, there), here in zip(expected.items(), results.values(), strict=True):
        assert there.isfinite().all(), key
        error = (here - there).abs().max().item()
        assert error <= 1e-5 * there.abs().max().item() + ROUNDING, f"{key} differs by {error}"


def training_step(model: nn.Module, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Losses before and after, gradients, and the running statistics, which show the momentum."""
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


def test_variants_differ_where_they_say() -> None:
    plain, squeezed = build_model("resnet18", 10), build_model("se_resnet18", 10)
    extra = set(squeezed.state_dict()) - set(plain.state_dict())
    assert extra
    assert all(".se.fc" in key for key in extra)


def test_unknown_model_lists_the_known() -> None:
    with pytest.raises(ValueError, match="model must be one of .*resnet18.*; got 'resnet19'"):
        build_model("resnet19", 10)
