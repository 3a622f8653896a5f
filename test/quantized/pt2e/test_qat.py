"""Quantization-aware training on exported graphs: what is computed, saved, frozen and converted."""

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
from torchvision_layers.experimental import nn as staged
from torchvision_layers.quantized import prepare_qat
from torchvision_layers.quantized.pt2e import workflow
from torchvision_layers.quantized.pt2e.model import QuantizableGraph
from torchvision_layers.testing._checks._quantization import decibels

from ._support import Reads, batches, calls, sgd, small_model, step, with_statistics, without_quantization


def prepared(model: nn.Module, example: Tensor) -> QuantizableGraph:
    return workflow.prepare_qat(model, example, "x86", False)


unusual2d = partial(nn.BatchNorm2d, eps=0.1, momentum=0.3)
unusual3d = partial(nn.BatchNorm3d, eps=0.1, momentum=0.3)
unusual1d = partial(nn.BatchNorm1d, eps=0.1, momentum=0.3)

LAYERS = {
    "conv1d": (lambda: tnn.Conv1dNormAct(4, 6, norm_layer=unusual1d, bias=True), (8, 4, 9)),
    "conv2d": (lambda: tnn.ConvNormAct(4, 6, norm_layer=unusual2d), (8, 4, 9, 8)),
    "conv2d with bias": (lambda: tnn.ConvNormAct(4, 6, norm_layer=unusual2d, bias=True), (8, 4, 9, 8)),
    "conv3d": (lambda: tnn.Conv3dNormAct(4, 6, norm_layer=unusual3d), (8, 4, 5, 6, 7)),
    "linear": (lambda: tnn.LinearDropoutAct(8, 6, dropout=0.4, norm_layer=unusual1d), (64, 8)),
    "lone norm": (lambda: nn.Sequential(unusual2d(4), nn.Conv2d(4, 6, 3)), (8, 4, 9, 8)),
    "residual": (lambda: tnn.BasicBlock(8, 8, norm_layer=unusual2d, stochastic_depth=0.4), (8, 8, 9, 8)),
    "mobile": (lambda: tnn.InvertedResidual(8, 8, 1, 2, norm_layer=unusual2d), (8, 8, 9, 8)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_without_quantization_it_is_the_float_model(name: str) -> None:
    """In training, in eval and in training again: values, gradients, statistics, random numbers."""
    build, shape = LAYERS[name]
    model, x = with_statistics(build()).train(), torch.randn(shape)
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


def test_a_norm_that_starts_at_zero_trains() -> None:
    model, x = tnn.ConvNormAct(4, 6), torch.randn(8, 4, 9, 8)
    nn.init.zeros_(model[1].weight)
    graph = prepared(model, x)
    for i in range(3):
        assert step(graph, x, sgd(graph), i) >= 0
    assert all(bool(value.isfinite().all()) for value in graph.state_dict().values())


@pytest.mark.parametrize("name", LAYERS)
def test_int8_computes_what_was_trained(name: str) -> None:
    build, shape = LAYERS[name]
    graph, x = prepared(with_statistics(build()), torch.randn(shape)), torch.randn(shape)
    optimizer = sgd(graph)
    for i in range(3):
        step(graph, x, optimizer, i)
    workflow.freeze(graph)
    expected = graph.eval()(x)
    converted = workflow.convert(graph)
    assert decibels(expected, converted(x)) >= 60
    assert not calls(converted, "batch_norm")
    assert len(calls(converted, "native_batch_norm")) == (name == "lone norm")
    assert not any("activation_post_process" in key for key in converted.state_dict())
    assert torch.equal(graph(x), expected), "converting works on a copy"


def test_weights_of_one_sign_keep_their_zero() -> None:
    """torch's fused kernel trains a channel of such weights with another zero point than int8 has."""
    model, x = nn.Conv2d(3, 4, 3), torch.randn(8, 3, 9, 8)
    nn.init.uniform_(model.weight, -1, -0.5)
    graph = prepared(model, x)
    step(graph, x, sgd(graph))
    workflow.freeze(graph)
    assert decibels(graph.eval()(x), workflow.convert(graph)(x)) >= 60


def test_training_resumes_from_its_state() -> None:
    inputs = batches()
    first, second = prepared(small_model(), inputs[0]), prepared(small_model(), 3 * inputs[1][:1])
    optimizers = [sgd(first), sgd(second)]
    for i in range(2):
        step(first, inputs[i], optimizers[0], i)
    file = io.BytesIO()
    torch.save([first.state_dict(), optimizers[0].state_dict()], file)
    file.seek(0)
    for target, state in zip((second, optimizers[1]), torch.load(file, weights_only=True), strict=True):
        target.load_state_dict(state)
    losses = [
        [step(m, inputs[i % 2], o, i) for i in range(3)] for m, o in zip((first, second), optimizers, strict=True)
    ]
    assert losses[0] == losses[1]
    assert torch.equal(workflow.convert(first)(inputs[0]), workflow.convert(second)(inputs[0]))


def test_state_has_the_keys_of_the_model() -> None:
    model = small_model()
    graph = prepared(model, batches()[0])
    state = graph.state_dict()
    assert {key for key in state if "activation_post_process" not in key} == set(model.state_dict())
    assert {key.removeprefix("body.") for key, _ in graph.named_parameters()} == dict(model.named_parameters()).keys()


def test_frozen_for_good() -> None:
    inputs = batches()
    graph = prepared(small_model(), inputs[0])
    step(graph, inputs[0], sgd(graph))
    workflow.freeze(graph)
    for module in (graph, copy.deepcopy(graph)):
        before = copy.deepcopy(module.state_dict())
        module.eval()
        module.train()
        module(5 * inputs[1])
        changed = [key for key, value in module.state_dict().items() if not torch.equal(value, before[key])]
        assert not changed
        step(module, inputs[1], sgd(module))
        assert not torch.equal(module.state_dict()["0.0.weight"], before["0.0.weight"])


def test_modes() -> None:
    inputs = batches()
    graph = prepared(small_model(), inputs[0])
    assert graph.training
    assert graph.train() is graph
    step(graph, inputs[0], sgd(graph))
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
        (nn.Sequential(staged.WSConv2d(3, 4, 3)), TypeError, r"0 \(WSConv2d.*computes its weight"),
        (nn.Conv2d(3, 4, 3).half(), TypeError, "must be float32"),
        (Reads(lambda m, x: (x, x)), TypeError, "must return one tensor, it returns a tuple"),
    ],
)
def test_refusals(model: nn.Module, error: type[Exception], message: str) -> None:
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
def test_bad_examples(example: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        prepare_qat(nn.Conv2d(3, 4, 3), example, engine="pt2e")


def test_backends_that_only_calibrate() -> None:
    with pytest.raises(ValueError, match="backend must be x86 or onnxruntime to train with this engine, got 'xnnpack'"):
        workflow.prepare_qat(nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8), "xnnpack", False)


