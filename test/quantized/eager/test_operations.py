"""Models that compute with tensors in their forwards, as people write them."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from torchvision_layers import quantized
from torchvision_layers.quantized.eager.operations import _KEEP_SCALE, _SPLITS
from torchvision_layers.testing._checks._quantization import decibels

X = torch.randn(4, 8, 12, 10, generator=torch.Generator().manual_seed(3))

# Every operation that int8 tensors pass through unchanged, with arguments.
KEEPING = {
    F.adaptive_avg_pool3d: lambda f, x: f(x.unflatten(2, (3, 4)), 2),
    F.pixel_shuffle: lambda f, x: f(x, 2),
    F.pixel_unshuffle: lambda f, x: f(x, 2),
    torch.clone: lambda f, x: f(x),
    torch.flatten: lambda f, x: f(x, 1),
    torch.movedim: lambda f, x: f(x, 1, 3),
    torch.permute: lambda f, x: f(x, (0, 2, 3, 1)),
    torch.reshape: lambda f, x: f(x, (4, -1)),
    torch.squeeze: lambda f, x: f(x[:, :1], 1),
    torch.transpose: lambda f, x: f(x, 1, 2),
    torch.unflatten: lambda f, x: f(x, 1, (2, 4)),
    torch.unsqueeze: lambda f, x: f(x, 1),
    "clone": lambda f, x: x.clone(),
    "contiguous": lambda f, x: x.contiguous(),
    "detach": lambda f, x: x.detach(),
    "expand": lambda f, x: x[:, :1].expand(4, 8, 12, 10),
    "expand_as": lambda f, x: x[:, :1].expand_as(x),
    "flatten": lambda f, x: x.flatten(2),
    "movedim": lambda f, x: x.movedim(1, 3),
    "permute": lambda f, x: x.permute(0, 2, 3, 1),
    "reshape": lambda f, x: x.reshape(4, -1),
    "squeeze": lambda f, x: x[:, :1].squeeze(1),
    "transpose": lambda f, x: x.transpose(1, 2),
    "unflatten": lambda f, x: x.unflatten(1, (2, 4)),
    "unsqueeze": lambda f, x: x.unsqueeze(1),
    torch.chunk: lambda f, x: f(x, 2, 1)[1],
    torch.split: lambda f, x: f(x, 3, 1)[2],
    torch.tensor_split: lambda f, x: f(x, 3, 1)[1],
    torch.unbind: lambda f, x: f(x, 2)[3],
    "chunk": lambda f, x: x.chunk(2, 1)[0],
    "split": lambda f, x: x.split([5, 3], 1)[1],
    "tensor_split": lambda f, x: x.tensor_split(2, 1)[1],
    "unbind": lambda f, x: x.unbind(1)[2],
}


@pytest.mark.filterwarnings("ignore:Quantized Adaptive Average Pool 3D is not implemented for QNNPACK:UserWarning")
@pytest.mark.parametrize("backend", ["x86", "onednn", "qnnpack"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_int8_tensors_pass_through_unchanged(backend: str, layout: torch.memory_format) -> None:
    assert KEEPING.keys() == _KEEP_SCALE | _SPLITS
    input = torch.quantize_per_tensor(X, 0.03, 120, torch.quint8).contiguous(memory_format=layout)
    torch.backends.quantized.engine, engine = backend, torch.backends.quantized.engine
    try:
        for function, call in KEEPING.items():
            output, expected = call(function, input), call(function, input.dequantize())
            assert output.is_quantized, function
            assert (output.q_scale(), output.q_zero_point()) == (0.03, 120), function
            assert output.shape == expected.shape, function
            assert (output.dequantize() - expected).abs().max() <= 0.5001 * 0.03, function
    finally:
        torch.backends.quantized.engine = engine


class Net(nn.Module):
    """Two convolutions, then what a function of the module does with their outputs."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.a = nn.Conv2d(8, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 1)
        self.c = nn.Conv2d(8, 8, 3, padding=1)
        self.scale = nn.Parameter(torch.full((8, 1, 1), 0.5))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.function(self, self.a(x), self.b(x)))


def shuffle(net: Net, a: Tensor, b: Tensor) -> Tensor:
    n, c, h, w = a.shape
    return (a + b).view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


def in_place_sum(net: Net, a: Tensor, b: Tensor) -> Tensor:
    a += b
    return F.relu(a, inplace=True)


