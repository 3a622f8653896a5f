"""What onednn convolutions compute on their way out, what they must not, and the numbers that come of it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchvision_layers import nn as tnn
from torchvision_layers import quantized
from torchvision_layers.quantized.eager import post_ops
from torchvision_layers.quantized.eager.int8_modules import Int8ConvActivation2d, Int8ConvAddition2d
from torchvision_layers.testing._checks._quantization import decibels

FUSED = (Int8ConvActivation2d, Int8ConvAddition2d)
FLOAT = {"hardswish": F.hardswish, "swish": F.silu}


class Adds(nn.Module):
    """A sum, of terms that a function picks."""

    def __init__(self, function: Callable[["Adds", Tensor], Tensor], **children: nn.Module) -> None:
        super().__init__()
        self.add = quantized.Addition()
        self.function = function
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


@pytest.fixture
def all_worthwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small images, as if they were large."""
    monkeypatch.setattr(post_ops, "_WORTHWHILE", 0)


def trained(model: nn.Module, x: Tensor, backend: str = "onednn") -> quantized.QuantizableModel:
    prepared = quantized.prepare_qat(model, backend=backend)
    prepared(x)
    return quantized.convert(prepared)


def int8(model: nn.Module, x: Tensor, is_qat: bool = False, backend: str = "onednn") -> quantized.QuantizableModel:
    return trained(model, x, backend) if is_qat else quantized.quantize(model.eval(), [x], backend=backend)


def fused(model: quantized.QuantizableModel) -> list[str]:
    """Paths of what computes a convolution and more, by the modules, which the report must confirm."""
    places = model.model.named_modules(remove_duplicate=False)
    paths = [path for path, module in places if isinstance(module, FUSED)]
    rows = quantized.report(model).rows
    assert [row.path for row in rows if row.after in ("Int8ConvActivation2d", "Int8ConvAddition2d")] == paths
    return paths


def images(channels: int = 4, rows: int = 4) -> Tensor:
    return torch.randn(rows, channels, 9, 8)


def residual(stride: int = 1) -> nn.Module:
    project = tnn.ConvNormAct(4, 8, 1, stride, activation_layer=None)
    return tnn.BasicBlock(4, 8, stride, project)


