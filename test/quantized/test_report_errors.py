"""Errors of each module in the report, against errors computed by hand."""

import csv
import gc
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from torchvision_layers import nn as tnn
from torchvision_layers import quantized
from torchvision_layers.quantized.measurement import Measurement
from torchvision_layers.testing._checks._quantization import decibels

from .pt2e._support import with_running_stats

ENGINES = [("eager", "x86"), ("eager", "onednn"), ("pt2e", "x86"), ("pt2e", "onnxruntime")]
engines = pytest.mark.parametrize(("engine", "backend"), ENGINES)

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(200, 4)
    ).eval()


def blocks() -> nn.Sequential:
    torch.manual_seed(0)
    return with_running_stats(
        nn.Sequential(
            tnn.ConvNormAct(3, 8, activation_layer=nn.Hardswish),
            tnn.BasicBlock(8, 16, 2),
            tnn.InvertedResidual(16, 16, 1, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 4),
        )
    ).eval()


def rows_of(report: quantized.Report) -> dict[str, quantized.ReportRow]:
    return {row.path: row for row in report.rows}


def eager_outputs(int8: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The output of each module of an eager int8 model."""
    outputs: dict[str, Tensor] = {}
    for path, module in int8.model.named_modules():
        module.register_forward_hook(lambda m, args, output, path=path: outputs.update({path: output}))
    with torch.no_grad():
        int8(x)
    return outputs


@pytest.mark.parametrize("backend", ["x86", "onednn"])
def test_errors_in_eager_by_hand(backend: str) -> None:
    model = chain()
    int8 = quantized.quantize(model, [X], backend=backend)
    rows = rows_of(quantized.report(int8, [X]))
    outputs = eager_outputs(int8, X)
    with torch.no_grad():
        exact = {str(i): model[: i + 1](X) for i in range(len(model))}
    exact["0"] = exact["1"]  # the ReLU is fused into the convolution
    for path in ("0", "2", "3", "4", "5"):
        assert rows[path].accumulated_db == pytest.approx(decibels(exact[path], outputs[path].dequantize()), abs=0.01)
        assert rows[path].observed_range == pytest.approx((float(exact[path].min()), float(exact[path].max())))
        numbers = torch.tensor([0, 255], dtype=torch.uint8)
        scale, zero_point = outputs[path].q_scale(), outputs[path].q_zero_point()
        assert rows[path].int8_range == pytest.approx(((numbers.float() - zero_point) * scale).tolist())
    conv = int8.model[3]
    own = F.conv2d(exact["2"], conv.weight().dequantize(), conv.bias())
    own = torch.quantize_per_tensor(own, outputs["3"].q_scale(), outputs["3"].q_zero_point(), torch.quint8)
    assert rows["3"].own_db == pytest.approx(decibels(exact["3"], own.dequantize()), abs=0.01)
    assert rows["2"].own_db == rows["4"].own_db == float("inf")  # they move values only
    assert rows["1"].own_db is None


class Recorder(fx.Interpreter):
    """Keeps the value of each node."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return None


def test_errors_in_pt2e_by_hand() -> None:
    model = chain()
    int8 = quantized.quantize(model, [X], engine="pt2e")
    rows = rows_of(quantized.report(int8, [X]))
    recorder = Recorder(int8.body)
    with torch.no_grad():
        recorder.run(X)
        relu = F.relu(model[0](X))
        pooled = model[2](relu)
        third = model[3](pooled)
    values = {node.name: (node, value) for node, value in recorder.env.items()}
    quantized_relu = next(user for user in values["relu"][0].users)
    dequantized = next(iter(quantized_relu.users))
    assert rows["0"].accumulated_db == pytest.approx(decibels(relu, recorder.env[dequantized]), abs=0.01)
    scale, zero_point = quantized_relu.args[1:3]
    assert rows["0"].int8_range == pytest.approx((-zero_point * scale, (255 - zero_point) * scale))
    conv, value = values["conv2d_1"]
    own = F.conv2d(pooled, recorder.env[conv.args[1]], recorder.env[conv.args[2]])
    after = next(node for node in conv.users if "quantize" in str(node.target))
    range_after = after.args[1:5]
    assert rows["3"].own_db == pytest.approx(
        decibels(third, torch.fake_quantize_per_tensor_affine(own, *range_after)), abs=0.01
    )
    assert rows["3"].accumulated_db == pytest.approx(
        decibels(third, torch.fake_quantize_per_tensor_affine(value, *range_after)), abs=0.01
    )


@engines
def test_whole_model_by_hand(engine: str, backend: str) -> None:
    model, batches = blocks(), [X, X[:2] * 0.7]
    int8 = quantized.quantize(model, batches, engine=engine, backend=backend)
    report = quantized.report(int8, [(x, torch.zeros(len(x))) for x in batches])
    with torch.no_grad():
        exact = torch.cat([model(x) for x in batches])
        outputs = torch.cat([int8(x) for x in batches])
    assert report.db == pytest.approx(decibels(exact, outputs), abs=0.01)
    assert report.agreement == (exact.argmax(1) == outputs.argmax(1)).float().mean()
    assert report.rows[-1].accumulated_db == pytest.approx(report.db, abs=0.01)
    assert f"{report.db:.1f} dB" in str(report)


def cut_range(int8: nn.Module, path: str) -> None:
    """Cuts the range of the output of a module to a tenth."""
    if isinstance(int8, quantized.QuantizableModel):
        module = int8.model.get_submodule(path)
        module.scale = module.scale / 10
        return
    nodes = [node for node in int8.body.graph.nodes if node.op == "call_function"]
    of_module = [
        node for node in nodes if node.meta.get("nn_module_stack") and path in str(node.meta["nn_module_stack"])
    ]
    quantizers = [user for node in of_module for user in node.users if "quantize_per_tensor" in str(user.target)]
    quantizer = [node for node in quantizers if "dequantize" not in str(node.target)][-1]
    for node in [quantizer, *quantizer.users]:
        node.update_arg(1, node.args[1] / 10)
    int8.body.recompile()


@engines
def test_planted_defect_is_the_worst(engine: str, backend: str) -> None:
    model = blocks()
    int8 = quantized.quantize(model, [X], engine=engine, backend=backend)
    cut_range(int8, "2.conv.0.0" if engine == "eager" else "2.conv.0.2")
    report = quantized.report(int8, [X])
    assert report.worst()[0].path == "2.conv.0.0"
    assert report.worst()[0].clipped > 0.1
    assert "worst modules: 2.conv.0.0" in str(report)
    assert report.worst()[1].own_db > report.worst()[0].own_db + 15  # the modules that read it are not blamed


@engines
def test_clipped_inputs(engine: str, backend: str) -> None:
    int8 = quantized.quantize(model := chain(), [X], engine=engine, backend=backend)
    x = 4 * X
    row = rows_of(quantized.report(int8, [x], model=model))["(input)"]
    assert row.int8_range is not None
    outside = (x < row.int8_range[0]) | (x > row.int8_range[1])
    assert row.clipped == pytest.approx(float(outside.float().mean()), abs=0.01)
    assert row.clipped > 0.1


@pytest.mark.parametrize("engine", ["eager", "pt2e"])
def test_memory_does_not_grow_with_depth(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    add = Measurement.add

    def count(self: Measurement, exact: Tensor, *rest: Any) -> None:
        counts.append(sum(type(each) is Tensor and each.shape == x.shape for each in gc.get_objects()))
        add(self, exact, *rest)

    monkeypatch.setattr(Measurement, "add", count)
    largest = []
    for depth in (2, 8):
        torch.manual_seed(0)
        convs = [module for _ in range(depth) for module in (nn.Conv2d(3, 3, 3, padding=1), nn.Sigmoid())]
        x = torch.rand(2, 3, 32, 32)
        int8 = quantized.quantize(model := nn.Sequential(*convs).eval(), [x], engine=engine)
        counts.clear()
        gc.collect()
        quantized.report(int8, [x], model=model)
        largest.append(max(counts))
    assert largest[1] <= largest[0]


@pytest.mark.parametrize("engine", ["eager", "pt2e"])
def test_trained_model_is_compared_with_itself_without_rounding(engine: str) -> None:
    model = blocks()
    prepared = quantized.prepare_qat(model, X, engine=engine)
    with torch.no_grad():
        for parameter in prepared.parameters():
            parameter.mul_(1.1)
    prepared.eval()
    prepared(X)
    int8 = quantized.convert(prepared)
    report = quantized.report(int8, [X])
    assert report.db > 25
    assert report.db == quantized.report(int8, [X], model=prepared).db
    # The model from before training is another one.
    assert quantized.report(int8, [X], model=model).db < 15


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(3, 8, 3)
        self.depth = nn.Conv2d(1, 8, 3)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor, depth: Tensor) -> dict[str, Any]:
        y = self.image(x) + self.depth(depth)
        return {"out": self.head(y.relu()), "aux": [y, None]}


@engines
def test_several_inputs_and_outputs(engine: str, backend: str) -> None:
    torch.manual_seed(0)
    model, batch = TwoInputs().eval(), {"x": X, "depth": torch.randn(4, 1, 16, 16)}
    int8 = quantized.quantize(model, [batch], engine=engine, backend=backend)
    report = quantized.report(int8, [batch])
    with torch.no_grad():
        exact, output = model(**batch), int8(**batch)
    both = [torch.cat([value["out"].flatten(), value["aux"][0].flatten()]) for value in (exact, output)]
    assert report.db == pytest.approx(decibels(*both), abs=0.01)
    assert report.agreement == (exact["out"].argmax(1) == output["out"].argmax(1)).float().mean()
    assert {"(input 0)", "(input 1)"} <= rows_of(report).keys()


def test_without_batches_nothing_changes() -> None:
    report = quantized.report(quantized.quantize(chain(), [X]))
    assert [row.path for row in report.rows] == ["0", "1", "2", "3", "4", "5"]
    assert {row.own_db for row in report.rows} == {None}
    assert "dB" not in str(report)


@pytest.mark.parametrize("engine", ["eager", "pt2e"])
def test_model_that_is_not_the_source(engine: str) -> None:
    model = chain()
    int8 = quantized.quantize(model, [X], engine=engine)
    int8.load_state_dict(int8.state_dict())
    with pytest.raises(ValueError, match="model must be the model that int8 was made from: .*changed since"):
        quantized.report(int8, [X])
    other = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(392, 4)).eval()
    with pytest.raises(ValueError, match="model must be the model that int8 was made from, it"):
        quantized.report(int8, [X], model=other)
    int8 = quantized.quantize(model, [X], engine=engine)
    with torch.no_grad():
        model[0].weight.mul_(2)
    with pytest.raises(ValueError, match="model must be the model that int8 was made from"):
        quantized.report(int8, [X])
    int8 = quantized.quantize(chain(), [X], engine=engine)
    gc.collect()
    with pytest.raises(ValueError, match="it was deleted"):
        quantized.report(int8, [X])