def swap_halves(net: Net, a: Tensor, b: Tensor) -> Tensor:
    first, second = a.chunk(2, 1)
    return torch.cat([second, first], 1) + b


FORWARDS: dict[str, tuple[Callable[..., Tensor], set[str]]] = {
    "sum": (lambda net, a, b: F.relu(a + b), set()),
    "sum in place": (in_place_sum, set()),
    "sum method": (lambda net, a, b: a.add(b).relu(), set()),
    "broadcast sum": (lambda net, a, b: a + b.mean((2, 3), keepdim=True), {"FloatOperation(mean)"}),
    "difference": (lambda net, a, b: a - b, {"FloatOperation(sub)"}),
    "gate": (lambda net, a, b: a * torch.sigmoid(b), set()),
    "gate by scalars": (
        lambda net, a, b: a * F.relu6(b + 3) / 6,
        {"FloatOperation(add)", "FloatOperation(truediv)"},
    ),
    "squeeze-excitation": (
        lambda net, a, b: a * F.hardsigmoid(net.b(F.relu(F.adaptive_avg_pool2d(b, 1)))),
        set(),
    ),
    "concatenation": (lambda net, a, b: torch.cat([a, 100 * b], 1)[:, ::2], {"FloatOperation(mul)"}),
    "concatenation by keywords": (lambda net, a, b: torch.cat(tensors=(a[:, :4], b[:, 4:]), dim=1), set()),
    "chunks": (swap_halves, set()),
    "channel shuffle": (shuffle, set()),
    "swish": (lambda net, a, b: F.silu(a) + F.gelu(b), {"FloatFallback(SiLU)", "FloatFallback(GELU)"}),
    "parameter": (lambda net, a, b: a + net.scale * b, {"FloatOperation(mul)"}),
    "softmax": (lambda net, a, b: torch.softmax(a, 1) * b, {"FloatOperation(softmax)"}),
    "resize": (
        lambda net, a, b: F.interpolate(F.max_pool2d(a, 2), size=b.shape[2:], mode="nearest") + b,
        set(),
    ),
    "dropout": (lambda net, a, b: F.dropout(a, 0.3, training=net.training) + b, set()),
    "attention": (
        lambda net, a, b: (a.flatten(2) @ b.flatten(2).transpose(1, 2)) @ b.flatten(2) * 1e-2 + a.flatten(2),
        {"FloatOperation(matmul)", "FloatOperation(mul)"},
    ),
}


def net(name: str) -> Net:
    function, _ = FORWARDS[name]
    if name == "attention":
        return Net(lambda net, a, b: function(net, a, b).reshape(a.shape)).eval()
    return Net(function).eval()


@pytest.mark.parametrize(
    ("name", "backend"),
    [*((name, "x86") for name in FORWARDS), *((name, "onednn") for name in ("sum", "broadcast sum", "swish", "gate"))],
)
def test_forward_is_int8(name: str, backend: str) -> None:
    model = net(name)
    before = copy.deepcopy(model.state_dict())
    int8 = quantized.quantize(model, [X], backend=backend)
    assert decibels(model(X), int8(X)) >= 30
    assert decibels(model(X[:1, :, :8]), int8(X[:1, :, :8])) >= 25
    rows = {row.path: row for row in quantized.report(int8).rows}
    in_float = {row.after for row in rows.values() if row.runs_in == "float"}
    post_ops = {"FloatFallback(SiLU)"} if backend == "onednn" else set()  # a convolution computes it
    assert FORWARDS[name][1] - post_ops == in_float
    assert [rows[path].runs_in for path in "abc"] == ["int8"] * 3
    assert list(before) == list(model.state_dict()) == list(quantized.quantizable(model).state_dict())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["sum", "concatenation", "gate", "parameter"])
def test_forward_is_trained_in_int8(name: str) -> None:
    model = net(name)
    prepared = quantized.prepare_qat(model, X)
    for _ in range(3):
        prepared(X).square().mean().backward()
    assert all(p.grad is not None for key, p in prepared.named_parameters() if not key.endswith("scale"))
    quantized.freeze(prepared)
    expected = prepared.eval()(X).detach()
    assert decibels(expected, quantized.convert(prepared)(X)) >= 30


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e2])
def test_concatenation_keeps_both_ranges_in_view(scale: float) -> None:
    class Cat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
            self.b.weight.data *= scale
            self.b.bias.data *= scale

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.a(x), self.b(x)], 1)

    model = Cat().eval()
    assert decibels(model(X), quantized.quantize(model, [X])(X)) >= 30


