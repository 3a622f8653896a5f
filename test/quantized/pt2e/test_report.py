"""What the graph says of each module, and how much is fused."""

import copy
import dataclasses

import pytest
import torch
import torchvision
from torch import Tensor, fx, nn

from torchvision_layers import nn as tnn
from torchvision_layers.quantized import ReportRow
from torchvision_layers.quantized.pt2e import workflow
from torchvision_layers.quantized.pt2e.report import graph_rows
from torchvision_layers.testing._checks._quantization import decibels

from ._support import Reads, batches, calls, int8, small_model, with_statistics

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
    model, inputs = small_model(), batches()
    prepared = workflow.prepare_qat(model, inputs[0], "x86", False)
    assert {(row.runs_in, row.why) for row in graph_rows(prepared)} == {("float", "not converted yet")}
    prepared(inputs[0])
    for graph in (int8(model, inputs), workflow.convert(prepared)):
        rows = graph_rows(graph)
        assert [row.path for row in rows] == [path for path, module in model.named_modules() if not module._modules]
        by_path = {row.path: row for row in rows}
        assert [dataclasses.astuple(by_path[row[0]])[:5] for row in EXPECTED] == EXPECTED


def test_what_is_never_called_and_what_stays_float() -> None:
    def forward(module: nn.Module, x: Tensor) -> Tensor:
        return module.norm(torch.relu(module.conv(x)))

    model = Reads(forward, conv=nn.Conv2d(3, 3, 1), norm=nn.BatchNorm2d(3), spare=nn.Conv2d(3, 3, 1)).eval()
    rows = {row.path: row for row in graph_rows(int8(model, [torch.randn(2, 3, 6, 6)]))}
    assert rows["norm"] == ReportRow("norm", "BatchNorm2d", "native_batch_norm", "float", "has no int8 kernel")
    assert rows["spare"] == ReportRow("spare", "Conv2d", "-", "float", "is never called")


def test_leaves_without_weights_that_are_never_called() -> None:
    """Apart from those that do nothing in eval, of which a graph keeps as little."""

    def forward(module: nn.Module, x: Tensor) -> Tensor:
        return module.depth(module.dropout(module.identity(module.used(module.conv(x)))))

    idle = {"gelu": nn.GELU(), "softmax": nn.Softmax(1), "spare": nn.Conv2d(3, 3, 1), "off": nn.Dropout()}
    done = {"identity": nn.Identity(), "dropout": nn.Dropout(), "depth": torchvision.ops.StochasticDepth(0.1, "row")}
    model, x = Reads(forward, conv=nn.Conv2d(3, 3, 1), used=nn.ReLU(), **idle, **done), torch.randn(2, 3, 6, 6)
    prepared = workflow.prepare_qat(model, x, "x86", False)
    for path in idle:
        row = next(row for row in graph_rows(prepared) if row.path == path)
        assert (row.after, row.why) == ("-", "is never called")
    prepared(x)
    for graph in (int8(model.eval(), [x]), workflow.convert(prepared), copy.deepcopy(workflow.convert(prepared))):
        rows = {row.path: row for row in graph_rows(graph)}
        for path in idle:
            assert dataclasses.astuple(rows[path])[2:5] == ("-", "float", "is never called")
        for path in done:
            assert dataclasses.astuple(rows[path])[2:5] == ("identity", "int8", "takes int8 tensors as it is")
        assert rows["used"].why == "fused into conv"


def resnet18() -> nn.Module:
    """Two blocks of two convolutions in each of four stages, of torchvision's width over four."""
    blocks, width = [], 16
    for stage in range(4):
        for i in range(2):
            planes = width * 2**stage
            stride = 2 if stage > 0 and i == 0 else 1
            blocks.append(tnn.BasicBlock(planes // stride, planes, stride))
    return nn.Sequential(
        tnn.ConvNormAct(3, width, 7, 2),
        nn.MaxPool2d(3, 2, 1),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8 * width, 10),
    )


RESNETS = (resnet18, torchvision.models.resnet18)


def assert_sums_are_fused(nodes: list[fx.Node]) -> None:
    """A convolution runs into each sum as it is, the other term out of int8, and the sum into its ReLU."""
    for node in nodes:
        kinds = sorted(str(term.target).partition(".")[0] for term in node.all_input_nodes)
        assert kinds == ["aten", "quantized_decomposed"]
        (user,) = node.users
        assert "relu" in str(user.target)
        assert all("quantize" in str(after.target) for after in user.users)


@pytest.mark.parametrize("build", RESNETS, ids=["ours", "torchvision"])
@pytest.mark.parametrize("is_qat", [False, True], ids=["calibrated", "trained"])
def test_each_tensor_of_resnet18_is_quantized_once(build, is_qat: bool) -> None:
    """The count follows from the architecture.

    One for the image, one for the stem (its ReLU) and one for the pooling after it. In each of 8 blocks one after the
    first ReLU and one after the last: what leaves a block goes into the next convolution and the next sum from one int8
    tensor. In 3 blocks one for the projection, the other term of the sum. Then the pooling and the flattening. Nothing
    between a convolution and its ReLU or its sum.
    """
    model, inputs = with_statistics(build()).eval(), [torch.randn(4, 3, 64, 64) for _ in range(2)]
    if is_qat:
        prepared = workflow.prepare_qat(model, inputs[0], "x86", False)
        prepared(inputs[0])
        graph = workflow.convert(prepared)
    else:
        graph = int8(model, inputs)
        assert decibels(model(inputs[0]), graph(inputs[0])) >= 30  # noise of 21 layers adds up
    assert len(calls(graph, "quantize_per_tensor")) == 1 + 2 + 8 * 2 + 3 + 2
    assert len(calls(graph, "dequantize_per_channel")) == 20 + 1
    assert_sums_are_fused(calls(graph, "add"))
    assert {row.runs_in for row in graph_rows(graph)} == {"int8"}


def test_the_plain_flow_refuses_one_relu_at_many_places() -> None:
    import torchao.quantization.pt2e.quantize_pt2e as flow
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    plain = [torch.export.export(build().eval(), (torch.randn(2, 3, 64, 64),)).module() for build in RESNETS]
    flow.prepare_pt2e(plain[0], quantizer)
    with pytest.raises(ValueError, match="Input partition has more than one output node"):
        flow.prepare_pt2e(plain[1], quantizer)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU])
def test_activations_are_one_unit_with_their_convolution(activation: type[nn.Module]) -> None:
    model = nn.Sequential(*[tnn.ConvNormAct(4, 4, activation_layer=activation) for _ in range(2)]).eval()
    graph = int8(model, [torch.randn(4, 4, 8, 8)])
    assert len(calls(graph, "quantize_per_tensor")) == 2, "before each convolution, nowhere else"
    assert [row.why for row in graph_rows(graph) if row.path.endswith(".2")] == ["fused into 0.0", "fused into 1.0"]
