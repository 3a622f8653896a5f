"""Calibrated int8 graphs: results, input sizes, states, backends, and errors."""

import copy
import dataclasses
import importlib.util
import io
import sys
import types

import pytest
import torch
import torchvision
from torch import Tensor, nn

from torchvision_layers import nn as tnn
from torchvision_layers import quantized
from torchvision_layers._utils.inputs import Inputs
from torchvision_layers.quantized import convert, freeze, pt2e, quantizable
from torchvision_layers.quantized.pt2e import workflow
from torchvision_layers.quantized.settings import Settings
from torchvision_layers.testing._checks._quantization import decibels

from ._support import FunctionModule, batches, calibrated, call_nodes, int8, small_model, tiny_model, with_running_stats


def save_and_load(state: dict[str, Tensor]) -> dict[str, Tensor]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


LAYERS = {
    "conv1d": (lambda: tnn.Conv1dNormAct(4, 6), (32, 4, 15)),
    "conv1d alone": (lambda: nn.Conv1d(4, 6, 3), (32, 4, 15)),
    "conv2d": (lambda: tnn.ConvNormAct(4, 6, activation_layer=nn.Hardswish), (16, 4, 9, 8)),
    "conv3d": (lambda: tnn.Conv3dNormAct(4, 6), (8, 4, 5, 6, 7)),
    "linear": (lambda: tnn.LinearDropoutAct(8, 6, norm_layer=nn.BatchNorm1d), (512, 8)),
    "group norm": (lambda: tnn.ConvNormAct(4, 6, norm_layer=lambda n: nn.GroupNorm(2, n)), (16, 4, 9, 8)),
    "bottleneck": (lambda: tnn.Bottleneck(16, 4, se_layer=tnn.SqueezeExcitation), (16, 16, 9, 8)),
    "mbconv": (lambda: tnn.MBConv(4, 4), (16, 4, 9, 8)),
    "fused mbconv": (lambda: tnn.FusedMBConv(4, 4), (16, 4, 9, 8)),
    "convnext": (lambda: tnn.ConvNeXtBlock(4), (16, 4, 9, 8)),
    "separable": (lambda: tnn.DepthwiseSeparableConv(4, 6), (16, 4, 9, 8)),
    "mlp": (lambda: tnn.MLP(8, [16, 4]), (512, 8)),
    "same padding": (lambda: nn.Conv2d(4, 6, 3, padding="same"), (16, 4, 9, 8)),
    "matmul": (lambda: FunctionModule(lambda m, x: m.fc(x) @ x.transpose(1, 2), fc=nn.Linear(8, 8)), (64, 5, 8)),
    "reused relu": (lambda: torchvision.models.resnet.BasicBlock(8, 8), (16, 8, 9, 8)),
    "norm of another dimension": (lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)), (64, 6, 6)),
    "conv called twice": (
        lambda: FunctionModule(lambda m, x: m.conv(m.conv(x)), conv=nn.Conv2d(4, 4, 3)),
        (16, 4, 9, 8),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_int8_is_close_to_float(name: str) -> None:
    build, shape = LAYERS[name]
    model, inputs = with_running_stats(build()).eval(), [torch.randn(shape) for _ in range(2)]
    graph, x = int8(model, inputs), torch.cat(inputs)
    assert decibels(model(x), graph(x)) >= 35
    assert call_nodes(graph, "dequantize_per_channel") or name == "matmul"
    assert decibels(graph(x)[:1], graph(x[:1])) >= 35
    assert graph(x[:0]).shape == (0, *model(x).shape[1:])


@pytest.mark.parametrize("layer", [tnn.LayerNorm2d(4), tnn.LayerScale(4), tnn.FrozenBatchNorm2d(4)])
def test_layer_without_compute_ops_is_unchanged(layer: nn.Module) -> None:
    inputs = [torch.randn(4, 4, 6, 5)]
    assert torch.equal(int8(layer, inputs)(inputs[0]), layer(inputs[0]))


def test_equal_to_torchao_workflow() -> None:
    """torchao's own workflow gives equal outputs with a symmetric range of weights and with corrected biases."""
    import torchao.quantization.pt2e.quantize_pt2e as flow
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    model, inputs = with_running_stats(nn.Sequential(tnn.ConvNormAct(3, 8), tnn.BasicBlock(8, 8))).eval(), batches()
    config = x86.get_default_x86_inductor_quantization_config()
    symmetric = dataclasses.replace(config.weight, quant_min=-127)
    quantizer = x86.X86InductorQuantizer().set_global(dataclasses.replace(config, weight=symmetric))
    torchao_model = torch.export.export(model, (inputs[0],), dynamic_shapes=({0: torch.export.Dim.AUTO},)).module()
    with torch.no_grad():
        torchao_model = flow.prepare_pt2e(torchao_model, quantizer)
        for batch in inputs:
            torchao_model(batch)
        torchao_model = flow.convert_pt2e(torchao_model)
    graph = int8(model, inputs)
    biases = {name: value for name, value in graph.body.named_parameters() if name.endswith("bias")}
    assert len(biases) == 3
    assert not torch.equal(graph(inputs[0]), torchao_model(inputs[0]))
    for name, value in biases.items():
        torchao_model.get_parameter(name).data.copy_(value)
    assert torch.equal(graph(inputs[0]), torchao_model(inputs[0]))


def test_model_is_unchanged() -> None:
    model, inputs = tiny_model().train(), batches()
    before = copy.deepcopy(model.state_dict())
    int8(model, inputs)
    workflow.prepare_qat(model, Inputs((inputs[0],)), Settings("x86"))
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("example", [(1, 3, 16, 16), (2, 3, 16, 16), (5, 3, 16, 20)])
def test_any_input_size_runs(example: tuple[int, ...]) -> None:
    """The sizes of the example, a batch of one image among them, do not become constants of the graph."""
    graph = int8(tiny_model(), [torch.randn(example)])
    for shape in [(1, 3, 16, 16), (7, 3, 13, 24), (2, 3, 24, 13), (0, 3, 9, 9)]:
        assert graph(torch.randn(shape)).shape == (shape[0], 4)


def test_fixed_input_size_is_kept() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 8, 5))
    graph = int8(model, [torch.randn(4, 3, 8, 10)])
    assert graph(torch.randn(9, 3, 8, 10)).shape == (9, 5)
    with pytest.raises(ValueError, match="input must have sizes that the forward of the model supports"):
        graph(torch.randn(9, 3, 10, 10))


