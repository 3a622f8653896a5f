"""Lowered models in bfloat16, compared with the model in float64."""

import copy
import operator
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from torchvision_layers import deploy
from torchvision_layers import nn as tnn
from torchvision_layers.deploy.lowering import bfloat16

from .._support import FunctionModule, int8_model
from .._support import example as int8_example
from ._support import images, stir

pytestmark = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no instructions for bfloat16"
)
_aten = torch.ops.aten
X = images(2, 4, 8, 8)


def relative_error(output: Tensor, expected: Tensor) -> float:
    return float((output.double() - expected).norm() / expected.norm())


def exact(model: nn.Module, *inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).double()(*(x.double() for x in inputs))


def rounded(model: nn.Module) -> nn.Module:
    """A folded model in float32 whose parameters, inputs and results of modules are rounded to bfloat16."""

    def round_(values: Any) -> Any:
        return values.bfloat16().float() if isinstance(values, Tensor) else values

    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(round_(parameter))
    model.register_forward_pre_hook(lambda module, args: tuple(map(round_, args)))
    for module in model.modules():
        if not [*module.children()]:
            module.register_forward_hook(lambda module, args, output: round_(output))
    return model


def lower(model: nn.Module, *inputs: Tensor) -> deploy.LoweredModel:
    return deploy.lower(model, inputs if len(inputs) > 1 else inputs[0], dtype=torch.bfloat16)


def assert_explained(model: nn.Module, x: Tensor, *others: Tensor, factor: float = 1.5) -> deploy.LoweredModel:
    """The error is that of an emulation in float32, which rounds in nearly the same places."""
    lowered = lower(model, x)
    emulated = rounded(deploy.fold(model, x))
    for batch in (x, *others):
        expected, output = exact(model, batch), lowered(batch)
        assert output.dtype == torch.float32
        assert output.shape == expected.shape
        with torch.no_grad():
            limit = factor * relative_error(emulated(batch), expected)
        assert relative_error(output, expected) <= limit
    return lowered


@pytest.mark.parametrize(
    "name",
    ["resnet18", *(pytest.param(n, marks=pytest.mark.slow) for n in ("mobilenet_v3_large", "densenet121", "swin_t"))],
)
@pytest.mark.filterwarnings("ignore:the lowered model takes images")
def test_networks(name: str) -> None:
    torch.manual_seed(0)
    model = stir(getattr(torchvision.models, name)(weights=None))
    assert_explained(model, images(2, 3, 64, 64))


def test_blocks() -> None:
    torch.manual_seed(0)
    blocks = [tnn.ConvNormAct(4, 32, stride=2), tnn.BasicBlock(32, 32), tnn.MBConv(32, 32), tnn.ConvNeXtBlock(32)]
    model = stir(nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)))
    lowered = assert_explained(model, images(2, 4, 16, 16), images(1, 4, 24, 17), images(3, 4, 16, 16))
    program = repr(lowered)
    assert program.count("to_bfloat16(input)") == program.count("to_float32(") == 1  # nothing between is converted
    assert "+ sum in place" in program


def test_transformers() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
    model = stir(nn.Sequential(layer, nn.LayerNorm(32)))
    lowered = lower(model, images(2, 10, 32))
    for batch in (2, 3):
        x = images(batch, 10, 32, seed=1)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            limit = 1.5 * relative_error(deploy.fold(model, x)(x), exact(model, x))
        assert relative_error(lowered(x), exact(model, x)) <= limit


