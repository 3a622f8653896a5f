"""Modules are left out until a tolerance holds."""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import quantized
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