def test_state_dict_restores_weights_and_qparams() -> None:
    """Outputs are bit-equal after loading, since scales and zero points of activations are part of the state."""
    _, (x, _), graph = calibrated()
    other, state = int8(small_model(), [3 * batch + 1 for batch in batches()]), graph.state_dict()
    assert not torch.equal(graph(x), other(x))
    assert {"activation_scales", "activation_zero_points"} < set(state)
    assert len(state["activation_scales"]) == len(call_nodes(graph, "quantize_per_tensor")) + len(
        call_nodes(graph, "dequantize_per_tensor")
    )
    other.load_state_dict(save_and_load(state), strict=True)
    assert torch.equal(graph(x), other(x))
    assert torch.equal(graph(x), copy.deepcopy(other)(x))


def test_mismatched_state_dict_raises() -> None:
    _, _, graph = calibrated()
    state = graph.state_dict()
    with pytest.raises(RuntimeError, match="Missing key.*activation_scales"):
        graph.load_state_dict({key: value for key, value in state.items() if key != "activation_scales"})
    with pytest.raises(RuntimeError, match="activation_scales must have"):
        graph.load_state_dict({**state, "activation_scales": torch.ones(3, dtype=torch.float64)})


def test_state_dict_of_outer_module() -> None:
    graph, other, x = int8(tiny_model(), batches()), int8(tiny_model(), batches()), batches()[0]
    nn.ModuleDict({"a": other}).load_state_dict(save_and_load(nn.ModuleDict({"a": graph}).state_dict()))
    assert torch.equal(graph(x[:0]), other(x[:0]))
    assert torch.equal(graph(x), other(x))


def test_training_mode_raises() -> None:
    _, _, graph = calibrated()
    assert not graph.training
    assert graph.eval() is graph
    with pytest.raises(RuntimeError, match="an int8 model cannot be trained"):
        graph.train()


@pytest.mark.parametrize(
    ("input", "error", "message"),
    [
        ("image", TypeError, "input must be a float32 tensor, got str"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), TypeError, r"float32 tensor, got torch\.uint8"),
        (torch.zeros(3, 8, 8), ValueError, "input must have 4 dimensions, got 3"),
        (torch.zeros(1, 4, 8, 8), ValueError, "input must have size 3 in dimension 1, got shape"),
    ],
)
def test_invalid_input_raises(input: object, error: type[Exception], message: str) -> None:
    graph = int8(nn.Conv2d(3, 4, 3), [torch.randn(2, 3, 8, 8)])
    with pytest.raises(error, match=message):
        graph(input)


INPUTS = [torch.randn(4, 3, 8, 8)]


@pytest.mark.parametrize(
    ("model", "inputs", "error", "message"),
    [
        (nn.Conv2d(3, 4, 3), [], ValueError, "batches must hold at least one batch, got none"),
        ("resnet", INPUTS, TypeError, "model must be a module, got 'resnet'"),
        (nn.Conv2d(3, 4, 3).double(), INPUTS, TypeError, "must be float32.*weight is torch.float64"),
        (nn.Sequential(nn.ConvTranspose2d(3, 4, 3)), INPUTS, TypeError, r"0 \(ConvTranspose2d.*would stay in float"),
        (
            FunctionModule(lambda m, x: nn.functional.dropout(x, 0.5, True)),
            INPUTS,
            RuntimeError,
            "draws random numbers",
        ),
        (FunctionModule(lambda m, x: x + torch.rand_like(x)), INPUTS, RuntimeError, "draws random numbers"),
        (
            FunctionModule(lambda m, x: x + 1 if x.sum() > 0 else x),
            INPUTS,
            RuntimeError,
            "cannot be exported.*lambda m, x: x . 1 if x.sum.*the value of",
        ),
        (
            FunctionModule(lambda m, x: x.reshape(2, 3, 8, 8)),
            INPUTS,
            RuntimeError,
            "(?s)cannot be exported|size of the batch",
        ),
        (FunctionModule(lambda m, x: x / 0), INPUTS, ValueError, "model must give finite outputs"),
        (int8(nn.Conv2d(3, 4, 3), INPUTS), INPUTS, ValueError, "prepared or converted already"),
    ],
)
def test_unsupported_model_raises(model: nn.Module, inputs: list[Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        int8(model, inputs)


def test_allow_float_keeps_unsupported_layers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), tnn.WSConv2d(4, 4, 3), nn.ConvTranspose2d(4, 3, 3)).eval()
    graph = int8(model, INPUTS, allow_float=True)
    assert decibels(model(INPUTS[0]), graph(INPUTS[0])) >= 35


