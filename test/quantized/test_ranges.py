"""Rules for ranges: percentiles as in NumPy, the least squared error of all ranges, and the choice per place."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import quantized
from torchvision_layers._utils.inputs import Inputs
from torchvision_layers.quantized import range_choice
from torchvision_layers.quantized.range_choice import CalibrationRanges, choose_ranges, places_of
from torchvision_layers.quantized.range_search import FastRangeSearch
from torchvision_layers.quantized.ranges import RULES

torch_ao = pytest.importorskip("torch.ao.quantization")


class Observer(FastRangeSearch, torch_ao.HistogramObserver):
    """The observer of the eager engine."""


def values(name: str, count: int = 20000) -> Tensor:
    normal = torch.randn(count, generator=torch.Generator().manual_seed(0))
    return {
        "normal": normal,
        "one-sided": normal.relu(),
        "negative": -3 - normal.abs(),
        "far from zero": normal + 20,
        "heavy tails": normal**3,
        "saturated": (4 * normal).clamp(0, 6),
        "tiny": 1e-12 * normal,
        "constant": normal * 0 + 2,
    }[name]


NAMES = ["normal", "one-sided", "negative", "far from zero", "heavy tails", "saturated", "tiny", "constant"]


def observed(x: Tensor, rule: object) -> Observer:
    observer = Observer(reduce_range=False, eps=2.0**-90)
    for batch in x.split(4000):
        observer(batch)
    observer.rule = rule
    return observer


@pytest.mark.parametrize("percent", [90.0, 99.99, 100.0])
@pytest.mark.parametrize("name", NAMES)
def test_percentile_is_that_of_numpy(name: str, percent: float) -> None:
    x = values(name)
    ends = observed(x, quantized.Percentile(percent))._non_linear_param_search()
    width, one = 2 * float(x.max() - x.min()) / 2048 + 1e-30, 100 / len(x)
    for end, share in zip(map(float, ends), ((100 - percent) / 2, 100 - (100 - percent) / 2), strict=True):
        # Bins are spread again whenever the range grows, and between two values any number is their percentile.
        shares = np.clip([share - one, share + one], 0, 100)
        lowest, highest = np.percentile(x.double().numpy(), shares)
        assert lowest - width <= end <= highest + width


@pytest.mark.parametrize("name", NAMES)
def test_minmax_is_that_of_torch(name: str) -> None:
    x = values(name)
    reference = torch_ao.MinMaxObserver(dtype=torch.quint8, eps=2.0**-90)
    reference(x)
    assert all(map(torch.equal, observed(x, "minmax").calculate_qparams(), reference.calculate_qparams()))


def squared_error(x: Tensor, low: float, high: float) -> float:
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / 255
    zero_point = round(-low / step)
    steps = (x.double() / step).round().clamp(-zero_point, 255 - zero_point)
    return float((steps * step - x.double()).square().mean())


@pytest.mark.parametrize("name", NAMES[:-1])
def test_mse_is_nearly_the_least_of_all(name: str) -> None:
    """The reference rounds all values in 40 x 40 ranges."""
    x = values(name, 4000)
    low, high = map(float, observed(x, "mse")._non_linear_param_search())
    ends = [(float(x.min()) * (i + 1) / 40, float(x.max()) * (j + 1) / 40) for i in range(40) for j in range(40)]
    best = min(squared_error(x, *pair) for pair in ends if min(pair[0], 0) < max(pair[1], 0))
    assert squared_error(x, low, high) <= 1.1 * best


class Reader(nn.Module):
    """An operator that reads an observed tensor, and whose output is observed too."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.observer, self.last = Observer(reduce_range=False), Observer(reduce_range=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.read(self.observer(x.clone()).view(-1, 50)))

    def read(self, x: Tensor) -> Tensor:
        if self.name == "written into":
            return x.clone().clamp_(-1, 1)
        return {"clamp": lambda: x.clamp(-1, 1), "square": lambda: x * x, "mean": lambda: x.mean(1)}[self.name]()


@pytest.mark.parametrize("name", ["clamp", "square", "mean", "written into"])
def test_auto_chooses_by_the_operator_that_reads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference rounds by each rule, runs the operator, and compares."""
    errors_of_models = iter([9.0] * len(RULES) + [1.0])  # the last choice, the best rule of each observer, wins
    monkeypatch.setattr(range_choice, "_error", lambda *args: next(errors_of_models))
    x = values("heavy tails", 2000)
    model = Reader(name)
    model(x)
    expected, errors = model.read(x.clone().view(-1, 50)), []
    for model.observer.rule in RULES:
        scale, zero_point = map(float, model.observer.calculate_qparams())
        rounded = torch.fake_quantize_per_tensor_affine(x, scale, int(zero_point), 0, 255)
        errors.append(float((model.read(rounded.view(-1, 50)) - expected).square().sum()))
    model.observer.rule = "histogram"
    choose_ranges(model, [Inputs((x,))], places_of(model))
    assert errors[RULES.index(model.observer.rule)] <= min(errors) * 1.001
    assert model.observer.probe is None


class Net(nn.Module):
    """Activations with outliers at one place, and saturated ones at another."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1)
        self.act = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.head(self.act(self.conv(y * y * y)))


