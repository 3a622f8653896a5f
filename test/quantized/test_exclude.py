"""Modules that are excluded from int8."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from torchvision_layers import nn as tnn
from torchvision_layers import quantized
from torchvision_layers.testing._checks._quantization import decibels

from .pt2e._support import with_running_stats

engines = pytest.mark.parametrize("engine", ["eager", "pt2e"])
backends = pytest.mark.parametrize(
    ("engine", "backend"), [("eager", "x86"), ("eager", "onednn"), ("pt2e", "x86"), ("pt2e", "onnxruntime")]
)

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = tnn.ConvNormAct(3, 8)
        self.blocks = nn.Sequential(tnn.BasicBlock(8, 16, 2), tnn.InvertedResidual(16, 16, 1, 2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.blocks(self.stem(x))))


def net() -> nn.Module:
    torch.manual_seed(0)
    return with_running_stats(Net()).eval()


def excluded_paths(int8: nn.Module) -> dict[str, str]:
    return {row.path: row.why for row in quantized.report(int8).rows if row.why.startswith("excluded by")}


def is_last(path: str, module: nn.Module) -> bool:
    return path.startswith("classifier") and isinstance(module, nn.Linear)


@pytest.mark.parametrize(
    ("entry", "by"),
    [
        ("classifier.1", "'classifier.1'"),
        ("*sifier.1", "'*sifier.1'"),
        (nn.Linear, "Linear"),
        (is_last, "is_last"),
    ],
)
@engines
def test_forms(engine: str, entry: Any, by: str) -> None:
    int8 = quantized.quantize(net(), [X], engine=engine, exclude=[entry])
    rows = {row.path: row for row in quantized.report(int8).rows}
    assert not int8(X).requires_grad
    assert excluded_paths(int8) == {"classifier.1": f"excluded by {by}"}
    assert rows["classifier.1"].runs_in == "float"
    assert by in str(quantized.report(int8))
    assert rows["stem.0"].runs_in == "int8"


@backends
def test_container_runs_in_float_as_a_whole(engine: str, backend: str) -> None:
    model = net()
    int8 = quantized.quantize(model, [X], engine=engine, backend=backend, exclude=["blocks"])
    paths = excluded_paths(int8)
    assert set(paths.values()) == {"excluded by 'blocks'"}
    assert all(path.startswith("blocks") for path in paths)
    rows = quantized.report(int8, [X]).rows
    assert not any(row.runs_in == "int8" and row.path.startswith("blocks") for row in rows)
    with torch.no_grad():
        assert decibels(model(X), int8(X)) > 30
        if engine == "eager":
            stem = int8.model.stem(int8.quant(X)).dequantize()
            assert torch.allclose(int8.model.blocks.module(stem), model.blocks(stem), atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: tnn.Conv2dSame(3, 8, 3, stride=2),
        lambda: timm.layers.Conv2dSame(3, 8, 3, stride=2),
        lambda: nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(3, 8, 3)),
        lambda: nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 1))),
    ],
    ids=["same", "timm's", "padding", "nested"],
)
def test_norm_after_an_excluded_layer_of_several_modules_runs_in_float(layer: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = with_running_stats(nn.Sequential(layer(), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))).eval()
    int8 = quantized.quantize(model, [X], exclude=["0"])
    floats = {row.path for row in quantized.report(int8).rows if row.runs_in == "float"}
    assert {"1", "2"} <= floats
    with torch.no_grad():
        exact = model[:3](X)
        in_float = int8.model[:3](int8.quant(X))
    assert torch.allclose(in_float.dequantize(), exact, rtol=0, atol=float(exact.max()) / 200)  # one rounding


@backends
def test_norm_and_activation_of_an_excluded_convolution_run_in_float(engine: str, backend: str) -> None:
    """A norm between two roundings would be far less accurate than the fused int8 kernel."""
    model = net()
    int8 = quantized.quantize(model, [X], engine=engine, backend=backend, exclude=["stem.0"])
    row = next(
        row for row in quantized.report(int8, [X]).rows if row.path == ("stem.0" if engine == "eager" else "stem.2")
    )
    assert row.runs_in == "float"
    with torch.no_grad():
        exact = model.stem(X)
    # Neither weights nor values in between are rounded, only the input and the output.
    scale = (row.int8_range[1] - row.int8_range[0]) / 255
    assert row.own_db == pytest.approx(decibels(exact, (exact / scale).round().mul(scale)), abs=1.0)


@engines
def test_nothing_is_rounded_between_excluded_modules(engine: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(1152, 4),
    ).eval()
    int8 = quantized.quantize(model, [X], engine=engine, exclude=["1", "3", "4", "5", "6"])
    rows = {row.path: row for row in quantized.report(int8, [X]).rows}
    assert rows["0"].own_db is not None
    assert rows["6"].int8_range is None
    # The only error is that of the first layer, which is carried on.
    with torch.no_grad():
        assert rows["6"].accumulated_db == pytest.approx(decibels(model(X), int8(X)), abs=0.01)
        first = int8.model[0](int8.quant(X)).dequantize() if engine == "eager" else None
        if first is not None:
            assert torch.allclose(int8(X), model[1:](first), atol=1e-6)


@engines
def test_excluded_module_between_int8_modules_in_residual_blocks(engine: str) -> None:
    """The sum runs in float too, so its output is the first value that is rounded."""
    model = net()
    int8 = quantized.quantize(model, [X], engine=engine, exclude=["blocks.0.conv2", "blocks.1.conv.2"])
    rows = {row.path: row for row in quantized.report(int8, [X]).rows}
    with torch.no_grad():
        assert decibels(model(X), int8(X)) > 30
    if engine == "eager":
        assert rows["blocks.0.skip_add"].after == "FloatFallback(Addition)"
        assert rows["blocks.0.skip_add"].why == "excluded by 'blocks.0.conv2'"
        assert rows["blocks.0.conv2"].int8_range is None
        assert rows["blocks.1.skip_add"].int8_range is not None


@engines
def test_input_of_an_excluded_module_is_not_rounded(engine: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    int8 = quantized.quantize(model, [X], engine=engine, exclude=["0"])
    rows = {row.path: row for row in quantized.report(int8, [X]).rows}
    assert "(input)" not in rows
    assert rows["2"].runs_in == "int8"
    again = quantized.quantize(model, [2 * X], engine=engine, exclude=["0"])
    again.load_state_dict(int8.state_dict())
    assert torch.equal(again(X), int8(X))


@backends
def test_training(engine: str, backend: str) -> None:
    model = net()
    prepared = quantized.prepare_qat(model, X, engine=engine, backend=backend, exclude=["stem", nn.Linear])
    optimizer = torch.optim.SGD(prepared.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        prepared(X).square().mean().backward()
        optimizer.step()
    weight = next(p for name, p in prepared.named_parameters() if p.shape == model.classifier[1].weight.shape).detach()
    assert not torch.equal(weight, model.classifier[1].weight)  # it trains
    int8 = quantized.convert(prepared, check=False)
    assert {path.partition(".")[0] for path in excluded_paths(int8)} == {"stem", "classifier"}
    weights = [
        value for value in int8.state_dict().values() if isinstance(value, Tensor) and value.shape == weight.shape
    ]
    assert any(value.dtype is torch.float32 and torch.equal(value, weight) for value in weights)


def test_training_without_an_example() -> None:
    prepared = quantized.prepare_qat(net(), exclude=["blocks.1", "classifier"])
    prepared.eval()(X)
    assert excluded_paths(quantized.convert(prepared)) == {
        "blocks.1": "excluded by 'blocks.1'",
        "classifier.0": "excluded by 'classifier'",
        "classifier.1": "excluded by 'classifier'",
    }


@pytest.mark.parametrize(
    ("exclude", "error", "message"),
    [
        (["clasifier"], ValueError, "'clasifier' matches none; the closest are classifier"),
        (["blocks.0.conv3"], ValueError, r"'blocks.0.conv3' matches none; the closest are .*blocks\.0\.conv"),
        (["stem", nn.Conv3d], ValueError, "Conv3d matches none; the closest are Conv2d"),
        ([lambda path, module: False], ValueError, "matches none; it has stem, blocks, pool, classifier"),
        ("classifier", TypeError, "exclude must be a list of paths, .* got 'classifier'"),
        (nn.Linear, TypeError, "exclude must be a list"),
        ([3], TypeError, "exclude must hold paths, patterns, classes and functions, got 3"),
        (["*"], ValueError, "exclude must leave a convolution or linear layer for int8"),
    ],
)
@engines
def test_wrong_entries(engine: str, exclude: Any, error: type[Exception], message: str) -> None:
    for call in (quantized.quantize, quantized.prepare_qat):
        arguments: Any = [X] if call is quantized.quantize else X
        with pytest.raises(error, match=message):
            call(net(), arguments, engine=engine, exclude=exclude)


class Reading(nn.Module):
    """Computes with its own weight, which int8 cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight * x.mean())


