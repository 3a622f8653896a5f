"""The public calls on whole models: results, reports, and errors."""

import copy
import dataclasses
import pickle

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import nn as tnn
from torchvision_layers import quantized
from torchvision_layers.experimental import nn as enn
from torchvision_layers.quantized.report_row import Int8Support


class Gate(nn.Module):
    """A user-defined layer."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tanh(x)


def small_model(activation_layer: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    return nn.Sequential(
        tnn.ConvNormAct(3, 8, stride=2, activation_layer=activation_layer),
        tnn.BasicBlock(8, 8, se_layer=tnn.SqueezeExcitation),
        tnn.InvertedResidual(8, 8, 1, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        tnn.LinearDropoutAct(8, 6, dropout=0.1),
        nn.Linear(6, 4),
    ).eval()


def batches() -> list[Tensor]:
    return [torch.randn(16, 3, 12, 10) for _ in range(2)]


def test_quantizable_copy_has_the_same_keys_and_results() -> None:
    model, x = small_model(), torch.randn(2, 3, 12, 10)
    twin = quantized.quantizable(model)
    assert list(twin.state_dict()) == list(model.state_dict())
    assert torch.equal(twin(x), model(x))
    assert type(model[1]) is tnn.BasicBlock
    assert type(twin.model[1]) is quantized.QuantizableBasicBlock
    assert type(twin.model[1].se) is quantized.QuantizableSqueezeExcitation
    assert type(twin.model[2].conv[0]) is quantized.QuantizableConvNormAct
    other = small_model()
    twin.load_state_dict(other.state_dict(), strict=True)
    assert torch.equal(twin(x), other(x))
    copied = quantized.quantizable(twin)
    assert copied is not twin
    assert torch.equal(copied(x), twin(x))


def test_quantizable_single_layer() -> None:
    layer, x = tnn.ConvNormAct(3, 4).eval(), torch.randn(2, 3, 5, 5)
    assert torch.equal(quantized.quantizable(layer)(x), layer(x))


def test_float_model_is_unchanged() -> None:
    model, x = small_model(), torch.randn(2, 3, 12, 10)
    expected, modules = model(x), [type(module) for module in model.modules()]
    quantized.quantize(model, batches())
    quantized.prepare_qat(model)
    assert torch.equal(model(x), expected)
    assert [type(module) for module in model.modules()] == modules
    assert not model.training


def test_report_at_each_stage() -> None:
    model = small_model(nn.SiLU)
    rows = {row.path: row for row in quantized.report(model).rows}
    assert (rows["0.0"].after, rows["0.0"].runs_in, rows["0.0"].why) == ("Conv2d", "float", "not converted yet")

    prepared = quantized.prepare_qat(model)
    assert {row.runs_in for row in quantized.report(prepared).rows} == {"float"}

    report = quantized.report(quantized.quantize(model, batches(), backend="x86"))
    rows = {row.path: row for row in report.rows}
    expected = [
        ("0.0", "Conv2d", "Conv2d", "int8", "has an int8 form"),
        ("0.1", "BatchNorm2d", "Identity", "int8", "fused into 0.0"),
        ("0.2", "SiLU", "FloatFallback(SiLU)", "float", "has no int8 kernel"),
        ("1.conv1", "Conv2d", "ConvReLU2d", "int8", "has an int8 form"),
        ("1.act1", "ReLU", "Identity", "int8", "fused into 1.conv1"),
        ("1.act", "ReLU", "Identity", "int8", "fused into 1.skip_add"),
        ("1.se.activation", "ReLU", "Identity", "int8", "fused into 1.se.fc1"),
        ("2.conv.0.2", "ReLU6", "Identity", "int8", "fused into 2.conv.0.0"),
        ("5.activation", "ReLU", "Identity", "int8", "fused into 5.linear"),
        ("6", "Linear", "Linear", "int8", "has an int8 form"),
    ]
    assert [dataclasses.astuple(rows[row[0]])[:5] for row in expected] == expected
    assert rows["0.0"].fused_with == ("0.1",)
    assert rows["0.1"].fused_with == ("0.0",)
    assert rows["1.conv1"].fused_with == ("1.bn1", "1.act1")
    assert rows["6"].fused_with == ()
    lines = str(report).splitlines()
    assert lines[0].split() == ["path", "before", "after", "runs", "in", "why", "fused", "with"]
    assert len(lines) == len(report.rows) + 1


def test_batches_with_targets() -> None:
    model = tnn.ConvNormAct(3, 4).eval()
    inputs = batches()
    expected = quantized.quantize(model, inputs)(inputs[0])
    pairs = [(batch, torch.zeros(16)) for batch in inputs]
    assert torch.equal(quantized.quantize(model, iter(pairs))(inputs[0]), expected)


def test_fused_model_gives_equal_int8_model() -> None:
    model, inputs = small_model(), batches()
    fused = quantized.quantizable(model)
    quantized.fuse_model(fused)
    assert torch.equal(quantized.quantize(fused, inputs)(inputs[0]), quantized.quantize(model, inputs)(inputs[0]))


def test_models_of_two_backends_are_independent() -> None:
    """Each model keeps its backend's kernels after the other is converted or copied."""
    model, inputs = small_model(), batches()
    x86, expected = quantized.quantize(model, inputs, backend="x86"), {}
    qnnpack = quantized.quantize(model, inputs, backend="qnnpack")
    for name, int8 in (("x86", x86), ("qnnpack", qnnpack)):
        expected[name] = int8(inputs[0])
    assert torch.equal(copy.deepcopy(qnnpack)(inputs[0]), expected["qnnpack"])
    assert torch.equal(copy.deepcopy(x86)(inputs[0]), expected["x86"])


