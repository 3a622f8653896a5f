"""Report of exported graphs: the row of each module, and the operations that are fused."""

import copy
import dataclasses

import pytest
import torch
import torchvision
from torch import Tensor, fx, nn

from torchvision_layers import nn as tnn
from torchvision_layers._utils.inputs import Inputs
from torchvision_layers.quantized import ReportRow
from torchvision_layers.quantized.pt2e import workflow
from torchvision_layers.quantized.pt2e.report import graph_rows
from torchvision_layers.quantized.settings import Settings
from torchvision_layers.testing._checks._quantization import decibels

from ._support import FunctionModule, calibrated, call_nodes, int8, with_running_stats

EXPECTED = [
    ("0.0", "Conv2d", "conv2d", "int8", "has an int8 form"),
    ("0.1", "BatchNorm2d", "folded", "int8", "fused into 0.0"),
    ("0.2", "SiLU", "silu", "int8", "fused into 0.0"),
    ("1.act1", "ReLU", "relu", "int8", "fused into 1.conv1"),
    ("1.bn2", "BatchNorm2d", "folded", "int8", "fused into 1.conv2"),
    ("1.downsample.1", "BatchNorm2d", "folded", "int8", "fused into 1.downsample.0"),
    ("1.act", "ReLU", "relu", "int8", "fused into 1"),
    ("2.se.fc1", "Conv2d", "conv2d", "int8", "has an int8 form"),
    ("2.se.activation", "ReLU", "relu", "int8", "fused into 2.se.fc1"),
    ("2.se.scale_activation", "Sigmoid", "sigmoid", "float", "has no int8 kernel"),
    ("2.act", "ReLU", "relu", "float", "has no int8 kernel"),
    ("3.conv.0.2", "ReLU6", "hardtanh", "int8", "fused into 3.conv.0.0"),
    ("4", "AdaptiveAvgPool2d", "adaptive_avg_pool2d", "int8", "takes int8 tensors as it is"),
    ("5", "Flatten", "flatten", "int8", "takes int8 tensors as it is"),
    ("6.linear", "Linear", "linear", "int8", "has an int8 form"),
    ("6.dropout", "Dropout", "identity", "int8", "takes int8 tensors as it is"),
    ("6.activation", "ReLU", "relu", "int8", "fused into 6.linear"),
    ("7", "Linear", "linear", "int8", "has an int8 form"),
]


def test_rows_after_calibration_and_after_training() -> None:
    model, inputs, graph = calibrated()
    prepared = workflow.prepare_qat(model, Inputs((inputs[0],)), Settings("x86"))
    assert {(row.runs_in, row.why) for row in graph_rows(prepared)} == {("float", "not converted yet")}
    prepared(inputs[0])
    for converted in (graph, workflow.convert(prepared)):
        rows = graph_rows(converted)
        assert [row.path for row in rows] == [path for path, module in model.named_modules() if not module._modules]
        by_path = {row.path: row for row in rows}
        assert [dataclasses.astuple(by_path[row[0]])[:5] for row in EXPECTED] == EXPECTED


def test_uncalled_and_float_modules() -> None:
    def forward(module: nn.Module, x: Tensor) -> Tensor:
        return module.norm(torch.relu(module.conv(x)))

    model = FunctionModule(forward, conv=nn.Conv2d(3, 3, 1), norm=nn.BatchNorm2d(3), spare=nn.Conv2d(3, 3, 1)).eval()
    rows = {row.path: row for row in graph_rows(int8(model, [torch.randn(2, 3, 6, 6)]))}
    assert rows["norm"] == ReportRow("norm", "BatchNorm2d", "native_batch_norm", "float", "has no int8 kernel")
    assert rows["spare"] == ReportRow("spare", "Conv2d", "-", "float", "is never called")


def test_uncalled_modules_without_weights() -> None:
    """A graph has no trace of modules that do nothing in eval either, but they are not reported as uncalled."""

    def forward(module: nn.Module, x: Tensor) -> Tensor:
        return module.depth(module.dropout(module.identity(module.used(module.conv(x)))))

    uncalled = {"gelu": nn.GELU(), "softmax": nn.Softmax(1), "spare": nn.Conv2d(3, 3, 1), "off": nn.Dropout()}
    identities = {
        "identity": nn.Identity(),
        "dropout": nn.Dropout(),
        "depth": torchvision.ops.StochasticDepth(0.1, "row"),
    }
    model, x = (
        FunctionModule(forward, conv=nn.Conv2d(3, 3, 1), used=nn.ReLU(), **uncalled, **identities),
        torch.randn(2, 3, 6, 6),
    )
    prepared = workflow.prepare_qat(model, Inputs((x,)), Settings("x86"))
    for path in uncalled:
        row = next(row for row in graph_rows(prepared) if row.path == path)
        assert (row.after, row.why) == ("-", "is never called")
    prepared(x)
    for graph in (int8(model.eval(), [x]), workflow.convert(prepared), copy.deepcopy(workflow.convert(prepared))):
        rows = {row.path: row for row in graph_rows(graph)}
        for path in uncalled:
            assert dataclasses.astuple(rows[path])[2:5] == ("-", "float", "is never called")
        for path in identities:
            assert dataclasses.astuple(rows[path])[2:5] == ("identity", "int8", "takes int8 tensors as it is")
        assert rows["used"].why == "fused into conv"


