"""Exported graphs in int8 after calibration: results, sizes, state, and all that is refused."""

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
from torchvision_layers.experimental import nn as staged
from torchvision_layers.quantized import convert, freeze, pt2e, quantizable
from torchvision_layers.quantized.pt2e import workflow
from torchvision_layers.testing._checks._quantization import decibels

from ._support import Reads, batches, calls, int8, small_model, with_statistics


def saved(state: dict[str, Tensor]) -> dict[str, Tensor]:
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
    "matmul": (lambda: Reads(lambda m, x: m.fc(x) @ x.transpose(1, 2), fc=nn.Linear(8, 8)), (64, 5, 8)),
    "one relu for all": (lambda: torchvision.models.resnet.BasicBlock(8, 8), (16, 8, 9, 8)),
    "one conv twice": (lambda: Reads(lambda m, x: m.conv(m.conv(x)), conv=nn.Conv2d(4, 4, 3)), (16, 4, 9, 8)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_int8_is_close_to_float(name: str) -> None:
    build, shape = LAYERS[name]
    model, inputs = with_statistics(build()).eval(), [torch.randn(shape) for _ in range(2)]
    graph, x = int8(model, inputs), torch.cat(inputs)
    assert decibels(model(x), graph(x)) >= 35
    assert calls(graph, "dequantize_per_channel") or name == "matmul"
    assert decibels(graph(x)[:1], graph(x[:1])) >= 35
    assert graph(x[:0]).shape == (0, *model(x).shape[1:])


@pytest.mark.parametrize("layer", [tnn.LayerNorm2d(4), tnn.LayerScale(4), tnn.FrozenBatchNorm2d(4)])
def test_what_has_nothing_to_quantize_is_left_alone(layer: nn.Module) -> None:
    inputs = [torch.randn(4, 4, 6, 5)]
    assert torch.equal(int8(layer, inputs)(inputs[0]), layer(inputs[0]))


def test_equal_to_the_plain_flow_of_torchao() -> None:
    """But for weights whose range is even about zero."""
    import torchao.quantization.pt2e.quantize_pt2e as flow
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    model, inputs = with_statistics(nn.Sequential(tnn.ConvNormAct(3, 8), tnn.BasicBlock(8, 8))).eval(), batches()
    config = x86.get_default_x86_inductor_quantization_config()
    even = dataclasses.replace(config.weight, quant_min=-127)
    quantizer = x86.X86InductorQuantizer().set_global(dataclasses.replace(config, weight=even))
    plain = torch.export.export(model, (inputs[0],), dynamic_shapes=({0: torch.export.Dim.AUTO},)).module()
    with torch.no_grad():
        plain = flow.prepare_pt2e(plain, quantizer)
        for batch in inputs:
            plain(batch)
        plain = flow.convert_pt2e(plain)
    assert torch.equal(int8(model, inputs)(inputs[0]), plain(inputs[0]))


def test_the_model_is_left_as_it_was() -> None:
    model, inputs = small_model().train(), batches()
    before = copy.deepcopy(model.state_dict())
    int8(model, inputs)
    workflow.prepare_qat(model, inputs[0], "x86", False)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("example", [(1, 3, 16, 16), (2, 3, 16, 16), (5, 3, 16, 20)])
def test_every_size_runs_whatever_the_example(example: tuple[int, ...]) -> None:
    model = small_model()
    graph = int8(model, [torch.randn(example)])
    for shape in [(1, 3, 16, 16), (7, 3, 13, 24), (2, 3, 24, 13), (0, 3, 9, 9)]:
        assert graph(torch.randn(shape)).shape == (shape[0], 4)


def test_a_model_of_one_size_is_exported_for_that_size() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 8, 5))
    graph = int8(model, [torch.randn(4, 3, 8, 10)])
    assert graph(torch.randn(9, 3, 8, 10)).shape == (9, 5)
    with pytest.raises(ValueError, match="input must have sizes that the forward of the model supports"):
        graph(torch.randn(9, 3, 10, 10))