@pytest.mark.parametrize("make", [Reading, lambda: nn.ConvTranspose2d(8, 8, 2), lambda: tnn.WSConv2d(8, 8, 3)])
@engines
def test_excluded_module_needs_no_allow_float(engine: str, make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), make(), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    int8 = quantized.quantize(model, [X], engine=engine, exclude=["1"])
    assert excluded_paths(int8).keys() == {"1"}
    with torch.no_grad():
        assert decibels(model(X), int8(X)) > 25


def test_quantizable_model() -> None:
    """Paths are those of the model that was given to ``quantizable``."""
    int8 = quantized.quantize(quantized.quantizable(net()), [X], exclude=["classifier.1"])
    assert excluded_paths(int8) == {"classifier.1": "excluded by 'classifier.1'"}


@engines
def test_shared_module_is_excluded_everywhere(engine: str) -> None:
    torch.manual_seed(0)
    shared = nn.Conv2d(8, 8, 1)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), shared, nn.ReLU(), shared).eval()
    int8 = quantized.quantize(model, [X], engine=engine, exclude=["3"])
    with torch.no_grad():
        assert decibels(model(X), int8(X)) > 30
    assert excluded_paths(int8).keys() == {"1", "3"} if engine == "eager" else {"1"}
    rows = quantized.report(int8).rows
    assert [row.path for row in rows if row.runs_in == "int8" and row.before == "Conv2d"] == ["0"]
