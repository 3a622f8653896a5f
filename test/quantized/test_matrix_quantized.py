"""The matrix, quantization rows: every layer with a twin, every sample, every check."""

import copy
import functools
import io

import pytest
import torch
from cells import build, build_kwargs, make_input, other_sizes
from layer_specs import SPECS, LayerSpec, Sample
from torch import Tensor, nn

from torchvision_layers import nn as tnn
from torchvision_layers import quantized

BACKENDS = ["x86", "onednn", "qnnpack"]
TWINS = [spec for spec in SPECS if spec.twin is not None]
CELLS = [pytest.param(spec, sample, id=f"{spec.cls.__name__}-{sample.id}") for spec in TWINS for sample in spec.samples]
each_sample = pytest.mark.parametrize(("spec", "sample"), CELLS)
each_backend = pytest.mark.parametrize("backend", BACKENDS)

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def calibration(sample: Sample) -> list[Tensor]:
    rows = 32 if len(sample.shape) > 2 else 1024  # about the same number of values to observe
    return [torch.randn((rows, *sample.shape[1:])) for _ in range(2)]


@functools.cache
def _int8(spec: int, sample: int, backend: str) -> tuple[nn.Module, quantized.QuantizableModel, Tensor]:
    torch.manual_seed(0)
    layer = build(SPECS[spec], SPECS[spec].samples[sample])
    batches = calibration(SPECS[spec].samples[sample])
    return layer, quantized.quantize(layer, batches, backend=backend), torch.cat(batches)


def int8(spec: LayerSpec, sample: Sample, backend: str) -> tuple[nn.Module, quantized.QuantizableModel, Tensor]:
    """A layer, its int8 form and the inputs that calibrated it: made once, for calibrating takes the time."""
    return _int8(SPECS.index(spec), spec.samples.index(sample), backend)


def decibels(expected: Tensor, got: Tensor) -> float:
    """Signal to quantization noise."""
    expected, got = expected.detach(), got.detach()
    return float(10 * torch.log10(expected.square().sum() / (expected - got).square().sum()))


def assert_is_int8(model: nn.Module, sample: Sample) -> None:
    """Every convolution and projection became int8, and in float islands stands only what the spec allows."""
    report = quantized.report(model)
    if sample.is_island:
        assert [row.runs_in for row in report.rows] == ["float"]
        return
    heavy = [row for row in report.rows if row.before in ("Conv1d", "Conv2d", "Conv3d", "Linear")]
    assert heavy
    assert all(row.runs_in == "int8" for row in heavy)
    in_float = {row.before for row in report.rows if row.runs_in == "float"}
    assert in_float == {kind.__name__ for kind in sample.islands}
    assert not any(isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) for module in model.modules())


@each_sample
def test_twin_keys(spec: LayerSpec, sample: Sample) -> None:
    """Float layer and twin have the same signature, keys and outputs, and take each other's weights."""
    layer, input = build(spec, sample), make_input(sample)
    twin = spec.twin(**build_kwargs(sample)).eval()
    assert list(twin.state_dict()) == list(layer.state_dict())
    twin.load_state_dict(layer.state_dict(), strict=True)
    assert torch.equal(twin(input), layer(input))
    layer.load_state_dict(twin.state_dict(), strict=True)
    converted = spec.twin.from_float(layer)
    assert type(converted) is spec.twin
    assert torch.equal(converted(input), layer(input))
    assert not {p.data_ptr() for p in converted.parameters()} & {p.data_ptr() for p in layer.parameters()}
    assert type(layer) is spec.cls


@each_sample
def test_from_float_refuses_other_layers(spec: LayerSpec, sample: Sample) -> None:
    with pytest.raises(TypeError, match=f"layer must be a {spec.cls.__name__}, got ReLU"):
        spec.twin.from_float(nn.ReLU())


@each_sample
def test_fuse(spec: LayerSpec, sample: Sample) -> None:
    """Fusing in eval keeps the output to 1e-5, leaves no batch norm behind a convolution, and happens once."""
    twin, input = spec.twin.from_float(build(spec, sample)), make_input(sample)
    expected = twin(input)
    twin.fuse_model()
    torch.testing.assert_close(twin(input), expected, rtol=1e-5, atol=1e-5)
    assert not any(isinstance(module, NORMS) for module in twin.modules())
    classes = [type(module) for module in twin.modules()]
    twin.fuse_model()
    assert [type(module) for module in twin.modules()] == classes