def test_training_resumes_from_state_dict() -> None:
    """Loaded into a newly prepared model, a state saved during training continues to an equal int8 model."""
    model, inputs = small_model(), batches()
    first, second = quantized.prepare_qat(model), quantized.prepare_qat(small_model())

    def step(module: nn.Module, x: Tensor) -> None:
        torch.manual_seed(3)
        optimizer = torch.optim.SGD(module.parameters(), 0.01)
        module(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    step(first, inputs[0])
    second.load_state_dict(copy.deepcopy(first.state_dict()), strict=True)
    step(first, inputs[1])
    step(second, inputs[1])
    outputs = [quantized.convert(module)(inputs[0]) for module in (first, second)]
    assert torch.equal(*outputs)


def with_nan_weight(model: nn.Sequential) -> nn.Sequential:
    nn.init.constant_(model[-1].weight, torch.nan)
    return model


class Branches(nn.Module):
    """A user-defined module that tracing does not understand."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.spare = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) if x[0, 0, 0, 0] < 1e3 else self.spare(x)


class HasParameter(Branches):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * super().forward(x)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda m: quantized.quantize(m, batches(), backend="cuda"),
            ValueError,
            "backend must be one of auto, x86.*'cuda'",
        ),
        (
            lambda m: quantized.quantize(m, batches(), engine="fx"),
            ValueError,
            "engine must be 'eager' or 'pt2e', got 'fx'",
        ),
        (lambda m: quantized.quantize(m, []), ValueError, "batches must hold at least one batch, got none"),
        (lambda m: quantized.quantize(m, batches()[0]), TypeError, "batches must be an iterable.*pass .batch."),
        (lambda m: quantized.quantize(m, ["a"]), TypeError, "the input in batch 0 must be a float32 tensor, got str"),
        (
            lambda m: quantized.quantize(m, [batches()[0] * torch.nan]),
            ValueError,
            "input in batch 0 must be finite",
        ),
        (
            lambda m: quantized.quantize(m, [batches()[0][:0]]),
            ValueError,
            r"batch 0 must not be empty, got shape \[0",
        ),
        (lambda m: quantized.quantize(with_nan_weight(m), batches()), ValueError, "model must give finite outputs"),
        (
            lambda m: quantized.quantize(m.double(), batches()),
            TypeError,
            r"must be float32.*0\.0\.weight is torch.float64",
        ),
        (lambda m: quantized.quantize("resnet", batches()), TypeError, "model must be a module, got 'resnet'"),
        (
            lambda m: quantized.quantize(Branches(), [torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 1e4)]),
            RuntimeError,
            "first batch must reach every module.*calls Conv2d.*for the first time",
        ),
        (
            lambda m: quantized.convert(quantized.prepare_qat(Branches())),
            ValueError,
            "model must have run on batches, or have loaded a state, before it is converted",
        ),
        (
            lambda m: quantized.quantizable(nn.Sequential(m, nn.ConvTranspose2d(3, 3, 1))),
            TypeError,
            r"1 is a ConvTranspose2d \(.*\), which int8 is not known",
        ),
        (lambda m: quantized.convert(m), ValueError, "model must come from prepare_qat.*got a Sequential"),
        (lambda m: quantized.convert(quantized.quantize(m, batches())), ValueError, "not be converted yet"),
        (
            lambda m: quantized.quantize(quantized.prepare_qat(m), batches()),
            ValueError,
            "prepared or converted already",
        ),
        (lambda m: quantized.prepare_qat(m, backend="fbgemm "), ValueError, "backend must be one of.*'fbgemm '"),
    ],
)
def test_invalid_call_raises(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(small_model())


def test_layer_without_twin_raises() -> None:
    class Gated(tnn.ConvNormAct):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).sigmoid()

    class Renamed(tnn.ConvNormAct):
        def __init__(self, channels: int) -> None:
            super().__init__(channels, channels)

    with pytest.raises(TypeError, match=r"0 is a Gated \(.*\), a ConvNormAct that overrides forward"):
        quantized.quantizable(nn.Sequential(Gated(3, 3)))
    assert type(quantized.quantizable(nn.Sequential(Renamed(3))).model[0]) is quantized.QuantizableConvNormAct

    layer = type("Newcomer", (nn.Module,), {"__module__": "torchvision_layers.layers.newcomer"})
    with pytest.raises(TypeError, match=r"0 is a Newcomer \(.*\), which has no quantizable twin"):
        quantized.quantizable(nn.Sequential(layer()))


def test_float_forward_is_reported() -> None:
    model = nn.Sequential(tnn.ConvNormAct(3, 3), HasParameter(), nn.Conv2d(3, 4, 1)).eval()
    converted = quantized.quantize(model, batches())
    rows = {row.path: row for row in quantized.report(converted).rows}
    assert rows["1"].after == "FloatFallback(HasParameter)"
    assert (rows["1"].runs_in, rows["1"].why) == ("float", Int8Support.FLOAT_FORWARD.value)
    assert (rows["1.body"].runs_in, rows["1.spare"].why, rows["2"].runs_in) == ("int8", "is never called", "int8")


def test_operations_of_user_defined_layer_are_int8() -> None:
    model = nn.Sequential(tnn.ConvNormAct(3, 4), Gate(), nn.Conv2d(4, 4, 1)).eval()
    converted = quantized.quantize(model, batches())
    rows = {row.path: (row.after, row.runs_in) for row in quantized.report(converted).rows}
    assert rows["1.tanh"] == ("Tanh", "int8")
    assert rows["1.multiplication"] == ("Int8Multiplication", "int8")


def test_model_with_rewritten_forward_is_copied_but_not_pickled() -> None:
    model, x = nn.Sequential(tnn.ConvNormAct(3, 4), Gate()).eval(), batches()[0]
    twin = quantized.quantizable(model)
    assert torch.equal(copy.deepcopy(twin)(x), model(x))
    with pytest.raises(TypeError, match="a model with rewritten forwards cannot be pickled.*pickle the float model"):
        pickle.dumps(twin)
    pickle.dumps(quantized.quantizable(small_model()))


def test_allow_float_keeps_layers_without_twin_whole() -> None:
    """Each such layer is one float fallback, whatever its children; the layers around it run in int8."""
    staged = [enn.MultiHeadedSpatialAttention(4, 4, 3), enn.MultiHeadedSpatialAttention(4, 4, 3, padding=1)]
    model = nn.Sequential(tnn.ConvNormAct(3, 4), *staged, nn.Conv2d(4, 4, 1)).eval()
    x = batches()[0]
    converted = quantized.quantize(model, batches(), allow_float=True)
    rows = [(row.path, row.after, row.runs_in) for row in quantized.report(converted).rows if row.runs_in == "float"]
    assert rows == [(str(i + 1), f"FloatFallback({type(layer).__name__})", "float") for i, layer in enumerate(staged)]
    assert (converted(x) - model(x)).abs().max() < 0.2 * model(x).abs().max()
    prepared = quantized.prepare_qat(model, allow_float=True)
    prepared(x).sum().backward()
    assert all(parameter.grad is not None for parameter in prepared.parameters())
    with pytest.raises(TypeError, match=r"2 is a MultiHeadedSpatialAttention \(.*\), which has no quantizable twin"):
        quantized.quantize(model, batches())


def test_experimental_layers_without_twin_are_int8() -> None:
    model = nn.Sequential(tnn.ConvNormAct(3, 4), enn.SEBlock(4, 2), nn.Conv2d(4, 4, 1)).eval()
    report = quantized.report(quantized.quantize(model, batches(), backend="x86"))
    rows = {row.path: row.runs_in for row in report.rows}
    assert rows["1.avgpool"] == rows["1.fc1"] == rows["1.fc2"] == rows["1.multiplication"] == "int8"


def test_child_named_entry_raises() -> None:
    model = nn.Sequential()
    model.entry = nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match="must not have a child named 'entry'"):
        quantized.quantizable(model)