def test_unfoldable_norms_are_kept() -> None:
    """torchao folds every batch norm that follows a convolution, even if the convolution has other consumers."""

    def forward(module: nn.Module, x: Tensor) -> Tensor:
        y = module.conv(x)
        return module.norm(y) + y + module.other(x)

    model = with_running_stats(
        FunctionModule(forward, conv=nn.Conv2d(3, 3, 1), norm=nn.BatchNorm2d(3), other=nn.BatchNorm2d(3))
    ).eval()
    graph = int8(model, INPUTS)
    assert len(call_nodes(graph, "native_batch_norm")) == 2
    assert decibels(model(INPUTS[0]), graph(INPUTS[0])) >= 35


def test_quantizable_twin_matches_float_model() -> None:
    model, inputs, graph = calibrated()
    assert decibels(graph(inputs[0]), int8(quantizable(model), inputs)(inputs[0])) >= 35


def test_unavailable_backend_raises() -> None:
    with pytest.raises(
        ValueError, match="backend must be one of auto, x86, litert, onnxruntime, tensorrt, xnnpack.*got 'qnnpack'"
    ):
        quantized.quantize(nn.Conv2d(3, 4, 3), INPUTS, backend="qnnpack", engine="pt2e")
    if importlib.util.find_spec("executorch") is None:
        with pytest.raises(ImportError, match='backend="xnnpack" needs executorch: pip install executorch'):
            quantized.quantize(nn.Conv2d(3, 4, 3), INPUTS, backend="xnnpack", engine="pt2e")


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_xnnpack_is_close_to_float(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uses torchao's copy of the quantizer, since executorch is a large package."""
    quantizer = importlib.import_module("torchao.testing.pt2e._xnnpack_quantizer")
    package = "executorch.backends.xnnpack.quantizer"
    parents = ["executorch", "executorch.backends", "executorch.backends.xnnpack", package]
    for name in parents:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, f"{package}.xnnpack_quantizer", quantizer)
    model, inputs = tiny_model(), batches()
    graph = workflow.quantize(model, iter([Inputs((input,)) for input in inputs]), Settings("xnnpack"))
    assert decibels(model(inputs[0]), graph(inputs[0])) >= 35
    assert graph.backend == "xnnpack"


def test_missing_torchao_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torchao", "workflow"):
        monkeypatch.delitem(sys.modules, f"{pt2e.__name__}.{name}")
        monkeypatch.delattr(pt2e, name)
    for name in [name for name in sys.modules if name.startswith("torchao")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ImportError, match=r"engine='pt2e' needs torchao.*: pip install \"torchvision_layers\[pt2e\]\""):
        quantized.quantize(small_model(), batches(), engine="pt2e")


@pytest.mark.parametrize("function", [convert, freeze])
def test_unprepared_model_raises(function) -> None:
    for model in (small_model(), int8(nn.Conv2d(3, 4, 3), INPUTS)):
        with pytest.raises(ValueError, match="model must come from prepare_qat and not be converted yet"):
            function(model)


@pytest.mark.parametrize("compiler", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_graph_is_close(compiler: str) -> None:
    _, (x, _), graph = calibrated()
    with torch.no_grad():
        compiled = torch.compile(graph, fullgraph=True, dynamic=True, backend=compiler)
        for input in (x, x[:3, :, :13], x[:1]):
            assert decibels(graph(input), compiled(input)) >= 35


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's exporter calls deprecated functions of torch
def test_onnx_model_is_close() -> None:
    runtime = pytest.importorskip("onnxruntime")
    _, (x, _), graph = calibrated()
    sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.onnx.export(graph, (x,), dynamo=True, dynamic_shapes=(sizes,), verbose=False)
    session = runtime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for input in (x, x[:3, :, :13], x[:1]):
        (output,) = session.run(None, {session.get_inputs()[0].name: input.numpy()})
        assert decibels(graph(input), torch.from_numpy(output)) >= 35


def test_int8_graph_is_exported() -> None:
    _, (x, _), graph = calibrated()
    sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    exported = torch.export.export(graph, (x,), dynamic_shapes=(sizes,)).module()
    assert torch.equal(exported(x[:3, :, :13]), graph(x[:3, :, :13]))