def decibels(output: Tensor, expected: Tensor) -> float:
    return 10 * math.log10(float(expected.square().sum() / (output - expected).square().sum()))


@pytest.mark.parametrize(("engine", "backend"), [("eager", "auto"), ("pt2e", "x86"), ("pt2e", "onnxruntime")])
def test_auto_is_as_good_as_the_best_rule(engine: str, backend: str) -> None:
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(8, 3, 16, 16)
    with torch.no_grad():
        results = {
            ranges: decibels(quantized.quantize(model, [x], engine=engine, backend=backend, ranges=ranges)(x), model(x))
            for ranges in ("auto", "histogram", "minmax", "percentile", "mse")
        }
    assert results["auto"] >= max(results.values()) - 0.3, results
    assert len(set(results.values())) > 2, "rules make a difference"


def test_auto_compares_rules_on_batches_that_their_ranges_do_not_come_from() -> None:
    batches = [Inputs((values("heavy tails", 500).view(10, 50) * scale,)) for scale in (1.0, 30.0, 2.0, 40.0)]
    model, expected = Reader("square"), Reader("square")
    for i in (0, 2):
        batches[i].run(expected)
    scales = [scale for scale, _ in places_of(expected)[id(expected.observer)].qparams]
    ranges = CalibrationRanges("auto")
    ranges.model = model
    seen = []
    for batch in ranges.watch(iter(batches)):
        seen.append(float(batch.args[0].abs().max()))
        batch.run(model)
    assert ranges._places is not None
    assert [scale for scale, _ in ranges._places[id(model.observer)].qparams] == scales
    assert sorted(seen) == sorted(float(batch.args[0].abs().max()) for batch in batches)
    ranges.apply()
    assert float(model.observer.max_val) == max(float(batch.args[0].max()) for batch in batches), "all batches count"


@pytest.mark.parametrize(
    ("errors", "rule"),
    [
        ([2.0, 9.0, 9.0, 9.0, 1.9], "histogram"),  # choices for each observer are not clearly better
        ([2.0, 9.0, 9.0, 1.9, 1.8], "mse"),
        ([2.0, 2.05, 9.0, 9.0, 9.0], "minmax"),  # nearly as good, and clips nothing
        ([2.0, 1.0, 9.0, 9.0, 0.99], "minmax"),
    ],
)
def test_auto_prefers_rules_for_the_whole_model(
    errors: list[float], rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors_of_models = iter(errors)
    monkeypatch.setattr(range_choice, "_error", lambda *args: next(errors_of_models))
    model, x = Reader("square"), values("heavy tails", 2000)
    model(x)
    choose_ranges(model, [Inputs((x,))], places_of(model))
    assert model.observer.rule == model.last.rule == rule


@pytest.mark.parametrize("engine", ["eager", "pt2e"])
def test_auto_needs_a_batch(engine: str) -> None:
    with pytest.raises(ValueError, match="batches must hold at least one batch, got none"):
        quantized.quantize(Net().eval(), iter(()), engine=engine, ranges="auto")


@pytest.mark.parametrize("engine", ["eager", "pt2e"])
def test_ranges_reach_the_int8_model(engine: str) -> None:
    """The step of the input follows from the percentile; the default is the histogram."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU6(), nn.Conv2d(4, 4, 1)).eval(), torch.rand(4, 3, 32, 32)

    def first_step(**kwargs: object) -> float:
        int8 = quantized.quantize(model, [x], engine=engine, **kwargs)
        state = int8.state_dict()
        return float(state["activation_scales"][0] if engine == "pt2e" else int8.quant.scale)

    high = np.percentile(x.numpy(), 75)
    assert first_step(ranges=quantized.Percentile(50), check=False) == pytest.approx(high / 255, rel=1e-2)
    assert first_step(ranges="minmax") == pytest.approx(float(x.max()) / 255, rel=1e-6)
    assert first_step() == first_step(ranges="histogram")


@pytest.mark.parametrize("ranges", ["max", None, 99.9, nn.ReLU])
def test_unknown_rules_raise(ranges: object) -> None:
    with pytest.raises(ValueError, match=r"ranges must be 'histogram', .* got "):
        quantized.quantize(nn.Conv2d(3, 4, 1), [torch.rand(1, 3, 4, 4)], ranges=ranges)


@pytest.mark.parametrize("percent", [0.0, -1.0, 100.1])
def test_percentiles_out_of_range_raise(percent: float) -> None:
    with pytest.raises(ValueError, match=rf"percent must be above 0 and at most 100, got {percent}"):
        quantized.Percentile(percent)


@pytest.mark.parametrize("percent", [True, "99"])
def test_percentile_must_be_a_number(percent: object) -> None:
    with pytest.raises(TypeError, match="percent must be a number"):
        quantized.Percentile(percent)