Y, SEQUENCE, VOLUME = images(2, 4, 8, 8, seed=1), images(2, 4, 8), images(2, 4, 4, 4, 4)
FOLLOWERS: dict[str, tuple[Callable[..., Tensor], Tensor]] = {
    "abs": (torch.abs, X),
    "adaptive_avg_pool1d": (lambda x: F.adaptive_avg_pool1d(x, 1), SEQUENCE),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, 1), X),
    "adaptive_avg_pool3d": (lambda x: F.adaptive_avg_pool3d(x, 1), VOLUME),
    "add": (lambda x: x + x.flip(2), X),
    "alias": (_aten.alias, X),
    "avg_pool1d": (lambda x: F.avg_pool1d(x, 2), SEQUENCE),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 3), X),
    "cat": (lambda x: torch.cat([x, x]), X),
    "celu": (F.celu, X),
    "channel_shuffle": (lambda x: F.channel_shuffle(x, 2), X),
    "chunk": (lambda x: x.chunk(2, 1)[1], X),
    "clamp": (lambda x: x.clamp(-1, 1), X),
    "clamp_max": (lambda x: _aten.clamp_max(x, 1), X),
    "clamp_min": (lambda x: _aten.clamp_min(x, 1), X),
    "clone": (torch.clone, X),
    "constant_pad_nd": (lambda x: _aten.constant_pad_nd(x, [1, 1], 0.0), X),
    "contiguous": (lambda x: x.permute(1, 0, 2, 3).contiguous(), X),
    "div": (lambda x: x / 6, X),
    "elu": (F.elu, X),
    "expand": (lambda x: x[:, :1].expand(-1, 3, -1, -1), X),
    "expand_as": (lambda x: x[:, :1].expand_as(x), X),
    "flatten": (lambda x: x.flatten(1), X),
    "flip": (lambda x: x.flip(1), X),
    "gelu": (F.gelu, X),
    "getitem": (lambda x: operator.getitem(x.split(2, 1), 1), X),
    "hardsigmoid": (F.hardsigmoid, X),
    "hardswish": (F.hardswish, X),
    "hardtanh": (F.hardtanh, X),
    "index_select": (lambda x: x.index_select(1, torch.tensor([2, 0])), X),
    "leaky_relu": (F.leaky_relu, X),
    "max_pool1d": (lambda x: F.max_pool1d(x, 2), SEQUENCE),
    "max_pool2d": (lambda x: F.max_pool2d(x, 3, 2, 1), X),
    "max_pool3d": (lambda x: F.max_pool3d(x, 2), VOLUME),
    "maximum": (lambda x: torch.maximum(x, x.flip(1)), X),
    "mean": (lambda x: x.mean((2, 3)), X),
    "minimum": (lambda x: torch.minimum(x, x.flip(1)), X),
    "mish": (F.mish, X),
    "movedim": (lambda x: x.movedim(1, -1), X),
    "mul": (lambda x: x * x.mean((2, 3), keepdim=True).bfloat16().to(x.dtype), X),
    "narrow": (lambda x: x.narrow(1, 1, 2), X),
    "neg": (torch.neg, X),
    "pad": (lambda x: F.pad(x, (1, 2, 1, 2), mode="reflect"), X),
    "permute": (lambda x: x.permute(0, 2, 3, 1), X),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), X),
    "pixel_unshuffle": (lambda x: F.pixel_unshuffle(x, 2), X),
    "relu": (F.relu, X),
    "relu6": (F.relu6, X),
    "repeat": (lambda x: x.repeat(1, 2, 1, 1), X),
    "reshape": (lambda x: x.reshape(2, -1), X),
    "reshape_as": (lambda x: _aten.reshape_as(x, x.flatten(1)), X),
    "roll": (lambda x: x.roll(1, 2), X),
    "select": (lambda x: x.select(1, 0), X),
    "selu": (F.selu, X),
    "sigmoid": (torch.sigmoid, X),
    "silu": (F.silu, X),
    "slice": (lambda x: x[:, 1:3], X),
    "split": (lambda x: x.split(1, 1)[2], X),
    "split_with_sizes": (lambda x: x.split([1, 3], 1)[1], X),
    "squeeze": (lambda x: x[:, :1].squeeze(1), X),
    "stack": (lambda x: torch.stack([x, x], 1), X),
    "sub": (lambda x: x - x.flip(2), X),
    "swapaxes": (lambda x: x.swapaxes(1, 2), X),
    "t": (lambda x: x.flatten(1).t(), X),
    "tanh": (torch.tanh, X),
    "transpose": (lambda x: x.transpose(1, 2), X),
    "unbind": (lambda x: x.unbind(1)[1], X),
    "unflatten": (lambda x: x.unflatten(1, (2, 2)), X),
    "unsqueeze": (lambda x: x.unsqueeze(1), X),
    "upsample_bilinear2d": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), X),
    "upsample_nearest2d": (lambda x: F.interpolate(x, scale_factor=2), X),
    "view": (lambda x: x.view(2, 4, 64, 1), X),
}


def test_every_operator_in_bfloat16_has_a_case() -> None:
    assert FOLLOWERS.keys() == bfloat16._FOLLOWERS


@pytest.mark.parametrize(("function", "x"), FOLLOWERS.values(), ids=FOLLOWERS)
def test_operators_between_layers_round_once(function: Callable[..., Tensor], x: Tensor) -> None:
    """On images in both memory formats, the error is half a unit in the last place of eight bits."""
    formats = [x.bfloat16()]
    if x.dim() == 4:
        formats.append(x.bfloat16().contiguous(memory_format=torch.channels_last))
    for y in formats:
        output, expected = function(y), function(y.double())
        assert output.dtype == torch.bfloat16
        assert bool(((output.double() - expected).abs() <= 2**-8 * expected.abs() + 1e-6).all())