def test_state_goes_to_a_graph_of_other_weights_and_ranges() -> None:
    """To the bit, scales and zero points of activations among it."""
    graph, other = int8(small_model(), batches()), int8(small_model(), [3 * batch + 1 for batch in batches()])
    x, state = batches()[0], graph.state_dict()
    assert not torch.equal(graph(x), other(x))
    assert {"activation_scales", "activation_zero_points"} < set(state)
    assert len(state["activation_scales"]) == len(calls(graph, "quantize_per_tensor")) + len(
        calls(graph, "dequantize_per_tensor")
    )
    other.load_state_dict(saved(state), strict=True)
    assert torch.equal(graph(x), other(x))
    assert torch.equal(graph(x), copy.deepcopy(other)(x))


def test_state_that_does_not_fit_is_refused() -> None:
    graph = int8(small_model(), batches())
    state = graph.state_dict()
    with pytest.raises(RuntimeError, match="Missing key.*activation_scales"):
        graph.load_state_dict({key: value for key, value in state.items() if key != "activation_scales"})
    with pytest.raises(RuntimeError, match="activation_scales must have"):
        graph.load_state_dict({**state, "activation_scales": torch.ones(3, dtype=torch.float64)})


def test_state_within_another_module() -> None:
    graph, other = int8(small_model(), batches()), int8(small_model(), batches())
    nn.ModuleDict({"a": other}).load_state_dict(saved(nn.ModuleDict({"a": graph}).state_dict()))
    assert torch.equal(graph(batches()[0][:0]), other(batches()[0][:0]))
    x = batches()[0]
    assert torch.equal(graph(x), other(x))


def test_int8_cannot_be_trained() -> None:
    graph = int8(small_model(), batches())
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
def test_bad_inputs(input: object, error: type[Exception], message: str) -> None:
    graph = int8(nn.Conv2d(3, 4, 3), [torch.randn(2, 3, 8, 8)])
    with pytest.raises(error, match=message):
        graph(input)


def attention() -> nn.Module:
    def attend(module: nn.Module, x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, module.fc(x))

    return Reads(attend, fc=nn.Linear(8, 8))


SIZED = [torch.randn(4, 3, 8, 8)]


@pytest.mark.parametrize(
    ("model", "inputs", "error", "message"),
    [
        (nn.Conv2d(3, 4, 3), [], ValueError, "batches must hold at least one batch, got none"),
        ("resnet", SIZED, TypeError, "model must be a module, got 'resnet'"),
        (nn.Conv2d(3, 4, 3).double(), SIZED, TypeError, "must be float32.*weight is torch.float64"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), staged.WSConv2d(4, 4, 3)), SIZED, TypeError, r"1 \(WSConv2d.*computes its"),
        (nn.Sequential(nn.ConvTranspose2d(3, 4, 3)), SIZED, TypeError, r"0 \(ConvTranspose2d.*would stay in float"),
        (nn.Sequential(attention()), [torch.randn(4, 3, 8)], TypeError, r"0 \(Reads.*first factor.*stay|0 .*factor"),
        (Reads(lambda m, x: [x, x]), SIZED, TypeError, "model must return one tensor, it returns a list"),
        (Reads(lambda m, x: None), SIZED, TypeError, "model must return one tensor, it returns no tensor"),
        (Reads(lambda m, x: x.shape[2]), SIZED, TypeError, "model must return one tensor, it returns no tensor"),
        (Reads(lambda m, x: nn.functional.dropout(x, 0.5, True)), SIZED, RuntimeError, "draws random numbers"),
        (Reads(lambda m, x: x + torch.rand_like(x)), SIZED, RuntimeError, "draws random numbers"),
        (Reads(lambda m, x: x + 1 if x.sum() > 0 else x), SIZED, RuntimeError, "(?s)cannot be exported.*values of"),
        (Reads(lambda m, x: x.reshape(2, 3, 8, 8)), SIZED, RuntimeError, "(?s)cannot be exported|size of the batch"),
        (Reads(lambda m, x: x / 0), SIZED, ValueError, "model must give finite outputs"),
        (int8(nn.Conv2d(3, 4, 3), SIZED), SIZED, ValueError, "prepared or converted already"),
    ],
)
def test_refusals(model: nn.Module, inputs: list[Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        int8(model, inputs)


def test_allow_float() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), staged.WSConv2d(4, 4, 3), nn.ConvTranspose2d(4, 3, 3)).eval()
    graph = int8(model, SIZED, allow_float=True)
    assert decibels(model(SIZED[0]), graph(SIZED[0])) >= 35