def pieces(*modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(*modules)


# A layer of 4 channels, what computes the convolution before it as well, and the path of that convolution.
IN_ONE = {
    "sum and ReLU": (lambda: tnn.BasicBlock(4, 4), {"skip_add": "conv2"}),
    "sum with a projection": (lambda: residual(2), {"skip_add": "conv2"}),
    "sum through stochastic depth": (lambda: tnn.BasicBlock(4, 4, stochastic_depth=0.3), {"skip_add": "conv2"}),
    "sum of a bottleneck": (lambda: tnn.Bottleneck(4, 1), {"skip_add": "conv3"}),
    "sum without ReLU": (lambda: tnn.InvertedResidual(4, 4, 1, 2), {"skip_add": "conv.2"}),
    "sum and another activation": (lambda: tnn.BasicBlock(4, 4, activation_layer=nn.Tanh), {"skip_add": "conv2"}),
    "sum in a container": (
        lambda: Adds(lambda m, x: m.add(m.body(x), x), body=pieces(nn.Conv2d(4, 4, 1), nn.Identity())),
        {"add": "body.0"},
    ),
    "sum of two convolutions": (
        lambda: Adds(lambda m, x: m.add(m.conv(x), m.other(x)), conv=nn.Conv2d(4, 6, 1), other=nn.Conv2d(4, 6, 1)),
        {"add": "conv"},
    ),
    "dilated and grouped": (lambda: tnn.BasicBlock(4, 4, conv_layer=Dilated), {"skip_add": "conv2"}),
    "Hardswish": (lambda: tnn.ConvNormAct(4, 6, activation_layer=nn.Hardswish), {"2": "0"}),
    "SiLU": (lambda: tnn.ConvNormAct(4, 6, stride=2, activation_layer=nn.SiLU), {"2": "0"}),
    "SiLU, depthwise": (lambda: tnn.ConvNormAct(4, 4, groups=4, activation_layer=nn.SiLU), {"2": "0"}),
    "each of a block": (lambda: tnn.FusedMBConv(4, 4), {"block.0.2": "block.0.0", "skip_add": "block.1.0"}),
    "one activation for two": (lambda: shared_activation(), {"0.1": "0.0", "1.1": "1.0"}),
    "one block twice": (lambda: shared_block(), {"0.0.2": "0.0.0", "1.0.2": "1.0.0"}),
    "parts of a container in a row": (
        lambda: Adds(lambda m, x: m.body[1](m.body[0](m.add(x, x))), body=pieces(nn.Conv2d(4, 4, 1), nn.SiLU())),
        {"body.1": "body.0"},
    ),
}


def Dilated(*args: object, **kwargs: object) -> nn.Conv2d:  # noqa: N802  # stands where a class would
    return nn.Conv2d(*args, **{**kwargs, "dilation": 2, "padding": 2, "groups": 2})  # type: ignore[arg-type]


def shared_activation() -> nn.Module:
    act = nn.SiLU()
    return pieces(pieces(nn.Conv2d(4, 4, 3), act), pieces(nn.Conv2d(4, 4, 3), act))


def shared_block() -> nn.Module:
    block = tnn.ConvNormAct(4, 4, activation_layer=nn.Hardswish)
    return pieces(pieces(block), pieces(block))


def with_hook(model: nn.Module, path: str) -> nn.Module:
    model.get_submodule(path).register_forward_hook(lambda module, args, output: None)
    return model


def shared_convolution() -> nn.Module:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    return pieces(pieces(conv, nn.Hardswish()), pieces(conv, nn.ReLU()))


def twice(m: Adds, x: Tensor) -> Tensor:
    y = m.conv(x)
    return m.add(y, y)


def used_by_two(m: Adds, x: Tensor) -> Tensor:
    y = m.conv(x)
    return m.add(m.act(y), y)


def tapped(m: Adds, x: Tensor) -> Tensor:
    y = m.body[0](x)
    return m.add(m.body[1](y), y)


def untraced(m: Adds, x: Tensor) -> Tensor:
    return tapped(m, x) if x.shape[0] > 0 else x


# Layers of which nothing may be computed by the convolution before it.
APART = {
    "squeeze-excitation in between": lambda: tnn.BasicBlock(4, 4, se_layer=tnn.SqueezeExcitation),
    "ReLU in between": lambda: Adds(lambda m, x: m.add(m.act(m.conv(x)), x), conv=nn.Conv2d(4, 4, 1), act=nn.ReLU()),
    "an activation of something else": lambda: pieces(nn.Hardswish(), nn.MaxPool2d(2), nn.SiLU(), nn.Conv2d(4, 4, 1)),
    "an activation after pooling": lambda: pieces(nn.Conv2d(4, 4, 1), nn.MaxPool2d(2), nn.Hardswish()),
    "an activation without a kernel": lambda: pieces(nn.Conv2d(4, 4, 1), nn.Mish()),
    "a norm that is not folded": lambda: tnn.ConvNormAct(
        4, 4, norm_layer=lambda n: nn.GroupNorm(2, n), activation_layer=nn.Hardswish
    ),
    "a projection": lambda: pieces(nn.Flatten(), nn.Linear(4 * 9 * 8, 4), nn.Hardswish()),
    "other padding": lambda: pieces(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), nn.Hardswish()),
    "hook on the convolution": lambda: with_hook(pieces(nn.Conv2d(4, 4, 1), nn.Hardswish()), "0"),
    "hook on the activation": lambda: with_hook(pieces(nn.Conv2d(4, 4, 1), nn.Hardswish()), "1"),
    "hook on a container": lambda: with_hook(
        Adds(lambda m, x: m.add(m.body(x), x), body=pieces(nn.Conv2d(4, 4, 1))), "body"
    ),
    "a convolution that runs twice": lambda: Adds(lambda m, x: m.add(m.conv(m.conv(x)), x), conv=nn.Conv2d(4, 4, 1)),
    "a convolution plus itself": lambda: Adds(twice, conv=nn.Conv2d(4, 4, 1)),
    "a convolution used by two": lambda: Adds(used_by_two, conv=nn.Conv2d(4, 4, 1), act=nn.Hardswish()),
    "a convolution at two places": shared_convolution,
    "parts of a container": lambda: Adds(tapped, body=pieces(nn.Conv2d(4, 4, 1), nn.Hardswish())),
    "parts that tracing does not see": lambda: Adds(untraced, body=pieces(nn.Conv2d(4, 4, 1), nn.Hardswish())),
    "the second term of a sum": lambda: Adds(lambda m, x: m.add(x, m.conv(x)), conv=nn.Conv2d(4, 4, 1)),
}


UNTRACED = ("parts that tracing does not see",)


