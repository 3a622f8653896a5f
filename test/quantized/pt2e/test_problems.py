"""Errors about a model: all problems at once, before calibration, with the line; and advice that works."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from torchvision_layers import nn as tnn
from torchvision_layers.quantized import convert, freeze, prepare_qat, quantize, report
from torchvision_layers.quantized.pt2e.nodes import is_dequantize
from torchvision_layers.testing._checks._quantization import decibels

from ._support import FunctionModule, call_nodes, sgd, train_step, with_running_stats

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 0:
            return x + 1
        return x


class Refusing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("no images today")


class Unsupported(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.mixer = nn.Parameter(torch.rand(3, 4, 2, 2)), nn.Parameter(torch.rand(6, 4))
        self.down = nn.ConvTranspose2d(4, 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.conv_transpose2d(x, self.weight)
        return torch.einsum("bchw,dc->bdhw", self.down(y), self.mixer)


def first_only(x: Tensor) -> Iterator[Tensor]:
    yield x
    raise AssertionError("calibration has begun")


def test_all_problems_are_listed_before_calibration() -> None:
    with pytest.raises(TypeError) as info:
        quantize(nn.Sequential(nn.Conv2d(3, 3, 1), Unsupported()), first_only(X), engine="pt2e")
    lines = str(info.value).splitlines()
    assert lines[0] == "model has 3 problems:"
    assert lines[1].startswith("1 (Unsupported, operator conv_transpose2d in ")
    assert "test_problems.py" in lines[1]
    assert "y = functional.conv_transpose2d(x, self.weight)" in lines[1]
    assert lines[2].startswith("1.down (ConvTranspose2d, operator conv_transpose2d in ")
    assert "einsum" in lines[3]
    assert all("allow_float=True" in line for line in lines[1:])


def test_advice_about_float_layers_works() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 4, 2)).eval()
    with pytest.raises(TypeError, match=r"1 \(ConvTranspose2d.*stay in float.*pass allow_float=True to allow it"):
        quantize(model, [X], engine="pt2e")
    graph = quantize(model, [X], engine="pt2e", allow_float=True)
    assert decibels(model(X), graph(X)) >= 35
    assert [row.runs_in for row in report(graph).rows] == ["int8", "float"]


@pytest.mark.parametrize("is_qat", [False, True])
def test_forward_that_branches_on_values_is_named(is_qat: bool, capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), Branching())
    with pytest.raises(RuntimeError) as info:
        prepare_qat(model, X, engine="pt2e") if is_qat else quantize(model, first_only(X), engine="pt2e")
    message = str(info.value)
    assert "1 (Branching)" in message
    assert "if x.mean() > 0:" in message
    assert "uses the value of a tensor as a Python number; use torch.where" in message
    assert len(message) < 400
    assert "def forward(" not in capsys.readouterr().err  # torch prints the part of the graph that it has


def test_advice_about_branches_works() -> None:
    model = FunctionModule(lambda m, x: torch.where(x.mean() > 0, m.conv(x) + 1, x), conv=nn.Conv2d(3, 3, 1))
    assert decibels(model(X), quantize(model.eval(), [X], engine="pt2e")(X)) >= 30


def test_error_of_the_model_itself_is_shown() -> None:
    with pytest.raises(RuntimeError, match=r"model \(Refusing\).*no images today.* raises ValueError: no images today"):
        quantize(Refusing(), [X], engine="pt2e")


def test_advice_about_random_operators_works() -> None:
    with pytest.raises(TypeError, match=r"1 \(RReLU.*draws random numbers.*use nn.Dropout"):
        prepare_qat(nn.Sequential(nn.Conv2d(3, 4, 3), nn.RReLU()), X, engine="pt2e")
    graph = prepare_qat(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout()), X, engine="pt2e")
    train_step(graph, X, sgd(graph))


DEFAULTS = {
    # Arguments that equal the default of their operator are missing in the graph.
    "stochastic depth": lambda: tnn.BasicBlock(3, 3, stochastic_depth=0.5),
    "dropout": lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.Dropout(0.5)),
    "attention": lambda: FunctionModule(
        lambda m, x: functional.scaled_dot_product_attention(m.fc(x), x, x, None, 0.0, True), fc=nn.Linear(8, 8)
    ),
    "norm": lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, momentum=0.1, eps=1e-5)),
    "leaky": lambda: nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.LeakyReLU(0.01), nn.ReLU6(), nn.GELU()),
    "drop path": lambda: FunctionModule(
        lambda m, x: x + m.conv(x) * (x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(0.5).div_(0.5) if m.training else 1),
        conv=nn.Conv2d(3, 3, 1),
    ),
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_arguments_that_equal_defaults(name: str) -> None:
    graph = prepare_qat(with_running_stats(DEFAULTS[name]()), X, engine="pt2e")
    train_step(graph, X, sgd(graph))
    freeze(graph)
    assert decibels(graph.eval()(X), convert(graph)(X)) >= 60


PRODUCTS = {
    "attention": lambda q, k, v: functional.scaled_dot_product_attention(q, k, v),
    "matmul": lambda q, k, v: (q @ k.transpose(1, 2)).softmax(-1) @ v,
    "bmm": lambda q, k, v: torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v),
    "einsum": lambda q, k, v: torch.einsum("bij,bjc->bic", torch.einsum("bic,bjc->bij", q, k).softmax(-1), v),
}


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("is_qat", [False, True])
def test_products_of_attention_need_no_permission(name: str, is_qat: bool) -> None:
    def attend(module: nn.Module, x: Tensor) -> Tensor:
        return PRODUCTS[name](module.q(x), module.k(x), module.v(x))

    layers = {key: nn.Linear(8, 8) for key in "qkv"}
    model, x = FunctionModule(attend, **layers).eval(), X[:, 0]
    graph = prepare_qat(model, x, engine="pt2e").eval() if is_qat else quantize(model, [x], engine="pt2e")
    if is_qat:
        graph.train()(x)
        graph = convert(graph)
    assert decibels(model(x), graph(x)) >= 28
    rows = {row.path: row for row in report(graph).rows}
    assert [rows[key].runs_in for key in "qkv"] == ["int8"] * 3
    assert (rows[""].runs_in, rows[""].before) == ("float", "FunctionModule")


@pytest.mark.parametrize("backend", ["x86", "onnxruntime"])
def test_products_of_attention_do_not_round(backend: str) -> None:
    def attend(module: nn.Module, x: Tensor) -> Tensor:
        return PRODUCTS["matmul"](module.q(x), module.k(x), module.v(x))

    model, x = FunctionModule(attend, **{key: nn.Linear(8, 8) for key in "qkv"}).eval(), X[:, 0]
    graph = quantize(model, [x], engine="pt2e", backend=backend)
    for node in call_nodes(graph, "matmul"):
        assert not any(is_dequantize(factor) for factor in node.args)


def test_product_with_a_weight_is_int8() -> None:
    """A linear layer in another spelling."""
    weight = nn.Parameter(torch.randn(8, 6))
    model = FunctionModule(lambda m, x: m.fc(x) @ m.weight, fc=nn.Linear(8, 8))
    model.weight = weight
    graph = quantize(model.eval(), [X[:, 0]], engine="pt2e")
    (node,) = call_nodes(graph, "matmul")
    assert all(is_dequantize(factor) for factor in node.args)
    assert decibels(model(X[:, 0]), graph(X[:, 0])) >= 28


def test_attention_with_learned_queries_needs_no_permission() -> None:
    def attend(module: nn.Module, x: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(module.queries, module.k(x), module.v(x))

    model = FunctionModule(attend, **{key: nn.Linear(8, 8) for key in "kv"})
    model.queries = nn.Parameter(torch.randn(1, 3, 8))
    graph = quantize(model.eval(), [X[:, 0]], engine="pt2e")
    assert decibels(model(X[:, 0]), graph(X[:, 0])) >= 28


def test_multihead_attention_reports_its_parts() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0]

    model, x = Block().eval(), X[:, 0]
    graph = quantize(model, [x], engine="pt2e")
    assert decibels(model(x), graph(x)) >= 28
    (row,) = [row for row in report(graph).rows if row.path == "attention"]
    assert row.runs_in == "float"
    assert "linear" in row.why
    assert {row.path: row.runs_in for row in report(graph).rows}["attention.out_proj"] == "int8"


@pytest.mark.parametrize("is_assigned", [False, True])
def test_result_in_a_given_tensor(is_assigned: bool) -> None:
    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.c = (nn.Conv2d(channels, 8, 1) for channels in (3, 3, 8))

        def forward(self, x: Tensor) -> Tensor:
            y, z = self.a(x), self.b(x)
            if is_assigned:
                y[:, :4] = torch.add(y[:, 4:], z[:, :4])
            else:
                torch.add(y[:, 4:], z[:, :4], out=y[:, :4])
            return self.c(y)

    model = Writing().eval()
    if is_assigned:
        assert decibels(model(X).detach(), quantize(model, [X], engine="pt2e")(X)) > 30
        return
    with torch.no_grad(), pytest.raises(TypeError, match=r"operator add in .*out=y.* assign its result instead"):
        quantize(model, [X], engine="pt2e")