def test_batch_norms_that_cannot_be_folded_stay() -> None:
    """torchao folds them wherever they follow a convolution, also where that has other users."""

    def forward(module: nn.Module, x: Tensor) -> Tensor:
        y = module.conv(x)
        return module.norm(y) + y + module.other(x)

    model = with_statistics(
        Reads(forward, conv=nn.Conv2d(3, 3, 1), norm=nn.BatchNorm2d(3), other=nn.BatchNorm2d(3))
    ).eval()
    graph = int8(model, SIZED)
    assert len(calls(graph, "native_batch_norm")) == 2
    assert decibels(model(SIZED[0]), graph(SIZED[0])) >= 35


def test_a_quantizable_twin_is_taken_as_its_model() -> None:
    model, inputs = small_model(), batches()
    assert decibels(int8(model, inputs)(inputs[0]), int8(quantizable(model), inputs)(inputs[0])) >= 35


def test_backends() -> None:
    with pytest.raises(ValueError, match="backend must be one of x86, onnxruntime, xnnpack.*got 'qnnpack'"):
        quantized.quantize(small_model(), batches(), backend="qnnpack", engine="pt2e")
    if importlib.util.find_spec("executorch") is None:
        with pytest.raises(ImportError, match='backend="xnnpack" needs executorch: pip install executorch'):
            quantized.quantize(small_model(), batches(), backend="xnnpack", engine="pt2e")


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_xnnpack(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the copy of its quantizer that torchao tests with: executorch itself is large."""
    copied = importlib.import_module("torchao.testing.pt2e._xnnpack_quantizer")
    package = "executorch.backends.xnnpack.quantizer"
    parents = ["executorch", "executorch.backends", "executorch.backends.xnnpack", package]
    for name in parents:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, f"{package}.xnnpack_quantizer", copied)
    model, inputs = small_model(), batches()
    graph = workflow.quantize(model, iter(inputs), "xnnpack", False)
    assert decibels(model(inputs[0]), graph(inputs[0])) >= 35
    assert graph.backend == "xnnpack"


def test_without_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torchao", "workflow"):
        monkeypatch.delitem(sys.modules, f"{pt2e.__name__}.{name}")
        monkeypatch.delattr(pt2e, name)
    for name in [name for name in sys.modules if name.startswith("torchao")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ImportError, match=r"engine='pt2e' needs torchao.*: pip install \"torchvision_layers\[pt2e\]\""):
        quantized.quantize(small_model(), batches(), engine="pt2e")


@pytest.mark.parametrize("function", [convert, freeze])
def test_only_prepared_graphs_are_converted_and_frozen(function) -> None:
    for model in (small_model(), int8(nn.Conv2d(3, 4, 3), SIZED)):
        with pytest.raises(ValueError, match="model must come from prepare_qat and not be converted yet"):
            function(model)


@pytest.mark.slow
def test_compiled() -> None:
    graph, x = int8(small_model(), batches()), batches()[0]
    with torch.no_grad():
        compiled = torch.compile(graph, fullgraph=True, dynamic=True)
        for input in (x, x[:3, :, :13], x[:1]):
            assert decibels(graph(input), compiled(input)) >= 35


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's exporter calls what torch has deprecated
def test_in_onnx() -> None:
    runtime = pytest.importorskip("onnxruntime")
    graph, x = int8(small_model(), batches()), batches()[0]
    sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.onnx.export(graph, (x,), dynamo=True, dynamic_shapes=(sizes,), verbose=False)
    session = runtime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for input in (x, x[:3, :, :13], x[:1]):
        (output,) = session.run(None, {session.get_inputs()[0].name: input.numpy()})
        assert decibels(graph(input), torch.from_numpy(output)) >= 35


def test_exported_again() -> None:
    graph, x = int8(small_model(), batches()), batches()[0]
    sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    again = torch.export.export(graph, (x,), dynamic_shapes=(sizes,)).module()
    assert torch.equal(again(x[:3, :, :13]), graph(x[:3, :, :13]))
