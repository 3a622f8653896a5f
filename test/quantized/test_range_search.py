"""Observers count the values, and find the range, that torch's and torchao's observers count and find."""

import importlib
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import quantized
from torchvision_layers.quantized.range_search import FastRangeSearch


@pytest.mark.parametrize("module", ["torch.ao.quantization.observer", "torchao.quantization.pt2e.observer"])
@pytest.mark.parametrize("shape", ["normal", "one-sided", "heavy tails", "constant"])
def test_same_range(module: str, shape: str) -> None:
    observer_class = importlib.import_module(module).HistogramObserver
    original = observer_class()
    fast = type("Fast", (FastRangeSearch, observer_class), {})()
    for scale in (1.0, 3.0, 0.2):
        x = scale * torch.randn(3000)
        batch = {"normal": x, "one-sided": x.relu(), "heavy tails": x**5, "constant": x * 0 + scale}[shape]
        original(batch)
        fast(batch)
        for expected, value in zip(original._non_linear_param_search(), fast._non_linear_param_search(), strict=True):
            assert torch.equal(value, expected)
    assert all(map(torch.equal, original.calculate_qparams(), fast.calculate_qparams()))


@pytest.fixture(params=[1, 4])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    previous = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(previous)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("module", ["torch.ao.quantization.observer", "torchao.quantization.pt2e.observer"])
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x,
        lambda x: x.relu(),
        lambda x: x**5,
        lambda x: x + 1e4,
        lambda x: x * 1e37,
        lambda x: x * 1e-39,
        lambda x: x.double(),
        lambda x: 0 * x + x.max(),
        lambda x: x.clamp(0, 0),
        lambda x: x[:, :0],
    ],
)
def test_same_histogram(module: str, change: Callable[[Tensor], Tensor]) -> None:
    observer_class = importlib.import_module(module).HistogramObserver
    original = observer_class()
    fast = type("Fast", (FastRangeSearch, observer_class), {})()
    for scale in (1.0, 0.2, 3.0):
        batch = change(scale * torch.randn(2, 100, 500).transpose(0, 1))
        original(batch)
        fast(batch)
        for name, expected in original.state_dict().items():
            assert torch.equal(fast.state_dict()[name], expected), name


@pytest.mark.parametrize("module", ["torch.ao.quantization.observer", "torchao.quantization.pt2e.observer"])
def test_loaded_histogram_has_its_own_range(module: str) -> None:
    fast_class = type("Fast", (FastRangeSearch, importlib.import_module(module).HistogramObserver), {})
    narrow, wide = fast_class(), fast_class()
    narrow(torch.randn(3000))
    wide(5 * torch.randn(3000))
    narrow.calculate_qparams()
    expected = wide.calculate_qparams()
    narrow.load_state_dict(wide.state_dict())
    assert all(map(torch.equal, narrow.calculate_qparams(), expected))


def test_each_tensor_is_observed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused modules of torch.ao would run their observer twice."""
    seen: list[int] = []
    original = FastRangeSearch.forward

    def forward(self: FastRangeSearch, x_orig: Tensor) -> Tensor:
        if self.probe is None:
            seen.append(id(self))
        return original(self, x_orig)

    monkeypatch.setattr(FastRangeSearch, "forward", forward)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 4), nn.ReLU())
    quantized.quantize(net.eval(), [torch.randn(2, 3, 5, 5)])
    assert len(seen) == len(set(seen)) == 3