def test_wrong_arguments() -> None:
    model = chain()
    int8 = quantized.quantize(model, [X])
    with pytest.raises(ValueError, match="int8 must be an int8 model from quantize or convert, got a Sequential"):
        quantized.report(model, [X])
    with pytest.raises(ValueError, match="batches must hold batches if there is a model, got None"):
        quantized.report(int8, model=model)
    with pytest.raises(ValueError, match="at least one batch, got none"):
        quantized.report(int8, [])
    with pytest.raises(TypeError, match="got a Tensor: pass"):
        quantized.report(int8, X)
    with pytest.raises(ValueError, match="report must hold errors: pass batches"):
        quantized.report(int8).worst()
    with pytest.raises(TypeError, match="model must be a module, got 3"):
        quantized.report(int8, [X], model=3)


def test_error_of_the_float_model_is_raised() -> None:
    int8 = quantized.quantize(model := chain(), [X])
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        quantized.report(int8, [X, X[..., :14]])
    assert int8(X).shape == model(X).shape


def test_dict_and_csv(tmp_path: Path) -> None:
    report = quantized.report(quantized.quantize(model := chain(), [X]), [X], model=model)
    as_dict = json.loads(json.dumps(report.to_dict()))
    assert as_dict["db"] == report.db
    assert [row["own_db"] for row in as_dict["rows"]] == [row.own_db for row in report.rows]
    text = report.to_csv()
    assert report.to_csv(tmp_path / "report.csv") is None
    assert (tmp_path / "report.csv").read_text() == text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["path"] for row in rows] == [row.path for row in report.rows]
    assert float(rows[0]["observed_range_low"]) == float(X.min())
    assert rows[1]["fused_with"] == "1"
    assert rows[2]["own_db"] == ""


def test_plot() -> None:
    pytest.importorskip("matplotlib").use("Agg")
    report = quantized.report(quantized.quantize(model := chain(), [X]), [X], model=model)
    axes = report.plot()
    assert [text.get_text() for text in axes.texts] == [row.path for row in report.worst()]
    assert list(axes.lines[1].get_ydata()) == [
        row.accumulated_db for row in report.rows if row.accumulated_db is not None
    ]
    assert report.plot(axes) is axes


def test_plot_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    report = quantized.report(quantized.quantize(model := chain(), [X]), [X], model=model)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="plot needs matplotlib, which is not installed: pip install matplotlib"):
        report.plot()