@pytest.mark.usefixtures("all_worthwhile")
@pytest.mark.parametrize("is_qat", [False, True], ids=["calibrated", "trained"])
@pytest.mark.parametrize("name", IN_ONE)
def test_computed_by_the_convolution(name: str, is_qat: bool) -> None:
    build, expected = IN_ONE[name]
    model, x = build(), images()
    converted = int8(model, x, is_qat)
    assert fused(converted) == list(expected)
    rows = {row.path: row for row in quantized.report(converted).rows}
    for operation, convolution in expected.items():
        assert (rows[operation].runs_in, rows[convolution].runs_in) == ("int8", "int8")
        assert convolution in rows[operation].fused_with
        assert operation in rows[convolution].fused_with
        assert (rows[convolution].after, rows[convolution].why) == ("Identity", f"fused into {operation}")
        assert type(converted.model.get_submodule(convolution)) is nn.Identity
    if not is_qat:
        assert decibels(model(x), converted(x)) >= 26
        assert decibels(model(x[:1, :, :7]), converted(x[:1, :, :7])) >= 20, "another size"


@pytest.mark.usefixtures("all_worthwhile")
@pytest.mark.parametrize(
    ("name", "is_qat"),
    # What tracing does not see shows when an example runs, which is not so before training.
    [(name, is_qat) for name in APART for is_qat in (False, True) if not is_qat or name not in UNTRACED],
)
def test_not_computed_by_the_convolution(name: str, is_qat: bool) -> None:
    model, x = APART[name](), images()
    converted = int8(model, x, is_qat)
    assert fused(converted) == []
    if not is_qat:
        assert decibels(model(x), converted(x)) >= 26


@pytest.mark.usefixtures("all_worthwhile")
@pytest.mark.parametrize("backend", ["x86", "qnnpack"])
@pytest.mark.parametrize("is_qat", [False, True], ids=["calibrated", "trained"])
def test_other_backends_have_no_such_kernels(backend: str, is_qat: bool) -> None:
    for name in ("sum and ReLU", "Hardswish", "SiLU"):
        assert fused(int8(IN_ONE[name][0](), images(), is_qat, backend)) == []


@pytest.mark.parametrize(("width", "worthwhile"), [(32, True), (31, False)])
def test_small_images_are_left_to_kernels_of_their_own(width: int, worthwhile: bool) -> None:
    """2 ** 17 values are 128 channels of 32 by 32; how many images a batch has does not count."""
    cases = {
        "1": pieces(nn.Conv2d(4, 128, 1), nn.Hardswish()),
        "add": Adds(lambda m, x: m.add(m.conv(x), x), conv=nn.Conv2d(128, 128, 1)),
    }
    for path, model in cases.items():
        channels = next(model.parameters()).shape[1]
        assert fused(int8(model, torch.randn(2, channels, 32, width))) == [path] * worthwhile
        assert fused(int8(model, images(channels), is_qat=True)) == [path]
    assert fused(int8(pieces(nn.Conv2d(4, 4, 1), nn.SiLU()), images())) == ["1"], "SiLU has no kernel of its own"


def calls_of(model: quantized.QuantizableModel, x: Tensor) -> dict[str, tuple[nn.Module, tuple[Tensor, ...], Tensor]]:
    """Each fused module with its inputs, as they were before the call, and its output."""
    found: dict[str, tuple[nn.Module, tuple[Tensor, ...], Tensor]] = {}
    before: dict[nn.Module, tuple[Tensor, ...]] = {}
    for path, module in model.named_modules():
        if isinstance(module, FUSED):
            module.register_forward_pre_hook(lambda m, args: before.update({m: tuple(a.clone() for a in args)}))

            def note(m: nn.Module, args: tuple[Tensor, ...], output: Tensor, path: str = path) -> None:
                assert all(torch.equal(a.int_repr(), b.int_repr()) for a, b in zip(args, before[m], strict=True))
                found[path] = (m, before[m], output)

            module.register_forward_hook(note)
    model(x)
    return found


@pytest.mark.usefixtures("all_worthwhile")
@pytest.mark.parametrize("is_qat", [False, True], ids=["calibrated", "trained"])
@pytest.mark.parametrize("name", IN_ONE)
def test_rounded_once(name: str, is_qat: bool) -> None:
    """Whatever the convolution computes along, int8 has the float result of its inputs, rounded to its own steps."""
    model, x = int8(IN_ONE[name][0](), images(), is_qat), images()
    found = calls_of(model, x)
    assert found
    for module, (input, *others), output in found.values():
        weight = module.weight.dequantize()
        y = F.conv2d(
            input.dequantize(), weight, module.bias, module.stride, module.padding, module.dilation, module.groups
        )
        y = y + others[0].dequantize() if others else FLOAT[module.activation](y)
        expected = torch.quantize_per_tensor(y, module.scale, module.zero_point, torch.quint8).int_repr().int()
        difference = (output.int_repr().int() - expected).abs()
        assert int(difference.max()) <= 1
        assert float(difference.float().mean()) < 0.01, "rounded twice"
        assert (output.q_scale(), output.q_zero_point()) == (module.scale, module.zero_point)
        assert len(output.int_repr().unique()) > 32