def test_modules_keep_their_identity() -> None:
    """Names, class names, hooks and modes stay; a copy is independent."""
    model = net("sum")
    calls = []
    model.register_forward_hook(lambda *args: calls.append("hook"))
    rewritten = quantized.quantizable(nn.Sequential(model))
    assert type(rewritten.model[0]).__name__ == "Net"
    assert isinstance(rewritten.model[0], Net)
    assert torch.equal(rewritten(X), model(X))
    assert len(calls) == 2
    assert torch.equal(copy.deepcopy(rewritten)(X), model(X))


class WithHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(8, 4, 1)
        self.head = nn.Sequential(nn.Conv2d(4, 2, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.head(x) if self.training else x


def test_head_that_is_never_called_stays_in_float() -> None:
    model = WithHead().eval()
    int8 = quantized.quantize(model, [X])
    assert decibels(model(X), int8(X)) >= 30
    rows = {row.path: (row.runs_in, row.why) for row in quantized.report(int8).rows}
    assert rows == {
        "body": ("int8", "has an int8 form"),
        "head.0": ("float", "is never called"),
        "head.1": ("float", "is never called"),
    }


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1"])
def test_classifiers_of_torchvision(name: str) -> None:
    model = getattr(torchvision.models, name)(weights=None, num_classes=10)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        model.train()(x)  # statistics that fit
    int8 = quantized.quantize(model.eval(), [x])
    assert decibels(model(x), int8(x)) >= 18
    in_float = {row.after for row in quantized.report(int8).rows if row.runs_in == "float"}
    assert in_float <= {"FloatOperation(mean)", "Dropout"}


class MeanHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("backend", ["x86", "onednn", "qnnpack"])
def test_small_means_of_large_values_have_steps_of_their_own(backend: str) -> None:
    torch.manual_seed(0)
    model, images = MeanHead().eval(), 3 * torch.randn(4, 8, 32, 32)
    assert decibels(model(images), quantized.quantize(model, [images], backend=backend)(images)) >= 35


# Options that the int8 kernels ignore or lack on some backend.
OPTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "average without padding": lambda x: F.avg_pool2d(x, 3, padding=1, count_include_pad=False),
    "average with a divisor": lambda x: F.avg_pool2d(x, 2, divisor_override=3),
    "average by position": lambda x: F.avg_pool2d(x, 2, 2, 0, False, True, 3),
    "padding with ones": lambda x: F.pad(x, (1, 1, 1, 1), value=1.0),
    "reflecting": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "circular": lambda x: F.pad(x, (1, 1, 1, 1), "circular"),
    "smooth interpolation": lambda x: F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True),
    "bicubic interpolation": lambda x: F.interpolate(x, scale_factor=2.0, mode="bicubic"),
    "mean in float64": lambda x: x.mean((2, 3), dtype=torch.float64).float(),
    "dilated maximum": lambda x: F.max_pool2d(x, 3, 1, 1, dilation=2),
}


@pytest.mark.parametrize("backend", ["x86", "onednn", "qnnpack"])
@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_functions(name: str, backend: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return OPTIONS[name](self.conv(x))

    torch.manual_seed(0)
    model = Model().eval()
    int8 = quantized.quantize(model, [X], backend=backend)
    assert decibels(model(X), int8(X)) > 30


# Writes whose result no caller takes: later reads see it all the same.
WRITES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "method": lambda y, x: y.relu_(),
    "function": lambda y, x: F.relu_(y),
    "inplace=True": lambda y, x: F.silu(y, inplace=True),
    "sum": lambda y, x: y.add_(x),
    "number": lambda y, x: y.mul_(0.1),
    "operator": lambda y, x: y.__iadd__(x),
}


@pytest.mark.parametrize("name", WRITES)
def test_writes_without_a_result(name: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            WRITES[name](y, x)
            return self.b(y)

    torch.manual_seed(0)
    model = Model().eval()
    int8 = quantized.quantize(model, [X])
    assert decibels(model(X), int8(X)) > 28
    assert {row.runs_in for row in quantized.report(int8).rows if row.path in "ab"} == {"int8"}