def test_rows_of_layers_with_one_weight() -> None:
    first, second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
    second.weight = first.weight
    graph = int8(nn.Sequential(first, nn.ReLU(), second).eval(), [torch.randn(2, 3, 6, 6)])
    assert [(row.path, row.runs_in) for row in graph_rows(graph)] == [("0", "int8"), ("1", "int8"), ("2", "int8")]


def resnet18() -> nn.Module:
    """Two blocks of two convolutions in each of four stages, with a quarter of torchvision's channels."""
    blocks, channels = [], 16
    for stage in range(4):
        for i in range(2):
            planes = channels * 2**stage
            stride = 2 if stage > 0 and i == 0 else 1
            blocks.append(tnn.BasicBlock(planes // stride, planes, stride))
    return nn.Sequential(
        tnn.ConvNormAct(3, channels, 7, 2),
        nn.MaxPool2d(3, 2, 1),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8 * channels, 10),
    )


RESNETS = (resnet18, torchvision.models.resnet18)


def assert_sums_are_fused(nodes: list[fx.Node]) -> None:
    """Each sum adds a dequantized tensor to the float output of a convolution and feeds its ReLU directly."""
    for node in nodes:
        sources = sorted(str(term.target).partition(".")[0] for term in node.all_input_nodes)
        assert sources == ["aten", "quantized_decomposed"]
        (user,) = node.users
        assert "relu" in str(user.target)
        assert all("quantize" in str(after.target) for after in user.users)


@pytest.mark.parametrize(
    ("build", "is_qat"),
    [
        pytest.param(resnet18, True, id="own-trained"),
        pytest.param(torchvision.models.resnet18, False, id="torchvision-calibrated"),
        pytest.param(torchvision.models.resnet18, True, id="torchvision-trained"),
    ],
)
def test_resnet18_tensors_are_quantized_once(build, is_qat: bool) -> None:
    """The count follows from the architecture.

    One for the image, one for the stem (its ReLU) and one for the pooling after it. In each of 8 blocks one after the
    first ReLU and one after the last: the next convolution and the next sum read one int8 tensor. In 3 blocks one for
    the downsampling convolution, the other term of the sum. Then the pooling and the flattening. None between a
    convolution and its ReLU or its sum.
    """
    model, inputs = with_running_stats(build()).eval(), [torch.randn(4, 3, 64, 64) for _ in range(2)]
    if is_qat:
        prepared = workflow.prepare_qat(model, Inputs((inputs[0],)), Settings("x86"))
        prepared(inputs[0])
        graph = workflow.convert(prepared)
    else:
        graph = int8(model, inputs)
        assert decibels(model(inputs[0]), graph(inputs[0])) >= 30  # the noise of 21 layers accumulates
    assert len(call_nodes(graph, "quantize_per_tensor")) == 1 + 2 + 8 * 2 + 3 + 2
    assert len(call_nodes(graph, "dequantize_per_channel")) == 20 + 1
    assert_sums_are_fused(call_nodes(graph, "add"))
    assert {row.runs_in for row in graph_rows(graph)} == {"int8"}


def test_torchao_workflow_fails_on_reused_relu() -> None:
    import torchao.quantization.pt2e.quantize_pt2e as flow
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    torchao_models = [torch.export.export(build().eval(), (torch.randn(2, 3, 64, 64),)).module() for build in RESNETS]
    flow.prepare_pt2e(torchao_models[0], quantizer)
    with pytest.raises(ValueError, match="Input partition has more than one output node"):
        flow.prepare_pt2e(torchao_models[1], quantizer)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU])
def test_activations_are_fused_into_convolutions(activation: type[nn.Module]) -> None:
    model = nn.Sequential(*[tnn.ConvNormAct(4, 4, activation_layer=activation) for _ in range(2)]).eval()
    graph = int8(model, [torch.randn(4, 4, 8, 8)])
    assert len(call_nodes(graph, "quantize_per_tensor")) == 2, "one before each convolution, no other"
    assert [row.why for row in graph_rows(graph) if row.path.endswith(".2")] == ["fused into 0.0", "fused into 1.0"]
