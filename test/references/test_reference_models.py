"""What is done with a reference model: traced, scripted, exported, quantized. Small ones, one of each family."""

import pytest
import torch
from pairs import ALONE, SMALL, fill, small_ours
from torch import Tensor, nn
from train_quantization import with_twins

from torchvision_layers import quantized


@pytest.fixture(params=[*SMALL, *ALONE])
def model(request: pytest.FixtureRequest) -> nn.Module:
    return fill(small_ours(request.param)).eval()


def images(count: int = 3, height: int = 65, width: int = 96) -> Tensor:
    return torch.randn(count, 3, height, width)


def test_traced(model: nn.Module) -> None:
    x = images()
    assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_scripted(model: nn.Module) -> None:
    x = images()
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))


@pytest.mark.slow
def test_exported_with_any_batch_and_size(model: nn.Module) -> None:
    dynamic = {dim: torch.export.Dim.DYNAMIC for dim in (0, 2, 3)}
    program = torch.export.export(model, (images(2, 64, 64),), dynamic_shapes=(dynamic,)).module()
    for x in (images(), images(5, 70, 64)):
        torch.testing.assert_close(program(x), model(x))


@pytest.mark.parametrize("backend", ["x86", "onednn"])
def test_quantized(model: nn.Module, backend: str) -> None:
    """Close to float, and without a convolution or projection left in it."""
    x = images(8, 64, 64)
    int8 = quantized.quantize(with_twins(model), [x], backend=backend)
    rows = [row for row in quantized.report(int8).rows if row.before in ("Conv2d", "Linear")]
    products = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert [row.runs_in for row in rows] == ["int8"] * len(products)
    with torch.no_grad():
        expected = model(x)
        error = int8(x) - expected
    assert error.square().mean() < 0.25 * expected.square().mean()  # wide: random weights amplify rounding