def test_allow_float_holds_until_the_conversion() -> None:
    def attend(module: nn.Module, x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(x, module.fc(x), x, None, 0.5 if module.training else 0.0)

    model, x = nn.Sequential(Reads(attend, fc=nn.Linear(8, 8)), staged.WSConv2d(3, 4, 3)), torch.randn(4, 3, 8, 8)
    graph = workflow.prepare_qat(model, x, "x86", True)
    step(graph, x, sgd(graph))
    workflow.freeze(graph)
    assert decibels(graph.eval()(x), workflow.convert(graph)(x)) >= 60


def test_untrained_is_not_converted() -> None:
    with pytest.raises(ValueError, match="model must have run on some batches before it is converted"):
        workflow.convert(prepared(nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8)))


@pytest.mark.slow
def test_close_to_the_plain_flow_of_torchao() -> None:
    """Which differs in the steps of the weights only, by half a step in 127."""
    import torchao.quantization.pt2e.quantize_pt2e as flow
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    model, x = with_statistics(nn.Sequential(tnn.ConvNormAct(3, 8), tnn.BasicBlock(8, 8))), torch.randn(8, 3, 9, 8)
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config(is_qat=True))
    plain = flow.prepare_qat_pt2e(torch.export.export(copy.deepcopy(model).train(), (x,)).module(), quantizer)
    graph = prepared(model, x)
    ours, theirs = ([step(m, x, sgd(m), i) for i in range(4)] for m in (graph, plain))
    assert ours == pytest.approx(theirs, rel=0.01)
    observers = [sum("activation_post_process" in str(n.target) for n in m.graph.nodes) for m in (graph.body, plain)]
    assert observers[0] == observers[1]


def _train(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    graph = prepared(tnn.BasicBlock(4, 4), torch.randn(4, 4, 6, 6))
    parallel = DistributedDataParallel(graph)
    optimizer = sgd(parallel)
    for i in range(3):
        step(parallel, torch.randn(4, 4, 6, 6, generator=torch.Generator().manual_seed(10 * i + rank)), optimizer)
    torch.save(graph.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_training_in_two_processes(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_train, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    weights = [key for key in first if key.endswith(("weight", "bias"))]
    assert weights
    assert all(torch.equal(first[key], second[key]) for key in weights)
    converted = prepared(tnn.BasicBlock(4, 4), torch.randn(4, 4, 6, 6))
    converted.load_state_dict(first)
    assert workflow.convert(converted)(torch.randn(2, 4, 6, 6)).isfinite().all()