@each_sample
def test_fuse_for_training(spec: LayerSpec, sample: Sample) -> None:
    """Fusing in training keeps outputs, gradients of the input and running statistics."""
    twin, input = spec.twin.from_float(build(spec, sample, training=True)), make_input(sample)
    fused = copy.deepcopy(twin)
    fused.fuse_model()
    results = []
    for module in (twin, fused):
        x = input.clone().requires_grad_()
        torch.manual_seed(1)
        y = module(x)
        y.square().sum().backward()
        statistics = [m.running_var for m in module.modules() if isinstance(m, NORMS) and m.running_var is not None]
        results.append([y, x.grad, *statistics])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    count = len(list(fused.modules()))
    fused.fuse_model()
    assert len(list(fused.modules())) == count


@each_backend
@each_sample
def test_post_training(spec: LayerSpec, sample: Sample, backend: str) -> None:
    """Calibrated and converted, the layer runs in int8 and stays close to float, at other sizes too."""
    layer, model, x = int8(spec, sample, backend)
    assert_is_int8(model, sample)
    # Seven bits of weight on x86 cost some of the signal; so does each island, which quantizes once more.
    islands = sum(row.runs_in == "float" for row in quantized.report(model).rows)
    bound = 28 if backend == "x86" else 35 - 2 * islands
    assert decibels(layer(x), model(x)) >= bound
    wider = other_sizes(sample, 33)
    assert decibels(layer(wider), model(wider)) >= 25
    empty = (0, *layer(x).shape[1:])
    assert model(x[:0]).shape == empty


@each_backend
@each_sample
def test_quantization_aware(spec: LayerSpec, sample: Sample, backend: str) -> None:
    """Trained for some steps with fake quantization, then converted: int8 computes what the training saw."""
    layer, batches = build(spec, sample), calibration(sample)
    model = quantized.prepare_qat(layer, backend=backend)
    if not list(model.parameters()):
        assert sample.is_island  # nothing to train, nothing in int8
        return
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for batch in batches:
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters())
        optimizer.step()
    assert not all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    quantized.freeze(model)
    converted = quantized.convert(model)
    assert_is_int8(converted, sample)
    x = torch.cat(batches)
    assert decibels(model.eval()(x), converted(x)) >= 25


# torch.jit is deprecated as a whole, and loading an int8 state dict uses storages that are; both still work.
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")
@each_backend
@each_sample
def test_int8_files(spec: LayerSpec, sample: Sample, backend: str) -> None:
    """A script, a state dict and a deep copy of an int8 layer give its outputs bit for bit."""
    _, model, x = int8(spec, sample, backend)
    expected = model(x)
    state, script = io.BytesIO(), io.BytesIO()
    if backend in spec.unsaved_backends:
        with pytest.raises(RuntimeError, match="only supports conv2d_unpack"):  # torch cannot unpack the weights
            model.state_dict()
        return
    torch.save(model.state_dict(), state)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    state.seek(0)
    other = quantized.quantize(build(spec, sample), [3 * x[:4]], backend=backend)
    assert not torch.equal(other(x), expected)
    other.load_state_dict(torch.load(state, weights_only=True), strict=True)
    assert torch.equal(other(x), expected)

    torch.jit.save(torch.jit.script(model), script)
    script.seek(0)
    engine = torch.backends.quantized.engine
    torch.backends.quantized.engine = backend  # a process that deploys does this once
    try:
        loaded = torch.jit.load(script)
        assert torch.equal(loaded(x), expected)
        assert loaded(x[:0]).shape == (0, *expected.shape[1:])
    finally:
        torch.backends.quantized.engine = engine


def test_every_layer_with_parameters_has_a_twin() -> None:
    assert {spec.cls for spec in SPECS if spec.twin is None} == {
        tnn.FrozenBatchNorm2d,
        tnn.Permute,
        tnn.StochasticDepth,
    }
    assert {spec.twin.__name__ for spec in TWINS} == {
        name
        for name in quantized.__all__
        if name.startswith("Quantizable") and name not in ("QuantizableLayer", "QuantizableModel")
    }
