"""Quantization-aware training on exported graphs: results, states, freezing, conversion, and errors."""

import copy
import io
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from torchvision_layers import nn as tnn
from torchvision_layers._utils.inputs import Inputs
from torchvision_layers.quantized import prepare_qat
from torchvision_layers.quantized.pt2e import workflow
from torchvision_layers.quantized.pt2e.model import QuantizableGraph
from torchvision_layers.quantized.settings import Settings
from torchvision_layers.testing._checks._quantization import decibels

from ._support import (
    FunctionModule,
    batches,
    call_nodes,
    sgd,
    small_model,
    tiny_model,
    train_step,
    with_running_stats,
    without_quantization,
)


def prepared(model: nn.Module, example: Tensor) -> QuantizableGraph:
    return workflow.prepare_qat(model, Inputs((example,)), Settings("x86"))


norm2d = partial(nn.BatchNorm2d, eps=0.1, momentum=0.3)
norm3d = partial(nn.BatchNorm3d, eps=0.1, momentum=0.3)
norm1d = partial(nn.BatchNorm1d, eps=0.1, momentum=0.3)

LAYERS = {
    "conv1d": (lambda: tnn.Conv1dNormAct(4, 6, norm_layer=norm1d, bias=True), (8, 4, 9)),
    "conv2d": (lambda: tnn.ConvNormAct(4, 6, norm_layer=norm2d), (8, 4, 9, 8)),
    "conv2d with bias": (lambda: tnn.ConvNormAct(4, 6, norm_layer=norm2d, bias=True), (8, 4, 9, 8)),
    "depthwise 1×1": (lambda: tnn.ConvNormAct(4, 4, 1, groups=4, norm_layer=norm2d), (8, 4, 9, 8)),
    "conv3d": (lambda: tnn.Conv3dNormAct(4, 6, norm_layer=norm3d), (8, 4, 5, 6, 7)),
    "linear": (lambda: tnn.LinearDropoutAct(8, 6, dropout=0.4, norm_layer=norm1d), (64, 8)),
    "unfoldable norm": (lambda: nn.Sequential(norm2d(4), nn.Conv2d(4, 6, 3)), (8, 4, 9, 8)),
    "residual": (lambda: tnn.BasicBlock(8, 8, norm_layer=norm2d, stochastic_depth=0.4), (8, 8, 9, 8)),
    "mobile": (lambda: tnn.InvertedResidual(8, 8, 1, 2, norm_layer=norm2d), (8, 8, 9, 8)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_unquantized_graph_matches_float_model(name: str) -> None:
    """Values, gradients, running statistics and random numbers agree in train, eval and train mode again."""
    build, shape = LAYERS[name]
    model, x = with_running_stats(build()).train(), torch.randn(shape)
    graph = without_quantization(prepared(model, x))
    for mode in (True, False, True):
        model.train(mode)
        graph.train(mode)
        outputs = []
        for module in (model, graph):
            module.zero_grad()
            torch.manual_seed(5)
            outputs.append(module(x))
            outputs[-1].pow(3).sum().backward()
        torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-4)
        parameters = dict(graph.named_parameters())
        for key, parameter in model.named_parameters():
            torch.testing.assert_close(parameters[f"body.{key}"].grad, parameter.grad, rtol=1e-3, atol=1e-2)
        state = graph.state_dict()
        for key, value in model.state_dict().items():
            torch.testing.assert_close(state[key], value, rtol=1e-4, atol=1e-5)


def test_zero_initialized_norm_trains() -> None:
    model, x = tnn.ConvNormAct(4, 6), torch.randn(8, 4, 9, 8)
    nn.init.zeros_(model[1].weight)
    graph = prepared(model, x)
    for i in range(3):
        assert train_step(graph, x, sgd(graph), i) >= 0
    assert all(bool(value.isfinite().all()) for value in graph.state_dict().values())


@pytest.mark.parametrize("name", LAYERS)
def test_int8_matches_trained_graph(name: str) -> None:
    build, shape = LAYERS[name]
    graph, x = prepared(with_running_stats(build()), torch.randn(shape)), torch.randn(shape)
    optimizer = sgd(graph)
    for i in range(3):
        train_step(graph, x, optimizer, i)
    workflow.freeze(graph)
    expected = graph.eval()(x)
    converted = workflow.convert(graph)
    assert decibels(expected, converted(x)) >= 60
    assert not call_nodes(converted, "batch_norm")
    assert len(call_nodes(converted, "native_batch_norm")) == (name == "unfoldable norm")
    assert not any("activation_post_process" in key for key in converted.state_dict())
    assert torch.equal(graph(x), expected), "convert changed the prepared graph"


def test_weights_of_one_sign_keep_zero_point() -> None:
    """torch's fused kernel trains such channels with a zero point that differs from the one of int8."""
    model, x = nn.Conv2d(3, 4, 3), torch.randn(8, 3, 9, 8)
    nn.init.uniform_(model.weight, -1, -0.5)
    graph = prepared(model, x)
    train_step(graph, x, sgd(graph))
    workflow.freeze(graph)
    assert decibels(graph.eval()(x), workflow.convert(graph)(x)) >= 60


def test_training_resumes_from_state_dict() -> None:
    inputs = batches()
    first, second = prepared(tiny_model(), inputs[0]), prepared(tiny_model(), 3 * inputs[1][:1])
    optimizers = [sgd(first), sgd(second)]
    for i in range(2):
        train_step(first, inputs[i], optimizers[0], i)
    file = io.BytesIO()
    torch.save([first.state_dict(), optimizers[0].state_dict()], file)
    file.seek(0)
    for target, state in zip((second, optimizers[1]), torch.load(file, weights_only=True), strict=True):
        target.load_state_dict(state)
    losses = [
        [train_step(m, inputs[i % 2], o, i) for i in range(3)] for m, o in zip((first, second), optimizers, strict=True)
    ]
    assert losses[0] == losses[1]
    assert torch.equal(workflow.convert(first)(inputs[0]), workflow.convert(second)(inputs[0]))


def test_state_dict_has_keys_of_model() -> None:
    model = small_model()
    graph = prepared(model, batches()[0])
    state = graph.state_dict()
    assert {key for key in state if "activation_post_process" not in key} == set(model.state_dict())
    assert {key.removeprefix("body.") for key, _ in graph.named_parameters()} == dict(model.named_parameters()).keys()


def test_frozen_graph_trains_weights_only() -> None:
    """Neither a copy nor a change of mode thaws the ranges and statistics."""
    inputs = batches()
    graph = prepared(tiny_model(), inputs[0])
    train_step(graph, inputs[0], sgd(graph))
    workflow.freeze(graph)
    for module in (graph, copy.deepcopy(graph)):
        before = copy.deepcopy(module.state_dict())
        module.eval()
        module.train()
        module(5 * inputs[1])
        changed = [key for key, value in module.state_dict().items() if not torch.equal(value, before[key])]
        assert not changed
        train_step(module, inputs[1], sgd(module))
        assert not torch.equal(module.state_dict()["0.0.weight"], before["0.0.weight"])


def test_train_and_eval_modes() -> None:
    inputs = batches()
    graph = prepared(tiny_model(), inputs[0])
    assert graph.training
    assert graph.train() is graph
    train_step(graph, inputs[0], sgd(graph))
    assert nn.Sequential(graph).eval()[0] is graph
    assert not graph.training
    workflow.freeze(graph)
    assert torch.equal(graph(inputs[0]), graph(inputs[0]))
    copied = copy.deepcopy(graph).train()
    assert copied.training
    assert not graph.training


class ByMode(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if self.training else x


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), ByMode()), RuntimeError, "eval mode changed the results"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.RReLU()), TypeError, r"1 \(RReLU.*draws random numbers"),
        (nn.Conv2d(3, 4, 3).half(), TypeError, "must be float32"),
    ],
)
def test_unsupported_model_raises(model: nn.Module, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        prepared(model, torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize(
    ("example", "error", "message"),
    [
        ("image", TypeError, "float32"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), TypeError, "float32.*int64"),
        (torch.zeros(0, 3, 8, 8), ValueError, "must not be empty"),
        (torch.full((2, 3, 8, 8), torch.nan), ValueError, "must be finite"),
    ],
)
def test_invalid_example_raises(example: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        prepare_qat(nn.Conv2d(3, 4, 3), example, engine="pt2e")


def test_backend_without_training_raises() -> None:
    with pytest.raises(
        ValueError,
        match="backend must be x86, litert, onnxruntime or tensorrt to train with this engine, got 'xnnpack'",
    ):
        workflow.prepare_qat(nn.Conv2d(3, 4, 3), Inputs((torch.randn(2, 3, 8, 8),)), Settings("xnnpack"))


def test_allow_float_applies_to_conversion() -> None:
    def attend(module: nn.Module, x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(x, module.fc(x), x, None, 0.5 if module.training else 0.0)

    model, x = nn.Sequential(FunctionModule(attend, fc=nn.Linear(8, 8)), tnn.WSConv2d(3, 4, 3)), torch.randn(4, 3, 8, 8)
    graph = workflow.prepare_qat(model, Inputs((x,)), Settings("x86", allow_float=True))
    train_step(graph, x, sgd(graph))
    workflow.freeze(graph)
    assert decibels(graph.eval()(x), workflow.convert(graph)(x)) >= 60


def test_converting_untrained_graph_raises() -> None:
    with pytest.raises(ValueError, match="model must have run on some batches before it is converted"):
        workflow.convert(prepared(nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8)))


@pytest.mark.slow
def test_close_to_torchao_workflow() -> None:
    """torchao's own workflow differs only in the scales of weights: by 0.5 in 127, and by an average over the steps."""
    import torchao.quantization.pt2e.quantize_pt2e as flow
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    model, x = with_running_stats(nn.Sequential(tnn.ConvNormAct(3, 8), tnn.BasicBlock(8, 8))), torch.randn(8, 3, 9, 8)
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config(is_qat=True))
    torchao_model = flow.prepare_qat_pt2e(torch.export.export(copy.deepcopy(model).train(), (x,)).module(), quantizer)
    graph = prepared(model, x)
    losses, torchao_losses = ([train_step(m, x, sgd(m), i) for i in range(4)] for m in (graph, torchao_model))
    assert losses == pytest.approx(torchao_losses, rel=0.02)
    observers = [
        sum("activation_post_process" in str(n.target) for n in m.graph.nodes) for m in (graph.body, torchao_model)
    ]
    assert observers[0] == observers[1]


def _train(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    graph = prepared(tnn.BasicBlock(4, 4), torch.randn(4, 4, 6, 6))
    parallel = DistributedDataParallel(graph)
    optimizer = sgd(parallel)
    for i in range(3):
        train_step(parallel, torch.randn(4, 4, 6, 6, generator=torch.Generator().manual_seed(10 * i + rank)), optimizer)
    torch.save(graph.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_equal_weights(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_train, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    weights = [key for key in first if key.endswith(("weight", "bias"))]
    assert weights
    assert all(torch.equal(first[key], second[key]) for key in weights)
    converted = prepared(tnn.BasicBlock(4, 4), torch.randn(4, 4, 6, 6))
    converted.load_state_dict(first)
    assert workflow.convert(converted)(torch.randn(2, 4, 6, 6)).isfinite().all()
