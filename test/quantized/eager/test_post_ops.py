"""Post-operations of onednn convolutions: the ones that are fused, the ones that must not be, and their rounding."""

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

FUSED_CLASSES = (Int8ConvActivation2d, Int8ConvAddition2d)
FLOAT = {"hardswish": F.hardswish, "swish": F.silu}


class AdditionModule(nn.Module):
    """Calls a function with itself, so that it can use the addition and the children, and with the input."""

    def __init__(self, function: Callable[["AdditionModule", Tensor], Tensor], **children: nn.Module) -> None:
        super().__init__()
        self.add = quantized.Addition()
        self.function = function
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


@pytest.fixture
def all_worthwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fuse additions and activations of small images too."""
    monkeypatch.setattr(post_ops, "_WORTHWHILE", 0)


def trained(model: nn.Module, x: Tensor, backend: str = "onednn") -> quantized.QuantizableModel:
    prepared = quantized.prepare_qat(model, backend=backend)
    prepared(x)
    return quantized.convert(prepared)


def int8(model: nn.Module, x: Tensor, is_qat: bool = False, backend: str = "onednn") -> quantized.QuantizableModel:
    return trained(model, x, backend) if is_qat else quantized.quantize(model.eval(), [x], backend=backend)


def fused_paths(model: quantized.QuantizableModel) -> list[str]:
    """Paths of the fused modules, which must be those of the report."""
    modules = model.model.named_modules(remove_duplicate=False)
    paths = [path for path, module in modules if isinstance(module, FUSED_CLASSES)]
    rows = quantized.report(model).rows
    assert [row.path for row in rows if row.after in ("Int8ConvActivation2d", "Int8ConvAddition2d")] == paths
    return paths


def images(channels: int = 4, rows: int = 4) -> Tensor:
    return torch.randn(rows, channels, 9, 8)


def residual(stride: int = 1) -> nn.Module:
    project = tnn.ConvNormAct(4, 8, 1, stride, activation_layer=None)
    return tnn.BasicBlock(4, 8, stride, project)


def sequential(*modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(*modules)


# A layer of 4 channels, and the paths of its fused operations with those of their convolutions.
FUSED_CASES = {
    "sum and ReLU": (lambda: tnn.BasicBlock(4, 4), {"skip_add": "conv2"}),
    "sum with a downsampling convolution": (lambda: residual(2), {"skip_add": "conv2"}),
    "sum through stochastic depth": (lambda: tnn.BasicBlock(4, 4, stochastic_depth=0.3), {"skip_add": "conv2"}),
    "sum of a bottleneck": (lambda: tnn.Bottleneck(4, 1), {"skip_add": "conv3"}),
    "sum without ReLU": (lambda: tnn.InvertedResidual(4, 4, 1, 2), {"skip_add": "conv.2"}),
    "sum and another activation": (lambda: tnn.BasicBlock(4, 4, activation_layer=nn.Tanh), {"skip_add": "conv2"}),
    "sum in a container": (
        lambda: AdditionModule(lambda m, x: m.add(m.body(x), x), body=sequential(nn.Conv2d(4, 4, 1), nn.Identity())),
        {"add": "body.0"},
    ),
    "sum of two convolutions": (
        lambda: AdditionModule(
            lambda m, x: m.add(m.conv(x), m.other(x)), conv=nn.Conv2d(4, 6, 1), other=nn.Conv2d(4, 6, 1)
        ),
        {"add": "conv"},
    ),
    "dilated and grouped": (lambda: tnn.BasicBlock(4, 4, conv_layer=Dilated), {"skip_add": "conv2"}),
    "Hardswish": (lambda: tnn.ConvNormAct(4, 6, activation_layer=nn.Hardswish), {"2": "0"}),
    "SiLU": (lambda: tnn.ConvNormAct(4, 6, stride=2, activation_layer=nn.SiLU), {"2": "0"}),
    "SiLU, depthwise": (lambda: tnn.ConvNormAct(4, 4, groups=4, activation_layer=nn.SiLU), {"2": "0"}),
    "both of a block": (lambda: tnn.FusedMBConv(4, 4), {"block.0.2": "block.0.0", "skip_add": "block.1.0"}),
    "shared activation": (lambda: shared_activation(), {"0.1": "0.0", "1.1": "1.0"}),
    "shared block": (lambda: shared_block(), {"0.0.2": "0.0.0", "1.0.2": "1.0.0"}),
    "children of a container": (
        lambda: AdditionModule(
            lambda m, x: m.body[1](m.body[0](m.add(x, x))), body=sequential(nn.Conv2d(4, 4, 1), nn.SiLU())
        ),
        {"body.1": "body.0"},
    ),
}


def Dilated(*args: object, **kwargs: object) -> nn.Conv2d:  # noqa: N802  # used like a class
    return nn.Conv2d(*args, **{**kwargs, "dilation": 2, "padding": 2, "groups": 2})  # type: ignore[arg-type]


def shared_activation() -> nn.Module:
    act = nn.SiLU()
    return sequential(sequential(nn.Conv2d(4, 4, 3), act), sequential(nn.Conv2d(4, 4, 3), act))


def shared_block() -> nn.Module:
    block = tnn.ConvNormAct(4, 4, activation_layer=nn.Hardswish)
    return sequential(sequential(block), sequential(block))


def with_hook(model: nn.Module, path: str) -> nn.Module:
    model.get_submodule(path).register_forward_hook(lambda module, args, output: None)
    return model


def shared_convolution() -> nn.Module:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    return sequential(sequential(conv, nn.Hardswish()), sequential(conv, nn.ReLU()))


def sum_with_itself(m: AdditionModule, x: Tensor) -> Tensor:
    y = m.conv(x)
    return m.add(y, y)


def two_consumers(m: AdditionModule, x: Tensor) -> Tensor:
    y = m.conv(x)
    return m.add(m.act(y), y)


def read_inside(m: AdditionModule, x: Tensor) -> Tensor:
    y = m.body[0](x)
    return m.add(m.body[1](y), y)


def untraceable(m: AdditionModule, x: Tensor) -> Tensor:
    return read_inside(m, x) if x.shape[0] > 0 else x


# Layers in which no operation may be fused into the convolution before it.
UNFUSED_CASES = {
    "squeeze-excitation in between": lambda: tnn.BasicBlock(4, 4, se_layer=tnn.SqueezeExcitation),
    "ReLU in between": lambda: AdditionModule(
        lambda m, x: m.add(m.act(m.conv(x)), x), conv=nn.Conv2d(4, 4, 1), act=nn.ReLU()
    ),
    "an activation without a convolution": lambda: sequential(
        nn.Hardswish(), nn.MaxPool2d(2), nn.SiLU(), nn.Conv2d(4, 4, 1)
    ),
    "an activation after pooling": lambda: sequential(nn.Conv2d(4, 4, 1), nn.MaxPool2d(2), nn.Hardswish()),
    "an activation without a kernel": lambda: sequential(nn.Conv2d(4, 4, 1), nn.Mish()),
    "an unfoldable norm": lambda: tnn.ConvNormAct(
        4, 4, norm_layer=lambda n: nn.GroupNorm(2, n), activation_layer=nn.Hardswish
    ),
    "a linear layer": lambda: sequential(nn.Flatten(), nn.Linear(4 * 9 * 8, 4), nn.Hardswish()),
    "hook on the convolution": lambda: with_hook(sequential(nn.Conv2d(4, 4, 1), nn.Hardswish()), "0"),
    "hook on the activation": lambda: with_hook(sequential(nn.Conv2d(4, 4, 1), nn.Hardswish()), "1"),
    "hook on a container": lambda: with_hook(
        AdditionModule(lambda m, x: m.add(m.body(x), x), body=sequential(nn.Conv2d(4, 4, 1))), "body"
    ),
    "a convolution called twice": lambda: AdditionModule(
        lambda m, x: m.add(m.conv(m.conv(x)), x), conv=nn.Conv2d(4, 4, 1)
    ),
    "a convolution plus itself": lambda: AdditionModule(sum_with_itself, conv=nn.Conv2d(4, 4, 1)),
    "a convolution with two consumers": lambda: AdditionModule(
        two_consumers, conv=nn.Conv2d(4, 4, 1), act=nn.Hardswish()
    ),
    "a convolution registered twice": shared_convolution,
    "a value inside a container": lambda: AdditionModule(
        read_inside, body=sequential(nn.Conv2d(4, 4, 1), nn.Hardswish())
    ),
    "a branch that cannot be traced": lambda: AdditionModule(
        untraceable, body=sequential(nn.Conv2d(4, 4, 1), nn.Hardswish())
    ),
    "the second term of a sum": lambda: AdditionModule(lambda m, x: m.add(x, m.conv(x)), conv=nn.Conv2d(4, 4, 1)),
}


UNTRACEABLE = ("a branch that cannot be traced",)


@pytest.mark.usefixtures("all_worthwhile")
@pytest.mark.parametrize("is_qat", [False, True], ids=["calibrated", "trained"])
@pytest.mark.parametrize("name", FUSED_CASES)
def test_operation_is_fused_into_convolution(name: str, is_qat: bool) -> None:
    build, expected = FUSED_CASES[name]
    model, x = build(), images()
    converted = int8(model, x, is_qat)
    assert fused_paths(converted) == list(expected)
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
    # An untraceable branch is detected by running an example, and training starts without one.
    [(name, is_qat) for name in UNFUSED_CASES for is_qat in (False, True) if not is_qat or name not in UNTRACEABLE],
)
def test_operation_is_not_fused_into_convolution(name: str, is_qat: bool) -> None:
    model, x = UNFUSED_CASES[name](), images()
    converted = int8(model, x, is_qat)
    assert fused_paths(converted) == []
    if not is_qat:
        assert decibels(model(x), converted(x)) >= 26


@pytest.mark.usefixtures("all_worthwhile")
@pytest.mark.parametrize("backend", ["x86", "qnnpack"])
@pytest.mark.parametrize("is_qat", [False, True], ids=["calibrated", "trained"])
def test_other_backends_fuse_no_post_ops(backend: str, is_qat: bool) -> None:
    for name in ("sum and ReLU", "Hardswish", "SiLU"):
        assert fused_paths(int8(FUSED_CASES[name][0](), images(), is_qat, backend)) == []


@pytest.mark.parametrize(("width", "worthwhile"), [(32, True), (31, False)])
def test_small_images_use_separate_kernels(width: int, worthwhile: bool) -> None:
    """The limit of 2 ** 17 values per image is reached by 128 channels of 32 by 32; the batch size has no effect."""
    cases = {
        "1": sequential(nn.Conv2d(4, 128, 1), nn.Hardswish()),
        "add": AdditionModule(lambda m, x: m.add(m.conv(x), x), conv=nn.Conv2d(128, 128, 1)),
    }
    for path, model in cases.items():
        channels = next(model.parameters()).shape[1]
        assert fused_paths(int8(model, torch.randn(2, channels, 32, width))) == [path] * worthwhile
        assert fused_paths(int8(model, images(channels), is_qat=True)) == [path]
    assert fused_paths(int8(sequential(nn.Conv2d(4, 4, 1), nn.SiLU()), images())) == ["1"], (
        "SiLU has no separate kernel"
    )


def record_fused_calls(
    model: quantized.QuantizableModel, x: Tensor
) -> dict[str, tuple[nn.Module, tuple[Tensor, ...], Tensor]]:
    """Each fused module with its inputs, copied before the call, and its output."""
    calls: dict[str, tuple[nn.Module, tuple[Tensor, ...], Tensor]] = {}
    before: dict[nn.Module, tuple[Tensor, ...]] = {}
    for path, module in model.named_modules():
        if isinstance(module, FUSED_CLASSES):
            module.register_forward_pre_hook(lambda m, args: before.update({m: tuple(a.clone() for a in args)}))

            def record(m: nn.Module, args: tuple[Tensor, ...], output: Tensor, path: str = path) -> None:
                assert all(torch.equal(a.int_repr(), b.int_repr()) for a, b in zip(args, before[m], strict=True))
                calls[path] = (m, before[m], output)

            module.register_forward_hook(record)
    model(x)
    return calls


@pytest.mark.usefixtures("all_worthwhile")
@pytest.mark.parametrize("is_qat", [False, True], ids=["calibrated", "trained"])
@pytest.mark.parametrize("name", FUSED_CASES)
def test_fused_output_is_rounded_once(name: str, is_qat: bool) -> None:
    """The int8 output is the float result for the dequantized inputs, rounded to the output's scale."""
    model, x = int8(FUSED_CASES[name][0](), images(), is_qat), images()
    calls = record_fused_calls(model, x)
    assert calls
    for module, (input, *others), output in calls.values():
        weight = module.weight.dequantize()
        y = F.conv2d(
            input.dequantize(), weight, module.bias, module.stride, module.padding, module.dilation, module.groups
        )
        y = y + others[0].dequantize() if others else FLOAT[module.activation](y)
        expected = torch.quantize_per_tensor(y, module.scale, module.zero_point, torch.quint8).int_repr().int()
        difference = (output.int_repr().int() - expected).abs()
        assert int(difference.max()) <= 1
        assert float(difference.float().mean()) < 0.01, "some outputs were rounded twice"
        assert (output.q_scale(), output.q_zero_point()) == (module.scale, module.zero_point)
        assert len(output.int_repr().unique()) > 32


def read_after_addition(m: AdditionModule, x: Tensor) -> Tensor:
    y = m.conv(x)
    return m.add(y, x) * y.sigmoid()


def broadcast(m: AdditionModule, x: Tensor) -> Tensor:
    return m.conv(x.mean((2, 3), keepdim=True)) + x


@pytest.mark.usefixtures("all_worthwhile")
@pytest.mark.parametrize("function", [read_after_addition, broadcast])
@pytest.mark.parametrize("is_qat", [False, True], ids=["calibrated", "trained"])
def test_addition_that_a_convolution_cannot_compute(function: Callable[..., Tensor], is_qat: bool) -> None:
    torch.manual_seed(0)
    model, x = AdditionModule(function, conv=nn.Conv2d(16, 16, 1)).eval(), torch.randn(4, 16, 8, 8)
    if is_qat:
        prepared = quantized.prepare_qat(model, x, backend="onednn")
        prepared(x)
        int8 = quantized.convert(prepared)
    else:
        int8 = quantized.quantize(model, [x], backend="onednn")
    assert decibels(model(x), int8(x)) > 28