class Dtypes(TorchDispatchMode):
    """Records the dtype of the first input of each operator."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: dict[str, torch.dtype] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], Tensor):
            self.inputs[func.overloadpacket.__name__] = args[0].dtype
        return func(*args, **(kwargs or {}))


def mixed(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    y[:, :2] = torch.exp(y[:, 2:])  # a write into a view
    z = self.conv(y) * torch.cumsum(y, 1).mean((2, 3), keepdim=True)
    return torch.logsumexp(self.conv(z) + y, 1)


def attention(self: Any, x: Tensor) -> Tensor:
    query, key, value = (self.conv(x * (i + 1)).flatten(2) for i in range(3))
    return torch.softmax(query.transpose(1, 2) @ key / 2 + self.bias.weight, -1) @ value.transpose(1, 2)


def several(self: Any, x: Tensor) -> tuple[Any, ...]:
    y = F.relu(self.conv(x))
    mean, deviation = torch.std_mean(y, (2, 3))
    return {"map": y, "pair": (mean, deviation)}, torch.softmax(y.mean((2, 3)), 1), y.flatten(1).max(1).values > 0


@pytest.mark.parametrize("function", [mixed, attention])
def test_operators_in_float32(function: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    model = FunctionModule(function, conv=nn.Conv2d(4, 4, 3, padding=1), bias=nn.Embedding(64, 64)).eval()
    lowered = lower(model, X)
    for x in (X, images(1, 4, 8, 8, seed=2)):
        assert relative_error(lowered(x), exact(model, x)) < 0.01
    with Dtypes() as seen:
        lowered(X)
    assert {seen.inputs[name] for name in ("exp", "cumsum", "logsumexp") if name in seen.inputs} <= {torch.float32}


def test_structures_and_probabilities() -> None:
    torch.manual_seed(0)
    model = FunctionModule(several, conv=nn.Conv2d(4, 4, 3)).eval()
    maps, probabilities, is_positive = lower(model, X)(X)
    with torch.no_grad():
        expected, exact_probabilities, _ = model.double()(X.double())
    for output, value in ((maps["map"], expected["map"]), (maps["pair"][1], expected["pair"][1])):
        assert output.dtype == torch.float32
        assert relative_error(output, value) < 0.01
    assert is_positive.all()
    assert relative_error(probabilities, exact_probabilities) < 0.005
    assert float((probabilities.double().sum(1) - 1).abs().max()) < 1e-6  # softmax is not rounded


def test_weights_are_in_bfloat16() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Flatten(), nn.Linear(512, 256)).eval()
    lowered = lower(model, X)
    expected = lowered(X)
    assert [t.dtype for t in lowered.state_dict().values()] == [torch.float32] * 4
    twin = pickle.loads(pickle.dumps(lowered))
    assert torch.equal(twin(X), expected)
    coarse = {key: value.bfloat16().float() for key, value in model.state_dict().items()}
    twin.load_state_dict(coarse)
    assert torch.equal(twin(X), expected)


def test_images_may_have_any_memory_format() -> None:
    torch.manual_seed(0)
    lowered = lower(nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval(), X)
    output = lowered(X)
    assert output.is_contiguous()
    assert torch.equal(lowered(X.contiguous(memory_format=torch.channels_last)), output)


def test_other_dtypes() -> None:
    conv = nn.Conv2d(4, 4, 3)
    for dtype in (torch.float16, torch.float64, torch.uint8):
        with pytest.raises(ValueError, match=r"dtype must be torch.float32 or torch.bfloat16, got torch\."):
            deploy.lower(conv, X, dtype=dtype)
    with pytest.raises(TypeError, match="dtype must be torch.float32 or torch.bfloat16, got 'bfloat16'"):
        deploy.lower(conv, X, dtype="bfloat16")
    with pytest.raises(TypeError, match="model must be in float32, weight is in bfloat16"):
        deploy.lower(copy.deepcopy(conv).bfloat16(), X, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="dtype must be torch.float32 for an int8 graph, got torch.bfloat16"):
        deploy.lower(int8_model("pt2e"), int8_example(), dtype=torch.bfloat16)
    assert "bfloat16" not in repr(deploy.lower(conv, X, dtype=torch.float32))


def test_cpus_without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = nn.Conv2d(4, 4, 3)
    lowered = lower(conv, X)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    for call in (lambda: lower(conv, X), lambda: copy.deepcopy(lowered)(X)):
        with pytest.raises(RuntimeError, match="needs a CPU with instructions for bfloat16.*dtype=torch.float32"):
            call()
    deploy.lower(conv, X)


def test_programs_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def break_(module: torch.fx.GraphModule) -> None:
        bfloat16.use_bfloat16(module)
        for node in module.graph.nodes:
            if node.target is torch.ops.mkldnn._convolution_pointwise.default:
                node.args = (*node.args[:-3], "relu", [], "")

    monkeypatch.setitem(deploy.lower.__globals__, "use_bfloat16", break_)
    with pytest.raises(RuntimeError, match=r"lowering changed an output by .*, bfloat16 explains at most"):
        lower(nn.Conv2d(4, 4, 3), X)


def test_random_models_are_refused() -> None:
    model = FunctionModule(lambda self, x: self.conv(x) + torch.rand_like(x), conv=nn.Conv2d(4, 4, 1))
    with pytest.raises(RuntimeError, match="the model must return the same result for the same input"):
        lower(model, X)
